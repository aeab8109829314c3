package hub

import (
	"context"
	"sync"

	"github.com/terok-ai/terok-box/wire/clearance"
)

// queueDepth is how many events wait for a subscriber. Of more, the oldest
// are lost.
const queueDepth = 128

// subscriber is somebody who is told of events, and those he was not told of
// yet.
type subscriber struct {
	wake chan struct{} // holds one element if there is something in the queue

	mu    sync.Mutex
	taken bool // the last one that was popped is being told
	queue [queueDepth]*clearance.Event
	first int // in queue
	n     int
}

// push adds an event and never waits.
func (s *subscriber) push(e *clearance.Event) {
	s.mu.Lock()
	if s.n == queueDepth {
		s.first = (s.first + 1) % queueDepth
		s.n--
	}
	s.queue[(s.first+s.n)%queueDepth] = e
	s.n++
	s.mu.Unlock()
	signal(s.wake)
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
// is slow misses events: the oldest of those that wait. f must not change
// them.
func (h *Hub) Subscribe(ctx context.Context, f func(clearance.Event) error) error {
	s := &subscriber{wake: make(chan struct{}, 1)}
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
		s.push(e)
	}
}
