package nft

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/google/nftables"
	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/ruleset"
)

// ordinary makes c's send buffer what a process without privileges on the host
// has at most under the kernel's default net.core.wmem_max, and not more.
func ordinary(t testing.TB, c *Conn) {
	t.Helper()
	const wmemMax = 212992
	sendBuffer(t, c, wmemMax)
}

func sendBuffer(t testing.TB, c *Conn, size int) {
	t.Helper()
	if err := unix.SetsockoptInt(c.s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, size); err != nil {
		t.Fatal(err)
	}
	n, err := unix.GetsockoptInt(c.s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		t.Fatal(err)
	}
	c.s.sndbuf, c.s.fixed = n, true
}

// The largest table there can be, applied, changed and taken away with the
// send buffer that an ordinary user has. More than fits one attribute, one
// message or one batch is never cut off silently.
func TestManyAddresses(t *testing.T) {
	for _, n := range []int{499, 500, 501, 3000, 10_000, ruleset.MaxPrefixes} {
		ns := kerneltest.NewNS(t)
		c := dialIn(t, ns)
		ordinary(t, c)
		all := hosts(n, 3)
		for name, p := range map[string]ruleset.Params{
			"allowed": {Allow: all},
			"denied":  {Deny: all},
			"half":    {Allow: all[:n/2], Deny: all[n/2:]},
			"other":   {Allow: hosts(n, 4)},
		} {
			want := build(t, ruleset.Up, p)
			if err := c.Apply(want); err != nil {
				t.Fatalf("%d %s: %v", n, name, err)
			}
			if change := ruleset.Diff(list(t, c), want); !change.Empty() {
				t.Fatalf("%d %s: %s", n, name, change)
			}
		}
		// nft counts them, too.
		if err := c.Apply(build(t, ruleset.Up, ruleset.Params{Allow: all})); err != nil {
			t.Fatal(err)
		}
		text := kerneltest.NFT(t, ns, "", "list", "set", "inet", ruleset.TableName, "allow_v4")
		if got := strings.Count(text, ","); got != n-1 { // "elements = { a, b, c }"
			t.Errorf("nft lists %d elements, want %d", got+1, n)
		}
	}
}

// permitted is what the table does to the first packet of a connection to dst
// that leaves by eth0: a model of the kernel's evaluation.
func permitted(t *ruleset.Table, dst netip.Addr) bool {
	holds := func(m ruleset.Match) bool {
		switch m := m.(type) {
		case ruleset.OIf:
			return m == "eth0"
		case ruleset.CT:
			return m&ruleset.CTNew != 0
		case ruleset.DPort:
			return false
		case ruleset.Daddr:
			return netip.Prefix(m).Contains(dst)
		case ruleset.DaddrIn:
			return slices.ContainsFunc(t.Set(m.Set).Elements, func(e ruleset.Element) bool { return e.Contains(dst) })
		}
		return false
	}
	for _, r := range t.Output.Rules {
		if r.Limit.Over || !all(r.Match, holds) || r.Verdict == ruleset.Continue {
			continue
		}
		return r.Verdict == ruleset.Accept
	}
	return t.Output.Policy == ruleset.Accept
}

func all[T any](s []T, f func(T) bool) bool {
	return !slices.ContainsFunc(s, func(v T) bool { return !f(v) })
}

// Where a change takes several batches, nothing is open after any of them that
// is neither open before the first nor after the last.
func TestStepsOpenNothing(t *testing.T) {
	ns := kerneltest.NewNS(t)
	r := rand.New(rand.NewPCG(5, 5))
	var gradual, closed, batches int
	for i := range 90 {
		c := dialIn(t, ns)
		sendBuffer(t, c, 1) // the kernel's minimum, 4.5 kB
		var before, after *ruleset.Table
		random := func() *ruleset.Table {
			// Few addresses, in many places, so that they come and go and move.
			from := hosts(60, 6)
			r.Shuffle(len(from), func(i, j int) { from[i], from[j] = from[j], from[i] })
			for i := range from {
				from[i] = netip.PrefixFrom(from[i].Addr(), 32-r.IntN(3)).Masked()
			}
			return build(t, pick(r, states...), ruleset.Params{Allow: from[:20+r.IntN(20)], Deny: from[40:]})
		}
		before, after = random(), random()
		if i%3 == 2 {
			// Structures that do not exist in reality must not confuse it.
			before, after = randomTable(r), randomTable(r)
		}
		if err := c.Apply(before); err != nil {
			t.Fatal(err)
		}
		before = list(t, c)
		norm, err := normalized(after)
		if err != nil {
			t.Fatal(err)
		}
		p := &planner{have: before, want: norm, change: ruleset.Diff(before, norm), replace: true, room: c.s.room}
		if p.change.Empty() {
			continue
		}
		_, g := p.plan()
		steps, err := p.batches()
		if err != nil {
			t.Fatal(err)
		}
		if g {
			gradual++
		} else {
			closed++
		}
		batches += len(steps)
		var probes []netip.Addr
		for _, table := range []*ruleset.Table{before, norm} {
			for _, s := range table.Sets {
				for _, e := range s.Elements {
					probes = append(probes, e.From, e.To, e.From.Prev(), e.To.Next())
				}
			}
		}
		for n, step := range steps {
			if err := c.s.batch(step); err != nil {
				t.Fatalf("step %d of %d: %v", n+1, len(steps), err)
			}
			now := list(t, c)
			for _, a := range probes {
				if a.IsValid() && permitted(now, a) && !permitted(before, a) && !permitted(norm, a) {
					t.Fatalf("%s is open after step %d of %d (gradual: %t)\nbefore: %s\nnow: %s\nafter: %s",
						a, n+1, len(steps), g, before, now, norm)
				}
			}
		}
		if change := ruleset.Diff(list(t, c), norm); !change.Empty() {
			t.Fatalf("after all: %s", change)
		}
	}
	if gradual < 5 || closed < 5 || batches < 100 {
		t.Errorf("only %d gradual and %d closed changes of %d batches: this test shows nothing", gradual, closed, batches)
	}
}

// A gradual change keeps what is open before and after.
func TestStepsKeepOpen(t *testing.T) {
	ns := kerneltest.NewNS(t)
	c := dialIn(t, ns)
	kept := hosts(5, 7)
	before := build(t, ruleset.Up, ruleset.Params{Allow: slices.Concat(kept, hosts(500, 8)), Deny: hosts(200, 9)})
	after := build(t, ruleset.Down, ruleset.Params{Allow: slices.Concat(kept, hosts(500, 10)), Deny: hosts(200, 11)})
	if err := c.Apply(before); err != nil {
		t.Fatal(err)
	}
	sendBuffer(t, c, 12_000)
	p := &planner{have: list(t, c), want: after, change: ruleset.Diff(list(t, c), after), room: c.s.room}
	steps, err := p.batches()
	if err != nil || len(steps) < 4 {
		t.Fatalf("%d steps, %v", len(steps), err)
	}
	for i, step := range steps {
		if err := c.s.batch(step); err != nil {
			t.Fatal(err)
		}
		for _, k := range kept {
			if !permitted(list(t, c), k.Addr()) {
				t.Errorf("%s is closed after step %d", k, i+1)
			}
		}
	}
}

// Elements that a resolver added survive every transition, but not being
// denied or allowed otherwise, and leave with their set.
func TestLearnedElementsStay(t *testing.T) {
	ns := kerneltest.NewNS(t)
	c := dialIn(t, ns)
	learned := netip.MustParseAddr("198.51.100.99")
	if err := c.Apply(build(t, ruleset.Up, params)); err != nil {
		t.Fatal(err)
	}
	kerneltest.NFT(t, ns, "", "add", "element", "inet", ruleset.TableName, "learned_v4", "{", learned.String(), "timeout", "1h", "}")
	for _, s := range []ruleset.State{ruleset.Down, ruleset.Up, ruleset.Disengaged, ruleset.Up} {
		if err := c.Apply(build(t, s, params)); err != nil {
			t.Fatal(err)
		}
		if e := list(t, c).Set("learned_v4").Elements; len(e) != 1 || e[0].From != learned || e[0].Expires == 0 {
			t.Errorf("%s: learned %v", s, e)
		}
	}
	if err := c.Apply(build(t, ruleset.Quarantine, params)); err != nil {
		t.Fatal(err)
	}
	if s := list(t, c).Set("learned_v4"); s != nil {
		t.Errorf("quarantine has %v", s)
	}
}

// Two at the same time: each succeeds or says that somebody else was there,
// and what is left is exactly one of the two, not the rules of both.
func TestConcurrentAppliers(t *testing.T) {
	ns := kerneltest.NewNS(t)
	tables := []*ruleset.Table{
		build(t, ruleset.Up, params),
		build(t, ruleset.Down, ruleset.Params{Allow: hosts(300, 12)}),
		build(t, ruleset.Quarantine, params),
	}
	var wg sync.WaitGroup
	for _, table := range tables {
		c := dialIn(t, ns)
		wg.Go(func() {
			for range 50 {
				if err := c.Apply(table); err != nil && !again(err) && !strings.Contains(err.Error(), "somebody else") {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	c := dialIn(t, ns)
	have := list(t, c)
	if !slices.ContainsFunc(tables, func(table *ruleset.Table) bool { return ruleset.Diff(have, table).Empty() }) {
		t.Errorf("neither of them: %s", have)
	}
}

// A resolver that writes all the time does not keep others from reading and
// changing the table.
func TestBusyResolver(t *testing.T) {
	ns := kerneltest.NewNS(t)
	c, resolver := dialIn(t, ns), dialIn(t, ns)
	up, down := build(t, ruleset.Up, params), build(t, ruleset.Down, params)
	if err := c.Apply(up); err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { done <- n }()
		set := up.Set("learned_v4")
		for ; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			a := netip.AddrFrom4([4]byte{198, 51, 100, byte(n)})
			learned := []ruleset.Element{{Range: ruleset.Range{From: a, To: a}, Timeout: time.Hour}}
			if err := resolver.s.batch(encoded(t, func(c *nftables.Conn) error {
				return c.SetAddElements(librarySet(set, 0), libraryElements(set, learned, false))
			})); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for i := range 100 {
		have := list(t, c)
		if change := ruleset.Diff(have, up); !change.Empty() {
			t.Fatalf("listing %d: %s", i, change)
		}
		for _, s := range []*ruleset.Table{down, up} {
			if err := c.Apply(s); err != nil {
				t.Fatalf("%d: %v", i, err)
			}
		}
	}
	close(stop)
	if n := <-done; n < 1000 {
		t.Errorf("only %d addresses learned: this test shows nothing", n)
	}
}

// The table vanishes or appears between reading and writing.
func TestChangedMeanwhile(t *testing.T) {
	ns := kerneltest.NewNS(t)
	c := dialIn(t, ns)
	want := build(t, ruleset.Up, params)
	p := planner{want: want, change: ruleset.Diff(nil, want), room: c.s.room}
	add, err := p.batches()
	if err != nil || len(add) != 1 {
		t.Fatalf("%d batches, %v", len(add), err)
	}
	if err := c.s.batch(add[0]); err != nil {
		t.Fatal(err)
	}
	if err := c.s.batch(add[0]); !errors.Is(err, unix.EEXIST) || !again(err) {
		t.Errorf("a table that appeared is added to: %v", err)
	}
	down := build(t, ruleset.Down, params)
	p = planner{have: want, want: down, change: ruleset.Diff(want, down), replace: true, room: c.s.room}
	alter, err := p.batches()
	if err != nil || len(alter) != 1 {
		t.Fatalf("%d batches, %v", len(alter), err)
	}
	kerneltest.NFT(t, ns, "", "flush", "ruleset")
	if err := c.s.batch(alter[0]); !errors.Is(err, unix.ENOENT) || !again(err) {
		t.Errorf("a table that vanished is changed: %v", err)
	}
	if have, err := c.List(); have != nil || err != nil {
		t.Errorf("left: %v, %v", have, err)
	}
}

// Whatever somebody else makes of the table after it was read, the result is
// what was wanted, except that a change may be seen by the next one only.
func TestApplyOver(t *testing.T) {
	allowed := build(t, ruleset.Up, ruleset.Params{Allow: hosts(3, 5)})
	denied := build(t, ruleset.Up, ruleset.Params{Deny: hosts(3, 5)})
	for name, tt := range map[string]struct {
		before, between, want *ruleset.Table // nil: none
	}{
		"nothing":        {allowed, allowed, denied},
		"elements":       {allowed, build(t, ruleset.Up, ruleset.Params{Allow: hosts(2, 5), Deny: hosts(9, 6)}), denied},
		"already":        {allowed, denied, denied},
		"another state":  {allowed, build(t, ruleset.Quarantine, params), denied},
		"more open":      {denied, build(t, ruleset.Disengaged, params), allowed},
		"gone":           {allowed, nil, denied},
		"from the start": {nil, allowed, denied},
	} {
		t.Run(name, func(t *testing.T) {
			ns := kerneltest.NewNS(t)
			c, other := dialIn(t, ns), dialIn(t, ns)
			if tt.before != nil {
				if err := other.Apply(tt.before); err != nil {
					t.Fatal(err)
				}
			}
			have, err := c.List()
			if err != nil {
				t.Fatal(err)
			}
			if tt.between == nil {
				kerneltest.NFT(t, ns, "", "flush", "ruleset")
			} else if err := other.Apply(tt.between); err != nil {
				t.Fatal(err)
			}
			if err := c.ApplyOver(have, tt.want); err != nil {
				t.Fatal(err)
			}
			if change := ruleset.Diff(list(t, c), tt.want); !change.Empty() {
				t.Errorf("left: %s", change)
			}
			if have == nil {
				return
			}
			// What was read before a change says nothing after it.
			if err := other.Apply(build(t, ruleset.Quarantine, params)); err != nil {
				t.Fatal(err)
			}
			if err := c.ApplyOver(have, have); err != nil {
				t.Fatal(err)
			}
			if change := ruleset.Diff(list(t, c), have); !change.Empty() {
				t.Errorf("what was read before a change is taken for what there is: %s", change)
			}
		})
	}
}

// What is known is what there is, whoever has changed it and however often; and
// it is not read again as long as nobody does.
func TestKnown(t *testing.T) {
	ns := kerneltest.NewNS(t)
	c, other := dialIn(t, ns), dialIn(t, ns)
	known := func() *ruleset.Table {
		t.Helper()
		table, err := c.Known()
		if err != nil {
			t.Fatal(err)
		}
		return table
	}
	if table := known(); table != nil {
		t.Fatalf("known of nothing: %v", table)
	}
	apply := func(by *Conn, state ruleset.State, p ruleset.Params) func() {
		return func() {
			t.Helper()
			if err := by.Apply(build(t, state, p)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, change := range []func(){
		apply(other, ruleset.Up, params),
		apply(c, ruleset.Up, ruleset.Params{Allow: hosts(9, 1)}),
		apply(c, ruleset.Up, ruleset.Params{Allow: hosts(9, 1), Deny: hosts(9, 2)}),
		apply(other, ruleset.Up, ruleset.Params{Allow: hosts(9, 1)}),
		func() {
			kerneltest.NFT(t, ns, "", "add", "element", "inet", ruleset.TableName, "deny_v4", "{ 9.9.9.9 }")
		},
		func() { kerneltest.NFT(t, ns, "", "insert", "rule", "inet", ruleset.TableName, "output", "accept") },
		func() { kerneltest.NFT(t, ns, "", "add", "table", "inet", "another") },
		apply(c, ruleset.Quarantine, params),
		func() { kerneltest.NFT(t, ns, "", "delete", "table", "inet", ruleset.TableName) },
		apply(c, ruleset.Down, params),
	} {
		change()
		first := known()
		fresh, err := other.List()
		if err != nil {
			t.Fatal(err)
		}
		if (first == nil) != (fresh == nil) {
			t.Fatalf("change %d: known %v, there %v", i, first, fresh)
		}
		if fresh != nil {
			if diff := ruleset.Diff(first, fresh); !diff.Empty() {
				t.Errorf("change %d: known is something else: %s", i, diff)
			}
		}
		if again := known(); again != first {
			t.Errorf("change %d: read once more, though nothing has changed", i)
		}
		if fresh != nil {
			if err := c.ApplyOver(known(), build(t, ruleset.Up, params)); err != nil {
				t.Errorf("change %d: %v", i, err)
			}
			if diff := ruleset.Diff(list(t, other), build(t, ruleset.Up, params)); !diff.Empty() {
				t.Errorf("change %d: over what is known: %s", i, diff)
			}
		}
	}
	// An Apply leaves behind what Known needs.
	apply(c, ruleset.Up, params)()
	seen := c.seen.table
	if seen == nil || known() != seen {
		t.Error("what was applied is read once more")
	}
	kerneltest.NFT(t, ns, "", "add", "table", "inet", ruleset.TableName, "{ chain output { policy accept; } ; }")
	kerneltest.NFT(t, ns, "", "add", "map", "inet", ruleset.TableName, "m", "{ type ipv4_addr : verdict; }")
	for range 2 {
		if table, err := c.Known(); !errors.Is(err, ErrForeign) {
			t.Errorf("somebody else's table is known: %v, %v", table, err)
		}
	}
}

// Without the capability the error says which one.
func TestNotPermitted(t *testing.T) {
	ns := kerneltest.NewNS(t)
	err := ns.Do(func() error {
		// Only of this thread, which ends here.
		header, none := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
		if err := unix.Capset(&header, &none[0]); err != nil {
			t.Fatal(err)
		}
		c, err := Dial()
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.List(); !errors.Is(err, unix.EPERM) {
			t.Errorf("list: %v", err)
		}
		return c.Apply(build(t, ruleset.Up, params))
	})
	if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("apply: %v", err)
	}
}

// What cannot be said to the kernel is refused before anything changes.
func TestImpossible(t *testing.T) {
	ns := kerneltest.NewNS(t)
	c := dialIn(t, ns)
	if err := c.Apply(build(t, ruleset.Quarantine, params)); err != nil {
		t.Fatal(err)
	}
	before := kerneltest.Generation(t, ns)
	rule := func(m ...ruleset.Match) *ruleset.Table {
		table := build(t, ruleset.Quarantine, params)
		table.Output.Rules = append(table.Output.Rules, ruleset.Rule{Match: m, Verdict: ruleset.Accept})
		return table
	}
	for name, table := range map[string]*ruleset.Table{
		"interface without name":   rule(ruleset.OIf("")),
		"interface with long name": rule(ruleset.OIf("sixteen-letters-")),
		"host bits":                rule(ruleset.Daddr(netip.MustParsePrefix("10.0.0.1/8"))),
		"no prefix":                rule(ruleset.Daddr{}),
		"port of no protocol":      rule(ruleset.DPort{Port: 1}),
		"two protocols":            rule(ruleset.DPort{Proto: ruleset.TCP}, ruleset.DPort{Proto: ruleset.UDP}),
		"two families":             rule(ruleset.DaddrIn{Set: "a"}, ruleset.DaddrIn{Set: "b", V6: true}),
		"nil match":                rule(nil),
		"verdict":                  {Output: ruleset.Chain{Policy: ruleset.Drop, Rules: []ruleset.Rule{{Verdict: 9}}}, Input: ruleset.Chain{Policy: ruleset.Drop}},
		"policy":                   {Output: ruleset.Chain{Policy: ruleset.Reject}, Input: ruleset.Chain{Policy: ruleset.Drop}},
		"set without name":         {Sets: []ruleset.Set{{}}},
		"family":                   {Sets: []ruleset.Set{{Name: "s", V6: true, Elements: []ruleset.Element{{Range: ruleset.RangeOf(prefixes("10.0.0.1/32")[0])}}}}},
	} {
		if err := c.Apply(table); err == nil {
			t.Errorf("%s: applied", name)
		}
	}
	// Refused by the kernel, and the error says what was.
	if err := c.Apply(rule(ruleset.DaddrIn{Set: "nothing"})); err == nil || !strings.Contains(err.Error(), "rule 4 of chain output") {
		t.Errorf("rule with an unknown set: %v", err)
	}
	if after := kerneltest.Generation(t, ns); after != before {
		t.Errorf("%d transactions", after-before)
	}
}

// encoded is what the library makes of operations.
func encoded(t testing.TB, ops ...func(c *nftables.Conn) error) []message {
	t.Helper()
	var r recorder
	for _, op := range ops {
		r.add("an operation", op)
	}
	msgs, err := r.take()
	if err != nil {
		t.Error(err)
	}
	return msgs
}

// What does not fit the 16 bits of an attribute's length, which the library
// lets wrap, is an error; so is an operation that makes another number of
// messages than one.
func TestTake(t *testing.T) {
	set := &ruleset.Set{Name: "s", Interval: true}
	many := build(t, ruleset.Up, ruleset.Params{Allow: hosts(3000, 1)}).Set("allow_v4").Elements
	for want, op := range map[string]func(c *nftables.Conn) error{
		"netlink message of": func(c *nftables.Conn) error {
			return c.SetAddElements(librarySet(set, 0), libraryElements(set, many, false))
		},
		"1 operations became 0": func(c *nftables.Conn) error { return nil },
		"1 operations became 2": func(c *nftables.Conn) error { c.FlushTable(table()); c.DelTable(table()); return nil },
		"an operation: refused": func(c *nftables.Conn) error { return errors.New("refused") },
	} {
		var r recorder
		r.add("an operation", op)
		if msgs, err := r.take(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %d messages, %v", want, len(msgs), err)
		}
		if msgs, err := r.take(); msgs != nil || err != nil {
			t.Errorf("%s: nothing is left, but %v, %v", want, msgs, err)
		}
	}
}

// More errors than the receive buffer holds are still an error.
func TestLostAnswers(t *testing.T) {
	ns := kerneltest.NewNS(t)
	c := dialIn(t, ns)
	if err := unix.SetsockoptInt(c.s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
		t.Fatal(err)
	}
	var msgs []message
	for range 300 {
		msgs = append(msgs, message{unix.NFT_MSG_DELTABLE, 0, request(name(unix.NFTA_TABLE_NAME, "nothing")), "delete nothing"})
	}
	if err := c.s.batch(msgs); err == nil {
		t.Error("300 failures are a success")
	}
	// And the connection is as good as before.
	want := build(t, ruleset.Up, params)
	if err := c.Apply(want); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, list(t, c), equal); d != "" {
		t.Error(d)
	}
}

func TestClosed(t *testing.T) {
	c := dialIn(t, kerneltest.NewNS(t))
	for range 2 {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.List(); !errors.Is(err, errClosed) {
		t.Error(err)
	}
	if err := c.Apply(build(t, ruleset.Quarantine, params)); !errors.Is(err, errClosed) {
		t.Error(err)
	}
}

// FuzzMessages: whatever comes from the socket, decoding it ends, without a
// panic, and a rule that was understood encodes to itself.
func FuzzMessages(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 13))
	for range 20 {
		s, rule := randomSet(r, "s"), randomRule(r, nil)
		for _, m := range encoded(f,
			func(c *nftables.Conn) error { return addRule(c, "output", rule) },
			func(c *nftables.Conn) error { return c.AddSet(librarySet(&s, 1), nil) },
			func(c *nftables.Conn) error {
				return c.SetAddElements(librarySet(&s, 0), libraryElements(&s, s.Elements, false))
			},
			func(c *nftables.Conn) error { return addChain(c, "output", ruleset.Drop) },
		) {
			f.Add(appendMessage(nil, &m, messageType(m.typ), 1, 0))
		}
	}
	f.Add(binary.NativeEndian.AppendUint32(nil, 16))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = messages(b, func(m reply) error {
			_ = m.errno()
			if len(m.body) < genHeader {
				return nil
			}
			attrs, err := parseFields(m.body[genHeader:])
			if err != nil {
				return err
			}
			_, _ = decodeTable(&attrs)
			_, _, _ = decodeChain(&attrs)
			if s, err := decodeSet(&attrs); err == nil {
				if bounds, err := decodeElements(&s, attrs.v[unix.NFTA_SET_ELEM_LIST_ELEMENTS], nil); err == nil {
					if s.Elements, _, err = join(&s, bounds); err == nil {
						_ = s.Normalize()
					}
				}
			}
			rule, err := decodeRuleMessage(&attrs)
			if err != nil {
				return nil
			}
			made, err := parseFields(encoded(t, func(c *nftables.Conn) error { return addRule(c, "output", rule) })[0].body)
			if err != nil {
				t.Fatal(err)
			}
			again, err := decodeRuleMessage(&made)
			if err != nil || !again.Equal(rule) {
				t.Fatalf("%s becomes %s, %v", rule, again, err)
			}
			return nil
		})
	})
}
