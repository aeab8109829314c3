package supervisor

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/terok-ai/terok-box/wire/control"
)

// watcherQueue is how many packets wait for a watcher. Of more, the newest
// are lost.
const watcherQueue = 256

// watchers get a copy of every logged packet. The zero value has none.
type watchers struct {
	n atomic.Int32 // of them, so that it costs nothing if there are none

	mu  sync.Mutex
	all map[*watcher]struct{}
}

type watcher struct {
	queue chan control.Packet
	lost  int64 // since the last one that had room
}

// packet passes a packet on and never waits.
func (ws *watchers) packet(p control.Packet) {
	if ws.n.Load() == 0 {
		return
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.all {
		mine := p
		mine.Lost += w.lost
		select {
		case w.queue <- mine:
			w.lost = 0
		default:
			w.lost = mine.Lost + 1
		}
	}
}

// watch calls f with every packet until ctx ends or f fails.
func (ws *watchers) watch(ctx context.Context, f func(control.Packet) error) error {
	w := &watcher{queue: make(chan control.Packet, watcherQueue)}
	ws.mu.Lock()
	if ws.all == nil {
		ws.all = make(map[*watcher]struct{})
	}
	ws.all[w] = struct{}{}
	ws.n.Add(1)
	ws.mu.Unlock()
	defer func() {
		ws.mu.Lock()
		defer ws.mu.Unlock()
		delete(ws.all, w)
		ws.n.Add(-1)
	}()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case p := <-w.queue:
			if err := f(p); err != nil {
				return err
			}
		}
	}
}
