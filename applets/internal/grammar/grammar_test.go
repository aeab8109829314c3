package grammar

import (
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// example is a grammar with one of everything.
type example struct {
	Root string `complete:"dirs" placeholder:"DIR" help:"Where, it's [said]: here."`
	Go   struct {
		Container string   `arg:"" complete:"containers" help:"Which."`
		How       string   `arg:"" optional:"" enum:"fast,slow" default:"fast" help:"How."`
		Profiles  []string `complete:"profiles" placeholder:"A,B" help:"Which ones."`
		N         int      `short:"n" help:"How often."`
		Hidden    bool     `hidden:""`
	} `cmd:"" tail:"" help:"Go."`
	Stop   struct{} `cmd:"" help:"Stop."`
	Secret struct{} `cmd:"" hidden:""`
}

func program(t *testing.T) Program {
	t.Helper()
	k, err := New(new(example), "my-prog", "About.", io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return Of(k)
}

func TestOf(t *testing.T) {
	want := Program{
		Name: "my-prog",
		Flags: []Flag{
			{Names: []string{"-h", "--help"}, Help: "Show context-sensitive help."},
			{Names: []string{"--root"}, Help: "Where, it's [said]: here.", Value: Value{Kind: Dirs, Name: "DIR"}},
		},
		Verbs: []Verb{
			{
				Name: "go", Help: "Go.", Tail: true,
				Flags: []Flag{
					{Names: []string{"--profiles"}, Help: "Which ones.", Value: Value{Kind: Profiles, Name: "A,B,..."}, List: true},
					{Names: []string{"-n", "--n"}, Help: "How often.", Value: Value{Kind: Text, Name: "INT"}},
				},
				Args: []Value{{Kind: Containers, Name: "CONTAINER"}, {Kind: Choices, Name: "HOW", Choices: []string{"fast", "slow"}}},
			},
			{Name: "stop", Help: "Stop."},
		},
	}
	got := program(t)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if v, ok := got.Verb("go"); !ok || v.Name != "go" {
		t.Errorf("%+v, %t", v, ok)
	}
	if _, ok := got.Verb("secret"); ok {
		t.Error("a hidden verb")
	}
}

func TestFromUsage(t *testing.T) {
	got := FromUsage("p", `usage: p TITLE [BODY] [on|off] [-t MS] [--all]

Text about --this and [that|other].

  -t, --time MS          how long, which
                         goes on here
  --hub PATH             where
  --pair KEY:LABEL... several
  --all                  everything

Exit codes: 0 done.
`)
	want := Program{Name: "p", Verbs: []Verb{{
		Flags: []Flag{
			{Names: []string{"-t", "--time"}, Help: "how long, which goes on here", Value: Value{Kind: Text, Name: "MS"}},
			{Names: []string{"--hub"}, Help: "where", Value: Value{Kind: Files, Name: "PATH"}},
			{Names: []string{"--pair"}, Help: "several", Value: Value{Kind: Text, Name: "KEY:LABEL"}},
			{Names: []string{"--all"}, Help: "everything"},
			{Names: []string{"-h", "--help"}, Help: "Show help."},
		},
		Args: []Value{{Kind: Choices, Name: "on|off", Choices: []string{"on", "off"}}},
	}}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// Each shell reads what is written for it, whatever texts are in it.
func TestShellsReadIt(t *testing.T) {
	for _, p := range []Program{program(t), FromUsage("plain", "usage: plain [a|b]\n\n  --x PATH  it's `here`, \"$(there)\" [and] 50%: \\ there\n")} {
		for _, shell := range Shells() {
			text, file, ok := p.Completion(shell)
			if !ok || !strings.Contains(file, p.Name) {
				t.Errorf("%s: %q, %t", shell, file, ok)
			}
			cmd := exec.Command(shell, "-n")
			cmd.Stdin = strings.NewReader(text)
			if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%s of %s: %v\n%s\n%s", p.Name, shell, err, out, text)
			}
		}
	}
	if _, _, ok := (Program{}).Completion("sh"); ok {
		t.Error("completions for sh")
	}
}
