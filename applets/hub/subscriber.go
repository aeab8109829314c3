package hub

import (
	"context"
	"maps"
	"sync"

	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/event"
)

// queueDepth is how many events wait for a subscriber. Of more, the oldest
// are lost.
const queueDepth = 128

// subscriber is somebody who is told of events, and those he was not told of
// yet.
type subscriber struct {
	wake chan struct{}                 // holds one element if there is something in the queue
	lost map[*clearance.Event]struct{} // questions that he missed; guarded by the hub's lock

	mu    sync.Mutex
	taken bool // the last one that was popped is being told
	queue [queueDepth]*clearance.Event
	first int // in queue
	n     int
}

// push adds an event and never waits. It returns the one that is lost for it;
// nil if none is.
func (s *subscriber) push(e *clearance.Event) (lost *clearance.Event) {
	s.mu.Lock()
	if s.n == queueDepth {
		lost = s.queue[s.first]
		s.first = (s.first + 1) % queueDepth
		s.n--
	}
	s.queue[(s.first+s.n)%queueDepth] = e
	s.n++
	s.mu.Unlock()
	signal(s.wake)
	return lost
}

// pop takes the oldest event; nil if there is none.
func (s *subscriber) pop() *clearance.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken = s.n > 0
	if s.n == 0 {
		return nil
	}
	e := s.queue[s.first]
	s.queue[s.first] = nil
	s.first = (s.first + 1) % queueDepth
	s.n--
	return e
}

// busy reports whether there are events that he was not told of.
func (s *subscriber) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken || s.n > 0
}

// signal puts an element into a channel that holds one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Subscribe calls f with the questions that are open, and with every event
// from then on, until f fails or ctx or the hub ends, and returns why. Who
// is slow misses events: the oldest of those that wait. If questions were among
// them he is told of those that are still open when he has come to the end of
// the rest. f must not change what it is called with.
func (h *Hub) Subscribe(ctx context.Context, f func(clearance.Event) error) error {
	s := &subscriber{wake: make(chan struct{}, 1), lost: make(map[*clearance.Event]struct{})}
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return ErrClosed
	}
	pending := h.pending()
	h.subs[s] = struct{}{}
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.subs, s)
		h.mu.Unlock()
	}()

	for {
		var e *clearance.Event
		if len(pending) > 0 {
			e, pending = pending[0], pending[1:]
		} else {
			e = s.pop()
			if e == nil {
				if pending = h.missed(s); len(pending) > 0 {
					continue
				}
			}
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case h.ctx.Err() != nil:
			return ErrClosed
		case e != nil:
			if err := f(*e); err != nil {
				return err
			}
			continue
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
		case <-h.ctx.Done():
		}
	}
}

// fanOut gives an event to everybody who subscribed. The caller holds the
// lock, so that all get events in the same order.
func (h *Hub) fanOut(e *clearance.Event) {
	for s := range h.subs {
		lost := s.push(e)
		if lost == nil || lost.Type != event.Blocked {
			continue
		}
		s.lost[lost] = struct{}{}
		if len(s.lost) > 2*maxQuestions {
			maps.DeleteFunc(s.lost, func(e *clearance.Event, _ struct{}) bool { return !h.open.isNewest(e) })
		}
	}
}

// missed are the questions that are open and that a subscriber was not told
// of. It has no effect on one for whom events wait.
func (h *Hub) missed(s *subscriber) (events []*clearance.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(s.lost) == 0 || s.waits() {
		return nil
	}
	for _, e := range h.pending() {
		if _, ok := s.lost[e]; ok {
			events = append(events, e)
		}
	}
	clear(s.lost)
	return events
}

// waits reports whether there is something in the queue.
func (s *subscriber) waits() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n > 0
}
