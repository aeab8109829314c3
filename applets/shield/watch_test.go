package shield

import (
	"net/netip"
	"testing"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/audit"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/names"
)

// The order of the keys, and which are left out, is what scripts know.
func TestEventLine(t *testing.T) {
	for name, tt := range map[string]struct {
		e    watchEvent
		want string
	}{
		"least": {watchEvent{Time: "t", Source: "audit", Action: "unknown", Container: "demo"},
			`{"ts":"t","source":"audit","action":"unknown","container":"demo"}`},
		"empty": {watchEvent{}, `{"ts":"","source":"","action":"","container":""}`},
		"most": {watchEvent{"t", "dns", "allowed_query", "demo", "a.example.com", "A", "192.0.2.1", "d", 443, 6, []string{"192.0.2.1", "2001:db8::1"}, 7},
			`{"ts":"t","source":"dns","action":"allowed_query","container":"demo","domain":"a.example.com","query_type":"A","dest":"192.0.2.1","detail":"d","port":443,"proto":6,"extra":{"addresses":["192.0.2.1","2001:db8::1"],"missed":7}}`},
		"lost": {watchEvent{Time: "t", Source: "nflog", Action: "nflog", Container: "demo", Missed: 2},
			`{"ts":"t","source":"nflog","action":"nflog","container":"demo","extra":{"missed":2}}`},
		"anything a container says": {watchEvent{Container: "demo", Domain: "\x1b[2J\"\n\u202e"},
			`{"ts":"","source":"","action":"","container":"demo","domain":"\u001b[2J\"\n\u202e"}`},
	} {
		if got := tt.e.line(); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, tt.want)
		}
	}
}

func TestQuestionEvent(t *testing.T) {
	q := func(verdict, kind string) names.Question {
		return names.Question{Time: "2026-03-04T05:06:07.000008Z", Name: "a.example.com", Type: kind, Verdict: verdict, Reason: "r"}
	}
	for _, tt := range []struct {
		q         names.Question
		all, want string // action; "" for none
	}{
		{q(names.Refused, "A"), "blocked_query", "blocked_query"},
		{q(names.Refused, "AAAA"), "blocked_query", "blocked_query"},
		{q(names.Refused, "TXT"), "blocked_query", ""},
		{q(names.Denied, "A"), "blocked_query", "blocked_query"},
		{q(names.Denied, "TXT"), "blocked_query", ""},
		{q(names.Allowed, "A"), "allowed_query", ""},
		{q(names.Resolved, "A"), "resolved_query", ""},
		{q(names.Failed, "A"), "failed_query", ""},
		{q("new", "A"), "query", ""},
	} {
		for _, all := range []bool{false, true} {
			want := tt.want
			if all {
				want = tt.all
			}
			got, ok := watchCmd{All: all}.question(tt.q)
			if got.Action != want || ok != (want != "") {
				t.Errorf("%+v, all %t: %+v, %t", tt.q, all, got, ok)
			}
			if ok && (got.Time != "2026-03-04T05:06:07.000008+00:00" || got.Domain != "a.example.com" || got.QueryType != tt.q.Type) {
				t.Errorf("%+v", got)
			}
		}
	}
	odd := q(names.Refused, "A")
	odd.Time = "now"
	if e, _ := (watchCmd{}).question(odd); len(e.Time) != len("2026-03-04T05:06:07.000008+00:00") {
		t.Errorf("%q", e.Time)
	}
}

// Other programs lose the port, protocol and name of audit lines.
func TestAuditEvent(t *testing.T) {
	rs := records(t, blocked(0, "a.example.com", "203.0.113.1", 443, "tcp"), blocked(1, "", "2001:db8::1", 0, "58"), audit.Entry{Time: noon})
	for i, want := range []string{
		`{"ts":"2026-03-04T12:00:00+00:00","source":"audit","action":"blocked","container":"","domain":"a.example.com","dest":"203.0.113.1","port":443,"proto":6}`,
		`{"ts":"2026-03-04T12:01:00+00:00","source":"audit","action":"blocked","container":"","dest":"2001:db8::1","proto":58}`,
		`{"ts":"2026-03-04T12:00:00+00:00","source":"audit","action":"","container":""}`,
	} {
		if i == 2 {
			want = `{"ts":"2026-03-04T12:00:00+00:00","source":"audit","action":"unknown","container":""}`
		}
		if got := logged(rs[i]).line(); got != want {
			t.Errorf("got %s\nwant %s", got, want)
		}
	}
}

func TestPacketEvent(t *testing.T) {
	dest := netip.MustParseAddr("203.0.113.1")
	for prefix, want := range map[string]string{
		"TEROK_SHIELD_BLOCKED: ": "queued_connection", "TEROK_SHIELD_DENIED: ": "blocked_connection", "TEROK_SHIELD_PRIVATE: ": "private_range",
		"TEROK_SHIELD_ALLOWED: ": "allowed_connection", "TEROK_SHIELD_BYPASS: ": "bypass_connection", "other": "nflog", "": "nflog",
	} {
		e := packetEvent(control.Packet{Prefix: prefix, Dest: dest, Proto: 6, Port: 443})
		if e.Action != want || e.Dest != "203.0.113.1" || e.Port != 443 || e.Proto != 6 {
			t.Errorf("%q: %+v", prefix, e)
		}
	}
}

func TestPretty(t *testing.T) {
	when := noon.Local().Format(time.TimeOnly)
	for _, tt := range []struct {
		e    watchEvent
		want string
	}{
		{watchEvent{Time: "2026-03-04T12:00:00.000000+00:00", Source: "dns", Action: "blocked_query", Domain: "a.example.com", QueryType: "A", Detail: "not on a list"},
			when + " dns   blocked query a.example.com A (not on a list)"},
		{watchEvent{Time: "x", Source: "nflog", Action: "queued_connection", Domain: "a.example.com", Dest: "2001:db8::1", Port: 443, Proto: 6, Detail: "TEROK_SHIELD_BLOCKED:"},
			"x        nflog queued connection a.example.com at [2001:db8::1]:443 tcp"},
		{watchEvent{Time: "x", Source: "audit", Action: "allowed", Dest: "203.0.113.1", Detail: "target=\x1b[31m\nx", Missed: 3},
			"x        audit allowed 203.0.113.1 (target=?[31m; x) [3 events before this one were lost]"},
		{watchEvent{Time: "x", Source: "dns", Action: "allowed_query", Domain: "a.example.com", QueryType: "A", Addresses: []string{"203.0.113.1", "203.0.113.2"}},
			"x        dns   allowed query a.example.com A -> 203.0.113.1, 203.0.113.2"},
		{watchEvent{Time: "x", Source: "audit", Action: "shield_up"}, "x        audit shield up"},
	} {
		if got := tt.e.pretty(false); got != tt.want {
			t.Errorf("got  %q\nwant %q", got, tt.want)
		}
	}
	if got := (watchEvent{Action: "blocked"}).pretty(true); got[:len(red)] != red || got[len(got)-len(plain):] != plain {
		t.Errorf("%q", got)
	}
}
