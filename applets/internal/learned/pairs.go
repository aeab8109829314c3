package learned

import (
	"container/list"
	"net/netip"
	"slices"
	"time"

	"github.com/terok-ai/terok-box/wire/names"
)

// maxNames is how many names are remembered for one address: the first one
// and the latest. A container that asks for many names with one address
// cannot so make the first one disappear.
const maxNames = 16

// pairs remembers which names were answered with which addresses, up to a
// number; beyond, the ones that were answered longest ago are forgotten.
type pairs struct {
	most   int
	lru    *list.List // of *pair, the latest first
	byAddr map[netip.Addr][]*pair
}

type pair struct {
	addr    netip.Addr
	name    string
	at      time.Time
	learned bool
	place   *list.Element
}

func newPairs(most int) pairs {
	return pairs{most: most, lru: list.New(), byAddr: map[netip.Addr][]*pair{}}
}

func (p *pairs) add(addr netip.Addr, name string, learned bool, now time.Time) {
	of := p.byAddr[addr]
	if i := slices.IndexFunc(of, func(x *pair) bool { return x.name == name }); i >= 0 {
		x := of[i]
		x.at, x.learned = now, learned
		p.lru.MoveToFront(x.place)
		return
	}
	if len(of) >= maxNames {
		oldest := of[1]
		for _, x := range of[2:] {
			if x.at.Before(oldest.at) {
				oldest = x
			}
		}
		p.remove(oldest)
	}
	if p.lru.Len() >= p.most {
		p.remove(p.lru.Back().Value.(*pair))
	}
	x := &pair{addr: addr, name: name, at: now, learned: learned}
	x.place = p.lru.PushFront(x)
	p.byAddr[addr] = append(p.byAddr[addr], x)
}

func (p *pairs) remove(x *pair) {
	p.lru.Remove(x.place)
	same := func(y *pair) bool { return y == x }
	if rest := slices.DeleteFunc(p.byAddr[x.addr], same); len(rest) > 0 {
		p.byAddr[x.addr] = rest
	} else {
		delete(p.byAddr, x.addr)
	}
}

func (p *pairs) names(addr netip.Addr, now time.Time, allowed func(string) bool) []names.Name {
	of := slices.Clone(p.byAddr[addr])
	slices.SortStableFunc(of, func(a, b *pair) int { return b.at.Compare(a.at) })
	out := make([]names.Name, 0, len(of))
	for _, x := range of {
		out = append(out, names.Name{
			Name:    x.name,
			Allowed: x.learned && (allowed == nil || allowed(x.name)),
			Age:     int64(now.Sub(x.at) / time.Second),
		})
	}
	return out
}
