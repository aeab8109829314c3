package reader

import (
	"context"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/audit"
	"github.com/terok-ai/terok-box/wire/event"
)

// Pauses before the start of the container is told again.
const (
	startFirst   = 100 * time.Millisecond
	startLongest = 2 * time.Second
)

// emit delivers questions, after it has said that the container has started.
// When ctx ends the rest is not delivered.
func (r *Reader) emit(ctx context.Context) {
	started, pause := false, startFirst
	retry := time.NewTimer(0)
	defer retry.Stop()
	start := func() bool {
		started = started || r.deliver(event.Event{Type: event.ContainerStarted, Container: r.Container})
		return started
	}
	for {
		select {
		case <-retry.C:
			if !start() {
				retry.Reset(pause)
				pause = min(2*pause, startLongest)
			}
		case q, ok := <-r.asks:
			if !ok {
				return
			}
			r.answered(q, ctx.Err() == nil && start() && r.deliver(q.event))
		}
	}
}

func (r *Reader) deliver(e event.Event) bool {
	err := r.Emit(e)
	r.report(partEmit, err)
	return err == nil
}

// write writes lines of the audit log. When ctx ends the rest is not written.
func (r *Reader) write(ctx context.Context) {
	for l := range r.lines {
		if ctx.Err() != nil {
			r.unwritten(l)
			continue
		}
		err := audit.Append(r.Bundle, l.entry)
		r.report(partAudit, err)
		if err != nil {
			r.unwritten(l)
			continue
		}
		r.mu.Lock()
		r.ledger.settle(l.key, record, l.at, true)
		r.mu.Unlock()
	}
}
