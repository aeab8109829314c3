package subscriber

import (
	"container/list"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/sanitize"
)

// key is what makes two blocks the same question of a hub.
type key struct{ container, target string }

// prompt is a Prompt with what nobody sees.
type prompt struct {
	Prompt
	sub       *Subscriber
	hub       *Hub
	key       key
	place     *list.Element
	requests  []string // ids that the hub knows it by, the newest last; none if it forgot it
	lost      *time.Timer
	epoch     int    // of the hub when it last asked
	sent      string // request id of our own verdict
	heard     bool   // an event has come since, that an answer failed
	dismissed bool   // and not to be seen
	ended     bool
}

// seen is a copy for others.
func (p *prompt) seen() Prompt {
	c := p.Prompt
	c.Ports = slices.Clone(p.Ports)
	return c
}

// request is the verdict that the hub is asked for.
func (p *prompt) request(action string) clearance.Request {
	r := clearance.Request{Container: p.key.container, Dest: p.key.target, Action: action}
	if n := len(p.requests); n > 0 {
		r.RequestID = p.requests[n-1]
	}
	return r
}

// show tells the notifier of it, if it is to be seen.
func (p *prompt) show(s State) {
	if p.dismissed || p.ended {
		return
	}
	seen := p.seen()
	n := Notification{
		ID: p.ID, Category: Blocked, State: s, Actions: answers(), Urgency: Critical, Resident: true, Timeout: Never,
		Identity: p.Identity, Prompt: &seen,
	}
	n.Summary, n.Body = seen.Text()
	if p.Failed != "" {
		n.State = Failed
		if p.sub.Categories.Has(Verdict) {
			n.Category = Verdict
			n.Summary, n.Body = seen.failure()
		}
	}
	if p.sub.Categories.Has(n.Category) {
		p.sub.notify(n, false)
	}
}

// block is one more attempt of the container.
func (p *prompt) block(e clearance.Event, now time.Time) {
	p.Domain, p.Dest, p.Port, p.Proto, p.Last = e.Domain, e.Dest, e.Port, e.Proto, now
	p.Count++
	p.sub.recent.MoveToBack(p.place)
	if e.Dest == "" { // it was a question about a name, which goes to no port of the target
		return
	}
	port := Port{e.Proto, e.Port}
	p.Ports = append(slices.DeleteFunc(p.Ports, func(q Port) bool { return q == port }), port)
	p.Ports = p.Ports[max(0, len(p.Ports)-maxPorts):]
}

// known notes a request id that the hub has for it now.
func (p *prompt) known(id string) {
	p.found()
	p.epoch = p.hub.epoch
	p.requests = append(slices.DeleteFunc(p.requests, func(r string) bool { return r == id }), id)
	for ; len(p.requests) > maxRequests; p.requests = p.requests[1:] {
		delete(p.hub.requests, p.requests[0])
	}
	p.hub.requests[id] = p
}

// unknown notes that the hub does not have it any more, as it seems: somebody
// else's answer may be under way, which can fail, and it can be asked again.
// Until then, but not for longer than d, it is kept.
func (p *prompt) unknown(d time.Duration, reason string) {
	if p.lost != nil || p.ended {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		p.sub.mu.Lock()
		defer p.sub.mu.Unlock()
		if p.lost != t || p.ended {
			return
		}
		p.lost = nil
		if !p.Answering { // else its outcome tells
			p.end(reason)
		}
	})
	p.lost = t
}

// found notes that it has.
func (p *prompt) found() {
	if p.lost != nil {
		p.lost.Stop()
		p.lost = nil
	}
}

// Reasons for which prompts go.
const (
	notAsked   = "it is not asked any more"
	elsewhere  = "it was answered elsewhere, or is too old"
	shieldDown = "the shield is down"
	exited     = "the container has exited"
	hubGone    = "the hub is gone"
)

// TooMany is the reason for which a prompt goes that has to make room.
const TooMany = "there are too many questions"

// failedElsewhere is why an answer that somebody else gave was not carried
// out, as far as we are told.
const failedElsewhere = "an answer given elsewhere could not be carried out"

// notKnown is why an answer that the hub cannot place was not carried out.
const notKnown = "it was answered elsewhere, or is too old: the hub asks again when the container tries again"

// concluded takes the outcome of our own verdict.
func (p *prompt) concluded(err error) {
	if p.ended || !p.Answering {
		return
	}
	p.Answering = false
	if err == nil {
		p.answered(p.Action)
		return
	}
	if _, ok := errors.AsType[clearance.UnknownRequest](err); ok {
		p.sent = "" // an event, if one comes, is of somebody else's
		p.Failed = failedElsewhere
		if !p.heard {
			p.Failed = notKnown
			p.unknown(patience, notAsked)
		}
	} else if refused, ok := errors.AsType[clearance.ShieldFailed](err); ok && strings.TrimSpace(refused.Stderr) != "" {
		p.Failed = sanitize.String(strings.TrimSpace(refused.Stderr), clearance.MaxStderr)
	} else {
		p.Failed = sanitize.String(err.Error(), clearance.MaxStderr)
	}
	p.show(Failed)
}

// answered shows the answer and forgets the prompt.
func (p *prompt) answered(action string) {
	p.Action, p.Answering, p.Failed = action, false, ""
	n := Notification{
		ID: p.ID, Category: Verdict, State: Answered, Summary: done(action) + ": " + setOffTarget(p.Target()), Body: p.Identity.Line(),
		Urgency: Normal, Transient: true, Timeout: AsIsCustomary, Identity: p.Identity,
	}
	seen := p.seen()
	n.Prompt = &seen
	shown := p.sub.Categories.Has(Verdict) && !p.dismissed
	if !shown {
		p.end(done(action))
		return
	}
	p.end("")
	p.sub.notify(n, true)
}

// end forgets the prompt and, with a reason, takes it away.
func (p *prompt) end(reason string) {
	if p.ended {
		return
	}
	p.ended = true
	p.found()
	for _, r := range p.requests {
		delete(p.hub.requests, r)
	}
	delete(p.hub.prompts, p.key)
	if p.hub.counts[p.key.container]--; p.hub.counts[p.key.container] == 0 {
		delete(p.hub.counts, p.key.container)
	}
	p.sub.recent.Remove(p.place)
	delete(p.sub.prompts, p.ID)
	if reason != "" && !p.dismissed {
		p.sub.dismiss(p.ID, reason)
	}
}
