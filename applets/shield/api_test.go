package shield

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// embedded is a Shield for a container that runs, in a process whose
// environment and files are traps.
func (l *live) embedded(t *testing.T, change func(*Config)) *Shield {
	t.Helper()
	traps := t.TempDir()
	if err := os.WriteFile(filepath.Join(traps, "config.yml"), []byte("nonsense: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "TEROK_SHIELD_STATE_DIR", "TEROK_SHIELD_CONFIG_DIR"} {
		t.Setenv(name, traps)
	}
	t.Cleanup(func() {
		entries, err := os.ReadDir(traps)
		if err != nil || len(entries) != 1 {
			t.Errorf("written elsewhere: %v, %v", entries, err)
		}
	})
	c := Config{
		StateRoot: l.root, Program: "/proc/self/exe", Audit: true,
		Warn: func(s string) { t.Errorf("warning: %s", s) },
	}
	if change != nil {
		change(&c)
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEmbedded(t *testing.T) {
	l := newLive(t)
	s := l.embedded(t, nil)
	ctx := t.Context()
	is := func(want State) {
		t.Helper()
		if got, err := s.State(ctx, "demo"); err != nil || got.State != want || got.Container != "demo" || got.Rules != "" {
			t.Errorf("%+v, %v; want %s", got, err, want)
		}
	}
	is(StateUp)
	for _, step := range []struct {
		do   func() error
		want State
	}{
		{func() error { return s.Down(ctx, "demo", false) }, StateDown},
		{func() error { return s.Down(ctx, "demo", true) }, StateDisengaged},
		{func() error { return s.Quarantine(ctx, "demo") }, StateQuarantine},
		{func() error { return s.Up(ctx, "demo") }, StateUp},
	} {
		if err := step.do(); err != nil {
			t.Errorf("%s: %v", step.want, err)
		}
		is(step.want)
	}
	if d, err := s.Allow(ctx, "demo", "198.51.100.7"); err != nil || !slices.Equal(d.Addresses, []string{"198.51.100.7"}) || d.Container != "demo" {
		t.Errorf("%+v, %v", d, err)
	}
	if d, err := s.Deny(ctx, "demo", "203.0.113.0/24"); err != nil || !slices.Equal(d.Addresses, []string{"203.0.113.0/24"}) {
		t.Errorf("%+v, %v", d, err)
	}
	if d, err := s.Allow(ctx, "demo", "example.com"); err != nil || !slices.Equal(d.Addresses, []string{"203.0.113.5"}) { // as the resolver knows
		t.Errorf("%+v, %v", d, err)
	}
	rules, err := s.Rules(ctx, "demo")
	if err != nil || rules.State != StateUp || !strings.Contains(rules.Rules, "198.51.100.7") {
		t.Errorf("%+v, %v", rules, err)
	}
	if got, err := s.Reset(ctx, "demo"); err != nil || !slices.Equal(got, []string{"203.0.113.5", "2001:db8::5"}) {
		t.Errorf("%q, %v", got, err)
	}
	for _, target := range []string{"", "--help", "300.1.1.1", "a b"} {
		if d, err := s.Allow(ctx, "demo", target); err == nil {
			t.Errorf("allowed %q: %+v", target, d)
		}
	}
	if log, err := os.ReadFile(filepath.Join(l.b.Path(), bundle.FileAuditLog)); err != nil || strings.Count(string(log), `"action":"allowed"`) != 2 {
		t.Errorf("audit log %q, %v", log, err)
	}
	l.end()
}

func TestEmbeddedResolve(t *testing.T) {
	l := newLive(t)
	profiles := t.TempDir()
	if err := os.WriteFile(filepath.Join(profiles, "work.txt"), []byte("203.0.113.77\nexample.com\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := l.embedded(t, func(c *Config) { c.ProfilesDir, c.DefaultProfiles = profiles, []string{"work"} })
	got, err := s.Resolve(t.Context(), "demo", nil, false)
	if d := cmp.Diff([]string{"203.0.113.77"}, got); d != "" || err != nil {
		t.Errorf("%s%v", d, err)
	}
	if rules, err := s.Rules(t.Context(), "demo"); err != nil || !strings.Contains(rules.Rules, "203.0.113.77") {
		t.Errorf("%+v, %v", rules, err)
	}
	if _, err := s.Resolve(t.Context(), "demo", []string{"no-such"}, false); err == nil {
		t.Error("there is no such profile")
	}
	// Without a directory of its own there are the bundled ones only.
	s = l.embedded(t, nil)
	if _, err := s.Resolve(t.Context(), "demo", []string{"work"}, false); err == nil {
		t.Error("a profile from nowhere")
	}
	if _, err := s.Resolve(t.Context(), "demo", []string{"base"}, false); err != nil {
		t.Error(err)
	}
}

func TestEmbeddedElsewhere(t *testing.T) {
	for name, c := range map[string]Config{
		"no state":       {Program: "/usr/bin/terok-box"},
		"relative state": {StateRoot: "state", Program: "/usr/bin/terok-box"},
		"no program":     {StateRoot: "/state"},
		"too curious":    {StateRoot: "/state", Program: "/usr/bin/terok-box", Questions: bundle.MaxQuestions + 1},
		"no such tier":   {StateRoot: "/state", Program: "/usr/bin/terok-box", Tier: "dig"},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// podmanText is a podman that only says what it is.
const podmanText = `#!/bin/sh
case "$1" in
version) echo 5.4.0 ;;
info) echo '{"host":{"security":{"rootless":true},"rootlessNetworkCmd":"pasta","ociRuntime":{"name":"crun","path":"/bin/true"}},"version":{"Version":"5.4.0"}}' ;;
*) exit 125 ;;
esac
`

// Of what Prepare writes, nothing is elsewhere than in the state directory.
func TestEmbeddedPrepare(t *testing.T) {
	dir := t.TempDir()
	vars := map[string]string{"HOME": filepath.Join(dir, "home"), "PATH": filepath.Join(dir, "bin")}
	for _, d := range vars {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"podman": podmanText, "pasta": "#!/bin/sh\n"} {
		if err := os.WriteFile(filepath.Join(vars["PATH"], name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s, err := New(Config{StateRoot: filepath.Join(dir, "state"), Program: "/proc/self/exe", Vars: vars, LoopbackPorts: []uint16{8080}})
	if err != nil {
		t.Fatal(err)
	}
	if flags, err := s.Prepare(t.Context(), "demo", []string{"base"}, ""); err == nil || !strings.Contains(err.Error(), "would not run the hook") {
		t.Errorf("prepared without hooks: %q, %v", flags, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "state", "containers", "demo")); err == nil {
		t.Error("something was written")
	}
	env := &cmdenv.Env{Stdout: io.Discard, Stderr: os.Stderr, Vars: vars, EUID: os.Geteuid(), Self: "/proc/self/exe"}
	if err := run(t.Context(), env, []string{"setup"}); err != nil {
		t.Fatal(err)
	}
	before := files(t, vars["HOME"])
	flags, err := s.Prepare(t.Context(), "demo", []string{"base"}, "")
	if err != nil || !slices.Contains(flags, "NET_ADMIN") || !slices.Contains(flags, "terok.shield.profiles=base") ||
		!slices.Contains(flags, "terok.shield.state_dir="+filepath.Join(dir, "state", "containers", "demo")) {
		t.Errorf("%q, %v", flags, err)
	}
	if d := cmp.Diff(before, files(t, vars["HOME"])); d != "" {
		t.Error(d)
	}
	ruleset, err := os.ReadFile(filepath.Join(dir, "state", "containers", "demo", bundle.FileRuleset))
	if err != nil || !strings.Contains(string(ruleset), "8080") {
		t.Errorf("%s, %v", ruleset, err)
	}
	for _, bad := range []string{"", "../x", "-v", "a b"} {
		if flags, err := s.Prepare(t.Context(), bad, nil, ""); err == nil {
			t.Errorf("%q: %q", bad, flags)
		}
	}
}

// files are the paths below a directory, with what is in them.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	if err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(filepath.Join(dir, path))
		all[path] = string(data)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all
}
