package hub

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/event"
)

// numberOf is that of the event's id.
func numberOf(t *testing.T, message string) int {
	t.Helper()
	_, rest, _ := strings.Cut(message, `"request_id":"`)
	id, _, ok := strings.Cut(rest, `"`)
	if !ok || !strings.HasPrefix(message, `{"continues":true,`) {
		t.Fatalf("%.200s", message)
	}
	return int(number(id))
}

// Who comes late is asked what is still open, and misses and gets nothing
// twice of what happens meanwhile.
func TestLateSubscriber(t *testing.T) {
	const before, after = 300, 700
	f := start(t, nil)
	for n := 1; n <= before; n++ {
		ingest(t, f.hub, block("c", n, fmt.Sprintf("203.0.113.%d", n%250), "")) // 50 of them are asked again
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	next := make(chan struct{})
	wg.Go(func() {
		for n := before + 1; n <= before+after; n++ {
			ingest(t, f.hub, block("c", n, fmt.Sprintf("2001:db8::%d", n), ""))
			if n%10 == 0 {
				<-next
			}
		}
	})
	for s := range after / 10 {
		c := f.subscribe()
		var got []int
		for len(got) == 0 || got[len(got)-1] < before+s*10+10 {
			got = append(got, numberOf(t, c.hear()))
		}
		for i, n := range got {
			if i == 0 && n != 51 || i > 0 && n != got[i-1]+1 {
				t.Fatalf("subscriber %d got %v", s, got)
			}
		}
		c.Close()
		next <- struct{}{}
	}
}

// What is listed is what a new subscriber is told first.
func TestLateOrder(t *testing.T) {
	f := start(t, nil)
	first, second, third := block("c", 1, "203.0.113.9", ""), block("c", 2, "203.0.113.10", "example.com"), block("c", 3, "203.0.113.9", "")
	third.Port = 80
	ingest(t, f.hub, first, second, third)
	diff(t, []clearance.Event{asked(second), asked(third)}, f.hub.Pending())
	c := f.subscribe()
	diff(t, strings.Replace(blocked("203.0.113.10", 443, 6, "example.com", `{"project":"p"}`), "c:1", "c:2", 1), c.hear())
	diff(t, strings.Replace(blocked("203.0.113.9", 80, 6, "", `{"project":"p"}`), "c:1", "c:3", 1), c.hear())
	ingest(t, f.hub, event.Event{Type: event.ContainerExited, Container: "c", Reason: "poststop"})
	diff(t, `{"continues":true,"parameters":{"event":{"type":"container_exited","container":"c","request_id":"","dest":"","port":0,"proto":0,"domain":"","action":"","ok":false,"reason":"poststop","dossier":{}}}}`, c.hear())
	late := f.subscribe()
	ingest(t, f.hub, event.Event{Type: event.ShieldUp, Container: "marker"})
	diff(t, markerReply, late.hear())
}

// One that does not read keeps nobody from anything, and when it does read
// again has missed the oldest.
func TestStalledSubscriber(t *testing.T) {
	const subscribers, events = 64, 2000
	f := start(t, nil)
	ingest(t, f.hub, block("c", 1, "203.0.113.9", ""))
	stalled := f.subscribe()
	var wg sync.WaitGroup
	var got [subscribers - 1]atomic.Int32
	for s := range got {
		c := f.subscribe()
		wg.Go(func() {
			for n := 1; n <= events; n++ {
				if have := numberOf(t, c.hear()); have != n {
					t.Errorf("subscriber %d got %d instead of %d", s, have, n)
					return
				}
				got[s].Store(int32(n))
			}
		})
	}
	p := dial(t, f.ingest)
	for n := 2; n <= events; n++ {
		line, err := block("c", n, "203.0.113.9", "").Line()
		if err != nil {
			t.Fatal(err)
		}
		p.say(string(line))
		if n%50 == 0 { // what nobody could keep up with is lost by right
			until(t, func() bool {
				for s := range got {
					if int(got[s].Load()) < n-50 {
						return t.Failed()
					}
				}
				return true
			})
		}
	}
	wg.Wait()
	// It gets what the kernel held for it, then the newest.
	last, gaps := 0, 0
	for last < events {
		n := numberOf(t, stalled.hear())
		if n <= last {
			t.Fatalf("%d after %d", n, last)
		}
		if n != last+1 {
			gaps++
			if n <= events-queueDepth {
				t.Errorf("%d after the gap, of %d", n, events)
			}
		}
		last = n
	}
	if gaps != 1 {
		t.Errorf("%d gaps", gaps)
	}
}

// Who misses questions because he is slow is told of those that are still open
// when he has caught up, once.
func TestMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, err := New(Config{Verdict: yes})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		const events = queueDepth + 10
		gate := make(chan struct{})
		var got []int
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- h.Subscribe(ctx, func(e clearance.Event) error {
				<-gate
				got = append(got, int(e.Port))
				return nil
			})
		}()
		synctest.Wait()
		ask := func(n int, dest string) {
			e := block("c", n, dest, "")
			e.Port = int64(n)
			ingest(t, h, e)
			synctest.Wait()
		}
		for n := range events { // of which the first is being told, and the next nine are lost
			ask(n, fmt.Sprintf("203.0.113.%d", n))
		}
		answer := clearance.Request{Container: "c", RequestID: "c:2", Dest: "203.0.113.2", Action: clearance.Allow}
		if err := h.Verdict(t.Context(), answer); err != nil { // loses the tenth
			t.Fatal(err)
		}
		ask(events, "203.0.113.3") // a later one stands for it; loses the eleventh
		close(gate)
		synctest.Wait()
		want := []int{0}
		for n := 12; n < events; n++ {
			want = append(want, n)
		}
		want = append(want, 0, events, 1, 4, 5, 6, 7, 8, 9, 10, 11) // 0 is the verdict's
		diff(t, want, got)
		ask(events+1, "203.0.113.3")
		diff(t, append(want, events+1), got)
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// The depth of a queue, exactly.
func TestQueue(t *testing.T) {
	for _, pushed := range []int{0, 1, queueDepth, queueDepth + 1, 3*queueDepth + 5} {
		s := &subscriber{wake: make(chan struct{}, 1)}
		for n := range pushed {
			s.push(&clearance.Event{Port: int64(n)})
		}
		for n := max(0, pushed-queueDepth); n < pushed; n++ {
			if e := s.pop(); e == nil || e.Port != int64(n) {
				t.Fatalf("%d pushed: %+v instead of %d", pushed, e, n)
			}
		}
		if e := s.pop(); e != nil {
			t.Fatalf("%+v", e)
		}
	}
}

// A subscriber that goes is noticed though nothing happens.
func TestDeparted(t *testing.T) {
	f := start(t, nil)
	var all []*conn
	for range 10 {
		all = append(all, f.subscribe())
	}
	for _, c := range all {
		c.Close()
	}
	until(t, func() bool { return f.subscribers() == 0 })
}

// A subscriber's own failure is what ends it, and nobody else.
func TestSubscribeFails(t *testing.T) {
	h := newHub(t, nil)
	ingest(t, h, block("c", 1, "203.0.113.9", ""))
	broken := errors.New("broken")
	if err := h.Subscribe(t.Context(), func(clearance.Event) error { return broken }); err != broken {
		t.Error(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(broken)
	if err := h.Subscribe(ctx, func(clearance.Event) error { return nil }); err != broken {
		t.Error(err)
	}
	if len(h.subs) > 0 {
		t.Errorf("%d subscribers left", len(h.subs))
	}
}

// A thousand that connect are more than are served. Those that were there go
// on, and when the others are gone there is room again.
func TestThousandConnections(t *testing.T) {
	f := start(t, nil)
	sub := f.subscribe()
	p := dial(t, f.ingest)
	for _, path := range []string{f.ingest, f.clients} {
		var conns []net.Conn
		for range 1000 {
			c, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		p.say(marker)
		diff(t, markerReply, sub.hear())
		for _, c := range conns {
			c.Close()
		}
	}
	if !strings.Contains(f.log.String(), "too many") {
		t.Error("all were served")
	}
	until(t, func() bool {
		c, err := net.Dial("unix", f.clients)
		if err != nil {
			return false
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		c.Write([]byte(`{"method":"org.terok.Clearance1.Nope"}` + "\x00"))
		n, _ := c.Read(make([]byte, 100))
		return n > 0
	})
	until(t, func() bool {
		c, err := net.Dial("unix", f.ingest)
		if err != nil {
			return false
		}
		defer c.Close()
		c.Write([]byte("nonsense from one who was let in\n"))
		time.Sleep(time.Millisecond)
		return strings.Contains(f.log.String(), "who was let in")
	})
}

// The end: within a second, whatever is under way, and nothing is left.
func TestStop(t *testing.T) {
	f := start(t, func(c *Config) {
		c.Verdict = func(ctx context.Context, _, _, _ string) (bool, string) {
			<-ctx.Done()
			return false, "interrupted"
		}
	})
	ingest(t, f.hub, block("c", 1, "203.0.113.9", ""))
	sub, p, idle := f.subscribe(), dial(t, f.ingest), dial(t, f.clients)
	p.say(`{"type":`)
	stalled := f.subscribe()
	asking := dial(t, f.clients)
	asking.say(`{"method":"org.terok.Clearance1.Verdict","parameters":{"container":"c","request_id":"c:1","dest":"203.0.113.9","action":"allow"}}` + "\x00")
	until(t, func() bool { f.hub.mu.Lock(); defer f.hub.mu.Unlock(); return f.hub.open.ids["c:1"].busy })
	for n := range 3000 {
		ingest(t, f.hub, block("c", n+2, "203.0.113.10", ""))
	}
	began := time.Now()
	f.stop()
	if d := time.Since(began); d > time.Second {
		t.Errorf("took %v", d)
	}
	for _, c := range []*conn{sub, p, idle, stalled, asking} {
		c.ended()
	}
	for _, path := range []string{f.ingest, f.clients} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
	noneLeft(t)
}

// If one of the two cannot be served, neither is.
func TestServeFails(t *testing.T) {
	for _, which := range []string{"ingest", "clients"} {
		h := newHub(t, nil)
		a, b := listener(t), listener(t)
		defer a.Close()
		defer b.Close()
		broken, whole := a, b
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		broken = tcp
		result := make(chan error, 1)
		go func() {
			if which == "ingest" {
				result <- h.Serve(t.Context(), broken, whole)
			} else {
				result <- h.Serve(t.Context(), whole, broken)
			}
		}()
		c, err := net.Dial("tcp", tcp.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := get(t, result); err == nil {
			t.Errorf("%s: no error", which)
		}
		if _, err := net.Dial("unix", whole.Addr().String()); err == nil {
			t.Errorf("%s: the other still listens", which)
		}
	}
}

func listener(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// A question is open for a day.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, err := New(Config{Verdict: yes})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		answer := func(n int) error {
			return h.Verdict(t.Context(), clearance.Request{Container: "c", RequestID: fmt.Sprintf("c:%d", n), Dest: fmt.Sprintf("203.0.113.%d", n), Action: clearance.Deny})
		}
		for n := range 10 {
			ingest(t, h, block("c", n, fmt.Sprintf("203.0.113.%d", n), ""))
			time.Sleep(time.Hour)
		}
		time.Sleep(14*time.Hour - time.Nanosecond)
		if n := len(h.Pending()); n != 10 {
			t.Errorf("%d questions", n)
		}
		time.Sleep(time.Nanosecond)
		if _, ok := answer(0).(clearance.UnknownRequest); !ok {
			t.Error("an old question was answered")
		}
		if err := answer(1); err != nil {
			t.Error(err)
		}
		if n := len(h.Pending()); n != 8 {
			t.Errorf("%d questions", n)
		}
		time.Sleep(24 * time.Hour)
		if n := len(h.Pending()); n != 0 {
			t.Errorf("%d questions", n)
		}
		if len(h.open.ids)+len(h.open.newest)+h.open.order.Len() != 0 {
			t.Error("something is left of them")
		}
	})
}

// A scan is a bounded number of questions. Of those that are lost, the ones
// that were asked again go first, and the others from the oldest on.
func TestManyQuestions(t *testing.T) {
	h := newHub(t, nil)
	ingest(t, h, block("c", 1, "203.0.113.9", ""))
	for n := 2; n < 3*maxQuestions; n++ {
		ingest(t, h, block("c", n, "203.0.113.10", ""))
		if n > maxQuestions && len(h.open.ids) != maxQuestions {
			t.Fatalf("%d questions", len(h.open.ids))
		}
	}
	if got := h.Pending(); len(got) != 2 || got[0].RequestID != "c:1" || got[1].RequestID != fmt.Sprintf("c:%d", 3*maxQuestions-1) {
		t.Errorf("%+v", got)
	}
	for n := range 2 * maxQuestions {
		ingest(t, h, block("d", n, fmt.Sprintf("2001:db8::%x", n), ""))
	}
	got := h.Pending()
	if len(got) != maxQuestions || got[0].Dest != fmt.Sprintf("2001:db8::%x", maxQuestions) {
		t.Errorf("%d, from %+v", len(got), got[0])
	}
}
