package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/ruleset"
)

func learned(timeout time.Duration, addrs ...string) (all []Learned) {
	for _, a := range addrs {
		all = append(all, Learned{Addr: netip.MustParseAddr(a), Timeout: timeout})
	}
	return all
}

// in lists the learned addresses, sorted.
func in(t *testing.T, c *Conn) (addrs []netip.Addr) {
	t.Helper()
	all, err := c.Learned()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		addrs = append(addrs, l.Addr)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}

func addresses(s ...string) (all []netip.Addr) {
	for _, s := range s {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func TestLearn(t *testing.T) {
	ns := kerneltest.NewNS(t)
	c := dialIn(t, ns)
	if err := c.Learn(learned(time.Minute, "203.0.113.1")); !errors.Is(err, ErrNotLearning) {
		t.Fatalf("without a table: %v", err)
	}
	if _, err := c.Learned(); !errors.Is(err, ErrNotLearning) {
		t.Fatalf("without a table: %v", err)
	}
	if err := c.Apply(build(t, ruleset.Up, ruleset.Params{})); err != nil {
		t.Fatal(err)
	}
	before, err := c.Generation()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Learn(append(learned(time.Minute, "203.0.113.1", "2001:db8::1", "203.0.113.1"), learned(time.Hour, "203.0.113.2")...)); err != nil {
		t.Fatal(err)
	}
	if after, err := c.Generation(); err != nil || after != before+1 {
		t.Errorf("generation %d after %d: %v; want one more", after, before, err)
	}
	want := addresses("203.0.113.1", "203.0.113.2", "2001:db8::1")
	if d := cmp.Diff(want, in(t, c), equal); d != "" {
		t.Error(d)
	}
	listing := kerneltest.NFT(t, ns, "", "list", "set", "inet", "terok_shield", "learned_v4")
	if !strings.Contains(listing, "203.0.113.2 timeout 1h") {
		t.Errorf("nft says:\n%s", listing)
	}

	// Renewing takes a new timeout in either direction.
	for _, timeout := range []time.Duration{2 * time.Hour, 30 * time.Second} {
		if err := c.Learn(learned(timeout, "203.0.113.1")); err != nil {
			t.Fatal(err)
		}
		all, err := c.Learned()
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(l Learned) bool { return l.Addr == want[0] })
		if left := all[i].Timeout; left > timeout || left < timeout-20*time.Second {
			t.Errorf("%v left of %v", left, timeout)
		}
	}

	// What a resolver learned is neither lost nor in the way of other changes.
	for _, s := range []ruleset.State{ruleset.Down, ruleset.Disengaged, ruleset.Up} {
		if err := c.Apply(build(t, s, ruleset.Params{Deny: prefixes("203.0.113.9/32")})); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, in(t, c), equal); d != "" {
			t.Errorf("%s: %s", s, d)
		}
	}

	if err := c.Forget(addresses("203.0.113.1", "203.0.113.77", "10.0.0.1", "203.0.113.1")); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want[1:], in(t, c), equal); d != "" {
		t.Error(d)
	}
	if err := c.ForgetAll(); err != nil {
		t.Fatal(err)
	}
	if got := in(t, c); len(got) != 0 {
		t.Errorf("%v after forgetting all", got)
	}

	if err := c.Apply(build(t, ruleset.Quarantine, ruleset.Params{})); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"learn":      c.Learn(learned(time.Minute, "203.0.113.1")),
		"forget":     c.Forget(addresses("203.0.113.1")),
		"forget all": c.ForgetAll(),
	} {
		if !errors.Is(err, ErrNotLearning) {
			t.Errorf("%s in quarantine: %v", what, err)
		}
	}
}

// The kernel's side does not rely on the resolver's filter.
func TestLearnRefusesWhatNoNameMayOpen(t *testing.T) {
	c := dialIn(t, kerneltest.NewNS(t))
	if err := c.Apply(build(t, ruleset.Up, ruleset.Params{})); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{
		"10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255",
		"::1", "::", "fe80::1", "fd00:ec2::254", "ff02::1", "::ffff:203.0.113.1",
	} {
		if err := c.Learn(append(learned(time.Minute, "203.0.113.1"), learned(time.Minute, a)...)); err == nil {
			t.Errorf("%s was learned", a)
		}
	}
	for _, timeout := range []time.Duration{0, -time.Second, time.Millisecond, 25 * time.Hour} {
		if err := c.Learn(learned(timeout, "203.0.113.1")); err == nil {
			t.Errorf("learned for %v", timeout)
		}
	}
	if got := in(t, c); len(got) != 0 {
		t.Errorf("half of a refused call is in force: %v", got)
	}
}

// In a table of somebody else the sets may be of another kind. Into one with
// intervals an address goes with all those above it.
func TestLearnIntoForeignSets(t *testing.T) {
	ours := build(t, ruleset.Up, ruleset.Params{}).String()
	for name, text := range map[string]string{
		"intervals": strings.ReplaceAll(ours, "flags timeout", "flags interval,timeout"),
		"permanent": strings.ReplaceAll(ours, "flags timeout", ""),
	} {
		ns := kerneltest.NewNS(t)
		c := dialIn(t, ns)
		kerneltest.NFT(t, ns, text, "-f", "-")
		for what, err := range map[string]error{
			"learn v4":   c.Learn(learned(time.Minute, "203.0.113.1")),
			"learn v6":   c.Learn(learned(time.Minute, "2001:db8::1")),
			"forget":     c.Forget(addresses("203.0.113.1")),
			"forget all": c.ForgetAll(),
		} {
			if !errors.Is(err, ErrForeign) || errors.Is(err, ErrNotLearning) {
				t.Errorf("%s: %s: %v", name, what, err)
			}
		}
		if text := kerneltest.NFT(t, ns, "", "list", "table", "inet", ruleset.TableName); strings.Contains(text, "elements") {
			t.Errorf("%s: something is open:\n%s", name, text)
		}
	}
}

// The sets of a table for a resolver that does not say how long: an address
// keeps its own time.
func TestLearnBesideADefault(t *testing.T) {
	ns := kerneltest.NewNS(t)
	c := dialIn(t, ns)
	p := ruleset.Params{Lifetime: 30 * time.Minute}
	for _, s := range []ruleset.State{ruleset.Up, ruleset.Down, ruleset.Disengaged} {
		want := build(t, s, p)
		if err := c.Apply(want); err != nil {
			t.Fatal(err)
		}
		kerneltest.NFT(t, ns, "", "add", "element", "inet", ruleset.TableName, ruleset.Learned6, "{", "2001:db8::1", "}")
		if err := c.Learn(learned(time.Minute, "203.0.113.1")); err != nil {
			t.Fatal(err)
		}
		have := list(t, c)
		if got, err := ruleset.Verify(have, ruleset.Known{NoDNS: true}); got != s || err != nil {
			t.Errorf("%s: %s, %v", s, got, err)
		}
		if got, err := ruleset.ParamsOf(have); got.Lifetime != p.Lifetime || err != nil {
			t.Errorf("%s: %v, %v", s, got.Lifetime, err)
		}
		for set, life := range map[string]time.Duration{ruleset.Learned4: time.Minute, ruleset.Learned6: p.Lifetime} {
			l := have.Set(set)
			if len(l.Elements) != 1 || l.Lifetime(l.Elements[0]) != life || l.Elements[0].Expires > life {
				t.Errorf("%s: %s has %v, want one for %v", s, set, l.Elements, life)
			}
		}
	}
}

func many(n int) (all []Learned) {
	for i := range n {
		a := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 0x20000000+uint32(i))))
		all = append(all, Learned{Addr: a, Timeout: time.Hour})
	}
	return all
}

func TestLearnMoreThanATransactionHolds(t *testing.T) {
	c := dialIn(t, kerneltest.NewNS(t))
	if err := c.Apply(build(t, ruleset.Up, ruleset.Params{})); err != nil {
		t.Fatal(err)
	}
	all := many(30_000)
	if err := c.Learn(all); err != nil {
		t.Fatal(err)
	}
	waitFor(t, c, len(all))
	var addrs []netip.Addr
	for _, l := range all {
		addrs = append(addrs, l.Addr)
	}
	if err := c.Forget(addrs); err != nil {
		t.Fatal(err)
	}
	waitFor(t, c, 0)
}

// waitFor lists until n addresses are there: while a set grows in the
// background its listing may leave some out.
func waitFor(t *testing.T, c *Conn, n int) {
	t.Helper()
	var got []netip.Addr
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if got = in(t, c); len(got) == n {
			return
		}
	}
	t.Fatalf("%d addresses, want %d", len(got), n)
}

// A resolver under load must not keep an operator from changing the firewall,
// least of all from closing it.
func TestChangesWhileAResolverLearns(t *testing.T) {
	ns := kerneltest.NewNS(t)
	c, resolver := dialIn(t, ns), dialIn(t, ns)
	if err := c.Apply(build(t, ruleset.Up, ruleset.Params{})); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	failed := make(chan error, 1)
	commits := 0
	go func() {
		defer close(failed)
		for i := 0; !stop.Load(); i++ {
			all := many(8192)[i%256*32:][:32]
			if err := resolver.Learn(all); err != nil && !errors.Is(err, ErrNotLearning) {
				failed <- err
				return
			}
			commits++
		}
	}()
	for round := range 40 {
		for _, s := range []ruleset.State{ruleset.Down, ruleset.Quarantine, ruleset.Up, ruleset.Disengaged, ruleset.Up} {
			p := ruleset.Params{
				Allow: prefixes(fmt.Sprintf("198.51.100.%d/32", round)),
				Deny:  prefixes(fmt.Sprintf("203.0.113.%d/32", round)),
			}
			if err := c.Apply(build(t, s, p)); err != nil {
				t.Errorf("round %d, %s: %v", round, s, err)
			}
			have, err := c.List()
			if err != nil {
				t.Fatalf("round %d, %s: %v", round, s, err)
			}
			if got, err := ruleset.Verify(have, ruleset.Known{}); got != s || err != nil {
				t.Errorf("round %d: state %s (%v), want %s", round, got, err, s)
			}
		}
	}
	stop.Store(true)
	if err := <-failed; err != nil {
		t.Errorf("the resolver: %v", err)
	}
	t.Logf("%d commits of the resolver meanwhile", commits)
}

func BenchmarkLearn(b *testing.B) {
	for _, isNew := range []bool{false, true} {
		for _, n := range []int{1, 32} {
			b.Run(fmt.Sprintf("new=%t/%d", isNew, n), func(b *testing.B) {
				c := dialIn(b, kerneltest.NewNS(b))
				if err := c.Apply(build(b, ruleset.Up, ruleset.Params{})); err != nil {
					b.Fatal(err)
				}
				all := many(16384)
				for i := range all {
					all[i].New = isNew
				}
				for i := 0; b.Loop(); i++ {
					at := i * n % len(all)
					if at == 0 && isNew {
						b.StopTimer()
						if err := c.ForgetAll(); err != nil {
							b.Fatal(err)
						}
						b.StartTimer()
					}
					if err := c.Learn(all[at : at+n]); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkGeneration(b *testing.B) {
	c := dialIn(b, kerneltest.NewNS(b))
	for b.Loop() {
		if _, err := c.Generation(); err != nil {
			b.Fatal(err)
		}
	}
}

// What is made by hand is what google/nftables makes.
func TestLearnedMessagesAreTheLibrarys(t *testing.T) {
	sets := learnedSets()
	for name, all := range map[string][]Learned{
		"IPv4":      learned(90*time.Minute, "203.0.113.1"),
		"IPv6":      learned(time.Second, "2001:db8::1"),
		"both":      append(learned(time.Minute, "203.0.113.1", "203.0.113.2", "2001:db8::1"), learned(MaxLearned, "2001:db8::2")...),
		"very many": many(2*elementsPerMessage + 1),
	} {
		for _, mode := range []struct {
			isNew, forget bool
		}{{false, false}, {true, false}, {false, true}} {
			for i := range all {
				all[i].New = mode.isNew
			}
			var want []message
			for chunk := range slices.Chunk(all, elementsPerMessage) {
				for i := range sets {
					var elements []ruleset.Element
					for _, l := range chunk {
						if l.Addr.Is6() == sets[i].V6 {
							elements = append(elements, ruleset.Element{Range: ruleset.Range{From: l.Addr, To: l.Addr}, Timeout: l.Timeout})
						}
					}
					if len(elements) == 0 {
						continue
					}
					set := librarySet(&sets[i], 0)
					add := func(c *nftables.Conn) error { return c.SetAddElements(set, libraryElements(&sets[i], elements, false)) }
					del := func(c *nftables.Conn) error {
						return c.SetDeleteElements(set, libraryElements(&sets[i], elements, true))
					}
					ops := []func(*nftables.Conn) error{add, del, add}
					switch {
					case mode.isNew:
						ops = ops[:1]
					case mode.forget:
						ops = ops[:2]
					}
					var r recorder
					for _, op := range ops {
						r.add("", op)
					}
					msgs, err := r.take()
					if err != nil {
						t.Fatal(err)
					}
					for i := range msgs {
						if mode.isNew { // which the library cannot ask for
							msgs[i].flags |= unix.NLM_F_EXCL
						}
					}
					want = append(want, msgs...)
				}
			}
			got := slices.Concat(learning(all, mode.forget)...)
			for i := range got {
				got[i].about = ""
			}
			if d := cmp.Diff(want, got, cmp.AllowUnexported(message{})); d != "" {
				t.Errorf("%s, %+v (-library +ours):\n%s", name, mode, d)
			}
		}
	}
}

// Whatever is taken to be new, all is there afterwards, for the time that was
// asked for.
func TestLearnWhatIsNotNew(t *testing.T) {
	c := dialIn(t, kerneltest.NewNS(t))
	if err := c.Apply(build(t, ruleset.Up, ruleset.Params{})); err != nil {
		t.Fatal(err)
	}
	if err := c.Learn(learned(time.Minute, "203.0.113.1", "203.0.113.2", "2001:db8::1")); err != nil {
		t.Fatal(err)
	}
	all := learned(time.Hour, "203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4", "2001:db8::1", "2001:db8::2")
	for i := range all {
		all[i].New = i%2 == 0
	}
	for range 2 {
		if err := c.Learn(all); err != nil {
			t.Fatal(err)
		}
		have, err := c.Learned()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range have {
			if l.Timeout < time.Hour-time.Minute || l.Timeout > time.Hour {
				t.Errorf("%s for %v", l.Addr, l.Timeout)
			}
		}
		if len(have) != len(all) {
			t.Errorf("%d addresses", len(have))
		}
	}
}

// What the sets are is not looked at for every address, and counts for every
// one all the same, also with a kernel that does not help.
func TestLearnSeesThatSetsChange(t *testing.T) {
	up := build(t, ruleset.Up, ruleset.Params{}).String()
	intervals := strings.ReplaceAll(up, "flags timeout", "flags interval,timeout")
	for _, refuses := range []uint8{unknown, no} {
		ns := kerneltest.NewNS(t)
		c := dialIn(t, ns)
		c.s.refuses = refuses
		kerneltest.NFT(t, ns, up, "-f", "-")
		add := func(a string) error {
			all := learned(time.Minute, a)
			all[0].New = true
			return c.Learn(all)
		}
		for i := range 3 {
			if err := add(fmt.Sprintf("203.0.113.%d", i)); err != nil {
				t.Fatal(err)
			}
		}
		if got := c.s.known != 0; got != (refuses == unknown) {
			t.Errorf("known %t", got)
		}
		kerneltest.NFT(t, ns, "delete table inet terok_shield\n"+intervals, "-f", "-")
		if err := add("203.0.113.9"); !errors.Is(err, ErrForeign) {
			t.Errorf("into intervals: %v", err)
		}
		kerneltest.NFT(t, ns, "delete table inet terok_shield", "-f", "-")
		if err := add("203.0.113.9"); !errors.Is(err, ErrNotLearning) {
			t.Errorf("without a table: %v", err)
		}
		kerneltest.NFT(t, ns, up, "-f", "-")
		if err := add("203.0.113.9"); err != nil {
			t.Error(err)
		}
		kerneltest.NFT(t, ns, "", "add", "table", "ip", "other") // changes the generation, and nothing here
		if err := add("203.0.113.10"); err != nil {
			t.Error(err)
		}
		if d := cmp.Diff(addresses("203.0.113.9", "203.0.113.10"), in(t, c), equal); d != "" {
			t.Error(d)
		}
	}
}

// Others who change the ruleset all the time do not keep addresses from being
// learned.
func TestLearnBesideOthers(t *testing.T) {
	ns := kerneltest.NewNS(t)
	c := dialIn(t, ns)
	if err := c.Apply(build(t, ruleset.Up, ruleset.Params{})); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var others sync.WaitGroup
	defer others.Wait()
	defer close(stop)
	for i := range 3 {
		other := dialIn(t, ns)
		msgs := learning([]Learned{{Addr: netip.AddrFrom4([4]byte{30, 0, 0, byte(i)}), Timeout: time.Hour}}, false)[0]
		others.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = other.s.batch(msgs) // as often as it gets its turn
				}
			}
		})
	}
	for i, l := range many(1000) {
		l.New = i%2 == 0
		if err := c.Learn([]Learned{l}); err != nil {
			t.Fatalf("address %d: %v", i, err)
		}
	}
}
