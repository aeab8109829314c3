package ruleset

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Names of the sets that Build declares, without the family's suffix.
const (
	setAllow   = "allow"
	setDeny    = "deny"
	setLearned = "learned"
)

// The sets that the resolver fills while the container runs: of single
// addresses, which expire.
const (
	Learned4 = setLearned + "_v4"
	Learned6 = setLearned + "_v6"
)

// MaxPrefixes is how many addresses and prefixes Build takes, all sets
// together, after merging: what every part of the system, down to a netlink
// batch within the default limits of the kernel, is tested to carry.
const MaxPrefixes = 50_000

// Format numbers the shape of the tables that Build makes. It grows with every
// change of that shape, so that what an older Build wrote is known to be built
// anew instead of being taken for a table that somebody changed.
const Format = 1

// Params is what differs between the rulesets of two containers.
type Params struct {
	DNS   netip.Addr   // resolver that the container may ask; invalid: none
	Ports []uint16     // TCP ports opened towards Hosts
	Hosts []netip.Addr // addresses of the host as the container sees it: gateways, host loopback map
	Allow []netip.Prefix
	Deny  []netip.Prefix // wins over Allow and over what the resolver learned
	// Lifetime is how long an address that a resolver learned stays open if
	// the resolver does not say. 0: it has to say. Whole seconds.
	Lifetime time.Duration
}

// MaxLifetime is how long a learned address can stay open without being
// learned again.
const MaxLifetime = 24 * time.Hour

var (
	// privateRanges are never reached unless allowed by an address, in the
	// order of their rules. RFC 1918, RFC 3927, RFC 4193, RFC 4291.
	privateRanges = []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"),
		netip.MustParsePrefix("172.16.0.0/12"),
		netip.MustParsePrefix("192.168.0.0/16"),
		netip.MustParsePrefix("169.254.0.0/16"),
		netip.MustParsePrefix("fc00::/7"),
		netip.MustParsePrefix("fe80::/10"),
	}
	// sharedRange may hold a host besides the private ranges (RFC 6598).
	sharedRange = netip.MustParsePrefix("100.64.0.0/10")
)

func isPrivate(a netip.Addr) bool {
	return slices.ContainsFunc(privateRanges, func(p netip.Prefix) bool { return p.Contains(a) })
}

// checkUnicast refuses what cannot be the one address of one peer.
func checkUnicast(what string, a netip.Addr) error {
	switch {
	case !a.IsValid():
		return fmt.Errorf("%s is not an address", what)
	case a.Zone() != "":
		return fmt.Errorf("%s %.60q has a zone: give the address without it", what, a)
	case a.Is4In6():
		return fmt.Errorf("%s %s is a mapped IPv4 address: give it as %s", what, a, a.Unmap())
	case a.IsUnspecified(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("%s %s is not the address of a single peer", what, a)
	}
	return nil
}

func checkHost(a netip.Addr) error {
	if err := checkUnicast("host", a); err != nil {
		return err
	}
	if !isPrivate(a) && !sharedRange.Contains(a) {
		return fmt.Errorf("host %s is not in a private range: ports are only opened towards the host itself", a)
	}
	return nil
}

// Build is the table of state s. Quarantine takes no parameters: whatever they
// say, nothing gets out. Offline and Error are not tables.
func Build(s State, p Params) (*Table, error) {
	switch s {
	case Up, Down, Disengaged:
	case Quarantine:
		return quarantine(), nil
	default:
		return nil, fmt.Errorf("no ruleset for state %s", s)
	}
	if p.DNS.IsValid() {
		if err := checkUnicast("dns server", p.DNS); err != nil {
			return nil, err
		}
	}
	for _, h := range p.Hosts {
		if err := checkHost(h); err != nil {
			return nil, err
		}
	}
	if slices.Contains(p.Ports, 0) {
		return nil, fmt.Errorf("port 0 cannot be opened")
	}
	// The kernel counts in ticks, of which a second has a whole number.
	if p.Lifetime < 0 || p.Lifetime > MaxLifetime || p.Lifetime%time.Second != 0 {
		return nil, fmt.Errorf("learned addresses that expire after %s: whole seconds, up to %s, are possible", p.Lifetime, MaxLifetime)
	}
	t := &Table{}
	total := 0
	for _, s := range []struct {
		name     string
		prefixes []netip.Prefix
	}{{setAllow, p.Allow}, {setDeny, p.Deny}} {
		var v4, v6 []netip.Prefix
		for _, p := range s.prefixes {
			switch {
			case !p.IsValid():
				return nil, fmt.Errorf("%s list: not a prefix: %v", s.name, p)
			case p.Addr().Is4():
				v4 = append(v4, p)
			default:
				v6 = append(v6, p)
			}
		}
		t.Sets = append(t.Sets,
			Set{Name: s.name + "_v4", Interval: true, Elements: MergePrefixes(v4)},
			Set{Name: s.name + "_v6", V6: true, Interval: true, Elements: MergePrefixes(v6)})
		total += len(t.Sets[len(t.Sets)-2].Elements) + len(t.Sets[len(t.Sets)-1].Elements)
	}
	if total > MaxPrefixes {
		return nil, fmt.Errorf("%d addresses to allow and deny, %d are possible: use wider prefixes", total, MaxPrefixes)
	}
	t.Sets = append(t.Sets,
		Set{Name: Learned4, Expiring: true, Timeout: p.Lifetime},
		Set{Name: Learned6, V6: true, Expiring: true, Timeout: p.Lifetime})

	ports, hosts := sortedUnique(p.Ports), slices.Clone(p.Hosts)
	slices.SortFunc(hosts, netip.Addr.Compare)
	t.Output = output(s, p.DNS, ports, slices.Compact(hosts))
	t.Input = Chain{Policy: Drop, Rules: []Rule{
		accept(IIf("lo")),
		// A denied peer of a live connection would go on sending.
		dropFrom(setDeny, false), dropFrom(setDeny, true),
		accept(CTEstablished | CTRelated),
		accept(NDRouterAdvert),
		accept(NDNeighborSolicit),
		accept(NDNeighborAdvert),
		{Verdict: Drop},
	}}
	if n := len(t.Output.Rules) + len(t.Input.Rules); n > maxRules {
		return nil, fmt.Errorf("%d ports towards %d hosts make %d rules, %d are possible: open fewer ports",
			len(ports), len(hosts), n, maxRules)
	}
	return t, nil
}

func sortedUnique(p []uint16) []uint16 {
	p = slices.Clone(p)
	slices.Sort(p)
	return slices.Compact(p)
}

var (
	over  = Limit{Over: true, Rate: LogRate, Burst: LogBurst}
	under = Limit{Rate: LogRate, Burst: LogBurst}
)

func accept(m ...Match) Rule { return Rule{Match: m, Verdict: Accept} }

// dropFrom is the input rule that stops what comes from a set.
func dropFrom(set string, v6 bool) Rule {
	name := set + "_v4"
	if v6 {
		name = set + "_v6"
	}
	return Rule{Match: []Match{SaddrIn{Set: name, V6: v6}}, Verdict: Drop}
}

// logged is a rule that logs, after its twin: the same match and verdict for
// what is too much to be logged.
func logged(r Rule) []Rule {
	return []Rule{{Match: r.Match, Limit: over, Counted: true, Verdict: r.Verdict}, r}
}

func bothFamilies(set string, log Prefix, v Verdict) (rules []Rule) {
	for _, m := range []Match{DaddrIn{Set: set + "_v4"}, DaddrIn{Set: set + "_v6", V6: true}} {
		rules = append(rules, logged(Rule{Match: []Match{m}, Log: log, Counted: true, Verdict: v})...)
	}
	return rules
}

// output is the output chain of Up, Down and Disengaged.
func output(s State, dns netip.Addr, ports []uint16, hosts []netip.Addr) Chain {
	r := []Rule{accept(OIf("lo"))}
	// Before established, so that a deny cuts live connections, and before
	// everything that accepts, so that it always wins.
	r = append(r, bothFamilies(setDeny, LogDenied, Reject)...)
	r = append(r,
		accept(CTEstablished|CTRelated),
		// Without neighbour discovery there is no IPv6 on Ethernet-like links.
		accept(NDRouterSolicit), accept(NDNeighborSolicit), accept(NDNeighborAdvert))
	if dns.IsValid() {
		r = append(r, accept(DPort{UDP, 53}, host(dns)), accept(DPort{TCP, 53}, host(dns)))
	}
	for _, p := range ports {
		for _, h := range hosts {
			r = append(r, accept(DPort{TCP, p}, host(h)))
		}
	}
	r = append(r, bothFamilies(setAllow, LogAllowed, Accept)...)
	r = append(r, bothFamilies(setLearned, LogAllowed, Accept)...)

	if s == Up {
		r = append(r, Rule{Limit: over, Counted: true, Verdict: Reject})
		for _, p := range privateRanges {
			r = append(r, Rule{Match: []Match{Daddr(p)}, Log: LogPrivate, Verdict: Reject})
		}
		r = append(r, Rule{Log: LogBlocked, Counted: true, Verdict: Reject})
		return Chain{Policy: Drop, Rules: r}
	}
	r = append(r, Rule{Match: []Match{CTNew}, Limit: under, Log: LogBypass, Counted: true})
	if s == Down {
		for _, p := range privateRanges {
			r = append(r, logged(Rule{Match: []Match{Daddr(p)}, Log: LogPrivate, Verdict: Reject})...)
		}
	}
	return Chain{Policy: Accept, Rules: r}
}

// quarantine stops established connections as well.
func quarantine() *Table {
	return &Table{
		Output: Chain{Policy: Drop, Rules: append([]Rule{accept(OIf("lo"))},
			logged(Rule{Log: LogQuarantine, Counted: true, Verdict: Drop})...)},
		Input: Chain{Policy: Drop, Rules: []Rule{accept(IIf("lo")), {Verdict: Drop}}},
	}
}

func host(a netip.Addr) Daddr { return Daddr(netip.PrefixFrom(a, a.BitLen())) }
