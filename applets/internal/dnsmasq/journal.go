package dnsmasq

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/audit"
	"github.com/terok-ai/terok-box/applets/internal/learned"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/wire/names"
)

const (
	maxOpen       = 1024             // questions whose answer is waited for
	maxAddresses  = 64               // of one answer
	answerTimeout = 10 * time.Second // dnsmasq has given up by then
	// A refused name is written down again after this time, and so many
	// others meanwhile.
	auditAgain = 30 * time.Second
	maxAudited = 256
)

// question is one that the log has told of.
type question struct {
	serial   serial
	name     string
	typ      string
	asked    time.Time
	answered int // the tick in which a part of the answer came; 0: none yet
	local    bool
	failure  string
	addrs    []netip.Addr
	done     bool
}

// journal makes of the log's lines what the container has asked for, and has
// what was opened renewed.
type journal struct {
	e *engine

	mu        sync.Mutex
	log       *follower
	ticks     int
	questions map[serial]*question
	order     []*question // of the questions, by age; done ones, too
	audited   map[string]time.Time
	quiet     bool // of the last tick's error something was said

	total, refused, failed int64
}

func newJournal(dir string, e *engine) *journal {
	return &journal{e: e, log: newFollower(dir), questions: map[serial]*question{}, audited: map[string]time.Time{}}
}

func (j *journal) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.log.close()
}

func (j *journal) counts() (total, refused, failed int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.total, j.refused, j.failed
}

// replay reads what a former life of this process has left, for the names of
// addresses only: what was opened then may be closed by now, and stay so.
func (j *journal) replay() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	seen := make(map[string][]netip.Addr)
	err := j.log.poll(func(s string) {
		if l, ok := parseLine(s); ok {
			j.note(l, seen, nil)
		}
	})
	for name, addrs := range seen {
		j.e.learned.See(name, addrs)
	}
	j.questions, j.order = map[serial]*question{}, nil
	j.total, j.refused, j.failed = 0, 0, 0
	return err
}

// tick reads the log and ends the questions that nothing more will be said
// about.
func (j *journal) tick(ctx context.Context) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ticks++
	j.read(ctx)
	now := time.Now()
	for _, q := range j.order {
		if q.answered > 0 && q.answered < j.ticks || now.Sub(q.asked) > answerTimeout {
			j.finish(q)
		}
	}
	j.order = slices.DeleteFunc(j.order, func(q *question) bool { return q.done })
}

// catchUp reads the log.
func (j *journal) catchUp(ctx context.Context) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.read(ctx)
}

func (j *journal) read(ctx context.Context) {
	// By name: what it was answered with, and what of that was opened.
	seen, found := make(map[string][]netip.Addr), make(map[string][]netip.Addr)
	err := j.log.poll(func(s string) {
		if l, ok := parseLine(s); ok {
			j.note(l, seen, found)
		}
	})
	if err != nil && !j.quiet {
		j.e.Log.Error("what dnsmasq opens is not known", "err", err)
	}
	j.quiet = err != nil
	for name, addrs := range seen {
		if _, ok := found[name]; !ok {
			j.e.learned.See(name, addrs)
		}
	}
	for name, addrs := range found {
		j.opened(ctx, name, addrs)
	}
}

// note takes a line. seen gets the addresses that a name is answered with,
// and found, unless it is nil, those that dnsmasq opens.
func (j *journal) note(l line, seen, found map[string][]netip.Addr) {
	if l.kind == rebound {
		for _, q := range slices.Backward(j.order) {
			if q.name == l.name && q.answered == 0 && !q.done {
				q.answered, q.failure = max(j.ticks, 1), "answered with a private address"
				break
			}
		}
		return
	}
	q := j.questions[l.serial]
	if l.kind == asked {
		if l.name == probeName { // asked by this process
			return
		}
		if q != nil { // the number was used before
			j.finish(q)
		}
		if len(j.questions) >= maxOpen {
			for _, old := range j.order {
				j.finish(old)
			}
			j.order = j.order[:0]
		}
		q = &question{serial: l.serial, name: l.name, typ: l.text, asked: time.Now()}
		j.questions[l.serial] = q
		j.order = append(j.order, q)
		return
	}
	switch {
	case l.kind == opened && found != nil:
		name := l.name // at least an entry that covers it
		if q != nil {
			name = q.name
		}
		add(found, name, l.addr)
	case l.kind == answered && q != nil:
		q.answered = max(j.ticks, 1)
		q.local = q.local || l.local
		// Text of other types may look like an address.
		if is4 := q.typ == "A"; l.addr.IsValid() && (is4 || q.typ == "AAAA") && l.addr.Is4() == is4 {
			if len(q.addrs) < maxAddresses && !slices.Contains(q.addrs, l.addr) {
				q.addrs = append(q.addrs, l.addr)
			}
			add(seen, q.name, l.addr)
			return
		}
		if l.name == "error" {
			q.failure = "the name server failed"
		}
	}
}

func add(to map[string][]netip.Addr, name string, a netip.Addr) {
	if !slices.Contains(to[name], a) {
		to[name] = append(to[name], a)
	}
}

// opened has addresses that dnsmasq has just opened stay open for as long as
// the answer is good: it does not renew what is there already.
func (j *journal) opened(ctx context.Context, name string, addrs []netip.Addr) {
	e := j.e
	if !e.ours { // the sets of another program
		e.learned.See(name, addrs)
		return
	}
	err := learned.ErrNotAllowed
	if e.allows(name) {
		var answers []learned.Answer
		for _, a := range addrs {
			answers = append(answers, learned.Answer{Addr: a, TTL: maxTTL})
		}
		err = e.learned.Learn(ctx, e.learned.Life(), name, answers)
	}
	if err == nil {
		return
	}
	e.learned.See(name, addrs)
	if errors.Is(err, nft.ErrNotLearning) {
		return
	}
	// Nobody would close it when its name is no longer allowed.
	stray := slices.DeleteFunc(slices.Clone(addrs), e.owned)
	if err := e.shut(stray); err != nil {
		e.Log.Error("an address stays open until it expires", "name", name, "err", err)
	}
	if !errors.Is(err, learned.ErrNotAllowed) {
		e.Log.Warn("an address was closed again", "name", name, "err", err)
	}
}

// finish says what became of a question.
func (j *journal) finish(q *question) {
	if q.done {
		return
	}
	q.done = true
	if j.questions[q.serial] == q {
		delete(j.questions, q.serial)
	}
	r := j.e.current()
	d := r.names.Decide(q.name)
	out := names.Question{
		Time: q.asked.UTC().Format("2006-01-02T15:04:05.000000Z07:00"),
		Name: q.name, Type: q.typ, Reason: q.failure, Addresses: []string{},
	}
	for _, a := range q.addrs {
		out.Addresses = append(out.Addresses, a.String())
	}
	refusal, why := names.Refused, "not on this container's list"
	if d.Denied {
		refusal, why = names.Denied, "denied by "+d.Entry()
	}
	switch {
	case d.Allowed && q.answered == 0:
		out.Verdict, out.Reason = names.Failed, "no answer"
	case d.Allowed && q.failure != "":
		out.Verdict = names.Failed
	case d.Allowed && q.local:
		// Only bogus-nxdomain answers in the place of a server then.
		out.Verdict, out.Reason = names.Failed, "answered with an address that is not public"
	case d.Allowed:
		out.Verdict = names.Allowed
	case q.answered > 0 && !q.local:
		out.Verdict, out.Reason = names.Resolved, why
	default:
		out.Verdict, out.Reason = refusal, why
	}
	j.total++
	switch out.Verdict {
	case names.Refused, names.Denied:
		j.refused++
		j.audit(q, why)
	case names.Failed:
		j.failed++
	}
	j.e.watch.publish(out)
}

// audit writes a line about a name that was refused, not for every time.
func (j *journal) audit(q *question, why string) {
	if !j.e.Spec.Audit || q.typ != "A" && q.typ != "AAAA" {
		return
	}
	now := time.Now()
	if last, ok := j.audited[q.name]; ok && now.Sub(last) < auditAgain {
		return
	}
	if len(j.audited) >= maxAudited {
		for name, last := range j.audited {
			if now.Sub(last) >= auditAgain {
				delete(j.audited, name)
			}
		}
		if len(j.audited) >= maxAudited {
			return
		}
	}
	j.audited[q.name] = now
	if err := audit.Append(j.e.Bundle, audit.Entry{
		Container: j.e.Spec.Container, Action: audit.Blocked, Domain: q.name, Port: dnsPort, Proto: "udp", Detail: why,
	}); err != nil {
		j.e.Log.Error("write the audit log", "err", err)
	}
}
