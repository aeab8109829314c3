package notify

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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

// board is a notifier that remembers what is on it.
type board struct {
	mu     sync.Mutex
	log    []string
	popups map[uint32]Popup
	last   uint32
	err    error
	nobody bool
	stall  chan struct{}
	calls  int
	most   int // popups at a time
}

func newBoard() *board { return &board{popups: make(map[uint32]Popup)} }

func (b *board) Notify(ctx context.Context, p Popup) (uint32, error) {
	b.mu.Lock()
	stall := b.stall
	b.calls++
	b.mu.Unlock()
	if stall != nil {
		select {
		case <-stall:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil || b.nobody {
		return 0, b.err
	}
	id, verb := p.Replaces, "replace"
	if _, ok := b.popups[id]; !ok {
		b.last++
		id, verb = b.last, "show"
	}
	p = p.bounded()
	b.popups[id] = p
	b.most = max(b.most, len(b.popups))
	line := fmt.Sprintf("%s %d %s | %s", verb, id, p.Summary, strings.ReplaceAll(p.Body, "\n", " | "))
	for _, a := range p.Actions {
		line += " [" + a.Label + "]"
	}
	b.log = append(b.log, line)
	return id, nil
}

func (b *board) Close(_ context.Context, id uint32) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.popups[id]; ok {
		b.log = append(b.log, fmt.Sprintf("close %d", id))
	}
	delete(b.popups, id)
	return nil
}

func (b *board) Disconnect() {}

func (b *board) set(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

func (b *board) callsSoFar() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls
}

// choose is a click; most desktops take what was clicked on away.
func (b *board) choose(id uint32, key string, away bool) {
	b.mu.Lock()
	p := b.popups[id]
	b.mu.Unlock()
	if p.Chosen != nil {
		p.Chosen(key)
	}
	if away {
		b.gone(id, Dismissed)
	}
}

func (b *board) gone(id uint32, r Reason) {
	b.mu.Lock()
	p := b.popups[id]
	delete(b.popups, id)
	b.mu.Unlock()
	if p.Closed != nil {
		p.Closed(r)
	}
}

// vanish is the end of the desktop.
func (b *board) vanish() {
	b.mu.Lock()
	was := b.popups
	b.popups = make(map[uint32]Popup)
	b.mu.Unlock()
	for _, p := range was {
		if p.Closed != nil {
			p.Closed(Vanished)
		}
	}
}

func (b *board) told() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	log := b.log
	b.log = nil
	return log
}

func (b *board) ids() (ids []uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range b.popups {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// fixture is Popups with a subscriber and a hub, in a bubble.
type fixture struct {
	*testing.T
	*board
	popups *Popups
	sub    *Subscriber
	mu     sync.Mutex
	asked  []clearance.Request
	answer func(clearance.Request) error
}

const short = "0123456789ab"

func bubble(t *testing.T, c PopupsConfig, f func(*fixture)) {
	synctest.Test(t, func(t *testing.T) {
		x := &fixture{T: t, board: newBoard()}
		c.Notifier = x.board
		x.popups = NewPopups(c)
		x.sub = NewSubscriber(SubscriberConfig{Notifier: x.popups, Categories: All, Log: x.popups.Log})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); x.popups.Run(ctx, x.sub) }()
		f(x)
		cancel()
		<-done
		x.sub.Close()
	})
}

func (x *fixture) hub() interface{ Event(clearance.Event) } {
	return x.sub.Hub("hub", func(_ context.Context, r clearance.Request) error {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.asked = append(x.asked, r)
		if x.answer != nil {
			return x.answer(r)
		}
		return nil
	})
}

func blocked(container string, n int) clearance.Event {
	return clearance.Event{
		Type: event.Blocked, Container: container, RequestID: fmt.Sprintf("%s:%d", container, n), Dest: fmt.Sprintf("198.51.100.%d", n), Port: 443, Proto: 6,
		Dossier: map[string]string{"name": "box"},
	}
}

func (x *fixture) block(n int) {
	x.hub().Event(blocked(short, n))
	synctest.Wait()
}

func (x *fixture) event(kind string) {
	x.hub().Event(clearance.Event{Type: kind, Container: short})
	synctest.Wait()
}

func (x *fixture) check(want ...string) {
	x.Helper()
	synctest.Wait()
	if d := cmp.Diff(want, x.told()); d != "" {
		x.Error(d)
	}
}

const box = "Container: box"

func TestQuestion(t *testing.T) {
	for _, away := range []bool{false, true} {
		verb := "replace 1"
		if away {
			verb = "show 2"
		}
		t.Run(fmt.Sprintf("taken away %t", away), func(t *testing.T) {
			bubble(t, PopupsConfig{}, func(x *fixture) {
				x.block(1)
				x.check("show 1 Blocked: 198.51.100.1:443 | " + box + " | Protocol: TCP [Allow] [Deny]")
				// It fails, and the buttons come back.
				x.answer = func(clearance.Request) error { return clearance.ShieldFailed{Action: "allow", Stderr: "no room"} }
				x.choose(1, "allow", away)
				x.check(verb + " Allow failed: 198.51.100.1 | " + box + " | Reason: no room [Allow] [Deny]")
				id := x.ids()[0]
				x.answer = nil
				x.choose(id, "nonsense", false)
				x.check()
				x.choose(id, "deny", away)
				x.choose(id, "deny", away)
				if away {
					verb = "show 3"
				}
				x.check(verb + " Denied: 198.51.100.1 | " + box)
				want := []clearance.Request{
					{Container: short, RequestID: short + ":1", Dest: "198.51.100.1", Action: "allow"},
					{Container: short, RequestID: short + ":1", Dest: "198.51.100.1", Action: "deny"},
				}
				if d := cmp.Diff(want, x.asked); d != "" {
					x.Error(d)
				}
				if n := len(x.popups.entries) + len(x.popups.groups) + x.popups.own + x.popups.notices; n != 0 {
					x.Errorf("%d things are left", n)
				}
			})
		})
	}
}

func TestAnsweredElsewhere(t *testing.T) {
	bubble(t, PopupsConfig{}, func(x *fixture) {
		x.block(1)
		x.block(2)
		x.told()
		x.hub().Event(clearance.Event{Type: clearance.VerdictApplied, Container: short, RequestID: short + ":1", Action: "allow", OK: true})
		x.check("replace 1 Allowed: 198.51.100.1 | " + box)
		x.event(event.ContainerExited)
		x.check("close 2", "show 3 Container stopped: box | ")
		if d := cmp.Diff([]uint32{1, 3}, x.ids()); d != "" { // notices go by themselves
			x.Error(d)
		}
	})
}

func TestDismissed(t *testing.T) {
	bubble(t, PopupsConfig{}, func(x *fixture) {
		x.block(1)
		x.told()
		x.gone(1, Dismissed)
		x.check()
		if p := x.sub.Prompts(); len(p) != 0 {
			x.Errorf("%v", p)
		}
		x.block(1)
		x.told()
		// Whoever closes it without anybody's doing leaves it to be answered elsewhere.
		x.gone(2, Expired)
		x.check()
		if p := x.sub.Prompts(); len(p) != 1 {
			x.Errorf("%v", p)
		}
		x.block(1)
		if log := x.told(); len(log) != 1 || !strings.Contains(log[0], "show 3 Blocked: 198.51.100.1:443 | Container: box | Protocol: TCP | Blocked 2 times since") {
			x.Errorf("%q", log)
		}
	})
}

func TestMany(t *testing.T) {
	opened := 0
	var fails error
	bubble(t, PopupsConfig{List: func() error { opened++; return fails }}, func(x *fixture) {
		for i := range 200 {
			x.block(i + 1)
			time.Sleep(50 * time.Millisecond)
		}
		time.Sleep(summaryPause)
		synctest.Wait()
		if x.most != 6 || len(x.ids()) != 6 {
			x.Errorf("%d popups, at most %d", len(x.ids()), x.most)
		}
		if n := len(x.sub.Prompts()); n != 200 {
			x.Errorf("%d questions", n)
		}
		log := x.told()
		if n := len(log); n > 20 {
			x.Errorf("%d updates in 10 s", n)
		}
		want := "replace 6 195 more blocked in box | " + box + " | 198.51.100.6 | 198.51.100.7 | 198.51.100.8 | 198.51.100.9 | and 191 more [Show the list]"
		if got := log[len(log)-1]; got != want {
			x.Errorf("%s\nwant\n%s", got, want)
		}

		// Another container has its own.
		x.hub().Event(blocked("ba9876543210", 1))
		x.check("show 7 Blocked: 198.51.100.1:443 | " + box + " | Protocol: TCP [Allow] [Deny]")

		// An answer makes room for the next.
		x.choose(1, "allow", true)
		time.Sleep(summaryPause)
		synctest.Wait()
		log = x.told()
		slices.Sort(log)
		x.log = log
		x.check("replace 6 194 more blocked in box | "+box+" | 198.51.100.7 | 198.51.100.8 | 198.51.100.9 | 198.51.100.10 | and 190 more [Show the list]",
			"show 8 Allowed: 198.51.100.1 | "+box, "show 9 Blocked: 198.51.100.6:443 | "+box+" | Protocol: TCP [Allow] [Deny]")

		// Answers in a terminal: one word each would be too many.
		for i := 20; i < 200; i++ {
			x.hub().Event(clearance.Event{Type: clearance.VerdictApplied, Container: short, RequestID: fmt.Sprintf("%s:%d", short, i), Action: "deny", OK: true})
		}
		time.Sleep(summaryPause)
		x.check("replace 6 14 more blocked in box | " + box + " | 198.51.100.7 | 198.51.100.8 | 198.51.100.9 | 198.51.100.10 | and 10 more [Show the list]")

		// The list is opened; the summary does not come back at once.
		x.choose(6, listKey, true)
		synctest.Wait()
		if opened != 1 {
			x.Errorf("opened %d times", opened)
		}
		x.block(201)
		x.check()
		time.Sleep(summaryRest)
		x.check("show 10 15 more blocked in box | " + box + " | 198.51.100.7 | 198.51.100.8 | 198.51.100.9 | 198.51.100.10 | and 11 more [Show the list]")
		fails = errors.New("no terminal")
		x.choose(10, listKey, false)
		x.check("replace 10 15 more blocked in box | " + box + " | 198.51.100.7 | 198.51.100.8 | 198.51.100.9 | 198.51.100.10 | and 11 more | To answer, run in a terminal: clearance-hub clearance")

		// Down: everything of the container goes.
		x.event(event.ShieldDown)
		x.told()
		if d := cmp.Diff([]uint32{7, 8, 11}, x.ids()); d != "" {
			x.Error(d)
		}
	})
}

func TestManyContainers(t *testing.T) {
	bubble(t, PopupsConfig{}, func(x *fixture) {
		for c := range 20 {
			for i := range 8 {
				x.hub().Event(blocked(fmt.Sprintf("%012d", c), i+1))
			}
			synctest.Wait()
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(x.ids()); n != maxTotal+20 { // and summaries
			x.Errorf("%d popups", n)
		}
		if n := len(x.sub.Prompts()); n != 160 {
			x.Errorf("%d questions", n)
		}
		x.hub().Event(clearance.Event{Type: event.ContainerExited, Container: "000000000000"})
		time.Sleep(time.Minute)
		synctest.Wait()
		if x.popups.own != maxTotal {
			x.Errorf("%d have popups of their own", x.popups.own)
		}
	})
}

func TestNobody(t *testing.T) {
	bubble(t, PopupsConfig{}, func(x *fixture) {
		x.set(func() { x.nobody = true })
		x.block(1)
		x.event(event.ContainerStarted) // is old when there is somebody
		x.event(event.ShieldDown)       // is not
		x.block(2)
		x.check()
		calls := x.callsSoFar()
		time.Sleep(10 * time.Minute)
		if n := x.callsSoFar() - calls; n > 25 {
			x.Errorf("%d calls in ten minutes", n)
		}
		x.set(func() { x.nobody = false })
		x.popups.Available()
		synctest.Wait()
		log := x.told()
		for i := range log {
			log[i] = strings.TrimLeft(log[i], "show 12")
		}
		slices.Sort(log)
		x.log = log
		x.check("Blocked: 198.51.100.2:443 | "+box+" | Protocol: TCP [Allow] [Deny]",
			"Shield down: box | Outbound firewall bypassed — allowlist is not enforced.")
	})
}

func TestVanished(t *testing.T) {
	bubble(t, PopupsConfig{}, func(x *fixture) {
		x.event(event.ShieldDown)
		for i := range 7 {
			x.block(i + 1)
		}
		time.Sleep(summaryPause)
		x.told()
		began := time.Now()
		for range 20 { // it dies of what it is shown
			x.vanish()
			x.popups.Available()
			for len(x.ids()) < 7 {
				time.Sleep(time.Second)
				synctest.Wait()
			}
		}
		if d := time.Since(began); d < 30*time.Minute {
			x.Errorf("it was shown everything again twenty times in %v", d)
		}
		time.Sleep(time.Hour)
		x.told()
		x.vanish()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if log := x.told(); len(log) != 7 {
			x.Errorf("%q", log)
		}
	})
}

func TestFailing(t *testing.T) {
	var log syncBuffer
	bubble(t, PopupsConfig{Log: textLog(&log)}, func(x *fixture) {
		x.set(func() { x.err = errors.New("out of order") })
		x.block(1)
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := x.callsSoFar(); n < 10 || n > 30 {
			x.Errorf("%d calls in an hour", n)
		}
		x.set(func() { x.err = nil })
		x.popups.Available() // another one
		x.check("show 1 Blocked: 198.51.100.1:443 | " + box + " | Protocol: TCP [Allow] [Deny]")
	})
	if !strings.Contains(log.String(), "out of order") {
		t.Error(log.String())
	}
}

// Whatever the notifier does, events are not kept waiting.
func TestSlow(t *testing.T) {
	bubble(t, PopupsConfig{}, func(x *fixture) {
		x.set(func() { x.stall = make(chan struct{}) })
		began := time.Now()
		for i := range 100 {
			x.block(i % 50)
			x.event(event.ContainerStarted)
		}
		if d := time.Since(began); d != 0 || x.callsSoFar() != 1 {
			x.Errorf("it took %v, %d calls", d, x.callsSoFar())
		}
		// What it shows meanwhile is answered elsewhere.
		x.hub().Event(clearance.Event{Type: clearance.VerdictApplied, Container: short, RequestID: short + ":0", Action: "allow", OK: true})
		synctest.Wait()
		x.set(func() { close(x.stall); x.stall = nil })
		time.Sleep(time.Minute)
		synctest.Wait()
		log := x.told()
		if !slices.Contains(log, "replace 1 Allowed: 198.51.100.0 | "+box) {
			x.Errorf("%q", log)
		}
		if n := len(log); n > 6+1+maxNotices+6 {
			x.Errorf("%d: %q", n, log)
		}
	})
}

func TestLeave(t *testing.T) {
	b := newBoard()
	synctest.Test(t, func(t *testing.T) {
		p := NewPopups(PopupsConfig{Notifier: b})
		sub := NewSubscriber(SubscriberConfig{Notifier: p, Categories: All, Log: p.Log})
		defer sub.Close()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); p.Run(ctx, sub) }()
		h := sub.Hub("hub", func(context.Context, clearance.Request) error { return nil })
		for i := range 8 {
			h.Event(blocked(short, i+1))
		}
		h.Event(clearance.Event{Type: event.ShieldDown, Container: "ba9876543210"})
		synctest.Wait()
		if n := len(b.ids()); n != 7 {
			t.Errorf("%d popups", n)
		}
		cancel()
		<-done
		if n := len(b.ids()); n != 1 { // that the shield is down stays true
			t.Errorf("%d popups are left", n)
		}
	})
}

// A popup that the desktop is about to show at the end is taken away, too; one
// that does not appear is not waited for.
func TestLeaveWhileShowing(t *testing.T) {
	for name, tt := range map[string]struct {
		takes, want time.Duration
	}{
		"slow":    {leaveTimeout / 2, leaveTimeout / 2},
		"hanging": {10 * leaveTimeout, leaveTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBoard()
			synctest.Test(t, func(t *testing.T) {
				stall := make(chan struct{})
				b.stall = stall
				p := NewPopups(PopupsConfig{Notifier: b})
				sub := NewSubscriber(SubscriberConfig{Notifier: p, Categories: All, Log: p.Log})
				defer sub.Close()
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { defer close(done); p.Run(ctx, sub) }()
				sub.Hub("hub", func(context.Context, clearance.Request) error { return nil }).Event(blocked(short, 1))
				synctest.Wait()
				timer := time.AfterFunc(tt.takes, func() { close(stall) })
				defer timer.Stop()
				began := time.Now()
				cancel()
				<-done
				if d := time.Since(began); d != tt.want {
					t.Errorf("it took %v, not %v", d, tt.want)
				}
				if n := len(b.ids()); n != 0 {
					t.Errorf("%d popups are left", n)
				}
			})
		})
	}
}

// Anything can happen in any order: at rest every question that has a popup of its own is
// on the screen once, others are counted, and nothing else is there.
func TestAnyOrder(t *testing.T) {
	for seed := range uint64(60) {
		bubble(t, PopupsConfig{Own: 3}, func(x *fixture) {
			r := rand.New(rand.NewPCG(seed, 0))
			x.answer = func(clearance.Request) error {
				if len(x.asked)%3 == 0 {
					return clearance.ShieldFailed{Action: "allow", Stderr: "no"}
				}
				return nil
			}
			for range 300 {
				switch r.IntN(12) {
				case 0, 1, 2, 3:
					x.hub().Event(blocked([]string{short, "ba9876543210"}[r.IntN(2)], r.IntN(12)))
				case 4:
					x.hub().Event(clearance.Event{
						Type: clearance.VerdictApplied, Container: short, RequestID: fmt.Sprintf("%s:%d", short, r.IntN(12)), Action: "allow", OK: r.IntN(3) > 0,
					})
				case 5:
					x.hub().Event(clearance.Event{Type: []string{event.ShieldDown, event.ShieldUp, event.ContainerExited}[r.IntN(3)], Container: short})
				case 6, 7:
					if ids := x.ids(); len(ids) > 0 {
						x.choose(ids[r.IntN(len(ids))], []string{"allow", "deny"}[r.IntN(2)], r.IntN(2) == 0)
					}
				case 8:
					if ids := x.ids(); len(ids) > 0 {
						x.gone(ids[r.IntN(len(ids))], Reason(1+r.IntN(4)))
					}
				case 9:
					if r.IntN(5) == 0 {
						x.vanish()
					}
				case 10:
					time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
				case 11:
					x.set(func() {
						if x.stall == nil {
							x.stall = make(chan struct{})
						} else {
							close(x.stall)
							x.stall = nil
						}
					})
				}
				if r.IntN(3) == 0 {
					synctest.Wait()
				}
			}
			x.set(func() {
				if x.stall != nil {
					close(x.stall)
					x.stall = nil
				}
			})
			time.Sleep(time.Hour)
			synctest.Wait()
			p := x.popups
			p.mu.Lock()
			defer p.mu.Unlock()
			own, hidden, seen := 0, 0, make(map[uint32]bool)
			for id, e := range p.entries {
				if e.note.ID != id || e.own && e.hidden {
					x.Errorf("seed %d: %+v", seed, e)
				}
				if e.group == nil {
					if e.popup.dirty || e.final() {
						x.Errorf("seed %d: a notice is left: %+v", seed, e.note)
					}
					continue
				}
				if e.own {
					own++
					if !e.acted && (e.popup.id == 0 || seen[e.popup.id] || e.popup.dirty || x.board.popups[e.popup.id].Summary != e.note.Summary) {
						x.Errorf("seed %d: not on the screen: %+v", seed, e)
					}
				}
				if e.hidden {
					hidden++
				}
				seen[e.popup.id] = true
			}
			groupsOwn, groupsHidden := 0, 0
			for _, g := range p.groups {
				groupsOwn += g.own
				groupsHidden += g.hidden
				if g.own > 3 || g.hidden > 0 && g.own < 3 || g.hidden == 0 && g.popup.id != 0 {
					x.Errorf("seed %d: %d have popups, %d have not: %+v", seed, g.own, g.hidden, g.popup)
				}
				if g.hidden > 0 && (g.popup.id != 0 || g.rest.IsZero()) { // else it was taken away
					if got := x.board.popups[g.popup.id].Summary; got != fmt.Sprintf("%d more blocked in box", g.hidden) {
						x.Errorf("seed %d: %d are hidden, %q is shown", seed, g.hidden, got)
					}
				}
			}
			if own != p.own || own != groupsOwn || hidden != groupsHidden || p.notices != 0 {
				x.Errorf("seed %d: counted %d and %d, are %d and %d, %d notices", seed, p.own, groupsHidden, own, hidden, p.notices)
			}
			// What is on the screen with buttons can be answered.
			for id, on := range x.board.popups {
				if len(on.Actions) > 0 && !seen[id] && on.Actions[0].Key != listKey {
					x.Errorf("seed %d: nobody hears of %d %s", seed, id, on.Summary)
				}
			}
		})
		if t.Failed() {
			return
		}
	}
}
