package ruleset

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Known is what the caller of Verify knows from elsewhere about the container.
type Known struct {
	DNS   netip.Addr   // the only resolver that may be open; invalid: unknown
	NoDNS bool         // none may be, and port 53 only if Ports names it; DNS does not matter
	Ports []uint16     // the only TCP ports that may be open; nil: unknown, empty: none
	Hosts []netip.Addr // the only addresses they may be open to; nil: unknown private ones, empty: none
}

// Findings is what is wrong with a table, as an error.
type Findings []string

// Error joins the findings.
func (f Findings) Error() string { return strings.Join(f, "; ") }

func (f *Findings) add(format string, args ...any) { *f = append(*f, fmt.Sprintf(format, args...)) }

// Verify says which state t is in. A table that is not certainly in one of them
// is in state Error, and the error is of type Findings; nil is Offline.
//
// A table of ours must be exactly what Build makes. Tables of the two existing
// systems, told apart by their sets, are held to what makes them safe: only
// their own sets; the policies of the state; no rule accepts but in one of a
// few narrow forms; what must be refused is refused before the addresses of a
// set are accepted; the last rule of an enforcing table refuses everything.
//
// No change of a single rule that lets more out passes, as long as Known names
// no more than the table opens.
func Verify(t *Table, k Known) (State, error) {
	if t == nil {
		return Offline, nil
	}
	v := &verifier{table: t, rules: t.Output.Rules, known: k}
	v.elements()
	state := v.state()
	if len(v.findings) > 0 {
		return Error, v.findings
	}
	return state, nil
}

type verifier struct {
	table    *Table
	rules    []Rule // of the output chain
	known    Known
	findings Findings
}

// state tells by the sets whose table it is and verifies it as such.
func (v *verifier) state() State {
	has := func(names ...string) bool {
		return slices.ContainsFunc(v.table.Sets, func(s Set) bool { return slices.Contains(names, s.Name) })
	}
	switch {
	case has(familyNames(setLearned)...):
		return v.ours()
	case has(familyNames(tieredSets...)...):
		return v.tiered()
	case len(v.table.Sets) > 0:
		return v.flat()
	case slices.ContainsFunc(v.rules, func(r Rule) bool { return r.Log == LogBlocked }):
		v.exactly(foreignQuarantine())
	default:
		v.exactly(quarantine())
	}
	return Quarantine
}

// foreignQuarantine is quarantine as the existing systems have it: established
// connections go on, and people are asked about the blocked ones in vain.
func foreignQuarantine() *Table {
	established := accept(CTEstablished | CTRelated)
	return &Table{
		Output: Chain{Policy: Drop, Rules: []Rule{accept(OIf("lo")), established, {Log: LogBlocked, Verdict: Drop}}},
		Input:  Chain{Policy: Drop, Rules: []Rule{accept(IIf("lo")), established, {Verdict: Drop}}},
	}
}

// elements checks that every set holds addresses of its family.
func (v *verifier) elements() {
	for _, s := range v.table.Sets {
		for _, e := range s.Elements {
			if !e.valid() || e.From.Is6() != s.V6 {
				v.findings.add("set %s holds %s, which is not a range of its family", s.Name, e.Range)
				break
			}
		}
	}
}

// ours rebuilds the table from what its rules say and compares.
func (v *verifier) ours() State {
	s := Up
	if !v.meansUp() {
		s = Disengaged
		if slices.ContainsFunc(privateRanges, func(p netip.Prefix) bool { return v.refused(Daddr(p)) >= 0 }) {
			s = Down
		}
	}
	var p Params
	if l := v.table.Set(Learned4); l != nil {
		p.Lifetime = l.Timeout
	}
	dnsTCP := false
	for _, r := range v.rules {
		port, addr, ok := r.portTo()
		switch {
		case !ok:
		case port.Proto == UDP:
			p.DNS = addr
		case port.Port == 53 && addr == p.DNS && !dnsTCP:
			dnsTCP = true
		default:
			p.Ports, p.Hosts = append(p.Ports, port.Port), append(p.Hosts, addr)
		}
	}
	v.checkKnown(p.DNS, p.Ports, p.Hosts)
	want, err := Build(s, p)
	if err != nil {
		v.findings.add("%s", err)
		return Error
	}
	v.exactly(want)

	for _, s := range v.table.Sets {
		for _, e := range s.Elements {
			if s.Interval {
				if _, ok := e.Prefix(); !ok {
					v.findings.add("set %s holds %s, which is not a prefix", s.Name, e.Range)
				}
				continue
			}
			if !Learnable(e.From) {
				v.findings.add("set %s holds %s, which no name may resolve to", s.Name, e.Range)
			}
			if e.From != e.To || s.Lifetime(e) == Permanent {
				v.findings.add("set %s holds %s, which is not an address that expires", s.Name, e.Range)
			}
		}
	}
	return s
}

// Learnable reports whether a may be in a set of learned addresses. A
// resolver's answer may lead nowhere inside, whatever a domain's owner has put
// there.
func Learnable(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsValid() && !isPrivate(a) && !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast() &&
		a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// meansUp guesses from two of three signs, so that the findings name the third.
func (v *verifier) meansUp() bool {
	logs := func(p Prefix) bool {
		return slices.ContainsFunc(v.rules, func(r Rule) bool { return r.Log == p })
	}
	signs := 0
	for _, sign := range []bool{v.table.Output.Policy == Drop, logs(LogBlocked), !logs(LogBypass)} {
		if sign {
			signs++
		}
	}
	return signs >= 2
}

// exactly compares with the table as it should be. Elements are not compared.
func (v *verifier) exactly(want *Table) {
	for i := range want.Sets {
		w := &want.Sets[i]
		if h := v.table.Set(w.Name); h == nil {
			v.findings.add("%s set missing", w.Name)
		} else if !h.sameDefinition(w) {
			v.findings.add("set %s has another definition", w.Name)
		}
	}
	for _, s := range v.table.Sets {
		if want.Set(s.Name) == nil {
			v.findings.add("unknown set %s", s.Name)
		}
	}
	if len(v.table.Sets) > len(want.Sets) {
		v.findings.add("more sets than there should be")
	}
	v.policies(want.Output.Policy)
	for _, c := range []struct {
		name       string
		have, want []Rule
	}{
		{OutputHook, v.rules, want.Output.Rules},
		{InputHook, v.table.Input.Rules, want.Input.Rules},
	} {
		before := len(v.findings)
		for _, r := range c.want {
			if !slices.ContainsFunc(c.have, r.Equal) {
				v.findings.add("%s", missing(c.name, r))
			}
		}
		for _, r := range c.have {
			if !slices.ContainsFunc(c.want, r.Equal) {
				v.findings.add("unexpected rule in %s: %s", c.name, r)
			}
		}
		if len(v.findings) == before && !slices.EqualFunc(c.have, c.want, Rule.Equal) {
			v.findings.add("rules of %s are repeated or in another order", c.name)
		}
	}
}

// missing is the finding for a rule that is not there.
func missing(chain string, r Rule) string {
	switch {
	case r.Limit != (Limit{}) && r.Log == "":
	case r.Log == LogBypass:
		return "bypass nflog prefix missing"
	case r.Log == LogPrivate:
		return missingRefusal(r.Match[0])
	case chain == OutputHook && len(r.Match) == 0:
		return "terminal deny-all rule missing"
	}
	return fmt.Sprintf("rule missing in %s: %s", chain, r)
}

func missingRefusal(m Match) string {
	if p, ok := m.(Daddr); ok {
		return fmt.Sprintf("Private-range reject rule for %s missing", netip.Prefix(p))
	}
	return fmt.Sprintf("reject rule for %s missing", matchText(m))
}

func (v *verifier) policies(output Verdict) {
	if v.table.Output.Policy != output {
		if output == Drop {
			v.findings.add("policy is not drop")
		} else {
			v.findings.add("output policy is not accept")
		}
	}
	if v.table.Input.Policy != Drop {
		v.findings.add("input policy is not drop")
	}
}

// portTo recognises a rule that opens a port of one address.
func (r Rule) portTo() (DPort, netip.Addr, bool) {
	if !r.plain(Accept) || len(r.Match) != 2 {
		return DPort{}, netip.Addr{}, false
	}
	port, ok := r.Match[0].(DPort)
	addr, isAddr := r.Match[1].(Daddr)
	return port, netip.Prefix(addr).Addr(), ok && isAddr && netip.Prefix(addr).IsSingleIP()
}

// plain reports whether r is nothing but matches and the verdict.
func (r Rule) plain(v Verdict) bool {
	return r.Verdict == v && r.Limit == Limit{} && r.Log == "" && !r.Counted
}

// refuses reports whether r stops whatever it matches, whether logged or not.
func (r Rule) refuses() bool {
	return (r.Verdict == Reject || r.Verdict == Drop) && r.Limit == Limit{}
}

// refused is the place of the first output rule that stops everything that m
// alone matches, or -1.
func (v *verifier) refused(m Match) int {
	return slices.IndexFunc(v.rules, func(r Rule) bool {
		return r.refuses() && len(r.Match) == 1 && r.Match[0] == m
	})
}

// checkKnown compares what is open with what may be.
func (v *verifier) checkKnown(dns netip.Addr, ports []uint16, hosts []netip.Addr) {
	switch {
	case v.known.NoDNS && dns.IsValid():
		v.findings.add("port 53 is open to %s, and no resolver should be", dns)
	case v.known.NoDNS && v.known.Ports == nil && slices.Contains(ports, 53):
		v.findings.add("port 53 is open and should not be")
	case !v.known.NoDNS && dns.IsValid() && v.known.DNS.IsValid() && dns != v.known.DNS:
		v.findings.add("port 53 is open to %s, not to the resolver %s", dns, v.known.DNS)
	}
	if v.known.Ports != nil {
		for _, p := range sortedUnique(ports) {
			if !slices.Contains(v.known.Ports, p) {
				v.findings.add("port %d is open and should not be", p)
			}
		}
	}
	hosts = slices.Clone(hosts)
	slices.SortFunc(hosts, netip.Addr.Compare)
	for _, h := range slices.Compact(hosts) {
		if err := checkHost(h); err != nil {
			v.findings.add("%s", err)
		} else if v.known.Hosts != nil && !slices.Contains(v.known.Hosts, h) {
			v.findings.add("ports are open to %s and should not be", h)
		}
	}
}

// Sets of the existing systems, without the family's suffix.
const (
	setOverride = "t10_override"
	setSecurity = "t20_security_deny"
	setProvider = "t30_provider_allow"
	setProject  = "t40_project_allow"
	setWindow   = "bypass_window" // later versions only
)

var (
	flatSets   = []string{setAllow, setDeny}
	tieredSets = []string{setOverride, setSecurity, setProvider, setProject, setWindow}

	// What the tiered tables refuse even where an override accepts…
	hardRanges = []Match{
		Daddr(netip.MustParsePrefix("169.254.0.0/16")),
		Daddr(netip.MustParsePrefix("fe80::/10")),
		Daddr(netip.MustParsePrefix("fd00:ec2::254/128")), // metadata service of a cloud
	}
	// …and what only an override can accept.
	softRanges = []Match{
		Daddr(netip.MustParsePrefix("10.0.0.0/8")),
		Daddr(netip.MustParsePrefix("172.16.0.0/12")),
		Daddr(netip.MustParsePrefix("192.168.0.0/16")),
		Daddr(netip.MustParsePrefix("fc00::/7")),
	}
)

func familyNames(bases ...string) (names []string) {
	for _, b := range bases {
		names = append(names, b+"_v4", b+"_v6")
	}
	return names
}

func inSets(base string) []Match {
	return []Match{DaddrIn{base + "_v4", false}, DaddrIn{base + "_v6", true}}
}

// gate is a pair of sets whose addresses may be accepted, with that log
// prefix, after all of those have been refused.
type gate struct {
	set   string
	log   Prefix
	after []Match
}

// flat verifies a table with allow and deny sets, in which allow comes first.
func (v *verifier) flat() State {
	v.sets(flatSets, nil)
	denied := inSets(setDeny)
	var private []Match
	for _, p := range privateRanges {
		private = append(private, Daddr(p))
	}
	log := v.bypassLog()
	if log < 0 {
		v.refusedAll(append(denied, private...), 0, len(v.rules))
		v.enforcing()
		v.accepts(gate{setAllow, LogAllowed, nil})
		return Up
	}
	v.policies(Accept)
	v.refusedAll(denied, 0, log)
	v.accepts()
	if !slices.ContainsFunc(private, func(m Match) bool { return v.refused(m) >= 0 }) {
		return Disengaged
	}
	v.refusedAll(private, log, len(v.rules))
	return Down
}

// tiered verifies a table whose sets are in order of precedence.
func (v *verifier) tiered() State {
	v.sets(tieredSets[:4], tieredSets[4:])
	all := slices.Concat(hardRanges, inSets(setSecurity), softRanges)
	log := v.bypassLog()
	if log < 0 {
		v.refusedAll(all, 0, len(v.rules))
		v.enforcing()
		v.accepts(gate{setOverride, LogAllowed, hardRanges}, gate{setProvider, LogAllowed, all},
			gate{setProject, LogAllowed, all}, gate{setWindow, LogBypass, all})
		return Up
	}
	v.policies(Accept)
	if !slices.ContainsFunc(all, func(m Match) bool { return v.refused(m) >= 0 }) {
		v.accepts()
		return Disengaged
	}
	v.refusedAll(all, 0, log)
	v.accepts(gate{setOverride, LogBypass, hardRanges})
	return Down
}

// sets checks that there are exactly those sets, of their families.
func (v *verifier) sets(required, optional []string) {
	for _, name := range familyNames(required...) {
		if v.table.Set(name) == nil {
			v.findings.add("%s set missing", name)
		}
	}
	known := append(familyNames(required...), familyNames(optional...)...)
	var seen []string
	for _, s := range v.table.Sets {
		switch {
		case !slices.Contains(known, s.Name):
			v.findings.add("unknown set %s", s.Name)
		case slices.Contains(seen, s.Name):
			v.findings.add("set %s is there twice", s.Name)
		case s.V6 != strings.HasSuffix(s.Name, "_v6"):
			v.findings.add("set %s is of the other address family", s.Name)
		case s.Expiring && (strings.HasPrefix(s.Name, setDeny) || strings.HasPrefix(s.Name, setSecurity)):
			v.findings.add("set %s forgets what is denied", s.Name)
		}
		seen = append(seen, s.Name)
	}
}

// bypassLog is the place of the rule that logs what a table in Down or
// Disengaged lets pass, or -1.
func (v *verifier) bypassLog() int {
	return slices.IndexFunc(v.rules, func(r Rule) bool {
		return r.Verdict == Continue && r.Limit == Limit{} && (r.Log == LogBypass || r.Log == LogDown) &&
			slices.Equal(r.Match, []Match{CTNew})
	})
}

// enforcing checks what a table needs that lets out only what it lists.
func (v *verifier) enforcing() {
	v.policies(Drop)
	if len(v.rules) == 0 {
		v.findings.add("terminal deny-all rule missing")
		return
	}
	last := v.rules[len(v.rules)-1]
	if len(last.Match) > 0 || !last.refuses() {
		v.findings.add("terminal deny-all rule missing")
	} else if last.Log != LogBlocked {
		v.findings.add("blocked nflog prefix missing")
	}
}

// refusedAll checks that rules in [from, to) refuse all of those.
func (v *verifier) refusedAll(all []Match, from, to int) {
	for _, m := range all {
		if at := v.refused(m); at < 0 {
			v.findings.add("%s", missingRefusal(m))
		} else if at < from || at >= to {
			v.findings.add("reject rule for %s is in the wrong place", matchText(m))
		}
	}
}

// accepts checks that every rule that accepts is of a known narrow form.
func (v *verifier) accepts(gates ...gate) {
	var (
		lo, established bool
		nd              []ICMPv6
		dns, dnsTCP     netip.Addr
		tcp             []DPort
		tcpTo           []netip.Addr
	)
	for i, r := range v.rules {
		if r.Verdict != Accept {
			continue
		}
		if port, addr, ok := r.portTo(); ok {
			switch {
			case port.Proto == TCP:
				tcp, tcpTo = append(tcp, port), append(tcpTo, addr)
				continue
			case port == DPort{UDP, 53} && (!dns.IsValid() || dns == addr):
				if err := checkUnicast("dns server", addr); err != nil {
					v.findings.add("%s", err)
				}
				dns = addr
				continue
			}
		}
		if r.plain(Accept) && len(r.Match) == 1 {
			switch m := r.Match[0]; m {
			case OIf("lo"):
				lo = true
				continue
			case CTEstablished | CTRelated:
				established = true
				continue
			case NDRouterSolicit, NDNeighborSolicit, NDNeighborAdvert:
				nd = append(nd, m.(ICMPv6))
				continue
			}
		}
		if !v.gated(i, r, gates) {
			v.findings.add("unexpected rule in %s: %s", OutputHook, r)
		}
	}
	if !lo {
		v.findings.add("rule missing in %s: %s", OutputHook, accept(OIf("lo")))
	}
	if !established {
		v.findings.add("rule missing in %s: %s", OutputHook, accept(CTEstablished|CTRelated))
	}
	// Neighbour discovery is open as a whole or not at all.
	slices.Sort(nd)
	if nd = slices.Compact(nd); len(nd) != 0 && len(nd) != 3 {
		v.findings.add("neighbour discovery is open in parts only")
	}
	var ports []uint16
	var hosts []netip.Addr
	for i, port := range tcp {
		if port.Port == 53 && tcpTo[i] == dns {
			dnsTCP = dns
			continue
		}
		ports, hosts = append(ports, port.Port), append(hosts, tcpTo[i])
	}
	if dns != dnsTCP {
		v.findings.add("port 53 of %s is open over udp but not over tcp", dns)
	}
	v.checkKnown(dns, ports, hosts)
	v.input()
}

// gated reports whether rule i accepts the addresses of a gate's set. What
// must be refused before is added to the findings.
func (v *verifier) gated(i int, r Rule, gates []gate) bool {
	if r.Limit != (Limit{}) || len(r.Match) != 1 {
		return false
	}
	for _, g := range gates {
		if r.Log != g.log || !slices.Contains(inSets(g.set), r.Match[0]) || v.table.Set(r.Match[0].(DaddrIn).Set) == nil {
			continue
		}
		for _, m := range g.after {
			// A rule that is missing altogether is reported elsewhere.
			if v.refused(m) > i {
				v.findings.add("%s is accepted before %s is rejected", matchText(r.Match[0]), matchText(m))
			}
		}
		return true
	}
	return false
}

// input checks the input chain of the existing systems' tables.
func (v *verifier) input() {
	for _, r := range v.table.Input.Rules {
		if r.Verdict != Accept {
			continue
		}
		known := r.plain(Accept) && len(r.Match) == 1
		if known {
			switch r.Match[0] {
			case IIf("lo"), CTEstablished | CTRelated, NDRouterAdvert, NDNeighborSolicit, NDNeighborAdvert:
			default:
				known = false
			}
		}
		if !known {
			v.findings.add("unexpected rule in %s: %s", InputHook, r)
		}
	}
}
