package ruleset

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// apply does to have what a kernel does with c, and fails where it would:
// deleting what is not there, adding what overlaps, dropping a set in use.
func apply(t testing.TB, have, want *Table, c *Change) *Table {
	t.Helper()
	got := &Table{}
	if have != nil {
		got = have.clone()
	} else if !c.New {
		t.Fatal("a change of what is not there")
	}
	if len(c.DropSets) > 0 && !c.Rules {
		t.Fatalf("sets %v are dropped and the rules stay", c.DropSets)
	}
	for _, name := range c.DropSets {
		if got.Set(name) == nil {
			t.Fatalf("drops set %s", name)
		}
		got.Sets = slices.DeleteFunc(got.Sets, func(s Set) bool { return s.Name == name })
	}
	for _, s := range c.AddSets {
		if got.Set(s.Name) != nil {
			t.Fatalf("adds set %s", s.Name)
		}
		got.Sets = append(got.Sets, s)
	}
	for _, e := range c.Elements {
		s := got.Set(e.Set)
		if s == nil || s.V6 != e.V6 || s.Interval != e.Interval {
			t.Fatalf("changes set %s: %+v", e.Set, s)
		}
		for _, d := range e.Del {
			i := slices.Index(s.Elements, d)
			if i < 0 {
				t.Fatalf("deletes %s from %s", d.Range, s.Name)
			}
			s.Elements = slices.Delete(s.Elements, i, i+1)
		}
		for _, a := range e.Add {
			if slices.ContainsFunc(s.Elements, func(h Element) bool { return h.Overlaps(a.Range) }) {
				t.Fatalf("adds %s to %s", a.Range, s.Name)
			}
			s.Elements = append(s.Elements, a)
		}
		if err := s.Normalize(); err != nil {
			t.Fatal(err)
		}
	}
	if c.Rules {
		got.Output, got.Input = want.Output, want.Input
	}
	return got
}

// A change does what it is for, and leaves a resolver's elements alone.
func TestDiffApplies(t *testing.T) {
	for seed := range uint64(2000) {
		r := newRandom(seed)
		var have *Table
		if r.IntN(10) > 0 {
			have = r.table(t)
		}
		want := r.table(t)
		if have != nil && r.IntN(2) == 0 {
			// Two tables that differ in some elements only.
			want = have.clone()
			for i := range want.Sets {
				s := &want.Sets[i]
				s.Elements = slices.DeleteFunc(s.Elements, func(Element) bool { return r.IntN(3) == 0 })
				for j := range s.Elements {
					if s.Expiring && r.IntN(3) == 0 {
						s.Elements[j].Timeout = []time.Duration{Permanent, time.Second, 0}[r.IntN(3)]
					}
				}
				if err := s.Normalize(); err != nil {
					t.Fatal(err)
				}
			}
		}
		c := Diff(have, want)
		got := apply(t, have, want, c)
		if c := Diff(got, want); !c.Empty() {
			t.Fatalf("seed %d: still %s", seed, c)
		}
		if len(got.Sets) != len(want.Sets) || !got.Output.Equal(want.Output) || !got.Input.Equal(want.Input) {
			t.Fatalf("seed %d:\n%s\nwant\n%s", seed, got, want)
		}
		for i := range want.Sets {
			w := &want.Sets[i]
			g := got.Set(w.Name)
			// What is there and not wanted expires, was there before and is
			// in nobody's way; with it, nothing else is there.
			expected := slices.Clone(w.Elements)
			if have != nil && have.Set(w.Name) != nil && have.Set(w.Name).sameDefinition(w) {
				for _, h := range have.Set(w.Name).Elements {
					overlaps := slices.ContainsFunc(w.Elements, func(e Element) bool { return e.Overlaps(h.Range) })
					if !overlaps && w.Lifetime(h) != Permanent {
						expected = append(expected, h)
					}
				}
			}
			wanted := Set{Name: w.Name, V6: w.V6, Interval: w.Interval, Expiring: w.Expiring, Timeout: w.Timeout, Elements: expected}
			if err := wanted.Normalize(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&wanted, g, exact, cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("seed %d (-want +got):\n%s", seed, diff)
			}
		}
	}
}

func TestDiff(t *testing.T) {
	host := func(s string, timeout time.Duration) Element {
		return Element{Range: Range{addr(s), addr(s)}, Timeout: timeout}
	}
	net := func(s string) Element { return Element{Range: RangeOf(prefixes(s)[0]), Timeout: Permanent} }
	set := func(timeout time.Duration, e ...Element) *Table {
		return &Table{Sets: []Set{{Name: "s", Interval: true, Expiring: timeout != 0, Timeout: timeout, Elements: e}}}
	}
	const half = 30 * time.Minute
	for name, tt := range map[string]struct {
		have, want *Table
		change     string
	}{
		"same":             {set(0, host("8.8.8.8", 0)), set(0, host("8.8.8.8", 0)), "no difference"},
		"none":             {nil, set(0), "no table yet"},
		"missing":          {set(0), set(0, host("8.8.8.8", 0)), "8.8.8.8 in s is missing"},
		"too much":         {set(0, host("8.8.8.8", 0)), set(0), "8.8.8.8 in s is too much"},
		"leased":           {set(half, host("8.8.8.8", 0)), set(half), "no difference"},
		"leased for long":  {set(half, host("8.8.8.8", time.Hour)), set(half), "no difference"},
		"permanent":        {set(half, host("8.8.8.8", Permanent)), set(half), "8.8.8.8 in s is too much"},
		"in the way":       {set(half, host("8.8.8.8", 0)), set(half, net("8.8.8.0/24")), "8.8.8.8 in s is too much, 8.8.8.0/24 in s is missing"},
		"to permanent":     {set(half, host("8.8.8.8", 0)), set(half, host("8.8.8.8", Permanent)), "8.8.8.8 in s is too much, 8.8.8.8 in s is missing"},
		"to leased":        {set(half, host("8.8.8.8", Permanent)), set(half, host("8.8.8.8", 0)), "8.8.8.8 in s is too much, 8.8.8.8 in s is missing"},
		"default, said":    {set(half, host("8.8.8.8", half)), set(half, host("8.8.8.8", 0)), "no difference"},
		"wider":            {set(0, host("8.8.8.0", 0)), set(0, Element{Range: RangeOf(prefixes("8.8.8.0/31")[0])}), "8.8.8.0 in s is too much, 8.8.8.0/31 in s is missing"},
		"definition":       {set(0), set(half), "rules differ, set s has another definition"},
		"set gone":         {set(0), &Table{}, "rules differ, set s is too much"},
		"set new":          {&Table{}, set(0), "set s is missing"},
		"policy":           {&Table{}, &Table{Input: Chain{Policy: Drop}}, "rules differ"},
		"rule":             {&Table{}, &Table{Output: Chain{Rules: []Rule{accept()}}}, "rules differ"},
		"counter":          {&Table{Output: Chain{Rules: []Rule{{Counted: true, Packets: 5}}}}, &Table{Output: Chain{Rules: []Rule{{Counted: true, Bytes: 7}}}}, "no difference"},
		"no counter":       {&Table{Output: Chain{Rules: []Rule{{Counted: true}}}}, &Table{Output: Chain{Rules: []Rule{{}}}}, "rules differ"},
		"remaining time":   {set(half, Element{Range: net("8.8.8.8").Range, Expires: 3}), set(half, Element{Range: net("8.8.8.8").Range, Expires: 5}), "no difference"},
		"order of sets":    {&Table{Sets: []Set{{Name: "a"}, {Name: "b"}}}, &Table{Sets: []Set{{Name: "b"}, {Name: "a"}}}, "no difference"},
		"other family":     {&Table{Sets: []Set{{Name: "a"}}}, &Table{Sets: []Set{{Name: "a", V6: true}}}, "rules differ, set a has another definition"},
		"match of another": {&Table{Output: Chain{Rules: []Rule{accept(OIf("lo"))}}}, &Table{Output: Chain{Rules: []Rule{accept(IIf("lo"))}}}, "rules differ"},
	} {
		t.Run(name, func(t *testing.T) {
			c := Diff(tt.have, tt.want)
			if diff := cmp.Diff(tt.change, c.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if c.Empty() != (tt.change == "no difference") {
				t.Errorf("empty: %v", c.Empty())
			}
		})
	}
}

// An error message names ten things, not fifty thousand.
func TestChangeString(t *testing.T) {
	have, want := build(t, Up, Params{}), build(t, Down, largest(300, false))
	got := Diff(have, want).String()
	if n := strings.Count(got, ", "); n != 10 || !strings.HasPrefix(got, "rules differ, 211.100.") || !strings.HasSuffix(got, ", and 291 more") {
		t.Errorf("%d commas: %s", n, got)
	}
}

// Diff of large sets takes time in proportion to their size.
func TestDiffLarge(t *testing.T) {
	have, want := build(t, Up, largest(MaxPrefixes, true)), build(t, Up, largest(MaxPrefixes-1, true))
	start := time.Now()
	if got := Diff(have, want).String(); !strings.HasSuffix(got, " in allow_v6 is too much") || strings.Contains(got, ",") {
		t.Error(got)
	}
	if got := fmt.Sprint(len(Diff(want, build(t, Up, Params{})).Elements[0].Del)); got != fmt.Sprint(MaxPrefixes-1) {
		t.Error(got)
	}
	// A square of it would take minutes.
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %s", d)
	}
}
