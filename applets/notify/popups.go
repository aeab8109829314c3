package notify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/subscriber"
)

const (
	// maxOwn is how many questions of a container have popups of their own.
	maxOwn = 5
	// maxTotal is how many have that of all containers together.
	maxTotal = 30
	// maxNotices bounds the notices that wait to be shown.
	maxNotices = 16
	// promotePause is before a question gets the popup that another one had:
	// often others go, too.
	promotePause = 200 * time.Millisecond
	// summaryPause is the least time between two states of a summary.
	summaryPause = time.Second
	// summaryRest is how long somebody who has taken a summary away, or has
	// acted on it, is left in peace.
	summaryRest = time.Minute
	// A notifier that fails is left in peace for minRetry, then twice that, up
	// to maxRetry.
	minRetry = time.Second
	maxRetry = 5 * time.Minute
	// calm is how long after that the next failure counts as the first.
	calm = time.Minute
	// idleRetry is how long after a notifier had nobody to show something to it
	// is tried again, if it does not say that there is somebody.
	idleRetry = 30 * time.Second
	// leaveTimeout is, at the end, for a popup that is being shown to become
	// known, and then for taking questions away.
	leaveTimeout = 2 * time.Second
	// listKey is the action of a summary.
	listKey = "list"
)

// TerminalCommand is what answers every question in a terminal.
const TerminalCommand = "clearance-hub clearance"

// PopupsConfig is what Popups are made of.
type PopupsConfig struct {
	Notifier Notifier // where popups are shown
	Own      int      // questions of a container that have popups of their own; 0: five
	// List shows the list of all questions, where they can be answered; nil:
	// there is nothing that could.
	List func() error
	Log  *slog.Logger
}

// Popups shows a Subscriber's notifications as popups, and takes the answers.
// A container with many questions has one popup for all but the oldest of
// them, which says where they can be answered.
//
// What is to be shown is a table; Run makes what is on the screen agree with
// it, for as long as that takes, and nobody waits for it.
type Popups struct {
	PopupsConfig
	wake chan struct{}

	mu      sync.Mutex
	sub     *Subscriber
	entries map[uint64]*entry
	groups  map[groupKey]*group
	own     int       // questions with a popup of their own
	notices int       // entries without a group that are dirty
	marks   uint64    // popups that became dirty, so far
	closing []uint32  // popups that are to be taken away
	summary bool      // it is a summary's turn
	until   time.Time // nothing is shown before
	retry   time.Duration
	listing bool // the list is about to be shown
	failing bool // the notifier has failed
	nobody  bool // it had nobody to show something to
}

// entry is a notification and its popup.
type entry struct {
	note   subscriber.Notification
	group  *group // nil for a notice
	popup  popup
	own    bool      // a question that has a popup, or is to have one
	hidden bool      // a question that is counted in the summary
	acted  bool      // an answer is being carried out
	due    time.Time // it is not shown before
}

// popup is something on the screen, or that is to be there.
type popup struct {
	id    uint32 // 0: it is not there
	dirty bool   // what is there is not what is to be there
	since uint64 // the mark of when it became so
	turn  int    // how often it was shown
	lost  int    // the turn whose popup is not there any more
}

// groupKey is a container.
type groupKey struct{ hub, container string }

// group is a container with questions.
type group struct {
	key     groupKey
	label   string
	entries map[uint64]*entry
	own     int
	hidden  int
	popup   popup     // the summary
	due     time.Time // it is not shown again before
	rest    time.Time // nor shown anew
	explain bool      // the list cannot be shown
}

// NewPopups makes popups; nothing is shown before Run.
func NewPopups(c PopupsConfig) *Popups {
	if c.Own == 0 {
		c.Own = maxOwn
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Popups{PopupsConfig: c, wake: make(chan struct{}, 1), entries: make(map[uint64]*entry), groups: make(map[groupKey]*group)}
}

// Notify is for the Subscriber.
func (p *Popups) Notify(_ context.Context, n subscriber.Notification) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entries[n.ID]
	if n.Prompt == nil || n.State == subscriber.Answered {
		p.notice(e, n)
	} else {
		p.question(e, n)
	}
	p.roused()
	return nil
}

// question notes what is to be shown of a question.
func (p *Popups) question(e *entry, n subscriber.Notification) {
	if e == nil {
		k := groupKey{n.Prompt.Hub, n.Identity.ContainerID}
		g := p.groups[k]
		if g == nil {
			g = &group{key: k, entries: make(map[uint64]*entry)}
			p.groups[k] = g
		}
		e = &entry{group: g}
		p.entries[n.ID], g.entries[n.ID] = e, e
	}
	e.note, e.acted = n, false
	p.mark(e)
	e.group.label = n.Identity.Label()
	if !e.own && !e.hidden {
		p.hide(e)
		p.promote(e.group, time.Time{})
	}
}

// mark says that an entry's popup is not as it is to be.
func (p *Popups) mark(e *entry) {
	if e.popup.dirty {
		return
	}
	p.marks++
	e.popup.dirty, e.popup.since = true, p.marks
	if e.group == nil {
		p.notices++
	}
}

// clean says that it is.
func (p *Popups) clean(e *entry) {
	if e.popup.dirty && e.group == nil {
		p.notices--
	}
	e.popup.dirty = false
}

// hide has a question counted in its container's summary.
func (p *Popups) hide(e *entry) {
	e.hidden = true
	e.group.hidden++
	e.group.popup.dirty = true
}

// leave takes a question from where it is counted; others take its place.
func (p *Popups) leave(e *entry) {
	g := e.group
	switch {
	case e.own:
		e.own = false
		g.own--
		p.own--
	case e.hidden:
		e.hidden = false
		g.hidden--
		g.popup.dirty = true
	}
	due := time.Now().Add(promotePause)
	p.promote(g, due)
	if p.own == maxTotal-1 { // one of another container
		for _, g := range p.groups {
			p.promote(g, due)
		}
	}
}

// promote gives popups of their own to the oldest questions that have none.
func (p *Popups) promote(g *group, due time.Time) {
	for g.hidden > 0 && g.own < p.Own && p.own < maxTotal {
		var next *entry
		for _, e := range g.entries {
			if e.hidden && (next == nil || e.note.ID < next.note.ID) {
				next = e
			}
		}
		next.hidden, next.own, next.due = false, true, due
		p.mark(next)
		g.hidden--
		g.own++
		p.own++
		g.popup.dirty = true
	}
	if g.hidden == 0 && g.popup.id != 0 {
		p.closing = append(p.closing, g.popup.id)
		g.popup.id = 0
		g.popup.lost = g.popup.turn
	}
}

// notice notes what is no question: an answer, in place of its question, or an
// event.
func (p *Popups) notice(e *entry, n subscriber.Notification) {
	var was popup
	own := false // it takes the place of a question
	if e != nil {
		hidden := e.hidden
		own = e.own
		p.forget(n.ID, e)
		if hidden { // somebody answers many in a terminal
			return
		}
		was = e.popup
	}
	next := &entry{note: n, popup: popup{id: was.id, turn: was.turn, lost: was.lost}}
	if next.final() && (p.nobody || p.notices >= maxNotices && !own) { // news that is old is none
		if was.id != 0 {
			p.closing = append(p.closing, was.id)
		}
		return
	}
	p.entries[n.ID] = next
	p.mark(next)
}

// final says that nothing comes after it: it is shown and forgotten.
func (e *entry) final() bool {
	return e.note.State == subscriber.Answered || e.note.Prompt == nil && e.note.Category != subscriber.ShieldDown
}

// forget removes an entry from the table. Its popup is the caller's.
func (p *Popups) forget(id uint64, e *entry) {
	delete(p.entries, id)
	if e.group == nil {
		p.clean(e)
		return
	}
	g := e.group
	delete(g.entries, id)
	p.leave(e)
	if len(g.entries) == 0 {
		delete(p.groups, g.key)
	}
}

// Close is for the Subscriber.
func (p *Popups) Close(_ context.Context, id uint64, _ string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.entries[id]; e != nil {
		p.forget(id, e)
		if e.popup.id != 0 {
			p.closing = append(p.closing, e.popup.id)
		}
		p.roused()
	}
	return nil
}

// Observe is for the Subscriber.
func (p *Popups) Observe(ctx context.Context, l subscriber.Lifecycle) {
	if o, ok := p.Notifier.(subscriber.Observer); ok {
		o.Observe(ctx, l)
	}
}

// Available says that the notifier may have somebody to show popups to, as
// Desktop.OnAvailable does.
func (p *Popups) Available() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nobody || p.failing {
		p.nobody, p.failing, p.until = false, false, time.Time{}
	}
	p.roused()
}

func (p *Popups) roused() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Run shows popups, and answers the subscriber's questions with what is chosen
// there, until ctx ends. Then it takes the questions away: nobody would hear
// what is chosen. The Notifier is not disconnected.
func (p *Popups) Run(ctx context.Context, s *Subscriber) {
	p.mu.Lock()
	p.sub = s
	p.mu.Unlock()
	// A popup whose id is not waited for could not be taken away.
	showing, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(leaveTimeout, cancel) })()
	for ctx.Err() == nil {
		do, wait := p.next(time.Now())
		if do != nil {
			do(showing)
			continue
		}
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		select {
		case <-p.wake:
		case <-timer:
		case <-ctx.Done():
		}
	}
	p.depart()
}

// next is what is to be done now; if there is nothing, how long it takes until
// there is, or 0 if that is not known.
func (p *Popups) next(now time.Time) (do func(context.Context), wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.closing); n > 0 {
		id := p.closing[0]
		p.closing = p.closing[1:]
		return func(ctx context.Context) { p.failed(p.Notifier.Close(ctx, id)) }, 0
	}
	if d := p.until.Sub(now); d > 0 {
		return nil, d
	}
	g, wait := p.nextGroup(now)
	e, later := p.nextEntry(now)
	if wait == 0 || later > 0 && later < wait {
		wait = later
	}
	if g != nil && (p.summary || e == nil) {
		p.summary = false
		return func(ctx context.Context) { p.summarise(ctx, g) }, 0
	}
	if e != nil {
		p.summary = true
		return func(ctx context.Context) { p.show(ctx, e) }, 0
	}
	return nil, wait
}

// nextEntry is the entry that has waited for longest; if there is none, how
// long it takes until there is, or 0.
func (p *Popups) nextEntry(now time.Time) (next *entry, wait time.Duration) {
	for _, e := range p.entries {
		if !e.popup.dirty || e.group != nil && !e.own {
			continue
		}
		if d := e.due.Sub(now); d > 0 {
			if wait == 0 || d < wait {
				wait = d
			}
			continue
		}
		if next == nil || e.popup.since < next.popup.since {
			next = e
		}
	}
	return next, wait
}

// nextGroup is a container whose summary is due; if there is none, how long it
// takes until there is, or 0.
func (p *Popups) nextGroup(now time.Time) (*group, time.Duration) {
	var wait time.Duration
	for _, g := range p.groups {
		if !g.popup.dirty || g.hidden == 0 {
			continue
		}
		due := g.due
		if g.popup.id == 0 && g.rest.After(due) {
			due = g.rest
		}
		d := due.Sub(now)
		if d <= 0 {
			return g, 0
		}
		if wait == 0 || d < wait {
			wait = d
		}
	}
	return nil, wait
}

// show shows an entry's popup.
func (p *Popups) show(ctx context.Context, e *entry) {
	p.mu.Lock()
	n, id := e.note, e.note.ID
	if p.entries[id] != e || !e.popup.dirty {
		p.mu.Unlock()
		return
	}
	p.clean(e)
	e.popup.turn++
	turn := e.popup.turn
	popup := Popup{
		Summary: n.Summary, Body: n.Body, Actions: n.Actions, Urgency: n.Urgency, Resident: n.Resident, Transient: n.Transient,
		Timeout: n.Timeout, Identity: n.Identity, Replaces: e.popup.id,
		Chosen: func(key string) { p.chosen(e, key) },
		Closed: func(r Reason) { p.closed(e, turn, r) },
	}
	if len(n.Actions) > 0 {
		popup.Unable = "To answer, run in a terminal: " + TerminalCommand
	}
	p.mu.Unlock()

	shown, err := p.Notifier.Notify(ctx, popup)

	p.mu.Lock()
	defer p.mu.Unlock()
	there := p.entries[id] == e
	p.showed(shown, err)
	if shown == 0 {
		switch {
		case !there:
		case e.final():
			p.forget(id, e)
		default:
			p.mark(e)
		}
		return
	}
	if e.popup.lost == turn {
		shown = 0
	}
	if !there && shown != 0 {
		p.orphan(e, id, shown)
		return
	}
	e.popup.id = shown
	if e.final() && there && !e.popup.dirty {
		delete(p.entries, id)
	}
}

// orphan deals with a popup whose entry has gone while it was shown: to one
// that takes its place, as an answer does, or for good.
func (p *Popups) orphan(e *entry, id uint64, shown uint32) {
	if next := p.entries[id]; next != nil && next.popup.id == e.popup.id {
		next.popup.id = shown
		return
	}
	p.closing = append(p.closing, shown)
}

// showed notes how the notifier did.
func (p *Popups) showed(id uint32, err error) {
	now := time.Now()
	p.nobody, p.failing = id == 0 && err == nil, err != nil
	switch {
	case err != nil:
		p.pause(now)
		p.failed(err)
	case p.nobody:
		p.until = now.Add(idleRetry)
	}
}

// pause has nothing shown for a while, each time for longer.
func (p *Popups) pause(now time.Time) {
	if now.Sub(p.until) > calm {
		p.retry = 0
	}
	p.retry = min(max(2*p.retry, minRetry), maxRetry)
	p.until = now.Add(p.retry)
}

func (p *Popups) failed(err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		p.Log.Warn("popups cannot be shown", "err", err)
	}
}

// chosen takes the answer to a question.
func (p *Popups) chosen(e *entry, key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.group == nil || p.sub == nil {
		return
	}
	if err := p.sub.Act(e.note.ID, key); err != nil {
		p.Log.Debug("what was chosen is no answer", "err", err)
		return
	}
	e.acted = true
}

// closed notes that a popup is not there any more.
func (p *Popups) closed(e *entry, turn int, r Reason) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.popup.lost = max(e.popup.lost, turn)
	if turn != e.popup.turn {
		return
	}
	e.popup.id = 0
	if p.entries[e.note.ID] != e {
		return
	}
	switch {
	case r == Vanished:
		p.mark(e)
		p.delay()
	case e.group == nil:
		p.forget(e.note.ID, e)
		p.dismissed(e.note.ID)
	case e.acted: // many desktops take away what was clicked on; what becomes of it is shown anew
	case r == Dismissed:
		p.forget(e.note.ID, e)
		p.dismissed(e.note.ID)
	default: // nobody has decided anything; it is shown again when there is news
		p.leave(e)
	}
	p.roused()
}

func (p *Popups) dismissed(id uint64) {
	if p.sub != nil {
		p.sub.Dismiss(id)
	}
}

// delay waits a little before everything is shown again: what shows it may
// have died of it.
func (p *Popups) delay() {
	if now := time.Now(); !now.Before(p.until) {
		p.pause(now)
	}
}

// summarise shows a container's summary.
func (p *Popups) summarise(ctx context.Context, g *group) {
	p.mu.Lock()
	if g.hidden == 0 || p.groups[g.key] != g {
		p.mu.Unlock()
		return
	}
	g.popup.dirty = false
	g.popup.turn++
	turn := g.popup.turn
	popup := g.summary(p.List != nil)
	popup.Chosen = func(string) { p.list(g) }
	popup.Closed = func(r Reason) { p.summaryClosed(g, turn, r) }
	p.mu.Unlock()

	shown, err := p.Notifier.Notify(ctx, popup)

	p.mu.Lock()
	defer p.mu.Unlock()
	p.showed(shown, err)
	g.due = time.Now().Add(summaryPause)
	if shown == 0 {
		g.popup.dirty = true
		return
	}
	if g.popup.lost == turn {
		shown = 0
	}
	if shown != 0 && (p.groups[g.key] != g || g.hidden == 0) {
		p.closing = append(p.closing, shown)
		shown = 0
	}
	g.popup.id = shown
}

// maxListed is how many targets a summary names.
const maxListed = 4

// summary is a container's summary.
func (g *group) summary(canList bool) Popup {
	hidden := make([]*entry, 0, g.hidden)
	for _, e := range g.entries {
		if e.hidden {
			hidden = append(hidden, e)
		}
	}
	slices.SortFunc(hidden, func(a, b *entry) int { return cmp.Compare(a.note.ID, b.note.ID) })
	lines := []string{hidden[0].note.Identity.Line()}
	for _, e := range hidden[:min(len(hidden), maxListed)] {
		lines = append(lines, e.note.Prompt.Label())
	}
	if n := len(hidden) - maxListed; n > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", n))
	}
	const how = "To answer, run in a terminal: " + TerminalCommand
	popup := Popup{
		Summary:  fmt.Sprintf("%d more blocked in %s", g.hidden, g.label),
		Urgency:  Critical,
		Resident: true,
		Timeout:  Never,
		Identity: hidden[0].note.Identity,
		Replaces: g.popup.id,
	}
	if canList && !g.explain {
		popup.Actions = []Action{{Key: listKey, Label: "Show the list"}}
		popup.Unable = how
	} else {
		lines = append(lines, how)
	}
	popup.Body = strings.Join(lines, "\n")
	return popup
}

// list shows the list of all questions; where that fails, the summary says how
// it can be done.
func (p *Popups) list(g *group) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.List == nil || p.listing {
		return
	}
	p.listing = true
	go func() {
		err := p.List()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.listing = false
		g.rest = time.Now().Add(summaryRest)
		if err != nil {
			p.Log.Warn("the list of questions cannot be shown", "err", err)
			g.explain, g.popup.dirty, g.rest, g.due = true, true, time.Time{}, time.Time{}
			p.roused()
		}
	}()
}

// summaryClosed notes that a summary is not there any more.
func (p *Popups) summaryClosed(g *group, turn int, r Reason) {
	p.mu.Lock()
	defer p.mu.Unlock()
	g.popup.lost = max(g.popup.lost, turn)
	if turn != g.popup.turn {
		return
	}
	g.popup.id = 0
	if r == Vanished {
		g.popup.dirty = true
		p.delay()
		p.roused()
		return
	}
	if !g.explain {
		g.rest = time.Now().Add(summaryRest)
	}
}

// depart takes the questions away.
func (p *Popups) depart() {
	p.mu.Lock()
	ids := p.closing
	for _, e := range p.entries {
		if e.group != nil && e.popup.id != 0 {
			ids = append(ids, e.popup.id)
		}
	}
	for _, g := range p.groups {
		if g.popup.id != 0 {
			ids = append(ids, g.popup.id)
		}
	}
	p.sub = nil
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	for _, id := range ids {
		p.failed(p.Notifier.Close(ctx, id))
	}
}
