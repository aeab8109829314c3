package proxy

import (
	"container/list"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/audit"
	"github.com/terok-ai/terok-box/wire/bundle"
)

const (
	auditAgain = 30 * time.Second // from one line about a name to the next
	auditNames = 1024             // remembered for that
	auditBurst = 50               // lines at once…
	auditRate  = 1                // …and a second from then on
	auditQueue = 64
)

// auditor writes lines about refused names to the container's audit log: not
// every one, however many a container makes up.
type auditor struct {
	b         *bundle.Bundle
	container string
	log       *slog.Logger
	queue     chan audit.Entry
	done      chan struct{}

	mu     sync.Mutex
	closed bool
	last   map[string]*list.Element
	order  *list.List // of told, the latest first
	tokens float64
	at     time.Time
	lost   int
}

type told struct {
	name string
	at   time.Time
}

func newAuditor(b *bundle.Bundle, container string, log *slog.Logger) *auditor {
	a := &auditor{
		b: b, container: container, log: log, queue: make(chan audit.Entry, auditQueue), done: make(chan struct{}),
		last: map[string]*list.Element{}, order: list.New(), tokens: auditBurst, at: time.Now(),
	}
	go func() {
		defer close(a.done)
		for entry := range a.queue {
			if err := audit.Append(a.b, entry); err != nil {
				a.log.Warn("audit", "err", err)
			}
		}
	}()
	return a
}

// close waits for what is queued.
func (a *auditor) close() {
	if a == nil {
		return
	}
	a.mu.Lock()
	if !a.closed {
		a.closed = true
		close(a.queue)
	}
	a.mu.Unlock()
	<-a.done
}

// refused records a name; it never waits.
func (a *auditor) refused(name, reason string) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if a.closed || !a.fresh(name, now) {
		return
	}
	a.tokens = min(a.tokens+now.Sub(a.at).Seconds()*auditRate, auditBurst)
	a.at = now
	if a.tokens < 1 {
		a.lost++
		return
	}
	detail := reason
	if a.lost > 0 {
		detail = fmt.Sprintf("%s; %d more names before this one", reason, a.lost)
	}
	select {
	case a.queue <- audit.Entry{
		Time: now, Container: a.container, Action: audit.Blocked, Port: 53, Proto: "udp", Domain: name, Detail: detail,
	}:
		a.tokens--
		a.lost = 0
	default:
		a.lost++
	}
}

// fresh reports whether a name was not recorded lately.
func (a *auditor) fresh(name string, now time.Time) bool {
	if place, ok := a.last[name]; ok {
		t := place.Value.(*told)
		if now.Sub(t.at) < auditAgain {
			return false
		}
		t.at = now
		a.order.MoveToFront(place)
		return true
	}
	if a.order.Len() >= auditNames {
		oldest := a.order.Back()
		delete(a.last, oldest.Value.(*told).name)
		a.order.Remove(oldest)
	}
	a.last[name] = a.order.PushFront(&told{name, now})
	return true
}
