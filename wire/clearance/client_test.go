package clearance

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/wire/varlink"
)

// scripted is a hub that answers every call with the same bytes and then
// closes the connection.
func scripted(t *testing.T, answer string) (path string) {
	t.Helper()
	path = SocketPath(t.TempDir(), "a")
	l, err := varlink.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				if _, err := bufio.NewReader(c).ReadString(0); err == nil {
					c.Write([]byte(answer))
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return path
}

// eventJSON is an event as hubs send it, with a part replaced.
func eventJSON(old, is string) string {
	const text = `{"continues":true,"parameters":{"event":{"type":"connection_blocked","container":"c","request_id":"c:1","dest":"203.0.113.9","port":443,"proto":6,"domain":"d","action":"","ok":false,"reason":"","dossier":{"k":"v"}}}}`
	return strings.Replace(text, old, is, 1) + "\x00"
}

// What a hub tells is strictly what was agreed on, and fit to be shown.
func TestSubscribeStrictly(t *testing.T) {
	good := Event{Type: "connection_blocked", Container: "c", RequestID: "c:1", Dest: "203.0.113.9", Port: 443, Proto: 6, Domain: "d", Dossier: map[string]string{"k": "v"}}
	changed := func(f func(*Event)) []Event {
		e := good
		f(&e)
		return []Event{e}
	}
	for _, c := range []struct {
		answer string
		want   []Event
		err    error
	}{
		{"", nil, varlink.ErrHungUp},
		{eventJSON("", ""), []Event{good}, varlink.ErrHungUp},
		{eventJSON("", "") + eventJSON(`"k":"v"`, ""), append([]Event{good}, changed(func(e *Event) { e.Dossier = map[string]string{} })...), varlink.ErrHungUp},
		{eventJSON(`"domain":"d"`, `"domain":"\u001b[31m\u202e\n"`), changed(func(e *Event) { e.Domain = " [31m  " }), varlink.ErrHungUp},
		{eventJSON(`"k":"v"`, `"k\n":"v\r","`+strings.Repeat("k", 300)+`":"`+strings.Repeat("v", 300)+`"`), changed(func(e *Event) {
			e.Dossier = map[string]string{"k ": "v ", strings.Repeat("k", 253) + "...": strings.Repeat("v", 253) + "..."}
		}), varlink.ErrHungUp},
		{eventJSON(`"type":"connection_blocked"`, `"type":"unknown"`), changed(func(e *Event) { e.Type = "unknown" }), varlink.ErrHungUp},
		{strings.Replace(eventJSON("", ""), `"continues":true,`, "", 1), []Event{good}, ErrReply},

		{eventJSON(`,"reason":""`, ""), nil, varlink.ErrProtocol},
		{eventJSON(`"reason":""`, `"reason":"","more":""`), nil, varlink.ErrProtocol},
		{eventJSON(`"reason":""`, `"reason":null`), nil, varlink.ErrProtocol},
		{eventJSON(`"port":443`, `"port":443.0`), nil, varlink.ErrProtocol},
		{eventJSON(`{"k":"v"}`, `null`), nil, varlink.ErrProtocol},
		{eventJSON(`"k":"v"`, `"k":1`), nil, varlink.ErrProtocol},
		{eventJSON(`"k":"v"`, `"k":"`+strings.Repeat("v", maxReply)+`"`), nil, varlink.ErrProtocol},
	} {
		var got []Event
		err := connect(t, scripted(t, c.answer)).Subscribe(limited(t), func(e Event) error {
			got = append(got, e)
			return nil
		})
		if diff := cmp.Diff(c.want, got); diff != "" || !errors.Is(err, c.err) {
			t.Errorf("%.300s: %v, want %v (-want +got):\n%s", c.answer, err, c.err, diff)
		}
	}
}

func TestVerdictStrictly(t *testing.T) {
	name := func(e string) string { return `{"error":"org.terok.Clearance1.` + e }
	for _, c := range []struct {
		answer string
		want   error // as it is, or found with errors.Is
	}{
		{`{"parameters":{"ok":true}}`, nil},
		{`{"parameters":{"ok":false}}`, ErrReply},
		{`{"parameters":{"ok":true,"x":1}}`, varlink.ErrProtocol},
		{`{"parameters":{}}`, varlink.ErrProtocol},
		{"garbage", varlink.ErrProtocol},
		{name(`UnknownRequest","parameters":{"request_id":"\u001b"}}`), UnknownRequest{" "}},
		{name(`VerdictTupleMismatch","parameters":{"expected_container":"a\n","expected_dest":"b","got_container":"c","got_dest":"d"}}`), TupleMismatch{"a ", "b", "c", "d"}},
		{name(`InvalidAction","parameters":{"action":"` + strings.Repeat("x", 300) + `"}}`), InvalidAction{strings.Repeat("x", 253) + "..."}},
		{name(`ShieldCliFailed","parameters":{"action":"allow","stderr":"` + strings.Repeat("x", 600) + `"}}`), ShieldFailed{"allow", strings.Repeat("x", 509) + "..."}},
	} {
		err := connect(t, scripted(t, c.answer+"\x00")).Verdict(limited(t), Request{})
		if !errors.Is(err, c.want) {
			t.Errorf("%.200s: %v, want %v", c.answer, err, c.want)
		}
	}
	// Errors that are not as agreed on are what they are.
	for _, answer := range []string{
		name(`UnknownRequest"}`), name(`UnknownRequest","parameters":{"request_id":1}}`), name(`VerdictTupleMismatch","parameters":{}}`),
		name(`InvalidAction"}`), name(`ShieldCliFailed","parameters":{"action":"allow"}}`), name(`Other"}`), `{"error":"org.example.UnknownRequest","parameters":{"request_id":"a"}}`,
	} {
		err := connect(t, scripted(t, answer+"\x00")).Verdict(limited(t), Request{})
		if e, ok := errors.AsType[*varlink.Error](err); !ok || !strings.Contains(answer, e.Name) {
			t.Errorf("%s: %v", answer, err)
		}
	}
}

// What is said of errors fits on a line, and says what to think.
func TestErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{UnknownRequest{"c:1"}, `no question "c:1" is open: it was answered, or its container is gone`},
		{TupleMismatch{"a", "b", "c", "d"}, `the question is about b of container a, not about d of c`},
		{InvalidAction{"ALLOW"}, `"ALLOW" is neither "allow" nor "deny"`},
		{ShieldFailed{"allow", "why"}, `allow could not be carried out: why`},
	} {
		if got := c.err.Error(); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
		if wrapped := fmt.Errorf("wrapped: %w", c.err); reply(wrapped) == wrapped {
			t.Errorf("%v is no error reply", wrapped)
		}
	}
}

func TestTarget(t *testing.T) {
	for _, c := range []struct {
		event Event
		want  string
	}{
		{Event{Dest: "203.0.113.9", Domain: "example.com"}, "example.com"},
		{Event{Dest: "203.0.113.9"}, "203.0.113.9"},
		{Event{}, ""},
	} {
		if got := c.event.Target(); got != c.want {
			t.Errorf("%+v: %q, want %q", c.event, got, c.want)
		}
	}
}

// What is sent is not changed, and what is good is not copied.
func TestClean(t *testing.T) {
	in := map[string]string{"a": "b", "c\n": "d"}
	if diff := cmp.Diff(map[string]string{"a": "b", "c ": "d"}, dossier(in)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"a": "b", "c\n": "d"}, in); diff != "" {
		t.Errorf("it was changed (-before +after):\n%s", diff)
	}
	e := Event{Type: "connection_blocked", Container: "c", Domain: "example.com", Dossier: map[string]string{"k": "v"}}
	if n := testing.AllocsPerRun(100, func() { _ = e.clean() }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestDialNobody(t *testing.T) {
	if _, err := Dial(limited(t), filepath.Join(t.TempDir(), "s")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	c := connect(t, scripted(t, ""))
	if c.PID() == 0 {
		t.Error("the hub has no process")
	}
}
