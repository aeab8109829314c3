package hub

import (
	"context"
	"time"
)

// Subscribers is how many there are.
func (h *Hub) Subscribers() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.subs)
}

// Drain returns when every subscriber has taken all events that there are, or
// ctx has ended.
func (h *Hub) Drain(ctx context.Context) {
	const pause = 2 * time.Millisecond
	for h.behind() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// behind reports whether a subscriber has not taken all events.
func (h *Hub) behind() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		if s.busy() {
			return true
		}
	}
	return false
}
