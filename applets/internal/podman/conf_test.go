package podman

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
)

// host is a machine in a directory: files by their path in it.
func host(t *testing.T, euid int, files map[string]string) system {
	t.Helper()
	root := t.TempDir()
	s := system{root: root, real: euid == 0, env: &cmdenv.Env{UID: euid, EUID: euid, Vars: map[string]string{"HOME": root + "/home"}}}
	for f, text := range files {
		write(t, filepath.Join(root, f), strings.ReplaceAll(text, "ROOT", root), 0o644)
	}
	return s
}

const (
	distConf = "usr/share/containers/containers.conf"
	etcConf  = "etc/containers/containers.conf"
	userConf = "home/.config/containers/containers.conf"
)

func hooksConf(list string) string { return "[engine]\nhooks_dir = " + list + "\n" }

func TestReadConf(t *testing.T) {
	type result struct {
		Files, Hooks, Options []string
		Runtime, Cmd, From    string
	}
	byDefault := []string{defaultHooksDir}
	for _, tt := range []struct {
		name  string
		euid  int
		vars  map[string]string
		files map[string]string
		want  result
	}{
		{"nothing", 1000, nil, nil, result{Hooks: byDefault}},
		{"only other settings", 1000, nil, map[string]string{distConf: "[engine]\n[containers]\nx = 1\n"}, result{Files: []string{distConf}, Hooks: byDefault}},
		{"order", 1000, nil, map[string]string{
			distConf:                hooksConf(`["/1"]`) + "runtime = \"runc\"\nnetwork_cmd_options = [\"cidr=10.1.0.0/24\"]\n",
			etcConf:                 hooksConf(`["/2"]`),
			etcConf + ".d/b.conf":   hooksConf(`["/4"]`),
			etcConf + ".d/a.conf":   hooksConf(`["/3"]`),
			etcConf + ".d/c.bak":    hooksConf(`["/no"]`),
			userConf:                hooksConf(`["/5"]`) + "runtime = \"crun\"\n[network]\ndefault_rootless_network_cmd = \"pasta\"\n",
			userConf + ".d/10.conf": hooksConf(`["/6", "/6b"]`),
		}, result{
			Files: []string{distConf, etcConf, etcConf + ".d/a.conf", etcConf + ".d/b.conf", userConf, userConf + ".d/10.conf"},
			Hooks: []string{"/6", "/6b"}, Options: []string{"cidr=10.1.0.0/24"}, Runtime: "crun", Cmd: "pasta", From: userConf + ".d/10.conf",
		}},
		{"XDG_CONFIG_HOME", 1000, map[string]string{"XDG_CONFIG_HOME": "ROOT/xdg"},
			map[string]string{userConf: hooksConf(`["/no"]`), "xdg/containers/containers.conf": hooksConf(`["/x"]`)},
			result{Files: []string{"xdg/containers/containers.conf"}, Hooks: []string{"/x"}, From: "xdg/containers/containers.conf"}},
		{"CONTAINERS_CONF replaces all", 1000, map[string]string{"CONTAINERS_CONF": "ROOT/one.conf"},
			map[string]string{userConf: hooksConf(`["/no"]`), "one.conf": "[engine]\n"}, result{Files: []string{"one.conf"}, Hooks: byDefault}},
		{"CONTAINERS_CONF_OVERRIDE comes last", 1000, map[string]string{"CONTAINERS_CONF": "ROOT/one.conf", "CONTAINERS_CONF_OVERRIDE": "ROOT/last.conf"},
			map[string]string{"one.conf": hooksConf(`["/1"]`), "last.conf": hooksConf(`["/2"]`)},
			result{Files: []string{"one.conf", "last.conf"}, Hooks: []string{"/2"}, From: "last.conf"}},
		{"root's own files", 0, nil, map[string]string{etcConf: hooksConf(`["/1"]`), userConf: hooksConf(`["/2"]`)},
			result{Files: []string{etcConf, userConf}, Hooks: []string{"/2"}, From: userConf}},
		{"append stays on until switched off", 1000, nil, map[string]string{
			distConf:               hooksConf(`["/1", {append=true}]`),
			etcConf:                hooksConf(`["/2"]`),
			etcConf + ".d/a.conf":  hooksConf(`[{append=false}, "/3"]`),
			etcConf + ".d/b.conf":  hooksConf(`[{append=true}]`),
			userConf:               hooksConf(`["/4"]`),
			userConf + ".d/x.conf": "[engine]\nnetwork_cmd_options = [\"a\"]\n",
		}, result{
			Files: []string{distConf, etcConf, etcConf + ".d/a.conf", etcConf + ".d/b.conf", userConf, userConf + ".d/x.conf"},
			Hooks: []string{"/3", "/4"}, Options: []string{"a"}, From: userConf,
		}},
		{"append to the default", 1000, nil, map[string]string{userConf: hooksConf(`["/1", {append=true}]`)},
			result{Files: []string{userConf}, Hooks: []string{defaultHooksDir, "/1"}, From: userConf}},
		{"empty list", 1000, nil, map[string]string{userConf: hooksConf(`[]`)}, result{Files: []string{userConf}, Hooks: []string{}, From: userConf}},
		{"lone string", 1000, nil, map[string]string{userConf: hooksConf(`"/1"`)}, result{Files: []string{userConf}, Hooks: []string{"/1"}, From: userConf}},
		{"~ is a directory name to podman", 1000, nil, map[string]string{userConf: hooksConf(`["~/h"]`)}, result{Files: []string{userConf}, Hooks: []string{"~/h"}, From: userConf}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := host(t, tt.euid, tt.files)
			for k, v := range tt.vars {
				s.env.Vars[k] = strings.ReplaceAll(v, "ROOT", s.root)
			}
			c, err := readConf(s, reading{})
			if err != nil {
				t.Fatal(err)
			}
			got := result{Hooks: c.HooksDirs, Options: c.NetworkCmdOptions, Runtime: c.Runtime, Cmd: c.NetworkCmd, From: strings.TrimPrefix(c.HooksFile, s.root+"/")}
			for _, f := range c.Files {
				got.Files = append(got.Files, strings.TrimPrefix(f, s.root+"/"))
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestReadConfErrors(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"syntax":            {"[engine]\n\nhooks_dir = [\n\"/x\"\n", "containers.conf:4: "},
		"value":             {"[engine]\nhooks_dir = ]\n", "containers.conf:2: "},
		"number in list":    {hooksConf(`["/x", 1]`), "hooks_dir: not a list of strings"},
		"number":            {hooksConf(`7`), "hooks_dir: not a list of strings"},
		"unknown attribute": {hooksConf(`["/x", {prepend=true}]`), "hooks_dir: a table"},
		"runtime":           {"[engine]\nruntime = []\n", "runtime: not a string"},
		"large":             {"#" + strings.Repeat("x", maxConf), "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			s := host(t, 1000, map[string]string{userConf: tt.text})
			if _, err := readConf(s, reading{}); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), s.root) {
				t.Errorf("%v lacks %q", err, tt.want)
			}
		})
	}
	s := host(t, 1000, nil)
	s.env.Vars["CONTAINERS_CONF"] = s.root + "/missing"
	if _, err := readConf(s, reading{}); err == nil {
		t.Error("a missing CONTAINERS_CONF, which podman refuses, was taken for an empty one")
	}
	s = host(t, 1000, nil)
	delete(s.env.Vars, "HOME")
	if _, err := readConf(s, reading{}); err == nil {
		t.Error("no home, no error")
	}
}

func FuzzReadConf(f *testing.F) {
	for _, text := range []string{
		hooksConf(`["/a", {append=true}]`), hooksConf(`[[]]`), "[engine\n", "engine = 1", "[network]\ndefault_rootless_network_cmd=1",
		"[[engine]]\n", hooksConf(`[{append=true},{append=false}]`), "[engine]\nnetwork_cmd_options=[\"cidr=0.0.0.0/0\"]\n",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c := Conf{HooksDirs: []string{defaultHooksDir}}
		m := merge{conf: &c}
		if err := m.file("f", text); err != nil {
			if strings.ContainsRune(err.Error(), '\n') {
				t.Fatalf("%q", err)
			}
			return
		}
		if n := (Info{Rootless: true, NetworkMode: Slirp}).Network(c); !n.DNS.Is4() || n.DNS.As4()[3]&3 != 3 {
			t.Fatalf("%+v", n)
		}
		// Our own file, laid over any configuration, keeps what was in force.
		before := slices.Clone(c.HooksDirs)
		conf, err := dropInText(before, "/our/hooks")
		if err != nil {
			t.Fatal(err)
		}
		var alone Conf
		if err := (&merge{conf: &alone}).file("drop-in", string(conf)); err != nil {
			t.Fatalf("%v in %q", err, conf)
		}
		for _, d := range append(before, "/our/hooks") {
			if !slices.Contains(alone.HooksDirs, d) {
				t.Fatalf("%q lost %q", conf, d)
			}
		}
		if alone.HooksDirs[len(alone.HooksDirs)-1] != "/our/hooks" {
			t.Fatalf("%q: ours is not the last", conf)
		}
	})
}

// snapshot is every file below dir with its content, every directory with "".
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	err := filepath.Walk(dir, func(path string, st os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		text := ""
		if st.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text = st.Mode().String() + " " + string(b)
		}
		out[strings.TrimPrefix(path, dir)] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return maps.Clone(out)
}
