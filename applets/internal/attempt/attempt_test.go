package attempt

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimits(2, 10*time.Second)
		began := time.Now()
		n, err := Do(t.Context(), l, func(context.Context) int { time.Sleep(10*time.Second - 1); return 7 })
		if n != 7 || err != nil || time.Since(began) != 10*time.Second-1 {
			t.Errorf("%d, %v after %v", n, err, time.Since(began))
		}
		_, err = Do(t.Context(), l, func(context.Context) int { panic("it broke") })
		if p, ok := errors.AsType[*Panic](err); !ok || p.Value != "it broke" || p.Error() != "it broke" {
			t.Error(err)
		}
		broken := errors.New("broken")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(broken) })
		heeded := make(chan time.Duration, 1)
		began = time.Now()
		_, err = Do(ctx, l, func(ctx context.Context) int { <-ctx.Done(); heeded <- time.Since(began); return 7 })
		if err != broken && err != nil || <-heeded != time.Second {
			t.Error(err)
		}
		// Those that do not end take their places away until they do.
		hang := make(chan struct{})
		for range 2 {
			began = time.Now()
			_, err = Do(t.Context(), l, func(context.Context) int { <-hang; return 7 })
			if err == nil || err.Error() != "timed out after 10.0s" || err != Timeout(10*time.Second) || time.Since(began) != 10*time.Second {
				t.Errorf("%v after %v", err, time.Since(began))
			}
		}
		if _, err := Do(t.Context(), l, func(context.Context) int { return 7 }); err != ErrBusy {
			t.Error(err)
		}
		close(hang)
		synctest.Wait()
		if n, err := Do(t.Context(), l, func(context.Context) int { return 7 }); n != 7 || err != nil {
			t.Error(n, err)
		}
	})
}
