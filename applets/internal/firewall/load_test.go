package firewall

import (
	"net/netip"
	"testing"

	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// BenchmarkLoad is what a hook does before it touches the kernel.
func BenchmarkLoad(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(netip.AddrFrom4([4]byte{byte(n >> 8), byte(n)}).String(), func(b *testing.B) {
			var p ruleset.Params
			for i := range n {
				p.Allow = append(p.Allow, netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 7), byte(i << 1), 1}), 32))
			}
			table, err := ruleset.Build(ruleset.Up, p)
			if err != nil {
				b.Fatal(err)
			}
			d, err := bundle.Create(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			defer d.Close()
			if err := d.SetRuleset(table.String()); err != nil {
				b.Fatal(err)
			}
			if err := d.SetProfileAllowed(p.Allow); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := Load(d); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
