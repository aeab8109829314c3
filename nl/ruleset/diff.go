package ruleset

import (
	"fmt"
	"slices"
	"strings"
)

// Change is what turns one table into another.
type Change struct {
	New      bool            // there is no table yet: everything is in AddSets and Rules
	DropSets []string        // including those whose definition differs
	AddSets  []Set           // with their elements
	Elements []ElementChange // of sets that stay
	Rules    bool            // any rule or policy differs: replace the rules of both chains
}

// ElementChange is what differs in one set. Del comes first: an element whose
// timeout changes is in both.
type ElementChange struct {
	Set          string
	V6, Interval bool
	Del, Add     []Element
}

// Diff is the change from have (nil: no table) to want, which must not be nil.
// Sets are compared by name, in whatever order, rules in theirs. Both tables'
// sets must be normalized.
//
// Elements that expire belong to a resolver: if want does not have them they
// stay, unless they overlap something to be added. Counters and remaining
// times do not matter. Dropping a set sets Rules, since the kernel keeps a set
// that a rule refers to.
func Diff(have, want *Table) *Change {
	if have == nil {
		return &Change{New: true, AddSets: want.Sets, Rules: true}
	}
	c := &Change{Rules: !have.Output.Equal(want.Output) || !have.Input.Equal(want.Input)}
	for i := range have.Sets {
		h := &have.Sets[i]
		if w := want.Set(h.Name); w == nil || !h.sameDefinition(w) {
			c.DropSets = append(c.DropSets, h.Name)
			c.Rules = true
		}
	}
	for i := range want.Sets {
		w := &want.Sets[i]
		h := have.Set(w.Name)
		if h == nil || !h.sameDefinition(w) {
			c.AddSets = append(c.AddSets, *w)
			continue
		}
		if e := diffElements(h, w); len(e.Del)+len(e.Add) > 0 {
			c.Elements = append(c.Elements, e)
		}
	}
	return c
}

func (s *Set) sameDefinition(o *Set) bool {
	return s.V6 == o.V6 && s.Interval == o.Interval && s.Expiring == o.Expiring && s.Timeout == o.Timeout
}

func diffElements(have, want *Set) ElementChange {
	c := ElementChange{Set: want.Name, V6: want.V6, Interval: want.Interval}
	// Both lists are sorted and free of overlaps: one pass finds what is in
	// both, another one which of the remaining have to make room.
	var surplus []Element
	i := 0
	for _, w := range want.Elements {
		for i < len(have.Elements) && have.Elements[i].From.Less(w.From) {
			surplus = append(surplus, have.Elements[i])
			i++
		}
		if i < len(have.Elements) && have.Elements[i].From == w.From {
			h := have.Elements[i]
			i++
			if h.Range == w.Range && have.Lifetime(h) == want.Lifetime(w) {
				continue
			}
			surplus = append(surplus, h)
		}
		c.Add = append(c.Add, w)
	}
	surplus = append(surplus, have.Elements[i:]...)

	i = 0
	for _, h := range surplus {
		for i < len(c.Add) && c.Add[i].To.Less(h.From) {
			i++
		}
		overlaps := i < len(c.Add) && c.Add[i].Overlaps(h.Range)
		if overlaps || have.Lifetime(h) == Permanent {
			c.Del = append(c.Del, h)
		}
	}
	return c
}

// Empty reports whether there is nothing to do.
func (c *Change) Empty() bool {
	return !c.New && !c.Rules && len(c.DropSets)+len(c.AddSets)+len(c.Elements) == 0
}

// String says shortly what differs, for error messages: at most ten items.
func (c *Change) String() string {
	const most = 10
	if c.New {
		return "no table yet"
	}
	if c.Empty() {
		return "no difference"
	}
	var items []string
	count := 0
	item := func(format string, args ...any) {
		if count++; count <= most {
			items = append(items, fmt.Sprintf(format, args...))
		}
	}
	if c.Rules {
		item("rules differ")
	}
	for _, s := range c.DropSets {
		if slices.ContainsFunc(c.AddSets, func(a Set) bool { return a.Name == s }) {
			item("set %s has another definition", s)
		} else {
			item("set %s is too much", s)
		}
	}
	for _, s := range c.AddSets {
		if !slices.Contains(c.DropSets, s.Name) {
			item("set %s is missing", s.Name)
		}
	}
	for _, e := range c.Elements {
		for _, d := range e.Del {
			item("%s in %s is too much", d.Range, e.Set)
		}
		for _, a := range e.Add {
			item("%s in %s is missing", a.Range, e.Set)
		}
	}
	if count > most {
		items = append(items, fmt.Sprintf("and %d more", count-most))
	}
	return strings.Join(items, ", ")
}
