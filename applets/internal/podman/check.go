package podman

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// Where hooks come from.
const (
	HooksGlobal       = "global"        // a directory in containers.conf
	HooksPerContainer = "per-container" // podman remembers a container's --hooks-dir
	HooksMissing      = "not-installed"
)

// Health of the installation.
const (
	HealthOK    = "ok"
	HealthSetup = "setup-needed" // podman would start containers without our hooks
	HealthStale = "stale-hooks"  // hooks of another version, or ones no longer needed
)

// perContainerGate is the first Podman that keeps --hooks-dir of `create`
// for a later start. There is none yet.
const perContainerGate = 99

// Issue is one thing that is wrong, and how to mend it.
type Issue struct {
	Text string `json:"text"`
	Fix  string `json:"fix"`
}

func (i Issue) String() string { return i.Text + ": " + i.Fix }

// Environment is the state of Podman and our hooks in it.
type Environment struct {
	PodmanVersion string   `json:"podman_version"` // "unknown" without a podman
	HooksDir      string   `json:"hooks_dir"`      // where ours belong
	Hooks         string   `json:"hooks"`
	Health        string   `json:"health"`
	Issues        []Issue  `json:"issues"`
	Notes         []string `json:"notes"` // worth knowing, nothing to mend
}

// OK says that nothing needs mending.
func (e Environment) OK() bool { return len(e.Issues) == 0 }

// Installed says that Podman runs a firewall hook for our containers.
func (e Environment) Installed() bool { return e.Health != HealthSetup }

// Hint is what to do first, "" if there is nothing.
func (e Environment) Hint() string {
	for _, i := range e.Issues {
		return i.String()
	}
	return ""
}

// SetupFix is the Fix of what setting up mends.
const SetupFix = "run terok-shield setup"

// Check looks at everything outside of the kernel's tables that a shielded
// container needs, for those roles (the firewall alone if there are none).
// c may be nil if there is no podman.
func Check(ctx context.Context, env *cmdenv.Env, c *Client, roles ...Role) Environment {
	return check(ctx, systemOf(env), c, roles)
}

func check(ctx context.Context, s system, c *Client, roles []Role) Environment {
	if len(roles) == 0 {
		roles = []Role{Firewall}
	}
	e := Environment{PodmanVersion: Version{}.String(), Hooks: HooksMissing, Health: HealthSetup, Issues: []Issue{}, Notes: []string{}}
	version := e.podman(ctx, s, c)
	e.hooks(s, roles)
	if version.Major >= perContainerGate {
		if e.Hooks == HooksGlobal && e.Health == HealthOK {
			e.Health = HealthStale
			e.issue("this podman does not need global hooks", "run terok-shield uninstall")
		}
		e.Hooks = HooksPerContainer
	}
	return e
}

func (e *Environment) issue(text, fix string) {
	if i := (Issue{text, fix}); !slices.Contains(e.Issues, i) {
		e.Issues = append(e.Issues, i)
	}
}

// podman checks the program and what rootless use of it needs.
func (e *Environment) podman(ctx context.Context, s system, c *Client) Version {
	if c == nil {
		e.issue("podman was not found", "install podman, or put it into PATH")
		return Version{}
	}
	info, err := c.Info(ctx)
	if err != nil {
		if v, vErr := c.Version(ctx); vErr == nil {
			e.PodmanVersion = v.String()
		}
		e.issue(err.Error(), "make podman info work first")
		e.userNamespaces(s)
		return Version{}
	}
	e.PodmanVersion = info.Version.String()
	if info.Remote {
		e.issue("this podman is a client of another machine, where its hooks would run", "unset CONTAINER_HOST and run terok-shield on that machine")
	}
	if !info.Rootless {
		return info.Version
	}
	if info.OneID {
		e.issue("the user has no subordinate user ids", "run sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER, then podman system migrate")
	}
	for mode, path := range map[string]string{Pasta: info.pasta, Slirp: info.slirpPath} {
		if mode == info.NetworkMode && path == "" && LookPath(s.env, mode) == "" {
			e.issue(mode+" is missing, without it a rootless container has no network", "install "+mode)
		}
	}
	return info.Version
}

// userNamespaces names the usual reason for a rootless podman that fails.
func (e *Environment) userNamespaces(s system) {
	if s.env.EUID == 0 {
		return
	}
	for _, key := range []string{"user.max_user_namespaces", "kernel.unprivileged_userns_clone"} {
		value, err := readProc(s.path("proc/sys/" + strings.ReplaceAll(key, ".", "/")))
		if err == nil && strings.TrimSpace(value) == "0" {
			set := map[string]string{"user.max_user_namespaces": "15000", "kernel.unprivileged_userns_clone": "1"}[key]
			e.issue("user namespaces are switched off ("+key+" is 0)", "run sudo sysctl -w "+key+"="+set)
		}
	}
}

// hooks checks that Podman finds working hooks.
func (e *Environment) hooks(s system, roles []Role) {
	dir, err := hooksDir(s)
	if err != nil {
		e.issue(err.Error(), "correct it")
		return
	}
	e.HooksDir = dir
	conf, err := readConf(s, reading{})
	if err != nil {
		e.issue(err.Error(), "correct it")
		return
	}
	e.masked(s)

	if at, _ := find(conf.HooksDirs, Firewall.descriptorName(createRuntime)); at == "" {
		if !exists(filepath.Join(dir, Firewall.descriptorName(createRuntime))) {
			e.issue("the hooks are not installed", SetupFix)
		} else if !e.notInForce(s, dir) {
			e.issue("podman does not read hooks from "+dir, SetupFix)
		}
		return
	}
	e.Hooks, e.Health = HooksGlobal, HealthOK
	if slices.Contains(conf.HooksDirs, dir) {
		e.notInForce(s, dir) // for another version of podman
	}
	for _, role := range roles {
		for _, stage := range stages() {
			e.descriptor(s, conf.HooksDirs, role, stage)
		}
	}
}

// notInForce reports why our directory is not read.
func (e *Environment) notInForce(s system, dir string) bool {
	why, err := notInForce(s, dir)
	if err != nil {
		why = []Issue{{err.Error(), "correct it"}}
	}
	e.Issues = append(e.Issues, why...)
	return len(why) > 0
}

// masked finds hook directories that our file beside Podman's configuration
// hides because they were configured after it was written.
func (e *Environment) masked(s system) {
	dropIn, err := dropInPath(s)
	if err != nil || !exists(dropIn) {
		return
	}
	without, err1 := readConf(s, reading{without: dropIn, filesOnly: true, old: true})
	with, err2 := readConf(s, reading{filesOnly: true, old: true})
	if err1 != nil || err2 != nil || with.HooksFile != dropIn {
		return
	}
	for _, d := range without.HooksDirs {
		if without.HooksFile != "" && !slices.Contains(with.HooksDirs, d) {
			e.issue(fmt.Sprintf("%s hides the hook directory %s, which %s sets", dropIn, d, without.HooksFile), SetupFix)
		}
	}
}

// find is the directory whose file of that name Podman uses, and the file's
// content.
func find(dirs []string, name string) (dir string, text []byte) {
	for _, d := range slices.Backward(dirs) {
		text, err := readFile(filepath.Join(d, name), maxDescriptor)
		if err == nil {
			return d, text
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return d, nil
		}
	}
	return "", nil
}

// descriptor checks one descriptor and the program it names.
func (e *Environment) descriptor(s system, dirs []string, role Role, stage string) {
	name := role.descriptorName(stage)
	dir, text := find(dirs, name)
	if dir == "" {
		e.broken(role, "descriptor "+name+" is missing", SetupFix)
		return
	}
	path := filepath.Join(dir, name)
	if st, err := os.Stat(dir); err == nil && st.Mode()&0o022 != 0 {
		e.issue("others can add hooks to "+dir, "run chmod go-w "+dir)
	}
	var d descriptor
	err := json.Unmarshal(text, &d)
	switch {
	case err != nil || !slices.Contains(d.Stages, stage) || d.When.Annotations["terok.shield.profiles"] != ".*":
		e.broken(role, path+" is not a descriptor that runs for shielded containers", SetupFix)
		return
	case !filepath.IsAbs(d.Hook.Path) || !executable(d.Hook.Path):
		e.broken(role, fmt.Sprintf("%s names %s, which is missing or not executable, and podman starts containers without it", path, d.Hook.Path), SetupFix)
		return
	}
	if d := filepath.Dir(d.Hook.Path); noexec(d) {
		i := noexecIssue(d)
		e.broken(role, i.Text, i.Fix)
		return
	}
	native, same, err := compare(d.Hook.Path, s.env.Self)
	switch {
	case err != nil:
		e.stale(err.Error(), SetupFix)
	case same:
		if len(d.Hook.Args) == 0 || d.Hook.Args[0] != role.Entry() || !slices.Contains(d.Hook.Args[1:], stage) {
			e.broken(role, path+" does not run the program as "+role.Entry()+" "+stage, SetupFix)
		}
	case native:
		e.stale(d.Hook.Path+" is another version of this program", SetupFix)
	default:
		e.foreign(role, d.Hook.Path)
	}
}

// broken is an issue with a hook that does not work. Without its firewall a
// container must not be started; without the other it can.
func (e *Environment) broken(role Role, text, fix string) {
	switch role {
	case Firewall:
		e.Health = HealthSetup
	case Reader:
		text += ", so nobody is asked about blocked packets"
	}
	e.issue(text, fix)
}

func (e *Environment) stale(text, fix string) {
	if e.Health == HealthOK {
		e.Health = HealthStale
	}
	e.issue(text, fix)
}

// foreign looks at a hook of another installer, which works with our state
// directories if it is for the same version of them.
func (e *Environment) foreign(role Role, path string) {
	text, err := readFile(filepath.Join(filepath.Dir(path), stateModule), maxConf)
	v := 0
	if err == nil {
		v = moduleVersion(text)
	}
	if v != bundle.Version {
		is := "an unknown version"
		if v != 0 {
			is = fmt.Sprintf("version %d", v)
		}
		e.stale(fmt.Sprintf("%s is another installer's hook for %s of the state directory, not %d", path, is, bundle.Version), SetupFix)
		return
	}
	does := "applies the same rulesets"
	if role == Reader {
		does = "asks about blocked packets in its own way"
	}
	note := path + " is another installer's hook; it " + does + ", terok-shield setup would replace it"
	if !slices.Contains(e.Notes, note) {
		e.Notes = append(e.Notes, note)
	}
}

// compare says whether a hook program is a native one and the same as ours.
func compare(path, self string) (native, same bool, err error) {
	a, err := os.Open(path)
	if err != nil {
		return false, false, err
	}
	defer a.Close()
	magic := make([]byte, 4)
	if _, err := io.ReadFull(a, magic); err != nil || string(magic) != "\x7fELF" {
		return false, false, nil
	}
	b, err := os.Open(self)
	if err != nil {
		return true, false, fmt.Errorf("own program: %w", err)
	}
	defer b.Close()
	sa, errA := a.Stat()
	sb, errB := b.Stat()
	if err := errors.Join(errA, errB); err != nil {
		return true, false, err
	}
	if os.SameFile(sa, sb) {
		return true, true, nil
	}
	if sa.Size() != sb.Size() {
		return true, false, nil
	}
	if _, err := a.Seek(0, io.SeekStart); err != nil {
		return true, false, err
	}
	x, y := make([]byte, 256<<10), make([]byte, 256<<10)
	for {
		n, errX := io.ReadFull(a, x)
		m, errY := io.ReadFull(b, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return true, false, nil
		}
		if errX != nil || errY != nil {
			end := func(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
			if end(errX) && end(errY) {
				return true, true, nil
			}
			return true, false, errors.Join(errX, errY)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
