package hub

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/terok-ai/terok-box/wire/clearance"
)

// Drain waits for the slowest subscriber, also for the event that is being
// told, but not for ever.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, err := New(Config{Verdict: func(context.Context, string, string, string) (bool, string) { return true, "" }})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		drain := func() time.Duration {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			began := time.Now()
			h.Drain(ctx)
			return time.Since(began)
		}
		if d := drain(); d != 0 || h.Subscribers() != 0 {
			t.Errorf("with nobody it takes %v", d)
		}
		stop := errors.New("enough")
		told := 0
		go h.Subscribe(t.Context(), func(clearance.Event) error { return nil })
		go h.Subscribe(t.Context(), func(clearance.Event) error {
			if told++; told == 4 {
				return stop
			}
			time.Sleep(time.Second)
			return nil
		})
		synctest.Wait()
		if n := h.Subscribers(); n != 2 {
			t.Errorf("%d subscribers", n)
		}
		for n := 1; n <= 3; n++ {
			if err := h.Ingest(block("c", n, "203.0.113.9", "")); err != nil {
				t.Fatal(err)
			}
		}
		if d := drain(); d < 3*time.Second || d > 4*time.Second || told != 3 {
			t.Errorf("after %v, %d events were told", d, told)
		}
		if err := h.Ingest(block("c", 4, "203.0.113.9", "")); err != nil {
			t.Fatal(err)
		}
		drain()
		if n := h.Subscribers(); n != 1 {
			t.Errorf("%d subscribers", n)
		}
		release := make(chan struct{})
		go h.Subscribe(t.Context(), func(clearance.Event) error { <-release; return stop })
		synctest.Wait() // it is told of the open question
		if err := h.Ingest(block("c", 5, "203.0.113.10", "")); err != nil {
			t.Fatal(err)
		}
		if d := drain(); d != time.Minute {
			t.Errorf("waited %v for one that does not read", d)
		}
		close(release)
	})
}
