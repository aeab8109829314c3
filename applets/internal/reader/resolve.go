package reader

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/audit"
	"github.com/terok-ai/terok-box/nl/nflog"
	"github.com/terok-ai/terok-box/wire/event"
)

// lossPause is from one line of the log about losses to the next.
const lossPause = 10 * time.Second

// question is an event that a person can answer, on its way.
type question struct {
	key   key
	event event.Event
	at    time.Time
}

// line is one of the audit log, on its way.
type line struct {
	key   key
	entry audit.Entry
	at    time.Time
	more  uint64 // destinations before this one that are in no line
}

// resolve finds the names of what packets were sent to, and has people asked
// and lines written. It also says what was lost, which takes a while.
func (r *Reader) resolve(ctx context.Context) {
	names := newResolver(r.Bundle)
	defer names.close()
	var quiet <-chan time.Time // until then nothing is said about losses
	var lost, missed uint64    // said already
	for {
		loss := r.loss
		if quiet != nil {
			loss = nil
		}
		select {
		case b, ok := <-r.found:
			if !ok {
				return
			}
			r.tell(b, names.name(ctx, b.dst))
		case <-loss:
			if n := r.lost.Load() - lost; n > 0 {
				lost += n
				r.Log.Warn("packets were lost: they came faster than they could be read", "count", n)
			}
			if n := r.missed.Load() - missed; n > 0 {
				missed += n
				r.Log.Warn("refused names were lost: they came faster than they could be read", "count", n)
			}
			quiet = time.After(lossPause)
		case <-quiet:
			quiet = nil
		}
	}
}

// tell tells people and the audit log of a packet, as far as they do not know.
func (r *Reader) tell(b blocked, name string) {
	now := time.Now()
	k := (&alias{name: name}).key(b.dst)
	q := question{key: k, at: now}
	l := line{key: k, at: now}
	r.mu.Lock()
	if a := r.aliases[b.dst]; a != nil {
		a.name, a.at, a.pending = name, now, false
	}
	asking, lining := r.ledger.claim(k, people, now), repeated
	if asking == claimed {
		q.event.ID = r.id()
	}
	if r.Audit {
		if lining = r.ledger.claim(k, record, now); lining == claimed {
			l.more = r.ledger.suppressed[record] - r.unlined
			r.unlined += l.more
		}
	}
	r.mu.Unlock()
	if asking == repeated {
		r.repeated.Add(1)
	}
	if asking != claimed && lining != claimed {
		return
	}
	pairs, err := r.dossier.Now()
	r.report(partDossier, err)
	if asking == claimed {
		q.event.Type, q.event.Container = event.Blocked, r.Container
		q.event.Dest, q.event.Domain = b.dst.String(), name
		q.event.Port, q.event.Proto = int64(b.port), int64(b.proto)
		q.event.Dossier, q.event.Time = pairs, b.at
		r.ask(q)
	}
	if lining == claimed {
		l.entry = audit.Entry{
			Time: b.at, Container: r.Container, Action: audit.Blocked, Dest: b.dst.String(), Port: b.port, Proto: protoWord(b.proto),
			Domain: name, Dossier: pairs,
		}
		if l.more > 0 {
			l.entry.Detail = fmt.Sprintf("%d more destinations before this one", l.more)
		}
		select {
		case r.lines <- l:
		default:
			r.unwritten(l)
		}
	}
}

// ask hands a question on, or has it asked later.
func (r *Reader) ask(q question) {
	select {
	case r.asks <- q:
	default:
		r.answered(q, false)
	}
}

// answered notes whether a question was delivered.
func (r *Reader) answered(q question, ok bool) {
	if ok {
		r.asked.Add(1)
	} else {
		r.undelivered.Add(1)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ledger.settle(q.key, people, q.at, ok)
}

// unwritten notes that a line was not written.
func (r *Reader) unwritten(l line) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ledger.settle(l.key, record, l.at, false)
	r.unlined -= l.more
}

func protoWord(n uint8) string {
	switch n {
	case nflog.TCP:
		return "tcp"
	case nflog.UDP:
		return "udp"
	}
	return strconv.Itoa(int(n))
}
