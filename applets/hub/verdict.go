package hub

import (
	"context"
	"errors"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/attempt"
	"github.com/terok-ai/terok-box/wire/clearance"
)

const (
	// verdictTimeout bounds how long an answer is carried out.
	verdictTimeout = 10 * time.Second
	// maxAnswers bounds those that are being carried out, also those that
	// were given up and have not ended.
	maxAnswers = 64
)

// Verdict has an answer to a question carried out. The question is known by
// its id, and container and dest must be those that it was asked with: its
// name, or if it has none its address. While it is carried out nobody else can
// answer it. It is carried out even if ctx ends meanwhile; subscribers are
// told what became of it in any case, and before Verdict returns.
//
// The errors are those of package clearance.
func (h *Hub) Verdict(ctx context.Context, r clearance.Request) error {
	if r.Action != clearance.Allow && r.Action != clearance.Deny {
		return clearance.InvalidAction{Action: clean(r.Action)}
	}
	result := make(chan error, 1)
	if err := h.begin(r, result); err != nil {
		return err
	}
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// begin takes the question and has the answer carried out. What becomes of it
// is sent to result.
func (h *Hub) begin(r clearance.Request, result chan<- error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open.expire(time.Now()) {
		h.changed()
	}
	q := h.open.ids[r.RequestID]
	if q == nil || q.busy || h.closed {
		return clearance.UnknownRequest{RequestID: clean(r.RequestID)}
	}
	if t := q.target(); r.Container != t.container || r.Dest != t.dest {
		return clearance.TupleMismatch{
			ExpectedContainer: t.container, ExpectedDest: t.dest,
			GotContainer: clean(r.Container), GotDest: clean(r.Dest),
		}
	}
	q.busy = true
	h.wg.Go(func() {
		ok, stderr := h.carryOut(q.target(), r.Action)
		h.settle(q, r.Action, ok)
		if ok {
			result <- nil
			return
		}
		result <- clearance.ShieldFailed{Action: r.Action, Stderr: stderr}
	})
	return nil
}

// settle says what became of a question. If it could not be carried out, it
// can be answered again, unless it was purged or asked anew meanwhile.
func (h *Hub) settle(q *question, action string, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	q.busy = false
	if ok {
		h.open.answered(q)
		h.changed()
	}
	h.fanOut(q.applied(action, ok))
}

// Decided says that what some of the open questions ask was decided elsewhere:
// those that match are answered, as if by a Verdict, except for those that are
// being carried out. match must not call the hub.
func (h *Hub) Decided(action string, match func(clearance.Event) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for q := range h.open.each {
		newest := h.open.newest[q.target()]
		if newest.busy || !match(*q.event) {
			continue
		}
		h.open.remove(q)
		h.changed()
		if q == newest {
			h.fanOut(q.applied(action, true))
		}
	}
}

// applied is the event that says what became of a question.
func (q *question) applied(action string, ok bool) *clearance.Event {
	return &clearance.Event{
		Type: clearance.VerdictApplied, Container: q.event.Container, RequestID: q.event.RequestID,
		Action: action, OK: ok, Dossier: map[string]string{},
	}
}

// carryOut has an answer carried out, and gives up when that takes too long or
// the hub ends.
func (h *Hub) carryOut(t target, action string) (ok bool, stderr string) {
	type outcome struct {
		ok     bool
		stderr string
	}
	o, err := attempt.Do(h.ctx, h.attempts, func(ctx context.Context) (o outcome) {
		o.ok, o.stderr = h.config.Verdict(ctx, t.container, t.dest, action)
		return o
	})
	if p, ok := errors.AsType[*attempt.Panic](err); ok {
		h.config.Log.Error("carrying a verdict out panicked", "panic", p)
		return false, "internal verdict helper error: " + p.Error()
	}
	if err != nil {
		return false, err.Error()
	}
	if o.ok && o.stderr != "" {
		h.config.Log.Warn("verdict carried out", "container", t.container, "target", t.dest, "action", action, "warning", o.stderr)
	}
	return o.ok, o.stderr
}
