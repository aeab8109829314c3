package dnsmasq

import (
	"context"
	"sync"

	"github.com/terok-ai/terok-box/wire/names"
)

// watchQueue is how many questions wait for a slow watcher.
const watchQueue = 256

// watchers hand questions to those who want to see them. The zero value has
// none.
type watchers struct {
	mu  sync.Mutex
	all map[*watcher]struct{}
}

type watcher struct {
	queue  chan names.Question
	missed int64
}

// watch calls f with what is published from now on.
func (ws *watchers) watch(ctx context.Context, f func(names.Question) error) error {
	w := &watcher{queue: make(chan names.Question, watchQueue)}
	ws.mu.Lock()
	if ws.all == nil {
		ws.all = make(map[*watcher]struct{})
	}
	ws.all[w] = struct{}{}
	ws.mu.Unlock()
	defer func() {
		ws.mu.Lock()
		delete(ws.all, w)
		ws.mu.Unlock()
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case q := <-w.queue:
			if err := f(q); err != nil {
				return err
			}
		}
	}
}

// publish never waits.
func (ws *watchers) publish(q names.Question) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.all {
		q.Missed = w.missed
		select {
		case w.queue <- q:
			w.missed = 0
		default:
			w.missed++
		}
	}
}
