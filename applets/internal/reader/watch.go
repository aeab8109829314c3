package reader

import (
	"context"
	"time"

	"github.com/terok-ai/terok-box/nl/nflog"
	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/names"
)

// Pauses before the process that refuses names is looked for again: it is
// started again when it has died.
const (
	watchFirst   = 20 * time.Millisecond
	watchLongest = 500 * time.Millisecond
	watchTimeout = 500 * time.Millisecond // to connect
)

const dnsPort = 53

// watch asks about refused names until ctx ends.
func (r *Reader) watch(ctx context.Context) {
	for pause := watchFirst; ; {
		connected, err := r.watchOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		r.report(partNames, err)
		if connected {
			pause = watchFirst
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, watchLongest)
	}
}

// watchOnce asks until the process that refuses names has ended. That there
// is none, as in containers without one, is not an error.
func (r *Reader) watchOnce(ctx context.Context) (connected bool, err error) {
	n, err := r.Bundle.Namer()
	if err != nil || n.Socket == "" || !n.Alive() {
		return false, err
	}
	short, cancel := context.WithTimeout(ctx, watchTimeout)
	defer cancel()
	c, err := names.Dial(short, n.Socket)
	if err != nil {
		return false, err
	}
	defer c.Close()
	r.report(partNames, nil)
	err = c.Watch(ctx, func(q names.Question) error {
		r.refused(q)
		return nil
	})
	if !n.Alive() {
		err = nil
	}
	return true, err
}

// refused has a question about a name asked, if it was refused because nobody
// has decided about it. That of its other kind of addresses is the same. It is
// written to the audit log by who refuses it.
func (r *Reader) refused(q names.Question) {
	if q.Missed > 0 {
		r.missed.Add(uint64(q.Missed))
		r.dropped()
	}
	if q.Verdict != names.Refused || q.Type != "A" && q.Type != "AAAA" || q.Name == "" || q.Name == "." {
		return
	}
	now := time.Now()
	ask := question{key: key{name: q.Name}, at: now, event: event.Event{
		Type: event.Blocked, Container: r.Container, Domain: q.Name, Port: dnsPort, Proto: nflog.UDP, Time: now,
	}}
	r.mu.Lock()
	outcome := r.ledger.claim(ask.key, people, now)
	if outcome == claimed {
		ask.event.ID = r.id()
	}
	r.mu.Unlock()
	switch outcome {
	case repeated:
		r.repeated.Add(1)
	case claimed:
		var err error
		ask.event.Dossier, err = r.dossier.Now()
		r.report(partDossier, err)
		r.ask(ask)
	}
}
