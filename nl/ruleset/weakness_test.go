package ruleset

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// The tests of this file each hold one weakness of the existing systems that
// this package does not share.

func opens(t *Table, daddr string) bool {
	return t.accepted(packet{oif: "eth0", daddr: addr(daddr), proto: TCP, port: 443, ct: CTNew})
}

// There, an address that is allowed is reachable even if it is denied too.
func TestDenyBeatsAllow(t *testing.T) {
	table := build(t, Up, Params{Allow: prefixes("192.0.2.0/24", "2001:db8::/32"), Deny: prefixes("192.0.2.1", "2001:db8::1")})
	learn(table, "198.51.100.1")
	for daddr, want := range map[string]bool{
		"192.0.2.1": false, "192.0.2.2": true, "2001:db8::1": false, "2001:db8::2": true, "198.51.100.1": true, "198.51.100.2": false,
	} {
		if got := opens(table, daddr); got != want {
			t.Errorf("%s: %v", daddr, got)
		}
	}
	deny := table.Set("deny_v4")
	deny.Elements = append(deny.Elements, Element{Range: RangeOf(netip.MustParsePrefix("198.51.100.0/24"))})
	if opens(table, "198.51.100.1") {
		t.Error("what the resolver learned beats what is denied")
	}
}

// There, a name on the list may resolve to an address inside.
func TestNoRebinding(t *testing.T) {
	for _, daddr := range []string{"10.0.0.1", "172.31.255.255", "192.168.0.1", "169.254.169.254", "fd00:ec2::254", "fe80::1",
		"127.0.0.1", "::1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "ff02::1", "::ffff:10.0.0.1"} {
		table := build(t, Up, Params{})
		learn(table, daddr)
		if s, err := Verify(table, Known{}); s != Error || !strings.Contains(err.Error(), "which no name may resolve to") {
			t.Errorf("%s learned: %s, %v", daddr, s, err)
		}
	}
}

// There, overlapping entries of a profile make the container unstartable.
func TestOverlapsAreMerged(t *testing.T) {
	table := build(t, Up, Params{Allow: prefixes("8.8.8.8", "8.8.8.0/24", "8.8.8.0/24", "8.8.0.0/16", "2001:db8::1", "2001:db8::/32")})
	if got := table.Set("allow_v4").Elements; len(got) != 1 || got[0].Range.String() != "8.8.0.0/16" {
		t.Errorf("allow_v4: %v", got)
	}
	if got := table.Set("allow_v6").Elements; len(got) != 1 || got[0].Range.String() != "2001:db8::/32" {
		t.Errorf("allow_v6: %v", got)
	}
}

// There, x and x/32 are different, and denying one does not un-allow the other.
func TestHostIsItsPrefix(t *testing.T) {
	a := build(t, Up, Params{Allow: prefixes("192.0.2.1", "2001:db8::1")})
	b := build(t, Up, Params{Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::1/128")}})
	if c := Diff(a, b); !c.Empty() {
		t.Error(c)
	}
	text := minimal("elements = { 1.2.3.4/32, 1.2.3.4 }", "", "add element inet terok_shield s6 { ::1/128, ::1 }")
	if table := parse(t, text); len(table.Sets[0].Elements) != 1 || len(table.Sets[1].Elements) != 1 {
		t.Error(table)
	}
}

// There, established connections survive a deny and quarantine.
func TestLiveConnectionsAreCut(t *testing.T) {
	live := packet{oif: "eth0", daddr: addr("192.0.2.1"), proto: TCP, port: 443, ct: CTEstablished}
	if !build(t, Up, Params{}).accepted(live) {
		t.Error("an answer is not let out")
	}
	for _, s := range []State{Up, Down, Disengaged} {
		if build(t, s, Params{Deny: prefixes("192.0.2.1")}).accepted(live) {
			t.Errorf("%s: a denied connection goes on", s)
		}
	}
	if build(t, Quarantine, Params{}).accepted(live) {
		t.Error("quarantine: a connection goes on")
	}
}

// There, no IPv6 destination is reachable on an Ethernet-like interface.
func TestNeighbourDiscovery(t *testing.T) {
	for _, s := range []State{Up, Down, Disengaged} {
		table := build(t, s, Params{})
		for _, typ := range []ICMPv6{NDRouterSolicit, NDNeighborSolicit, NDNeighborAdvert} {
			if !table.accepted(packet{oif: "eth0", daddr: addr("ff02::2"), proto: protoICMPv6, icmp: typ}) {
				t.Errorf("%s: type %d is not let out", s, typ)
			}
		}
		for _, typ := range []ICMPv6{NDRouterAdvert, NDNeighborSolicit, NDNeighborAdvert} {
			if !slices.ContainsFunc(table.Input.Rules, accept(typ).Equal) {
				t.Errorf("%s: type %d is not let in", s, typ)
			}
		}
	}
	if build(t, Up, Params{}).accepted(packet{oif: "eth0", daddr: addr("ff02::2"), proto: protoICMPv6, icmp: 128, ct: CTNew}) {
		t.Error("up: a ping is let out")
	}
}

// There, people are asked about what quarantine drops.
func TestQuarantineAsksNobody(t *testing.T) {
	for _, r := range build(t, Quarantine, Params{}).Output.Rules {
		if r.Log != "" && r.Log != LogQuarantine {
			t.Errorf("quarantine logs %q", r.Log)
		}
	}
}

// There, any process may ask the upstream resolver around the one that filters.
func TestNoResolverNoDNS(t *testing.T) {
	table := build(t, Up, Params{Ports: []uint16{53}, Hosts: []netip.Addr{addr("169.254.1.2")}})
	for _, p := range packets(table) {
		if p.proto == UDP && p.port == 53 && p.oif != "lo" && p.ct == CTNew && table.accepted(p) {
			t.Errorf("%s is let out", p)
		}
	}
	// Verify sees to it, for tables of every origin.
	for _, name := range []string{"r1-up-pasta-static.nft", "r1-down.nft", "r2-up.nft", ""} {
		open := build(t, Up, Params{DNS: addr("169.254.1.1")})
		if name != "" {
			open = parse(t, sample(t, name))
		}
		if s, err := Verify(open, Known{}); err != nil {
			t.Errorf("%s: %s, %v", name, s, err)
		}
		if s, err := Verify(open, Known{NoDNS: true}); s != Error || err == nil ||
			err.Error() != "port 53 is open to 169.254.1.1, and no resolver should be" {
			t.Errorf("%s: %s, %v", name, s, err)
		}
	}
	// A port 53 that the operator has opened is known to be open.
	for _, tt := range []struct {
		ports []uint16
		want  string
	}{
		{nil, "port 53 is open and should not be"},
		{[]uint16{}, "port 53 is open and should not be"},
		{[]uint16{80}, "port 53 is open and should not be"},
		{[]uint16{53}, ""},
	} {
		_, err := Verify(table, Known{NoDNS: true, Ports: tt.ports})
		if got := fmt.Sprint(err); got != tt.want && (tt.want != "" || err != nil) {
			t.Errorf("known ports %v: %v, want %q", tt.ports, err, tt.want)
		}
	}
}

// There, whoever scans floods the reader with log lines.
func TestLogIsBounded(t *testing.T) {
	for _, s := range []State{Up, Down, Disengaged, Quarantine} {
		rules := build(t, s, full).Output.Rules
		for i, r := range rules {
			if r.Log == "" || !r.Limit.Over && r.Limit == under {
				continue
			}
			// Some rule before takes the same packets beyond the limit.
			bounded := slices.ContainsFunc(rules[:i], func(o Rule) bool {
				return o.Limit == over && o.Verdict == r.Verdict && (len(o.Match) == 0 || slices.Equal(o.Match, r.Match))
			})
			if !bounded {
				t.Errorf("%s: unbounded: %s", s, r)
			}
		}
	}
}

// There, the state is found by searching the listing for words. Each of these
// listings has all the words, and is open.
func TestWordsAreNotEnough(t *testing.T) {
	text := sample(t, "r1-up-pasta-static.nft")
	table := func(t *testing.T, text string) error {
		parsed, err := Parse(text)
		if err != nil {
			return err
		}
		_, err = Verify(parsed, Known{})
		return err
	}
	if err := table(t, text); err != nil {
		t.Fatal(err)
	}
	const lo = "            oifname \"lo\" accept\n"
	terminal := `            log group 100 prefix "TEROK_SHIELD_BLOCKED: " counter reject with icmpx admin-prohibited`
	for name, change := range map[string][2]string{
		"only the input policy is drop":    {"hook output priority filter; policy drop", "hook output priority filter; policy accept"},
		"the terminal rule is a comment":   {terminal, "#" + terminal},
		"the terminal rule is not last":    {terminal, terminal + "\n accept"},
		"the terminal rule comes too late": {lo, lo + "accept\n"},
		"the terminal rule only logs":      {terminal, strings.TrimSuffix(terminal, " reject with icmpx admin-prohibited")},
		"the terminal rule has a match":    {terminal, "ct state new " + terminal},
		"the terminal rule has a limit":    {terminal, "limit rate 100/second burst 200 packets " + terminal},
		"another chain is jumped to":       {lo, lo + "jump input\n"},
		"a private range is a comment":     {"ip daddr 10.0.0.0/8 log", "# ip daddr 10.0.0.0/8 log"},
		"every interface is the loopback":  {lo, strings.Replace(lo, "lo", "eth0", 1)},
		"everything is established":        {"ct state established,related accept\n            udp", "ct state established,related,new accept\n            udp"},
		"the resolver is everybody":        {"udp dport 53 ip daddr 169.254.1.1 accept", "udp dport 53 ip daddr 0.0.0.0/0 accept"},
		"the sets are swapped":             {"ip daddr @allow_v4 log", "ip daddr @deny_v4 log"},
		"there is a second table":          {"add element inet terok_shield allow_v4", "table inet other { chain output { } }\nadd element inet terok_shield allow_v4"},
		"the rules are there twice":        {"        chain input {", "        chain output {\n type filter hook output priority filter; policy drop;\n accept\n}\n        chain input {"},
	} {
		changed := strings.Replace(text, change[0], change[1], 1)
		if changed == text {
			t.Errorf("%s: nothing to change", name)
		}
		if err := table(t, changed); err == nil {
			t.Errorf("%s: passes", name)
		}
	}
}

// There, a failed listing counts as no table, and the next one is appended to
// the rules that are there.
func TestAppendedRules(t *testing.T) {
	for _, b := range bases(t) {
		e := b.table.clone()
		e.Output.Rules = append(e.Output.Rules, accept())
		if s, err := Verify(e, b.known); err == nil {
			t.Errorf("%s with an accept at the end is %s", b.name, s)
		}
	}
	twice := build(t, Up, full)
	twice.Output.Rules = append(twice.Output.Rules, twice.Output.Rules...)
	if s, err := Verify(twice, Known{}); err == nil {
		t.Errorf("the rules twice: %s", s)
	}
}
