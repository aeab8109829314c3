package learned

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/wire/names"
)

var byValue = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmpopts.EquateEmpty(),
}

// fake is a firewall whose elements expire.
type fake struct {
	mu         sync.Mutex
	until      map[netip.Addr]time.Time
	generation uint32
	off        bool // quarantine
	refuse     netip.Addr
	learns     int
	slow       time.Duration
	stuck      error // of ForgetAll
	cut        []netip.Addr
}

func newFake() *fake { return &fake{until: map[netip.Addr]time.Time{}} }

func (f *fake) Learn(all []nft.Learned) error {
	time.Sleep(f.slow)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.off {
		return nft.ErrNotLearning
	}
	for _, l := range all {
		if l.Addr == f.refuse {
			return errors.New("refused")
		}
	}
	f.learns++
	f.generation++
	for _, l := range all {
		f.until[l.Addr] = time.Now().Add(l.Timeout)
	}
	return nil
}

func (f *fake) Forget(addrs []netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.off {
		return nft.ErrNotLearning
	}
	f.generation++
	for _, a := range addrs {
		delete(f.until, a)
	}
	return nil
}

func (f *fake) ForgetAll() error {
	time.Sleep(f.slow)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.off {
		return nft.ErrNotLearning
	}
	if f.stuck != nil {
		return f.stuck
	}
	f.generation++
	clear(f.until)
	return nil
}

func (f *fake) Learned() (all []nft.Learned, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for a, t := range f.until {
		if left := time.Until(t); left > 0 {
			all = append(all, nft.Learned{Addr: a, Timeout: left})
		}
	}
	return all, nil
}

func (f *fake) Generation() (uint32, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.generation, nil
}

func (f *fake) Cut(addrs []netip.Addr) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut = append(f.cut, addrs...)
	return len(addrs), nil
}

// open is what can be reached now.
func (f *fake) open() (addrs []netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for a, t := range f.until {
		if t.After(time.Now()) {
			addrs = append(addrs, a)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}

// emptied is what quarantine and up again, or another program, does.
func (f *fake) emptied() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.until)
	f.generation += 2
}

func newSet(t *testing.T, f *fake, o Options) *Set {
	t.Helper()
	o.Kernel, o.Cut = f, f.Cut
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func addrs(s ...string) (all []netip.Addr) {
	for _, s := range s {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func learn(t *testing.T, s *Set, name string, ttl time.Duration, to ...string) {
	t.Helper()
	var answers []Answer
	for _, a := range addrs(to...) {
		answers = append(answers, Answer{a, ttl})
	}
	if err := s.Learn(t.Context(), s.Life(), name, answers); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// At every moment at which an answer is good, and a minute longer, its address
// can be reached, however often and in whatever order it is given.
func TestReachableAsLongAsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		s := newSet(t, f, Options{})
		a := addrs("203.0.113.1")[0]
		for i, ttl := range []time.Duration{0, time.Second, 10 * time.Minute, time.Second, time.Hour, 30 * time.Second, time.Hour} {
			for range 40 {
				learn(t, s, "example.com", ttl, a.String())
				if left := time.Until(f.until[a]); left < ttl+margin {
					t.Fatalf("%d: %v left, answered for %v", i, left, ttl)
				}
				time.Sleep(17 * time.Second)
			}
		}
		if f.learns > 60 {
			t.Errorf("%d transactions for 280 answers: too many are renewed", f.learns)
		}
	})
}

func TestTTLTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(t, newFake(), Options{})
		if err := s.Learn(t.Context(), s.Life(), "example.com", []Answer{{addrs("203.0.113.1")[0], 2 * time.Hour}}); err == nil {
			t.Error("an answer that is good for longer than its address can be reached")
		}
	})
}

// What arrives while a transaction runs is in the next one.
func TestBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.slow = time.Millisecond
		s := newSet(t, f, Options{})
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() { learn(t, s, fmt.Sprintf("n%d.example.com", i), time.Minute, fmt.Sprintf("203.0.113.%d", i)) })
		}
		wg.Wait()
		if f.learns > 5 {
			t.Errorf("%d transactions for 200 answers at once", f.learns)
		}
		if n := len(f.open()); n != 200 {
			t.Errorf("%d can be reached", n)
		}
	})
}

func TestOneBadAddressFailsOnlyItsAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.slow = time.Millisecond
		f.refuse = addrs("203.0.113.13")[0]
		s := newSet(t, f, Options{})
		var wg sync.WaitGroup
		var mu sync.Mutex
		failed := map[int]bool{}
		for i := range 50 {
			wg.Go(func() {
				err := s.Learn(t.Context(), s.Life(), "example.com", []Answer{{addrs(fmt.Sprintf("203.0.113.%d", i))[0], time.Minute}})
				if err != nil {
					mu.Lock()
					failed[i] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if d := cmp.Diff([]int{13}, slices.Collect(maps.Keys(failed))); d != "" {
			t.Error(d)
		}
		if n := len(f.open()); n != 49 {
			t.Errorf("%d can be reached", n)
		}
	})
}

func TestRetain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.until[addrs("203.0.113.99")[0]] = time.Now().Add(time.Hour) // of an earlier life
		s := newSet(t, f, Options{})
		learn(t, s, "a.example.com", time.Minute, "203.0.113.1", "203.0.113.2")
		learn(t, s, "b.example.com", time.Minute, "203.0.113.2", "2001:db8::3")
		removed, err := s.Retain(t.Context(), func(name string) bool { return name == "b.example.com" })
		if err != nil {
			t.Fatal(err)
		}
		want := addrs("203.0.113.1", "203.0.113.99")
		if d := cmp.Diff(want, removed, byValue); d != "" {
			t.Error(d)
		}
		if d := cmp.Diff(want, f.cut, byValue); d != "" {
			t.Errorf("connections: %s", d)
		}
		if d := cmp.Diff(addrs("203.0.113.2", "2001:db8::3"), f.open(), byValue); d != "" {
			t.Error(d)
		}
		// Too late: asked for by the old lists, answered after the new ones.
		err = s.Learn(t.Context(), s.Life(), "a.example.com", []Answer{{addrs("203.0.113.2")[0], time.Minute}})
		if !errors.Is(err, ErrNotAllowed) {
			t.Errorf("learned for a name that is not allowed: %v", err)
		}
		if got := s.Addresses("a.example.com"); len(got) != 0 {
			t.Errorf("%v because of a name that is not allowed", got)
		}
		if d := cmp.Diff(addrs("203.0.113.2", "2001:db8::3"), s.Addresses("b.example.com"), byValue); d != "" {
			t.Error(d)
		}
	})
}

// What is forgotten is closed, whoever has opened it, and opened again by the
// next answer, though it would have stayed for long enough. Whose the
// addresses were is still known.
func TestForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.until[addrs("203.0.113.99")[0]] = time.Now().Add(time.Hour) // of an earlier life
		s := newSet(t, f, Options{})
		learn(t, s, "a.example.com", time.Hour, "203.0.113.1", "2001:db8::3")
		f.until[addrs("203.0.113.98")[0]] = time.Now().Add(time.Hour) // somebody else's
		before := s.Life()
		removed, err := s.Forget(t.Context())
		want := addrs("203.0.113.1", "203.0.113.98", "203.0.113.99", "2001:db8::3")
		if d := cmp.Diff(want, removed, byValue); d != "" || err != nil {
			t.Errorf("%v: %s", err, d)
		}
		if d := cmp.Diff(want, f.cut, byValue); d != "" {
			t.Errorf("connections: %s", d)
		}
		if got, n, known := f.open(), s.Len(), s.Addresses("a.example.com"); len(got)+n+len(known) > 0 {
			t.Errorf("open %v, %d, %v", got, n, known)
		}
		if got := s.Names(want[0]); len(got) != 1 || got[0].Name != "a.example.com" {
			t.Errorf("names %v", got)
		}

		// What was asked for before is neither learned nor handed out.
		if err := s.Learn(t.Context(), before, "a.example.com", []Answer{{want[0], time.Minute}}); !errors.Is(err, ErrForgotten) {
			t.Errorf("learned from before: %v", err)
		}
		if s.TryLearn(before, "a.example.com", want[:1], time.Minute) || s.TryLearn(s.Life(), "a.example.com", want[:1], time.Minute) {
			t.Error("taken for open")
		}
		if s.Leave(before, func() { t.Error("an answer of before leaves") }) {
			t.Error("an answer of before has left")
		}
		learn(t, s, "a.example.com", time.Minute, "203.0.113.1")
		if d := cmp.Diff(want[:1], f.open(), byValue); d != "" {
			t.Error(d)
		}
		left := false
		if !s.Leave(s.Life(), func() { left = true }) || !left {
			t.Error("an answer of now does not leave")
		}
		if removed, err := s.Forget(t.Context()); err != nil || len(removed) != 1 {
			t.Errorf("%v, %v", removed, err)
		}
		if removed, err := s.Forget(t.Context()); err != nil || len(removed) != 0 {
			t.Errorf("%v, %v", removed, err)
		}

		// In quarantine there is nothing, and afterwards nothing comes back.
		learn(t, s, "a.example.com", time.Minute, "203.0.113.1")
		f.off = true
		f.emptied()
		if removed, err := s.Forget(t.Context()); err != nil || len(removed) != 0 {
			t.Errorf("in quarantine: %v, %v", removed, err)
		}
		f.off = false
		learn(t, s, "a.example.com", time.Minute, "203.0.113.1")

		// What the firewall keeps is taken to be open until it lets go.
		f.stuck = errors.New("stuck")
		if _, err := s.Forget(t.Context()); !errors.Is(err, f.stuck) {
			t.Errorf("%v", err)
		}
		f.stuck = nil
		if removed, err := s.Retain(t.Context(), func(string) bool { return true }); err != nil || !slices.Equal(removed, want[:1]) {
			t.Errorf("%v, %v", removed, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Forget(t.Context()); err == nil {
			t.Error("forgotten after Close")
		}
	})
}

// Whatever is forgotten meanwhile: at the moment at which an answer leaves its
// addresses can be reached, and after a Forget nothing is learned that was asked
// for before it.
func TestForgetWhileAnswering(t *testing.T) {
	f := newFake()
	s := newSet(t, f, Options{})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var left, again atomic.Int64
	for i := range 8 {
		wg.Go(func() {
			all := addrs(fmt.Sprintf("203.0.113.%d", i%3), fmt.Sprintf("2001:db8::%d", i))
			answers := []Answer{{all[0], time.Hour}, {all[1], time.Hour}}
			for {
				select {
				case <-stop:
					return
				default:
				}
				life := s.Life()
				if i%2 == 0 || !s.TryLearn(life, "example.com", all, time.Hour) {
					if err := s.Learn(context.Background(), life, "example.com", answers); errors.Is(err, ErrForgotten) {
						again.Add(1)
						continue
					} else if err != nil {
						t.Error(err)
						return
					}
				}
				runtime.Gosched() // as between the firewall and the socket
				ok := s.Leave(life, func() {
					open := f.open()
					for _, a := range all {
						if !slices.Contains(open, a) {
							t.Errorf("%s is handed out, and open are %v", a, open)
						}
					}
				})
				if ok {
					left.Add(1)
				} else {
					again.Add(1)
				}
			}
		})
	}
	for range 500 {
		life := s.Life()
		if _, err := s.Forget(t.Context()); err != nil {
			t.Error(err)
		}
		if s.Life() == life {
			t.Error("the same life")
		}
		// Somebody gets an answer between two of them.
		for before, start := left.Load(), time.Now(); left.Load() == before; runtime.Gosched() {
			if time.Since(start) > 20*time.Second {
				t.Fatal("no answer leaves any more")
			}
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("%d answers left, %d were begun again", left.Load(), again.Load())
	if again.Load() == 0 {
		t.Error("nothing was forgotten while it was answered")
	}
}

// A question that is under way while the lists change opens nothing.
func TestRetainWhileLearning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.slow = time.Second
		s := newSet(t, f, Options{})
		done := make(chan error, 2)
		for i := range 2 { // the first is in a transaction, the second waits
			go func() {
				done <- s.Learn(context.Background(), s.Life(), "a.example.com", []Answer{{addrs(fmt.Sprintf("203.0.113.%d", i+1))[0], time.Minute}})
			}()
			synctest.Wait()
		}
		if _, err := s.Retain(t.Context(), func(string) bool { return false }); err != nil {
			t.Fatal(err)
		}
		<-done
		<-done
		if got := f.open(); len(got) != 0 {
			t.Errorf("%v can be reached", got)
		}
	})
}

func TestSomebodyElseEmptiesTheSets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		s := newSet(t, f, Options{})
		learn(t, s, "example.com", time.Minute, "203.0.113.1")
		f.emptied()
		time.Sleep(2 * checkEvery)
		learn(t, s, "example.com", time.Minute, "203.0.113.1")
		if len(f.open()) != 1 {
			t.Error("answered, and cannot be reached")
		}
		f.off = true
		f.emptied()
		time.Sleep(2 * checkEvery)
		err := s.Learn(t.Context(), s.Life(), "example.com", []Answer{{addrs("203.0.113.1")[0], time.Minute}})
		if !errors.Is(err, nft.ErrNotLearning) {
			t.Errorf("in quarantine: %v", err)
		}
		if _, err := s.Retain(t.Context(), func(string) bool { return false }); err != nil {
			t.Errorf("in quarantine: %v", err)
		}
	})
}

// The owner of an allowed name may answer with another address every time.
func TestMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		s := newSet(t, f, Options{MaxAddrs: 100, MaxPairs: 200})
		for i := range 5000 {
			a := netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)})
			if err := s.Learn(t.Context(), s.Life(), fmt.Sprintf("n%d.example.com", i%700), []Answer{{a, time.Minute}}); err != nil {
				t.Fatal(err)
			}
			if !f.until[a].After(time.Now()) {
				t.Fatal("the newest address was evicted")
			}
		}
		if n := len(f.open()); n > 100 {
			t.Errorf("%d in the firewall", n)
		}
		if n := s.pairs.lru.Len(); n > 200 || len(s.pairs.byAddr) > 200 {
			t.Errorf("%d pairs of %d addresses", n, len(s.pairs.byAddr))
		}
		// Many names for one address.
		for i := range 1000 {
			learn(t, s, fmt.Sprintf("x%d.example.com", i), time.Minute, "198.51.100.1")
		}
		if n := len(s.entries[addrs("198.51.100.1")[0]].owners); n > maxOwners {
			t.Errorf("%d owners", n)
		}
		// An owner that is not remembered must not keep a denied address open.
		if _, err := s.Retain(t.Context(), func(name string) bool { return name == "x999.example.com" }); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(f.open(), addrs("198.51.100.1")[0]) {
			t.Error("an address with forgotten owners stays open")
		}
	})
}

// A container asks for names of its own that have the address of another one,
// so that people read these when they are asked.
func TestFirstNameStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(t, newFake(), Options{})
		a := addrs("203.0.113.1")
		s.See("evil.example.com", a)
		for i := range 100 {
			time.Sleep(time.Second)
			s.See(fmt.Sprintf("nice%d.example.com", i), a)
		}
		time.Sleep(time.Second)
		learn(t, s, "good.example.com", time.Minute, a[0].String())
		got := s.Names(a[0])
		if len(got) != maxNames {
			t.Fatalf("%d names", len(got))
		}
		first, last := got[0], got[len(got)-1]
		if d := cmp.Diff(names.Name{Name: "good.example.com", Allowed: true}, first); d != "" {
			t.Error(d)
		}
		if d := cmp.Diff(names.Name{Name: "evil.example.com", Age: 101}, last); d != "" {
			t.Error(d)
		}
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.slow = time.Second
		s := newSet(t, f, Options{})
		errs := make(chan error, 3)
		for i := range 3 {
			go func() {
				errs <- s.Learn(context.Background(), s.Life(), "example.com", []Answer{{addrs(fmt.Sprintf("203.0.113.%d", i))[0], time.Minute}})
			}()
			synctest.Wait()
		}
		if err := errors.Join(s.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			<-errs // nobody waits for ever
		}
		if err := s.Learn(t.Context(), s.Life(), "example.com", nil); err == nil {
			t.Error("learned after Close")
		}
	})
}
