package nft

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/terok-ai/terok-box/nl/ruleset"
)

// randomTable is any table of the dialect that nft accepts.
func randomTable(r *rand.Rand) *ruleset.Table {
	t := &ruleset.Table{}
	for i := range r.IntN(5) {
		t.Sets = append(t.Sets, randomSet(r, fmt.Sprintf("set%d_%d", i, r.IntN(3))))
	}
	t.Output = randomChain(r, t.Sets)
	t.Input = randomChain(r, t.Sets)
	return t
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func randomSet(r *rand.Rand, name string) ruleset.Set {
	s := ruleset.Set{Name: name, V6: r.IntN(2) == 0, Interval: r.IntN(3) > 0, Expiring: r.IntN(3) == 0}
	if s.Expiring && r.IntN(2) == 0 {
		s.Timeout = time.Duration(1+r.IntN(1e6)) * time.Minute
	}
	if s.Interval && r.IntN(20) == 0 {
		s.Elements = []ruleset.Element{{Range: ruleset.RangeOf(netip.PrefixFrom(randomAddr(r, s.V6), 0))}}
		return s
	}
	// A dense small space makes neighbours and both ends of the whole space
	// likely.
	for range r.IntN(12) {
		e := ruleset.Element{}
		e.From = randomAddr(r, s.V6)
		e.To = e.From
		switch {
		case !s.Interval:
		case r.IntN(2) == 0:
			e.Range = ruleset.RangeOf(netip.PrefixFrom(e.From, e.From.BitLen()-r.IntN(12)))
		case r.IntN(2) == 0 && e.From.Next().IsValid():
			e.To = e.From.Next()
		}
		if s.Expiring && r.IntN(2) == 0 {
			e.Timeout = time.Duration(10+r.IntN(1e5)) * time.Second
		}
		if !slices.ContainsFunc(s.Elements, func(o ruleset.Element) bool { return o.Overlaps(e.Range) }) {
			s.Elements = append(s.Elements, e)
		}
	}
	return s
}

func randomAddr(r *rand.Rand, v6 bool) netip.Addr {
	b := make([]byte, addrSize(v6))
	switch r.IntN(4) {
	case 0: // low
	case 1:
		for i := range b {
			b[i] = 0xff
		}
	default:
		for i := range b {
			b[i] = byte(r.Uint32())
		}
	}
	if r.IntN(2) == 0 {
		b[len(b)-1] = byte(r.IntN(16))
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func randomChain(r *rand.Rand, sets []ruleset.Set) ruleset.Chain {
	c := ruleset.Chain{Policy: pick(r, ruleset.Accept, ruleset.Drop)}
	for range r.IntN(10) {
		c.Rules = append(c.Rules, randomRule(r, sets))
	}
	return c
}

func randomRule(r *rand.Rand, sets []ruleset.Set) ruleset.Rule {
	var rule ruleset.Rule
	v6 := r.IntN(2) == 0
	proto := pick(r, ruleset.TCP, ruleset.UDP)
	var possible []ruleset.Match
	add := func(m ruleset.Match) { possible = append(possible, m) }
	add(ruleset.OIf(pick(r, "lo", "eth0", "a", "fifteen-letters")))
	add(ruleset.CT(1 + r.IntN(15)))
	addr := randomAddr(r, v6)
	add(ruleset.Daddr(netip.PrefixFrom(addr, r.IntN(addr.BitLen()+1)).Masked()))
	if v6 && r.IntN(2) == 0 {
		add(ruleset.ICMPv6(r.IntN(256)))
	} else {
		add(ruleset.DPort{Proto: proto, Port: uint16(r.IntN(65536))})
	}
	for _, s := range sets {
		if s.V6 == v6 {
			add(pick[ruleset.Match](r, ruleset.DaddrIn{Set: s.Name, V6: v6}, ruleset.SaddrIn{Set: s.Name, V6: v6}))
			break
		}
	}
	r.Shuffle(len(possible), func(i, j int) { possible[i], possible[j] = possible[j], possible[i] })
	rule.Match = possible[:r.IntN(min(4, len(possible)+1))]
	if r.IntN(3) == 0 {
		rule.Limit = ruleset.Limit{Over: r.IntN(2) == 0, Rate: 1 + r.Uint64N(1000), Burst: 1 + r.Uint32N(1000)}
	}
	if r.IntN(2) == 0 {
		rule.Log = pick(r, ruleset.LogBlocked, ruleset.LogDenied, ruleset.LogPrivate, ruleset.LogAllowed,
			ruleset.LogBypass, ruleset.LogDown, ruleset.LogQuarantine)
	}
	rule.Counted = r.IntN(2) == 0
	rule.Verdict = pick(r, ruleset.Accept, ruleset.Drop, ruleset.Reject, ruleset.Continue)
	if rule.Verdict == ruleset.Continue && rule.Log == "" {
		rule.Verdict = ruleset.Drop
	}
	return rule
}
