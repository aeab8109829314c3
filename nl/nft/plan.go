package nft

import (
	"fmt"
	"slices"

	"github.com/terok-ai/terok-box/nl/ruleset"
	"golang.org/x/sys/unix"
)

// planner turns a change into messages.
type planner struct {
	have    *ruleset.Table // nil: none that can be changed
	want    *ruleset.Table
	change  *ruleset.Change
	replace bool // there is a table that cannot be changed

	ids  uint32 // of new sets
	msgs []message
	err  error
}

func size(msgs []message) (n int) {
	for i := range msgs {
		n += msgs[i].size()
	}
	return n
}

// take is what was planned since it was called last.
func (p *planner) take() ([]message, error) {
	msgs := p.msgs
	p.msgs = nil
	return msgs, p.err
}

func (p *planner) add(typ, flags uint16, about string, f func(w *writer) error) {
	w := writer{b: make([]byte, 0, 256)}
	err := f(&w)
	if err == nil {
		err = w.err
	}
	if err != nil && p.err == nil {
		p.err = fmt.Errorf("%s: %w", about, err)
	}
	p.msgs = append(p.msgs, message{typ, flags, w.b, about})
}

func (p *planner) table(typ, flags uint16, about string) {
	p.add(typ, flags, about, func(w *writer) error {
		w.str(unix.NFTA_TABLE_NAME, ruleset.TableName)
		return nil
	})
}

// begin makes the table, or takes the rules out of the one that is there.
func (p *planner) begin() {
	switch {
	case p.change.New && p.replace:
		p.table(unix.NFT_MSG_DELTABLE, 0, "delete the table")
		fallthrough
	case p.change.New:
		// Exclusively: behind the rules of somebody who was faster, ours would
		// mean nothing.
		p.table(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, "add the table")
	case p.change.Rules:
		p.add(unix.NFT_MSG_DELRULE, 0, "remove the rules", func(w *writer) error {
			w.str(unix.NFTA_RULE_TABLE, ruleset.TableName)
			return nil
		})
	}
}

func (p *planner) chains(output, input ruleset.Verdict) {
	for name, policy := range inOrder(output, input) {
		if policy != ruleset.Accept && policy != ruleset.Drop && p.err == nil {
			p.err = fmt.Errorf("chain %s: verdict %d is no policy", name, policy)
		}
		p.add(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, "add chain "+name, func(w *writer) error {
			w.encodeChain(name, policy)
			return nil
		})
	}
}

// inOrder goes through what belongs to the two chains.
func inOrder[T any](output, input T) func(yield func(string, T) bool) {
	return func(yield func(string, T) bool) {
		_ = yield(ruleset.OutputHook, output) && yield(ruleset.InputHook, input)
	}
}

func (p *planner) rules() {
	for name, c := range inOrder(p.want.Output, p.want.Input) {
		for i, r := range c.Rules {
			p.add(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND,
				fmt.Sprintf("add rule %d of chain %s", i+1, name),
				func(w *writer) error { return w.encodeRuleMessage(name, r) })
		}
	}
}

func (p *planner) dropSets() {
	for _, name := range p.change.DropSets {
		p.add(unix.NFT_MSG_DELSET, 0, "delete set "+name, func(w *writer) error {
			w.str(unix.NFTA_SET_TABLE, ruleset.TableName)
			w.str(unix.NFTA_SET_NAME, name)
			return nil
		})
	}
}

func (p *planner) addSets() {
	for i := range p.change.AddSets {
		s := &p.change.AddSets[i]
		p.ids++
		p.add(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, "add set "+s.Name, func(w *writer) error {
			w.encodeSet(s, p.ids)
			return nil
		})
	}
}

// fill adds the elements of the sets that addSets adds.
func (p *planner) fill() {
	for i := range p.change.AddSets {
		s := &p.change.AddSets[i]
		p.elements(s, s.Elements, false)
	}
}

func (p *planner) elements(s *ruleset.Set, elements []ruleset.Element, remove bool) {
	typ, flags, about := uint16(unix.NFT_MSG_NEWSETELEM), uint16(unix.NLM_F_CREATE), "add to set "+s.Name
	if remove {
		typ, flags, about = unix.NFT_MSG_DELSETELEM, 0, "delete from set "+s.Name
	}
	for chunk := range slices.Chunk(elements, elementsPerMessage) {
		about := fmt.Sprintf("%s %s", about, chunk[0].From)
		if len(chunk) > 1 {
			about += fmt.Sprintf(" and %d more", len(chunk)-1)
		}
		p.add(typ, flags, about, func(w *writer) error {
			w.encodeElements(s, chunk, remove)
			return nil
		})
	}
}

// whole is everything in one batch. The order is that of nft, since it shows
// in the numbers of objects.
func (p *planner) whole() ([]message, error) {
	p.begin()
	if p.change.Rules {
		p.chains(p.want.Output.Policy, p.want.Input.Policy)
	}
	p.dropSets()
	p.addSets()
	for _, e := range p.change.Elements {
		p.elements(p.set(e), e.Del, true)
		p.elements(p.set(e), e.Add, false)
	}
	p.fill()
	if p.change.Rules {
		p.rules()
	}
	return p.take()
}

// set is the set that a change of elements is about.
func (p *planner) set(e ruleset.ElementChange) *ruleset.Set { return p.want.Set(e.Set) }

// split is everything in several batches of at most room bytes.
func (p *planner) split(room int) ([][]message, error) {
	if p.gradual() {
		batches, err := p.steps(room)
		if err != nil || batches != nil {
			return batches, err
		}
	}
	return p.closed(room)
}

// roles are what the rules of a table do to what is in a set.
type roles uint8

const (
	opens roles = 1 << iota
	closes
)

// rolesOf adds the roles of a table's sets. A rule that only logs gives none.
func rolesOf(t *ruleset.Table, all map[string]roles) {
	for _, c := range inOrder(t.Output, t.Input) {
		for _, r := range c.Rules {
			for _, m := range r.Match {
				in, ok := m.(ruleset.DaddrIn)
				switch {
				case !ok:
				case r.Verdict == ruleset.Accept:
					all[in.Set] |= opens
				case r.Verdict != ruleset.Continue:
					all[in.Set] |= closes
				}
			}
		}
	}
}

// gradual reports whether the change can be made in steps between which the
// table goes on to work. It cannot if a set opens before and closes after, if
// a set must be replaced by one of its name, or if in a set that closes a
// range is to become another one that overlaps it.
func (p *planner) gradual() bool {
	if p.change.New {
		return false
	}
	for i := range p.change.AddSets {
		if slices.Contains(p.change.DropSets, p.change.AddSets[i].Name) {
			return false
		}
	}
	all := p.roles()
	for _, e := range p.change.Elements {
		if r := all[e.Set]; r == opens|closes || r == closes && overlap(e.Del, e.Add) {
			return false
		}
	}
	return true
}

// roles are those of the table before and after.
func (p *planner) roles() map[string]roles {
	all := map[string]roles{}
	rolesOf(p.have, all)
	rolesOf(p.want, all)
	return all
}

// overlap reports whether a range of a overlaps one of b. Both are sorted and
// free of overlaps in themselves.
func overlap(a, b []ruleset.Element) bool {
	for len(a) > 0 && len(b) > 0 {
		switch {
		case a[0].Overlaps(b[0].Range):
			return true
		case a[0].From.Less(b[0].From):
			a = a[1:]
		default:
			b = b[1:]
		}
	}
	return false
}

// steps are batches between which the table works: first what closes, then the
// rules, then what opens, so that nothing is open in between that is not open
// before or after. New sets come first, since no rule refers to them. nil if
// the rules alone are more than a batch can have.
func (p *planner) steps(room int) ([][]message, error) {
	all := p.roles()
	p.addSets()
	p.fill()
	for _, e := range p.change.Elements {
		if all[e.Set] == closes {
			p.elements(p.set(e), e.Add, false)
		} else {
			p.elements(p.set(e), e.Del, true)
		}
	}
	before, err := p.take()
	if err != nil {
		return nil, err
	}
	if p.change.Rules {
		p.begin()
		p.chains(p.want.Output.Policy, p.want.Input.Policy)
		p.dropSets()
		p.rules()
	}
	middle, err := p.take()
	if err != nil || size(middle) > room {
		return nil, err
	}
	for _, e := range p.change.Elements {
		if all[e.Set] == closes {
			p.elements(p.set(e), e.Del, true)
		} else {
			p.elements(p.set(e), e.Add, false)
		}
	}
	after, err := p.take()
	if err != nil {
		return nil, err
	}
	return slices.Concat(pack(before, room), pack(middle, room), pack(after, room)), nil
}

// closed are batches of which the first takes away everything that lets a
// packet through; the others build up, sets first, then rules in their order,
// and the policies last. It always works: the beginning of a list of rules,
// with the policy to drop, lets nothing through that the whole list does not.
func (p *planner) closed(room int) ([][]message, error) {
	change := *p.change
	change.Rules = true
	p.change = &change
	p.begin()
	p.chains(ruleset.Drop, ruleset.Drop)
	p.dropSets()
	p.addSets()
	for _, e := range p.change.Elements {
		p.elements(p.set(e), e.Del, true)
		p.elements(p.set(e), e.Add, false)
	}
	p.fill()
	p.rules()
	p.chains(p.want.Output.Policy, p.want.Input.Policy)
	msgs, err := p.take()
	return pack(msgs, room), err
}

// pack distributes messages over batches, in their order.
func pack(msgs []message, room int) (batches [][]message) {
	var used int
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
