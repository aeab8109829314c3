package static

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/applets/internal/resolve"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/wire/names"
)

// firewall stands for the kernel where time is not real.
type firewall struct {
	mu         sync.Mutex
	until      map[netip.Addr]time.Time
	generation uint32
	closed     bool // quarantine
	err        error
}

func (f *firewall) Learn(all []nft.Learned) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nft.ErrNotLearning
	}
	if f.err != nil {
		return f.err
	}
	f.generation++
	for _, l := range all {
		f.until[l.Addr] = time.Now().Add(l.Timeout)
	}
	return nil
}

func (f *firewall) Forget(all []netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nft.ErrNotLearning
	}
	if f.err != nil {
		return f.err
	}
	for _, a := range all {
		f.generation++
		delete(f.until, a)
	}
	return nil
}

func (f *firewall) ForgetAll() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nft.ErrNotLearning
	}
	if f.err != nil {
		return f.err
	}
	f.generation++
	clear(f.until)
	return nil
}

func (f *firewall) Learned() (all []nft.Learned, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, nft.ErrNotLearning
	}
	for a, t := range f.until {
		if left := time.Until(t); left > 0 {
			all = append(all, nft.Learned{Addr: a, Timeout: left})
		}
	}
	return all, nil
}

func (f *firewall) Generation() (uint32, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.generation, nil
}

// quarantine closes everything, or opens it again, empty.
func (f *firewall) quarantine(yes bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = yes
	clear(f.until)
	f.generation++
}

// open is what can be reached now, sorted.
func (f *firewall) open() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for a, t := range f.until {
		if t.After(time.Now()) {
			all = append(all, a.String())
		}
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// world is an engine whose firewall, lists and name servers are ours, on a
// clock that jumps.
type world struct {
	t      *testing.T
	e      *engine
	fw     *firewall
	failed []error

	mu                    sync.Mutex
	profile, live, denied []string
	listErr               error
	answer                func(name string) (found, error)
	asked                 map[string][]time.Time
	busy, most            int
}

// in runs a test in a bubble with its own clock.
func in(t *testing.T, do func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, fw: &firewall{until: map[netip.Addr]time.Time{}}, asked: map[string][]time.Time{}}
		w.answer = func(string) (found, error) { return found{}, resolve.ErrNoSuchName }
		w.e = newEngine(slog.New(slog.DiscardHandler),
			w.fw, nil,
			func() ([]string, []string, []string, error) {
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.profile, w.live, w.denied, w.listErr
			})
		w.e.servers = resolve.Follow("/nonexistent", 0, w.e.log)
		w.e.lookup = func(ctx context.Context, name string) (found, error) {
			w.mu.Lock()
			w.asked[name] = append(w.asked[name], time.Now())
			w.busy++
			w.most = max(w.most, w.busy)
			answer := w.answer
			w.mu.Unlock()
			f, err := answer(name)
			w.mu.Lock()
			w.busy--
			w.mu.Unlock()
			return f, err
		}
		do(t, w)
	})
}

// start starts the engine and waits until it has nothing to do.
func (w *world) start() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w.t.Cleanup(func() {
		cancel()
		<-w.e.done
	})
	if err := w.e.Start(ctx, func(err error) { w.failed = append(w.failed, err) }); err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
}

func (w *world) set(do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	do()
}

func (w *world) reload(want names.Change) time.Duration {
	w.t.Helper()
	if want.Removed == nil {
		want.Removed = []string{}
	}
	start := time.Now()
	got, err := w.e.Reload(w.t.Context())
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		w.t.Errorf("reload: %v\n(-want +got):\n%s", err, diff)
	}
	return time.Since(start)
}

func (w *world) expect(what, open string) {
	w.t.Helper()
	synctest.Wait()
	if got := w.fw.open(); got != open {
		w.t.Errorf("%s: open are %q; want %q", what, got, open)
	}
}

// times is how often a name was asked for.
func (w *world) times(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.asked[name])
}

func (w *world) mostBusy() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.most
}

// is answers with addresses.
func is(ttl time.Duration, list ...string) (found, error) {
	f := found{ttl: ttl}
	for _, s := range list {
		f.addrs = append(f.addrs, netip.MustParseAddr(s))
	}
	return f, nil
}

// Known weakness: addresses rotated away while the container ran, and nobody
// looked.
func TestAddressesRotateAway(t *testing.T) {
	for _, tt := range []struct{ ttl, least, most time.Duration }{
		{0, 60 * time.Second, 66 * time.Second},
		{time.Second, 60 * time.Second, 66 * time.Second},
		{10 * time.Minute, 10 * time.Minute, 11 * time.Minute},
		{24 * time.Hour, 30 * time.Minute, 33 * time.Minute},
		{1<<31*time.Second - 1, 30 * time.Minute, 33 * time.Minute},
	} {
		in(t, func(t *testing.T, w *world) {
			w.profile = []string{"example.com"}
			addr := func(n int) string { return netip.AddrFrom4([4]byte{203, 0, 113, byte(n)}).String() }
			var count atomic.Int32
			w.answer = func(string) (found, error) { return is(tt.ttl, addr(int(count.Add(1)))) }
			w.start()
			for range 100 {
				n := int(count.Load())
				if !slices.Contains(strings.Fields(w.fw.open()), addr(n)) {
					t.Fatalf("TTL %v: %s is closed after %d lookups", tt.ttl, addr(n), n)
				}
				// An address that did not come again is closed when nobody can
				// believe in it any more.
				if old := n - 8; old > 0 && slices.Contains(strings.Fields(w.fw.open()), addr(old)) {
					t.Fatalf("TTL %v: %s is open after %d lookups", tt.ttl, addr(old), n)
				}
				time.Sleep(tt.least / 2)
				synctest.Wait()
			}
			all := w.asked["example.com"]
			if len(all) < 20 {
				t.Errorf("TTL %v: %d lookups", tt.ttl, len(all))
			}
			jittered := map[time.Duration]bool{}
			for i := 1; i < len(all); i++ {
				d := all[i].Sub(all[i-1])
				jittered[d] = true
				if d < tt.least || d > tt.most {
					t.Errorf("TTL %v: looked up after %v", tt.ttl, d)
				}
			}
			if len(jittered) < 5 {
				t.Errorf("TTL %v: intervals %v", tt.ttl, slices.Collect(maps.Keys(jittered)))
			}
		})
	}
}

// What cannot be looked up is tried again, ever more seldom; what is open
// stays so for a while, not for ever.
func TestBackoff(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.profile = []string{"example.com", "never.example.com"}
		down := false
		w.answer = func(name string) (found, error) {
			if down || name == "never.example.com" {
				return found{}, resolve.ErrTimeout
			}
			return is(time.Minute, "203.0.113.1")
		}
		w.start()
		w.expect("at first", "203.0.113.1")
		w.set(func() { down = true })
		time.Sleep(70 * time.Second)
		w.expect("failing", "203.0.113.1")
		time.Sleep(time.Hour)
		w.expect("failing for an hour", "")
		for name, all := range w.asked {
			want := minBackoff
			if name == "example.com" {
				all = all[1:]
			}
			for i := 1; i < len(all); i++ {
				if d := all[i].Sub(all[i-1]); d < want || d > want+want/10 {
					t.Errorf("%s: lookup %d after %v; want %v", name, i, d, want)
				}
				want = min(2*want, maxInterval)
			}
			if len(all) < 9 || len(all) > 11 {
				t.Errorf("%s: %d lookups in an hour", name, len(all))
			}
		}
		w.set(func() { down = false })
		time.Sleep(maxInterval + maxInterval/10)
		w.expect("back", "203.0.113.1")
		before := w.times("example.com")
		time.Sleep(10 * time.Minute)
		if n := w.times("example.com") - before; n < 9 || n > 10 {
			t.Errorf("%d lookups in ten minutes after it", n)
		}
		s := w.e.Status()
		if s.Tier != "static" || s.Upstreams == nil || s.Allowed != 2 || s.Learned != 1 || s.Failed < 20 || s.Questions <= s.Failed {
			t.Errorf("%+v", s)
		}
	})
}

// If only one family is found, the other one is tried again soon; if an
// address is refused, that will not change.
func TestPartOfAnAnswer(t *testing.T) {
	for problem, want := range map[error]int{
		fmt.Errorf("no IPv6 addresses: %w", resolve.ErrServer): 9,
		fmt.Errorf("10.0.0.1: %w", resolve.ErrNotPublic):       1,
	} {
		in(t, func(t *testing.T, w *world) {
			w.profile = []string{"example.com"}
			w.answer = func(string) (found, error) {
				f, _ := is(10*time.Minute, "203.0.113.1", "10.0.0.1", "fe80::1") // which resolve would not find
				return f, problem
			}
			w.start()
			w.expect("at first", "203.0.113.1")
			time.Sleep(10 * time.Minute)
			if n := w.times("example.com"); n < want-2 || n > want {
				t.Errorf("%v: looked up %d times", problem, n)
			}
			w.expect("later", "203.0.113.1")
		})
	}
}

// Names that do not answer take no more than their share, and never that of
// a name that was allowed just now.
func TestParallel(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		for i := range 1000 {
			w.profile = append(w.profile, fmt.Sprintf("n%d.example.com", i))
		}
		w.answer = func(name string) (found, error) {
			if strings.HasPrefix(name, "n") {
				time.Sleep(perName)
				return found{}, resolve.ErrTimeout
			}
			return is(time.Minute, "203.0.113.1")
		}
		w.start()
		time.Sleep(time.Minute)
		if most := w.mostBusy(); most != ordinary {
			t.Errorf("%d lookups at a time; want %d", most, ordinary)
		}
		w.live = []string{"example.com", "www.example.com"}
		if d := w.reload(names.Change{Allowed: 1002, Enforced: true}); d != 0 {
			t.Errorf("the new names took %v", d)
		}
		w.expect("allowed", "203.0.113.1")
		for i := range 100 {
			w.live = append(w.live, fmt.Sprintf("new%d.example.com", i))
		}
		if d := w.reload(names.Change{Allowed: 1102, Enforced: true}); d != reloadWait {
			t.Errorf("the reload took %v", d)
		}
		if most := w.mostBusy(); most != parallel {
			t.Errorf("%d lookups at a time; want %d", most, parallel)
		}
	})
}

func TestReload(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.profile = []string{"a.example.com", "*.b.example.com", "=c.example.com", "gone.example.com", "192.0.2.1"}
		w.denied = []string{"gone.example.com"}
		addrs := map[string][]string{
			"a.example.com": {"203.0.113.1", "2001:db8::1"}, "b.example.com": {"203.0.113.2"}, "c.example.com": {"203.0.113.3"},
			"gone.example.com": {"203.0.113.4"}, "d.example.com": {"203.0.113.1", "203.0.113.5"},
		}
		w.answer = func(name string) (found, error) {
			time.Sleep(time.Second)
			return is(time.Hour, addrs[name]...)
		}
		w.start()
		w.expect("not waited for", "")
		time.Sleep(time.Second)
		w.expect("at first", "2001:db8::1 203.0.113.1 203.0.113.2 203.0.113.3")
		if n := w.times("gone.example.com"); n != 0 {
			t.Errorf("a denied name was looked up %d times", n)
		}
		w.live = []string{"d.example.com", "a.example.com"}
		if d := w.reload(names.Change{Allowed: 5, Denied: 1, Enforced: true}); d != time.Second {
			t.Errorf("the reload took %v", d)
		}
		w.expect("allowed", "2001:db8::1 203.0.113.1 203.0.113.2 203.0.113.3 203.0.113.5")
		if got := w.e.Names(netip.MustParseAddr("203.0.113.1")); len(got) != 2 || !got[0].Allowed || got[0].Name != "d.example.com" {
			t.Errorf("names %v", got)
		}
		if got := fmt.Sprint(w.e.Addresses("d.example.com")); got != "[203.0.113.1 203.0.113.5]" {
			t.Errorf("addresses %v", got)
		}
		// What another name leads to stays.
		w.denied = append(w.denied, "a.example.com", "b.example.com")
		w.reload(names.Change{Allowed: 5, Denied: 3, Enforced: true, Removed: []string{"203.0.113.2", "2001:db8::1"}})
		w.expect("denied", "203.0.113.1 203.0.113.3 203.0.113.5")
		time.Sleep(3 * time.Hour)
		if w.times("a.example.com") != 1 || w.times("b.example.com") != 1 || w.times("d.example.com") < 5 {
			t.Errorf("lookups: %v", w.asked)
		}
		w.denied = w.denied[:1]
		w.reload(names.Change{Allowed: 5, Denied: 1, Enforced: true})
		w.expect("allowed again", "2001:db8::1 203.0.113.1 203.0.113.2 203.0.113.3 203.0.113.5")

		// Lists that cannot be read change nothing.
		for _, list := range []func(){func() { w.denied = []string{"no name"} }, func() { w.listErr = io.ErrUnexpectedEOF }} {
			w.set(list)
			if c, err := w.e.Reload(t.Context()); err == nil || c.Removed == nil {
				t.Errorf("%+v, %v", c, err)
			}
			w.expect("not reloaded", "2001:db8::1 203.0.113.1 203.0.113.2 203.0.113.3 203.0.113.5")
		}
		w.set(func() { w.listErr, w.denied, w.live = nil, nil, nil })
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := w.e.Reload(ended); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		w.expect("given up", "2001:db8::1 203.0.113.1 203.0.113.2 203.0.113.3 203.0.113.5")
		w.set(func() { w.profile = nil })
		w.reload(names.Change{Enforced: true, Removed: []string{"203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.5", "2001:db8::1"}})
		w.expect("nothing", "")
	})
}

// What is forgotten is closed and looked up again at once: only what is found
// then is opened.
func TestForget(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.profile = []string{"a.example.com", "b.example.com", "gone.example.com"}
		addrs := map[string]string{"a.example.com": "203.0.113.1", "b.example.com": "203.0.113.2", "gone.example.com": "203.0.113.3"}
		w.answer = func(name string) (found, error) {
			w.mu.Lock()
			addr := addrs[name]
			w.mu.Unlock()
			time.Sleep(time.Second)
			if addr == "" {
				return found{}, resolve.ErrNoSuchName
			}
			return is(time.Hour, addr)
		}
		forget := func(want string) time.Duration {
			t.Helper()
			start := time.Now()
			got, err := w.e.Forget(t.Context())
			if fmt.Sprint(got) != want || err != nil {
				t.Errorf("forgot %v, %v; want %s", got, err, want)
			}
			return time.Since(start)
		}
		w.start()
		time.Sleep(time.Minute)
		w.fw.Learn([]nft.Learned{{Addr: netip.MustParseAddr("203.0.113.99"), Timeout: time.Hour}}) // somebody else's
		w.set(func() { addrs["b.example.com"], addrs["gone.example.com"] = "203.0.113.22", "" })
		if d := forget("[203.0.113.1 203.0.113.2 203.0.113.3 203.0.113.99]"); d != time.Second {
			t.Errorf("the names were looked up again after %v", d)
		}
		w.expect("forgotten", "203.0.113.1 203.0.113.22")
		if got := w.e.Addresses("gone.example.com"); len(got) != 0 {
			t.Errorf("addresses %v", got)
		}
		// Nor does a Reload bring back what was known before.
		w.reload(names.Change{Allowed: 3, Enforced: true})
		w.expect("reloaded", "203.0.113.1 203.0.113.22")

		// What is being looked up was asked for before.
		w.set(func() { w.live = []string{"new.example.com"}; addrs["new.example.com"] = "203.0.113.4" })
		done := make(chan struct{})
		go func() { w.reload(names.Change{Allowed: 4, Enforced: true}); close(done) }()
		time.Sleep(100 * time.Millisecond)
		w.set(func() { addrs["new.example.com"] = "203.0.113.44" })
		<-done
		w.expect("allowed", "203.0.113.1 203.0.113.22 203.0.113.4")
		time.Sleep(3 * time.Hour) // they are renewed
		before := w.times("a.example.com")
		for w.times("a.example.com") == before {
			time.Sleep(time.Second / 4)
		}
		w.set(func() { addrs["a.example.com"] = "203.0.113.11" })
		start := time.Now()
		if _, err := w.e.Forget(t.Context()); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d <= time.Second || d > reloadWait {
			t.Errorf("the names were looked up again after %v", d)
		}
		w.expect("looked up meanwhile", "203.0.113.11 203.0.113.22 203.0.113.44")

		// In quarantine nothing is opened; afterwards what is found then.
		w.fw.quarantine(true)
		w.set(func() { addrs["a.example.com"] = "203.0.113.12" })
		if d := forget("[]"); d != 0 {
			t.Errorf("waited for %v in quarantine", d)
		}
		w.fw.quarantine(false)
		w.reload(names.Change{Allowed: 4, Enforced: true})
		w.expect("up again", "203.0.113.12 203.0.113.22 203.0.113.44")

		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := w.e.Forget(ended); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		w.fw.err = io.ErrUnexpectedEOF
		if _, err := w.e.Forget(t.Context()); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%v", err)
		}
	})
}

// A name that is denied while it is looked up is not opened.
func TestDeniedMeanwhile(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.profile = []string{"example.com"}
		w.answer = func(string) (found, error) {
			time.Sleep(3 * time.Second)
			return is(time.Minute, "203.0.113.1")
		}
		w.start()
		w.denied = []string{"example.com"}
		w.reload(names.Change{Allowed: 1, Denied: 1, Enforced: true})
		time.Sleep(time.Hour)
		w.expect("denied", "")
		if n := w.times("example.com"); n != 1 || len(w.failed) > 0 {
			t.Errorf("%d lookups, %v", n, w.failed)
		}
	})
}

// In quarantine nothing is opened; afterwards everything is, at once.
func TestQuarantine(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.profile = []string{"a.example.com"}
		w.answer = func(name string) (found, error) {
			if name == "a.example.com" {
				return is(time.Hour, "203.0.113.1")
			}
			time.Sleep(time.Second)
			return is(time.Hour, "203.0.113.2")
		}
		w.start()
		w.expect("up", "203.0.113.1")
		w.fw.quarantine(true)
		w.live = []string{"b.example.com"}
		w.reload(names.Change{Allowed: 2})
		time.Sleep(5 * time.Minute)
		w.expect("quarantine", "")
		if len(w.failed) > 0 {
			t.Errorf("the engine failed: %v", w.failed)
		}
		w.fw.quarantine(false)
		before := w.times("a.example.com")
		w.reload(names.Change{Allowed: 2, Enforced: true})
		w.expect("up again", "203.0.113.1 203.0.113.2")
		if n := w.times("a.example.com"); n != before {
			t.Error("looked up again, though its address is known")
		}
		time.Sleep(3 * time.Hour)
		w.expect("later", "203.0.113.1 203.0.113.2")
	})
}

// After its process has died, what was open stays until the lookups are
// through, and is then closed unless a name leads there.
func TestRestart(t *testing.T) {
	for _, dead := range []bool{false, true} {
		in(t, func(t *testing.T, w *world) {
			w.profile = []string{"a.example.com", "denied.example.com"}
			w.denied = []string{"denied.example.com"}
			w.answer = func(string) (found, error) {
				if dead {
					time.Sleep(time.Minute)
				}
				time.Sleep(2 * time.Second)
				return is(time.Minute, "203.0.113.1")
			}
			for i := range 3 {
				w.fw.until[netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})] = time.Now().Add(time.Hour)
			}
			w.start()
			time.Sleep(time.Second)
			w.expect("first", "203.0.113.0 203.0.113.1 203.0.113.2")
			time.Sleep(firstRound)
			if dead {
				w.expect("nothing known", "")
			} else {
				w.expect("known", "203.0.113.1")
			}
		})
	}
}

// A firewall that takes no addresses for good needs another process.
func TestFirewallFails(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.profile = []string{"example.com"}
		w.answer = func(string) (found, error) { return is(time.Minute, "203.0.113.1") }
		w.start()
		broken := errors.New("no firewall")
		w.fw.mu.Lock()
		w.fw.err = broken
		clear(w.fw.until)
		w.fw.mu.Unlock()
		time.Sleep(4 * time.Hour)
		if len(w.failed) != 1 || !errors.Is(w.failed[0], broken) {
			t.Errorf("failed: %v", w.failed)
		}
		if _, err := w.e.Reload(t.Context()); err != nil && !errors.Is(err, broken) {
			t.Errorf("%v", err)
		}
	})
}

func TestUnreadableAtStart(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.denied = []string{"no name"}
		if err := w.e.Start(t.Context(), nil); err == nil {
			t.Error("started without knowing what is denied")
		}
	})
}

// This tier sees no questions: who watches waits.
func TestWatch(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		start := time.Now()
		if err := w.e.Watch(ctx, func(names.Question) error { panic("seen") }); err != nil || time.Since(start) != time.Hour {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}
