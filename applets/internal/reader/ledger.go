package reader

import (
	"hash/maphash"
	"net/netip"
	"time"

	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// How much is told about one container, whatever it does. Questions that
// nobody has answered are as many as a person can still look through; those of
// lines are the resolver's.
const (
	// window is from one question about a destination to the next, and from
	// one line of the audit log about it to the next.
	window = 30 * time.Second

	askBurst  = bundle.DefaultQuestions // questions without an answer at once, if nothing else is wanted…
	askRate   = 2                       // …and a second from then on
	lineBurst = 50                      // lines of the audit log at once…
	lineRate  = 1                       // …and a second from then on
	// A name is looked up for one packet, not for all that follow each other
	// to the same address: as often as the firewall logs something new.
	lookupBurst = 256
	lookupRate  = ruleset.LogRate

	// maxKeys is how many destinations are remembered. Within a window there
	// are not more than lookupBurst and what the rates admit; the rest waits
	// to be forgotten.
	maxKeys   = 4096
	sweepKeys = 512
	// maxNoted is how many destinations that nobody was told of are told
	// apart in a window. Beyond, each of their packets counts as another.
	maxNoted = 4096
)

// key is what destinations are told apart by: the name, or the address of
// what has none.
type key struct {
	name string
	addr netip.Addr
}

// sink is who is told.
type sink int

const (
	people sink = iota // who answer questions
	record             // the audit log
	sinks
)

// told says when a sink was told of a destination last.
//
//	          claim                 settle: it was told
//	unknown ──────────► busy ─────────────────────────────► known
//	   ▲                  │ settle: it was not                │
//	   └──────────────────┴───────────────────────────────────┘
//	                                                    window
type told struct {
	at   time.Time // zero: never
	busy bool      // it is being told
}

// recent reports whether the sink needs not be told again.
func (t told) recent(now time.Time) bool {
	return t.busy || !t.at.IsZero() && now.Sub(t.at) < window
}

// claim is what becomes of the wish to tell a sink of a destination.
type claim int

const (
	repeated claim = iota // it knows
	claimed               // the caller tells it, then calls settle
	tooMany               // it has enough to do with others
	unwanted              // it is never told
)

// ledger is what was told to whom. Its methods take the time, which never
// goes back.
type ledger struct {
	silent     bool // people are told of nothing
	buckets    [sinks]bucket
	keys       map[key]*[sinks]told
	suppressed [sinks]uint64 // destinations that it was not told of for their number

	noted      map[uint64]struct{} // hashes of these
	notedSince time.Time
	seed       maphash.Seed
}

// newLedger is one that tells people of so many destinations at once; 0 stands
// for askBurst, less for none ever.
func newLedger(questions int, now time.Time) *ledger {
	if questions == 0 {
		questions = askBurst
	}
	return &ledger{
		silent:  questions < 0,
		buckets: [sinks]bucket{people: newBucket(float64(questions), askRate, now), record: newBucket(lineBurst, lineRate, now)},
		keys:    map[key]*[sinks]told{}, noted: map[uint64]struct{}{}, notedSince: now, seed: maphash.MakeSeed(),
	}
}

// recent reports whether a sink needs not be told of a destination.
func (l *ledger) recent(k key, s sink, now time.Time) bool {
	if s == people && l.silent {
		return true
	}
	t := l.keys[k]
	return t != nil && t[s].recent(now)
}

// claim says whether the caller shall tell a sink of a destination.
func (l *ledger) claim(k key, s sink, now time.Time) claim {
	if s == people && l.silent {
		return unwanted
	}
	t := l.keys[k]
	if t != nil && t[s].recent(now) {
		return repeated
	}
	if t == nil && !l.room(now) || !l.buckets[s].take(now) {
		l.suppress(k, s, now)
		return tooMany
	}
	if t == nil {
		t = new([sinks]told)
		l.keys[k] = t
	}
	t[s].busy = true
	return claimed
}

// settle says how a claim ended.
func (l *ledger) settle(k key, s sink, at time.Time, ok bool) {
	t := l.keys[k]
	t[s].busy = false
	if t[s].at = (time.Time{}); ok {
		t[s].at = at
	}
}

// suppress counts a destination that a sink is not told of.
func (l *ledger) suppress(k key, s sink, now time.Time) {
	if now.Sub(l.notedSince) >= window {
		clear(l.noted)
		l.notedSince = now
	}
	h := maphash.Comparable(l.seed, k) + uint64(s)
	if _, ok := l.noted[h]; ok {
		return
	}
	if len(l.noted) < maxNoted {
		l.noted[h] = struct{}{}
	}
	l.suppressed[s]++
}

// room reports whether one more destination can be remembered.
func (l *ledger) room(now time.Time) bool {
	if len(l.keys) >= sweepKeys {
		for k, t := range l.keys {
			if !t[people].recent(now) && !t[record].recent(now) {
				delete(l.keys, k)
			}
		}
	}
	return len(l.keys) < maxKeys
}

// bucket admits burst at once and rate a second from then on.
type bucket struct {
	burst, rate float64
	tokens      float64
	at          time.Time
}

func newBucket(burst, rate float64, now time.Time) bucket {
	return bucket{burst: burst, rate: rate, tokens: burst, at: now}
}

// ready reports whether one more is admitted now.
func (b *bucket) ready(now time.Time) bool {
	if d := now.Sub(b.at); d > 0 {
		b.tokens = min(b.tokens+d.Seconds()*b.rate, b.burst)
		b.at = now
	}
	return b.tokens >= 1
}

// take admits one more, or reports that it cannot.
func (b *bucket) take(now time.Time) bool {
	if !b.ready(now) {
		return false
	}
	b.tokens--
	return true
}

// give takes one back.
func (b *bucket) give() { b.tokens = min(b.tokens+1, b.burst) }
