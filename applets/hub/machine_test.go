package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/event"
)

// Whatever happens in whatever order: ids are bounded, none is carried out
// twice, none that was purged comes back, and every subscriber is told what
// happens in the order in which it does, beginning with what is open.
func FuzzHub(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("aabbccddeeffgghhiijjkkllmmnnoopp"))
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 20 {
		ops := make([]byte, 200+n%2)
		for i := range ops {
			ops[i] = byte(r.Uint32())
		}
		f.Add(ops)
	}
	f.Fuzz(func(t *testing.T, ops []byte) {
		if len(ops) > 1000 {
			return
		}
		synctest.Test(t, func(t *testing.T) { newMachine(t).run(ops) })
	})
}

// machine drives a hub and knows what it should do.
type machine struct {
	t   *testing.T
	hub *Hub
	d   disk

	open    map[string]clearance.Event // that can be answered, or are being answered
	busy    map[string]*answer
	n       int // of ids given
	asks    int
	reused  bool // an id, by which an older question may stand for its target again
	scans   int
	history []string // as somebody is told who is always fast
	subs    []*watcher
	calls   chan *answer
}

// answer is a verdict that is being carried out.
type answer struct {
	container, dest, action string
	id                      string
	outcome                 chan bool
	result                  chan error
}

// watcher is a subscriber: one that is stalled takes one event and no more.
type watcher struct {
	first  []string // what was open
	from   int      // in history
	got    []string
	gate   chan struct{} // closed: takes everything
	cancel context.CancelFunc
	ended  chan error
}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, open: make(map[string]clearance.Event), busy: make(map[string]*answer), calls: make(chan *answer, 1)}
	var err error
	m.hub, err = New(Config{Save: m.d.save, Verdict: func(_ context.Context, container, dest, action string) (bool, string) {
		a := &answer{container: container, dest: dest, action: action, outcome: make(chan bool)}
		m.calls <- a
		return <-a.outcome, "no"
	}})
	if err != nil {
		t.Fatal(err)
	}
	m.subscribe(true)
	return m
}

func (m *machine) run(ops []byte) {
	if len(ops)%2 == 0 { // half of them without
		ops = slices.Clone(ops)
		for i := 0; i < len(ops); i += 2 {
			if ops[i]%16 == 5 {
				ops[i] = 0
			}
		}
	}
	for i := 0; i+1 < len(ops); i += 2 {
		m.step(ops[i]%16, ops[i+1])
		synctest.Wait()
		m.consistent()
	}
	for id := range m.busy {
		m.finish(id, false)
	}
	for i, s := range m.subs {
		m.asked(i, s)
	}
	m.hub.Close()
	data, _ := m.d.load()
	next, err := New(Config{Verdict: yes, Restore: data})
	if err != nil {
		m.t.Fatal(err)
	}
	if len(next.open.ids) != len(m.open) {
		m.t.Errorf("%d questions restored, of %d", len(next.open.ids), len(m.open))
	}
	next.Close()
	for i, s := range m.subs {
		m.leave(s)
		m.told(i, s)
	}
}

func (m *machine) step(op, arg byte) {
	container := string('a' + rune(arg%2))
	switch op {
	case 0, 1, 2, 3, 4:
		m.n++
		m.ask(m.n, container, arg)
	case 5: // an id that was there before
		if m.n > 0 {
			m.reused = true
			m.ask(1+int(arg)%m.n, container, arg/16)
		}
	case 6, 7, 8:
		for _, id := range m.ids() {
			if m.busy[id] == nil {
				m.answer(id)
				break
			}
		}
	case 9: // the newest
		if ids := m.ids(); len(ids) > 0 {
			m.answer(ids[len(ids)-1])
		}
	case 10, 11:
		for id := range m.busy {
			m.finish(id, op == 10)
			break
		}
	case 12:
		typ := []string{event.ShieldDown, event.ShieldDisengaged, event.ContainerExited, event.ShieldUp, event.ContainerStarted}[arg/2%5]
		e := event.Event{Type: typ, Container: container}
		ingest(m.t, m.hub, e)
		m.happened(asked(e))
		if arg/2%5 < 3 {
			maps.DeleteFunc(m.open, func(_ string, e clearance.Event) bool { return e.Container == container })
		}
	case 13:
		if len(m.subs) < 20 {
			m.subscribe(arg%2 == 0)
		}
	case 14:
		if i := int(arg) % len(m.subs); i > 0 { // the first hears everything
			m.leave(m.subs[i])
		}
	case 15:
		if arg%8 == 0 && m.scans < 2 {
			m.scans++
			for range 600 {
				m.n++
				m.ask(m.n, container, arg)
			}
		}
	}
}

// ids are those that can be answered, the oldest first.
func (m *machine) ids() []string {
	var ids []string
	for q := range m.hub.open.each {
		if _, ok := m.open[q.event.RequestID]; ok {
			ids = append(ids, q.event.RequestID)
		}
	}
	return ids
}

func (m *machine) ask(n int, container string, arg byte) {
	m.asks++ // which tells all events of questions apart
	e := event.Event{Type: event.Blocked, ID: fmt.Sprintf("x:%d", n), Container: container, Dest: fmt.Sprintf("203.0.113.%d", arg%8), Port: int64(m.asks)}
	if arg%3 == 0 {
		e.Domain = "example.com"
	}
	ingest(m.t, m.hub, e)
	m.open[e.ID] = asked(e)
	if len(m.open) > maxQuestions {
		maps.DeleteFunc(m.open, func(id string, _ clearance.Event) bool { return m.hub.open.ids[id] == nil })
	}
	m.happened(asked(e))
}

func text(e clearance.Event) string { return fmt.Sprintf("%+v", e) }

// happened is called after each event, so that the first subscriber never
// misses one.
func (m *machine) happened(e clearance.Event) {
	synctest.Wait()
	m.history = append(m.history, text(e))
}

// answer begins a verdict, and sees to it that nobody else can.
func (m *machine) answer(id string) {
	e := m.open[id]
	r := clearance.Request{Container: e.Container, RequestID: id, Dest: e.Target(), Action: clearance.Allow}
	if m.busy[id] != nil && m.hub.open.ids[id].busy {
		if _, ok := m.hub.Verdict(m.t.Context(), r).(clearance.UnknownRequest); !ok {
			m.t.Fatalf("%s is answered twice", id)
		}
		return
	}
	if m.busy[id] != nil || len(m.busy) >= maxAnswers { // of a question that had this id before
		return
	}
	wrong := r
	wrong.Dest += "0"
	if _, ok := m.hub.Verdict(m.t.Context(), wrong).(clearance.TupleMismatch); !ok {
		m.t.Fatalf("%s is answered with another target", id)
	}
	result := make(chan error, 1)
	go func() { result <- m.hub.Verdict(m.t.Context(), r) }()
	synctest.Wait()
	select {
	case a := <-m.calls:
		if a.container != e.Container || a.dest != e.Target() {
			m.t.Fatalf("%s is about %s %s, not %s %s", id, e.Container, e.Target(), a.container, a.dest)
		}
		a.id, a.result = id, result
		m.busy[id] = a
	default:
		m.t.Fatalf("%s: %v", id, <-result)
	}
}

// finish ends a verdict.
func (m *machine) finish(id string, ok bool) {
	a := m.busy[id]
	delete(m.busy, id)
	held := m.hub.open.ids[id] != nil && m.hub.open.ids[id].busy
	older := m.ids()
	a.outcome <- ok
	if err := <-a.result; (err == nil) != ok {
		m.t.Fatalf("%s: %v", id, err)
	}
	m.happened(clearance.Event{
		Type: clearance.VerdictApplied, Container: a.container, RequestID: id, Action: a.action, OK: ok, Dossier: map[string]string{},
	})
	if !ok || !held {
		return
	}
	for _, o := range older[:slices.Index(older, id)+1] {
		if e := m.open[o]; e.Container == a.container && e.Target() == a.dest {
			delete(m.open, o)
		}
	}
}

func (m *machine) subscribe(fast bool) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &watcher{from: len(m.history), gate: make(chan struct{}), cancel: cancel, ended: make(chan error, 1)}
	for _, e := range m.hub.Pending() {
		s.first = append(s.first, text(e))
	}
	if fast {
		close(s.gate)
	}
	m.subs = append(m.subs, s)
	go func() {
		s.ended <- m.hub.Subscribe(ctx, func(e clearance.Event) error {
			<-s.gate
			s.got = append(s.got, text(e))
			return nil
		})
	}()
	synctest.Wait()
}

// asked sees to it that somebody who has come to the end of all events knows
// every question that is open.
func (m *machine) asked(i int, s *watcher) {
	if s.ended == nil || m.reused {
		return
	}
	s.read()
	for _, e := range m.hub.Pending() {
		if !slices.Contains(s.got, text(e)) {
			m.t.Errorf("subscriber %d was not told of %s", i, text(e))
		}
	}
}

// read has a subscriber take everything from now on.
func (s *watcher) read() {
	select {
	case <-s.gate:
	default:
		close(s.gate)
	}
	synctest.Wait()
}

// leave ends a subscription, after it has read what it has not yet.
func (m *machine) leave(s *watcher) {
	if s.ended == nil {
		return
	}
	s.read()
	s.cancel()
	if err := <-s.ended; !errors.Is(err, context.Canceled) && err != ErrClosed {
		m.t.Errorf("a subscription ended with %v", err)
	}
	s.ended = nil
}

// told compares what a subscriber was told with what has happened.
func (m *machine) told(i int, s *watcher) {
	n := min(len(s.first), len(s.got))
	if d := cmp.Diff(s.first[:n], append([]string(nil), s.got[:n]...)); d != "" {
		m.t.Errorf("subscriber %d, what was open (-want +got):\n%s", i, d)
	}
	at := s.from
	told := make(map[string]bool)
	for _, e := range s.got[n:] {
		next := slices.Index(m.history[at:], e)
		late := next < 0 && slices.Contains(m.history[s.from:at], e) && strings.HasPrefix(e, "{Type:"+event.Blocked)
		switch {
		case i == 0 && next != 0:
			m.t.Fatalf("the first subscriber was told %s instead of %s", e, m.history[at])
		case late && !told[e]: // he had missed it
		case next < 0:
			m.t.Fatalf("subscriber %d was told out of order, or twice, or what never happened: %s", i, e)
		default:
			at += next + 1
		}
		told[e] = true
	}
	if i == 0 && at != len(m.history) {
		m.t.Errorf("the first subscriber was told %d of %d events", at, len(m.history))
	}
}

// consistent compares the hub with what it should have.
func (m *machine) consistent() {
	m.t.Helper()
	check(m.t, &m.hub.open)
	if len(m.hub.open.ids) != len(m.open) {
		m.t.Fatalf("%d questions, want %d", len(m.hub.open.ids), len(m.open))
	}
	for id, e := range m.open {
		q := m.hub.open.ids[id]
		if q == nil || q.event.Port != e.Port || q.target() != (target{e.Container, e.Target()}) {
			m.t.Fatalf("%s is %+v, want %+v", id, q, e)
		}
		if q.busy && m.busy[id] == nil {
			m.t.Fatalf("%s is answered by nobody", id)
		}
	}
}

// Time goes on as well: what is saved is never older than 50 ms.
func TestSavedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := rand.New(rand.NewPCG(3, 4))
		for range 80 { // for less than the 10 s after which verdicts fail
			m.step(byte(r.Uint32N(13)), byte(r.Uint32()))
			time.Sleep(time.Duration(r.Uint32N(60)) * time.Millisecond)
			synctest.Wait()
			m.consistent()
			open := len(m.open)
			time.Sleep(saveDelay)
			synctest.Wait()
			data, _ := m.d.load()
			var s state
			if len(data) > 0 {
				if err := json.Unmarshal(data, &s); err != nil {
					t.Fatal(err)
				}
			}
			if len(s.Pending) != open {
				t.Fatalf("%d questions saved, of %d", len(s.Pending), open)
			}
		}
		m.run(nil)
	})
}
