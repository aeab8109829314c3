package ruleset

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// exact compares tables to the last field.
var exact = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b Daddr) bool { return a == b }),
}

// stateless compares tables but for what only a listing has.
var stateless = cmp.Options{exact, cmpopts.IgnoreFields(Rule{}, "Packets", "Bytes"), cmpopts.IgnoreFields(Element{}, "Expires")}

// full opens everything that there is, with addresses that are allowed and
// denied, or private, at the same time.
var full = Params{
	DNS:   addr("169.254.1.1"),
	Ports: []uint16{9418, 8080, 8080},
	Hosts: []netip.Addr{addr("169.254.1.2"), addr("10.0.2.2"), addr("fd00::2"), addr("10.0.2.2")},
	Allow: prefixes("203.0.113.9", "198.51.100.0/24", "198.51.100.7", "192.0.2.1", "10.0.0.5", "2001:db8:1::/48", "::ffff:1.2.3.4"),
	Deny:  prefixes("192.0.2.1", "10.7.0.0/16", "2001:db8:1::1"),
}

func build(t testing.TB, s State, p Params) *Table {
	t.Helper()
	table, err := Build(s, p)
	if err != nil {
		t.Fatalf("build %s: %v", s, err)
	}
	return table
}

func parse(t testing.TB, text string) *Table {
	t.Helper()
	table, err := Parse(text)
	if err != nil {
		t.Fatalf("parse: %v\n%s", err, text)
	}
	return table
}

func TestBuildUp(t *testing.T) {
	const want = `table inet terok_shield {
	set allow_v4 {
		type ipv4_addr
		flags interval
		elements = { 10.0.0.5, 192.0.2.1,
			     198.51.100.0/24, 203.0.113.9 }
	}

	set allow_v6 {
		type ipv6_addr
		flags interval
		elements = { ::ffff:1.2.3.4,
			     2001:db8:1::/48 }
	}

	set deny_v4 {
		type ipv4_addr
		flags interval
		elements = { 10.7.0.0/16, 192.0.2.1 }
	}

	set deny_v6 {
		type ipv6_addr
		flags interval
		elements = { 2001:db8:1::1 }
	}

	set learned_v4 {
		type ipv4_addr
		flags timeout
	}

	set learned_v6 {
		type ipv6_addr
		flags timeout
	}

	chain output {
		type filter hook output priority filter; policy drop;
		oifname "lo" accept
		ip daddr @deny_v4 limit rate over 100/second burst 200 packets counter reject with icmpx admin-prohibited
		ip daddr @deny_v4 log prefix "TEROK_SHIELD_DENIED: " group 100 counter reject with icmpx admin-prohibited
		ip6 daddr @deny_v6 limit rate over 100/second burst 200 packets counter reject with icmpx admin-prohibited
		ip6 daddr @deny_v6 log prefix "TEROK_SHIELD_DENIED: " group 100 counter reject with icmpx admin-prohibited
		ct state established,related accept
		icmpv6 type nd-router-solicit accept
		icmpv6 type nd-neighbor-solicit accept
		icmpv6 type nd-neighbor-advert accept
		udp dport 53 ip daddr 169.254.1.1 accept
		tcp dport 53 ip daddr 169.254.1.1 accept
		tcp dport 8080 ip daddr 10.0.2.2 accept
		tcp dport 8080 ip daddr 169.254.1.2 accept
		tcp dport 8080 ip6 daddr fd00::2 accept
		tcp dport 9418 ip daddr 10.0.2.2 accept
		tcp dport 9418 ip daddr 169.254.1.2 accept
		tcp dport 9418 ip6 daddr fd00::2 accept
		ip daddr @allow_v4 limit rate over 100/second burst 200 packets counter accept
		ip daddr @allow_v4 log prefix "TEROK_SHIELD_ALLOWED: " group 100 counter accept
		ip6 daddr @allow_v6 limit rate over 100/second burst 200 packets counter accept
		ip6 daddr @allow_v6 log prefix "TEROK_SHIELD_ALLOWED: " group 100 counter accept
		ip daddr @learned_v4 limit rate over 100/second burst 200 packets counter accept
		ip daddr @learned_v4 log prefix "TEROK_SHIELD_ALLOWED: " group 100 counter accept
		ip6 daddr @learned_v6 limit rate over 100/second burst 200 packets counter accept
		ip6 daddr @learned_v6 log prefix "TEROK_SHIELD_ALLOWED: " group 100 counter accept
		limit rate over 100/second burst 200 packets counter reject with icmpx admin-prohibited
		ip daddr 10.0.0.0/8 log prefix "TEROK_SHIELD_PRIVATE: " group 100 reject with icmpx admin-prohibited
		ip daddr 172.16.0.0/12 log prefix "TEROK_SHIELD_PRIVATE: " group 100 reject with icmpx admin-prohibited
		ip daddr 192.168.0.0/16 log prefix "TEROK_SHIELD_PRIVATE: " group 100 reject with icmpx admin-prohibited
		ip daddr 169.254.0.0/16 log prefix "TEROK_SHIELD_PRIVATE: " group 100 reject with icmpx admin-prohibited
		ip6 daddr fc00::/7 log prefix "TEROK_SHIELD_PRIVATE: " group 100 reject with icmpx admin-prohibited
		ip6 daddr fe80::/10 log prefix "TEROK_SHIELD_PRIVATE: " group 100 reject with icmpx admin-prohibited
		log prefix "TEROK_SHIELD_BLOCKED: " group 100 counter reject with icmpx admin-prohibited
	}

	chain input {
		type filter hook input priority filter; policy drop;
		iifname "lo" accept
		ip saddr @deny_v4 drop
		ip6 saddr @deny_v6 drop
		ct state established,related accept
		icmpv6 type nd-router-advert accept
		icmpv6 type nd-neighbor-solicit accept
		icmpv6 type nd-neighbor-advert accept
		drop
	}
}
`
	if diff := cmp.Diff(want, build(t, Up, full).String()); diff != "" {
		t.Errorf("up (-want +got):\n%s", diff)
	}
}

func TestBuildDownDisengaged(t *testing.T) {
	const bypass = `		ct state new limit rate 100/second burst 200 packets log prefix "TEROK_SHIELD_BYPASS: " group 100 counter
`
	up, down, disengaged := build(t, Up, full), build(t, Down, full).String(), build(t, Disengaged, full).String()
	// The same up to the learned addresses.
	common, _, _ := strings.Cut(up.String(), "\t\tlimit rate over")
	common = strings.Replace(common, "policy drop", "policy accept", 1)
	_, input, _ := strings.Cut(up.String(), "\tchain input")
	if diff := cmp.Diff(common+bypass+"\t}\n\n\tchain input"+input, disengaged); diff != "" {
		t.Errorf("disengaged (-want +got):\n%s", diff)
	}
	var private strings.Builder
	for _, p := range []string{"ip daddr 10.0.0.0/8", "ip daddr 172.16.0.0/12", "ip daddr 192.168.0.0/16",
		"ip daddr 169.254.0.0/16", "ip6 daddr fc00::/7", "ip6 daddr fe80::/10"} {
		fmt.Fprintf(&private, "\t\t%s limit rate over 100/second burst 200 packets counter reject with icmpx admin-prohibited\n", p)
		fmt.Fprintf(&private, "\t\t%s log prefix \"TEROK_SHIELD_PRIVATE: \" group 100 reject with icmpx admin-prohibited\n", p)
	}
	if diff := cmp.Diff(common+bypass+private.String()+"\t}\n\n\tchain input"+input, down); diff != "" {
		t.Errorf("down (-want +got):\n%s", diff)
	}
}

func TestBuildQuarantine(t *testing.T) {
	const want = `table inet terok_shield {
	chain output {
		type filter hook output priority filter; policy drop;
		oifname "lo" accept
		limit rate over 100/second burst 200 packets counter drop
		log prefix "TEROK_SHIELD_QUARANTINE: " group 100 counter drop
	}

	chain input {
		type filter hook input priority filter; policy drop;
		iifname "lo" accept
		drop
	}
}
`
	if diff := cmp.Diff(want, build(t, Quarantine, full).String()); diff != "" {
		t.Errorf("quarantine (-want +got):\n%s", diff)
	}
}

func TestBuildRefuses(t *testing.T) {
	many := make([]uint16, 65535)
	for i := range many {
		many[i] = uint16(i + 1)
	}
	wide := make([]netip.Prefix, MaxPrefixes+1)
	for i := range wide {
		wide[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 15), byte(i >> 7), byte(i << 1)}), 32)
	}
	hosts := func(a ...string) (p Params) {
		p.Ports = []uint16{80}
		for _, s := range a {
			p.Hosts = append(p.Hosts, addr(s))
		}
		return p
	}
	for name, tt := range map[string]struct {
		state State
		p     Params
		want  string
	}{
		"offline":         {Offline, Params{}, "no ruleset for state offline"},
		"error":           {Error, Params{}, "no ruleset for state error"},
		"unknown state":   {State(99), Params{}, "no ruleset for state state 99"},
		"dns zone":        {Up, Params{DNS: addr("fe80::1%eth0")}, `dns server "fe80::1%eth0" has a zone: give the address without it`},
		"dns injection":   {Up, Params{DNS: addr("fe80::1%a } ; b")}, `dns server "fe80::1%a } ; b" has a zone: give the address without it`},
		"dns unspecified": {Up, Params{DNS: addr("0.0.0.0")}, "dns server 0.0.0.0 is not the address of a single peer"},
		"dns multicast":   {Down, Params{DNS: addr("ff02::fb")}, "dns server ff02::fb is not the address of a single peer"},
		"dns broadcast":   {Up, Params{DNS: addr("255.255.255.255")}, "dns server 255.255.255.255 is not the address of a single peer"},
		"dns mapped":      {Up, Params{DNS: addr("::ffff:8.8.8.8")}, "dns server ::ffff:8.8.8.8 is a mapped IPv4 address: give it as 8.8.8.8"},
		"host public":     {Up, hosts("203.0.113.1"), "host 203.0.113.1 is not in a private range: ports are only opened towards the host itself"},
		"host loopback":   {Up, hosts("127.0.0.1"), "host 127.0.0.1 is not in a private range: ports are only opened towards the host itself"},
		"host zone":       {Disengaged, hosts("fe80::1%eth0"), `host "fe80::1%eth0" has a zone: give the address without it`},
		"host multicast":  {Up, hosts("224.0.0.1"), "host 224.0.0.1 is not the address of a single peer"},
		"host mapped":     {Up, hosts("::ffff:10.0.0.1"), "host ::ffff:10.0.0.1 is a mapped IPv4 address: give it as 10.0.0.1"},
		"host invalid":    {Up, Params{Hosts: []netip.Addr{{}}}, "host is not an address"},
		"port 0":          {Up, Params{Ports: []uint16{0}}, "port 0 cannot be opened"},
		"lifetime":        {Up, Params{Lifetime: -time.Second}, "learned addresses that expire after -1s: whole seconds, up to 24h0m0s, are possible"},
		"long lifetime":   {Down, Params{Lifetime: MaxLifetime + time.Second}, "learned addresses that expire after 24h0m1s: whole seconds, up to 24h0m0s, are possible"},
		"odd lifetime":    {Up, Params{Lifetime: 1500 * time.Millisecond}, "learned addresses that expire after 1.5s: whole seconds, up to 24h0m0s, are possible"},
		"prefix":          {Up, Params{Allow: []netip.Prefix{{}}}, "allow list: not a prefix: invalid Prefix"},
		"many ports":      {Up, Params{Ports: many, Hosts: hosts("10.0.0.1").Hosts}, "65535 ports towards 1 hosts make 65568 rules, 1000 are possible: open fewer ports"},
		"many prefixes":   {Up, Params{Deny: wide}, "50001 addresses to allow and deny, 50000 are possible: use wider prefixes"},
	} {
		t.Run(name, func(t *testing.T) {
			table, err := Build(tt.state, tt.p)
			if err == nil {
				t.Fatalf("built:\n%.2000s", table)
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Hosts in every range that a host may be in.
func TestBuildHosts(t *testing.T) {
	p := Params{Ports: []uint16{1, 65535}}
	for _, a := range []string{"10.0.2.2", "172.31.0.1", "192.168.1.1", "169.254.1.2", "100.64.0.1", "fd00::2", "fe80::1"} {
		p.Hosts = append(p.Hosts, addr(a))
	}
	table := build(t, Up, p)
	for _, h := range p.Hosts {
		for _, port := range p.Ports {
			if !table.accepted(packet{oif: "eth0", daddr: h, proto: TCP, port: port, ct: CTNew}) {
				t.Errorf("%s port %d is not open", h, port)
			}
		}
		if table.accepted(packet{oif: "eth0", daddr: h, proto: TCP, port: 2, ct: CTNew}) {
			t.Errorf("port 2 of %s is open", h)
		}
	}
	if s, err := Verify(table, Known{}); s != Up || err != nil {
		t.Errorf("verify: %s, %v", s, err)
	}
}

// The largest table is still one that can be printed, read and verified.
func TestBuildLargest(t *testing.T) {
	p := largest(MaxPrefixes, true)
	table := build(t, Up, p)
	text := table.String()
	if len(text) > maxText {
		t.Fatalf("%d bytes", len(text))
	}
	if !cmp.Equal(table, parse(t, text), exact) {
		t.Error("parse(print(t)) is not t")
	}
	if s, err := Verify(table, Known{}); s != Up || err != nil {
		t.Errorf("verify: %s, %v", s, err)
	}
}

// largest is n prefixes that do not overlap, of the longest text.
func largest(n int, v6 bool) (p Params) {
	for i := range n {
		a := netip.AddrFrom4([4]byte{211, byte(100 + i>>15), byte(i >> 7), byte(i << 1)})
		if v6 {
			a = netip.AddrFrom16([16]byte{0x2a, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, byte(i >> 8), byte(i), 0x11, 0x80})
		}
		p.Allow = append(p.Allow, netip.PrefixFrom(a, a.BitLen()-i%2))
	}
	return p
}

func TestStates(t *testing.T) {
	for s := Offline; s <= Error; s++ {
		if got, err := ParseState(s.String()); got != s || err != nil {
			t.Errorf("ParseState(%s) = %s, %v", s, got, err)
		}
	}
	if _, err := ParseState("inactive"); err == nil || !strings.Contains(err.Error(), `unknown state "inactive": want one of offline, up,`) {
		t.Errorf("inactive: %v", err)
	}
}

// random is a generator of parameters and tables. It prefers few addresses, so
// that they meet.
type random struct{ *rand.Rand }

func newRandom(seed uint64) random { return random{rand.New(rand.NewPCG(seed, 42))} }

func (r random) addr(v6 bool) netip.Addr {
	var a [16]byte
	for i := range a {
		a[i] = []byte{0, 0, 1, 2, 10, 127, 128, 254, 255}[r.IntN(9)]
	}
	if !v6 {
		return netip.AddrFrom4([4]byte(a[:4]))
	}
	if r.IntN(3) == 0 {
		clear(a[:10+r.IntN(6)])
	}
	return netip.AddrFrom16(a)
}

func (r random) prefix() netip.Prefix {
	a := r.addr(r.IntN(2) == 0)
	if r.IntN(2) == 0 {
		return netip.PrefixFrom(a, a.BitLen())
	}
	return netip.PrefixFrom(a, r.IntN(a.BitLen()+1)).Masked()
}

func (r random) prefixes() (list []netip.Prefix) {
	for range r.IntN(12) {
		list = append(list, r.prefix())
	}
	return list
}

func (r random) params() (p Params) {
	if r.IntN(2) == 0 {
		p.DNS = []netip.Addr{addr("169.254.1.1"), addr("8.8.8.8"), addr("2001:db8::53"), addr("10.0.2.3")}[r.IntN(4)]
	}
	for range r.IntN(4) {
		p.Ports = append(p.Ports, []uint16{53, 80, 8080, 65535}[r.IntN(4)])
	}
	for range r.IntN(4) {
		p.Hosts = append(p.Hosts, []netip.Addr{addr("10.0.2.2"), addr("169.254.1.1"), addr("fd00::2"), addr("fe80::1")}[r.IntN(4)])
	}
	p.Allow, p.Deny = r.prefixes(), r.prefixes()
	if r.IntN(3) == 0 {
		p.Lifetime = time.Duration(1+r.IntN(int(MaxLifetime/time.Second))) * time.Second
	}
	return p
}

// table is one that Build makes, sometimes with what other systems add:
// elements that expire and defaults for them.
func (r random) table(t testing.TB) *Table {
	table := build(t, []State{Up, Down, Disengaged, Quarantine}[r.IntN(4)], r.params())
	for i := range table.Sets {
		s := &table.Sets[i]
		switch r.IntN(4) {
		case 0:
			s.Expiring = true
			if r.IntN(2) == 0 {
				s.Timeout = time.Duration(1+r.IntN(3)) * time.Minute
			}
		case 1:
			s.Interval = r.IntN(2) == 0
		}
		if !s.Interval {
			for i := range s.Elements {
				s.Elements[i].To = s.Elements[i].From
			}
		}
		if s.Expiring {
			for range r.IntN(6) {
				a := r.addr(s.V6)
				e := Element{Range: Range{a, a}, Timeout: time.Duration(r.IntN(3)) * time.Minute}
				overlaps := func(o Element) bool { return o.Overlaps(e.Range) }
				if r.IntN(3) == 0 {
					e.Timeout = Permanent
				}
				if s.Interval && r.IntN(3) == 0 {
					if b := r.addr(s.V6); a.Less(b) {
						e.To = b
					}
				}
				if !slices.ContainsFunc(s.Elements, overlaps) {
					s.Elements = append(s.Elements, e)
				}
			}
		}
		if err := s.Normalize(); err != nil {
			t.Fatal(err)
		}
	}
	return table
}

func TestPrefixesAndRanges(t *testing.T) {
	for _, tt := range []struct{ prefix, from, to string }{
		{"0.0.0.0/0", "0.0.0.0", "255.255.255.255"},
		{"10.0.0.0/8", "10.0.0.0", "10.255.255.255"},
		{"192.0.2.1/32", "192.0.2.1", "192.0.2.1"},
		{"192.0.2.0/31", "192.0.2.0", "192.0.2.1"},
		{"::/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
		{"fe80::/10", "fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
		{"2001:db8::/64", "2001:db8::", "2001:db8::ffff:ffff:ffff:ffff"},
		{"2001:db8::/63", "2001:db8::", "2001:db8:0:1:ffff:ffff:ffff:ffff"},
		{"2001:db8::1/128", "2001:db8::1", "2001:db8::1"},
		{"::ffff:1.2.3.0/120", "::ffff:1.2.3.0", "::ffff:1.2.3.255"},
	} {
		p := netip.MustParsePrefix(tt.prefix)
		want := Range{addr(tt.from), addr(tt.to)}
		if got := RangeOf(p); got != want {
			t.Errorf("RangeOf(%s) = %s-%s", p, got.From, got.To)
		}
		if got, ok := want.Prefix(); got != p || !ok {
			t.Errorf("(%s).Prefix() = %s, %v", want, got, ok)
		}
	}
	for _, r := range []Range{
		{addr("10.0.0.1"), addr("10.0.0.2")}, {addr("10.0.0.0"), addr("10.0.0.2")}, {addr("10.0.0.2"), addr("10.0.0.1")},
		{addr("0.0.0.1"), addr("255.255.255.255")}, {addr("::1"), addr("10.0.0.1")}, {addr("fe80::"), addr("fe80:0:0:1::")}, {},
	} {
		if p, ok := r.Prefix(); ok {
			t.Errorf("(%s-%s).Prefix() = %s", r.From, r.To, p)
		}
	}
	if got := RangeOf(netip.MustParsePrefix("10.1.2.3/8")); got.String() != "10.0.0.0/8" {
		t.Errorf("host bits: %s", got)
	}
}

// MergePrefixes covers exactly what it is given, with elements in order that
// do not overlap.
func TestMergePrefixes(t *testing.T) {
	for seed := range uint64(500) {
		r := newRandom(seed)
		list := append(r.prefixes(), r.prefixes()...)
		merged := MergePrefixes(list)
		for i, e := range merged {
			p, ok := e.Prefix()
			if !ok || !slices.Contains(list, p) {
				t.Fatalf("seed %d: %s is not in %v", seed, e.Range, list)
			}
			if i > 0 && (merged[i-1].Overlaps(e.Range) || !merged[i-1].From.Less(e.From)) {
				t.Fatalf("seed %d: %s before %s", seed, merged[i-1].Range, e.Range)
			}
		}
		for _, p := range list {
			want := RangeOf(p)
			if !slices.ContainsFunc(merged, func(e Element) bool { return e.Contains(want.From) && e.Contains(want.To) }) {
				t.Fatalf("seed %d: %s is lost of %v", seed, p, list)
			}
		}
	}
}

func BenchmarkLargest(b *testing.B) {
	for _, v6 := range []bool{false, true} {
		p := largest(MaxPrefixes, v6)
		table := build(b, Up, p)
		text := table.String()
		name := typeName(v6)
		b.Run("build/"+name, func(b *testing.B) {
			for b.Loop() {
				build(b, Up, p)
			}
		})
		b.Run("print/"+name, func(b *testing.B) {
			for b.Loop() {
				_ = table.String()
			}
		})
		b.Run("parse/"+name, func(b *testing.B) {
			for b.Loop() {
				parse(b, text)
			}
		})
		b.Run("verify/"+name, func(b *testing.B) {
			for b.Loop() {
				if _, err := Verify(table, Known{}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("diff/"+name, func(b *testing.B) {
			other := build(b, Up, Params{})
			for b.Loop() {
				if Diff(other, table).Empty() {
					b.Fatal("empty")
				}
			}
		})
	}
}
