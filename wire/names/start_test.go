package names

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/wire/start"
)

var spec = Spec{
	StateDir: "/state/with \n odd <name>", Container: "demo", ID: "0123456789ab", Socket: "/run/user/1000/terok/dns/0123456789ab.sock",
	Audit: true, Tier: "proxy", PID: 7, Start: 8, NetNS: "4:9", Roster: "/run/user/1000/terok/net/4-9", Restarts: 3,
}

func TestSpec(t *testing.T) {
	var b bytes.Buffer
	if err := start.WriteSpec(&b, spec); err != nil {
		t.Fatal(err)
	}
	told := b.Bytes()
	for name, tt := range map[string]struct{ more, want string }{
		"proceed":       {"p", ""},
		"starter ended": {"", "has ended"},
		"nonsense":      {"x", "unexpected byte 0x78"},
	} {
		t.Run(name, func(t *testing.T) {
			got, wait, err := start.ReadSpec[Spec](io.MultiReader(bytes.NewReader(told), strings.NewReader(tt.more)))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(spec, got); d != "" {
				t.Error(d)
			}
			if err := wait(); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func TestBadSpec(t *testing.T) {
	for name, change := range map[string]func(*Spec){
		"no state dir":    func(s *Spec) { s.StateDir = "" },
		"relative":        func(s *Spec) { s.StateDir = "state" },
		"NUL":             func(s *Spec) { s.StateDir = "/state\x00" },
		"no socket":       func(s *Spec) { s.Socket = "" },
		"relative socket": func(s *Spec) { s.Socket = "dns.sock" },
		"relative roster": func(s *Spec) { s.Roster = "net" },
		"no namespace":    func(s *Spec) { s.NetNS = "" },
		"no process":      func(s *Spec) { s.PID = 0 },
		"no start":        func(s *Spec) { s.Start = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			s := spec
			change(&s)
			var b bytes.Buffer
			if err := start.WriteSpec(&b, s); err != nil {
				t.Fatal(err)
			}
			if _, _, err := start.ReadSpec[Spec](&b); err == nil {
				t.Error("accepted")
			}
		})
	}
	for _, text := range []string{"", "{}", "{}\n", "[]\n", strings.Repeat("x", 2*start.MaxSpec)} {
		if _, _, err := start.ReadSpec[Spec](strings.NewReader(text)); err == nil {
			t.Errorf("accepted %.10q", text)
		}
	}
}

func TestArgs(t *testing.T) {
	for _, r := range []start.Role{start.Server, start.Keeper} {
		got, ok := ParseArgs(spec.Args(r))
		if want := (start.Identity{Role: r, StateDir: spec.StateDir, NetNS: spec.NetNS, Roster: spec.Roster}); !ok || got != want {
			t.Errorf("%v, %t, want %v", got, ok, want)
		}
	}
	for _, args := range [][]string{
		nil, {Program}, {"other", "serve", "/s", "4:9", ""}, {Program, "other", "/s", "4:9", ""}, {Program, "serve", "/s", "4:9"},
		{Program, "serve", "/s", "4:9", "", ""},
	} {
		if id, ok := ParseArgs(args); ok {
			t.Errorf("%q is %v", args, id)
		}
	}
}
