package subscriber

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/event"
)

// Hub is one that questions come from. Its methods are safe for concurrent
// use and return at once.
type Hub struct {
	sub     *Subscriber
	name    string
	verdict func(context.Context, clearance.Request) error
	turns   chan struct{} // holds one element for each verdict under way

	// Guarded by sub.mu.
	prompts   map[key]*prompt
	requests  map[string]*prompt
	downs     []down              // the oldest first
	known     map[string]Identity // of containers, by what the hub calls them, where an event has told who they are
	counts    map[string]int      // prompts of a container
	evicted   int
	epoch     int       // connections so far
	connected time.Time // the newest; zero if there is none now
	timer     *time.Timer
	only      string // the id of the only container that it is for; "" if not known
	gone      bool
}

// down is a container whose shield is down.
type down struct {
	Identity
	id    uint64
	shown Notification
}

// Hub is the hub of that name, which is for people; there is one of each name.
// verdict has the hub carry an answer out.
func (s *Subscriber) Hub(name string, verdict func(context.Context, clearance.Request) error) *Hub {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.hubs[name]
	if h == nil {
		h = &Hub{
			sub: s, name: name, turns: make(chan struct{}, maxVerdicts),
			prompts: make(map[key]*prompt), requests: make(map[string]*prompt), counts: make(map[string]int),
		}
		s.hubs[name] = h
	}
	h.verdict, h.gone = verdict, false
	return h
}

// For says that the hub is for one container only, by its id: what it reports
// is about that one, whatever it is called.
func (h *Hub) For(id string) {
	h.sub.mu.Lock()
	defer h.sub.mu.Unlock()
	h.only = id
}

// ask has the hub carry an answer out when it is its turn.
func (h *Hub) ask(ctx context.Context, r clearance.Request) error {
	ctx, cancel := context.WithTimeout(ctx, VerdictTimeout)
	defer cancel()
	if r.RequestID == "" {
		return clearance.UnknownRequest{}
	}
	select {
	case h.turns <- struct{}{}:
		defer func() { <-h.turns }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	h.sub.mu.Lock()
	verdict := h.verdict
	h.sub.mu.Unlock()
	return verdict(ctx, r)
}

// stop ends the timers.
func (h *Hub) stop() {
	if h.timer != nil {
		h.timer.Stop()
		h.timer = nil
	}
	for _, p := range h.prompts {
		p.found()
	}
}

// after calls f in d, unless the hub's connection comes or goes before.
func (h *Hub) after(d time.Duration, f func()) {
	if h.timer != nil {
		h.timer.Stop()
	}
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		h.sub.mu.Lock()
		defer h.sub.mu.Unlock()
		if h.timer == t && !h.sub.closed {
			f()
		}
	})
	h.timer = t
}

// Connected says that events come from now on. What the hub still asks it may
// repeat; whether it asks the rest too is found out.
func (h *Hub) Connected() {
	h.sub.mu.Lock()
	defer h.sub.mu.Unlock()
	if h.sub.closed {
		return
	}
	h.epoch++
	h.connected = time.Now()
	h.after(replayTime, h.review)
}

// Lost says that no events come until it is Connected again. The prompts stay
// for a while.
func (h *Hub) Lost() {
	h.sub.mu.Lock()
	defer h.sub.mu.Unlock()
	if !h.sub.closed && !h.connected.IsZero() {
		h.connected = time.Time{}
		h.after(patience, h.forget)
	}
}

// Gone says that it is not tried to connect again. When the hub comes back
// in time its prompts are still there.
func (h *Hub) Gone() {
	h.sub.mu.Lock()
	defer h.sub.mu.Unlock()
	if !h.sub.closed {
		h.gone, h.connected = true, time.Time{}
		h.after(patience, h.forget)
	}
}

// forget ends what there is of the hub.
func (h *Hub) forget() {
	for _, p := range h.sorted() {
		p.end(hubGone)
	}
	for _, d := range h.downs {
		h.sub.dismiss(d.id, hubGone)
	}
	h.downs = nil
	if h.gone {
		delete(h.sub.hubs, h.name)
	}
}

// review finds out which prompts the hub does not have any more, of those it
// has not repeated: it refuses an answer about another target than the one it
// asks about, and has nothing else to say only about what it does not ask.
func (h *Hub) review() {
	for _, p := range h.sorted() {
		if p.epoch == h.epoch || p.Answering || len(p.requests) == 0 {
			continue
		}
		epoch := h.epoch
		r := p.request(clearance.Deny)
		r.Dest = "" // no hub asks about that
		h.sub.work.Go(func() {
			err := h.ask(h.sub.ctx, r)
			h.sub.mu.Lock()
			defer h.sub.mu.Unlock()
			_, unknown := errors.AsType[clearance.UnknownRequest](err)
			if unknown && h.epoch == epoch && p.epoch < epoch && !p.ended && !p.Answering {
				p.unknown(VerdictTimeout, elsewhere)
			}
		})
	}
}

// sorted are the prompts in the order in which they came.
func (h *Hub) sorted() []*prompt {
	all := make([]*prompt, 0, len(h.prompts))
	for _, p := range h.prompts {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *prompt) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// Event takes an event of the hub.
func (h *Hub) Event(e clearance.Event) {
	e = cleaned(e)
	s := h.sub
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if e.Container == "" {
		s.Log.Warn("an event without a container was dropped", "hub", h.name, "type", e.Type)
		return
	}
	id := h.recognised(identify(e.Container, e.Dossier))
	note := Notification{Identity: id, State: Notice}
	switch e.Type {
	case event.Blocked:
		h.blocked(e, id)
		return
	case clearance.VerdictApplied:
		h.applied(e)
		return
	case event.ContainerStarted:
		note.Category, note.Summary, note.Transient = ContainerStarted, "Container started: "+id.Label(), true
	case event.ContainerExited:
		h.purge(id, exited)
		h.raise(id, exited)
		note.Category, note.Summary, note.Transient = ContainerExited, "Container stopped: "+id.Label(), true
		if e.Reason != "" {
			note.Body = "Reason: " + e.Reason
		}
	case event.ShieldUp:
		h.raise(id, "the shield is up")
		note.Category, note.Summary, note.Body = ShieldUp, "Shield up: "+id.Label(), "Outbound firewall restored."
		note.Urgency, note.Transient = Normal, true
	case event.ShieldDown, event.ShieldDisengaged:
		h.purge(id, shieldDown)
		note.Category, note.Urgency = ShieldDown, Critical
		note.Summary, note.Body = "Shield down: "+id.Label(), "Outbound firewall bypassed — allowlist is not enforced."
		if e.Type == event.ShieldDisengaged {
			note.Summary, note.Body = "Shield disengaged: "+id.Label(), "Outbound firewall disengaged — every destination is reachable."
		}
	default:
		s.Log.Debug("an event of an unknown type was dropped", "hub", h.name, "type", e.Type)
		return
	}
	if _, ok := s.Notifier.(Observer); ok {
		s.queue.observe(Lifecycle{Type: e.Type, Container: e.Container, Reason: e.Reason})
		s.roused()
	}
	switch {
	case !s.Categories.Has(note.Category):
	case note.Category == ShieldDown:
		h.lower(note)
	default:
		s.notice(note, true)
	}
}

// recognised is the identity as an earlier event has told it, if this one says
// nothing but an id.
func (h *Hub) recognised(i Identity) Identity {
	if i.TaskName != "" || i.isTask() {
		if _, ok := h.known[i.ContainerID]; !ok && (h.known == nil || len(h.known) >= maxKnown) {
			h.known = make(map[string]Identity)
		}
		h.known[i.ContainerID] = i
		return i
	}
	for _, k := range h.known {
		if k.ContainerID == i.ContainerID || sameID(k.ContainerID, i.ContainerID) {
			return k
		}
	}
	return i
}

// cleaned is the event with every text sanitised and bounded.
func cleaned(e clearance.Event) clearance.Event {
	for _, p := range []*string{&e.Type, &e.Container, &e.RequestID, &e.Dest, &e.Domain, &e.Action, &e.Reason} {
		*p = clean(*p)
	}
	return e
}

// blocked takes a question, or one more of the same.
func (h *Hub) blocked(e clearance.Event, id Identity) {
	s := h.sub
	k := key{e.Container, e.Target()}
	if k.target == "" || e.RequestID == "" {
		s.Log.Warn("a question that cannot be answered was dropped", "hub", h.name, "container", e.Container, "request", e.RequestID)
		return
	}
	now := time.Now()
	p := h.prompts[k]
	old := h.requests[e.RequestID]
	if old != nil && old != p { // the counting began anew: the id means something else now
		old.requests = slices.DeleteFunc(old.requests, func(r string) bool { return r == e.RequestID })
		delete(h.requests, e.RequestID)
		if len(old.requests) == 0 {
			old.unknown(patience, notAsked)
		}
		old = nil
	}
	repeated := old != nil && p.epoch < h.epoch && now.Sub(h.connected) <= replayTime
	if repeated { // by the hub, for those who come late
		failed := p.lost != nil
		p.known(e.RequestID)
		if failed && p.Failed != "" && !p.Answering {
			p.Failed = ""
			p.show(Repeated)
		}
		return
	}
	if p != nil && p.dismissed {
		p.end("")
		p = nil
	}
	state := Repeated
	if p == nil {
		s.room(h, k.container)
		state = Asking
		s.lastID++
		p = &prompt{sub: s, hub: h, key: k, Prompt: Prompt{ID: s.lastID, Hub: h.name, Identity: id, First: now}}
		p.place = s.recent.PushBack(p)
		h.prompts[k] = p
		h.counts[k.container]++
		s.prompts[p.ID] = p
	}
	if len(e.Dossier) > 0 {
		p.Identity = id
	}
	p.known(e.RequestID)
	p.block(e, now)
	if !p.Answering { // else its outcome is what is of interest
		p.Failed = ""
		p.show(state)
	}
}

// applied takes an answer, whoever gave it.
func (h *Hub) applied(e clearance.Event) {
	p := h.requests[e.RequestID]
	if p == nil || e.RequestID == "" {
		return
	}
	if !p.Identity.names(e.Container) {
		h.sub.Log.Warn("the container of a verdict is not that of the question", "hub", h.name, "verdict", e.Container, "question", p.key.container)
	}
	switch {
	case e.Action != clearance.Allow && e.Action != clearance.Deny:
		h.sub.Log.Warn("a verdict that is none was dropped", "hub", h.name, "action", e.Action)
	case e.OK:
		p.answered(e.Action)
	case p.Answering, p.sent == e.RequestID && p.Action == e.Action && !p.heard: // our own, whose reply says why
		p.heard = true
	default:
		p.found()
		p.Action, p.Failed = e.Action, failedElsewhere
		p.show(Failed)
	}
}

// purge ends the prompts of a container.
func (h *Hub) purge(id Identity, reason string) {
	for _, p := range h.sorted() {
		if h.same(p.Identity, id) {
			p.end(reason)
		}
	}
}

// lower shows that a container's shield is down, in place of what was shown
// of that before.
func (h *Hub) lower(n Notification) {
	i := slices.IndexFunc(h.downs, func(d down) bool { return h.same(d.Identity, n.Identity) })
	if i >= 0 {
		n.ID = h.downs[i].id
		h.downs = slices.Delete(h.downs, i, i+1)
	}
	n.ID = h.sub.notice(n, false)
	n.Timeout = AsIsCustomary
	h.downs = append(h.downs, down{n.Identity, n.ID, n})
	if len(h.downs) > maxDowns {
		h.sub.dismiss(h.downs[0].id, TooMany)
		h.downs = h.downs[1:]
	}
}

// raise takes that away.
func (h *Hub) raise(id Identity, reason string) {
	h.downs = slices.DeleteFunc(h.downs, func(d down) bool {
		if !h.same(d.Identity, id) {
			return false
		}
		h.sub.dismiss(d.id, reason)
		return true
	})
}

// same says whether two identities are of one container.
func (h *Hub) same(a, b Identity) bool {
	return h.only != "" || a.names(b.ContainerID) || b.names(a.ContainerID)
}
