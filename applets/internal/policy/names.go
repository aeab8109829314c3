package policy

import (
	"fmt"
	"strings"
)

// What the lists say about one name; the lists may have several forms of it.
const (
	allowExact byte = 1 << iota // "=name"
	allowBelow                  // "name": itself and everything below it
	allowWild                   // "*.name": the same
	denyExact
	denyBelow
	denyWild

	allowAll = allowBelow | allowWild
	denyAll  = denyBelow | denyWild
)

// Names decides about domain names by a container's lists. It does not
// change, and is safe for concurrent use.
//
// Of several entries that a name is under, the longest decides: "x.example.com"
// before "example.com". Of one name a denial beats what allows it, in whatever
// form either is written, but for one that denies the name alone: it says
// nothing about what is below.
type Names struct {
	rules   map[string]byte
	longest int // bytes of a name in rules
	allowed int
	denied  int
}

// NewNames makes Names of the lists' lines: those of the profiles, those
// allowed while the container runs, and those denied.
//
// A line that allows and is not a domain name allows nothing; warnings tells
// of it. One that denies and is not a domain name is an error: nobody knows
// what to keep closed.
func NewNames(profile, live, denied []string) (n *Names, warnings []error, err error) {
	n = &Names{rules: make(map[string]byte, len(profile)+len(live)+len(denied))}
	for _, list := range [][]string{profile, live} {
		for _, line := range list {
			t, err := parseName(line)
			if err != nil {
				warnings = append(warnings, fmt.Errorf("a name that is to be allowed is left out: %w", err))
				continue
			}
			n.add(t, allowExact, allowBelow, allowWild, &n.allowed)
		}
	}
	for _, line := range denied {
		t, err := parseName(line)
		if err != nil {
			return nil, warnings, fmt.Errorf("a name that is to be denied cannot be read: %w; correct or remove it", err)
		}
		n.add(t, denyExact, denyBelow, denyWild, &n.denied)
	}
	return n, warnings, nil
}

func parseName(line string) (Target, error) {
	t, err := ParseTarget(line)
	if err == nil && !t.IsName() {
		err = fmt.Errorf("%s is not a domain name", t)
	}
	return t, err
}

// add notes an entry, of which there are three forms, and counts it if there
// is none of that meaning yet.
func (n *Names) add(t Target, exact, below, wild byte, count *int) {
	form, same := below, below|wild
	switch {
	case t.Exact:
		form, same = exact, exact
	case t.Wildcard:
		form = wild
	}
	rule := n.rules[t.Name]
	if rule&same == 0 {
		*count++
	}
	n.rules[t.Name] = rule | form
	n.longest = max(n.longest, len(t.Name))
}

// Len is how many entries allow and deny something, each meaning once.
func (n *Names) Len() (allowed, denied int) { return n.allowed, n.denied }

// Decision is what the lists say about a name. If neither Allowed nor Denied,
// it is on no list.
type Decision struct {
	Allowed bool
	Denied  bool
	name    string // of the entry that decides
	form    byte   // of the entry
}

// Entry is the entry that decides, in the form that Target.String gives it; ""
// if there is none.
func (d Decision) Entry() string {
	switch d.form {
	case 0:
		return ""
	case allowExact, denyExact:
		return "=" + d.name
	case allowWild, denyWild:
		return "*." + d.name
	}
	return d.name
}

// Decide decides about a name in presentation form (RFC 1035 §5.1), in upper
// or lower case, with or without a dot at its end. A label that contains a dot
// or other special characters, which are escaped there, is under an entry like
// any other label, but never part of one. The time it takes does not depend on
// the number of entries.
func (n *Names) Decide(name string) Decision {
	name = lower(name)
	if strings.HasSuffix(name, ".") && !escaped(name, len(name)-1) {
		name = name[:len(name)-1]
	}
	for rest, first := name, true; rest != ""; first = false {
		if len(rest) <= n.longest {
			if d := decide(n.rules[rest], first); d.form != 0 {
				d.name = rest
				return d
			}
		}
		rest = parent(rest)
	}
	return Decision{}
}

// decide is what a rule says about its own name, or what is below it.
func decide(rule byte, own bool) Decision {
	for _, form := range [...]byte{denyExact, denyBelow, denyWild, allowExact, allowBelow, allowWild} {
		if rule&form == 0 || !own && form&(denyExact|allowExact) != 0 {
			continue
		}
		denies := form&(denyExact|denyAll) != 0
		return Decision{Allowed: !denies, Denied: denies, form: form}
	}
	return Decision{}
}

// parent is the name without its first label; "" if that is the last.
func parent(name string) string {
	for i := 0; i < len(name); i++ {
		switch name[i] {
		case '\\': // the next byte, or the first of three digits, is not a dot
			i++
		case '.':
			return name[i+1:]
		}
	}
	return ""
}

// escaped reports whether the byte at i is escaped.
func escaped(s string, i int) bool {
	n := 0
	for i > 0 && s[i-1] == '\\' {
		i--
		n++
	}
	return n%2 == 1
}

// lower is the name with its ASCII letters in lower case; others are not the
// same letters to the DNS (RFC 4343).
func lower(s string) string {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if 'A' <= b[i] && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}
