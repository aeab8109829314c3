// Package attempt has something done that may take too long, break, or never
// end, without doing any of this itself.
//
// It must never import another package of this project.
package attempt

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrBusy says that too much is under way.
var ErrBusy = errors.New("too much of this is under way; try again")

// Timeout is an attempt that was given up after so long.
type Timeout time.Duration

func (e Timeout) Error() string {
	return fmt.Sprintf("timed out after %.1fs", time.Duration(e).Seconds())
}

// Panic is an attempt that broke, and what it said.
type Panic struct{ Value any }

func (e *Panic) Error() string { return fmt.Sprint(e.Value) }

// Limits are those of a kind of attempts.
type Limits struct {
	timeout time.Duration
	slots   chan struct{} // holds one element for each that has not ended
}

// NewLimits are for as many at a time, also of those that were given up and
// have not ended.
func NewLimits(number int, timeout time.Duration) *Limits {
	return &Limits{timeout: timeout, slots: make(chan struct{}, number)}
}

// Do calls f in a goroutine of its own and returns what that does, or ErrBusy,
// Timeout or *Panic, or why ctx ended. The context of f ends when it is given
// up; if it goes on all the same, what it returns is lost.
func Do[T any](ctx context.Context, l *Limits, f func(context.Context) T) (T, error) {
	var none T
	select {
	case l.slots <- struct{}{}:
	default:
		return none, ErrBusy
	}
	ctx, cancel := context.WithTimeoutCause(ctx, l.timeout, Timeout(l.timeout))
	type outcome struct {
		value T
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		defer func() {
			if r := recover(); r != nil {
				o = outcome{err: &Panic{r}}
			}
			<-l.slots
			done <- o
		}()
		o.value = f(ctx)
	}()
	defer cancel()
	select {
	case o := <-done:
		return o.value, o.err
	case <-ctx.Done():
	}
	select {
	case o := <-done: // in time
		return o.value, o.err
	default:
		return none, context.Cause(ctx)
	}
}
