package learned

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/nl/nft"
)

// An operator allows or denies something else: what was learned is still
// there, and so are the promises. A later answer with a short TTL does not
// take away what an earlier one, still in use, was answered with.
func TestPromisesOutliveForeignChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		s := newSet(t, f, Options{})
		a := addrs("203.0.113.1")
		learn(t, s, "example.com", time.Hour, a[0].String())
		good := time.Now().Add(time.Hour + margin)
		f.mu.Lock()
		f.generation++
		f.mu.Unlock()
		time.Sleep(2 * checkEvery)
		learn(t, s, "other.example.com", time.Minute, "203.0.113.2") // notices
		if d := cmp.Diff(a, s.Addresses("example.com"), byValue); d != "" {
			t.Error(d)
		}
		if n := s.Len(); n != 2 {
			t.Errorf("%d addresses", n)
		}
		learn(t, s, "example.com", time.Second, a[0].String())
		if f.until[a[0]].Before(good) {
			t.Errorf("closed %v before the first answer ends", good.Sub(f.until[a[0]]))
		}
	})
}

// After a restart, and wherever an address has more owners than are
// remembered, one that is known and allowed keeps it open.
func TestKnownOwnerKeepsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		a := addrs("203.0.113.1", "203.0.113.2")
		for _, a := range a { // of an earlier life
			f.until[a] = time.Now().Add(time.Hour)
		}
		s := newSet(t, f, Options{})
		learn(t, s, "example.com", time.Minute, a[0].String())
		removed, err := s.Retain(t.Context(), func(string) bool { return true })
		if d := cmp.Diff(a[1:], removed, byValue); d != "" || err != nil {
			t.Errorf("%v: %s", err, d)
		}
		if d := cmp.Diff(a[:1], f.open(), byValue); d != "" {
			t.Error(d)
		}
		// None that is remembered is allowed any more.
		for i := range 2 * maxOwners {
			learn(t, s, fmt.Sprintf("x%d.example.com", i), time.Minute, a[0].String())
		}
		forgotten := fmt.Sprintf("x%d.example.com", 2*maxOwners-1)
		if _, err := s.Retain(t.Context(), func(name string) bool { return name == forgotten }); err != nil {
			t.Fatal(err)
		}
		if got := f.open(); len(got) != 0 {
			t.Errorf("%v open because of a name that is not remembered", got)
		}
	})
}

// An allowed zone answers every name with the same addresses, or others every
// time: what is remembered of them has an end.
func TestHostileZoneTakesLittleMemory(t *testing.T) {
	s := newSet(t, newFake(), Options{})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range 100_000 {
		s.mu.Lock()
		for j := range 4 {
			a := netip.AddrFrom4([4]byte{203, 0, byte((i*4 + j) >> 8 & 0x3f), byte(i*4 + j)})
			if s.entries[a] == nil {
				s.add(&entry{addr: a, until: time.Now().Add(time.Hour)})
			}
			s.own(a, fmt.Sprintf("name-%d.zone.example.com", i), time.Now())
		}
		s.mu.Unlock()
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	n := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d KiB for %d addresses and %d pairs", n>>10, len(s.entries), s.pairs.lru.Len())
	if n > 32<<20 {
		t.Errorf("%d bytes", n)
	}
	runtime.KeepAlive(s)
}

// In quarantine every answer of a batch is refused by one attempt.
func TestQuarantineIsAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &counting{fake: newFake()}
		f.slow, f.off = time.Millisecond, true
		s, err := New(Options{Kernel: f})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				err := s.Learn(t.Context(), s.Life(), "example.com", []Answer{{addrs(fmt.Sprintf("203.0.113.%d", i))[0], time.Minute}})
				if !errors.Is(err, nft.ErrNotLearning) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if f.calls > 5 {
			t.Errorf("%d attempts", f.calls)
		}
	})
}

type counting struct {
	*fake
	calls int
}

func (c *counting) Learn(all []nft.Learned) error {
	c.calls++
	return c.fake.Learn(all)
}

// Many ask for the same at once: what the transaction before has opened is not
// opened again.
func TestSameAnswerAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.slow = time.Millisecond
		s := newSet(t, f, Options{})
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() { learn(t, s, "example.com", time.Minute, "203.0.113.1") })
		}
		wg.Wait()
		if f.learns != 1 {
			t.Errorf("%d transactions", f.learns)
		}
	})
}

// Whatever happens in between: what Learn agreed to can be reached for as long
// as it is answered, there are never more addresses than there may be, and
// after Retain none is open but those that an allowed name was answered with.
func TestRandomLife(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 7))
			const most = 8
			f := newFake()
			s := newSet(t, f, Options{MaxAddrs: most, MaxPairs: 40})
			owners := map[netip.Addr]map[string]bool{}
			allowed := func(string) bool { return true }
			for step := range 400 {
				name := fmt.Sprintf("n%d.example.com", r.IntN(6))
				var answers []Answer
				for range 1 + r.IntN(3) {
					answers = append(answers, Answer{addrs(fmt.Sprintf("203.0.113.%d", r.IntN(20)))[0], time.Duration(r.IntN(3601)) * time.Second})
				}
				switch r.IntN(12) {
				case 0:
					f.emptied()
					time.Sleep(2 * checkEvery)
				case 1:
					f.mu.Lock()
					f.generation++
					f.mu.Unlock()
				case 2:
					time.Sleep(time.Duration(r.IntN(3600)) * time.Second)
				case 3:
					s.See(name, []netip.Addr{answers[0].Addr})
				case 4:
					denied := fmt.Sprintf("n%d.example.com", r.IntN(6))
					allowed = func(name string) bool { return name != denied }
					if _, err := s.Retain(t.Context(), allowed); err != nil {
						t.Fatal(err)
					}
					for _, a := range f.open() {
						ok := false
						for name := range owners[a] {
							ok = ok || allowed(name)
						}
						if !ok {
							t.Fatalf("seed %d, step %d: %s is open for %v", seed, step, a, owners[a])
						}
					}
				case 5:
					was := f.open()
					if removed, err := s.Forget(t.Context()); err != nil || !slices.Equal(removed, was) || len(f.open()) > 0 {
						t.Fatalf("seed %d, step %d: %v of %v, %v; open are %v", seed, step, removed, was, err, f.open())
					}
					clear(owners)
				default:
					err := s.Learn(t.Context(), s.Life(), name, answers)
					if allowed(name) != (err == nil) {
						t.Fatalf("seed %d, step %d: %s: %v", seed, step, name, err)
					}
					for _, a := range answers {
						if err != nil {
							break
						}
						if left := time.Until(f.until[a.Addr]); left < a.TTL+margin {
							t.Fatalf("seed %d, step %d: %s for %v, answered for %v", seed, step, a.Addr, left, a.TTL)
						}
						if owners[a.Addr] == nil {
							owners[a.Addr] = map[string]bool{}
						}
						owners[a.Addr][name] = true
						if !slices.Contains(s.Addresses(name), a.Addr) {
							t.Fatalf("seed %d, step %d: %s is not among the addresses of %s", seed, step, a.Addr, name)
						}
					}
				}
				if n := len(f.open()); n > most {
					t.Fatalf("seed %d, step %d: %d are open", seed, step, n)
				}
			}
		})
	}
}

// In quarantine nothing is open, and nobody is told that something is.
func TestNothingIsOpenInQuarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		s := newSet(t, f, Options{})
		learn(t, s, "example.com", time.Hour, "203.0.113.1")
		f.off = true
		f.emptied()
		time.Sleep(2 * checkEvery)
		if err := s.Learn(t.Context(), s.Life(), "example.com", []Answer{{addrs("203.0.113.1")[0], time.Minute}}); !errors.Is(err, nft.ErrNotLearning) {
			t.Error(err)
		}
		if n, got := s.Len(), s.Addresses("example.com"); n != 0 || len(got) != 0 {
			t.Errorf("%d open, %v", n, got)
		}
	})
}
