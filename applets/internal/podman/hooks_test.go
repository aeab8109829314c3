package podman

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
)

const (
	userHooks  = "home/.local/share/terok/shield/hooks"
	userDropIn = "home/.config/containers/containers.conf.d/50-terok-shield.conf"
	native     = "\x7fELF this program"
)

// self puts a program that stands for this one onto the machine.
func self(t *testing.T, s system, text string) string {
	t.Helper()
	path := filepath.Join(s.root, "usr/bin/terok-shield")
	write(t, path, text, 0o755)
	s.env.Self = path
	return path
}

func mustInstall(t *testing.T, s system, roles ...Role) Report {
	t.Helper()
	r, err := install(s, self(t, s, native), roles)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func in(dir string, names ...string) []string {
	var out []string
	for _, n := range names {
		out = append(out, dir+"/"+n)
	}
	return out
}

func TestHooksDir(t *testing.T) {
	const yml = "paths:\n  root: %s\nother: [1, 2]\n"
	for _, tt := range []struct {
		name  string
		euid  int
		vars  map[string]string
		files map[string]string
		want  string
	}{
		{"data directory", 1000, nil, nil, "ROOT/home/.local/share/terok"},
		{"XDG_DATA_HOME", 1000, map[string]string{"XDG_DATA_HOME": "/xdg"}, nil, "/xdg/terok"},
		{"real root", 0, nil, nil, "ROOT/var/lib/terok"},
		{"TEROK_ROOT", 0, map[string]string{"TEROK_ROOT": "/t/"}, map[string]string{"etc/terok/config.yml": fmt.Sprintf(yml, "/e")}, "/t"},
		{"administrator", 1000, nil, map[string]string{"etc/terok/config.yml": fmt.Sprintf(yml, "/e")}, "/e"},
		{"user overlays", 1000, nil, map[string]string{"etc/terok/config.yml": fmt.Sprintf(yml, "/e"), "home/.config/terok/config.yml": fmt.Sprintf(yml, "~/u")}, "ROOT/home/u"},
		{"user says nothing", 1000, nil, map[string]string{"etc/terok/config.yml": fmt.Sprintf(yml, "/e"), "home/.config/terok/config.yml": "a: b\n"}, "/e"},
		{"real root has no user file", 0, nil, map[string]string{"home/.config/terok/config.yml": fmt.Sprintf(yml, "/u")}, "ROOT/var/lib/terok"},
		{"TEROK_CONFIG_FILE alone", 1000, map[string]string{"TEROK_CONFIG_FILE": "ROOT/c.yml"}, map[string]string{"c.yml": "", "etc/terok/config.yml": fmt.Sprintf(yml, "/e")}, "ROOT/home/.local/share/terok"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := host(t, tt.euid, tt.files)
			for k, v := range tt.vars {
				s.env.Vars[k] = strings.ReplaceAll(v, "ROOT", s.root)
			}
			got, err := hooksDir(s)
			if want := strings.ReplaceAll(tt.want, "ROOT", s.root) + "/shield/hooks"; got != want || err != nil {
				t.Errorf("%s, %v, want %s", got, err, want)
			}
		})
	}
	for _, text := range []string{"paths: [", "paths: 7", "paths:\n  root: relative\n"} {
		s := host(t, 1000, map[string]string{"etc/terok/config.yml": text})
		if dir, err := hooksDir(s); err == nil || !strings.Contains(err.Error(), "config.yml") {
			t.Errorf("%q: %s, %v", text, dir, err)
		}
	}
}

func TestInstall(t *testing.T) {
	s := host(t, 1000, map[string]string{etcConf: hooksConf(`["/usr/lib/gpu/hooks", "~/mine"]`)})
	before := snapshot(t, s.root)
	old := unix.Umask(0o077) // must not make the hooks unreadable, nor writable with another
	defer unix.Umask(old)
	r := mustInstall(t, s)
	dir := filepath.Join(s.root, userHooks)
	want := Report{Dir: dir, Written: slices.Concat(
		in(dir, "terok-box", "terok-shield-hook", "_oci_state.py", "terok-shield-createRuntime.json", "terok-shield-poststop.json"),
		in(s.root, userDropIn))}
	if d := cmp.Diff(want, r); d != "" {
		t.Error(d)
	}
	for path, mode := range map[string]os.FileMode{
		dir: os.ModeDir | 0o755, dir + "/terok-box": 0o755, dir + "/terok-shield-hook": 0o755, dir + "/_oci_state.py": 0o644,
		dir + "/terok-shield-createRuntime.json": 0o644, filepath.Join(s.root, userDropIn): 0o644,
		filepath.Join(s.root, "home/.config/containers/containers.conf.d"): os.ModeDir | 0o755,
	} {
		if st, err := os.Lstat(path); err != nil || st.Mode() != mode {
			t.Errorf("%s: %v %v", path, st.Mode(), err)
		}
	}
	got := snapshot(t, dir)
	wantDescriptor := `-rw-r--r-- {
  "version": "1.0.0",
  "hook": {
    "path": "` + dir + `/terok-shield-hook",
    "args": [
      "terok-shield-hook",
      "createRuntime"
    ]
  },
  "when": {
    "annotations": {
      "terok.shield.profiles": ".*"
    }
  },
  "stages": [
    "createRuntime"
  ]
}
`
	if d := cmp.Diff(wantDescriptor, got["/terok-shield-createRuntime.json"]); d != "" {
		t.Error(d)
	}
	if v := moduleVersion([]byte(got["/_oci_state.py"])); v != 14 {
		t.Errorf("version %d beside the hook", v)
	}

	// The systems before replaced the distribution's list, and its hooks stopped.
	c, err := readConf(s, reading{})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"/usr/lib/gpu/hooks", "~/mine", dir}, c.HooksDirs); d != "" {
		t.Error(d)
	}

	// Again: nothing to do. With another program: that alone is replaced.
	after := snapshot(t, s.root)
	if d := cmp.Diff(Report{Dir: dir}, mustInstall(t, s)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(after, snapshot(t, s.root)); d != "" {
		t.Error(d)
	}
	r, err = install(s, self(t, s, native+" 2"), nil)
	if d := cmp.Diff(Report{Dir: dir, Written: in(dir, "terok-box", "terok-shield-hook")}, r); d != "" || err != nil {
		t.Error(d, err)
	}

	r, err = uninstall(s)
	if err != nil || len(r.Kept) != 0 || len(r.Todo) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	// In an order in which podman never finds a descriptor without its program.
	if d := cmp.Diff(slices.Concat(in(s.root, userDropIn), in(dir, "terok-shield-createRuntime.json", "terok-shield-poststop.json", "_oci_state.py", "terok-box", "terok-shield-hook")), r.Removed[:6]); d != "" {
		t.Error(d)
	}
	if err := os.RemoveAll(filepath.Join(s.root, "usr/bin")); err != nil { // our stand-in
		t.Fatal(err)
	}
	left := snapshot(t, s.root)
	delete(left, "/usr")
	if d := cmp.Diff(before, left); d != "" {
		t.Error(d)
	}
	if r, err := uninstall(s); err != nil || len(r.Removed) != 0 {
		t.Errorf("nothing to remove: %+v, %v", r, err)
	}
}

func TestInstallRoles(t *testing.T) {
	s := host(t, 1000, nil)
	mustInstall(t, s, Firewall, Reader)
	dir := filepath.Join(s.root, userHooks)
	inode := func(name string) uint64 {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, name), &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	if inode("terok-box") != inode("terok-shield-hook") {
		t.Error("the program is there twice")
	}
	// An installer that overwrites the entries in place, one after the other,
	// must not leave the firewall's name with the reader's program, which
	// lets every container start.
	for _, name := range []string{"terok-shield-hook", "terok-shield-bridge-hook"} {
		write(t, filepath.Join(dir, name), "#!/usr/bin/python3\n# "+name+"\n", 0o755)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "terok-shield-hook")); err != nil || !strings.Contains(string(text), "# terok-shield-hook") {
		t.Errorf("%q, %v", text, err)
	}
	// Back to one role: the other's files go, but not what is somebody else's.
	r := mustInstall(t, s)
	if d := cmp.Diff(in(dir, "terok-shield-bridge-createRuntime.json", "terok-shield-bridge-poststop.json"), r.Removed); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(in(dir, "terok-shield-bridge-hook"), r.Kept); d != "" {
		t.Error(d)
	}
}

func TestInstallAsRoot(t *testing.T) {
	s := host(t, 0, map[string]string{userConf: hooksConf(`["/root-only"]`)})
	r := mustInstall(t, s)
	if r.Dir != filepath.Join(s.root, "var/lib/terok/shield/hooks") {
		t.Error(r.Dir)
	}
	text, err := os.ReadFile(filepath.Join(s.root, "etc/containers/containers.conf.d/50-terok-shield.conf"))
	if err != nil || !strings.Contains(string(text), `hooks_dir = ["/usr/share/containers/oci/hooks.d", "`+r.Dir+`"]`) {
		t.Errorf("%s, %v", text, err)
	}
	// Newer versions read root's own file after the administrator's.
	want := []string{fmt.Sprintf("%[1]s/%[2]s sets hooks_dir after %[1]s/etc/containers/containers.conf.d/50-terok-shield.conf: add %[3]q to the list there", s.root, userConf, r.Dir)}
	if d := cmp.Diff(want, r.Todo); d != "" {
		t.Error(d)
	}
}

func TestInstallTodo(t *testing.T) {
	for name, tt := range map[string]struct {
		vars  map[string]string
		files map[string]string
		want  string
	}{
		"CONTAINERS_CONF": {map[string]string{"CONTAINERS_CONF": "ROOT/one.conf"}, map[string]string{"one.conf": "[engine]\n"},
			`CONTAINERS_CONF is set, so podman reads only ROOT/one.conf: unset it, or add "ROOT/` + userHooks + `" to hooks_dir under [engine] there`},
		"a later file": {nil, map[string]string{"home/.config/containers/containers.conf.d/60-x.conf": hooksConf(`["/x"]`)},
			`ROOT/home/.config/containers/containers.conf.d/60-x.conf sets hooks_dir after ROOT/` + userDropIn + `: add "ROOT/` + userHooks + `" to the list there`},
		"CONTAINERS_CONF_OVERRIDE": {map[string]string{"CONTAINERS_CONF_OVERRIDE": "ROOT/last.conf"}, map[string]string{"last.conf": hooksConf(`["/x"]`)},
			`ROOT/last.conf sets hooks_dir after ROOT/` + userDropIn + `: add "ROOT/` + userHooks + `" to the list there`},
		"CONTAINERS_CONF that has it": {map[string]string{"CONTAINERS_CONF": "ROOT/one.conf"}, map[string]string{"one.conf": hooksConf(`["ROOT/` + userHooks + `"]`)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := host(t, 1000, tt.files)
			for k, v := range tt.vars {
				s.env.Vars[k] = strings.ReplaceAll(v, "ROOT", s.root)
			}
			conf := snapshot(t, s.root)
			r := mustInstall(t, s)
			if got, want := strings.Join(r.Todo, "\n"), strings.ReplaceAll(tt.want, "ROOT", s.root); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			for path, text := range snapshot(t, s.root) {
				if was, ok := conf[path]; ok && was != text {
					t.Errorf("%s was edited", path)
				}
			}
		})
	}
}

func TestInstallRefusals(t *testing.T) {
	// The systems before inserted a line into a file they could not read.
	s := host(t, 1000, map[string]string{userConf: "[engine]]\n"})
	before := snapshot(t, s.root)
	if _, err := install(s, "/proc/self/exe", nil); err == nil || !strings.Contains(err.Error(), "containers.conf:1:") {
		t.Error(err)
	}
	if d := cmp.Diff(before, snapshot(t, s.root)); d != "" {
		t.Error(d)
	}
	s = host(t, 1000, nil)
	if _, err := install(s, s.root+"/missing", nil); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	s = host(t, 1000, map[string]string{userHooks + "/terok-box.manifest": "{"})
	if _, err := install(s, self(t, s, native), nil); err == nil || !strings.Contains(err.Error(), "remove "+s.root) {
		t.Error(err)
	}
	s = host(t, 1000, map[string]string{userHooks + "/terok-box/x": ""})
	if _, err := install(s, self(t, s, native), nil); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Error(err)
	}
	// A manifest cannot make us remove what lies elsewhere.
	s = host(t, 1000, map[string]string{"home/precious": "x"})
	write(t, filepath.Join(s.root, userHooks, manifestName), fmt.Sprintf(`{"files":{%q:%q,%q:%q}}`,
		s.root+"/home/precious", sumOf([]byte("x")), s.root+"/"+userHooks+"/../../../../../../precious", sumOf([]byte("x"))), 0o644)
	if r, err := uninstall(s); err != nil || len(r.Removed) != 0 || !exists(s.root+"/home/precious") {
		t.Errorf("%+v, %v", r, err)
	}
}

// python is what the Python system installs.
func python(version int) map[string]string {
	files := map[string]string{
		userHooks + "/_oci_state.py": fmt.Sprintf("import os\n\nBUNDLE_VERSION = %d\n", version),
		userConf:                     "# mine\n" + hooksConf(`["ROOT/`+userHooks+`"]`),
	}
	for _, role := range []Role{Firewall, Reader} {
		files[userHooks+"/"+role.Entry()] = "#!/usr/bin/env python3\n"
		for _, stage := range stages() {
			files[userHooks+"/"+role.descriptorName(stage)] = fmt.Sprintf(
				`{"version":"1.0.0","hook":{"path":"ROOT/%s/%s","args":[%q,%q]},"when":{"annotations":{"terok.shield.profiles":".*"}},"stages":[%q]}`,
				userHooks, role.Entry(), role.Entry(), stage, stage)
		}
	}
	return files
}

func pythonHost(t *testing.T, version int) system {
	s := host(t, 1000, python(version))
	self(t, s, native)
	for _, role := range []Role{Firewall, Reader} {
		if err := os.Chmod(filepath.Join(s.root, userHooks, role.Entry()), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestInstallOverPythonHooks(t *testing.T) {
	s := pythonHost(t, 14)
	dir := filepath.Join(s.root, userHooks)
	r := mustInstall(t, s)
	if d := cmp.Diff(in(dir, "terok-shield-hook", "terok-shield-createRuntime.json", "terok-shield-poststop.json"), r.Replaced); d != "" {
		t.Error(d)
	}
	// Their other hook imports this module; without it no container starts.
	if d := cmp.Diff(in(dir, "_oci_state.py"), r.Kept); d != "" {
		t.Error(d)
	}
	r, err := uninstall(s)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(in(dir, "_oci_state.py", "terok-shield-bridge-createRuntime.json", "terok-shield-bridge-hook", "terok-shield-bridge-poststop.json"), r.Kept); d != "" {
		t.Error(d)
	}
	want := []string{fmt.Sprintf("%s/%s still lists %s in hooks_dir, which terok-shield did not write: remove it there if nothing else needs it", s.root, userConf, dir)}
	if d := cmp.Diff(want, r.Todo); d != "" {
		t.Error(d)
	}
}

// host5 is a podman that works.
func host5(version string) *Client {
	return answers(Output{Stdout: []byte(`{"host":{"security":{"rootless":true},"rootlessNetworkCmd":"pasta","pasta":{"executable":"/p"},"idMappings":{"uidmap":[{"size":65536}]}},"version":{"Version":"` + version + `"}}`)}, nil)
}

func TestCheck(t *testing.T) {
	installed := func(t *testing.T) system {
		s := host(t, 1000, nil)
		mustInstall(t, s)
		return s
	}
	hooks := func(s system, name string) string { return filepath.Join(s.root, userHooks, name) }
	for _, tt := range []struct {
		name   string
		system func(t *testing.T) system
		client *Client
		roles  []Role
		hooks  string
		health string
		issues []string
		notes  []string
	}{
		{name: "fine", system: installed, hooks: HooksGlobal, health: HealthOK},
		{name: "new machine", system: func(t *testing.T) system { return host(t, 1000, nil) }, hooks: HooksMissing, health: HealthSetup,
			issues: []string{"the hooks are not installed: run terok-shield setup"}},
		{name: "no podman", system: installed, client: &Client{}, hooks: HooksGlobal, health: HealthOK,
			issues: []string{"podman was not found: install podman, or put it into PATH"}},
		{name: "drop-in removed", system: func(t *testing.T) system {
			s := installed(t)
			if err := os.Remove(filepath.Join(s.root, userDropIn)); err != nil {
				t.Fatal(err)
			}
			return s
		}, hooks: HooksMissing, health: HealthSetup, issues: []string{"podman does not read hooks from ROOT/" + userHooks + ": run terok-shield setup"}},
		{name: "CONTAINERS_CONF", system: func(t *testing.T) system {
			s := installed(t)
			write(t, s.root+"/one.conf", "", 0o644)
			s.env.Vars["CONTAINERS_CONF"] = s.root + "/one.conf"
			return s
		}, hooks: HooksMissing, health: HealthSetup, issues: []string{
			`CONTAINERS_CONF is set, so podman reads only ROOT/one.conf: unset it, or add "ROOT/` + userHooks + `" to hooks_dir under [engine] there`}},
		{name: "configuration broken", system: func(t *testing.T) system {
			s := installed(t)
			write(t, filepath.Join(s.root, userConf), "[", 0o644)
			return s
		}, hooks: HooksMissing, health: HealthSetup, issues: []string{"ROOT/" + userConf + ":1:"}},
		{name: "hidden directory", system: func(t *testing.T) system {
			s := installed(t)
			write(t, filepath.Join(s.root, userConf), hooksConf(`["/gpu"]`), 0o644)
			return s
		}, hooks: HooksGlobal, health: HealthOK, issues: []string{"ROOT/" + userDropIn + " hides the hook directory /gpu, which ROOT/" + userConf + " sets: run terok-shield setup"}},
		{name: "program missing (podman starts containers without it)", system: func(t *testing.T) system {
			s := installed(t)
			if err := os.Remove(hooks(s, "terok-shield-hook")); err != nil {
				t.Fatal(err)
			}
			return s
		}, hooks: HooksGlobal, health: HealthSetup, issues: []string{
			"ROOT/" + userHooks + "/terok-shield-createRuntime.json names ROOT/" + userHooks + "/terok-shield-hook, which is missing or not executable",
			"ROOT/" + userHooks + "/terok-shield-poststop.json names"}},
		{name: "program not executable", system: func(t *testing.T) system {
			s := installed(t)
			if err := os.Chmod(hooks(s, "terok-shield-hook"), 0o644); err != nil {
				t.Fatal(err)
			}
			return s
		}, hooks: HooksGlobal, health: HealthSetup, issues: []string{"missing or not executable", "missing or not executable"}},
		{name: "another version", system: func(t *testing.T) system {
			s := installed(t)
			self(t, s, native+" 2")
			return s
		}, hooks: HooksGlobal, health: HealthStale, issues: []string{"ROOT/" + userHooks + "/terok-shield-hook is another version of this program: run terok-shield setup"}},
		{name: "another version of the same size", system: func(t *testing.T) system {
			s := installed(t)
			self(t, s, strings.ToUpper(native))
			return s
		}, hooks: HooksGlobal, health: HealthStale, issues: []string{"another version"}},
		{name: "descriptor missing", system: func(t *testing.T) system {
			s := installed(t)
			if err := os.Remove(hooks(s, "terok-shield-poststop.json")); err != nil {
				t.Fatal(err)
			}
			return s
		}, hooks: HooksGlobal, health: HealthSetup, issues: []string{"descriptor terok-shield-poststop.json is missing: run terok-shield setup"}},
		{name: "reader missing", system: installed, roles: []Role{Firewall, Reader}, hooks: HooksGlobal, health: HealthOK, issues: []string{
			"descriptor terok-shield-bridge-createRuntime.json is missing, so nobody is asked about blocked packets: run terok-shield setup",
			"descriptor terok-shield-bridge-poststop.json is missing"}},
		{name: "descriptor for nobody", system: func(t *testing.T) system {
			s := installed(t)
			write(t, hooks(s, "terok-shield-createRuntime.json"), `{"hook":{"path":"/bin/true"},"stages":["createRuntime"]}`, 0o644)
			return s
		}, hooks: HooksGlobal, health: HealthSetup, issues: []string{"is not a descriptor that runs for shielded containers"}},
		{name: "descriptor without its name", system: func(t *testing.T) system {
			s := installed(t)
			path := hooks(s, "terok-shield-createRuntime.json")
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			write(t, path, strings.ReplaceAll(string(text), `"terok-shield-hook",`, `"x",`), 0o644)
			return s
		}, hooks: HooksGlobal, health: HealthSetup, issues: []string{"does not run the program as terok-shield-hook createRuntime"}},
		{name: "writable by others", system: func(t *testing.T) system {
			s := installed(t)
			if err := os.Chmod(hooks(s, ""), 0o775); err != nil {
				t.Fatal(err)
			}
			return s
		}, hooks: HooksGlobal, health: HealthOK, issues: []string{"others can add hooks to ROOT/" + userHooks + ": run chmod go-w"}},
		{name: "Python hooks", system: func(t *testing.T) system { return pythonHost(t, 14) }, hooks: HooksGlobal, health: HealthOK,
			notes: []string{"ROOT/" + userHooks + "/terok-shield-hook is another installer's hook"}},
		{name: "older Python hooks, which refuse our state directories", system: func(t *testing.T) system { return pythonHost(t, 13) }, hooks: HooksGlobal, health: HealthStale,
			issues: []string{"ROOT/" + userHooks + "/terok-shield-hook is another installer's hook for version 13 of the state directory, not 14"}},
		{name: "hooks of another installer elsewhere mask nothing of ours", system: func(t *testing.T) system {
			s := host(t, 1000, map[string]string{
				userConf:                              hooksConf(`["ROOT/old"]`),
				"old/terok-shield-createRuntime.json": `{"hook":{"path":"ROOT/old/gone"},"when":{"annotations":{"terok.shield.profiles":".*"}},"stages":["createRuntime"]}`,
			})
			mustInstall(t, s)
			return s
		}, hooks: HooksGlobal, health: HealthOK},
		{name: "a podman that remembers", system: installed, client: host5("99.1.0"), hooks: HooksPerContainer, health: HealthStale, issues: []string{"does not need global hooks"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := tt.system(t)
			c := tt.client
			switch {
			case c == nil:
				c = host5("5.4.2")
			case c.Path == "":
				c = nil
			}
			e := check(t.Context(), s, c, tt.roles)
			if e.Hooks != tt.hooks || e.Health != tt.health || e.HooksDir != filepath.Join(s.root, userHooks) {
				t.Errorf("hooks %s, health %s, %s", e.Hooks, e.Health, e.HooksDir)
			}
			if e.Installed() != (tt.health != HealthSetup) || e.OK() != (len(tt.issues) == 0) {
				t.Errorf("installed %v, ok %v", e.Installed(), e.OK())
			}
			var got []string
			for _, i := range e.Issues {
				got = append(got, i.String())
			}
			for what, x := range map[string]struct{ got, want []string }{"issues": {got, tt.issues}, "notes": {e.Notes, tt.notes}} {
				if len(x.got) != len(x.want) {
					t.Fatalf("%s: %q, want %q", what, x.got, x.want)
				}
				for i := range x.got {
					if want := strings.ReplaceAll(x.want[i], "ROOT", s.root); !strings.Contains(x.got[i], want) {
						t.Errorf("%s: %q lacks %q", what, x.got[i], want)
					}
				}
			}
			// What setup is said to mend, it mends.
			if strings.HasSuffix(e.Hint(), ": "+SetupFix) && c != nil && len(tt.roles) == 0 {
				if _, err := install(s, s.env.Self, nil); s.env.Self != "" && err != nil {
					t.Fatal(err)
				}
				if s.env.Self == "" {
					mustInstall(t, s)
				}
				if e := check(t.Context(), s, c, nil); !e.OK() || e.Health != HealthOK {
					t.Errorf("after setup: %+v", e)
				}
			}
		})
	}
}

func TestCheckPodman(t *testing.T) {
	info := func(host string) *Client {
		return answers(Output{Stdout: []byte(`{"host":{` + host + `},"version":{"Version":"4.3.1"}}`)}, nil)
	}
	for _, tt := range []struct {
		name   string
		client *Client
		files  map[string]string
		issues []string
	}{
		{"rootful needs nothing", info(`"security":{"rootless":false}`), nil, nil},
		{"remote", info(`"serviceIsRemote":true`), nil, []string{"client of another machine"}},
		{"no subordinate ids", info(`"security":{"rootless":true},"pasta":{"executable":"/p"},"idMappings":{"uidmap":[{"size":1}]}`), nil, []string{"no subordinate user ids: run sudo usermod"}},
		{"no network program", info(`"security":{"rootless":true}`), nil, []string{"pasta is missing"}},
		{"no slirp4netns", info(`"security":{"rootless":true},"rootlessNetworkCmd":"slirp4netns"`), nil, []string{"slirp4netns is missing"}},
		{"podman fails", answers(Output{Exit: 125, Stderr: []byte("Error: cannot re-exec process\n")}, nil), nil, []string{"podman info: exit 125: cannot re-exec process"}},
		{"no user namespaces", answers(Output{Exit: 125}, nil), map[string]string{"proc/sys/user/max_user_namespaces": "0\n", "proc/sys/kernel/unprivileged_userns_clone": "0\n"},
			[]string{"podman info", "user namespaces are switched off (user.max_user_namespaces is 0): run sudo sysctl -w user.max_user_namespaces=15000", "kernel.unprivileged_userns_clone"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := host(t, 1000, tt.files)
			mustInstall(t, s)
			e := check(t.Context(), s, tt.client, nil)
			if len(e.Issues) != len(tt.issues) {
				t.Fatalf("%+v", e.Issues)
			}
			for i, want := range tt.issues {
				if got := e.Issues[i].String(); !strings.Contains(got, want) {
					t.Errorf("%q lacks %q", got, want)
				}
			}
		})
	}
	text, err := json.Marshal(check(t.Context(), host(t, 1000, nil), host5("5.4.2"), nil))
	if err != nil || !strings.Contains(string(text), `"podman_version":"5.4.2","hooks_dir":"`) || !strings.Contains(string(text), `"issues":[{"text":"`) {
		t.Errorf("%s, %v", text, err)
	}
}

// TestRealPodmanReadsHooks has the real podman tell which directories it
// reads under the file we write, in the order we say.
func TestRealPodmanReadsHooks(t *testing.T) {
	s := host(t, os.Geteuid(), map[string]string{etcConf: hooksConf(`["/nonexistent/gpu hooks", "~/literal"]`)})
	r := mustInstall(t, s)
	dropIn, err := dropInPath(s)
	if err != nil {
		t.Fatal(err)
	}
	c := realClient(t)
	out, err := c.Output(t.Context(), "create", "--network=none", "--annotation=terok.shield.profiles=x", "--rootfs", t.TempDir(), "true")
	if err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSpace(string(out))
	defer removeContainer(t, c, id)
	env := cmdenv.OS()
	env.Vars["CONTAINERS_CONF"] = dropIn
	// The container itself cannot start here: its hook is no program.
	got, err := runner(env.Environ())(context.WithoutCancel(t.Context()), c.Path, []string{"--log-level=debug", "init", id})
	if err != nil {
		t.Fatal(err)
	}
	var read []string
	for line := range strings.Lines(string(got.Stderr)) {
		if _, dir, ok := strings.Cut(line, "reading hooks from "); ok {
			read = append(read, strings.TrimRight(dir, "\"\n"))
		}
	}
	if d := cmp.Diff([]string{"/nonexistent/gpu hooks", "~/literal", r.Dir}, read); d != "" {
		t.Errorf("%s\n%s", d, got.Stderr)
	}
	if got.Exit == 0 {
		t.Error("a container with a broken hook was set up")
	}
	for _, name := range []string{"terok-shield-createRuntime.json", "terok-shield-poststop.json"} {
		if !strings.Contains(string(got.Stderr), "added hook "+r.Dir+"/"+name) {
			t.Errorf("podman did not take %s:\n%s", name, got.Stderr)
		}
	}
}

// TestNoexec mounts a file system without execution in a namespace of its own.
func TestNoexec(t *testing.T) {
	s := host(t, 1000, nil)
	program := self(t, s, native)
	root := filepath.Join(s.root, "home")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its mounts
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_NOEXEC, ""); err != nil {
				return err
			}
			if _, err := install(s, program, nil); err == nil || !strings.Contains(err.Error(), "noexec: set TEROK_ROOT") {
				return fmt.Errorf("installed where nothing can be run: %w", err)
			}
			if err := unix.Mount("", root, "", unix.MS_REMOUNT, ""); err != nil {
				return err
			}
			if _, err := install(s, program, nil); err != nil {
				return err
			}
			if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_NOEXEC, ""); err != nil {
				return err
			}
			e := check(context.Background(), s, host5("5.4.2"), nil)
			if e.Installed() || !strings.Contains(e.Hint(), "mounted noexec: set TEROK_ROOT") {
				return fmt.Errorf("%+v", e)
			}
			return nil
		}()
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
