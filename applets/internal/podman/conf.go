package podman

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/BurntSushi/toml"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
)

const (
	nonblock = syscall.O_NONBLOCK

	maxConf    = 1 << 20 // bytes of one configuration file
	maxDropIns = 1000    // files in one directory

	// defaultHooksDir is the only directory Podman reads hooks from when
	// nothing is configured, with or without root.
	defaultHooksDir = "/usr/share/containers/oci/hooks.d"
	dropInName      = "50-terok-shield.conf"
)

// system is where files are looked for. Tests put a directory in front of
// the system's paths.
type system struct {
	env  *cmdenv.Env
	root string
	// real says that uid 0 here is uid 0 of the machine.
	real bool
}

func systemOf(env *cmdenv.Env) system {
	s := system{env: env, root: "/"}
	if text, err := readProc("/proc/self/uid_map"); err == nil {
		s.real = env.EUID == 0 && slices.Equal(strings.Fields(text), []string{"0", "0", "4294967295"})
	}
	return s
}

// readProc reads a small file of a kernel file system.
func readProc(path string) (string, error) {
	text, err := readFile(path, 64<<10)
	return string(text), err
}

func (s system) path(p string) string { return filepath.Join(s.root, p) }

// Conf is what of containers.conf(5) matters to us.
type Conf struct {
	Files []string // that exist, in the order of reading

	HooksDirs []string // as written: Podman does not expand ~ here
	HooksFile string   // that had the last word on HooksDirs; "" for the default

	NetworkCmdOptions []string // [engine] network_cmd_options
	NetworkCmd        string   // [network] default_rootless_network_cmd
	Runtime           string   // [engine] runtime

	// Nameservers of a rootful container on Podman's default network.
	Nameservers []netip.Addr
}

// ReadConf reads the configuration that Podman would: CONTAINERS_CONF alone
// if it is set, else the distribution's file, the administrator's with its
// drop-ins, the user's with its drop-ins; at last CONTAINERS_CONF_OVERRIDE.
func ReadConf(env *cmdenv.Env) (Conf, error) { return readConf(systemOf(env), reading{}) }

// reading says how to read.
type reading struct {
	// without is a file to leave out.
	without string
	// filesOnly ignores the two environment variables.
	filesOnly bool
	// old leaves out what only newer versions read: root's own files, and
	// CONTAINERS_CONF_OVERRIDE. Podman 4.3 does so.
	old bool
}

func readConf(s system, how reading) (Conf, error) {
	c := Conf{HooksDirs: []string{defaultHooksDir}, Nameservers: rootfulNameservers(s)}
	m := merge{conf: &c}
	files, err := confFiles(s, how)
	if err != nil {
		return Conf{}, err
	}
	override := s.env.Get("CONTAINERS_CONF_OVERRIDE")
	named := []string{s.env.Get("CONTAINERS_CONF"), override}
	if override != "" && !how.filesOnly && !how.old {
		files = append(files, override)
	}
	for _, f := range files {
		if f == how.without {
			continue
		}
		text, err := readFile(f, maxConf)
		switch {
		case errors.Is(err, fs.ErrNotExist) && (how.filesOnly || !slices.Contains(named, f)):
			continue
		case err != nil:
			return Conf{}, fmt.Errorf("podman's configuration: %w", err)
		}
		if err := m.file(f, string(text)); err != nil {
			return Conf{}, err
		}
	}
	return c, nil
}

// confFiles are the files Podman would try to read, before the override.
func confFiles(s system, how reading) ([]string, error) {
	if f := s.env.Get("CONTAINERS_CONF"); f != "" && !how.filesOnly {
		return []string{f}, nil
	}
	files := []string{s.path("usr/share/containers/containers.conf")}
	dirs := []string{s.path("etc/containers")}
	if s.env.EUID != 0 || !how.old {
		user, err := userConfDir(s)
		switch {
		case err == nil:
			dirs = append(dirs, user)
		case s.env.EUID != 0:
			return nil, err
		}
	}
	for _, dir := range dirs {
		f := filepath.Join(dir, "containers.conf")
		files = append(files, f)
		entries, err := os.ReadDir(f + ".d")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("podman's configuration: %w", err)
		}
		if len(entries) > maxDropIns {
			return nil, fmt.Errorf("podman's configuration: more than %d files in %s.d", maxDropIns, f)
		}
		for _, e := range entries { // sorted by name
			if !e.IsDir() && strings.HasSuffix(e.Name(), ".conf") {
				files = append(files, filepath.Join(f+".d", e.Name()))
			}
		}
	}
	return files, nil
}

// userConfDir is where a user's containers.conf is.
func userConfDir(s system) (string, error) {
	base, err := s.env.XDG("CONFIG", ".config")
	if err != nil {
		return "", err
	}
	return filepath.Join(base, "containers"), nil
}

// merge lays one file over another as Podman does: a list replaces the list
// before it, unless it has an element {append=true}; that stays in effect
// for later files until one says {append=false}.
type merge struct {
	conf                      *Conf
	appendHooks, appendNetCmd bool
}

func (m *merge) file(path, text string) error {
	var raw struct {
		Engine struct {
			HooksDir          any `toml:"hooks_dir"`
			NetworkCmdOptions any `toml:"network_cmd_options"`
			Runtime           any `toml:"runtime"`
		} `toml:"engine"`
		Network struct {
			Cmd any `toml:"default_rootless_network_cmd"`
		} `toml:"network"`
	}
	if _, err := toml.Decode(text, &raw); err != nil {
		if p, ok := errors.AsType[toml.ParseError](err); ok {
			return fmt.Errorf("%s:%d: %s: mend the file, podman cannot read it either", path, p.Position.Line, cmdenv.Printable(p.Message))
		}
		return fmt.Errorf("%s: %s: mend the file, podman cannot read it either", path, cmdenv.Printable(err.Error()))
	}
	hooks, err1 := list(raw.Engine.HooksDir, m.conf.HooksDirs, &m.appendHooks)
	options, err2 := list(raw.Engine.NetworkCmdOptions, m.conf.NetworkCmdOptions, &m.appendNetCmd)
	runtime, err3 := scalar(raw.Engine.Runtime, m.conf.Runtime)
	cmd, err4 := scalar(raw.Network.Cmd, m.conf.NetworkCmd)
	for _, f := range []struct {
		key string
		err error
	}{
		{"[engine] hooks_dir", err1}, {"[engine] network_cmd_options", err2},
		{"[engine] runtime", err3}, {"[network] default_rootless_network_cmd", err4},
	} {
		if f.err != nil {
			return fmt.Errorf("%s: %s: %w: mend the file, podman cannot read it either", path, f.key, f.err)
		}
	}
	if raw.Engine.HooksDir != nil {
		m.conf.HooksFile = path
	}
	m.conf.Files = append(m.conf.Files, path)
	m.conf.HooksDirs, m.conf.NetworkCmdOptions, m.conf.Runtime, m.conf.NetworkCmd = hooks, options, runtime, cmd
	return nil
}

// list lays the value of a key over the list before. A lone string counts as
// a list of one.
func list(value any, before []string, appending *bool) ([]string, error) {
	var items []any
	switch v := value.(type) {
	case nil:
		return before, nil
	case string:
		items = []any{v}
	case []any:
		items = v
	case []map[string]any: // [{append=true}]
		for _, e := range v {
			items = append(items, e)
		}
	default:
		return nil, errors.New("not a list of strings")
	}
	out := []string{}
	for _, item := range items {
		switch v := item.(type) {
		case string:
			out = append(out, v)
		case map[string]any:
			on, ok := v["append"].(bool)
			if !ok || len(v) != 1 {
				return nil, errors.New("a table in the list that is not {append=true} or {append=false}")
			}
			*appending = on
		default:
			return nil, errors.New("not a list of strings")
		}
	}
	if *appending {
		out = slices.Concat(before, out)
	}
	return out, nil
}

func scalar(value any, before string) (string, error) {
	switch v := value.(type) {
	case nil:
		return before, nil
	case string:
		return v, nil
	}
	return "", errors.New("not a string")
}
