package config

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/bundle"
)

func environ(kv ...string) *cmdenv.Env {
	e := &cmdenv.Env{EUID: 1000, Stdout: io.Discard, Stderr: io.Discard, Vars: make(map[string]string)}
	for i := 0; i < len(kv); i += 2 {
		e.Vars[kv[i]] = kv[i+1]
	}
	return e
}

// root is the environment of uid 0.
func root(kv ...string) *cmdenv.Env {
	e := environ(kv...)
	e.EUID = 0
	return e
}

// home is an environment with that text as config.yml.
func home(t *testing.T, text string) (env *cmdenv.Env, dir string) {
	t.Helper()
	h := t.TempDir()
	dir = filepath.Join(h, ".config", "terok", "shield")
	write(t, filepath.Join(dir, "config.yml"), text)
	return environ("HOME", h), dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// reference is what the documentation shows: every key there is.
const reference = `
# How containers are shielded: auto or hook, which mean the same.
mode: hook
# For containers whose profiles are not named.
default_profiles: [base, dev-python]
# Ports of the host that containers may reach; one number, or a list.
loopback_ports: [8080, 5432]
audit:
  enabled: false
dns:
  # Who finds the addresses of names: proxy, dnsmasq, or nobody (static).
  tier: dnsmasq
  # Names on no list: refuse, or resolve and ask about the connection.
  unlisted: resolve
clearance:
  # Whether anybody is asked about what is blocked, and about how much at once.
  ask: false
  questions: 50
`

func TestDecode(t *testing.T) {
	d := defaults
	with := func(f func(*Config)) Config { c := d(); f(&c); return c }
	for _, tt := range []struct {
		title, text string
		want        Config
	}{
		{"empty", "", d()},
		{"comments", "# nothing\n\n", d()},
		{"null", "~\n", d()},
		{"bare document", "---\n", d()},
		{"empty mapping", "{}", d()},
		{"reference", reference, Config{
			Mode: ModeHook, DefaultProfiles: []string{"base", "dev-python"},
			LoopbackPorts: []uint16{8080, 5432}, Tier: bundle.Dnsmasq, ResolveUnlisted: true, Questions: 50,
		}},
		{"one port", "loopback_ports: 1", with(func(c *Config) { c.LoopbackPorts = []uint16{1} })},
		{"no ports", "loopback_ports: []", d()},
		{"each port once", "loopback_ports: [65535, 1, 65535]", with(func(c *Config) { c.LoopbackPorts = []uint16{65535, 1} })},
		{"YAML 1.1 boolean", "audit: {enabled: No}", with(func(c *Config) { c.Audit = false })},
		{"quoted text", `mode: "hook"`, with(func(c *Config) { c.Mode = ModeHook })},
		{"alias", "default_profiles: [&p base, *p, dev-node]", with(func(c *Config) { c.DefaultProfiles = []string{"base", "base", "dev-node"} })},
		{"refuse", "dns: {unlisted: refuse}", d()},
		{"the default tier", "dns: {tier: proxy}", d()},
		{"static", "dns: {tier: static}", with(func(c *Config) { c.Tier = bundle.Static })},
	} {
		t.Run(tt.title, func(t *testing.T) {
			got := d()
			if warning, problems := decode([]byte(tt.text), &got); warning != "" || problems != nil {
				t.Fatalf("warning %q, problems %v", warning, problems)
			}
			got.From = nil
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestInvalid(t *testing.T) {
	for text, want := range map[string]string{
		"mdoe: auto":                              `line 1: unknown key "mdoe"; did you mean "mode"?`,
		"\ndefault_profile: [base]":               `line 2: unknown key "default_profile"; did you mean "default_profiles"?`,
		"loopback-port: 1":                        `line 1: unknown key "loopback-port"; did you mean "loopback_ports"?`,
		"audit:\n  enabeld: true":                 `line 2: unknown key "audit.enabeld"; did you mean "audit.enabled"?`,
		"dnsmasq_path: /x":                        `line 1: unknown key "dnsmasq_path"`,
		"<<: {mode: auto}":                        `line 1: unknown key "<<"`,
		"? [a]\n: b":                              `line 1: a key is a list; it must be a word`,
		"mode: auto\nmode: hook":                  `line 2: key "mode" a second time`,
		"mode: bridge":                            `line 1: mode must be auto or hook, not "bridge"`,
		"mode:":                                   `line 1: mode must be auto or hook, not nothing`,
		"mode: [auto]":                            `line 1: mode must be auto or hook, not a list`,
		"audit: true":                             `line 1: audit must be a mapping, not "true"`,
		"audit:":                                  `line 1: audit must be a mapping, not nothing`,
		"audit: {enabled: 1}":                     `line 1: audit.enabled must be true or false, not "1"`,
		"audit: {enabled: 'true'}":                `line 1: audit.enabled must be true or false, not "true"`,
		"default_profiles: base":                  `line 1: default_profiles must be a list of at least one profile name`,
		"default_profiles: []":                    `line 1: default_profiles must be a list of at least one profile name`,
		"default_profiles:\n- base\n- ''":         `line 3: default_profiles: Unsafe name: ''`,
		"default_profiles: [../x]":                `line 1: default_profiles: Unsafe name: '../x'`,
		"default_profiles: [1]":                   `line 1: default_profiles: a profile's name must be a text, not "1"`,
		"default_profiles: [[base]]":              `line 1: default_profiles: a profile's name must be a text, not a list`,
		"loopback_ports: 0":                       `line 1: loopback_ports: a port must be a number from 1 to 65535, not "0"`,
		"loopback_ports: 65536":                   `line 1: loopback_ports: a port must be a number from 1 to 65535, not "65536"`,
		"loopback_ports: -1":                      `line 1: loopback_ports: a port must be a number from 1 to 65535, not "-1"`,
		"loopback_ports: [80,\n true]":            `line 2: loopback_ports: a port must be a number from 1 to 65535, not "true"`,
		"loopback_ports: '80'":                    `line 1: loopback_ports: a port must be a number from 1 to 65535, not "80"`,
		"loopback_ports: 0x50":                    `line 1: loopback_ports: a port must be a number from 1 to 65535, not "0x50"`,
		"loopback_ports: 0120":                    `line 1: loopback_ports: a port must be a number from 1 to 65535, not "0120"`,
		"loopback_ports: 80.0":                    `line 1: loopback_ports: a port must be a number from 1 to 65535, not "80.0"`,
		"loopback_ports: {a: 1}":                  `line 1: loopback_ports: a port must be a number from 1 to 65535, not a mapping`,
		"loopback_ports:":                         `line 1: loopback_ports: a port must be a number from 1 to 65535, not nothing`,
		"clearance: {aks: true}":                  `line 1: unknown key "clearance.aks"; did you mean "clearance.ask"?`,
		"clearance: {ask: 1}":                     `line 1: clearance.ask must be true or false, not "1"`,
		"clearance:\n  questions: 0":              `line 2: clearance.questions must be a number from 1 to 1000, not "0"; for none, clearance.ask: false`,
		"clearance: {questions: 1001}":            `line 1: clearance.questions must be a number from 1 to 1000, not "1001"; for none, clearance.ask: false`,
		"dns: {unlisted: allow}":                  `line 1: dns.unlisted must be refuse or resolve, not "allow"`,
		"dns:\n tier: dig":                        `line 2: dns.tier must be proxy, dnsmasq or static, not "dig"`,
		"dns: {tier: [proxy]}":                    `line 1: dns.tier must be proxy, dnsmasq or static, not a list`,
		"dns: {teir: proxy}":                      `line 1: unknown key "dns.teir"; did you mean "dns.tier"?`,
		"dns: {tier: proxy, tier: static}":        `line 1: key "dns.tier" a second time`,
		"mode: x\nfoo: 1":                         `line 1: mode must be auto or hook, not "x"; line 2: unknown key "foo"`,
		strings.Repeat("k", 99) + ": 1":           `line 1: unknown key "` + strings.Repeat("k", 60) + `…"`,
		"mode: \"a\\u001b[2J\\nError: all good\"": `line 1: mode must be auto or hook, not "a\x1b[2J\nError: all good"`,
	} {
		env, dir := home(t, text)
		_, warnings, err := Load(env)
		invalid, ok := errors.AsType[*Invalid](err)
		if !ok {
			t.Errorf("%q: error %v, warnings %q; want an *Invalid", text, err, warnings)
			continue
		}
		if want := "invalid " + filepath.Join(dir, "config.yml") + ": " + want; invalid.Error() != want {
			t.Errorf("%q:\n got %s\nwant %s", text, invalid, want)
		}
	}
}

func TestWarnings(t *testing.T) {
	const rest = "; the defaults hold"
	for text, want := range map[string]string{
		"mode: auto\n\tx: 1":            "failed to parse PATH: line 2: not valid YAML: indent with spaces, not with tabs",
		"mode: [":                       "failed to parse PATH: line 1: not valid YAML",
		"a: 1\nb: 2\nc 2\nd: 3\n":       "failed to parse PATH: line 3: not valid YAML",
		"a: *nothing":                   "failed to parse PATH: not valid YAML",
		"mode: \xff":                    "failed to parse PATH: not valid YAML",
		"mode: auto\n---\nmode: auto\n": "failed to parse PATH: it holds more than one document",
		"[mode]":                        "PATH: expected mapping, got list",
		"mode":                          "PATH: expected mapping, got text",
		"17":                            "PATH: expected mapping, got number",
		"true":                          "PATH: expected mapping, got boolean",
		strings.Repeat("#\n", 1<<17+1):  "failed to read PATH: larger than 256 KiB",
	} {
		env, dir := home(t, text)
		got, warnings, err := Load(env)
		if err != nil {
			t.Errorf("%.40q: %v", text, err)
			continue
		}
		path := filepath.Join(dir, "config.yml")
		if diff := cmp.Diff([]string{strings.ReplaceAll(want, "PATH", path) + rest}, warnings); diff != "" {
			t.Errorf("%.40q (-want +got):\n%s", text, diff)
		}
		if got.Mode != ModeAuto || !cmp.Equal(got.DefaultProfiles, []string{"dev-standard"}) || !got.Audit {
			t.Errorf("%.40q: not the defaults: %+v", text, got)
		}
	}
}

// A % in the path must not be taken for a verb.
func TestWarningPathIsVerbatim(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "100%d")
	write(t, filepath.Join(dir, "config.yml"), "[]")
	_, warnings, err := Load(environ("HOME", "/", "TEROK_SHIELD_CONFIG_DIR", dir))
	if err != nil || len(warnings) != 1 || !strings.HasPrefix(warnings[0], dir+"/config.yml: expected mapping") {
		t.Errorf("%q, %v", warnings, err)
	}
}

// Known weakness: texts of the YAML library reached people.
func TestNoLibraryTexts(t *testing.T) {
	for _, text := range []string{"mode: [", "\t", "a: *b", "a: &a [*a]", "%TAG x", "a: b: c", "- a\nb: c", "mode: !!float x",
		"audit: {enabled: !!binary ==}", "\x00", "mode: !<tag:x> y", "? ", strings.Repeat("[", 20_000), "default_profiles: !!int base"} {
		env, _ := home(t, text)
		_, warnings, err := Load(env)
		said := strings.Join(warnings, " ")
		if err != nil {
			said += err.Error()
		}
		for _, word := range []string{"yaml:", "unmarshal", "!!", "did not find", "could not find", "cannot decode", "node", "mapping values"} {
			if strings.Contains(said, word) {
				t.Errorf("%.30q: %q of the library in %q", text, word, said)
			}
		}
		if said == "" {
			t.Errorf("%.30q is accepted silently", text)
		}
	}
}

// An alias bomb stands for itself only.
func TestAliasBomb(t *testing.T) {
	text := "a: &a [x, x, x, x, x, x, x, x, x]\n"
	for c := 'b'; c <= 'i'; c++ {
		text += string(c) + ": &" + string(c) + " [" + strings.Repeat("*"+string(c-1)+", ", 9) + "x]\n"
	}
	env, _ := home(t, text+"default_profiles: *i\n")
	_, _, err := Load(env)
	invalid, ok := errors.AsType[*Invalid](err)
	if !ok || len(invalid.Problems) > maxProblems || len(invalid.Error()) > 4096 {
		t.Errorf("Load: %v", err)
	}
}

func TestManyPorts(t *testing.T) {
	var b strings.Builder
	b.WriteString("loopback_ports:\n")
	for i := range maxPorts {
		b.WriteString("- " + strings.Repeat("1", i%4+1) + "\n")
	}
	env, _ := home(t, b.String())
	if c, _, err := Load(env); err != nil || len(c.LoopbackPorts) != 4 {
		t.Errorf("repeated ports: %v, %v", c.LoopbackPorts, err)
	}
	b.Reset()
	b.WriteString("loopback_ports: [1000")
	for i := range maxPorts {
		b.WriteString("," + "2" + string(rune('0'+i/100)) + string(rune('0'+i/10%10)) + string(rune('0'+i%10)))
	}
	env, _ = home(t, b.String()+"]")
	if _, _, err := Load(env); err == nil || !strings.Contains(err.Error(), "more than 256 ports") {
		t.Errorf("257 ports: %v", err)
	}
}

func TestLoadUnreadable(t *testing.T) {
	h := t.TempDir()
	dir := filepath.Join(h, ".config", "terok", "shield")
	if err := os.MkdirAll(filepath.Join(dir, "config.yml"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, warnings, err := Load(environ("HOME", h))
	if want := "failed to read " + dir + "/config.yml: not a regular file; the defaults hold"; err != nil || !cmp.Equal(warnings, []string{want}) {
		t.Errorf("a directory: %q, %v", warnings, err)
	}
	// A pipe nobody writes to does not stop us.
	if err := os.Remove(filepath.Join(dir, "config.yml")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "config.yml"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, warnings, err = Load(environ("HOME", h)); err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "not a regular file") {
		t.Errorf("a pipe: %q, %v", warnings, err)
	}
}

func TestPlaces(t *testing.T) {
	t.Chdir(t.TempDir())
	cwd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		title         string
		env           *cmdenv.Env
		flag          string
		config, state string
	}{
		{"home", environ("HOME", "/h"), "", "/h/.config/terok/shield", "/h/.local/state/terok/shield"},
		{"XDG", environ("HOME", "/h", "XDG_CONFIG_HOME", "/c", "XDG_STATE_HOME", "/s"), "", "/c/terok/shield", "/s/terok/shield"},
		{"XDG, no home", environ("XDG_CONFIG_HOME", "/c", "XDG_STATE_HOME", "/s"), "", "/c/terok/shield", "/s/terok/shield"},
		{"empty is unset", environ("HOME", "/h", "XDG_CONFIG_HOME", "", "XDG_STATE_HOME", "", "TEROK_SHIELD_STATE_DIR", "", "TEROK_SHIELD_CONFIG_DIR", ""), "",
			"/h/.config/terok/shield", "/h/.local/state/terok/shield"},
		{"our variables", environ("HOME", "/h", "XDG_CONFIG_HOME", "/c", "XDG_STATE_HOME", "/s",
			"TEROK_SHIELD_STATE_DIR", "/ss", "TEROK_SHIELD_CONFIG_DIR", "/cc"), "", "/cc", "/ss"},
		{"flag", environ("HOME", "/h", "XDG_STATE_HOME", "/s", "TEROK_SHIELD_STATE_DIR", "/ss"), "/f/../g", "/h/.config/terok/shield", "/g"},
		{"relative", environ("HOME", "/h", "TEROK_SHIELD_CONFIG_DIR", "c"), "s", cwd + "/c", cwd + "/s"},
		{"root", root("HOME", "/root"), "", "/root/.config/terok/shield", "/var/lib/terok/shield"},
		{"root of a user namespace", root("HOME", "/h"), "", "/h/.config/terok/shield", "/h/.local/state/terok/shield"},
		{"root's own choice", root("HOME", "/root", "TEROK_SHIELD_STATE_DIR", "/ss"), "", "/root/.config/terok/shield", "/ss"},
	} {
		t.Run(tt.title, func(t *testing.T) {
			state, err := StateRoot(tt.env, tt.flag)
			if err != nil || state != tt.state {
				t.Errorf("StateRoot = %q, %v; want %q", state, err, tt.state)
			}
			c, warnings, err := Load(tt.env)
			if err != nil || warnings != nil {
				t.Fatalf("Load: %q, %v", warnings, err)
			}
			if c.Path != tt.config+"/config.yml" || c.ProfilesDir != tt.config+"/profiles" {
				t.Errorf("config.yml is %q, profiles %q; want them in %q", c.Path, c.ProfilesDir, tt.config)
			}
			if tt.flag == "" && c.StateRoot != tt.state {
				t.Errorf("StateRoot of Load = %q; want %q", c.StateRoot, tt.state)
			}
		})
	}
	if _, _, err := Load(environ()); err == nil || !strings.Contains(err.Error(), "HOME") {
		t.Errorf("no home: %v", err)
	}
	if _, err := StateRoot(environ("HOME", "relative"), ""); err == nil || !strings.Contains(err.Error(), "HOME") {
		t.Errorf("relative home: %v", err)
	}
}

func TestProfiles(t *testing.T) {
	dir := t.TempDir()
	c := Config{ProfilesDir: dir}
	bundled := []string{"base", "dev-node", "dev-python", "dev-standard", "nvidia-hpc"}
	check := func(want ...string) {
		t.Helper()
		got, err := Profiles(c)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
	check(bundled...)
	c.ProfilesDir = filepath.Join(dir, "missing")
	check(bundled...)
	c.ProfilesDir = dir
	for _, f := range []string{"a.txt", "base.txt", "note.md", ".hidden.txt", "-x.txt", "z.txt", ".txt", "b c.txt"} {
		write(t, filepath.Join(dir, f), "own.example\n")
	}
	check("a", "base", "dev-node", "dev-python", "dev-standard", "nvidia-hpc", "z")

	c.ProfilesDir = filepath.Join(dir, "a.txt")
	if got, err := Profiles(c); err == nil {
		t.Errorf("a file in place of the directory: %q", got)
	}
}

func TestLoadProfile(t *testing.T) {
	dir := t.TempDir()
	c := Config{ProfilesDir: dir}
	write(t, filepath.Join(dir, "base.txt"), "own.example\n")
	write(t, filepath.Join(dir, "bad.txt"), "own.example\nlocalhost\n")
	write(t, filepath.Join(dir, "big.txt"), strings.Repeat("#\n", policy.MaxProfileSize/2+1))
	if err := os.Mkdir(filepath.Join(dir, "dev-node.txt"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("base.txt", filepath.Join(dir, "link.txt")); err != nil {
		t.Fatal(err)
	}

	own := []policy.Entry{{Target: policy.Target{Name: "own.example"}, Line: 1}}
	for _, name := range []string{"base", "link"} { // the operator's wins completely
		p, err := LoadProfile(c, name)
		if err != nil || p.Name != name || len(p.Entries) != 1 || p.Entries[0] != own[0] {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	if p, err := LoadProfile(c, "dev-standard"); err != nil || len(p.Entries) < 5 {
		t.Errorf("bundled: %+v, %v", p, err)
	}
	for name, want := range map[string]string{
		"nope":    "Profile not found: 'nope'",
		"../base": "Unsafe name: '../base'",
		"":        "Unsafe name: ''",
		"bad":     "profile bad, line 2: invalid target 'localhost': a name needs at least two parts, as in example.com",
		"big":     "profile big: cannot read " + dir + "/big.txt: larger than 1024 KiB",
		// Not the bundled one instead: it might allow more.
		"dev-node": "profile dev-node: cannot read " + dir + "/dev-node.txt: not a regular file",
	} {
		if p, err := LoadProfile(c, name); err == nil || err.Error() != want {
			t.Errorf("%q: %+v, %v; want %s", name, p, err, want)
		}
	}
}

// Every bundled profile is one that an operator could have written, and
// none opens a domain below which strangers get names.
// Known weakness: such suffixes were in the bundled profiles.
func TestBundledProfiles(t *testing.T) {
	c := Config{ProfilesDir: t.TempDir()}
	for _, name := range resources.Profiles() {
		p, err := LoadProfile(c, name)
		if err != nil {
			t.Error(err)
			continue
		}
		if len(p.Entries) == 0 {
			t.Errorf("%s is empty", name)
		}
		if got := policy.Compose([]policy.Profile{p}); len(got.Names)+len(got.Prefixes) != len(p.Entries) {
			t.Errorf("%s repeats itself", name)
		}
		for _, e := range p.Entries {
			for _, shared := range []string{"readthedocs.io", "readthedocs.org", "googleapis.com", "github.io", "gitlab.io",
				"amazonaws.com", "cloudfront.net", "azureedge.net", "blob.core.windows.net", "pages.dev", "workers.dev"} {
				if !e.Exact && (e.Name == shared || strings.HasSuffix(e.Name, "."+shared)) {
					t.Errorf("%s, line %d: %s and all below it", name, e.Line, e.Name)
				}
			}
			if !e.IsName() {
				t.Errorf("%s, line %d: an address, which will belong to somebody else one day", name, e.Line)
			}
		}
	}
	if _, ok := resources.Profile("../embed"); ok {
		t.Error("a name reaches out of the directory of profiles")
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{"", reference, "mode: [", "a: &a [*a]", "<<: *x", "? [a]\n: b", "%YAML 1.1\n---\n", "audit: !!map {enabled: !!bool yes}",
		"loopback_ports: [1, 0x2, 03, 4e1, 1_000]", "default_profiles: [&p base, *p]", "mode: !!binary aGk=", "\t", "\xef\xbb\xbfmode: auto",
		"dns: {unlisted: !!timestamp 2001-01-01}", "x: !!float 1", "a: 1\n---\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 4096 {
			return
		}
		c := defaults()
		warning, problems := decode(text, &c)
		if warning != "" || problems != nil {
			if strings.Contains(warning, "yaml") || strings.Count(warning, "%") != strings.Count(warning, "%s") {
				t.Errorf("warning %q", warning)
			}
			for _, p := range problems {
				if p.Line < 1 || strings.ContainsAny(p.Text, "\n\x00\x1b") || len(p.Text) > 1000 {
					t.Errorf("problem %+v", p)
				}
			}
			if len(problems) > maxProblems {
				t.Errorf("%d problems", len(problems))
			}
			return
		}
		if c.Mode != ModeAuto && c.Mode != ModeHook || len(c.DefaultProfiles) == 0 || len(c.LoopbackPorts) > maxPorts {
			t.Errorf("%+v", c)
		}
		for _, p := range c.LoopbackPorts {
			if p == 0 {
				t.Error("port 0")
			}
		}
		for _, p := range c.DefaultProfiles {
			if err := policy.ProfileName(p); err != nil {
				t.Error(err)
			}
		}
	})
}
