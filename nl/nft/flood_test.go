package nft

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/ruleset"
)

// A resolver renews what it knows, for another time with every answer and as
// fast as the kernel takes it. A listing that meets an address before and
// after its renewal is still that of our table, so nobody replaces it, and
// nothing that was learned is lost by that.
func TestRenewalsLookNotForeign(t *testing.T) {
	for _, n := range []int{1, 32} { // addresses of a transaction
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			ns := kerneltest.NewNS(t)
			c, resolver := dialIn(t, ns), dialIn(t, ns)
			const addresses = 2048
			if err := c.Apply(build(t, ruleset.Up, ruleset.Params{})); err != nil {
				t.Fatal(err)
			}
			all := many(addresses)
			if err := resolver.Learn(all); err != nil {
				t.Fatal(err)
			}
			var stop atomic.Bool
			done := make(chan error, 1)
			commits := 0
			go func() {
				for i := 0; !stop.Load(); i++ {
					part := all[i*n%addresses:][:n]
					for j := range part {
						part[j].Timeout = time.Hour + time.Duration(i%1000)*time.Second
					}
					if err := resolver.Learn(part); err != nil {
						done <- err
						return
					}
					commits++
				}
				done <- nil
			}()
			states := []ruleset.State{ruleset.Down, ruleset.Up, ruleset.Disengaged, ruleset.Up}
			rounds := 0
			for end := time.Now().Add(3 * time.Second); time.Now().Before(end); rounds++ {
				s := states[rounds%len(states)]
				p := ruleset.Params{Allow: prefixes(fmt.Sprintf("198.51.100.%d/32", rounds%250))}
				if err := c.Apply(build(t, s, p)); err != nil {
					t.Fatalf("round %d, %s: %v", rounds, s, err)
				}
				if _, err := c.Learned(); err != nil {
					t.Fatalf("round %d: %v", rounds, err)
				}
				have, err := c.List()
				if err != nil {
					t.Fatalf("round %d, %s: %v", rounds, s, err)
				}
				if got, err := ruleset.Verify(have, ruleset.Known{}); got != s {
					t.Fatalf("round %d: %s, %v", rounds, got, err)
				}
			}
			stop.Store(true)
			if err := <-done; err != nil && !errors.Is(err, ErrNotLearning) {
				t.Error(err)
			}
			waitFor(t, c, addresses)
			t.Logf("%d rounds, %d transactions of the resolver", rounds, commits)
		})
	}
}
