package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseProfile(t *testing.T) {
	text := "# comment\r\n\n  example.com  \n\t# indented comment\n10.0.0.1/8\r\n=a.example.org\n*.b.example.org"
	got, err := ParseProfile("mine", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := Profile{Name: "mine", Entries: []Entry{
		{Target{Name: "example.com"}, 3},
		{network("10.0.0.0/8"), 5},
		{Target{Name: "a.example.org", Exact: true}, 6},
		{Target{Name: "b.example.org", Wildcard: true}, 7},
	}}
	if diff := cmp.Diff(want, got, comparePrefixes); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestParseProfileRefuses(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"mine", "example.com\n\nlocalhost\n", "profile mine, line 3: invalid target 'localhost': "},
		{"mine", "example.com # no comments here", "profile mine, line 1: "},
		{"mine", "# " + strings.Repeat("x", 2000) + "\n" + strings.Repeat("x", 1025), "profile mine, line 2: target of 1025 bytes"},
		{"mine", strings.Repeat("#\n", MaxProfileSize/2) + "#", "profile mine: 1048577 bytes; at most 1048576"},
		{"mine", strings.Repeat("1.1.1.1\n", 100_001), "profile mine, line 100001: more than 100000 entries"},
		{"a\nb", "x", `profile 'a\nb', line 1: `},
	} {
		_, err := ParseProfile(tt.name, []byte(tt.text))
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("ParseProfile(%q, %.20q…) = %v; want %q", tt.name, tt.text, err, tt.want)
		}
	}
	if p, err := ParseProfile("mine", []byte(strings.Repeat("1.1.1.1\n", 100_000))); err != nil || len(p.Entries) != 100_000 {
		t.Errorf("100000 entries: %d, %v", len(p.Entries), err)
	}
}

func profile(t *testing.T, name string, lines ...string) Profile {
	t.Helper()
	p, err := ParseProfile(name, []byte(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCompose(t *testing.T) {
	got := Compose([]Profile{
		profile(t, "one", "b.example", "192.0.2.1", "a.example", "B.example.", "192.0.2.0/24"),
		profile(t, "none"),
		profile(t, "two", "192.0.2.1/32", "*.a.example", "=a.example", "*.c.example", "c.example", "2001:db8::1"),
	})
	want := Policy{
		Prefixes: []netip.Prefix{
			netip.MustParsePrefix("192.0.2.1/32"),
			netip.MustParsePrefix("192.0.2.0/24"),
			netip.MustParsePrefix("2001:db8::1/128"),
		},
		Names: []Target{
			{Name: "b.example"},
			{Name: "a.example"},
			{Name: "a.example", Exact: true},
			{Name: "c.example", Wildcard: true},
		},
	}
	if diff := cmp.Diff(want, got, comparePrefixes); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := Compose(nil); got.Prefixes != nil || got.Names != nil {
		t.Errorf("Compose(nil) = %+v", got)
	}
}

func FuzzParseProfile(f *testing.F) {
	for _, s := range []string{"", "#", "a.b\n=c.d\n*.e.f", "1.2.3.4\r\n::/0", "a.b c", "\xff\n", "\n\n-x", "a.b\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParseProfile("p", text)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "profile p") || strings.ContainsAny(err.Error(), "\n\x00\x1b") {
				t.Errorf("message %q", err)
			}
			return
		}
		// Written out again, entry by entry in its line, it means the same.
		var b strings.Builder
		line := 1
		for _, e := range p.Entries {
			for ; line < e.Line; line++ {
				b.WriteString("#\n")
			}
			fmt.Fprintln(&b, e)
			line++
		}
		again, err := ParseProfile("p", []byte(b.String()))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(p, again, comparePrefixes); diff != "" {
			t.Errorf("-first +again:\n%s", diff)
		}
	})
}
