package nft

import (
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/ruleset"
)

func TestLeak(t *testing.T) {
	a, b := kerneltest.NewNS(t), kerneltest.NewNS(t)
	kerneltest.Pair(t, a, b)
	c := dialIn(t, a)
	p := ruleset.Params{
		Allow: prefixes("198.51.100.7/32", "198.51.100.64/28", "2001:db8:1::/48"),
		Deny:  prefixes("198.51.100.66/32", "2001:db8:1::66/128"),
	}
	more := p
	more.Allow = append(hosts(50, 20), p.Allow...)
	more.Deny = append(hosts(50, 21), p.Deny...)
	count(kerneltest.ListenUDP(t, b, netip.MustParseAddrPort("198.51.100.66:9")))
	count(kerneltest.ListenUDP(t, b, netip.MustParseAddrPort("[2001:db8:1::66]:9")))
	pp := map[string]*ruleset.Table{}
	for _, s := range states {
		pp[s.String()] = build(t, s, p)
		pp[s.String()+"+"] = build(t, s, more)
	}
	q := *pp["quarantine"]
	q.Sets = pp["up"].Sets
	pp["qsets"] = &q
	qe := q
	qe.Sets = build(t, ruleset.Up, ruleset.Params{}).Sets
	pp["qempty"] = &qe
	nodeny := p
	nodeny.Deny, nodeny.Allow = nil, prefixes("2001:db9::/48", "198.51.100.7/32")
	pp["upnodeny"] = build(t, ruleset.Up, nodeny)
	u := *pp["up"]
	u.Sets = append(u.Sets[:len(u.Sets):len(u.Sets)], ruleset.Set{Name: "extra"})
	pp["upextra"] = &u
	pairs := [][2]string{{"up", "qempty"}, {"down", "qempty"}, {"down", "upnodeny"}, {"up", "upnodeny"}, {"up", "quarantine"}, {"down", "quarantine"}}
	_ = os.Args
	for _, pr := range pairs {
		c.Apply(pp[pr[0]])
		s := send(t, a, netip.MustParseAddrPort("198.51.100.66:9"))
		s2 := send(t, a, netip.MustParseAddrPort("[2001:db8:1::66]:9"))
		var leaks [2]int64
		for i := range 600 {
			before := s.sent.Load() + s2.sent.Load()
			if err := c.Apply(pp[pr[(i+1)%2]]); err != nil {
				t.Fatal(err)
			}
			leaks[(i+1)%2] += s.sent.Load() + s2.sent.Load() - before
		}
		s.end(t)
		s2.end(t)
		fmt.Println(pr, "to first:", leaks[0], "to second:", leaks[1], "refused", s.refused.Load()+s2.refused.Load())
	}
}
