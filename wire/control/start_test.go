package control

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/wire/start"
)

var spec = Spec{
	StateDir: "/state/with \n odd <name>", Owner: "/other", Container: "demo", ID: "0123456789abcdef", Dossier: map[string]string{"task": "x"}, Audit: true,
	RuntimeDir: "/run/user/1000", PID: 7, Start: 8, NetNS: "4:9", Roster: "/run/user/1000/terok/net/4-9", Restarts: 3,
}

func TestSpec(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Spec)
		ok     bool
	}{
		"as it is":             {func(*Spec) {}, true},
		"no runtime dir":       {func(s *Spec) { s.RuntimeDir = "" }, true},
		"short id":             {func(s *Spec) { s.ID = "0123456789ab" }, true},
		"no state dir":         {func(s *Spec) { s.StateDir = "" }, false},
		"relative runtime dir": {func(s *Spec) { s.RuntimeDir = "run" }, false},
		"relative owner":       {func(s *Spec) { s.Owner = "other" }, false},
		"no namespace":         {func(s *Spec) { s.NetNS = "" }, false},
		"no process":           {func(s *Spec) { s.PID = 0 }, false},
		"no id":                {func(s *Spec) { s.ID = "" }, false},
		"too short an id":      {func(s *Spec) { s.ID = "0123456789a" }, false},
		"id that is a path":    {func(s *Spec) { s.ID = "../../../../x" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := spec
			tt.change(&s)
			var b bytes.Buffer
			if err := start.WriteSpec(&b, s); err != nil {
				t.Fatal(err)
			}
			got, _, err := start.ReadSpec[Spec](&b)
			if (err == nil) != tt.ok {
				t.Errorf("%v", err)
			}
			if diff := cmp.Diff(s, got); tt.ok && diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestArgs(t *testing.T) {
	for _, r := range []start.Role{start.Server, start.Keeper} {
		got, ok := ParseArgs(spec.Args(r))
		want := Identity{start.Identity{Role: r, StateDir: spec.StateDir, NetNS: spec.NetNS, Roster: spec.Roster}, "0123456789ab", 7, 8}
		if !ok || got != want || got != spec.Identity(r) {
			t.Errorf("%v, %t, want %v", got, ok, want)
		}
	}
	for _, args := range [][]string{
		nil, {Program}, {"other", "serve", "/s", "4:9", "", "0123456789ab", "7:8"}, {Program, "serve", "/s", "4:9", "", "0123456789ab"},
		{Program, "other", "/s", "4:9", "", "0123456789ab", "7:8"}, {Program, "serve", "/s", "4:9", "", "0123456789ab", "7"},
		{Program, "serve", "/s", "4:9", "", "0123456789ab", "x:8"}, {Program, "serve", "/s", "4:9", "", "0123456789ab", "7:8", ""},
	} {
		if id, ok := ParseArgs(args); ok {
			t.Errorf("%q is %v", args, id)
		}
	}
}

func TestSocketsOf(t *testing.T) {
	for _, tt := range []struct {
		runtime string
		want    Sockets
	}{
		{"/run/user/1000", Sockets{
			"/run/user/1000/terok/control/0123456789ab.sock", "/run/user/1000/terok/events/0123456789ab.sock",
			"/run/user/1000/terok/clearance/0123456789ab.sock", "/run/user/1000/terok/verdict/0123456789ab.sock",
		}},
		{"", Sockets{"/sd/run/control.sock", "/sd/run/events.sock", "/sd/run/clearance.sock", "/sd/run/verdict.sock"}},
	} {
		if got := SocketsOf(tt.runtime, "/sd", "0123456789ab"); got != tt.want || len(got.All()) != 4 {
			t.Errorf("%q: %+v", tt.runtime, got)
		}
	}
}

// Whatever a spec that is accepted says, its sockets are where they belong and
// its processes are recognised.
func FuzzSpec(f *testing.F) {
	var b bytes.Buffer
	if err := start.WriteSpec(&b, spec); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte(`{"state_dir":"/x","id":"0123456789ab/../..","pid":1,"start":1,"netns":"1:2"}` + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, _, err := start.ReadSpec[Spec](bytes.NewReader(text))
		if err != nil {
			return
		}
		for _, path := range SocketsOf("/run/user/1000", s.StateDir, s.Short()).All() {
			if dir := filepath.Dir(filepath.Dir(path)); dir != "/run/user/1000/terok" || filepath.Clean(path) != path {
				t.Errorf("socket %q", path)
			}
		}
		if got, ok := ParseArgs(s.Args(start.Keeper)); !ok || got != s.Identity(start.Keeper) {
			t.Errorf("%+v, %t, want %+v", got, ok, s.Identity(start.Keeper))
		}
	})
}
