package event

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var when = time.Date(2026, 6, 1, 12, 30, 45, 123456789, time.FixedZone("", 2*3600))

func TestLine(t *testing.T) {
	for _, c := range []struct {
		event Event
		want  string
	}{
		{Event{Type: ContainerStarted, Container: "0123456789ab"}, `{"type":"container_started","container":"0123456789ab"}`},
		{Event{Type: ContainerExited, Container: "a", Reason: "poststop"}, `{"type":"container_exited","container":"a","reason":"poststop"}`},
		{Event{Type: ShieldUp, Container: "a"}, `{"type":"shield_up","container":"a"}`},
		{Event{Type: ShieldDown, Container: "a", Dossier: map[string]string{"task": "t", "project": "p"}}, `{"type":"shield_down","container":"a","dossier":{"project":"p","task":"t"}}`},
		{Event{Type: ShieldDisengaged, Container: "a", Dossier: map[string]string{}}, `{"type":"shield_disengaged","container":"a"}`},
		{
			Event{Type: Blocked, Container: "0123456789ab", ID: "0123456789ab:1", Dest: "203.0.113.9", Port: 443, Proto: 6, Domain: "example.com", Dossier: map[string]string{"name": "n"}, Time: when},
			`{"type":"pending","container":"0123456789ab","id":"0123456789ab:1","dest":"203.0.113.9","port":443,"proto":6,"domain":"example.com","dossier":{"name":"n"},"ts":"2026-06-01T10:30:45.123456+00:00"}`,
		},
		{
			Event{Type: Blocked, Time: when.Truncate(time.Second)},
			`{"type":"pending","container":"","id":"","dest":"","port":0,"proto":0,"domain":"","dossier":{},"ts":"2026-06-01T10:30:45+00:00"}`,
		},
		// Members that do not belong to the type are left out, values
		// sanitised.
		{
			Event{Type: ContainerStarted, Container: "a\n\"é\\", ID: "1", Dest: "d", Port: 1, Proto: 2, Domain: "x", Reason: "r", Time: when, Dossier: map[string]string{"k": "\x1b[31m", "bad\n": "v", strings.Repeat("k", MaxKey+1): "v"}},
			`{"type":"container_started","container":"a \" \\","dossier":{"k":" [31m"}}`,
		},
	} {
		got, err := c.event.Line()
		if diff := cmp.Diff(c.want+"\n", string(got)); diff != "" || err != nil {
			t.Errorf("%v: %v (-want +got):\n%s", c.event, err, diff)
		}
	}
	for _, bad := range []string{"", "pending", "verdict_applied", "shield_down_all", "a\x1b"} {
		if line, err := (Event{Type: bad}).Line(); err == nil {
			t.Errorf("%q: %s", bad, line)
		}
	}
}

// The time of a block that was not given one is now.
func TestLineNow(t *testing.T) {
	before := time.Now().Truncate(time.Microsecond)
	line, err := Event{Type: Blocked}.Line()
	if err != nil {
		t.Fatal(err)
	}
	e, err := Parse(line)
	if err != nil || e.Time.Before(before) || e.Time.After(time.Now()) {
		t.Errorf("%v, %v", e.Time, err)
	}
}

func TestPaths(t *testing.T) {
	want := []string{"/run/user/1000/terok/events/0123456789ab.sock", "/run/user/1000/terok/events/0123456789ab/ingester.sock"}
	if diff := cmp.Diff(want, SocketPaths("/run/user/1000", "0123456789ab")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got, want := UserSocketPath("/run/user/1000"), "/run/user/1000/terok-shield-events.sock"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
