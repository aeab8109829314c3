package hub

import (
	"container/list"
	"time"

	"github.com/terok-ai/terok-box/wire/clearance"
)

const (
	// maxQuestions bounds the ids that can be answered.
	maxQuestions = 1024
	// lifetime is how long one can be.
	lifetime = 24 * time.Hour
)

// question is an id that can be answered. Besides busy it does not change.
//
//	         add                    verdict
//	(absent) ───────────────► open ─────────► busy
//	    ▲     expiry, purge,   │ ▲             │ │
//	    │     a newer one      │ └─────────────┘ │
//	    └──────────────────────┘     failed      │
//	    └────────────────────────────────────────┘
//	                              done, purge
type question struct {
	event *clearance.Event
	at    time.Time
	busy  bool // is being carried out
	elem  *list.Element
}

// target is what a question is about.
type target struct{ container, dest string }

func (q *question) target() target { return target{q.event.Container, q.event.Target()} }

// questions are those that can be answered. Of those with the same target the
// newest stands for all where they are listed; the others can be answered as
// well, by somebody who has not seen the newest yet.
type questions struct {
	ids    map[string]*question
	newest map[target]*question
	order  *list.List // of *question, the oldest first
}

func newQuestions() questions {
	return questions{ids: make(map[string]*question), newest: make(map[target]*question), order: list.New()}
}

// add takes a question in. One with the same id is replaced, and if there are
// too many, one is lost.
func (s *questions) add(q *question) {
	id := q.event.RequestID
	if old := s.ids[id]; old != nil {
		s.remove(old)
	}
	if len(s.ids) >= maxQuestions {
		s.remove(s.leastOf())
	}
	q.elem = s.order.PushBack(q)
	s.ids[id], s.newest[q.target()] = q, q
}

// leastOf is the question that is missed least: the oldest of which there is a
// newer one with the same target, or else the oldest.
func (s *questions) leastOf() *question {
	if len(s.newest) < len(s.ids) {
		for q := range s.each {
			if s.newest[q.target()] != q && !q.busy {
				return q
			}
		}
	}
	for q := range s.each {
		if !q.busy { // of these there are fewer than maxQuestions
			return q
		}
	}
	return s.order.Front().Value.(*question)
}

// each goes through all of them, the oldest first. The one that it has yielded
// may be removed.
func (s *questions) each(yield func(*question) bool) {
	for e := s.order.Front(); e != nil; {
		next := e.Next()
		if !yield(e.Value.(*question)) {
			return
		}
		e = next
	}
}

func (s *questions) remove(q *question) {
	before := q.elem.Prev()
	s.order.Remove(q.elem)
	delete(s.ids, q.event.RequestID)
	t := q.target()
	if s.newest[t] != q {
		return
	}
	delete(s.newest, t)
	for ; before != nil; before = before.Prev() { // only when an id was used again
		if older := before.Value.(*question); older.target() == t {
			s.newest[t] = older
			return
		}
	}
}

// holds reports whether a question can still be answered.
func (s *questions) holds(q *question) bool { return s.ids[q.event.RequestID] == q }

// purge removes those that match, and reports whether there were any.
func (s *questions) purge(match func(*question) bool) (any bool) {
	for q := range s.each {
		if match(q) {
			s.remove(q)
			any = true
		}
	}
	return any
}

// answered removes a question, if it is still there, and older ones about the
// same.
func (s *questions) answered(q *question) {
	if !s.holds(q) {
		return
	}
	t := q.target()
	for older := range s.each {
		if older == q {
			break
		}
		if older.target() == t {
			s.remove(older)
		}
	}
	s.remove(q)
}

// expire removes those that have been there for too long.
func (s *questions) expire(now time.Time) (any bool) {
	for q := range s.each {
		if now.Sub(q.at) < lifetime || q.busy {
			break
		}
		s.remove(q)
		any = true
	}
	return any
}

// isNewest reports whether an event is the newest question about its target.
func (s *questions) isNewest(e *clearance.Event) bool {
	q := s.newest[target{e.Container, e.Target()}]
	return q != nil && q.event == e
}

// newestEvents are the events of the newest question of each target.
func (s *questions) newestEvents() []*clearance.Event {
	out := make([]*clearance.Event, 0, len(s.newest))
	for q := range s.each {
		if s.newest[q.target()] == q {
			out = append(out, q.event)
		}
	}
	return out
}
