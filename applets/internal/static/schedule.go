package static

import (
	"container/heap"
	"net/netip"
	"time"
)

// When a name is looked up again: when its addresses expire, within bounds,
// and after failures.
const (
	minInterval = time.Minute
	maxInterval = 30 * time.Minute
	minBackoff  = 5 * time.Second
)

// backoff is how long to wait after failures in a row.
func backoff(failures int) time.Duration {
	d := minBackoff
	for range min(failures, 16) - 1 {
		d = min(2*d, maxInterval)
	}
	return jitter(d)
}

// entry is a name that is looked up again and again.
type entry struct {
	name     string
	due      time.Time
	urgent   bool          // somebody waits for it
	failures int           // in a row
	settled  chan struct{} // is closed after the next lookup; nil if nobody waits

	addrs   []netip.Addr // of the last lookup that found some
	until   time.Time    // until when they are to be open
	refused bool         // the firewall took no addresses then
	again   bool         // if so it is to be looked up again at once

	index int // in the schedule; -1: not there, it is being looked up or gone
}

// wait is closed after the next lookup, or when the name is gone.
func (n *entry) wait() <-chan struct{} {
	if n.settled == nil {
		n.settled = make(chan struct{})
	}
	return n.settled
}

// settle tells those who wait.
func (n *entry) settle() {
	if n.settled != nil {
		close(n.settled)
		n.settled = nil
	}
}

// schedule is a heap of names, those to be looked up first at its top.
type schedule []*entry

func (s *schedule) put(n *entry) { heap.Push(s, n) }

func (s *schedule) remove(n *entry) {
	if n.index >= 0 {
		heap.Remove(s, n.index)
	}
}

func (s *schedule) fix(n *entry) { heap.Fix(s, n.index) }

// Len implements heap.Interface.
func (s schedule) Len() int { return len(s) }

// Less implements heap.Interface.
func (s schedule) Less(i, j int) bool {
	if s[i].urgent != s[j].urgent {
		return s[i].urgent
	}
	return s[i].due.Before(s[j].due)
}

// Swap implements heap.Interface.
func (s schedule) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].index, s[j].index = i, j
}

// Push implements heap.Interface.
func (s *schedule) Push(x any) {
	n := x.(*entry)
	n.index = len(*s)
	*s = append(*s, n)
}

// Pop implements heap.Interface.
func (s *schedule) Pop() any {
	last := len(*s) - 1
	n := (*s)[last]
	(*s)[last] = nil
	*s = (*s)[:last]
	n.index = -1
	return n
}
