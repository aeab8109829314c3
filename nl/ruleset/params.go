package ruleset

import (
	"cmp"
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
	if s := t.Set(Learned4); s != nil {
		p.Lifetime = s.Timeout
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
// as it is. The existing systems ask the allow sets first, which their
// resolver goes on to fill: in a copy of their table deny comes first, and in
// both directions, as in ours, so that it wins and cuts live connections.
func WithAddresses(t *Table, allow, deny []netip.Prefix) *Table {
	out := &Table{Sets: slices.Clone(t.Sets), Output: t.Output, Input: t.Input}
	for i := range out.Sets {
		s := &out.Sets[i]
		other := func(p netip.Prefix) bool { return p.Addr().Is4() == s.V6 } // family
		suffix := "_v4"
		if s.V6 {
			suffix = "_v6"
		}
		switch s.Name {
		case setAllow + suffix:
			s.Elements = MergePrefixes(slices.DeleteFunc(slices.Clone(allow), other))
		case setDeny + suffix:
			s.Elements = MergePrefixes(slices.DeleteFunc(slices.Clone(deny), other))
		default:
			continue
		}
		if s.Expiring {
			for j := range s.Elements {
				s.Elements[j].Timeout = Permanent
			}
		}
	}
	// Only what refuses is moved forward, behind the rule for lo, so nothing
	// more gets out than before.
	lo := []Match{OIf("lo")}
	rank := func(r Rule) int {
		switch {
		case slices.Equal(r.Match, lo):
			return 0
		case r.refusesSet(setDeny):
			return 1
		}
		return 2
	}
	out.Output.Rules = slices.Clone(t.Output.Rules)
	if t.Set(Learned4) != nil || t.Set(setDeny+"_v4") == nil || t.Set(setDeny+"_v6") == nil {
		return out
	}
	slices.SortStableFunc(out.Output.Rules, func(a, b Rule) int { return cmp.Compare(rank(a), rank(b)) })
	in := []Rule{dropFrom(setDeny, false), dropFrom(setDeny, true)}
	rest := slices.Clone(t.Input.Rules)
	if len(rest) > 0 && slices.Equal(rest[0].Match, []Match{IIf("lo")}) {
		in, rest = append([]Rule{rest[0]}, in...), rest[1:]
	}
	rest = slices.DeleteFunc(rest, func(r Rule) bool { return slices.ContainsFunc(in, r.Equal) }) // done before
	out.Input.Rules = append(in, rest...)
	return out
}

// refusesSet reports whether r stops all that goes to a pair of sets.
func (r Rule) refusesSet(base string) bool {
	return r.refuses() && len(r.Match) == 1 && slices.Contains(inSets(base), r.Match[0])
}
