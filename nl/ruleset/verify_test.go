package ruleset

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// base is a table with all that its caller may know about it.
type base struct {
	name  string
	table *Table
	state State
	known Known
}

// bases are tables of every shape and state, with addresses in their sets that
// are allowed and denied, or private, at the same time.
func bases(t testing.TB) (list []base) {
	none := Known{Ports: []uint16{}, Hosts: []netip.Addr{}}
	fullKnown := Known{DNS: full.DNS, Ports: full.Ports, Hosts: full.Hosts}
	for _, s := range []State{Up, Down, Disengaged, Quarantine} {
		table := build(t, s, full)
		if s != Quarantine {
			learn(table, "203.0.113.80", "2001:db8:3::1")
		}
		list = append(list, base{"ours/" + s.String(), table, s, fullKnown})
	}
	list = append(list, base{"ours/up/bare", build(t, Up, Params{}), Up, none})
	// As with the resolver in the container's own namespace, and with one that
	// adds addresses without a timeout.
	closed := Params{Ports: full.Ports, Hosts: full.Hosts, Allow: full.Allow, Deny: full.Deny}
	list = append(list, base{"ours/up/no dns", build(t, Up, closed), Up, Known{NoDNS: true, Ports: full.Ports, Hosts: full.Hosts}})
	lasting := full
	lasting.Lifetime = 30 * time.Minute
	table := build(t, Up, lasting)
	learn(table, "203.0.113.80", "2001:db8:3::1")
	a := addr("203.0.113.81")
	table.Set(Learned4).Elements = append(table.Set(Learned4).Elements, Element{Range: Range{a, a}})
	list = append(list, base{"ours/up/lifetime", table, Up, fullKnown})
	const elements = `
add element inet terok_shield allow_v4 { 203.0.113.9, 192.0.2.1, 169.254.169.254, 10.0.0.5 }
add element inet terok_shield allow_v6 { 2001:db8:1::/48, fd00:ec2::254 }
add element inet terok_shield deny_v4 { 192.0.2.1, 192.0.2.2 }
add element inet terok_shield deny_v6 { 2001:db8:1::1 }
`
	pasta := Known{DNS: addr("169.254.1.1"), Ports: []uint16{}, Hosts: []netip.Addr{}}
	port := Known{DNS: addr("169.254.1.1"), Ports: []uint16{8080}, Hosts: []netip.Addr{addr("169.254.1.2")}}
	for _, b := range []base{
		{"r1-up-pasta-static", nil, Up, pasta},
		{"r1-up-slirp-ports", nil, Up, Known{DNS: addr("10.0.2.3"), Ports: []uint16{8080, 9418},
			Hosts: []netip.Addr{addr("10.0.2.2"), addr("fd00::2"), addr("169.254.1.2")}}},
		{"r1-down", nil, Down, pasta},
		{"r1-disengaged", nil, Disengaged, pasta},
		{"r1-quarantine", nil, Quarantine, none},
		{"r2-up-window", nil, Up, port},
		{"r2-down", nil, Down, port},
		{"r2-disengaged", nil, Disengaged, port},
	} {
		text := sample(t, b.name+".nft")
		if strings.HasPrefix(b.name, "r1") && b.state != Quarantine {
			text, _, _ = strings.Cut(text, "add element")
			text += elements
		}
		b.table = parse(t, text)
		list = append(list, b)
	}
	return list
}

// learn puts addresses where the resolver does.
func learn(t *Table, addrs ...string) {
	for _, s := range addrs {
		a := addr(s)
		set := t.Set(setLearned + map[bool]string{false: "_v4", true: "_v6"}[a.Is6()])
		set.Elements = append(set.Elements, Element{Range: Range{a, a}, Timeout: 5 * time.Minute})
		if err := set.Normalize(); err != nil {
			panic(err)
		}
	}
}

func (t *Table) clone() *Table {
	c := *t
	c.Sets = slices.Clone(t.Sets)
	for i := range c.Sets {
		c.Sets[i].Elements = slices.Clone(c.Sets[i].Elements)
	}
	c.Output.Rules = slices.Clone(t.Output.Rules)
	c.Input.Rules = slices.Clone(t.Input.Rules)
	return &c
}

func TestVerifyBases(t *testing.T) {
	for _, b := range bases(t) {
		for _, k := range []Known{{}, b.known} {
			if s, err := Verify(b.table, k); s != b.state || err != nil {
				t.Errorf("%s: %s, %v", b.name, s, err)
			}
		}
	}
	if s, err := Verify(nil, Known{}); s != Offline || err != nil {
		t.Errorf("nil: %s, %v", s, err)
	}
}

// What Build makes, Verify takes, before and after a way through text.
func TestVerifyBuilt(t *testing.T) {
	for seed := range uint64(500) {
		r := newRandom(seed)
		p := r.params()
		want := []State{Up, Down, Disengaged, Quarantine}[r.IntN(4)]
		table := build(t, want, p)
		for _, k := range []Known{{}, {DNS: p.DNS, Ports: p.Ports, Hosts: p.Hosts}, {NoDNS: !p.DNS.IsValid(), Ports: p.Ports}} {
			if got, err := Verify(table, k); got != want || err != nil {
				t.Fatalf("seed %d: %s is %s: %v\n%s", seed, want, got, err, table)
			}
			if got, err := Verify(parse(t, table.String()), k); got != want || err != nil {
				t.Fatalf("seed %d: %s as text is %s: %v\n%s", seed, want, got, err, table)
			}
		}
	}
}

// matchLists are the left sides of rules of the dialect.
func matchLists(t *Table) (list [][]Match) {
	list = append(list, nil)
	single := []Match{
		OIf("lo"), OIf("eth0"), IIf("lo"), IIf("eth0"),
		CTNew, CTInvalid, CTEstablished, CTEstablished | CTRelated, CTNew | CTEstablished | CTRelated,
		DPort{UDP, 53}, DPort{TCP, 53}, DPort{TCP, 8080}, DPort{TCP, 443},
		NDRouterSolicit, NDRouterAdvert, NDNeighborSolicit, NDNeighborAdvert, ICMPv6(128),
		DaddrIn{"undeclared_v4", false},
	}
	for _, s := range t.Sets {
		single = append(single, DaddrIn{s.Name, s.V6}, DaddrIn{s.Name, !s.V6}, SaddrIn{s.Name, s.V6})
	}
	var daddr []Match
	for _, p := range prefixes("0.0.0.0/0", "::/0", "169.254.1.1", "10.0.2.2", "10.9.9.9", "8.8.8.8", "fd00::2",
		"169.254.169.254", "169.254.1.2", "10.0.2.3", "fd00:ec2::254", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10") {
		daddr = append(daddr, Daddr(p))
	}
	for _, m := range slices.Concat(single, daddr) {
		list = append(list, []Match{m})
	}
	for _, d := range []DPort{{UDP, 53}, {TCP, 53}, {TCP, 8080}, {TCP, 443}, {UDP, 8080}} {
		for _, a := range daddr[:7] {
			list = append(list, []Match{d, a})
		}
	}
	return append(list, []Match{DaddrIn{"allow_v4", false}, OIf("eth0")}, []Match{OIf("lo"), OIf("eth0")}, []Match{OIf("lo"), CTNew})
}

// ends are the right sides.
func ends() (list []Rule) {
	for _, log := range append([]Prefix{""}, logPrefixes...) {
		list = append(list, Rule{Log: log, Counted: log != "", Verdict: Accept})
	}
	return append(list,
		Rule{Limit: over, Verdict: Accept}, Rule{Limit: under, Verdict: Accept}, Rule{Counted: true, Verdict: Accept},
		Rule{Verdict: Drop}, Rule{Verdict: Reject}, Rule{Limit: over, Verdict: Reject},
		Rule{Log: LogPrivate, Verdict: Reject}, Rule{Log: LogBlocked, Counted: true, Verdict: Reject},
		Rule{Log: LogBypass, Counted: true}, Rule{Log: LogQuarantine, Verdict: Drop})
}

// edits calls try with every change of one rule or of a policy.
func edits(t *Table, try func(edited *Table, what ...any)) {
	with := func(change func(e *Table), what ...any) {
		e := *t
		e.Output.Rules = slices.Clone(t.Output.Rules)
		change(&e)
		try(&e, what...)
	}
	for _, v := range []Verdict{Accept, Drop, Reject, Continue} {
		with(func(e *Table) { e.Output.Policy = v }, "output policy", v)
		with(func(e *Table) { e.Input.Policy = v }, "input policy", v)
	}
	rules := t.Output.Rules
	lists, right := matchLists(t), ends()
	for i := range rules {
		with(func(e *Table) { e.Output.Rules = slices.Delete(e.Output.Rules, i, i+1) }, "delete", i)
		for j := range rules {
			with(func(e *Table) { e.Output.Rules[i], e.Output.Rules[j] = rules[j], rules[i] }, "swap", i, j)
			with(func(e *Table) {
				e.Output.Rules = slices.Insert(slices.Delete(e.Output.Rules, i, i+1), j, rules[i])
			}, "move", i, j)
			with(func(e *Table) { e.Output.Rules = slices.Insert(e.Output.Rules, j, rules[i]) }, "copy", i, j)
		}
		replace := func(what string, r Rule) {
			with(func(e *Table) { e.Output.Rules[i] = r }, what, i, "replaced:", r)
		}
		for _, m := range lists {
			r := rules[i]
			r.Match = m
			replace("match", r)
			if len(m) == 1 {
				for k := range rules[i].Match {
					r.Match = slices.Clone(rules[i].Match)
					r.Match[k] = m[0]
					replace("one match", r)
				}
				r.Match = append(slices.Clip(rules[i].Match), m[0])
				replace("another match", r)
			}
		}
		for k := range rules[i].Match {
			r := rules[i]
			r.Match = slices.Delete(slices.Clone(r.Match), k, k+1)
			replace("less match", r)
		}
		for _, v := range []Verdict{Accept, Drop, Reject, Continue} {
			for _, l := range []Limit{{}, over, under, {Over: true, Rate: 1, Burst: 1}, rules[i].Limit} {
				r := rules[i]
				r.Verdict, r.Limit = v, l
				replace("verdict", r)
				for _, log := range append(logPrefixes, "") {
					r.Log, r.Counted = log, !r.Counted
					replace("log", r)
				}
			}
		}
	}
	for _, m := range lists {
		for _, r := range right {
			r.Match = m
			for i := range len(rules) + 1 {
				// A rule that cannot accept may stand anywhere; two places
				// are enough to see that.
				if r.Verdict == Accept || i == 0 || i == len(rules) {
					with(func(e *Table) { e.Output.Rules = slices.Insert(e.Output.Rules, i, r) }, "insert", i, r)
				}
			}
		}
	}
}

// No change of one rule that lets more out passes: if Verify still finds a
// state, then nothing is accepted that was not accepted before.
func TestVerifyEdits(t *testing.T) {
	for _, b := range bases(t) {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			list := packets(b.table)
			var blocked []packet
			for _, p := range list {
				if !b.table.accepted(p) {
					blocked = append(blocked, p)
				}
			}
			if len(blocked) == 0 && b.name != "r2-disengaged" || len(blocked) == len(list) {
				t.Fatalf("%d of %d packets are blocked: that shows nothing", len(blocked), len(list))
			}
			tried, passed, opened := 0, 0, 0
			edits(b.table, func(e *Table, what ...any) {
				tried++
				s, err := Verify(e, b.known)
				opens := func() (packet, bool) {
					for _, p := range blocked {
						if e.accepted(p) {
							return p, true
						}
					}
					return packet{}, false
				}
				if err != nil {
					// Every edit would be too many to look at.
					if tried%64 == 0 {
						if _, ok := opens(); ok {
							opened++
						}
					}
					return
				}
				passed++
				if p, ok := opens(); ok {
					t.Errorf("%v: is %s and lets %s out", what, s, p)
				}
				if e.Input.Policy != Drop {
					t.Errorf("%v: is %s and lets everything in", what, s)
				}
			})
			if passed == 0 || len(blocked) > 0 && opened == 0 {
				t.Errorf("%d edits, %d passed, %d of a sample refused for a reason: that shows nothing", tried, passed, opened)
			}
			t.Logf("%d edits, %d passed; %d packets, %d blocked; %d refused for a reason", tried, passed, len(list), len(blocked), opened)
		})
	}
}

// The same for the input chain: nothing comes in that did not before.
func TestVerifyInput(t *testing.T) {
	for _, b := range bases(t) {
		for _, m := range matchLists(b.table) {
			switch {
			case len(m) != 1:
			case slices.Contains([]Match{IIf("lo"), CTEstablished | CTRelated, NDRouterAdvert, NDNeighborSolicit, NDNeighborAdvert}, m[0]):
				continue
			}
			for i := range len(b.table.Input.Rules) + 1 {
				e := b.table.clone()
				e.Input.Rules = slices.Insert(e.Input.Rules, i, accept(m...))
				if s, err := Verify(e, b.known); err == nil {
					t.Errorf("%s with %s at %d of input is %s", b.name, accept(m...), i, s)
				}
			}
		}
	}
}

// What callers tell people about a table that is in no state.
func TestVerifyFindings(t *testing.T) {
	all := map[string]base{}
	for _, b := range bases(t) {
		all[b.name] = b
	}
	without := func(want string) func(*Table) {
		return func(t *Table) {
			t.Output.Rules = slices.DeleteFunc(t.Output.Rules, func(r Rule) bool { return strings.Contains(r.String(), want) })
		}
	}
	for _, tt := range []struct {
		base   string
		change func(*Table)
		want   string
	}{
		{"ours/up", func(t *Table) { t.Output.Policy = Accept },
			"policy is not drop"},
		{"ours/up", func(t *Table) { t.Input.Policy = Accept }, "input policy is not drop"},
		{"ours/up", without("BLOCKED"), "terminal deny-all rule missing"},
		{"ours/up", without("10.0.0.0/8"), "Private-range reject rule for 10.0.0.0/8 missing"},
		{"ours/up", without("icmpv6 type nd-router-solicit"), "rule missing in output: icmpv6 type nd-router-solicit accept"},
		{"ours/up", func(t *Table) { t.Output.Rules = slices.Insert(t.Output.Rules, 0, accept(CTNew)) }, "unexpected rule in output: ct state new accept"},
		{"ours/up", func(t *Table) { r := t.Output.Rules; r[1], r[5] = r[5], r[1] }, "rules of output are repeated or in another order"},
		{"ours/up", func(t *Table) { t.Sets = t.Sets[:5] }, "learned_v6 set missing"},
		{"ours/up", func(t *Table) { t.Set(Learned4).Timeout = 1 }, "learned addresses that expire after 1ns: whole seconds, up to 24h0m0s, are possible"},
		{"ours/up/lifetime", func(t *Table) { t.Set(Learned6).Timeout = 0 }, "set learned_v6 has another definition"},
		{"ours/up/lifetime", func(t *Table) { t.Set(Learned4).Timeout = 0 },
			"set learned_v6 has another definition; set learned_v4 holds 203.0.113.81, which is not an address that expires"},
		{"ours/up/lifetime", func(t *Table) { t.Set(Learned4).Elements[0].Timeout = Permanent }, "set learned_v4 holds 203.0.113.80, which is not an address that expires"},
		{"ours/up", func(t *Table) { t.Sets[2].Expiring = true }, "set deny_v4 has another definition"},
		{"ours/up", func(t *Table) { t.Sets = append(t.Sets, Set{Name: "more"}) }, "unknown set more; more sets than there should be"},
		{"ours/up", func(t *Table) { t.Sets = append(t.Sets, t.Sets[0]) }, "more sets than there should be"},
		{"ours/up", func(t *Table) { t.Sets[0].Elements[0].To = addr("10.0.0.8") }, "set allow_v4 holds 10.0.0.5-10.0.0.8, which is not a prefix"},
		{"ours/up", func(t *Table) { t.Sets[0].Elements[0].To = addr("::1") }, "set allow_v4 holds 10.0.0.5-::1, which is not a range of its family; set allow_v4 holds 10.0.0.5-::1, which is not a prefix"},
		{"ours/up", func(t *Table) { learn(t, "169.254.169.254") }, "set learned_v4 holds 169.254.169.254, which no name may resolve to"},
		{"ours/up", func(t *Table) { learn(t, "::ffff:127.0.0.1") }, "set learned_v6 holds ::ffff:127.0.0.1, which no name may resolve to"},
		{"ours/up", func(t *Table) { t.Set("learned_v4").Elements[0].Timeout = 0 }, "set learned_v4 holds 203.0.113.80, which is not an address that expires"},
		{"ours/down", without("BYPASS"), "bypass nflog prefix missing"},
		{"ours/down", without("fe80::/10 log"), "Private-range reject rule for fe80::/10 missing"},
		{"ours/down", func(t *Table) { t.Output.Policy = Drop }, "output policy is not accept"},
		{"ours/quarantine", func(t *Table) { t.Output.Rules[0].Match = []Match{OIf("eth0")} }, `rule missing in output: oifname "lo" accept; unexpected rule in output: oifname "eth0" accept`},
		{"ours/quarantine", func(t *Table) { t.Sets = []Set{{Name: "allow_v4"}} }, "allow_v6 set missing"},
		{"r1-up-pasta-static", without("BLOCKED"), "terminal deny-all rule missing"},
		{"r1-up-pasta-static", func(t *Table) { t.Output.Rules[len(t.Output.Rules)-1].Log = LogDenied }, "blocked nflog prefix missing"},
		{"r1-up-pasta-static", func(t *Table) { t.Output.Rules = nil }, "terminal deny-all rule missing"},
		{"r1-up-pasta-static", func(t *Table) { t.Output.Policy = Accept }, "policy is not drop"},
		{"r1-up-pasta-static", without("@deny_v6"), "reject rule for ip6 daddr @deny_v6 missing"},
		{"r1-up-pasta-static", without("fc00"), "Private-range reject rule for fc00::/7 missing"},
		{"r1-up-pasta-static", without("tcp dport 53"), "port 53 of 169.254.1.1 is open over udp but not over tcp"},
		{"r1-up-pasta-static", without("established"), "rule missing in output: ct state established,related accept"},
		{"r1-up-pasta-static", func(t *Table) { t.Sets = t.Sets[:3] }, "deny_v6 set missing"},
		{"r1-up-pasta-static", func(t *Table) { t.Sets[3].V6 = false; t.Sets[3].Elements = nil }, "set deny_v6 is of the other address family"},
		{"r1-up-pasta-static", func(t *Table) { t.Sets[3].Expiring = true }, "set deny_v6 forgets what is denied"},
		{"r1-up-pasta-static", func(t *Table) { t.Sets = append(t.Sets, t.Sets[3]) }, "set deny_v6 is there twice"},
		{"r1-up-pasta-static", func(t *Table) { t.Sets = append(t.Sets, Set{Name: "x"}) }, "unknown set x"},
		{"r1-up-slirp-ports", func(t *Table) { t.Output.Rules[4] = accept(DPort{TCP, 22}, host(addr("10.0.2.2"))) }, "port 22 is open and should not be"},
		{"r1-up-slirp-ports", func(t *Table) { t.Output.Rules[4] = accept(DPort{TCP, 8080}, host(addr("10.0.2.9"))) }, "ports are open to 10.0.2.9 and should not be"},
		{"r1-up-slirp-ports", func(t *Table) { t.Output.Rules[4] = accept(DPort{TCP, 8080}, host(addr("192.0.2.9"))) }, "host 192.0.2.9 is not in a private range: ports are only opened towards the host itself"},
		{"r1-up-slirp-ports", func(t *Table) {
			t.Output.Rules[2], t.Output.Rules[3] = accept(DPort{UDP, 53}, host(addr("8.8.8.8"))), accept(DPort{TCP, 53}, host(addr("8.8.8.8")))
		}, "port 53 is open to 8.8.8.8, not to the resolver 10.0.2.3"},
		{"r1-up-slirp-ports", func(t *Table) { t.Output.Rules = slices.Insert(t.Output.Rules, 2, accept(NDRouterSolicit)) }, "neighbour discovery is open in parts only"},
		{"r1-up-slirp-ports", func(t *Table) { t.Input.Rules = append(t.Input.Rules, accept(CTNew)) }, "unexpected rule in input: ct state new accept"},
		{"r1-down", func(t *Table) { t.Output.Policy = Drop }, "output policy is not accept"},
		{"r1-down", without("fc00"), "Private-range reject rule for fc00::/7 missing"},
		{"r1-down", without("BYPASS"), "terminal deny-all rule missing"},
		{"r1-disengaged", func(t *Table) {
			t.Output.Rules = append(t.Output.Rules[:4], t.Output.Rules[6], t.Output.Rules[4], t.Output.Rules[5])
		}, "reject rule for ip daddr @deny_v4 is in the wrong place; reject rule for ip6 daddr @deny_v6 is in the wrong place"},
		{"r2-up-window", without("fd00:ec2::254"), "Private-range reject rule for fd00:ec2::254/128 missing"},
		{"r2-up-window", func(t *Table) { r := t.Output.Rules; r[5], r[8] = r[8], r[5] }, "ip daddr @t10_override_v4 is accepted before ip daddr 169.254.0.0/16 is rejected"},
		{"r2-up-window", func(t *Table) { t.Sets = t.Sets[2:] }, "t10_override_v4 set missing"},
		{"r2-down", without("@t20_security_deny_v4"), "reject rule for ip daddr @t20_security_deny_v4 missing"},
		{"r2-disengaged", func(t *Table) {
			t.Output.Rules = slices.Insert(t.Output.Rules, 3, accept(DaddrIn{"t10_override_v4", false}))
		}, "unexpected rule in output: ip daddr @t10_override_v4 accept"},
	} {
		b := all[tt.base]
		e := b.table.clone()
		tt.change(e)
		s, err := Verify(e, b.known)
		findings, ok := errors.AsType[Findings](err)
		if s != Error || !ok {
			t.Errorf("%s without %q: %s, %v", tt.base, tt.want, s, err)
			continue
		}
		if !strings.Contains(findings.Error(), tt.want) {
			t.Errorf("%s: want %q among\n\t%s", tt.base, tt.want, strings.Join(findings, "\n\t"))
		}
	}
}

// What a caller does not know is not held against a table.
func TestVerifyUnknown(t *testing.T) {
	table := parse(t, sample(t, "r1-up-slirp-ports.nft"))
	for _, tt := range []struct {
		k    Known
		want string
	}{
		{Known{}, ""},
		{Known{DNS: addr("10.0.2.3"), Ports: []uint16{9418, 8080, 1}}, ""},
		{Known{DNS: addr("10.0.2.4")}, "port 53 is open to 10.0.2.3, not to the resolver 10.0.2.4"},
		{Known{DNS: addr("10.0.2.3"), NoDNS: true}, "port 53 is open to 10.0.2.3, and no resolver should be"},
		{Known{Ports: []uint16{}}, "port 8080 is open and should not be; port 9418 is open and should not be"},
		{Known{Ports: []uint16{9418}}, "port 8080 is open and should not be"},
		{Known{Hosts: []netip.Addr{addr("10.0.2.2"), addr("fd00::2")}}, "ports are open to 169.254.1.2 and should not be"},
	} {
		_, err := Verify(table, tt.k)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", tt.k, diff)
		}
	}
}
