package ruleset

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParamsOf(t *testing.T) {
	slirp := Params{DNS: addr("10.0.2.3"), Ports: []uint16{8080, 9418}, Hosts: []netip.Addr{addr("10.0.2.2"), addr("fd00::2")}}
	for name, want := range map[string]Params{
		"r1-up-pasta-static.nft": {DNS: addr("169.254.1.1")},
		"r1-up-pasta-port.nft":   {DNS: addr("169.254.1.1"), Ports: []uint16{65535}, Hosts: []netip.Addr{addr("169.254.1.2")}},
		// Host loopback, opened there too, is another container's under slirp4netns.
		"r1-up-slirp-ports.nft": slirp,
		"r1-quarantine.nft":     {},
		"r2-up.nft":             {DNS: addr("169.254.1.1"), Ports: []uint16{8080}, Hosts: []netip.Addr{addr("169.254.1.2")}},
	} {
		got, err := ParamsOf(parse(t, sample(t, name)))
		if diff := cmp.Diff(want, got, exact, cmpopts.EquateEmpty()); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
	for _, s := range []State{Up, Down, Disengaged} {
		got, err := ParamsOf(build(t, s, slirp))
		if diff := cmp.Diff(slirp, got, exact, cmpopts.EquateEmpty()); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", s, err, diff)
		}
	}
	slirp.Lifetime = 90 * time.Minute
	for _, s := range []State{Up, Down, Disengaged} {
		for _, table := range []*Table{build(t, s, slirp), parse(t, build(t, s, slirp).String())} {
			got, err := ParamsOf(table)
			if diff := cmp.Diff(slirp, got, exact, cmpopts.EquateEmpty()); diff != "" || err != nil {
				t.Errorf("%s: %v (-want +got):\n%s", s, err, diff)
			}
		}
	}
	odd := &Table{Output: Chain{Rules: []Rule{accept(DPort{UDP, 123}, host(addr("10.0.0.1")))}}}
	if p, err := ParamsOf(odd); err == nil {
		t.Errorf("udp port 123: %+v", p)
	}
}

// With whatever is allowed and denied, in our tables and in those that look
// into the allow sets first: nothing that is denied gets out, everything else
// that is allowed does, and the table is still in its state.
func TestWithAddresses(t *testing.T) {
	for seed := range uint64(300) {
		r := newRandom(seed)
		allow, deny := append(r.prefixes(), r.prefixes()...), r.prefixes()
		for _, before := range []*Table{
			build(t, Up, full), parse(t, sample(t, "r1-up-pasta-static.nft")), parse(t, sample(t, "r1-up-pasta-dnsmasq.nft")),
		} {
			text := before.String()
			after := WithAddresses(before, allow, deny)
			if before.String() != text {
				t.Fatalf("seed %d: the original is changed", seed)
			}
			if s, err := Verify(parse(t, after.String()), Known{}); s != Up {
				// An allow set of ours holds prefixes only, and so it is built.
				t.Fatalf("seed %d: %s, %v\n%s", seed, s, err, after)
			}
			in := func(list []netip.Prefix, a netip.Addr) bool {
				return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
			}
			for range 100 {
				p := packet{oif: "eth0", daddr: r.addr(r.IntN(2) == 0), proto: TCP, port: 443, ct: CTNew}
				if got, want := after.accepted(p), in(allow, p.daddr) && !in(deny, p.daddr); got != want {
					t.Fatalf("seed %d: %s: %v, want %v\n%s", seed, p, got, want, after)
				}
			}
		}
	}
}
