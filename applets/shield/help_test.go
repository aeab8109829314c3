package shield

import (
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/examples"
	"github.com/terok-ai/terok-box/applets/internal/grammar"
	"github.com/terok-ai/terok-box/applets/internal/podman"
	"github.com/terok-ai/terok-box/applets/internal/policy"
)

// understood fails unless terok-shield would do something on that command
// line, and returns the verb.
func understood(t *testing.T, args []string) string {
	t.Helper()
	var tail []string
	i := slices.Index(args, "--")
	if i >= 0 {
		args, tail = args[:i], args[i+1:]
	}
	var g verbs
	k, err := newParser(&cmdenv.Env{Stdout: io.Discard, Stderr: io.Discard}, &g)
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := grammar.Parse(k, args)
	switch {
	case cmd == nil && err == nil: // help
		return ""
	case err != nil && g.Version:
		return ""
	case err != nil:
		t.Errorf("%q: %v", args, err)
		return ""
	}
	verb := cmd.Selected().Name
	if verb == "run" {
		if _, err := podman.ParseRun(tail); err != nil {
			t.Errorf("%q: %v", args, err)
		}
	} else if i >= 0 {
		t.Errorf("%q: -- with %s", args, verb)
	}
	for _, v := range []verdictCmd{g.Allow.verdictCmd, g.Deny.verdictCmd} {
		if v.Target != "" {
			if _, err := policy.ParseTarget(v.Target); err != nil {
				t.Errorf("%q: %v", args, err)
			}
		}
	}
	return verb
}

// What README and the man pages show can be typed.
func TestExamples(t *testing.T) {
	shown := make(map[string]bool)
	for _, e := range examples.All(t) {
		for _, words := range e.Commands(t, "terok-shield", "clearance-hub", "clearance-verdict", "terok-clearance-notify", "terok-box") {
			if words[0] == "terok-shield" {
				shown[understood(t, words[1:])] = true
			}
		}
	}
	if len(shown) < 10 {
		t.Errorf("examples of %d verbs only", len(shown))
	}
}

// The help of every verb shows what can be typed.
func TestHelpExamples(t *testing.T) {
	k, err := newParser(&cmdenv.Env{Stdout: io.Discard, Stderr: io.Discard}, new(verbs))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range k.Model.Children {
		if n.Hidden {
			continue
		}
		own := false
		for line := range strings.Lines(n.Detail) {
			text, ok := strings.CutPrefix(line, "  ")
			if !ok {
				continue
			}
			text, comment, _ := strings.Cut(strings.TrimSpace(text), "   ")
			if len(line) > 101 {
				t.Errorf("%s: a line of %d bytes, %q", n.Name, len(line), comment)
			}
			for _, words := range (examples.Example{File: n.Name, Text: text}).Commands(t, "terok-shield") {
				own = understood(t, words[1:]) == n.Name || own
			}
		}
		if !own {
			t.Errorf("the help of %s shows no example of it", n.Name)
		}
		var out strings.Builder
		if code := Run(&cmdenv.Env{Stdout: &out, Stderr: io.Discard}, []string{n.Name, "--help"}); code != 0 || !strings.Contains(out.String(), "\n    terok-shield "+n.Name) && n.Name != "completion" {
			t.Errorf("%s --help: exit %d\n%s", n.Name, code, out.String())
		}
	}
}
