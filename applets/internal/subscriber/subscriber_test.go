package subscriber

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/event"
)

const short = "0123456789ab"

// screen is a notifier that remembers what it shows.
type screen struct {
	mu    sync.Mutex
	log   []string // what it was told, a line each
	shown map[uint64]Notification
	seen  []Notification
	life  []Lifecycle
	fail  error
	stall chan struct{} // nil, or closed when it may go on
}

func (s *screen) wait(ctx context.Context) error {
	s.mu.Lock()
	stall := s.stall
	s.mu.Unlock()
	if stall == nil {
		return nil
	}
	select {
	case <-stall:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *screen) Notify(ctx context.Context, n Notification) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	verb := "show"
	if _, ok := s.shown[n.ID]; ok != n.Replaces {
		return fmt.Errorf("%d replaces %t, is there %t", n.ID, n.Replaces, ok)
	}
	if n.Replaces {
		verb = "replace"
	}
	id := n.ID
	if n.Prompt == nil {
		id = 0
	}
	actions := ""
	for _, a := range n.Actions {
		actions += " [" + a.Label + "]"
	}
	s.log = append(s.log, fmt.Sprintf("%s %d %s | %s%s", verb, id, n.Summary, strings.ReplaceAll(n.Body, "\n", " | "), actions))
	s.seen = append(s.seen, n)
	if n.State == Answered || n.State == Notice && n.Category != ShieldDown {
		delete(s.shown, n.ID)
	} else {
		s.shown[n.ID] = n
	}
	return nil
}

func (s *screen) Close(ctx context.Context, id uint64, reason string) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.shown[id]; !ok {
		return fmt.Errorf("%d is not there to be closed", id)
	}
	delete(s.shown, id)
	if id >= firstNote {
		id = 0
	}
	s.log = append(s.log, fmt.Sprintf("close %d %s", id, reason))
	return nil
}

func (s *screen) Observe(_ context.Context, l Lifecycle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life = append(s.life, l)
}

// told is what it was told since it was asked last.
func (s *screen) told() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	log := s.log
	s.log = nil
	return log
}

// hubStub carries verdicts out.
type hubStub struct {
	mu       sync.Mutex
	requests []clearance.Request
	reply    func(context.Context, clearance.Request) error
}

func (h *hubStub) verdict(ctx context.Context, r clearance.Request) error {
	h.mu.Lock()
	h.requests = append(h.requests, r)
	reply := h.reply
	h.mu.Unlock()
	if reply == nil {
		return nil
	}
	return reply(ctx, r)
}

func (h *hubStub) answers(f func(context.Context, clearance.Request) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reply = f
}

func (h *hubStub) asked() []clearance.Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.requests
	h.requests = nil
	return r
}

// fixture is a subscriber with one hub, in a bubble.
type fixture struct {
	*testing.T
	*Subscriber
	screen *screen
	stub   *hubStub
	hub    *Hub
}

func newFixture(t *testing.T, c Category) *fixture {
	f := &fixture{T: t, screen: &screen{shown: make(map[uint64]Notification)}, stub: &hubStub{}}
	f.Subscriber = New(Config{Notifier: f.screen, Categories: c, Log: slog.New(logTo{t})})
	t.Cleanup(f.Close)
	f.hub = f.Hub("hub", f.stub.verdict)
	f.hub.Connected()
	return f
}

type logTo struct{ t *testing.T }

func (logTo) Enabled(context.Context, slog.Level) bool { return true }
func (l logTo) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "a notification could not be shown" {
		r.Attrs(func(a slog.Attr) bool { l.t.Error(r.Message, a); return true })
	}
	return nil
}
func (l logTo) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l logTo) WithGroup(string) slog.Handler      { return l }

// expect compares what the screen was told.
func (f *fixture) expect(want ...string) {
	f.Helper()
	synctest.Wait()
	if d := cmp.Diff(want, f.screen.told()); d != "" {
		f.Fatalf("shown (-want +got):\n%s", d)
	}
}

func (f *fixture) act(id uint64, action string) {
	f.Helper()
	if err := f.Act(id, action); err != nil {
		f.Fatal(err)
	}
}

func block(request int, domain, dest string, port int64) clearance.Event {
	return clearance.Event{
		Type: event.Blocked, Container: short, RequestID: fmt.Sprintf("%s:%d", short, request), Dest: dest, Domain: domain,
		Port: port, Proto: 6, Dossier: map[string]string{"container_name": "demo", "name": "demo"},
	}
}

func applied(request int, action string, ok bool) clearance.Event {
	return clearance.Event{Type: clearance.VerdictApplied, Container: short, RequestID: fmt.Sprintf("%s:%d", short, request), Action: action, OK: ok}
}

func life(kind, container string) clearance.Event {
	return clearance.Event{Type: kind, Container: container}
}

func bubble(t *testing.T, c Category, f func(*fixture)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(newFixture(t, c)) })
}

const askExample = "Blocked: example.com:443 | Container: demo | Protocol: TCP"

func TestAnswer(t *testing.T) {
	bubble(t, All, func(f *fixture) {
		f.hub.Event(block(1, "example.com", "192.0.2.7", 443))
		f.expect("show 1 " + askExample + " | Address: 192.0.2.7 [Allow] [Deny]")
		f.stub.answers(func(context.Context, clearance.Request) error {
			f.hub.Event(applied(1, clearance.Allow, true)) // before the reply
			return nil
		})
		f.act(1, clearance.Allow)
		f.expect("replace 1 Allowed: example.com | Container: demo")
		want := []clearance.Request{{Container: short, RequestID: short + ":1", Dest: "example.com", Action: clearance.Allow}}
		if d := cmp.Diff(want, f.stub.asked()); d != "" {
			t.Error(d)
		}
		if err := f.Act(1, clearance.Allow); !errors.Is(err, ErrNoPrompt) {
			t.Error(err)
		}
		if p := f.Prompts(); len(p) != 0 {
			t.Error(p)
		}

		// The event of the verdict is lost: the reply is enough.
		f.stub.answers(nil)
		f.hub.Event(block(2, "", "192.0.2.8", 22))
		f.expect("show 2 Blocked: 192.0.2.8:22 | Container: demo | Protocol: TCP [Allow] [Deny]")
		f.act(2, clearance.Deny)
		f.expect("replace 2 Denied: 192.0.2.8 | Container: demo")
		f.hub.Event(applied(2, clearance.Deny, true)) // late
		f.expect()
	})
}

func TestRepeated(t *testing.T) {
	bubble(t, All, func(f *fixture) {
		since := time.Now().Local().Format(time.TimeOnly)
		f.hub.Event(block(1, "example.com", "", 53))
		f.expect("show 1 Blocked: example.com:53 | Container: demo | Protocol: TCP | The name was not looked up [Allow] [Deny]")
		time.Sleep(time.Minute)
		f.hub.Event(block(2, "example.com", "192.0.2.7", 443))
		f.expect("replace 1 " + askExample + " | Blocked 2 times since " + since + " | Address: 192.0.2.7 [Allow] [Deny]")
		e := block(3, "example.com", "192.0.2.8", 853)
		e.Proto = 17
		f.hub.Event(e)
		f.expect("replace 1 Blocked: example.com:853 | Container: demo | Protocol: UDP | Blocked 3 times since " + since +
			" | Address: 192.0.2.8 | Ports tried: TCP 443, UDP 853 [Allow] [Deny]")
		// The newest request is answered, and an answer to an older one given
		// elsewhere is one to the same question.
		f.stub.answers(func(ctx context.Context, r clearance.Request) error { <-ctx.Done(); return ctx.Err() })
		f.act(1, clearance.Allow)
		synctest.Wait()
		if r := f.stub.asked(); len(r) != 1 || r[0].RequestID != short+":3" {
			t.Error(r)
		}
		f.hub.Event(applied(1, clearance.Deny, true))
		f.expect("replace 1 Denied: example.com | Container: demo")
		time.Sleep(VerdictTimeout)
		f.expect()
	})
}

func TestDoubleAnswer(t *testing.T) {
	bubble(t, All, func(f *fixture) {
		done := make(chan struct{})
		f.stub.answers(func(context.Context, clearance.Request) error { <-done; return nil })
		f.hub.Event(block(1, "example.com", "", 443))
		f.act(1, clearance.Allow)
		for range 10 {
			if err := f.Act(1, clearance.Deny); !errors.Is(err, ErrAnswering) {
				t.Error(err)
			}
		}
		if p := f.Prompts(); len(p) != 1 || !p[0].Answering {
			t.Error(p)
		}
		close(done)
		synctest.Wait()
		if n := len(f.stub.asked()); n != 1 {
			t.Errorf("%d verdicts", n)
		}
		if err := f.Act(1, "maybe"); !errors.Is(err, ErrAction) {
			t.Error(err)
		}
	})
}

func TestFailedAnswer(t *testing.T) {
	for name, tt := range map[string]struct {
		err    error
		events []clearance.Event // before the reply
		want   string
	}{
		"shield":      {clearance.ShieldFailed{Action: "allow", Stderr: "no such\ntable"}, []clearance.Event{applied(1, "allow", false)}, "no such table"},
		"silent":      {clearance.ShieldFailed{Action: "allow"}, nil, "allow could not be carried out: "},
		"unreachable": {fmt.Errorf("connect to x: %w", errors.New("refused\x1b[2J")), nil, "connect to x: refused [2J"},
		"unknown":     {clearance.UnknownRequest{RequestID: "1"}, nil, notKnown},
		"long":        {errors.New(strings.Repeat("x", 1000)), nil, strings.Repeat("x", 509) + "..."},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, All, func(f *fixture) {
				f.hub.Event(block(1, "", "192.0.2.7", 443))
				f.expect("show 1 Blocked: 192.0.2.7:443 | Container: demo | Protocol: TCP [Allow] [Deny]")
				f.stub.answers(func(context.Context, clearance.Request) error {
					for _, e := range tt.events {
						f.hub.Event(e)
					}
					return tt.err
				})
				f.act(1, clearance.Allow)
				f.expect("replace 1 Allow failed: 192.0.2.7 | Container: demo | Reason: " + tt.want + " [Allow] [Deny]")
				if p := f.Prompts(); len(p) != 1 || p[0].Failed != tt.want || p[0].Answering {
					t.Error(p)
				}
				f.stub.answers(nil)
				f.act(1, clearance.Deny)
				f.expect("replace 1 Denied: 192.0.2.7 | Container: demo")
			})
		})
	}
}

// A verdict that nobody answers is given up.
func TestVerdictTimeout(t *testing.T) {
	bubble(t, All, func(f *fixture) {
		f.stub.answers(func(ctx context.Context, _ clearance.Request) error { <-ctx.Done(); return context.Cause(ctx) })
		for i := range maxVerdicts + 1 {
			f.hub.Event(block(i, "", fmt.Sprintf("192.0.2.%d", i), 443))
		}
		for i := range maxVerdicts + 1 {
			f.act(uint64(i+1), clearance.Allow)
		}
		synctest.Wait()
		if n := len(f.stub.asked()); n != maxVerdicts {
			t.Errorf("%d at a time", n)
		}
		time.Sleep(VerdictTimeout)
		synctest.Wait()
		for _, p := range f.Prompts() {
			if p.Failed != context.DeadlineExceeded.Error() {
				t.Errorf("%d: %q", p.ID, p.Failed)
			}
		}
	})
}

func TestElsewhere(t *testing.T) {
	bubble(t, All, func(f *fixture) {
		f.hub.Event(block(1, "example.com", "", 443))
		f.screen.told()
		f.hub.Event(applied(7, "allow", true)) // of no prompt of ours
		f.hub.Event(applied(1, "perhaps", true))
		synctest.Wait()
		f.screen.told()
		f.hub.Event(applied(1, "deny", false))
		f.expect("replace 1 Deny failed: example.com | Container: demo | Reason: an answer given elsewhere could not be carried out | The name was not looked up [Allow] [Deny]")
		f.hub.Event(applied(1, "allow", true))
		f.expect("replace 1 Allowed: example.com | Container: demo")
	})
}

// Somebody else's answer is being carried out while we give ours.
func TestRace(t *testing.T) {
	bubble(t, All, func(f *fixture) {
		f.hub.Event(block(1, "", "192.0.2.7", 443))
		f.stub.answers(func(context.Context, clearance.Request) error { return clearance.UnknownRequest{} })
		f.act(1, clearance.Allow)
		synctest.Wait()
		f.screen.told()
		f.hub.Event(applied(1, "deny", false)) // the hub has it again
		f.expect("replace 1 Deny failed: 192.0.2.7 | Container: demo | Reason: an answer given elsewhere could not be carried out [Allow] [Deny]")
		f.stub.answers(func(context.Context, clearance.Request) error { // and in the other order
			f.hub.Event(applied(1, "deny", false))
			return clearance.UnknownRequest{}
		})
		f.act(1, clearance.Allow)
		f.expect("replace 1 Allow failed: 192.0.2.7 | Container: demo | Reason: " + failedElsewhere + " [Allow] [Deny]")
		time.Sleep(2 * patience)
		if len(f.Prompts()) != 1 {
			t.Error("it is gone")
		}
		// The reply to our own may come before its event, too.
		f.stub.answers(func(context.Context, clearance.Request) error { return clearance.ShieldFailed{Stderr: "no"} })
		f.act(1, clearance.Allow)
		f.expect("replace 1 Allow failed: 192.0.2.7 | Container: demo | Reason: no [Allow] [Deny]")
		f.hub.Event(applied(1, "allow", false))
		f.expect()
		f.hub.Event(applied(1, "allow", false)) // but not twice
		f.expect("replace 1 Allow failed: 192.0.2.7 | Container: demo | Reason: " + failedElsewhere + " [Allow] [Deny]")
	})
}

func TestUnknownFades(t *testing.T) {
	bubble(t, All, func(f *fixture) {
		f.hub.Event(block(1, "", "192.0.2.7", 443))
		f.stub.answers(func(context.Context, clearance.Request) error { return clearance.UnknownRequest{} })
		f.act(1, clearance.Allow)
		time.Sleep(patience - time.Second)
		synctest.Wait()
		f.screen.told()
		f.hub.Event(block(2, "", "192.0.2.7", 443)) // asked again in time
		synctest.Wait()
		if p := f.Prompts(); len(p) != 1 || p[0].Failed != "" || p[0].Count != 2 {
			t.Errorf("%+v", p)
		}
		time.Sleep(2 * patience)
		synctest.Wait()
		f.act(1, clearance.Allow)
		time.Sleep(patience)
		synctest.Wait()
		if p := f.Prompts(); len(p) != 0 {
			t.Errorf("%+v", p)
		}
		told := f.screen.told()
		if got, want := told[len(told)-1], "close 1 "+notAsked; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

// The supervisor is killed and comes back.
func TestHubRestart(t *testing.T) {
	bubble(t, All, func(f *fixture) {
		open := map[string]bool{}
		f.stub.answers(func(_ context.Context, r clearance.Request) error {
			switch {
			case !open[r.RequestID]:
				return clearance.UnknownRequest{RequestID: r.RequestID}
			case r.Dest != "example.com" && r.Dest != "192.0.2.8" && r.Dest != "192.0.2.9":
				return clearance.TupleMismatch{}
			}
			return nil
		})
		f.hub.Event(block(1, "example.com", "192.0.2.7", 443))
		f.hub.Event(block(2, "", "192.0.2.8", 443))
		f.hub.Event(block(3, "", "192.0.2.9", 443))
		f.hub.Event(block(4, "", "192.0.2.10", 443))
		synctest.Wait()
		f.screen.told()
		f.hub.Lost()
		f.hub.Lost() // once more, since connecting failed too
		time.Sleep(5 * time.Second)
		open[short+":1"], open[short+":2"], open[short+":9"] = true, true, true
		f.hub.Connected()
		f.hub.Event(block(1, "example.com", "192.0.2.7", 443)) // with the same request
		f.hub.Event(block(9, "", "192.0.2.9", 443))            // with another
		f.expect("replace 3 Blocked: 192.0.2.9:443 | Container: demo | Protocol: TCP | Blocked 2 times since " +
			time.Now().Add(-5*time.Second).Local().Format(time.TimeOnly) + " [Allow] [Deny]")
		time.Sleep(replayTime)
		f.expect() // somebody's answer may be under way
		time.Sleep(VerdictTimeout)
		// 2 is open but was not repeated, 4 was answered elsewhere meanwhile.
		f.expect("close 4 " + elsewhere)
		for _, r := range f.stub.asked() {
			if r.Dest != "" || r.Action != clearance.Deny {
				t.Errorf("%+v", r)
			}
		}
		for _, id := range []uint64{1, 2, 3} {
			f.act(id, clearance.Allow)
		}
		synctest.Wait()
		slices.Sort(f.screen.log)
		f.expect("replace 1 Allowed: example.com | Container: demo", "replace 2 Allowed: 192.0.2.8 | Container: demo", "replace 3 Allowed: 192.0.2.9 | Container: demo")
	})
}

// A hub that does not come back.
func TestHubGone(t *testing.T) {
	bubble(t, All, func(f *fixture) {
		f.hub.Event(block(1, "", "192.0.2.7", 443))
		f.hub.Event(life(event.ShieldDown, "other"))
		synctest.Wait()
		f.screen.told()
		f.hub.Lost()
		time.Sleep(patience - 1)
		f.expect()
		f.hub.Gone()
		time.Sleep(patience - 1)
		f.expect()
		if f.Hub("hub", f.stub.verdict) != f.hub {
			t.Error("another hub")
		}
		time.Sleep(time.Nanosecond)
		f.expect("close 1 "+hubGone, "close 0 "+hubGone)
		f.hub.Connected()
		f.hub.Event(block(1, "", "192.0.2.7", 443))
		f.expect("show 2 Blocked: 192.0.2.7:443 | Container: demo | Protocol: TCP [Allow] [Deny]")
		f.hub.Gone()
		time.Sleep(patience)
		synctest.Wait()
		if f.Hub("hub", f.stub.verdict) == f.hub {
			t.Error("the same hub")
		}
	})
}

// A reader that began to count anew uses a number for something else.
func TestCountedAnew(t *testing.T) {
	bubble(t, All, func(f *fixture) {
		f.hub.Event(block(1, "", "192.0.2.7", 443))
		f.hub.Event(block(1, "", "192.0.2.8", 443))
		f.expect("show 1 Blocked: 192.0.2.7:443 | Container: demo | Protocol: TCP [Allow] [Deny]",
			"show 2 Blocked: 192.0.2.8:443 | Container: demo | Protocol: TCP [Allow] [Deny]")
		f.hub.Event(applied(1, "allow", true))
		f.expect("replace 2 Allowed: 192.0.2.8 | Container: demo")
		f.act(1, "allow")
		f.expect("replace 1 Allow failed: 192.0.2.7 | Container: demo | Reason: " + notKnown + " [Allow] [Deny]")
		if r := f.stub.asked(); len(r) != 0 {
			t.Errorf("%+v", r)
		}
		time.Sleep(patience)
		f.expect("close 1 " + notAsked)
		// It may also be the same once more.
		f.hub.Event(block(5, "", "192.0.2.9", 443))
		f.hub.Event(block(5, "", "192.0.2.9", 443))
		synctest.Wait()
		if p := f.Prompts(); len(p) != 1 || p[0].Count != 2 {
			t.Errorf("%+v", p)
		}
	})
}

func TestDismiss(t *testing.T) {
	bubble(t, All, func(f *fixture) {
		f.hub.Event(block(1, "", "192.0.2.7", 443))
		synctest.Wait()
		f.screen.told()
		dismiss := func(id uint64) {
			f.screen.mu.Lock()
			delete(f.screen.shown, id)
			f.screen.mu.Unlock()
			f.Dismiss(id)
		}
		dismiss(1)
		if err := f.Act(1, "allow"); !errors.Is(err, ErrNoPrompt) {
			t.Error(err)
		}
		if p := f.Prompts(); len(p) != 0 {
			t.Error(p)
		}
		f.hub.Lost()
		f.hub.Connected()
		f.hub.Event(block(1, "", "192.0.2.7", 443)) // repeated by the hub: nothing new
		f.expect()
		time.Sleep(time.Minute)
		f.hub.Event(block(2, "", "192.0.2.7", 443))
		f.expect("show 2 Blocked: 192.0.2.7:443 | Container: demo | Protocol: TCP [Allow] [Deny]")
		dismiss(2)
		f.hub.Event(applied(2, "deny", true))
		f.expect()

		// What was clicked on is taken away by many desktops. The outcome is
		// shown all the same.
		f.hub.Event(block(3, "", "192.0.2.7", 443))
		synctest.Wait()
		f.screen.told()
		reply := make(chan error)
		f.stub.answers(func(context.Context, clearance.Request) error { return <-reply })
		f.act(3, "allow")
		synctest.Wait()
		dismiss(3)
		reply <- errors.New("no")
		f.expect("show 3 Allow failed: 192.0.2.7 | Container: demo | Reason: no [Allow] [Deny]")
		f.act(3, "allow")
		synctest.Wait()
		dismiss(3)
		reply <- nil
		f.expect("show 3 Allowed: 192.0.2.7 | Container: demo")

		// a popup about a shield
		f.hub.Event(life(event.ShieldDown, short))
		synctest.Wait()
		dismiss(firstNote)
		f.screen.told()
		f.hub.Event(life(event.ShieldDown, short))
		f.expect("show 0 Shield down: demo | Outbound firewall bypassed — allowlist is not enforced.")
		f.Dismiss(12345)
	})
}

func TestLifecycle(t *testing.T) {
	bubble(t, All, func(f *fixture) {
		down := "Shield down: demo | Outbound firewall bypassed — allowlist is not enforced."
		disengaged := "Shield disengaged: demo | Outbound firewall disengaged — every destination is reachable."
		f.hub.Event(life(event.ContainerStarted, short))
		f.expect("show 0 Container started: " + short + " | ")
		f.hub.Event(block(1, "", "192.0.2.7", 443))
		other := block(2, "", "192.0.2.7", 443)
		other.Container, other.Dossier = "ba9876543210", nil
		f.hub.Event(other)
		f.expect("show 1 Blocked: 192.0.2.7:443 | Container: demo | Protocol: TCP [Allow] [Deny]",
			"show 2 Blocked: 192.0.2.7:443 | Container: ba9876543210 | Protocol: TCP [Allow] [Deny]")
		f.hub.Event(life(event.ShieldDown, "nobody"))
		synctest.Wait()
		f.screen.told()
		e := life(event.ShieldDown, "demo") // by its name
		e.Dossier = map[string]string{"name": "demo"}
		f.hub.Event(e)
		f.expect("close 1 "+shieldDown, "show 0 "+down)
		f.hub.Event(life(event.ShieldDisengaged, short)) // by its id: an earlier event has told its name
		f.expect("replace 0 " + disengaged)
		f.hub.Event(life(event.ShieldDown, short+"cdef"))
		f.expect("replace 0 " + down)
		f.hub.Event(life(event.ShieldUp, short))
		f.expect("close 0 the shield is up", "show 0 Shield up: demo | Outbound firewall restored.")
		e = life(event.ContainerExited, "demo")
		f.hub.Event(block(3, "", "192.0.2.7", 443))
		synctest.Wait()
		f.screen.told()
		e.Reason = "poststop"
		f.hub.Event(e)
		f.expect("close 3 "+exited, "show 0 Container stopped: demo | Reason: poststop")
		if p := f.Prompts(); len(p) != 1 || p[0].ID != 2 {
			t.Error(p)
		}
		f.hub.Event(life("shield_sideways", short))
		f.hub.Event(life(event.ShieldUp, ""))
		f.expect()

		// A hub of one container: it is always that one.
		f.hub.For("ba9876543210")
		f.hub.Event(life(event.ContainerExited, "a-name"))
		f.expect("close 2 "+exited, "close 0 "+exited, "show 0 Container stopped: a-name | ")
		want := []string{
			event.ContainerStarted, event.ShieldDown, event.ShieldDown, event.ShieldDisengaged, event.ShieldDown, event.ShieldUp,
			event.ContainerExited, event.ContainerExited,
		}
		var got []string
		for _, l := range f.screen.life {
			got = append(got, l.Type)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	})
}

// The filter is about what is shown, not about what is known.
func TestCategories(t *testing.T) {
	bubble(t, Verdict, func(f *fixture) {
		f.hub.Event(block(1, "", "192.0.2.7", 443))
		f.hub.Event(life(event.ShieldUp, short))
		f.hub.Event(life(event.ContainerStarted, short))
		f.expect()
		f.hub.Event(applied(1, "allow", true))
		f.expect("show 1 Allowed: 192.0.2.7 | Container: demo")
	})
	bubble(t, Blocked, func(f *fixture) {
		f.hub.Event(block(1, "", "192.0.2.7", 443))
		f.stub.answers(func(context.Context, clearance.Request) error { return errors.New("no") })
		synctest.Wait()
		f.screen.told()
		f.act(1, "allow")
		f.expect("replace 1 Blocked: 192.0.2.7:443 | Container: demo | Protocol: TCP | Allow failed: no [Allow] [Deny]")
		f.hub.Event(applied(1, "allow", true))
		f.expect("close 1 Allowed")
		f.hub.Event(life(event.ShieldDown, short))
		f.hub.Event(block(2, "", "192.0.2.7", 443))
		synctest.Wait()
		f.screen.told()
		f.hub.Event(life(event.ShieldDisengaged, short))
		f.expect("close 2 " + shieldDown)
	})
	bubble(t, 0, func(f *fixture) {
		f.hub.Event(block(1, "", "192.0.2.7", 443))
		f.act(1, "allow")
		f.hub.Event(life(event.ShieldDown, short))
		f.expect()
		if len(f.screen.life) != 1 {
			t.Error(f.screen.life)
		}
	})
}

// A notifier that does not answer keeps nothing from happening, and when it
// answers again it is shown how things are, not how they were.
func TestSlowNotifier(t *testing.T) {
	bubble(t, All, func(f *fixture) {
		stall := make(chan struct{})
		f.screen.stall = stall
		f.hub.Event(block(0, "", "192.0.2.1", 1))
		synctest.Wait()
		for i := range 100 {
			f.hub.Event(block(i, "", "192.0.2.7", int64(i)))
			f.hub.Event(block(1000+i, "", fmt.Sprintf("198.51.100.%d", i), 443))
			if i < 50 {
				f.hub.Event(applied(1000+i, "allow", true))
			}
		}
		for i := range 1000 {
			f.hub.Event(life(event.ContainerStarted, fmt.Sprint(i)))
		}
		f.act(2, clearance.Allow)
		synctest.Wait()
		if r := f.stub.asked(); len(r) != 1 {
			t.Errorf("%d verdicts", len(r))
		}
		f.mu.Lock()
		waiting := f.queue.order.Len()
		f.mu.Unlock()
		if most := 1 + MaxPrompts + maxNotices; waiting > most {
			t.Errorf("%d wait, want at most %d", waiting, most)
		}
		close(stall)
		synctest.Wait()
		count := map[uint64]int{}
		for _, n := range f.screen.seen {
			count[n.ID]++
		}
		for id, n := range count {
			if n > 1 && id != 1 {
				t.Errorf("%d was shown %d times", id, n)
			}
		}
		for _, p := range f.Prompts() {
			if _, ok := f.screen.shown[p.ID]; !ok {
				t.Errorf("%d is not shown", p.ID)
			}
		}
		if len(f.screen.shown) != len(f.Prompts()) {
			t.Errorf("%d are shown, %d pending", len(f.screen.shown), len(f.Prompts()))
		}
	})
}

// One that hangs is given up, and with Again shown everything.
func TestHangingNotifier(t *testing.T) {
	bubble(t, All, func(f *fixture) {
		f.screen.fail = errors.New("no bus")
		f.Subscriber.Log = slog.New(slog.DiscardHandler)
		f.hub.Event(block(1, "", "192.0.2.7", 443))
		f.hub.Event(block(2, "", "192.0.2.8", 443))
		f.expect()
		f.screen.fail = nil
		f.Again()
		f.expect("show 1 Blocked: 192.0.2.7:443 | Container: demo | Protocol: TCP [Allow] [Deny]",
			"show 2 Blocked: 192.0.2.8:443 | Container: demo | Protocol: TCP [Allow] [Deny]")
		f.hub.Event(life(event.ShieldDown, "x"))
		synctest.Wait()
		f.screen.told()
		f.screen.shown = map[uint64]Notification{}
		f.Again()
		f.expect("show 1 Blocked: 192.0.2.7:443 | Container: demo | Protocol: TCP [Allow] [Deny]",
			"show 2 Blocked: 192.0.2.8:443 | Container: demo | Protocol: TCP [Allow] [Deny]",
			"show 0 Shield down: x | Outbound firewall bypassed — allowlist is not enforced.")

		stall := make(chan struct{})
		defer close(stall)
		f.screen.stall = stall
		f.hub.Event(block(3, "", "192.0.2.9", 443))
		f.hub.Event(block(4, "", "192.0.2.10", 443))
		time.Sleep(2 * showTimeout)
		f.expect()
		f.screen.stall = nil
		f.hub.Event(block(5, "", "192.0.2.9", 443))
		synctest.Wait()
		if n := f.screen.seen[len(f.screen.seen)-1]; n.ID != 3 || n.Replaces {
			t.Errorf("%+v", n)
		}
	})
}

func TestBounds(t *testing.T) {
	bubble(t, All, func(f *fixture) {
		for i := range 3 * MaxPrompts {
			f.hub.Event(block(i, "", fmt.Sprintf("10.0.%d.%d", i/256, i%256), 443))
			f.hub.Event(block(100000+i, "", "10.1.1.1", 443)) // is not quiet
		}
		synctest.Wait()
		all := f.Prompts()
		if len(all) != MaxPrompts {
			t.Errorf("%d prompts", len(all))
		}
		if all[0].Dest != "10.1.1.1" || all[0].Count != 3*MaxPrompts {
			t.Errorf("%+v", all[0])
		}
		var notes int
		for _, n := range f.screen.seen {
			if n.Prompt == nil {
				notes++
				if n.Summary != "Too many questions: demo" {
					t.Errorf("%+v", n)
				}
			}
		}
		if notes != 3 { // 1, 10, 100
			t.Errorf("%d notices", notes)
		}
		// Of other containers, altogether.
		for c := range 20 {
			for i := range 200 {
				e := block(200000+1000*c+i, "", fmt.Sprintf("10.0.0.%d", i), 443)
				e.Container = fmt.Sprintf("c%d", c)
				f.hub.Event(e)
			}
		}
		synctest.Wait()
		if n := len(f.Prompts()); n != maxPrompts {
			t.Errorf("%d prompts", n)
		}
		if n := len(f.hub.requests); n > maxRequests*maxPrompts {
			t.Errorf("%d requests", n)
		}
		if len(f.screen.shown) != maxPrompts {
			t.Errorf("%d are shown", len(f.screen.shown))
		}
		for i := range 2 * maxKnown {
			f.hub.Event(clearance.Event{Type: event.ShieldUp, Container: fmt.Sprintf("k%d", i), Dossier: map[string]string{"name": "n"}})
		}
		if n := len(f.hub.known); n > maxKnown {
			t.Errorf("%d containers are known", n)
		}
		for i := range 2 * maxDowns {
			f.hub.Event(life(event.ShieldDown, fmt.Sprintf("d%d", i)))
		}
		synctest.Wait()
		if n := len(f.hub.downs); n != maxDowns {
			t.Errorf("%d shields are down", n)
		}
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, All)
		f.stub.answers(func(ctx context.Context, _ clearance.Request) error { <-ctx.Done(); return ctx.Err() })
		f.hub.Event(block(1, "", "192.0.2.7", 443))
		f.act(1, "allow")
		f.hub.Lost()
		f.Close()
		f.hub.Event(block(2, "", "192.0.2.7", 443))
		f.hub.Connected()
		if err := f.Act(1, "allow"); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		f.Drain(t.Context())
	})
}

func TestDrain(t *testing.T) {
	bubble(t, All, func(f *fixture) {
		f.Drain(f.Context())
		f.stub.answers(func(context.Context, clearance.Request) error { time.Sleep(time.Second); return nil })
		f.hub.Event(block(1, "", "192.0.2.7", 443))
		f.act(1, "allow")
		begin := time.Now()
		f.Drain(f.Context())
		if d := time.Since(begin); d != time.Second {
			t.Errorf("after %v", d)
		}
		f.expect("show 1 Blocked: 192.0.2.7:443 | Container: demo | Protocol: TCP [Allow] [Deny]", "replace 1 Allowed: 192.0.2.7 | Container: demo")
		f.hub.Event(block(2, "", "192.0.2.7", 443))
		f.act(2, "allow")
		ctx, cancel := context.WithTimeout(f.Context(), time.Millisecond)
		defer cancel()
		f.Drain(ctx)
		time.Sleep(time.Second)
	})
}
