package notify

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	// callTimeout is for a service to answer, or to be started.
	callTimeout = 10 * time.Second
	// A service that is not there is not asked for again before minRefusal has
	// passed, then twice that, up to maxRefusal: the bus may start a program
	// each time. Whoever takes its name is noticed at once.
	minRefusal = 30 * time.Second
	maxRefusal = 10 * time.Minute

	maxPopups = 4096 // of a service
	maxAside  = 256  // signals that are kept while popups are about to be shown
)

var (
	errAnswer  = errors.New("the desktop gives an impossible answer")
	errTooMany = errors.New("there are too many popups")
)

// dialect is one of the interfaces that show popups.
type dialect interface {
	name() string // on the bus
	path() string
	face() string // of the signals
	// probe finds out what the service can do. Its error is one that absent
	// knows if it is not there.
	probe(ctx context.Context, b *bus) (abilities, error)
	// notify begins to show a popup in place of the one with the id old,
	// unless that is 0.
	notify(ctx context.Context, s *service, can abilities, p Popup, old uint32) (<-chan *dbus.Call, error)
	// id is that of the popup that the answer is about.
	id(c *dbus.Call) (uint32, error)
	close(b *bus, id uint32) error
	// signal is what a signal says; nil if it says nothing, ok is false if it
	// is not as it should be.
	signal(member string, body []any) (o *outcome, ok bool)
}

// abilities are what a service can do.
type abilities struct{ actions, body, markup bool }

// outcome is something that has happened to a popup.
type outcome struct {
	id     uint32
	key    string // of the action that was chosen
	closed Reason // 0: it was not closed
	seq    dbus.Sequence
	told   bool
}

// shown is a popup that a service has taken.
type shown struct {
	Popup
	seq dbus.Sequence // of the answer
}

// service is a program that shows popups, whichever has the name just now.
// Its members are guarded by the bus's lock.
type service struct {
	dialect
	bus      *bus
	owner    string        // the unique name of whoever has the name; "": nobody
	ownerSeq dbus.Sequence // of when we learned that
	known    bool
	can      abilities
	until    time.Time // it is not asked for before
	refusal  time.Duration
	popups   map[uint32]shown
	waiting  int       // popups that are about to be shown
	aside    []outcome // what was heard since the first of these
}

func newService(b *bus, d dialect) *service {
	return &service{dialect: d, bus: b, popups: make(map[uint32]shown)}
}

// owned notes who has the name.
func (s *service) owned(owner string, seq dbus.Sequence) {
	if seq < s.ownerSeq {
		return
	}
	s.ownerSeq = seq
	if owner == s.owner {
		return
	}
	s.vanish()
	s.owner, s.known, s.until, s.refusal = owner, false, time.Time{}, 0
	if owner != "" {
		s.bus.available()
	}
}

// vanish tells that all popups are gone.
func (s *service) vanish() {
	for _, p := range s.popups {
		s.closed(p.Popup, Vanished)
	}
	clear(s.popups)
	s.aside = nil
}

func (s *service) closed(p Popup, r Reason) {
	if p.Closed != nil {
		s.bus.desktop.post(func() { p.Closed(r) })
	}
}

// ready says whether the service can be used now. It may be started for that.
func (s *service) ready(ctx context.Context) (bool, error) {
	s.bus.mu.Lock()
	known, wait := s.known, time.Now().Before(s.until)
	s.bus.mu.Unlock()
	if known || wait {
		return known, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	can, err := s.probe(ctx, s.bus)
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	if absent(err) {
		s.refusal = min(max(2*s.refusal, minRefusal), maxRefusal)
		s.until = time.Now().Add(s.refusal)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	s.known, s.can = s.owner != "", can
	if s.bus.deaf {
		s.can.actions = false
	}
	return s.known, nil
}

// notify shows a popup. An answer that comes too late for ctx still counts,
// except that a new popup is taken away again, since nobody knows its id.
func (s *service) notify(ctx context.Context, p Popup) (uint32, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	b := s.bus
	b.mu.Lock()
	can, owner, old := s.can, s.owner, p.Replaces
	if _, ok := s.popups[old]; !ok {
		old = 0
		if len(s.popups)+s.waiting >= maxPopups {
			b.mu.Unlock()
			return 0, errTooMany
		}
	}
	s.waiting++
	b.mu.Unlock()
	done, err := s.dialect.notify(ctx, s, can, p, old)
	if err != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		s.waited()
		return 0, err
	}
	select {
	case c := <-done:
		return s.answered(c, p, old, owner)
	case <-ctx.Done():
		go func() {
			if id, err := s.answered(<-done, p, old, owner); err == nil && old == 0 {
				_ = b.close(id) // an error ends the connection, which is noticed
			}
		}()
		return 0, fmt.Errorf("show a popup: %w: %w", errSilent, ctx.Err())
	}
}

// answered notes what became of a popup.
func (s *service) answered(c *dbus.Call, p Popup, old uint32, owner string) (uint32, error) {
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	defer s.waited()
	id, err := s.id(c)
	if err != nil {
		return 0, fmt.Errorf("show a popup: %w", err)
	}
	if s.owner != owner { // who showed it is gone
		s.closed(p, Vanished)
		return id, nil
	}
	if old != 0 && old != id {
		delete(s.popups, old)
	}
	s.popups[id] = shown{p, c.ResponseSequence}
	for _, o := range s.aside {
		if o.id == id && o.seq > c.ResponseSequence && !(o.told && o.closed == 0) {
			s.happened(o)
		}
	}
	return id, nil
}

// waited notes that one popup less is about to be shown.
func (s *service) waited() {
	if s.waiting--; s.waiting == 0 {
		s.aside = nil
	}
}

// heard takes a signal. Anybody on the bus can send one, so the sender must be
// who has the service's name at this moment.
func (s *service) heard(member string, sig *dbus.Signal) {
	if s.owner == "" || sig.Sender != s.owner {
		s.bus.warn("a signal was dropped that is not from who shows popups", "sender", sig.Sender, "shown by", s.owner)
		return
	}
	o, ok := s.signal(member, sig.Body)
	if !ok {
		s.bus.warn("a signal was dropped that is not as it should be", "member", member)
	}
	if o == nil {
		return
	}
	o.seq = sig.Sequence
	o.told = s.happened(*o)
	if s.waiting > 0 { // it may be about one of these
		s.aside = append(s.aside, *o)
		s.aside = s.aside[max(0, len(s.aside)-maxAside):]
	}
}

// happened tells what has happened to a popup, if it is one of ours.
func (s *service) happened(o outcome) bool {
	p, ok := s.popups[o.id]
	if !ok {
		return false
	}
	if o.closed != 0 {
		delete(s.popups, o.id)
		s.closed(p.Popup, o.closed)
		return true
	}
	if p.Chosen != nil {
		s.bus.desktop.post(func() { p.Chosen(o.key) })
	}
	return true
}

// close takes a popup away.
func (s *service) close(id uint32) error { return s.dialect.close(s.bus, id) }
