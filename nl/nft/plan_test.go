package nft

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/nl/ruleset"
)

// model is what the kernel makes of messages, read back from their bytes.
type model struct{ table ruleset.Table }

func (m *model) chain(name string) *ruleset.Chain {
	if name == ruleset.OutputHook {
		return &m.table.Output
	}
	return &m.table.Input
}

// carryOut carries out one message, or fails as the kernel would.
func (m *model) carryOut(msg message) error {
	f, err := parseFields(msg.body)
	if err != nil {
		return err
	}
	switch msg.typ {
	case unix.NFT_MSG_DELTABLE:
		m.table = ruleset.Table{}
	case unix.NFT_MSG_NEWTABLE:
	case unix.NFT_MSG_DELRULE:
		m.table.Output.Rules, m.table.Input.Rules = nil, nil
	case unix.NFT_MSG_NEWCHAIN:
		name, c, err := decodeChain(&f)
		if err != nil {
			return err
		}
		m.chain(name).Policy = c.Policy
	case unix.NFT_MSG_NEWRULE:
		r, err := decodeRuleMessage(&f)
		if err != nil {
			return err
		}
		c := m.chain(f.str(unix.NFTA_RULE_CHAIN))
		c.Rules = append(c.Rules, r)
		for _, match := range r.Match {
			if in, ok := match.(ruleset.DaddrIn); ok && m.table.Set(in.Set) == nil {
				return unix.ENOENT
			}
		}
	case unix.NFT_MSG_DELSET:
		name := f.str(unix.NFTA_SET_NAME)
		if m.table.Set(name) == nil {
			return unix.ENOENT
		}
		if _, used := rolesOf(&m.table)[name]; used {
			return unix.EBUSY
		}
		m.table.Sets = slices.DeleteFunc(m.table.Sets, func(s ruleset.Set) bool { return s.Name == name })
	case unix.NFT_MSG_NEWSET:
		f.v[unix.NFTA_SET_ID] = nil // only on the way in
		s, err := decodeSet(&f)
		if err != nil {
			return err
		}
		if m.table.Set(s.Name) != nil {
			return unix.EEXIST
		}
		m.table.Sets = append(m.table.Sets, s)
	case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
		s := m.table.Set(f.str(unix.NFTA_SET_ELEM_LIST_SET))
		if s == nil {
			return unix.ENOENT
		}
		bounds, err := decodeElements(s, unnumbered(f.v[unix.NFTA_SET_ELEM_LIST_ELEMENTS]), nil)
		if err != nil {
			return err
		}
		elements, _, err := join(s, bounds)
		if err != nil {
			return err
		}
		for _, e := range elements {
			n := slices.IndexFunc(s.Elements, func(o ruleset.Element) bool { return o.Overlaps(e.Range) })
			switch {
			case msg.typ == unix.NFT_MSG_NEWSETELEM && n >= 0:
				return unix.EEXIST
			case msg.typ == unix.NFT_MSG_NEWSETELEM:
				s.Elements = append(s.Elements, e)
			case n < 0 || s.Elements[n].Range != e.Range:
				return unix.ENOENT
			default:
				s.Elements = slices.Delete(s.Elements, n, n+1)
			}
		}
	default:
		return fmt.Errorf("message of type %d", msg.typ)
	}
	return nil
}

// unnumbered gives the attributes of a list the one type that they have in the
// kernel's answers. The library numbers them, which the kernel ignores.
func unnumbered(list []byte) []byte {
	list = slices.Clone(list)
	for b := list; len(b) >= attrHeader; {
		binary.NativeEndian.PutUint16(b[2:], unix.NFTA_LIST_ELEM)
		b = b[min((int(binary.NativeEndian.Uint16(b))+3)&^3, len(b)):]
	}
	return list
}

func (m *model) clone() *model {
	c := *m
	c.table.Sets = slices.Clone(m.table.Sets)
	for i := range c.table.Sets {
		c.table.Sets[i].Elements = slices.Clone(c.table.Sets[i].Elements)
	}
	c.table.Output.Rules = slices.Clone(m.table.Output.Rules)
	c.table.Input.Rules = slices.Clone(m.table.Input.Rules)
	return &c
}

// between are the moments within a batch that packets can meet: the rules are
// in force first, then one set after the other has its new elements.
func between(before, after *model, r *rand.Rand) (moments []*model) {
	now := after.clone()
	for i := range now.table.Sets {
		s := &now.table.Sets[i]
		s.Elements = nil
		if old := before.table.Set(s.Name); old != nil {
			s.Elements = old.Elements
		}
	}
	moments = append(moments, now)
	for _, i := range r.Perm(len(now.table.Sets)) {
		now = now.clone()
		now.table.Sets[i].Elements = after.table.Sets[i].Elements
		moments = append(moments, now)
	}
	return moments
}

// denseTable has few addresses in many ranges, and rules that use sets in any
// way that a table of ours, of others, or of nobody does.
func denseTable(r *rand.Rand) *ruleset.Table {
	some := func() (p []netip.Prefix) {
		for range r.IntN(8) {
			a := netip.AddrFrom4([4]byte{198, 51, 100, byte(r.IntN(32))})
			p = append(p, netip.PrefixFrom(a, 32-r.IntN(5)).Masked())
		}
		return p
	}
	t, err := ruleset.Build(pick(r, ruleset.Up, ruleset.Up, ruleset.Down, ruleset.Disengaged), ruleset.Params{Allow: some(), Deny: some()})
	if err != nil {
		panic(err)
	}
	drop, err := ruleset.Build(ruleset.Quarantine, ruleset.Params{})
	if err != nil {
		panic(err)
	}
	switch r.IntN(6) {
	case 0:
		return drop
	case 1: // sets that nothing refers to
		t.Output, t.Input = drop.Output, drop.Input
	case 2: // another definition of the set
		s := t.Set(pick(r, "allow_v4", "deny_v4"))
		s.Expiring, s.Timeout = true, time.Hour
		for i := range s.Elements {
			s.Elements[i].Timeout = ruleset.Permanent
		}
	case 3: // the other way round
		other := map[string]string{"allow_v4": "deny_v4", "deny_v4": "allow_v4"}
		for i := range t.Output.Rules {
			for _, m := range t.Output.Rules[i].Match {
				if in, ok := m.(ruleset.DaddrIn); ok && other[in.Set] != "" {
					t.Output.Rules[i].Match = []ruleset.Match{ruleset.DaddrIn{Set: other[in.Set]}}
				}
			}
		}
	}
	return t
}

// Whatever the change and the size of a batch: it is valid, arrives at what is
// wanted, and at no moment is anything open that is neither open before nor
// after, though newer kernels carry out a batch piece by piece. What a set
// opens before and after stays open, unless there is no other way.
func TestPlan(t *testing.T) {
	const all = 1 << 20
	kinds := map[string]int{}
	for seed := range uint64(5000) {
		r := rand.New(rand.NewPCG(seed, 3))
		have, err := normalized(denseTable(r))
		if err != nil {
			t.Fatal(err)
		}
		want, err := normalized(denseTable(r))
		if err != nil {
			t.Fatal(err)
		}
		if r.IntN(3) == 0 && len(have.Sets) == len(want.Sets) { // only addresses differ
			want.Output, want.Input = have.Output, have.Input
		}
		room := pick(r, all, 3000, 1200, 400)
		p := &planner{have: have, want: want, change: ruleset.Diff(have, want), replace: true, room: func(int) int { return room }}
		if r.IntN(10) == 0 { // as after a foreign table that did the same
			p.have, p.change = nil, ruleset.Diff(nil, want)
		}
		batches, err := p.batches()
		if err != nil {
			t.Fatal(err)
		}
		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("seed %d: %s\nhave: %s\nwant: %s\n%d batches", seed, fmt.Sprintf(format, args...), have, want, len(batches))
		}
		_, gradual := p.plan()
		kinds[fmt.Sprintf("gradual %t, one batch %t", gradual, len(batches) <= 1)]++
		var probes []netip.Addr
		for i := range 34 {
			probes = append(probes, netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}))
		}
		now := &model{*have}
		now = now.clone()
		for n, b := range batches {
			next := now.clone()
			for _, msg := range b {
				if err := next.carryOut(msg); err != nil {
					fail("batch %d, %s: %v", n+1, msg.about, err)
				}
			}
			for _, moment := range between(now, next, r) {
				for _, a := range probes {
					was, is, will := permitted(have, a), permitted(&moment.table, a), permitted(want, a)
					if is && !was && !will {
						fail("%s is open in batch %d\nnow: %s", a, n+1, &moment.table)
					}
					if room == all && gradual && !is && was && will && sameReason(have, want, a) {
						fail("%s is cut in batch %d\nnow: %s", a, n+1, &moment.table)
					}
				}
			}
			now = next
		}
		for i := range now.table.Sets {
			if err := now.table.Sets[i].Normalize(); err != nil {
				t.Fatal(err)
			}
		}
		if change := ruleset.Diff(&now.table, want); !change.Empty() {
			fail("%s", change)
		}
	}
	if len(kinds) != 3 { // what is not gradual takes two
		t.Errorf("not all kinds of plans were made: %v", kinds)
	}
}

// sameReason reports whether a is in the same sets before and after.
func sameReason(have, want *ruleset.Table, a netip.Addr) bool {
	if len(have.Sets) != len(want.Sets) {
		return false
	}
	for i, s := range have.Sets {
		in := func(e ruleset.Element) bool { return e.Contains(a) }
		if slices.ContainsFunc(s.Elements, in) != slices.ContainsFunc(want.Sets[i].Elements, in) {
			return false
		}
	}
	return true
}

func TestUnionIntersection(t *testing.T) {
	span := func(from, to byte) ruleset.Element {
		return ruleset.Element{Range: ruleset.Range{From: netip.AddrFrom4([4]byte{0, 0, 0, from}), To: netip.AddrFrom4([4]byte{0, 0, 0, to})}}
	}
	type list = []ruleset.Element
	for _, tc := range []struct {
		name               string
		a, b, union, inter list
	}{
		{"nothing", nil, nil, nil, nil},
		{"apart", list{span(1, 2)}, list{span(3, 4)}, list{span(1, 2), span(3, 4)}, nil},
		{"same", list{span(1, 2)}, list{span(1, 2)}, list{span(1, 2)}, list{span(1, 2)}},
		{"grows", list{span(3, 4)}, list{span(1, 9)}, list{span(1, 9)}, list{span(3, 4)}},
		{"shrinks", list{span(1, 9)}, list{span(3, 4), span(6, 6)}, list{span(1, 9)}, list{span(3, 4), span(6, 6)}},
		{"moves", list{span(1, 5), span(8, 9)}, list{span(4, 8)}, list{span(1, 9)}, list{span(4, 5), span(8, 8)}},
	} {
		if d := cmp.Diff(tc.union, union(tc.a, tc.b), equal); d != "" {
			t.Errorf("%s, union (want, have):\n%s", tc.name, d)
		}
		if d := cmp.Diff(tc.inter, intersection(tc.a, tc.b), equal); d != "" {
			t.Errorf("%s, intersection (want, have):\n%s", tc.name, d)
		}
	}
}
