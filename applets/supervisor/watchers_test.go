package supervisor

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/terok-ai/terok-box/wire/control"
)

// A slow watcher misses packets, the next one it gets counts them, and others
// get all.
func TestWatchers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ws watchers
		ws.packet(control.Packet{Port: 1}) // to nobody
		ctx, cancel := context.WithCancelCause(t.Context())
		stop := errors.New("enough")
		slow, quick := make(chan struct{}), 0
		var got []control.Packet
		done := make(chan error, 3)
		go func() {
			done <- ws.watch(ctx, func(p control.Packet) error {
				<-slow
				got = append(got, p)
				return nil
			})
		}()
		go func() { done <- ws.watch(ctx, func(control.Packet) error { quick++; return nil }) }()
		go func() { done <- ws.watch(ctx, func(control.Packet) error { return stop }) }()
		synctest.Wait()
		const n = 2*watcherQueue + 10
		for i := range n {
			ws.packet(control.Packet{Port: uint16(i), Lost: int64(i % 2)})
			synctest.Wait()
		}
		if err := <-done; !errors.Is(err, stop) {
			t.Error(err)
		}
		close(slow)
		synctest.Wait()
		ws.packet(control.Packet{Port: n})
		synctest.Wait()
		cancel(stop)
		for range 2 {
			if err := <-done; !errors.Is(err, stop) {
				t.Error(err)
			}
		}
		if quick != n+1 {
			t.Errorf("the quick one got %d of %d", quick, n+1)
		}
		// One that is being told, a full queue, and the one after.
		if len(got) != watcherQueue+2 || got[len(got)-1].Port != n {
			t.Fatalf("the slow one got %d, the last %+v", len(got), got[len(got)-1])
		}
		var lost, kernel int64
		for _, p := range got {
			lost += p.Lost
		}
		for i := range n {
			kernel += int64(i % 2)
		}
		if lost+int64(len(got)) != n+1+kernel {
			t.Errorf("%d got and %d counted as lost, of %d and %d lost in the kernel", len(got), lost, n+1, kernel)
		}
		if ws.n.Load() != 0 || len(ws.all) != 0 {
			t.Error("somebody still watches")
		}
	})
}
