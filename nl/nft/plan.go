package nft

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/terok-ai/terok-box/nl/ruleset"
)

// planner turns a change into batches of messages, each of which the kernel
// carries out completely or not at all.
//
// That does not mean at one moment. Newer kernels look intervals up in a copy
// that each set gets after the new rules are already in force: if a batch both
// denies an address and opens more, packets to it get out for some
// microseconds. So what closes is a batch of its own, before what opens.
type planner struct {
	have    *ruleset.Table // nil: none that can be changed
	want    *ruleset.Table
	change  *ruleset.Change
	replace bool               // there is a table that cannot be changed
	room    func(want int) int // how many bytes a batch can have, if it has to have want

	ids uint32 // of new sets
	recorder
}

func size(msgs []message) (n int) {
	for i := range msgs {
		n += msgs[i].size()
	}
	return n
}

func (p *planner) fits(msgs []message) bool {
	n := size(msgs)
	return n <= p.room(n)
}

// begin makes the table, or takes the rules out of the one that is there.
func (p *planner) begin() {
	switch {
	case p.change.New && p.replace:
		p.add("delete the table", func(c *nftables.Conn) error { c.DelTable(table()); return nil })
		fallthrough
	case p.change.New:
		// Exclusively: behind the rules of somebody who was faster, ours would
		// mean nothing.
		p.add("add the table", func(c *nftables.Conn) error { c.CreateTable(table()); return nil })
	case p.change.Rules:
		p.add("remove the rules", func(c *nftables.Conn) error { c.FlushTable(table()); return nil })
	}
}

func (p *planner) chains(output, input ruleset.Verdict) {
	for name, policy := range inOrder(output, input) {
		p.add("add chain "+name, func(c *nftables.Conn) error { return addChain(c, name, policy) })
	}
}

// inOrder goes through what belongs to the two chains.
func inOrder[T any](output, input T) func(yield func(string, T) bool) {
	return func(yield func(string, T) bool) {
		_ = yield(ruleset.OutputHook, output) && yield(ruleset.InputHook, input)
	}
}

func (p *planner) rules() {
	for name, chain := range inOrder(p.want.Output, p.want.Input) {
		for i, r := range chain.Rules {
			p.add(fmt.Sprintf("add rule %d of chain %s", i+1, name),
				func(c *nftables.Conn) error { return addRule(c, name, r) })
		}
	}
}

func (p *planner) dropSets() {
	for _, name := range p.change.DropSets {
		p.add("delete set "+name, func(c *nftables.Conn) error {
			c.DelSet(&nftables.Set{Table: table(), Name: name})
			return nil
		})
	}
}

func (p *planner) addSets() {
	for i := range p.change.AddSets {
		s := &p.change.AddSets[i]
		p.ids++
		id := p.ids
		p.add("add set "+s.Name, func(c *nftables.Conn) error { return c.AddSet(librarySet(s, id), nil) })
	}
}

// fill adds the elements of the sets that addSets adds.
func (p *planner) fill() {
	for i := range p.change.AddSets {
		s := &p.change.AddSets[i]
		p.elements(s, s.Elements, false)
	}
}

// alter deletes and adds elements, in that order.
func (p *planner) alter(s *ruleset.Set, del, add []ruleset.Element) {
	p.elements(s, del, true)
	p.elements(s, add, false)
}

func (p *planner) elements(s *ruleset.Set, elements []ruleset.Element, remove bool) {
	about, carry := "add to set "+s.Name, (*nftables.Conn).SetAddElements
	if remove {
		about, carry = "delete from set "+s.Name, (*nftables.Conn).SetDeleteElements
	}
	for chunk := range slices.Chunk(elements, elementsPerMessage) {
		about := fmt.Sprintf("%s %s", about, chunk[0].From)
		if len(chunk) > 1 {
			about += fmt.Sprintf(" and %d more", len(chunk)-1)
		}
		p.add(about, func(c *nftables.Conn) error {
			return carry(c, librarySet(s, 0), libraryElements(s, chunk, remove))
		})
	}
}

// batches are what is to be sent one after the other.
func (p *planner) batches() ([][]message, error) {
	if p.change.New && !p.replace {
		// Everything is open before: one batch cannot open more. The order is
		// that of nft, since it shows in the numbers of objects.
		p.begin()
		p.chains(p.want.Output.Policy, p.want.Input.Policy)
		p.addSets()
		p.fill()
		p.rules()
		msgs, err := p.take()
		if err != nil || p.fits(msgs) {
			return [][]message{msgs}, err
		}
	}
	if steps, ok := p.plan(); ok {
		batches, err := p.gradual(steps)
		if err != nil || batches != nil {
			return batches, err
		}
	}
	return p.closed()
}

// closed are batches of which the first ones take away everything that lets a
// packet through and build up the sets; then come the rules, in their order,
// and the policies last. It always works: the beginning of a list of rules,
// with the policy to drop, lets nothing through that the whole list does not.
func (p *planner) closed() ([][]message, error) {
	change := *p.change
	change.Rules = true
	p.change = &change
	p.begin()
	p.chains(ruleset.Drop, ruleset.Drop)
	p.dropSets()
	p.addSets()
	for _, e := range p.change.Elements {
		p.alter(p.want.Set(e.Set), e.Del, e.Add)
	}
	p.fill()
	sets, err := p.take()
	if err != nil {
		return nil, err
	}
	p.rules()
	p.chains(p.want.Output.Policy, p.want.Input.Policy)
	rules, err := p.take()
	return slices.Concat(p.pack(sets), p.pack(rules)), err
}

// roles are what the rules of a table do to what is in a set.
type roles uint8

const (
	opens roles = 1 << iota
	closes
)

// rolesOf finds the roles of a table's sets. A rule that only logs gives none.
func rolesOf(t *ruleset.Table) map[string]roles {
	all := map[string]roles{}
	for _, c := range inOrder(t.Output, t.Input) {
		for _, r := range c.Rules {
			for _, m := range r.Match {
				var set string
				switch m := m.(type) {
				case ruleset.DaddrIn:
					set = m.Set
				case ruleset.SaddrIn:
					set = m.Set
				default:
					continue
				}
				switch r.Verdict {
				case ruleset.Accept:
					all[set] |= opens
				case ruleset.Drop, ruleset.Reject:
					all[set] |= closes
				}
			}
		}
	}
	return all
}

// step is the change of a set's elements on the way over others: from del to
// mid before the rules change, from mid to add with them.
type step struct {
	set           *ruleset.Set
	del, mid, add []ruleset.Element
}

// plan finds the steps by which a table that goes on to work becomes the other
// one. Sets that open have in between only what they have before and after,
// sets that close what they have before or after: so under the old rules with
// any part of the first step done nothing is open that was not, and under the
// new ones with any part of the second step nothing that will not be.
//
// It is impossible if the table itself or a set is to be replaced by one of
// the same name, or if a set both opens and closes.
func (p *planner) plan() (steps []step, ok bool) {
	if p.change.New {
		return nil, false
	}
	for i := range p.change.AddSets {
		if slices.Contains(p.change.DropSets, p.change.AddSets[i].Name) {
			return nil, false
		}
	}
	before, after := rolesOf(p.have), rolesOf(p.want)
	for _, e := range p.change.Elements {
		s := step{set: p.want.Set(e.Set), del: e.Del, add: e.Add}
		switch was, is := before[e.Set], after[e.Set]; {
		case was|is == opens|closes:
			return nil, false
		case was == 0: // means nothing yet
			s.mid = s.add
		case is == 0: // means nothing any more
			s.mid = s.del
		case is == opens:
			s.mid = intersection(s.del, s.add)
		default:
			s.mid = union(s.del, s.add)
		}
		steps = append(steps, s)
	}
	return steps, true
}

// gradual are the batches of steps. New sets are filled first, since no rule
// refers to them yet. The result is nil if a batch had to be torn apart that
// cannot be.
func (p *planner) gradual(steps []step) ([][]message, error) {
	torn := false // a range would be open between its deletion and addition
	of := rolesOf(p.want)
	p.addSets()
	p.fill()
	for _, s := range steps {
		del, add := without(s.del, s.mid), without(s.mid, s.del)
		torn = torn || of[s.set.Name]&closes != 0 && overlap(del, add)
		p.alter(s.set, del, add)
	}
	first, err := p.take()
	if err != nil || torn && !p.fits(first) {
		return nil, err
	}
	if p.change.Rules {
		p.begin()
		p.chains(p.want.Output.Policy, p.want.Input.Policy)
		p.dropSets()
		p.rules()
	}
	rules := len(p.ops)
	torn = false
	for _, s := range steps {
		del, add := without(s.mid, s.add), without(s.add, s.mid)
		torn = torn || of[s.set.Name]&closes != 0 && overlap(del, add)
		p.alter(s.set, del, add)
	}
	second, err := p.take()
	if err != nil {
		return nil, err
	}
	if p.fits(second) {
		return slices.Concat(p.pack(first), p.pack(second)), nil
	}
	if torn || !p.fits(second[:rules]) {
		return nil, nil
	}
	return slices.Concat(p.pack(first), p.pack(second[:rules]), p.pack(second[rules:])), nil
}

// overlap reports whether a range of a overlaps one of b. Both are sorted and
// free of overlaps in themselves, as below.
func overlap(a, b []ruleset.Element) bool { return len(intersection(a, b)) > 0 }

// intersection is what is both in a and in b. Ranges of a stay what they are
// if b has all of them.
func intersection(a, b []ruleset.Element) (both []ruleset.Element) {
	for len(a) > 0 && len(b) > 0 {
		if a[0].Overlaps(b[0].Range) {
			e := b[0]
			e.From = later(a[0].From, b[0].From)
			if b[0].To.Compare(a[0].To) > 0 {
				e.To = a[0].To
			}
			if e.Range == a[0].Range {
				e = a[0]
			}
			both = append(both, e)
		}
		if a[0].To.Less(b[0].To) {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return both
}

func later(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return b
	}
	return a
}

// union is what is in a or in b, joined where they overlap. Ranges of a stay
// what they are if they cover what they overlap.
func union(a, b []ruleset.Element) (either []ruleset.Element) {
	for len(a)+len(b) > 0 {
		var e ruleset.Element
		fromA := len(b) == 0 || len(a) > 0 && a[0].From.Compare(b[0].From) <= 0
		if fromA {
			e, a = a[0], a[1:]
		} else {
			e, b = b[0], b[1:]
		}
		if n := len(either); n == 0 || !either[n-1].Overlaps(e.Range) {
			either = append(either, e)
			continue
		}
		last := &either[len(either)-1]
		if last.To.Less(e.To) {
			last.To = e.To
			last.Timeout, last.Expires = e.Timeout, 0
		}
	}
	return either
}

// without are the elements of a that are not in b just so.
func without(a, b []ruleset.Element) (rest []ruleset.Element) {
	in := make(map[ruleset.Range]time.Duration, len(b))
	for _, e := range b {
		in[e.Range] = e.Timeout
	}
	for _, e := range a {
		if timeout, ok := in[e.Range]; !ok || timeout != e.Timeout {
			rest = append(rest, e)
		}
	}
	return rest
}

// pack distributes messages over batches, in their order.
func (p *planner) pack(msgs []message) (batches [][]message) {
	room, used := p.room(size(msgs)), 0
	for i, m := range msgs {
		if n := m.size(); i == 0 || used+n > room {
			batches, used = append(batches, nil), 0
		}
		last := &batches[len(batches)-1]
		*last = append(*last, m)
		used += m.size()
	}
	return batches
}
