package policy

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func mustNames(t testing.TB, profile, live, denied []string) *Names {
	t.Helper()
	n, warnings, err := NewNames(profile, live, denied)
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	return n
}

func TestDecide(t *testing.T) {
	const long = "a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r.s.t.u.v.w.x.y.z.example.com"
	n := mustNames(t,
		[]string{"example.com", "=exact.test", "*.wild.test", "_dmarc._x.test", "xn--bcher-kva.test", "twice.test", "=both.test", "both.test"},
		[]string{"Live.TEST.", "TWICE.test", "open.closed.test", "=only.closed.test", "form.test", "=narrow.test", "*.self.test"},
		[]string{"bad.example.com", "=one.example.com", "closed.test", "=form.test", "narrow.test", "*.both.test", "=self.test"})
	for name, want := range map[string]string{
		// an entry is itself and what is below
		"example.com":             "allow example.com",
		"www.example.com":         "allow example.com",
		long:                      "allow example.com",
		"notexample.com":          "",
		"com":                     "",
		"example.com.evil.test":   "",
		"example.org":             "",
		"":                        "",
		".":                       "",
		"www.example.com.":        "allow example.com",
		"wWw.eXample.COM.":        "allow example.com",
		"live.test":               "allow live.test",
		"_dmarc._x.test":          "allow _dmarc._x.test",
		"a._DMARC._x.test":        "allow _dmarc._x.test",
		"dmarc._x.test":           "",
		"XN--bcher-kva.test":      "allow xn--bcher-kva.test",
		"twice.test":              "allow twice.test",
		"_service._tcp.wild.test": "allow *.wild.test",
		// the other forms
		"exact.test":   "allow =exact.test",
		"a.exact.test": "",
		"wild.test":    "allow *.wild.test",
		"a.wild.test":  "allow *.wild.test",
		// the longest decides
		"bad.example.com":    "deny bad.example.com",
		"x.bad.example.com":  "deny bad.example.com",
		"xbad.example.com":   "allow example.com",
		"one.example.com":    "deny =one.example.com",
		"x.one.example.com":  "allow example.com",
		"closed.test":        "deny closed.test",
		"a.closed.test":      "deny closed.test",
		"open.closed.test":   "allow open.closed.test",
		"a.open.closed.test": "allow open.closed.test",
		"only.closed.test":   "allow =only.closed.test",
		"a.only.closed.test": "deny closed.test",
		// of one name the denial
		"form.test":     "deny =form.test",
		"a.form.test":   "allow form.test",
		"narrow.test":   "deny narrow.test",
		"a.narrow.test": "deny narrow.test",
		"both.test":     "deny *.both.test",
		"a.both.test":   "deny *.both.test",
		"self.test":     "deny =self.test",
		"a.self.test":   "allow *.self.test",
		// what is escaped is part of a label
		`a\.example.com`:       "",
		`a\.b.example.com`:     "allow example.com",
		`a\\.example.com`:      "allow example.com",
		`a\\\.example.com`:     "",
		`example\.com`:         "",
		`www\.example\.com`:    "",
		`ex\097mple.com`:       "",
		`example\046com`:       "",
		`\000.example.com`:     "allow example.com",
		`x\000example.com`:     "",
		`example.com\000`:      "",
		`example.com\.`:        "",
		`example.com\\.`:       "",
		`\`:                    "",
		`\.`:                   "",
		`bad\.example.com`:     "",
		`\255.bad.example.com`: "deny bad.example.com",
		"twice.te\u017ft":      "", // a long s is not an s

	} {
		d := n.Decide(name)
		got := ""
		switch {
		case d.Allowed && d.Denied:
			got = "both"
		case d.Allowed:
			got = "allow " + d.Entry()
		case d.Denied:
			got = "deny " + d.Entry()
		case d.Entry() != "":
			got = "neither, by " + d.Entry()
		}
		if got != want {
			t.Errorf("Decide(%q): %q; want %q", name, got, want)
		}
	}
	if allowed, denied := n.Len(); allowed != 14 || denied != 7 {
		t.Errorf("%d entries allow and %d deny", allowed, denied)
	}
	if d := mustNames(t, nil, nil, nil).Decide("example.com"); d != (Decision{}) {
		t.Errorf("without lists: %+v", d)
	}
}

// What denies something and cannot be read is an error: to leave it out would
// open what is to be closed.
func TestUnreadableNames(t *testing.T) {
	n, warnings, err := NewNames([]string{"ok.test", "localhost", "192.0.2.1"}, []string{"-f", "bad name.test", "live.test"}, nil)
	if err != nil || len(warnings) != 4 {
		t.Fatalf("%v, %q", err, warnings)
	}
	for _, w := range warnings {
		if !strings.Contains(w.Error(), "left out") {
			t.Error(w)
		}
	}
	for name, want := range map[string]bool{"ok.test": true, "live.test": true, "localhost": false, "name.test": false} {
		if d := n.Decide(name); d.Allowed != want {
			t.Errorf("%s: %+v", name, d)
		}
	}
	for _, line := range []string{"localhost", "192.0.2.1", "a b.test", "é.test", "x..test", "*", "=*.test"} {
		n, _, err := NewNames([]string{"test.test"}, nil, []string{"fine.test", line})
		if err == nil || n != nil || !strings.Contains(err.Error(), "denied") {
			t.Errorf("a denied %q: %v, %v", line, n, err)
		}
	}
}

// Known weakness: names with underscores, numbers and xn-- labels were
// resolved and then not followed.
func TestOddNamesAreFollowed(t *testing.T) {
	for _, name := range []string{"_acme-challenge.example.com", "a_b.example.com", "1.example.com", "xn--p1ai.xn--p1ai", "3com.example.3com"} {
		n := mustNames(t, []string{name}, nil, nil)
		for _, asked := range []string{name, "sub." + name, strings.ToUpper(name) + "."} {
			if d := n.Decide(asked); !d.Allowed || d.Entry() != name {
				t.Errorf("%s asked as %s: %+v", name, asked, d)
			}
		}
	}
}

// Known weakness: "*.name" never matched where names were compared literally.
func TestWildcardMeansTheSame(t *testing.T) {
	plain, wild := mustNames(t, []string{"a.test"}, nil, nil), mustNames(t, []string{"*.a.test"}, nil, nil)
	for _, name := range []string{"a.test", "x.a.test", "y.x.a.test", "xa.test", "test"} {
		if plain.Decide(name).Allowed != wild.Decide(name).Allowed {
			t.Errorf("%s: plain %v, wildcard %v", name, plain.Decide(name), wild.Decide(name))
		}
	}
}

func TestDecideDoesNotAllocate(t *testing.T) {
	n := mustNames(t, []string{"example.com", "=exact.test"}, nil, []string{"bad.example.com"})
	for _, name := range []string{"www.example.com", "x.bad.example.com.", "exact.test", "a.b.c.nowhere.test", `a\.b.example.com`} {
		if allocs := testing.AllocsPerRun(100, func() { n.Decide(name) }); allocs != 0 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}

// naive decides like Names, by looking at every entry.
func naive(profile, live, denied []string, name string) Decision {
	labels := func(s string) (out []string) { // with escapes as they are
		start := 0
		for i := 0; i < len(s); i++ {
			switch s[i] {
			case '.':
				out = append(out, s[start:i])
				start = i + 1
			case '\\':
				i++
			}
		}
		out = append(out, s[start:])
		return out
	}
	asked := labels(string(bytes.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, []byte(name))))
	if len(asked) > 1 && asked[len(asked)-1] == "" {
		asked = asked[:len(asked)-1]
	}
	best, found := Decision{}, -1
	try := func(lines []string, denies bool) {
		for _, line := range lines {
			t, err := ParseTarget(line)
			if err != nil || !t.IsName() {
				continue
			}
			own := strings.Split(t.Name, ".")
			if len(own) > len(asked) || !slices.Equal(own, asked[len(asked)-len(own):]) || t.Exact && len(own) != len(asked) {
				continue
			}
			if len(own) > found || len(own) == found && denies {
				best, found = Decision{Allowed: !denies, Denied: denies}, len(own)
			}
		}
	}
	try(profile, false)
	try(live, false)
	try(denied, true)
	return best
}

func FuzzDecide(f *testing.F) {
	f.Add("example.com\n=a.test", "b.test", "*.x.example.com", "y.x.example.com")
	f.Add("a.b", "=a.b", "=a.b", `x\.a.b`)
	f.Add("*.a.b\nc.a.b", "", "a.b", "C.a.B.")
	f.Add("a.b", "", "", `a\\.a.b.`)
	f.Add("", "a.b", "b\n1", `\`)
	f.Fuzz(func(t *testing.T, profile, live, denied, name string) {
		p, l, d := strings.Split(profile, "\n"), strings.Split(live, "\n"), strings.Split(denied, "\n")
		d = slices.DeleteFunc(d, func(s string) bool {
			target, err := ParseTarget(s)
			return err != nil || !target.IsName()
		})
		n, _, err := NewNames(p, l, d)
		if err != nil {
			t.Fatal(err)
		}
		got, want := n.Decide(name), naive(p, l, d, name)
		if got.Allowed != want.Allowed || got.Denied != want.Denied {
			t.Errorf("%q by %q, %q, %q: %+v; want %+v", name, p, l, d, got, want)
		}
		if entry := got.Entry(); entry != "" {
			target, err := ParseTarget(entry)
			if err != nil || target.String() != entry {
				t.Errorf("entry %q: %v, %v", entry, target, err)
			}
		} else if got.Allowed || got.Denied {
			t.Errorf("%+v, by no entry", got)
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	for _, entries := range []int{1, 100_000} {
		list := make([]string, entries)
		for i := range list {
			list[i] = fmt.Sprintf("host%d.example.com", i)
		}
		n := mustNames(b, list, nil, nil)
		b.Run(fmt.Sprintf("entries=%d", entries), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !n.Decide("a.b.host0.example.com").Allowed || n.Decide("a.b.other.example.org").Allowed {
					b.Fatal("wrong")
				}
			}
		})
	}
}
