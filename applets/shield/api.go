package shield

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/config"
	"github.com/terok-ai/terok-box/applets/internal/podman"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/event"
)

// Config is all that a Shield goes by. Neither environment variables of this
// process nor config.yml are looked at.
type Config struct {
	// StateRoot is where containers' state is: StateRoot/containers/NAME.
	// Nothing is written elsewhere. An absolute path.
	StateRoot string
	// Program is a terok-box, which is executed where a container's namespaces
	// have to be entered. An absolute path.
	Program string
	// Vars are the environment of the programs that are executed, of which the
	// first is Podman: PATH, HOME and XDG_RUNTIME_DIR as its user has them.
	Vars map[string]string

	ProfilesDir     string   // profiles besides the bundled ones, which these hide; "" for none
	DefaultProfiles []string // for Prepare without profiles
	Tier            Tier     // how names become addresses; "" is TierProxy
	ResolveUnlisted bool     // names on no list are resolved, their connections blocked
	LoopbackPorts   []uint16 // TCP ports of the host that containers may reach
	Questions       int      // that a container may have open at once; 0 for the usual number, less for none
	Audit           bool     // decisions are written to the container's audit.jsonl

	// Warn is told what did not stop an operation, of several operations at the
	// same time if there are; it may be nil.
	Warn func(text string)
	// Progress is called while names are looked up; it may be nil.
	Progress func(done, total int)
}

// Tier is how a container's names become addresses.
type Tier = bundle.Tier

// The tiers.
const (
	TierProxy   = bundle.Proxy   // our resolver
	TierDnsmasq = bundle.Dnsmasq // dnsmasq, supervised
	TierStatic  = bundle.Static  // looked up by the host
)

// State is what a container's firewall lets pass.
type State = ruleset.State

// The states.
const (
	StateUp         = ruleset.Up         // what is allowed
	StateDown       = ruleset.Down       // all but private and denied addresses
	StateDisengaged = ruleset.Disengaged // all but denied addresses
	StateQuarantine = ruleset.Quarantine // nothing
	StateOffline    = ruleset.Offline    // there is no firewall, or no container
	StateUnknown    = ruleset.Error      // the firewall is none of these
)

// Shield is terok-shield for programs: each method is a verb. Containers are
// named as on the command line, by name or by 12 digits of an id at least.
// Methods can be called at the same time; who changes the same container waits
// for who came first.
type Shield struct {
	cfg  config.Config
	env  *cmdenv.Env
	warn func(string)
	look func(done, total int)
}

// New makes a Shield. It does not look at anything yet.
func New(c Config) (*Shield, error) {
	for what, path := range map[string]string{"StateRoot": c.StateRoot, "Program": c.Program} {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("%s %q is not an absolute path", what, path)
		}
	}
	s := &Shield{
		cfg: config.Config{
			Mode: config.ModeHook, DefaultProfiles: c.DefaultProfiles, Audit: c.Audit, LoopbackPorts: c.LoopbackPorts,
			Tier: c.Tier, ResolveUnlisted: c.ResolveUnlisted,
			Ask: c.Questions >= 0, Questions: cmp.Or(c.Questions, bundle.DefaultQuestions), StateRoot: c.StateRoot, ProfilesDir: c.ProfilesDir,
		},
		env: &cmdenv.Env{
			Stdout: io.Discard, Stderr: io.Discard, Vars: maps.Clone(c.Vars), UID: os.Getuid(), EUID: os.Geteuid(), Self: c.Program,
		},
		warn: c.Warn, look: c.Progress,
	}
	if s.cfg.Questions > bundle.MaxQuestions {
		return nil, fmt.Errorf("%d questions at once; at most %d are possible", c.Questions, bundle.MaxQuestions)
	}
	switch s.cfg.Tier {
	case "":
		s.cfg.Tier = TierProxy
	case TierProxy, TierDnsmasq, TierStatic:
	default:
		return nil, fmt.Errorf("there is no tier %q", c.Tier)
	}
	return s, nil
}

// app is what the verbs work with.
func (s *Shield) app(ctx context.Context) *app {
	return &app{env: s.env, ctx: ctx, stateDir: s.cfg.StateRoot, embedded: s}
}

// Prepare writes the state that a container of that name starts from, and
// returns the flags for podman create or podman run, which need --name
// besides. Without profiles the default ones are meant. runtime is the OCI
// runtime that the container will have; "" is Podman's default.
func (s *Shield) Prepare(ctx context.Context, name string, profiles []string, runtime string) (flags []string, err error) {
	a := s.app(ctx)
	p, err := a.podman()
	if err != nil {
		return nil, err
	}
	return a.prepare(s.cfg, p, container(name), profiles, runtime)
}

// Decision is what came of an Allow or Deny.
type Decision struct {
	Container string   // its name
	Addresses []string // that were opened or closed; none for a name that is not in use
}

// Allow lets a container reach an address, a network or a name, at once and
// after every start.
func (s *Shield) Allow(ctx context.Context, name, target string) (Decision, error) {
	return s.decide(ctx, control.OpAllow, name, target)
}

// Deny keeps a container from that, and cuts connections.
func (s *Shield) Deny(ctx context.Context, name, target string) (Decision, error) {
	return s.decide(ctx, control.OpDeny, name, target)
}

func (s *Shield) decide(ctx context.Context, op control.Op, name, target string) (Decision, error) {
	found, resp, err := s.app(ctx).decide(container(name), op, target)
	if err != nil {
		return Decision{}, fmt.Errorf("container %s: %w", name, err)
	}
	return Decision{found.Name, resp.Applied}, nil
}

// Up lets a container reach only what is allowed.
func (s *Shield) Up(ctx context.Context, name string) error {
	return s.change(ctx, name, control.OpUp, event.ShieldUp)
}

// Down lets it reach everything but private and denied addresses; with all,
// private ones, too.
func (s *Shield) Down(ctx context.Context, name string, all bool) error {
	if all {
		return s.change(ctx, name, control.OpDisengage, event.ShieldDisengaged)
	}
	return s.change(ctx, name, control.OpDown, event.ShieldDown)
}

// Quarantine drops all of its traffic.
func (s *Shield) Quarantine(ctx context.Context, name string) error {
	return s.change(ctx, name, control.OpQuarantine, "")
}

// Reset forgets the addresses that a container has learned from names, cuts the
// connections to them, and returns them. What is allowed stays so, and is
// learned again when it is looked up again.
func (s *Shield) Reset(ctx context.Context, name string) ([]string, error) {
	_, forgotten, err := target{Container: container(name)}.reset(s.app(ctx))
	return forgotten, err
}

func (s *Shield) change(ctx context.Context, name string, op control.Op, kind string) error {
	_, err := target{Container: container(name)}.change(s.app(ctx), routed{}, op, kind)
	return err
}

// Status is what a container's firewall is.
type Status struct {
	Container string // its name
	State     State
	Detail    string // why it is StateUnknown
	Rules     string // with counters, where they were asked for
}

// State says what state a container is in.
func (s *Shield) State(ctx context.Context, name string) (Status, error) {
	return s.status(ctx, name, control.OpState)
}

// Rules is State with what the kernel holds.
func (s *Shield) Rules(ctx context.Context, name string) (Status, error) {
	return s.status(ctx, name, control.OpRules)
}

func (s *Shield) status(ctx context.Context, name string, op control.Op) (Status, error) {
	resp, found, err := target{Container: container(name)}.look(s.app(ctx), op)
	if err != nil {
		return Status{}, err
	}
	state, err := ruleset.ParseState(resp.State)
	return Status{found.Name, state, resp.Detail, resp.Listing}, err
}

// Resolve looks the names of a container's profiles up again, as far as that
// is not done when the container asks for them, and applies what was found.
// Profiles are those that it was prepared with if none are given. Without
// force, an answer of the last hour is good enough. It returns the addresses
// that are allowed because of profiles.
func (s *Shield) Resolve(ctx context.Context, name string, profiles []string, force bool) ([]string, error) {
	r, err := s.app(ctx).resolve(s.cfg, container(name), profiles, force)
	return r.addresses, err
}

// Preview is the ruleset of a container in a state, as text for nft.
func (s *Shield) Preview(state State) (string, error) {
	t, err := ruleset.Build(state, previewParams(s.cfg.Tier))
	if err != nil {
		return "", err
	}
	return t.String(), nil
}

// Issue is something that is wrong with this host, and what to do about it.
type Issue = podman.Issue

// Environment is what this host offers.
type Environment struct {
	PodmanVersion string
	NeedsSetup    bool    // the hooks are not installed: run terok-shield setup
	Issues        []Issue // nothing is wrong if there are none
}

// Check says what this host lacks.
func (s *Shield) Check(ctx context.Context) Environment {
	e := s.app(ctx).environment(s.cfg)
	return Environment{PodmanVersion: e.PodmanVersion, NeedsSetup: e.NeedsSetup, Issues: e.Issues}
}
