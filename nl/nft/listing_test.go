package nft

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/ruleset"
)

// What differs between two runs of the same: remaining times. nft begins sets
// with an end at 0 that means nothing, and marks intervals up to the last
// address for itself, which only its debug output shows.
var (
	expires  = regexp.MustCompile(` expires [0-9a-z]+|, "expires": [0-9]+`)
	openMark = regexp.MustCompile(`  userdata = \{ \\x01\\x04\\x01\\x00\\x00\\x00 \}`)
	firstEnd = regexp.MustCompile(`(?m)^\telement 00000000(?: 00000000)*  : 1 \[end\]\n`)
)

// listings are all the ways in which nft shows a table.
func listings(t testing.TB, ns *netns.NS) string {
	t.Helper()
	var all strings.Builder
	for _, args := range [][]string{
		{"list", "table", "inet", ruleset.TableName},
		{"-nn", "list", "table", "inet", ruleset.TableName},
		{"-j", "list", "table", "inet", ruleset.TableName},
		{"-a", "--debug=netlink", "list", "table", "inet", ruleset.TableName},
	} {
		all.WriteString(kerneltest.NFT(t, ns, "", args...))
	}
	lines := strings.SplitAfter(firstEnd.ReplaceAllString(openMark.ReplaceAllString(expires.ReplaceAllString(all.String(), ""), ""), ""), "\n")
	// The kernel's order of elements in a set without intervals is random.
	for i := 0; i < len(lines); i++ {
		n := 0
		for i+n < len(lines) && strings.HasPrefix(lines[i+n], "\telement") {
			n++
		}
		slices.Sort(lines[i : i+n])
		i += n
	}
	return strings.Join(lines, "")
}

func list(t testing.TB, c *Conn) *ruleset.Table {
	t.Helper()
	table, err := c.List()
	if err != nil {
		t.Fatal(err)
	}
	if table == nil {
		t.Fatal("there is no table")
	}
	return table
}

// sameAsNFT applies a table to one fresh namespace, gives its text to nft in
// another, and finds no difference.
func sameAsNFT(t *testing.T, want *ruleset.Table) {
	t.Helper()
	a, b := kerneltest.NewNS(t), kerneltest.NewNS(t)
	ca, cb := dialIn(t, a), dialIn(t, b)
	if err := ca.Apply(want); err != nil {
		t.Fatalf("%v\n%s", err, want)
	}
	kerneltest.NFT(t, b, want.String(), "-f", "-")
	if d := cmp.Diff(listings(t, b), listings(t, a)); d != "" {
		t.Errorf("nft lists something else (its own, ours):\n%s\n%s", d, want)
	}
	norm, err := normalized(want)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*Conn{"applied": ca, "loaded by nft": cb} {
		if d := cmp.Diff(norm, list(t, c), equal); d != "" {
			t.Errorf("%s (want, have):\n%s", name, d)
		}
	}
}

func TestSameAsNFT(t *testing.T) {
	for _, s := range states {
		for name, p := range map[string]ruleset.Params{"full": params, "empty": {}} {
			t.Run(s.String()+"/"+name, func(t *testing.T) { sameAsNFT(t, build(t, s, p)) })
		}
	}
}

func TestSameAsNFTRandom(t *testing.T) {
	for seed := range uint64(40) {
		sameAsNFT(t, randomTable(rand.New(rand.NewPCG(seed, 1))))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// Any table turns into any other, in one namespace, and applying it again
// sends nothing.
func TestRandomTransitions(t *testing.T) {
	ns := kerneltest.NewNS(t)
	c := dialIn(t, ns)
	for seed := range uint64(300) {
		want := randomTable(rand.New(rand.NewPCG(seed, 2)))
		if err := c.Apply(want); err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, want)
		}
		norm, err := normalized(want)
		if err != nil {
			t.Fatal(err)
		}
		if change := ruleset.Diff(list(t, c), norm); !change.Empty() {
			t.Fatalf("seed %d: %s", seed, change)
		}
		before := kerneltest.Generation(t, ns)
		if err := c.Apply(want); err != nil {
			t.Fatalf("seed %d, again: %v", seed, err)
		}
		if after := kerneltest.Generation(t, ns); after != before {
			t.Fatalf("seed %d: applied again it made %d transactions", seed, after-before)
		}
	}
}

// Tables of other systems, and what nft prints of them, are read alike.
func TestOtherSystems(t *testing.T) {
	files, err := filepath.Glob("../ruleset/testdata/*.nft")
	if err != nil || len(files) == 0 {
		t.Fatalf("no rulesets: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			ns := kerneltest.NewNS(t)
			c := dialIn(t, ns)
			kerneltest.NFT(t, ns, string(text), "-f", "-")
			want, err := ruleset.Parse(kerneltest.NFT(t, ns, "", "list", "table", "inet", ruleset.TableName))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, list(t, c), equal); d != "" {
				t.Errorf("want, have:\n%s", d)
			}
			for _, s := range states {
				kerneltest.NFT(t, ns, "flush ruleset\n"+string(text), "-f", "-")
				if err := c.Apply(build(t, s, params)); err != nil {
					t.Fatal(err)
				}
				norm, _ := normalized(build(t, s, params))
				if change := ruleset.Diff(list(t, c), norm); !change.Empty() {
					t.Errorf("%s: %s", s, change)
				}
			}
		})
	}
}

const plainChains = `
	chain output { type filter hook output priority filter; policy drop; }
	chain input { type filter hook input priority filter; policy drop; }
`

// ruleIn is a table with that rule.
func ruleIn(rule string) string {
	return strings.Replace(plainChains, "policy drop; }", "policy drop; "+rule+"\n}", 1)
}

// Whatever is not of the dialect is foreign, never overlooked, and replaced.
func TestForeign(t *testing.T) {
	for _, body := range []string{
		"flags dormant;" + plainChains,
		"chain output { type filter hook output priority filter; policy drop; }",
		plainChains + "chain more { }",
		plainChains + "chain forward { type filter hook forward priority filter; policy accept; }",
		strings.Replace(plainChains, "hook output priority filter", "hook output priority filter + 1", 1),
		strings.Replace(plainChains, "hook output", "hook postrouting", 1),
		strings.Replace(plainChains, "type filter hook output", "type route hook output", 1),
		strings.Replace(plainChains, "type filter hook output priority filter; policy drop;", "", 1),
		plainChains + "counter things { }",
		plainChains + "set s { type inet_service; }",
		plainChains + "set s { type ipv4_addr . inet_service; }",
		plainChains + "set s { type ipv4_addr; size 10; }",
		plainChains + "set s { type ipv4_addr; flags timeout; gc-interval 10s; }",
		plainChains + "set s { type ipv4_addr; flags dynamic; }",
		plainChains + "set s { type ipv4_addr; counter; }",
		plainChains + "set s { type ipv4_addr; counter; elements = { 192.0.2.1 counter } ; }",
		plainChains + "map m { type ipv4_addr : verdict; }",
		ruleIn("ip saddr 192.0.2.1 accept"),
		ruleIn("ip daddr != 192.0.2.1 accept"),
		ruleIn("ip daddr > 192.0.2.1 accept"),
		ruleIn("ip daddr & 255.0.255.0 == 10.0.1.0 accept"),
		ruleIn("ip daddr { 192.0.2.1, 192.0.2.7 } accept"),
		ruleIn("ip daddr vmap { 192.0.2.1 : accept }"),
		ruleIn("ip daddr 192.0.2.1-192.0.2.9 accept"),
		"set s { type ipv4_addr; }" + ruleIn("ip daddr != @s accept"),
		"set s { type ipv4_addr; }" + ruleIn("ip saddr != @s accept"),
		"set s { type ipv4_addr; flags dynamic, timeout; }" + ruleIn("add @s { ip daddr timeout 1m } accept"),
		ruleIn("oifname != \"lo\" accept"),
		ruleIn("oifname \"eth*\" accept"),
		ruleIn("oif 1 accept"),
		ruleIn("meta nfproto ipv4 accept"),
		ruleIn("meta l4proto tcp accept"),
		ruleIn("meta l4proto 58 accept"),
		ruleIn("meta mark 1 accept"),
		ruleIn("meta mark set 1 accept"),
		ruleIn("meta skuid 0 accept"),
		ruleIn("tcp sport 53 accept"),
		ruleIn("tcp dport 53-54 accept"),
		ruleIn("tcp dport != 53 accept"),
		ruleIn("th dport 53 accept"),
		ruleIn("sctp dport 53 accept"),
		ruleIn("tcp flags syn accept"),
		ruleIn("icmp type echo-request accept"),
		ruleIn("icmpv6 code 0 accept"),
		ruleIn("@th,0,16 53 accept"),
		ruleIn("ct state untracked accept"),
		ruleIn("ct state != new accept"),
		ruleIn("ct direction original accept"),
		ruleIn("ct mark set 1 accept"),
		ruleIn("limit rate 1/minute accept"),
		ruleIn("limit rate 1 mbytes/second accept"),
		ruleIn("log group 1 prefix \"x\" accept"),
		ruleIn("log group 100 accept"),
		ruleIn("log group 100 prefix \"x\" snaplen 10 accept"),
		ruleIn("log group 100 prefix \"x\" queue-threshold 10 accept"),
		ruleIn("log prefix \"x\" accept"),
		ruleIn("counter log group 100 prefix \"x\" accept"),
		ruleIn("log group 100 prefix \"x\" limit rate 1/second accept"),
		ruleIn("log group 100 prefix \"x\" ip daddr 192.0.2.1 accept"),
		ruleIn("quota 10 mbytes accept"),
		ruleIn("fib daddr type local accept"),
		ruleIn("numgen random mod 2 0 accept"),
		ruleIn("socket transparent 1 accept"),
		ruleIn("rt classid 1 accept"),
		ruleIn("reject with tcp reset"),
		ruleIn("reject with icmpx port-unreachable"),
		ruleIn("ip protocol tcp reject with icmp admin-prohibited"),
		ruleIn("return"),
		ruleIn("notrack"),
		"chain more { accept\n }\n" + ruleIn("jump more"),
		ruleIn("meta nftrace set 1 accept"),
	} {
		t.Run(body, func(t *testing.T) {
			ns := kerneltest.NewNS(t)
			c := dialIn(t, ns)
			kerneltest.NFT(t, ns, "table inet terok_shield {\n"+body+"\n}\n", "-f", "-")
			have, err := c.List()
			if !errors.Is(err, ErrForeign) || have != nil {
				t.Fatalf("listed as %v, %v", have, err)
			}
			want := build(t, ruleset.Up, params)
			if err := c.Apply(want); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, list(t, c), equal); d != "" {
				t.Errorf("replaced (want, have):\n%s", d)
			}
		})
	}
}

// Comments mean nothing, and neither do tables of other names and families.
func TestNotForeign(t *testing.T) {
	ns := kerneltest.NewNS(t)
	c := dialIn(t, ns)
	kerneltest.NFT(t, ns, `
table inet terok_shield {
	comment "a"
	set s { type ipv4_addr; comment "b"; elements = { 192.0.2.1 comment "c" }
	}
	chain output { comment "d"; type filter hook output priority filter; policy drop; ip daddr @s accept comment "e"
	}
	chain input { type filter hook input priority filter; policy drop; }
}
table ip terok_shield {
	chain x { accept
	}
}
table inet other {
	chain output { type filter hook output priority 5; tcp sport 1 notrack
	}
}
`, "-f", "-")
	want, err := ruleset.Parse(`table inet terok_shield {
	set s { type ipv4_addr; elements = { 192.0.2.1 }; }
	chain output { type filter hook output priority filter; policy drop; ip daddr @s accept; }
	chain input { type filter hook input priority filter; policy drop; }
}`)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, list(t, c), equal); d != "" {
		t.Error(d)
	}
	if err := c.Apply(build(t, ruleset.Quarantine, params)); err != nil {
		t.Fatal(err)
	}
	if got := kerneltest.NFT(t, ns, "", "list", "tables"); got != "table inet terok_shield\ntable ip terok_shield\ntable inet other\n" {
		t.Errorf("other tables: %s", got)
	}
}

// An element that is to stay for ever in a set with a default timeout does:
// nft 1.0.6 gives it the default instead.
func TestPermanentElement(t *testing.T) {
	ns := kerneltest.NewNS(t)
	c := dialIn(t, ns)
	a := randomAddr(rand.New(rand.NewPCG(1, 1)), false)
	for _, interval := range []bool{true, false} {
		want := build(t, ruleset.Quarantine, params)
		want.Sets = []ruleset.Set{{
			Name: "s", Interval: interval, Expiring: true, Timeout: 300 * time.Millisecond,
			Elements: []ruleset.Element{
				{Range: ruleset.Range{From: a, To: a}, Timeout: ruleset.Permanent},
				{Range: ruleset.Range{From: a.Next(), To: a.Next()}},
			},
		}}
		if err := c.Apply(want); err != nil {
			t.Fatal(err)
		}
		have := list(t, c).Sets[0].Elements
		if len(have) != 2 || have[0].Timeout != ruleset.Permanent || have[0].Expires != 0 ||
			have[1].Timeout != 0 || have[1].Expires == 0 {
			t.Errorf("at first: %v", have)
		}
		time.Sleep(400 * time.Millisecond)
		if have = list(t, c).Sets[0].Elements; len(have) != 1 || have[0].From != a {
			t.Errorf("later: %v", have)
		}
	}
}

// Some versions of nft do not end an interval where the next begins. An end
// that belongs to nothing is harmless where elements expire.
func TestJoin(t *testing.T) {
	at := netip.MustParseAddr
	span := func(from, to string) ruleset.Element {
		return ruleset.Element{Range: ruleset.Range{From: at(from), To: at(to)}}
	}
	start := func(a string) bound { return bound{at: at(a)} }
	end := func(a string) bound { return bound{at: at(a), end: true} }
	for _, tc := range []struct {
		name     string
		expiring bool
		bounds   []bound
		want     []ruleset.Element
		odd      bool
		foreign  bool
	}{
		{name: "none"},
		{name: "the end at 0 of nft", bounds: []bound{end("0.0.0.0")}},
		{name: "any order", bounds: []bound{end("192.0.2.9"), start("192.0.2.20"), end("192.0.2.21"), start("192.0.2.1")},
			want: []ruleset.Element{span("192.0.2.1", "192.0.2.8"), span("192.0.2.20", "192.0.2.20")}},
		{name: "neighbours", bounds: []bound{start("192.0.2.1"), start("192.0.2.9"), end("192.0.2.9"), end("192.0.2.12")},
			want: []ruleset.Element{span("192.0.2.1", "192.0.2.8"), span("192.0.2.9", "192.0.2.11")}},
		{name: "neighbours without an end", bounds: []bound{start("192.0.2.1"), start("192.0.2.9"), end("192.0.2.12")},
			want: []ruleset.Element{span("192.0.2.1", "192.0.2.8"), span("192.0.2.9", "192.0.2.11")}, odd: true},
		{name: "to the last address", bounds: []bound{end("0.0.0.0"), start("255.255.255.0")},
			want: []ruleset.Element{span("255.255.255.0", "255.255.255.255")}},
		{name: "everything", bounds: []bound{start("0.0.0.0"), end("0.0.0.0")},
			want: []ruleset.Element{span("0.0.0.0", "255.255.255.255")}},
		{name: "end alone", bounds: []bound{end("192.0.2.1")}, foreign: true},
		{name: "end alone of what expired", expiring: true, bounds: []bound{end("192.0.2.1"), start("192.0.2.3"), end("192.0.2.4")},
			want: []ruleset.Element{span("192.0.2.3", "192.0.2.3")}},
		{name: "twice", bounds: []bound{start("192.0.2.1"), start("192.0.2.1"), end("192.0.2.4")}, foreign: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			have, odd, err := join(&ruleset.Set{Interval: true, Expiring: tc.expiring}, tc.bounds)
			if errors.Is(err, ErrForeign) != tc.foreign || odd != tc.odd {
				t.Errorf("odd %t, error %v", odd, err)
			}
			if d := cmp.Diff(tc.want, have, equal); d != "" {
				t.Errorf("want, have:\n%s", d)
			}
		})
	}
}
