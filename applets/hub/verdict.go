package hub

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/terok-ai/terok-box/wire/clearance"
)

const (
	// verdictTimeout bounds how long an answer is carried out.
	verdictTimeout = 10 * time.Second
	timedOut       = "timed out after 10.0s"
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
	h.fanOut(&clearance.Event{
		Type: clearance.VerdictApplied, Container: q.event.Container, RequestID: q.event.RequestID,
		Action: action, OK: ok, Dossier: map[string]string{},
	})
}

// carryOut has an answer carried out, and gives up when that takes too long or
// the hub ends.
func (h *Hub) carryOut(t target, action string) (ok bool, stderr string) {
	select {
	case h.slots <- struct{}{}:
	default:
		return false, "too many verdicts are being carried out; try again"
	}
	type outcome struct {
		ok     bool
		stderr string
	}
	ctx, cancel := context.WithTimeout(h.ctx, verdictTimeout)
	defer cancel()
	done := make(chan outcome, 1)
	go func() {
		defer func() { <-h.slots }()
		var o outcome
		defer func() {
			if r := recover(); r != nil {
				h.config.Log.Error("carrying a verdict out panicked", "panic", r)
				o = outcome{false, fmt.Sprintf("internal verdict helper error: %v", r)}
			}
			done <- o
		}()
		o.ok, o.stderr = h.config.Verdict(ctx, t.container, t.dest, action)
	}()
	select {
	case o := <-done:
		if o.ok && o.stderr != "" {
			h.config.Log.Warn("verdict carried out", "container", t.container, "target", t.dest, "action", action, "warning", o.stderr)
		}
		return o.ok, o.stderr
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return false, timedOut
		}
		return false, "the hub is ending"
	}
}
