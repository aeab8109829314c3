package ruleset

import (
	"fmt"
	"net/netip"
	"slices"
)

// pastaHost is where pasta maps the host's loopback. The existing systems
// open ports to it under every network; it is the host's only under pasta,
// where it is the only one.
var pastaHost = netip.AddrFrom4([4]byte{169, 254, 1, 2})

// ParamsOf reads back from an enforcing table, ours or an existing system's,
// what Build needs to make the container's other states. Addresses of its
// sets are not among that.
func ParamsOf(t *Table) (Params, error) {
	var p Params
	for _, r := range t.Output.Rules {
		if r.Verdict != Accept || len(r.Match) != 2 {
			continue
		}
		port, ok1 := r.Match[0].(DPort)
		to, ok2 := r.Match[1].(Daddr)
		if !ok1 || !ok2 || !netip.Prefix(to).IsSingleIP() {
			continue
		}
		addr := netip.Prefix(to).Addr()
		switch {
		case port.Proto == UDP && port.Port == 53 && !p.DNS.IsValid():
			p.DNS = addr
		case port.Proto == UDP:
			return Params{}, fmt.Errorf("udp port %d is opened to %s: not a rule this program makes", port.Port, addr)
		case port.Port == 53 && addr == p.DNS:
		default:
			p.Ports = append(p.Ports, port.Port)
			p.Hosts = append(p.Hosts, addr)
		}
	}
	p.Ports = sortedUnique(p.Ports)
	slices.SortFunc(p.Hosts, netip.Addr.Compare)
	if p.Hosts = slices.Compact(p.Hosts); len(p.Hosts) > 1 {
		p.Hosts = slices.DeleteFunc(p.Hosts, func(a netip.Addr) bool { return a == pastaHost })
	}
	return p, nil
}

// WithAddresses is a copy of t whose allow and deny sets hold these
// addresses, permanently; a table that has no sets of these names is copied
// as it is. In tables of the existing systems, which look into the allow sets
// first, what is denied is cut out of what is allowed.
func WithAddresses(t *Table, allow, deny []netip.Prefix) *Table {
	out := &Table{Sets: slices.Clone(t.Sets), Output: t.Output, Input: t.Input}
	ours := slices.ContainsFunc(t.Sets, func(s Set) bool { return s.Name == setLearned+"_v4" })
	for i := range out.Sets {
		s := &out.Sets[i]
		family := func(p netip.Prefix) bool { return p.Addr().Is4() == s.V6 } // to be left out
		suffix := "_v4"
		if s.V6 {
			suffix = "_v6"
		}
		switch s.Name {
		case setAllow + suffix:
			s.Elements = MergePrefixes(slices.DeleteFunc(slices.Clone(allow), family))
			if !ours {
				s.Elements = subtract(s.Elements, MergePrefixes(slices.DeleteFunc(slices.Clone(deny), family)))
			}
		case setDeny + suffix:
			s.Elements = MergePrefixes(slices.DeleteFunc(slices.Clone(deny), family))
		default:
			continue
		}
		if s.Expiring {
			for j := range s.Elements {
				s.Elements[j].Timeout = Permanent
			}
		}
	}
	return out
}

// subtract is what of a lies outside of b; both sorted and without overlaps.
func subtract(a, b []Element) []Element {
	var out []Element
	for _, e := range a {
		rest := e.Range
		for len(b) > 0 && b[0].To.Less(rest.From) {
			b = b[1:]
		}
		open := true // something of rest is left
		for _, cut := range b {
			if rest.To.Less(cut.From) {
				break
			}
			if rest.From.Less(cut.From) {
				out = append(out, Element{Range: Range{rest.From, cut.From.Prev()}})
			}
			if !cut.To.Less(rest.To) {
				open = false
				break
			}
			rest.From = cut.To.Next()
		}
		if open {
			out = append(out, Element{Range: rest})
		}
	}
	return out
}
