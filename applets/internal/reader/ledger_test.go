package reader

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

var epoch = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)

func at(seconds float64) time.Time {
	return epoch.Add(time.Duration(seconds * float64(time.Second)))
}

func TestBucket(t *testing.T) {
	b := newBucket(3, 2, epoch)
	for i, tt := range []struct {
		at   float64
		want bool
	}{
		{0, true}, {0, true}, {0, true}, {0, false}, {0.4, false}, {0.5, true}, {0.5, false}, {0.2, false},
		{1.5, true}, {1.5, true}, {1.5, false}, {100, true}, {100, true}, {100, true}, {100, false},
	} {
		if got := b.take(at(tt.at)); got != tt.want {
			t.Errorf("%d: %v", i, got)
		}
	}
}

// The two sinks know of a destination independently of each other.
func TestLedger(t *testing.T) {
	l := newLedger(0, epoch)
	a, b := key{name: "a"}, key{addr: netip.MustParseAddr("192.0.2.1")}
	claims := func(k key, when float64, wantPeople, wantRecord claim) {
		t.Helper()
		if p, r := l.claim(k, people, at(when)), l.claim(k, record, at(when)); p != wantPeople || r != wantRecord {
			t.Errorf("%v at %v: %v and %v, want %v and %v", k, when, p, r, wantPeople, wantRecord)
		}
	}
	claims(a, 0, claimed, claimed)
	claims(a, 100, repeated, repeated) // it takes its time
	l.settle(a, people, at(0), true)
	l.settle(a, record, at(0), false)
	claims(a, 1, repeated, claimed)
	l.settle(a, record, at(1), true)
	claims(a, 29.9, repeated, repeated)
	claims(b, 29.9, claimed, claimed)
	claims(a, 30, claimed, repeated)
	l.settle(a, people, at(30), false)
	claims(a, 30.9, claimed, repeated)
	l.settle(a, people, at(30.9), true)
	claims(a, 31, repeated, claimed)
	if l.suppressed != [sinks]uint64{} {
		t.Errorf("suppressed %v", l.suppressed)
	}
}

// Each destination that there was no room for counts once a window, and is
// told of when there is room again.
func TestSuppressed(t *testing.T) {
	l := newLedger(0, epoch)
	k := func(i int) key { return key{name: fmt.Sprint(i)} }
	for range 3 {
		for i := range 1000 {
			if l.claim(k(i), people, epoch) == claimed {
				l.settle(k(i), people, epoch, true)
			}
		}
	}
	if got := l.suppressed; got != [sinks]uint64{people: 1000 - askBurst} {
		t.Errorf("suppressed %v", got)
	}
	if got := l.claim(k(999), people, at(0.5)); got != claimed {
		t.Errorf("later: %v", got)
	}
	l.settle(k(999), people, at(0.5), true)
	l.claim(k(998), people, at(0.5))
	l.claim(k(998), people, at(0.5))
	if got := l.suppressed[people]; got != 1000-askBurst {
		t.Errorf("suppressed %v: it was counted before", got)
	}
	for range askBurst + 5 { // in another window
		l.claim(k(998), people, at(40))
		l.claim(k(997), people, at(40))
		l.claim(key{name: fmt.Sprint(rand.Uint64())}, people, at(40))
	}
	if got := l.suppressed[people]; got <= 1000-askBurst {
		t.Errorf("suppressed %v", got)
	}
}

// Whatever happens, there are only so many questions and so many destinations
// in memory.
func TestLedgerIsBounded(t *testing.T) {
	l := newLedger(0, epoch)
	const seconds, each = 300, 500
	var n [sinks]int
	for i := range seconds * each {
		now := at(float64(i) / each)
		k := key{name: fmt.Sprint(rand.IntN(100_000))}
		for s := range sinks {
			if l.claim(k, s, now) == claimed {
				n[s]++
				l.settle(k, s, now, rand.IntN(2) == 0)
			}
		}
		if len(l.keys) > sweepKeys || len(l.noted) > maxNoted {
			t.Fatalf("%d destinations, %d noted", len(l.keys), len(l.noted))
		}
	}
	if n[people] > askBurst+askRate*seconds || n[record] > lineBurst+lineRate*seconds {
		t.Errorf("%v were told", n)
	}
}

func TestAliasesAreBounded(t *testing.T) {
	as := aliases{}
	for i := range 10 * maxAliases {
		addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		now := at(float64(i) / 1000)
		as.pend(addr, now)
		as[addr].at, as[addr].pending = now, false
		if len(as) > maxAliases || as[addr] == nil {
			t.Fatalf("%d addresses", len(as))
		}
	}
}
