// Package shield is terok-shield, the command line for people and scripts:
// one file a verb.
//
// It decides what is to happen and says what did; the work on a container's
// firewall is done by package firewall, in a process inside the container's
// user namespace where that is needed. It must never import another applet.
package shield

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/config"
	"github.com/terok-ai/terok-box/applets/internal/grammar"
	"github.com/terok-ai/terok-box/applets/internal/podman"
	"github.com/terok-ai/terok-box/applets/internal/policy"
)

const description = `A default-deny egress firewall for rootless Podman containers.

  terok-shield setup                                 once: let Podman run the hook
  terok-shield run demo -- IMAGE CMD                 start a container that reaches only its profiles
  terok-shield allow demo example.com                open one more name, or address, while it runs
  terok-shield status demo                           up, down, disengaged, quarantine, offline or error

Exit codes: 0 done, 1 not done (the firewall is as it was, or closed), 2 wrong command line.
`

// verbs is the command line; every field with cmd is a verb.
type verbs struct {
	StateDir string `name:"state-dir" complete:"dirs" placeholder:"DIR" help:"Where containers' state is kept (default: $$TEROK_SHIELD_STATE_DIR, then $$XDG_STATE_HOME/terok/shield)."`
	Version  bool   `help:"Print versions and exit."`

	Status           statusCmd          `cmd:"" help:"Show what state a container's shield is in; without a container, this installation."`
	Prepare          prepareCmd         `cmd:"" help:"Write a container's state and print the flags for podman run."`
	Run              runCmd             `cmd:"" tail:"" help:"Start a shielded container: run C -- [PODMAN-FLAGS] IMAGE [CMD…]."`
	Resolve          resolveCmd         `cmd:"" help:"Look the names of a container's profiles up again and apply the addresses."`
	Allow            allowCmd           `cmd:"" help:"Let a container reach an address, CIDR or name, at once."`
	Deny             denyCmd            `cmd:"" help:"Forbid a container an address, CIDR or name, at once; live connections are cut."`
	Down             downCmd            `cmd:"" help:"Let a container reach everything but private and denied addresses."`
	Up               upCmd              `cmd:"" help:"Let a container reach only what is allowed."`
	Quarantine       quarantineCmd      `cmd:"" help:"Drop all of a container's traffic, running connections too."`
	Reset            resetCmd           `cmd:"" help:"Forget the addresses that a container has learned from names; live connections to them are cut."`
	Rules            rulesCmd           `cmd:"" help:"Show the rules in a container's kernel tables."`
	Watch            watchCmd           `cmd:"" help:"Show what a container asks for and connects to, as it happens."`
	SimpleClearance  simpleClearanceCmd `cmd:"" name:"simple-clearance" help:"Ask on this terminal about every connection that a container is refused."`
	Harvest          harvestCmd         `cmd:"" help:"Sum up what a container was refused, on request as a profile."`
	Logs             logsCmd            `cmd:"" help:"Show audit lines as JSON."`
	Profiles         profilesCmd        `cmd:"" help:"List the allowlist profiles."`
	Setup            setupCmd           `cmd:"" help:"Install the OCI hooks for this user."`
	Uninstall        uninstallCmd       `cmd:"" help:"Remove what setup installed."`
	CheckEnvironment environmentCmd     `cmd:"" name:"check-environment" help:"Say what is missing on this host and how to mend it."`
	Preview          previewCmd         `cmd:"" help:"Print the ruleset a container would get."`
	Config           configCmd          `cmd:"" help:"Print the effective configuration, and where each value comes from."`
	Completion       completionCmd      `cmd:"" help:"Print what has a shell complete this command line."`
	Names            namesCmd           `cmd:"" hidden:"" help:"Print names for completions."`
}

// app is what every verb works with.
type app struct {
	env      *cmdenv.Env
	ctx      context.Context
	stateDir string   // --state-dir
	tail     []string // what stands after "--"
	hasTail  bool
	embedded *Shield // whose method it is; nil for a command
}

// Run is terok-shield; args are without the program's name.
func Run(env *cmdenv.Env, args []string) int {
	ctx, stop := cmdenv.Context()
	defer stop()
	return env.Fail("", run(ctx, env, args))
}

func run(ctx context.Context, env *cmdenv.Env, args []string) error {
	a := &app{env: env, ctx: ctx}
	if i := slices.Index(args, "--"); i >= 0 {
		args, a.tail, a.hasTail = args[:i], args[i+1:], true
	}
	if cmd := unflagged(args); cmd != nil && !a.hasTail {
		return finished(cmd.Run(a))
	}
	var g verbs
	parser, err := newParser(env, &g)
	if err != nil {
		return fmt.Errorf("command line grammar: %w", err)
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	if flag := dashed(args); flag != "" {
		return cmdenv.Usagef("terok-shield: %q is neither a flag nor what can be allowed or denied (see terok-shield allow --help)", flag)
	}
	cmd, err := grammar.Parse(parser, args)
	switch {
	case err != nil && slices.Contains(args, "--version") && g.Version:
		return a.version()
	case err != nil:
		return cmdenv.Usagef("terok-shield: %w (see terok-shield --help)", err)
	case cmd == nil:
		return nil
	case g.Version:
		return a.version()
	case a.hasTail && cmd.Selected().Name != "run":
		return cmdenv.Usagef("terok-shield: only run takes arguments after --")
	}
	a.stateDir = g.StateDir
	return finished(cmd.Run(a))
}

func newParser(env *cmdenv.Env, g *verbs) (*kong.Kong, error) {
	return grammar.New(g, "terok-shield", description, env.Stdout, env.Stderr)
}

// Grammar is the command line of terok-shield.
func Grammar() (grammar.Program, error) {
	k, err := newParser(&cmdenv.Env{Stdout: io.Discard, Stderr: io.Discard}, new(verbs))
	if err != nil {
		return grammar.Program{}, err
	}
	return grammar.Of(k), nil
}

// finished is what became of a verb, as people and scripts see it.
func finished(err error) error {
	if err == nil {
		return nil
	}
	if x, ok := errors.AsType[*cmdenv.Exit](err); ok {
		return x
	}
	return fmt.Errorf("Error: %w", err) //nolint:staticcheck // scripts know this text
}

// unflagged is the command line without a flag of a verb that programs run often;
// nil if it is none of these. It says the same as the grammar, for which a
// third of such a command's time would go.
func unflagged(args []string) interface{ Run(a *app) error } {
	for _, arg := range args {
		if arg == "" || arg[0] == '-' {
			return nil
		}
	}
	switch len(args) {
	case 2:
		t := target{Container: container(args[1])}
		switch args[0] {
		case "status":
			return statusCmd{Container: t.Container}
		case "up":
			return upCmd{target: t}
		case "down":
			return downCmd{target: t}
		case "quarantine":
			return quarantineCmd{t}
		case "reset":
			return resetCmd{t}
		}
	case 3:
		v := verdictCmd{Container: container(args[1]), Target: args[2]}
		switch args[0] {
		case "allow":
			return allowCmd{v}
		case "deny":
			return denyCmd{v}
		}
	}
	return nil
}

// dashed is what looks like a flag and stands where allow and deny have their
// target, after the container; "" if there is nothing but their own flags. A
// script that passes on what somebody else chose must not get help instead,
// and take that for success.
func dashed(args []string) string {
	var words []string // without flags
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; {
		case arg == "--state-dir":
			i++ // and its value
		case !strings.HasPrefix(arg, "-"):
			words = append(words, arg)
		case len(words) >= 2 && (words[0] == "allow" || words[0] == "deny") && arg != "--json" && !strings.HasPrefix(arg, "--state-dir="):
			return arg
		}
	}
	return ""
}

// container is a positional argument: a container's name or id.
type container string

// check refuses names that Podman would not have made.
func (c container) check() error { return policy.ContainerName(string(c)) }

// printJSON prints one value on one line.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.env.Stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.env.Stdout, format, args...) }

// warn says on stderr what did not stop the command.
func (a *app) warn(text string) {
	switch {
	case text == "":
	case a.embedded == nil:
		fmt.Fprintf(a.env.Stderr, "Warning [shield]: %s\n", cmdenv.Printable(text))
	case a.embedded.warn != nil:
		a.embedded.warn(text)
	}
}

// config reads config.yml; its warnings go to stderr.
func (a *app) config() (config.Config, error) {
	if a.embedded != nil {
		return a.embedded.cfg, nil
	}
	c, warnings, err := config.Load(a.env)
	for _, w := range warnings {
		a.warn(w)
	}
	if err != nil {
		err = fmt.Errorf("Error [shield]: %w", err) //nolint:staticcheck // scripts know this text
		return c, &cmdenv.Exit{Code: cmdenv.ExitFailure, Err: err}
	}
	return c, c.SetStateRoot(a.env, a.stateDir)
}

func (a *app) podman() (*podman.Client, error) { return podman.Find(a.env) }

// version prints what R1 scripts parse: three lines.
func (a *app) version() error {
	a.printf("terok-shield %s\n", cmdenv.Version())
	ctx, cancel := context.WithTimeout(a.ctx, 5*time.Second)
	defer cancel()
	line := "podman not found"
	if p, err := a.podman(); err == nil {
		if v, err := p.Version(ctx); err == nil {
			line = "podman " + v.String()
		}
	}
	a.printf("%s\n", line)
	if podman.LookPath(a.env, "nft") != "" {
		a.printf("nft found\n")
	} else {
		a.printf("nft not found (nor needed)\n")
	}
	return nil
}

// lines is text ending in exactly one line feed, or nothing.
func lines(w io.Writer, text string) {
	if text = strings.TrimRight(text, "\n"); text != "" {
		fmt.Fprintln(w, text)
	}
}
