// Package learned remembers which addresses a container may reach because of
// which names, and has the firewall follow: an address is in its learned sets
// before the container hears of it, at least as long as the answer is good.
//
// It must never import a resolver or a package that faces people.
package learned

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/wire/names"
)

const (
	// MaxTTL is the longest TTL that may be handed out to a container.
	MaxTTL = time.Hour
	// margin is how much longer than its TTL an address can be reached: a
	// client connects some time after it has asked.
	margin = time.Minute
	// extra is how much longer than its TTL an address is let in, so that an
	// answer from a cache mostly finds it there for long enough, and clients
	// that keep an answer longer than they should have some minutes.
	extra = 5 * time.Minute

	defaultMaxAddrs = 16384
	defaultMaxPairs = 16384
	maxOwners       = 16  // names that are remembered as owners of one address
	maxBatch        = 256 // addresses of one transaction
	evictShare      = 64  // of all that may be there, one in so many goes at once
	maxQueue        = 4096
	// checkEvery is how often it is looked whether somebody else has changed
	// the firewall.
	checkEvery = 10 * time.Millisecond
)

// Errors of Learn besides those of the firewall.
var (
	ErrNotAllowed = errors.New("the name is no longer allowed") // was taken off the lists meanwhile
	ErrForgotten  = errors.New("what was learned has been forgotten since it was asked for")
)

var (
	errClosed = errors.New("the set of learned addresses is closed")
	errBusy   = errors.New("too many addresses wait for the firewall")
)

// Kernel is the firewall; an *nft.Conn.
type Kernel interface {
	Learn([]nft.Learned) error
	Forget([]netip.Addr) error
	ForgetAll() error
	Learned() ([]nft.Learned, error)
	Generation() (uint32, error)
}

// Options is what a Set works with.
type Options struct {
	Kernel   Kernel
	Cut      func([]netip.Addr) (int, error) // ends connections to addresses
	MaxAddrs int                             // in the firewall; 0: 16,384
	MaxPairs int                             // of an address and a name, remembered; 0: 16,384
}

// Answer is an address that the container is about to be answered with.
type Answer struct {
	Addr netip.Addr
	TTL  time.Duration // as handed out, at most MaxTTL
}

// Life is the time between two Forgets. Whoever asks for addresses notes it
// before, and learns and hands them out in the same one.
type Life uint64

// Set is the learned addresses of one container.
//
//	           Learn                  Retain, Forget, eviction
//	unknown ──────────► in the firewall ───────────────────► unknown
//	   ▲                  │         ▲
//	   └── timeout ───────┘         └── found there at the start, owner unknown
type Set struct {
	o    Options
	done chan struct{} // closed, and nobody changes the firewall any more

	life    atomic.Uint64 // a Life; changes with mu and leaving locked
	leaving sync.RWMutex  // read-locked while an answer leaves; whoever holds it never takes mu

	mu         sync.Mutex
	closed     bool
	busy       bool // somebody carries out what is in the queue
	queue      []*op
	committing bool
	allowed    func(string) bool // nil: everything that is learned
	entries    map[netip.Addr]*entry
	order      soonest // the same
	pairs      pairs
	epoch      uint32 // what was learned in another one may not be there any more
	generation uint32 // that own commits explain
	known      bool   // whether it is known
	checked    time.Time
}

// entry is an address that is, or may be, in the firewall. One without owners
// was found there, or could not be closed.
type entry struct {
	addr    netip.Addr
	place   int       // in order
	until   time.Time // it is there until then if nobody else has changed that; zero: perhaps
	timeout time.Duration
	epoch   uint32   // in which it was learned
	owners  []string // of more than maxOwners, the first ones
}

// op is a change of the firewall; Learn, or Retain or Forget if it has no
// answers.
type op struct {
	life    Life
	name    string
	answers []Answer
	all     bool         // Forget
	removed []netip.Addr // what Retain or Forget has closed
	err     error
	carried bool        // out; err and removed are what came of it
	then    func(error) // called then
}

// New takes over what is in the firewall, whose owners are unknown.
func New(o Options) (*Set, error) {
	if o.MaxAddrs <= 0 {
		o.MaxAddrs = defaultMaxAddrs
	}
	if o.MaxPairs <= 0 {
		o.MaxPairs = defaultMaxPairs
	}
	s := &Set{
		o: o, done: make(chan struct{}),
		entries: map[netip.Addr]*entry{}, pairs: newPairs(o.MaxPairs), epoch: 1,
	}
	there, err := o.Kernel.Learned()
	if err != nil && !errors.Is(err, nft.ErrNotLearning) {
		return nil, fmt.Errorf("find what names have opened: %w", err)
	}
	for _, l := range there {
		s.add(&entry{addr: l.Addr, until: time.Now().Add(l.Timeout), timeout: l.Timeout})
	}
	return s, nil
}

// Close ends the set. What is in the firewall stays there.
func (s *Set) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		if !s.busy {
			close(s.done)
		}
	}
	s.mu.Unlock()
	<-s.done
	return nil
}

// lifetime is how long an address stays in the firewall.
func lifetime(ttl time.Duration) time.Duration { return ttl + extra }

// Life is the present one.
func (s *Set) Life() Life { return Life(s.life.Load()) }

// Leave calls f, by which an answer leaves, unless the life is over in which
// its addresses were learned, and reports whether it has. Nothing is forgotten
// meanwhile, so f must wait for nothing, least of all for s.
func (s *Set) Leave(life Life, f func()) bool {
	s.leaving.RLock()
	defer s.leaving.RUnlock()
	if s.Life() != life {
		return false
	}
	f()
	return true
}

// Learn returns when all the addresses can be reached, for a minute longer
// than their TTL at least, or until the life is over, in which they were asked
// for. Those that are there for long enough anyway cost nothing.
func (s *Set) Learn(ctx context.Context, life Life, name string, answers []Answer) error {
	done := make(chan error, 1)
	s.LearnThen(life, name, slices.Clone(answers), func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// LearnThen is Learn that has then called instead of returning: before it
// returns, or in another goroutine, for which others wait meanwhile. answers
// must not be changed any more.
func (s *Set) LearnThen(life Life, name string, answers []Answer, then func(error)) {
	for _, a := range answers {
		if a.TTL > MaxTTL {
			then(fmt.Errorf("learn %s: a TTL of %v; at most %v is possible", name, a.TTL, MaxTTL))
			return
		}
	}
	s.mu.Lock()
	now := time.Now()
	switch {
	case s.closed:
		s.mu.Unlock()
		then(errClosed)
		return
	case s.Life() != life:
		s.mu.Unlock()
		then(fmt.Errorf("learn %s: %w", name, ErrForgotten))
		return
	case s.allowed != nil && !s.allowed(name):
		s.mu.Unlock()
		then(fmt.Errorf("learn %s: %w", name, ErrNotAllowed))
		return
	}
	s.check(now)
	if slices.ContainsFunc(answers, func(a Answer) bool { return !s.fresh(a, now) }) {
		s.submit(&op{life: life, name: name, answers: answers, then: then}) // unlocks
		return
	}
	for _, a := range answers {
		s.own(a.Addr, name, now)
	}
	s.mu.Unlock()
	then(nil)
}

// TryLearn is Learn where that does not wait for a transaction: where all the
// addresses can be reached for long enough already. If it reports false it has
// done nothing.
func (s *Set) TryLearn(life Life, name string, addrs []netip.Addr, ttl time.Duration) bool {
	if ttl > MaxTTL {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.Life() != life || s.allowed != nil && !s.allowed(name) {
		return false
	}
	now := time.Now()
	s.check(now)
	for _, a := range addrs {
		if !s.fresh(Answer{Addr: a, TTL: ttl}, now) {
			return false
		}
	}
	for _, a := range addrs {
		s.own(a, name, now)
	}
	return true
}

// submit has an op carried out. It is called with the lock held and returns
// without. Who comes when nobody changes the firewall does so, in the goroutine
// that it has; what others want meanwhile is done together, next. Goroutines
// that have something to do already go first: it may be more of the same.
func (s *Set) submit(o *op) {
	if len(s.queue) >= maxQueue {
		s.mu.Unlock()
		o.then(errBusy)
		return
	}
	s.queue = append(s.queue, o)
	if s.busy {
		s.mu.Unlock()
		return
	}
	s.busy = true
	s.mu.Unlock()
	runtime.Gosched()
	s.mu.Lock()
	s.commit(o) // unlocks
}

// fresh reports whether an answer needs no renewal.
func (s *Set) fresh(a Answer, now time.Time) bool {
	e := s.entries[a.Addr]
	if e == nil || e.epoch != s.epoch {
		return false
	}
	left := e.until.Sub(now)
	return left > e.timeout/2 && left >= a.TTL+margin
}

// own records that a name leads to an address that is in the firewall.
func (s *Set) own(addr netip.Addr, name string, now time.Time) {
	e := s.entries[addr]
	if len(e.owners) < maxOwners && !slices.Contains(e.owners, name) {
		e.owners = append(e.owners, name)
	}
	s.pairs.add(addr, name, true, now)
}

// check finds out whether somebody else has changed the firewall: it may have
// lost what was learned. If it has not, the time that was promised still
// counts: the next answer must not shorten it.
func (s *Set) check(now time.Time) {
	if s.committing || s.known && now.Sub(s.checked) < checkEvery {
		return
	}
	g, err := s.o.Kernel.Generation()
	if err != nil || !s.known || g != s.generation {
		s.epoch++
	}
	s.generation, s.known, s.checked = g, err == nil, now
}

// See remembers what a name was answered with although it opens nothing.
func (s *Set) See(name string, addrs []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, a := range addrs {
		s.pairs.add(a, name, false, now)
	}
}

// Retain closes every address that no allowed name owns, ends the connections
// to it, and returns those addresses, sorted. Addresses whose owners are not
// known, as after a restart, are among them, unless they were learned again
// since: whose name is asked for is learned again. From now on nothing else can be learned than what is
// allowed.
func (s *Set) Retain(ctx context.Context, allowed func(name string) bool) ([]netip.Addr, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, errClosed
	}
	s.allowed = allowed
	return s.shut(ctx, &op{}) // unlocks
}

// Forget closes every address, whoever has opened it, ends the connections to
// it, and returns those addresses, sorted. A life ends with it: what was asked
// for before is not learned any more, and no answer of before leaves. Which
// names were answered with which addresses is still known.
func (s *Set) Forget(ctx context.Context) ([]netip.Addr, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, errClosed
	}
	return s.shut(ctx, &op{all: true}) // unlocks
}

// shut has an op carried out that closes addresses. It is called with the lock
// held and returns without.
func (s *Set) shut(ctx context.Context, o *op) ([]netip.Addr, error) {
	done := make(chan error, 1)
	o.then = func(err error) { done <- err }
	s.submit(o) // unlocks
	select {
	case err := <-done:
		return o.removed, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Names are the names that the container was answered with the address for,
// the latest first.
func (s *Set) Names(addr netip.Addr) []names.Name {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pairs.names(addr, time.Now(), s.allowed)
}

// Addresses are those that can be reached because of a name, sorted.
func (s *Set) Addresses(name string) (addrs []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for a, e := range s.entries {
		if e.until.After(now) && slices.Contains(e.owners, name) {
			addrs = append(addrs, a)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}

// Len is how many addresses can be reached because of names, as far as known.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, now := 0, time.Now()
	for _, e := range s.entries {
		if e.until.After(now) {
			n++
		}
	}
	return n
}

// commit carries out what is in the queue, until own is done, if that is not
// nil; the rest is then left to another goroutine. It is called with the lock
// held by the one that has set busy, and returns without the lock.
func (s *Set) commit(own *op) {
	for len(s.queue) > 0 {
		if own != nil && own.carried {
			go func() {
				s.mu.Lock()
				s.commit(nil)
			}()
			s.mu.Unlock()
			return
		}
		if s.closed {
			rest := s.queue
			s.queue = nil
			for _, o := range rest {
				o.err = errClosed
			}
			s.mu.Unlock()
			finish(rest)
			s.mu.Lock()
			continue
		}
		s.check(time.Now())
		s.committing = true
		if s.queue[0].answers == nil {
			o := s.queue[0]
			s.queue = s.queue[1:]
			if o.all {
				s.empty(o) // unlocks
			} else {
				s.retain(o) // unlocks
			}
			finish([]*op{o})
			s.mu.Lock()
			continue
		}
		n, size := 0, 0
		for n < len(s.queue) && s.queue[n].answers != nil && (n == 0 || size+len(s.queue[n].answers) <= maxBatch) {
			size += len(s.queue[n].answers)
			n++
		}
		batch := slices.Clone(s.queue[:n])
		s.queue = s.queue[n:]
		if len(s.queue) == 0 {
			s.queue = nil // or it would keep what was in front
		}
		s.learn(batch) // unlocks
		finish(batch)
		s.mu.Lock()
	}
	s.busy = false
	if s.closed {
		close(s.done)
	}
	s.mu.Unlock()
}

// finish tells those who wait for ops what came of them.
func finish(ops []*op) {
	for _, o := range ops {
		o.carried = true
		o.then(o.err)
	}
}

// changed records the end of a transaction. The lock is held.
func (s *Set) changed(err error) {
	s.committing = false
	if err != nil {
		s.known = false // something may have happened all the same
		return
	}
	s.generation++
}

// learn carries out Learn ops. It is called with the lock held and returns
// without.
func (s *Set) learn(batch []*op) {
	now := time.Now()
	add := make(map[netip.Addr]nft.Learned) // without a timeout: is there for long enough
	for _, o := range batch {
		switch {
		case s.Life() != o.life:
			o.err = fmt.Errorf("learn %s: %w", o.name, ErrForgotten)
			continue
		case s.allowed != nil && !s.allowed(o.name):
			o.err = fmt.Errorf("learn %s: %w", o.name, ErrNotAllowed)
			continue
		}
		for _, a := range o.answers {
			t := add[a.Addr].Timeout
			e := s.entries[a.Addr]
			if !s.fresh(a, now) { // else in the transaction before, mostly
				t = max(t, lifetime(a.TTL))
				if e != nil { // never shorten
					t = max(t, e.until.Sub(now).Truncate(time.Millisecond))
				}
			}
			add[a.Addr] = nft.Learned{Addr: a.Addr, Timeout: t, New: e == nil}
		}
	}
	evicted := s.evict(add, now)
	s.mu.Unlock()

	s.transactions(func() error {
		err := s.forget(evicted)
		if err != nil {
			s.suspect(evicted)
		}
		return err
	}, len(evicted))
	all := make([]nft.Learned, 0, len(add))
	for _, l := range add {
		if l.Timeout != 0 {
			all = append(all, l)
		}
	}
	var err error
	if len(all) > 0 {
		err = s.o.Kernel.Learn(all)
	}
	s.mu.Lock()
	if len(all) > 0 {
		s.changed(err)
	}
	s.committing = false
	off := errors.Is(err, nft.ErrNotLearning)
	if off {
		for _, e := range s.entries { // the sets are gone, with all of them
			e.until = now
		}
	}
	for _, o := range batch {
		switch {
		case o.err != nil:
		case err == nil:
			s.record(o, add, now)
		case off || len(batch) == 1:
			o.err = err
		}
	}
	s.mu.Unlock()
	if err == nil || off || len(batch) == 1 {
		return
	}
	for _, o := range batch { // so that one does not fail the others
		if o.err == nil {
			s.mu.Lock()
			s.committing = true
			s.learn([]*op{o})
		}
	}
}

// record takes over what is in the firewall now.
func (s *Set) record(o *op, add map[netip.Addr]nft.Learned, now time.Time) {
	for _, a := range o.answers {
		e := s.entries[a.Addr]
		if e == nil {
			e = &entry{addr: a.Addr}
			s.add(e)
		}
		if t := add[a.Addr].Timeout; t != 0 {
			e.timeout, e.until, e.epoch = t, now.Add(t), s.epoch
			heap.Fix(&s.order, e.place)
		}
		s.own(a.Addr, o.name, now)
	}
}

// evict makes room for new addresses: those that expire soonest go, and some
// more at once, so that it does not have to be done for every new one.
func (s *Set) evict(add map[netip.Addr]nft.Learned, now time.Time) (evicted []netip.Addr) {
	more := 0
	for a := range add {
		if s.entries[a] == nil {
			more++
		}
	}
	most := s.o.MaxAddrs - more
	if len(s.entries) <= most {
		return nil
	}
	most -= s.o.MaxAddrs / evictShare
	var wanted []*entry
	for len(s.entries) > max(most, 0) {
		e := s.order.all[0]
		s.remove(e)
		if _, ok := add[e.addr]; ok {
			wanted = append(wanted, e)
			most--
		} else if e.until.IsZero() || e.until.After(now) { // else it is gone
			evicted = append(evicted, e.addr)
		}
	}
	for _, e := range wanted {
		s.add(e)
	}
	return evicted
}

func (s *Set) add(e *entry) {
	s.entries[e.addr] = e
	heap.Push(&s.order, e)
}

func (s *Set) remove(e *entry) {
	delete(s.entries, e.addr)
	heap.Remove(&s.order, e.place)
}

// soonest is a heap.Interface of entries: the one that expires first is first.
type soonest struct{ all []*entry }

func (h *soonest) Len() int           { return len(h.all) }
func (h *soonest) Less(i, j int) bool { return h.all[i].until.Before(h.all[j].until) }

func (h *soonest) Swap(i, j int) {
	h.all[i], h.all[j] = h.all[j], h.all[i]
	h.all[i].place, h.all[j].place = i, j
}

func (h *soonest) Push(x any) {
	e := x.(*entry)
	e.place = len(h.all)
	h.all = append(h.all, e)
}

func (h *soonest) Pop() any {
	e := h.all[len(h.all)-1]
	h.all[len(h.all)-1] = nil
	h.all = h.all[:len(h.all)-1]
	return e
}

// transactions runs a change outside of the lock, n addresses.
func (s *Set) transactions(f func() error, n int) {
	if n == 0 {
		return
	}
	err := f()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.known = false
		return
	}
	s.generation += uint32((n + maxBatch - 1) / maxBatch)
}

// forget closes addresses.
func (s *Set) forget(addrs []netip.Addr) error {
	for chunk := range slices.Chunk(addrs, maxBatch) {
		if err := s.o.Kernel.Forget(chunk); err != nil {
			return err
		}
	}
	return nil
}

// retain carries out a Retain op. It is called with the lock held and returns
// without.
func (s *Set) retain(o *op) {
	s.known = false // an operator is at it: what is in the firewall is looked at anew
	for a, e := range s.entries {
		e.owners = slices.DeleteFunc(e.owners, func(name string) bool { return s.allowed != nil && !s.allowed(name) })
		if len(e.owners) == 0 {
			o.removed = append(o.removed, a)
			s.remove(e)
		}
	}
	slices.SortFunc(o.removed, netip.Addr.Compare)
	s.mu.Unlock()

	err := s.forget(o.removed)
	if errors.Is(err, nft.ErrNotLearning) {
		err = nil // there is nothing to close
		s.mu.Lock()
		s.known = false
		s.mu.Unlock()
	} else {
		s.transactions(func() error { return err }, len(o.removed))
	}
	s.cut(o, err)
}

// cut ends the connections to what an op has removed from the firewall, or was
// to: err is what came of that.
func (s *Set) cut(o *op, err error) {
	if err != nil {
		o.err = fmt.Errorf("close what names had opened: %w", err)
	}
	if len(o.removed) > 0 && s.o.Cut != nil {
		if _, err := s.o.Cut(o.removed); err != nil {
			o.err = errors.Join(o.err, fmt.Errorf("end the connections to %d addresses: %w", len(o.removed), err))
		}
	}
	if o.err != nil {
		s.suspect(o.removed)
	}
	s.mu.Lock()
	s.committing = false
	s.mu.Unlock()
}

// empty carries out a Forget op. It is called with the lock held and returns
// without. From the moment on at which the new life begins nothing is taken to
// be in the firewall, and what is learned then comes after this in the queue.
func (s *Set) empty(o *op) {
	s.known = false // what is in the firewall is looked at anew
	s.leaving.Lock()
	s.life.Add(1)
	s.leaving.Unlock()
	known := s.entries
	s.entries, s.order = map[netip.Addr]*entry{}, soonest{}
	s.mu.Unlock()

	there, err := s.o.Kernel.Learned()
	if err == nil {
		for _, l := range there {
			o.removed = append(o.removed, l.Addr)
		}
	} else {
		o.removed = slices.Collect(maps.Keys(known))
	}
	slices.SortFunc(o.removed, netip.Addr.Compare)
	if err = s.o.Kernel.ForgetAll(); errors.Is(err, nft.ErrNotLearning) {
		o.removed, err = nil, nil // there is nothing to close
	}
	s.cut(o, err)
}

// suspect notes addresses that may still be open: the next Retain closes them.
func (s *Set) suspect(addrs []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range addrs {
		if s.entries[a] == nil {
			s.add(&entry{addr: a})
		}
	}
}
