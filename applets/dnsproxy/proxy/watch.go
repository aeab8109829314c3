package proxy

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/terok-ai/terok-box/wire/names"
)

const (
	maxWatchers  = 16
	maxPending   = 256 // questions that a slow watcher is behind
	maxNameShown = 255 // bytes
)

// watchers are those who see every question.
type watchers struct {
	mu  sync.Mutex
	all map[*watcher]struct{}
}

type watcher struct {
	pending chan names.Question
	missed  int64
}

func (w *watchers) watch(ctx context.Context, f func(names.Question) error) error {
	me := &watcher{pending: make(chan names.Question, maxPending)}
	w.mu.Lock()
	if len(w.all) >= maxWatchers {
		w.mu.Unlock()
		return errors.New("too many watch already")
	}
	if w.all == nil {
		w.all = map[*watcher]struct{}{}
	}
	w.all[me] = struct{}{}
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		delete(w.all, me)
		w.mu.Unlock()
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case q := <-me.pending:
			if err := f(q); err != nil {
				return err
			}
		}
	}
}

// tell passes a question to everybody and waits for nobody.
func (w *watchers) tell(q names.Question) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for me := range w.all {
		q.Missed = me.missed
		select {
		case me.pending <- q:
			me.missed = 0
		default:
			me.missed++
		}
	}
}

func (w *watchers) none() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.all) == 0
}

// report counts what became of a question and tells the watchers.
func (e *Engine) report(q question, verdict, reason string, addresses []string) {
	e.questions.Add(1)
	switch verdict {
	case names.Refused, names.Denied:
		e.refused.Add(1)
		if q.address() {
			e.audit.refused(shown(q.name), reason)
		}
	case names.Failed:
		e.failed.Add(1)
	}
	if e.watchers.none() {
		return
	}
	e.watchers.tell(names.Question{
		Time: time.Now().UTC().Format("2006-01-02T15:04:05.000000Z07:00"),
		Name: shown(q.name), Type: dns.Type(q.qtype).String(), Verdict: verdict, Reason: reason, Addresses: addresses,
	})
}

// shown is a name cut to what is shown of one. In text form it is printable
// ASCII.
func shown(name string) string {
	if len(name) > maxNameShown {
		return name[:maxNameShown-3] + "..."
	}
	return name
}
