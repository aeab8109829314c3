package firewall

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/terok-ai/terok-box/applets/internal/policy"
)

func targets(t testing.TB, names ...string) []policy.Target {
	t.Helper()
	var out []policy.Target
	for _, s := range names {
		target, err := policy.ParseTarget(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, target)
	}
	return out
}

func words(s string) []string { return strings.Fields(s) }

func TestListsWith(t *testing.T) {
	for _, tt := range []struct {
		verb, name            string
		profile, live, denied string // before
		wantLive, wantDenied  string
	}{
		{"allow", "a.test.example", "", "", "", "a.test.example", ""},
		{"allow", "a.example.com", "", "b.example.com", "c.example.com", "b.example.com a.example.com", "c.example.com"},
		// listed already
		{"allow", "a.example.com", "a.example.com", "", "", "", ""},
		{"allow", "a.example.com", "*.a.example.com", "", "", "", ""},
		{"allow", "=a.example.com", "", "a.example.com", "", "a.example.com", ""},
		{"allow", "a.example.com", "=a.example.com", "", "", "a.example.com", ""},
		{"allow", "A.Example.COM.", "A.example.com", "", "", "", ""},
		// a parent that is listed may be denied: not the same
		{"allow", "a.example.com", "example.com", "", "", "a.example.com", ""},
		// every form of a denial is taken back
		{"allow", "a.example.com", "a.example.com", "", "a.example.com =a.example.com *.a.example.com b.example.com", "", "b.example.com"},
		{"allow", "=a.example.com", "", "", "a.example.com", "=a.example.com", ""},
		{"deny", "a.example.com", "", "", "", "", "a.example.com"},
		{"deny", "a.example.com", "a.example.com", "", "", "", "a.example.com"},
		{"deny", "a.example.com", "", "=a.example.com a.example.com b.a.example.com", "=a.example.com", "b.a.example.com", "=a.example.com a.example.com"},
		{"deny", "a.example.com", "", "", "*.a.example.com", "", "*.a.example.com"},
		{"deny", "a.example.com", "", "", "=a.example.com", "", "=a.example.com a.example.com"},
		{"deny", "a.example.com", "=a.example.com", "", "", "", "a.example.com =a.example.com"},
		{"deny", "=a.example.com", "=a.example.com", "", "a.example.com", "", "a.example.com =a.example.com"},
		{"deny", "=a.example.com", "", "a.example.com =a.example.com", "", "a.example.com", "=a.example.com"},
		{"deny", "=a.example.com", "", "", "a.example.com", "", "a.example.com"},
		// what somebody else wrote stays, whatever it is
		{"deny", "a.example.com", "", "192.0.2.1 -x a.example.com", "ä.test", "192.0.2.1 -x", "ä.test a.example.com"},
	} {
		t.Run(tt.verb+" "+tt.name, func(t *testing.T) {
			old := lists{words(tt.profile), words(tt.live), words(tt.denied)}
			got := old.with(tt.verb == "allow", targets(t, tt.name))
			if d := cmp.Diff(words(tt.wantLive), got.live, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("live (-want +got)\n%s", d)
			}
			if d := cmp.Diff(words(tt.wantDenied), got.denied, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("denied (-want +got)\n%s", d)
			}
			if again := got.with(tt.verb == "allow", targets(t, tt.name)); !slices.Equal(again.live, got.live) || !slices.Equal(again.denied, got.denied) {
				t.Errorf("not the same when repeated: %+v", again)
			}
			if d := cmp.Diff([][]string{words(tt.live), words(tt.denied)}, [][]string{old.live, old.denied}); d != "" {
				t.Errorf("the old lists were changed:\n%s", d)
			}
		})
	}
}

func TestExceptions(t *testing.T) {
	var many []string
	for i := range 9 {
		many = append(many, fmt.Sprintf("n%d.example.com", i))
	}
	for _, tt := range []struct {
		verb, name string
		l          lists
		want       string
	}{
		{"deny", "example.com", lists{profile: words("example.com notexample.com")}, ""},
		{"deny", "example.com", lists{profile: words("api.example.com"), live: words("api.example.com =x.example.com")},
			"below example.com stays allowed what is listed by itself: api.example.com, =x.example.com; deny that, too, if you mean it"},
		{"deny", "example.com", lists{profile: words("api.example.com"), denied: words("api.example.com")}, ""},
		{"deny", "=example.com", lists{profile: words("api.example.com")}, ""},
		{"deny", "example.com", lists{profile: many},
			"below example.com stays allowed what is listed by itself: n0.example.com, n1.example.com, n2.example.com, n3.example.com, n4.example.com, 4 more; deny that, too, if you mean it"},
		{"allow", "example.com", lists{denied: words("ads.example.com example.com")},
			"below example.com stays denied what is listed by itself: ads.example.com; allow that, too, if you mean it"},
		{"allow", "=example.com", lists{denied: words("example.com")}, "example.com was denied with everything below it; that is denied no more"},
		{"allow", "=example.com", lists{denied: words("=example.com")}, ""},
	} {
		got := ""
		for _, err := range tt.l.exceptions(tt.verb == "allow", targets(t, tt.name)) {
			got += err.Error()
		}
		if got != tt.want {
			t.Errorf("%s %s, %+v:\n%q\n%q", tt.verb, tt.name, tt.l, got, tt.want)
		}
	}
}

// Whatever the lists are, a decision is what policy.Names goes by afterwards,
// for the name and, unless it is exact, for what is below it and has no entry
// of its own; what has another name is not touched.
func FuzzListsWith(f *testing.F) {
	f.Add(uint32(0), uint32(0), uint32(0), uint8(0), true)
	f.Add(uint32(0xfff), uint32(0x3a5), uint32(0x5a3), uint8(5), false)
	f.Fuzz(func(t *testing.T, profile, live, denied uint32, choice uint8, allow bool) {
		entries := []string{"a.test", "*.a.test", "=a.test", "b.a.test", "*.b.a.test", "=b.a.test", "c.b.a.test", "=c.b.a.test", "d.test", "=d.test", "A.Test.", "*.d.test"}
		pick := func(bits uint32) (out []string) {
			for i, e := range entries {
				if bits>>i&1 != 0 {
					out = append(out, e)
				}
			}
			return out
		}
		target := targets(t, entries[int(choice)%len(entries)])[0]
		old := lists{pick(profile), pick(live), pick(denied)}
		next := old.with(allow, []policy.Target{target})
		before, _, err1 := policy.NewNames(old.profile, old.live, old.denied)
		after, warnings, err2 := policy.NewNames(next.profile, next.live, next.denied)
		if err := errors.Join(err1, err2, errors.Join(warnings...)); err != nil {
			t.Fatal(err)
		}
		if d := after.Decide(target.Name); d.Allowed != allow || d.Denied == allow {
			t.Errorf("%t %s: %+v\nfrom %+v\nto %+v", allow, target, d, old, next)
		}
		below := "x." + target.Name
		if d := after.Decide(below); !target.Exact && (d.Allowed != allow || d.Denied == allow) {
			t.Errorf("%t %s: below it %+v\nfrom %+v\nto %+v", allow, target, d, old, next)
		} else if target.Exact && !allow && d.Allowed && !before.Decide(below).Allowed {
			t.Errorf("deny %s opens what is below it\nfrom %+v\nto %+v", target, old, next)
		}
		for _, other := range []string{"a.test", "b.a.test", "c.b.a.test", "d.test", "x.d.test", "y.b.a.test"} {
			if other == target.Name || strings.HasSuffix(other, "."+target.Name) {
				continue
			}
			if b, a := before.Decide(other), after.Decide(other); b.Allowed != a.Allowed || b.Denied != a.Denied {
				t.Errorf("%t %s changes %s from %+v to %+v", allow, target, other, b, a)
			}
		}
	})
}
