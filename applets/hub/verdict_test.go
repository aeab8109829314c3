package hub

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/event"
)

type verdictIn struct {
	Container string `json:"container"`
	RequestID string `json:"request_id"`
	Dest      string `json:"dest"`
	Action    string `json:"action"`
}

func applied(id, action string, ok bool) string {
	return fmt.Sprintf(`{"continues":true,"parameters":{"event":{"type":"verdict_applied","container":"c","request_id":"%s","dest":"","port":0,"proto":0,"domain":"","action":"%s","ok":%v,"reason":"","dossier":{}}}}`, id, action, ok)
}

const done = `{"parameters":{"ok":true}}`

func unknown(id string) string {
	return `{"error":"org.terok.Clearance1.UnknownRequest","parameters":{"request_id":"` + id + `"}}`
}

func failed(action, stderr string) string {
	return `{"error":"org.terok.Clearance1.ShieldCliFailed","parameters":{"action":"` + action + `","stderr":"` + stderr + `"}}`
}

// The checks in their order, over a real socket, to the byte.
func TestVerdict(t *testing.T) {
	outcomes := make(chan func() (bool, string), 1)
	var asked atomic.Pointer[string]
	f := start(t, func(c *Config) {
		c.Verdict = func(_ context.Context, container, dest, action string) (bool, string) {
			s := container + " " + dest + " " + action
			asked.Store(&s)
			return (<-outcomes)()
		}
	})
	succeed := func() (bool, string) { return true, "" }
	ingest(t, f.hub, block("c", 1, "203.0.113.9", ""), block("c", 2, "203.0.113.10", "example.com"), block("c", 3, "203.0.113.11", ""))
	sub := f.subscribe()
	for range 3 {
		sub.hear()
	}
	c := dial(t, f.clients)
	check := func(in verdictIn, want string, events ...string) {
		t.Helper()
		diff(t, want, c.call("Verdict", in))
		for _, e := range events {
			diff(t, e, sub.hear())
		}
	}

	// 1: the action, before anything else.
	for _, action := range []string{"", "Allow", "allow ", "ok", "allow\n"} {
		check(verdictIn{"other", "c:9", "x", action}, `{"error":"org.terok.Clearance1.InvalidAction","parameters":{"action":"`+strings.ReplaceAll(action, "\n", " ")+`"}}`)
	}
	check(verdictIn{"c", "c:1", "203.0.113.9", "accept"}, `{"error":"org.terok.Clearance1.InvalidAction","parameters":{"action":"accept"}}`)
	// 2: the id.
	for _, id := range []string{"c:9", "", "C:1", "c:1 ", "c:01"} {
		check(verdictIn{"other", id, "x", "allow"}, unknown(id))
	}
	// 3: what it is about.
	mismatch := func(dest, gotContainer, gotDest string) string {
		return fmt.Sprintf(`{"error":"org.terok.Clearance1.VerdictTupleMismatch","parameters":{"expected_container":"c","expected_dest":"%s","got_container":"%s","got_dest":"%s"}}`, dest, gotContainer, gotDest)
	}
	check(verdictIn{"d", "c:1", "203.0.113.9", "allow"}, mismatch("203.0.113.9", "d", "203.0.113.9"))
	check(verdictIn{"c", "c:1", "203.0.113.1", "allow"}, mismatch("203.0.113.9", "c", "203.0.113.1"))
	check(verdictIn{"c", "c:1", "", "deny"}, mismatch("203.0.113.9", "c", ""))
	check(verdictIn{"c", "c:2", "203.0.113.10", "allow"}, mismatch("example.com", "c", "203.0.113.10"))
	check(verdictIn{"c", "c:2", "EXAMPLE.com", "allow"}, mismatch("example.com", "c", "EXAMPLE.com"))
	check(verdictIn{"c", "c:2", "example.com\n", "allow"}, mismatch("example.com", "c", "example.com "))
	if asked.Load() != nil {
		t.Fatalf("asked for %s", *asked.Load())
	}
	// 4 to 7: it fails, and can be tried again.
	outcomes <- func() (bool, string) { return false, "why" }
	check(verdictIn{"c", "c:1", "203.0.113.9", "allow"}, failed("allow", "why"), applied("c:1", "allow", false))
	diff(t, "c 203.0.113.9 allow", *asked.Load())
	outcomes <- func() (bool, string) { panic("it broke") }
	check(verdictIn{"c", "c:1", "203.0.113.9", "deny"}, failed("deny", "internal verdict helper error: it broke"), applied("c:1", "deny", false))
	outcomes <- succeed
	check(verdictIn{"c", "c:1", "203.0.113.9", "allow"}, done, applied("c:1", "allow", true))
	// Nobody answers twice.
	check(verdictIn{"c", "c:1", "203.0.113.9", "allow"}, unknown("c:1"))
	check(verdictIn{"c", "c:1", "203.0.113.9", "deny"}, unknown("c:1"))
	outcomes <- func() (bool, string) { return true, "a warning" }
	check(verdictIn{"c", "c:2", "example.com", "deny"}, done, applied("c:2", "deny", true))
	diff(t, "c example.com deny", *asked.Load())
	if !strings.Contains(f.log.String(), "a warning") {
		t.Error("the warning is nowhere")
	}
	// Without a reply it is carried out as well.
	outcomes <- succeed
	c.say(`{"method":"org.terok.Clearance1.Verdict","oneway":true,"parameters":{"container":"c","request_id":"c:3","dest":"203.0.113.11","action":"allow"}}` + "\x00")
	diff(t, applied("c:3", "allow", true), sub.hear())
	check(verdictIn{"c", "c:3", "203.0.113.11", "allow"}, unknown("c:3"))
}

// While one is carried out, it is nobody else's, and nothing waits for it.
func TestVerdictConcurrent(t *testing.T) {
	outcomes := make(chan bool)
	f := start(t, func(c *Config) {
		c.Verdict = func(context.Context, string, string, string) (bool, string) { return <-outcomes, "no" }
	})
	sub := f.subscribe()
	ingest(t, f.hub, block("c", 1, "203.0.113.9", ""), block("c", 2, "203.0.113.10", ""))
	sub.hear()
	sub.hear()
	in := verdictIn{"c", "c:1", "203.0.113.9", "allow"}
	first := dial(t, f.clients)
	replies := make(chan string, 1)
	go func() { replies <- first.call("Verdict", in) }()
	until(t, func() bool { f.hub.mu.Lock(); defer f.hub.mu.Unlock(); return f.hub.open.ids["c:1"].busy })
	second := dial(t, f.clients)
	for range 3 {
		diff(t, unknown("c:1"), second.call("Verdict", in))
	}
	for range 2 {
		go func() { outcomes <- true }()
	}
	diff(t, done, second.call("Verdict", verdictIn{"c", "c:2", "203.0.113.10", "allow"}))
	diff(t, done, get(t, replies))
}

// Of a thousand that answer at once one is heard.
func TestVerdictRace(t *testing.T) {
	var n atomic.Int32
	h := newHub(t, func(c *Config) {
		c.Verdict = func(context.Context, string, string, string) (bool, string) { n.Add(1); return true, "" }
	})
	ingest(t, h, block("c", 1, "203.0.113.9", ""))
	var wg sync.WaitGroup
	var heard atomic.Int32
	for i := range 1000 {
		wg.Go(func() {
			err := h.Verdict(t.Context(), clearance.Request{Container: "c", RequestID: "c:1", Dest: "203.0.113.9", Action: []string{clearance.Allow, clearance.Deny}[i%2]})
			if err == nil {
				heard.Add(1)
			} else if _, ok := err.(clearance.UnknownRequest); !ok {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n.Load() != 1 || heard.Load() != 1 {
		t.Errorf("carried out %d times, heard %d times", n.Load(), heard.Load())
	}
}

// A verdict that fails after its question is gone does not bring it back.
func TestVerdictPurged(t *testing.T) {
	for _, end := range []string{event.ShieldDown, event.ShieldDisengaged, event.ContainerExited} {
		for _, ok := range []bool{true, false} {
			outcomes := make(chan bool)
			h := newHub(t, func(c *Config) {
				c.Verdict = func(context.Context, string, string, string) (bool, string) { return <-outcomes, "no" }
			})
			ingest(t, h, block("c", 1, "203.0.113.9", ""))
			r := clearance.Request{Container: "c", RequestID: "c:1", Dest: "203.0.113.9", Action: clearance.Allow}
			result := make(chan error, 1)
			go func() { result <- h.Verdict(t.Context(), r) }()
			until(t, func() bool { h.mu.Lock(); defer h.mu.Unlock(); return h.open.ids["c:1"].busy })
			ingest(t, h, event.Event{Type: end, Container: "c"})
			if got := h.Pending(); len(got) > 0 {
				t.Errorf("%s: %+v", end, got)
			}
			outcomes <- ok
			if err := get(t, result); (err == nil) != ok {
				t.Error(err)
			}
			if got := h.Pending(); len(got) > 0 {
				t.Errorf("%s, %v: %+v is back", end, ok, got)
			}
			if err, ok := h.Verdict(t.Context(), r).(clearance.UnknownRequest); !ok {
				t.Error(err)
			}
		}
	}
}

// An id that is used again while its verdict is carried out is another
// question.
func TestVerdictReplaced(t *testing.T) {
	for _, ok := range []bool{true, false} {
		outcomes := make(chan bool)
		h := newHub(t, func(c *Config) {
			c.Verdict = func(context.Context, string, string, string) (bool, string) { return <-outcomes, "no" }
		})
		ingest(t, h, block("c", 1, "203.0.113.9", ""))
		result := make(chan error, 1)
		go func() {
			result <- h.Verdict(t.Context(), clearance.Request{Container: "c", RequestID: "c:1", Dest: "203.0.113.9", Action: clearance.Allow})
		}()
		until(t, func() bool { h.mu.Lock(); defer h.mu.Unlock(); return h.open.ids["c:1"].busy })
		again := block("c", 1, "203.0.113.10", "")
		ingest(t, h, again)
		outcomes <- ok
		get(t, result)
		diff(t, []clearance.Event{asked(again)}, h.Pending())
	}
}

// An answer to a question answers the older ones about the same.
func TestVerdictOlder(t *testing.T) {
	h := newHub(t, func(c *Config) {
		c.Verdict = func(_ context.Context, _, _, action string) (bool, string) { return action == clearance.Allow, "no" }
	})
	var all []event.Event
	for n, e := range []event.Event{
		block("c", 1, "203.0.113.9", ""), block("c", 2, "203.0.113.10", ""), block("c", 3, "203.0.113.9", ""),
		block("c", 4, "203.0.113.9", "example.com"), block("c", 5, "203.0.113.9", ""), block("c", 6, "203.0.113.9", ""), block("d", 7, "203.0.113.9", ""),
	} {
		e.ID = fmt.Sprint(n + 1)
		all = append(all, e)
	}
	ingest(t, h, all...)
	answer := func(n int, action string) error {
		e := asked(all[n-1])
		return h.Verdict(t.Context(), clearance.Request{Container: e.Container, RequestID: e.RequestID, Dest: e.Target(), Action: action})
	}
	pending := func(want ...int) {
		t.Helper()
		var events []clearance.Event
		for _, n := range want {
			events = append(events, asked(all[n-1]))
		}
		diff(t, events, h.Pending())
	}
	pending(2, 4, 6, 7)
	if err := answer(5, clearance.Deny); err == nil {
		t.Fatal("it did not fail")
	}
	pending(2, 4, 6, 7)
	if err := answer(5, clearance.Allow); err != nil {
		t.Fatal(err)
	}
	pending(2, 4, 6, 7)
	for _, n := range []int{1, 3, 5} {
		if err, ok := answer(n, clearance.Allow).(clearance.UnknownRequest); !ok {
			t.Errorf("%d: %v", n, err)
		}
	}
	for i, n := range []int{6, 2, 4, 7} {
		if err := answer(n, clearance.Allow); err != nil {
			t.Errorf("%d: %v", n, err)
		}
		if i == 0 {
			pending(2, 4, 7)
		}
	}
	if got := h.Pending(); len(got) > 0 {
		t.Errorf("%+v", got)
	}
}

// Nobody waits for longer than 10 seconds, and then it can be tried again.
func TestVerdictTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		var heeds atomic.Bool
		h, err := New(Config{Verdict: func(ctx context.Context, _, _, _ string) (bool, string) {
			if heeds.Load() {
				<-ctx.Done()
				return false, "my own words"
			}
			<-hang
			return true, ""
		}})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Ingest(block("c", 1, "203.0.113.9", "")); err != nil {
			t.Fatal(err)
		}
		r := clearance.Request{Container: "c", RequestID: "c:1", Dest: "203.0.113.9", Action: clearance.Allow}
		for i := range maxAnswers {
			began := time.Now()
			err := h.Verdict(t.Context(), r)
			if want := (clearance.ShieldFailed{Action: clearance.Allow, Stderr: "timed out after 10.0s"}); err != want {
				t.Fatalf("%d: %v", i, err)
			}
			if d := time.Since(began); d != 10*time.Second {
				t.Fatalf("after %v", d)
			}
		}
		// Those that do not end are not any number.
		if err := h.Verdict(t.Context(), r); err == nil || !strings.Contains(err.Error(), "too much") {
			t.Error(err)
		}
		close(hang)
		synctest.Wait()
		heeds.Store(true)
		if err := h.Verdict(t.Context(), r); !errors.As(err, new(clearance.ShieldFailed)) {
			t.Error(err)
		}
		if got := h.Pending(); len(got) != 1 {
			t.Errorf("%+v", got)
		}
		h.Close()
	})
}

// Who asked may leave: it is carried out, and told to others.
func TestVerdictCallerLeaves(t *testing.T) {
	outcomes := make(chan bool)
	f := start(t, func(c *Config) {
		c.Verdict = func(ctx context.Context, _, _, _ string) (bool, string) {
			select {
			case ok := <-outcomes:
				return ok, ""
			case <-ctx.Done():
				return false, "interrupted"
			}
		}
	})
	sub := f.subscribe()
	ingest(t, f.hub, block("c", 1, "203.0.113.9", ""), block("c", 2, "203.0.113.10", ""))
	sub.hear()
	sub.hear()
	c := dial(t, f.clients)
	c.say(`{"method":"org.terok.Clearance1.Verdict","parameters":{"container":"c","request_id":"c:1","dest":"203.0.113.9","action":"allow"}}` + "\x00")
	until(t, func() bool { f.hub.mu.Lock(); defer f.hub.mu.Unlock(); return f.hub.open.ids["c:1"].busy })
	c.Close()
	outcomes <- true
	diff(t, applied("c:1", "allow", true), sub.hear())

	// The same within this process, by a context.
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		result <- f.hub.Verdict(ctx, clearance.Request{Container: "c", RequestID: "c:2", Dest: "203.0.113.10", Action: clearance.Allow})
	}()
	until(t, func() bool { f.hub.mu.Lock(); defer f.hub.mu.Unlock(); return f.hub.open.ids["c:2"].busy })
	cancel()
	if err := get(t, result); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	outcomes <- true
	diff(t, applied("c:2", "allow", true), sub.hear())
}

// What is asked for in vain: replies of the protocol.
func TestClearanceCalls(t *testing.T) {
	f := start(t, nil)
	c := dial(t, f.clients)
	for _, tt := range []struct{ call, want string }{
		{`{"method":"org.terok.Clearance1.Subscribe"}`, `{"error":"org.varlink.service.ExpectedMore"}`},
		{`{"method":"org.terok.Clearance1.Subscribe","more":true,"parameters":{"x":1}}`, `{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"x"}}`},
		{`{"method":"org.terok.Clearance1.Nope"}`, `{"error":"org.varlink.service.MethodNotFound","parameters":{"method":"Nope"}}`},
		{`{"method":"org.terok.Clearance1.Verdict","parameters":{"container":"c","request_id":"c:1","dest":"x"}}`, `{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"action"}}`},
		{`{"method":"org.terok.Clearance1.Verdict","parameters":{"container":1,"request_id":"c:1","dest":"x","action":"allow"}}`, `{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"container"}}`},
		{`{"method":"org.terok.Clearance1.Verdict","more":true,"parameters":{"container":"c","request_id":"c:1","dest":"x","action":"allow"}}`, unknown("c:1")},
	} {
		c.say(tt.call + "\x00")
		diff(t, tt.want, c.hear())
	}
	c.say(`{"method":"org.varlink.service.GetInfo"}` + "\x00")
	if got := c.hear(); !strings.HasPrefix(got, `{"parameters":{"vendor":"terok","product":"terok-clearance","version":"`) ||
		!strings.HasSuffix(got, `","url":"https://github.com/terok-ai/terok-clearance","interfaces":["org.terok.Clearance1","org.varlink.service"]}}`) {
		t.Error(got)
	}
}

// What was decided elsewhere is as good as answered: of each target once, and
// not if it is being answered just now.
func TestDecided(t *testing.T) {
	answer := make(chan bool)
	f := start(t, func(c *Config) {
		c.Verdict = func(context.Context, string, string, string) (bool, string) { return <-answer, "no" }
	})
	ingest(t, f.hub,
		block("c", 1, "203.0.113.9", ""), block("c", 2, "203.0.113.10", ""), block("c", 3, "203.0.113.9", ""),
		block("c", 4, "203.0.113.11", ""), block("c", 5, "203.0.113.11", ""))
	sub := f.subscribe()
	for range 3 {
		sub.hear()
	}
	result := make(chan error, 1)
	go func() {
		result <- f.hub.Verdict(t.Context(), clearance.Request{Container: "c", RequestID: "c:5", Dest: "203.0.113.11", Action: clearance.Allow})
	}()
	until(t, func() bool { f.hub.mu.Lock(); defer f.hub.mu.Unlock(); return f.hub.open.ids["c:5"].busy })
	f.hub.Decided(clearance.Deny, func(e clearance.Event) bool { return e.Dest != "203.0.113.10" })
	diff(t, applied("c:3", "deny", true), sub.hear())
	answer <- false
	if err := get(t, result); err == nil {
		t.Error("it did not fail")
	}
	diff(t, applied("c:5", "allow", false), sub.hear())
	if got := f.hub.Pending(); len(got) != 2 || got[0].RequestID != "c:2" || got[1].RequestID != "c:5" {
		t.Errorf("%+v", got)
	}
	for _, id := range []string{"c:1", "c:3"} {
		r := clearance.Request{Container: "c", RequestID: id, Dest: "203.0.113.9", Action: clearance.Allow}
		if err, ok := f.hub.Verdict(t.Context(), r).(clearance.UnknownRequest); !ok {
			t.Errorf("%s: %v", id, err)
		}
	}
}
