package ruleset

import (
	"fmt"
	"net/netip"
	"slices"
)

// packet is what an output chain can tell apart.
type packet struct {
	oif   string
	daddr netip.Addr
	proto Proto
	port  uint16
	icmp  ICMPv6 // of proto 58
	ct    CT
}

func (p packet) String() string {
	return fmt.Sprintf("oif %s daddr %s proto %s port %d type %d %s", p.oif, p.daddr, p.proto, p.port, p.icmp, matchText(p.ct))
}

const protoICMPv6 Proto = 58

func (p packet) matches(t *Table, m Match) bool {
	switch m := m.(type) {
	case IIf:
		return m == "" // a packet on its way out came in nowhere
	case OIf:
		return p.oif == string(m)
	case CT:
		return p.ct&m != 0
	case DPort:
		return p.proto == m.Proto && p.port == m.Port
	case Daddr:
		return netip.Prefix(m).Contains(p.daddr)
	case DaddrIn:
		s := t.Set(m.Set)
		return s != nil && s.V6 == m.V6 && s.V6 == p.daddr.Is6() &&
			slices.ContainsFunc(s.Elements, func(e Element) bool { return e.Contains(p.daddr) })
	case SaddrIn:
		return true // whatever the container's own address is
	case ICMPv6:
		return p.proto == protoICMPv6 && p.icmp == m
	}
	panic("unknown match")
}

// accepted reports whether the output chain may let p out. A limit counts as
// reached or not, whichever lets it out.
func (t *Table) accepted(p packet) bool {
	for _, r := range t.Output.Rules {
		if slices.ContainsFunc(r.Match, func(m Match) bool { return !p.matches(t, m) }) {
			continue
		}
		switch r.Verdict {
		case Accept:
			return true
		case Drop, Reject:
			if r.Limit == (Limit{}) {
				return false
			}
		}
	}
	return t.Output.Policy == Accept
}

// packets is a list of them that tells apart what differs between tables:
// every address that one of them names, one beside it, and some more.
func packets(tables ...*Table) []packet {
	addrs := []netip.Addr{
		addr("203.0.113.77"), addr("2001:db8:f::77"), addr("169.254.169.254"), addr("fe80::77"),
		addr("fd00:ec2::254"), addr("10.9.9.9"), addr("172.16.9.9"), addr("192.168.9.9"), addr("fd00::77"),
		addr("127.0.0.1"), addr("::1"), addr("8.8.8.8"),
	}
	ports := []uint16{53, 443, 8080, 9999}
	for _, t := range tables {
		for _, r := range t.Output.Rules {
			for _, m := range r.Match {
				switch m := m.(type) {
				case Daddr:
					addrs = append(addrs, netip.Prefix(m).Addr())
				case DPort:
					ports = append(ports, m.Port)
				}
			}
		}
		for _, s := range t.Sets {
			for _, e := range s.Elements {
				addrs = append(addrs, e.From)
			}
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	var list []packet
	for _, a := range addrs {
		for _, ct := range []CT{CTNew, CTEstablished, CTInvalid} {
			p := packet{oif: "eth0", daddr: a, ct: ct}
			for _, port := range sortedUnique(ports) {
				p.port = port
				p.proto = TCP
				list = append(list, p)
				p.proto = UDP
				list = append(list, p)
			}
			if a.Is6() {
				for typ := NDRouterSolicit; typ <= NDNeighborAdvert; typ++ {
					list = append(list, packet{oif: "eth0", daddr: a, proto: protoICMPv6, icmp: typ, ct: ct})
				}
				list = append(list, packet{oif: "eth0", daddr: a, proto: protoICMPv6, icmp: 128, ct: ct})
			}
		}
	}
	return append(list, packet{oif: "lo", daddr: addr("127.0.0.1"), proto: TCP, port: 443, ct: CTNew})
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func prefixes(list ...string) (p []netip.Prefix) {
	for _, s := range list {
		r, err := parsePrefix(s)
		if err != nil {
			panic(err)
		}
		p = append(p, r)
	}
	return p
}
