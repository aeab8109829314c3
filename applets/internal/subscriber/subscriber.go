// Package subscriber turns what hubs report into prompts that somebody can
// answer, and the answers into verdicts. A Subscriber is the state of all
// prompts, a Notifier is what shows them (a terminal, a desktop), Hubs
// connects it with the hubs of a user.
//
// Everything received is sanitised again and bounded. It must never import a
// package that shows something, nor one of the kernel's side.
package subscriber

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/terok-ai/terok-box/wire/clearance"
)

const (
	// MaxPrompts bounds the prompts of one container; the one that was quiet
	// for longest makes room.
	MaxPrompts = 256

	maxPrompts   = 2048 // of all containers
	maxRequests  = 8    // request ids that lead to one prompt
	maxPorts     = 8    // that are shown of one prompt
	maxKnown     = 256  // containers whose names are remembered, of one hub
	maxDowns     = 256  // containers whose shield is known to be down, of one hub
	maxVerdicts  = 8    // that a hub carries out at a time
	showTimeout  = 10 * time.Second
	closeTimeout = time.Second
)

const (
	// VerdictTimeout is how long an answer may take. A hub gives up after 10 s.
	VerdictTimeout = 15 * time.Second
	// replayTime is how long after a connection a hub may take to repeat what
	// it still asks.
	replayTime = 2 * time.Second
	// patience is for how long questions are kept of a hub that cannot be
	// reached, and a question that its hub does not know.
	patience = time.Minute
)

// What Act says when there is nothing to be done.
var (
	ErrNoPrompt  = errors.New("there is no such question any more")
	ErrAnswering = errors.New("an answer is being carried out already")
	ErrAction    = errors.New("an answer is allow or deny")
	ErrClosed    = errors.New("nobody listens any more")
)

// Config is what a Subscriber is made of.
type Config struct {
	Notifier   Notifier
	Categories Category // what is shown; the rest is only kept in mind
	Log        *slog.Logger
}

// Subscriber keeps the prompts of any number of hubs and has them shown. Its
// methods are safe for concurrent use and never wait for the notifier.
//
// A prompt is one container's wish to reach one target:
//
//	        block                Act               verdict_applied, or the
//	(none) ───────► asking ──────────► answering ─────► (none)   verdict's reply
//	                │ ▲ ▲ │                │
//	 block: one more┘ │ └─┼────────────────┘
//	 than before ─────┘   │     failed: it can be answered again
//	                      ├─ answered elsewhere, shield down, container
//	                      │  exited, hub gone, too many ───────► (none)
//	              Dismiss │
//	                      ▼         block with a new request
//	                   dismissed ───────────────────────► asking, as a new prompt
type Subscriber struct {
	Config
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup // verdicts
	shower chan struct{}  // closed when the notifier is told nothing more
	wake   chan struct{}

	mu       sync.Mutex
	closed   bool
	hubs     map[string]*Hub
	prompts  map[uint64]*prompt // those that can be answered
	recent   list.List          // of *prompt, dismissed ones too; the one that was blocked last at the end
	lastID   uint64
	lastNote uint64
	queue    queue
	showing  bool
	verdicts int           // under way
	calm     chan struct{} // closed when nothing is under way; nil if nobody waits for it
}

// firstNote is the first ID of what is no prompt, so that the numbers of
// prompts have no gaps.
const firstNote = 1 << 31

// New starts to tell the notifier of what happens; Close ends that.
func New(c Config) *Subscriber {
	s := &Subscriber{
		Config: c, shower: make(chan struct{}), wake: make(chan struct{}, 1),
		hubs: make(map[string]*Hub), prompts: make(map[uint64]*prompt), lastNote: firstNote - 1, queue: newQueue(),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	go s.show()
	return s
}

// Close ends everything that is under way. What is shown stays.
func (s *Subscriber) Close() {
	s.mu.Lock()
	s.closed = true
	for _, h := range s.hubs {
		h.stop()
	}
	s.mu.Unlock()
	s.cancel()
	s.work.Wait()
	select {
	case <-s.shower:
	case <-time.After(closeTimeout): // it is a notifier that does not heed its context
	}
}

// Act answers a prompt with the key of one of its actions. It returns when
// the answer is under way; a second one meanwhile is refused. What becomes of
// it is shown.
func (s *Subscriber) Act(id uint64, key string) error {
	if key != clearance.Allow && key != clearance.Deny {
		return ErrAction
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.prompts[id]
	switch {
	case s.closed:
		return ErrClosed
	case p == nil:
		return ErrNoPrompt
	case p.Answering:
		return ErrAnswering
	}
	p.Answering, p.Action, p.Failed = true, key, ""
	r := p.request(key)
	p.sent, p.heard = r.RequestID, false
	s.verdicts++
	s.work.Go(func() {
		err := p.hub.ask(s.ctx, r)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.verdicts--
		p.concluded(err)
		s.calmed()
	})
	return nil
}

// Dismiss says that somebody has taken a notification away without an answer.
// Its prompt is not shown again before the container is reported to try again,
// and then as a new one.
func (s *Subscriber) Dismiss(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue.forget(id)
	p := s.prompts[id]
	if p == nil {
		for _, h := range s.hubs {
			h.downs = slices.DeleteFunc(h.downs, func(d down) bool { return d.id == id })
		}
		return
	}
	if p.Answering { // many desktops take away what was clicked on
		return
	}
	s.queue.drop(id)
	p.dismissed = true
	delete(s.prompts, id)
}

// Prompts are those that can be answered, the oldest first.
func (s *Subscriber) Prompts() []Prompt {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Prompt, 0, len(s.prompts))
	for _, p := range s.prompts {
		out = append(out, p.seen())
	}
	slices.SortFunc(out, func(a, b Prompt) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Again shows all prompts as if for the first time, to a notifier that has
// forgotten what it showed.
func (s *Subscriber) Again() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(s.prompts)) {
		s.queue.forget(id)
		s.prompts[id].show(Asking)
	}
	for _, h := range s.hubs {
		for _, d := range h.downs {
			s.queue.forget(d.id)
			s.notify(d.shown, false)
		}
	}
}

// Drain waits until no answer is being carried out and everything was shown,
// or ctx ends.
func (s *Subscriber) Drain(ctx context.Context) {
	s.mu.Lock()
	if s.calm == nil {
		s.calm = make(chan struct{})
	}
	calm := s.calm
	s.calmed()
	s.mu.Unlock()
	select {
	case <-calm:
	case <-ctx.Done():
	case <-s.ctx.Done():
	}
}

// calmed tells those who wait for it if nothing is under way.
func (s *Subscriber) calmed() {
	if s.calm != nil && s.verdicts == 0 && !s.showing && s.queue.order.Len() == 0 {
		close(s.calm)
		s.calm = nil
	}
}

// notify has a notification shown; final says that it is not closed later.
func (s *Subscriber) notify(n Notification, final bool) {
	s.queue.notify(n, final)
	s.roused()
}

// notice shows one that is no prompt; the ID is made if there is none.
func (s *Subscriber) notice(n Notification, final bool) uint64 {
	if n.ID == 0 {
		s.lastNote++
		n.ID = s.lastNote
	}
	if n.Timeout == 0 {
		n.Timeout = AsIsCustomary
	}
	s.notify(n, final)
	return n.ID
}

// dismiss takes a notification away.
func (s *Subscriber) dismiss(id uint64, reason string) {
	s.queue.close(id, reason)
	s.roused()
}

// roused has the notifier told what waits.
func (s *Subscriber) roused() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// show tells the notifier what there is to tell until the Subscriber is
// closed.
func (s *Subscriber) show() {
	defer close(s.shower)
	for {
		s.mu.Lock()
		s.showing = false
		it := s.queue.next()
		dropped := s.queue.dropped
		s.queue.dropped = 0
		s.showing = it != nil
		s.calmed()
		s.mu.Unlock()
		if dropped > 0 {
			s.Log.Warn("notifications were left out: they are not shown as fast as they come", "dropped", dropped)
		}
		if it == nil {
			select {
			case <-s.wake:
			case <-s.ctx.Done():
				return
			}
			continue
		}
		if err := s.tell(it); err != nil && s.ctx.Err() == nil {
			s.Log.Warn("a notification could not be shown", "err", err)
			s.mu.Lock()
			if it.notify != nil {
				s.queue.forget(it.id)
			}
			s.mu.Unlock()
		}
		if s.ctx.Err() != nil {
			return
		}
	}
}

func (s *Subscriber) tell(it *item) error {
	ctx, cancel := context.WithTimeout(s.ctx, showTimeout)
	defer cancel()
	switch {
	case it.event != nil:
		if o, ok := s.Notifier.(Observer); ok {
			o.Observe(ctx, *it.event)
		}
		return nil
	case it.notify != nil:
		return s.Notifier.Notify(ctx, *it.notify)
	}
	return s.Notifier.Close(ctx, it.id, it.reason)
}

// room makes room for one more prompt of a container.
func (s *Subscriber) room(h *Hub, container string) {
	own := h.counts[container] >= MaxPrompts
	if !own && s.recent.Len() < maxPrompts {
		return
	}
	var victim *prompt
	for e := s.recent.Front(); e != nil && victim == nil; e = e.Next() {
		if p := e.Value.(*prompt); !p.Answering && (!own || p.hub == h && p.key.container == container) {
			victim = p
		}
	}
	if victim == nil {
		return
	}
	victim.end(TooMany)
	h = victim.hub
	h.evicted++
	for n := h.evicted; ; n /= 10 { // 1, 10, 100 …
		if n == 1 {
			break
		}
		if n%10 != 0 {
			return
		}
	}
	if s.Categories.Has(Blocked) {
		s.notice(Notification{
			Category: Blocked, Identity: victim.Identity, Summary: "Too many questions: " + victim.Identity.Label(),
			Body:    fmt.Sprintf("Left out so far: %d; they are asked again when it tries again.", h.evicted),
			Urgency: Normal, Transient: true,
		}, true)
	}
}
