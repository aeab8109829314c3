package nft

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/ruleset"
)

// hosts are n different public-looking addresses, none next to another.
func hosts(n int, seed uint64) []netip.Prefix {
	r := rand.New(rand.NewPCG(seed, 0))
	seen := map[uint32]bool{}
	var p []netip.Prefix
	for len(p) < n {
		a := r.Uint32()&^1 | 1<<27
		if seen[a] {
			continue
		}
		seen[a] = true
		p = append(p, netip.PrefixFrom(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, a))), 32))
	}
	return p
}

// BenchmarkApply is what a hook does: connect to a fresh namespace, look, apply
// and read back.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			want := build(b, ruleset.Up, ruleset.Params{DNS: params.DNS, Allow: hosts(n, 1)})
			for b.Loop() {
				b.StopTimer()
				ns := kerneltest.NewNS(b)
				b.StartTimer()
				err := ns.Do(func() error {
					c, err := Dial()
					if err != nil {
						return err
					}
					defer c.Close()
					return c.Apply(want)
				})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				ns.Close()
				b.StartTimer()
			}
		})
	}
}

// BenchmarkChange allows one more address and takes it away again, on a table
// that has 100.
func BenchmarkChange(b *testing.B) {
	ns := kerneltest.NewNS(b)
	c := dialIn(b, ns)
	p := ruleset.Params{DNS: params.DNS, Allow: hosts(101, 1)}
	more := build(b, ruleset.Up, p)
	p.Allow = p.Allow[:100]
	fewer := build(b, ruleset.Up, p)
	for i := 0; b.Loop(); i++ {
		want := more
		if i%2 == 0 {
			want = fewer
		}
		if err := c.Apply(want); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkList reads a table with 100 addresses.
func BenchmarkList(b *testing.B) {
	ns := kerneltest.NewNS(b)
	c := dialIn(b, ns)
	if err := c.Apply(build(b, ruleset.Up, ruleset.Params{Allow: hosts(100, 1)})); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := c.List(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkNFT loads the same table with nft, for comparison. In a namespace
// of an ordinary user it cannot load 10,000 addresses.
func BenchmarkNFT(b *testing.B) {
	text := build(b, ruleset.Up, ruleset.Params{DNS: params.DNS, Allow: hosts(100, 1)}).String()
	for b.Loop() {
		b.StopTimer()
		ns := kerneltest.NewNS(b)
		b.StartTimer()
		kerneltest.NFT(b, ns, text, "-f", "-")
		b.StopTimer()
		ns.Close()
		b.StartTimer()
	}
}
