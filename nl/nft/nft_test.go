package nft

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/ruleset"
)

// equal compares tables as they are meant: without counters and remaining
// times, addresses by value.
var equal = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b ruleset.Daddr) bool { return a == b }),
	cmpopts.IgnoreFields(ruleset.Rule{}, "Packets", "Bytes"),
	cmpopts.IgnoreFields(ruleset.Element{}, "Expires"),
	cmpopts.EquateEmpty(),
}

// dialIn connects to a namespace.
func dialIn(t testing.TB, ns *netns.NS) *Conn {
	t.Helper()
	var c *Conn
	if err := ns.Do(func() (err error) {
		c, err = Dial()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func prefixes(s ...string) (p []netip.Prefix) {
	for _, s := range s {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

func build(t testing.TB, s ruleset.State, p ruleset.Params) *ruleset.Table {
	t.Helper()
	table, err := ruleset.Build(s, p)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

var params = ruleset.Params{
	DNS:   netip.MustParseAddr("169.254.1.1"),
	Ports: []uint16{8080, 443},
	Hosts: []netip.Addr{netip.MustParseAddr("169.254.1.2"), netip.MustParseAddr("fd00::2")},
	Allow: prefixes("198.51.100.7/32", "203.0.113.0/25", "203.0.113.128/25", "255.255.255.0/24", "2001:db8:1::/48", "ffff::/16"),
	Deny:  prefixes("0.0.0.0/8", "192.0.2.9/32", "2001:db8:2::1/128"),
}

var states = []ruleset.State{ruleset.Up, ruleset.Down, ruleset.Disengaged, ruleset.Quarantine}

// list(apply(t)) = t for every state, from every other one.
func TestTransitions(t *testing.T) {
	ns := kerneltest.NewNS(t)
	c := dialIn(t, ns)
	if have, err := c.List(); err != nil || have != nil {
		t.Fatalf("a fresh namespace lists %v, %v", have, err)
	}
	for _, from := range states {
		for _, to := range states {
			for _, s := range []ruleset.State{from, to} {
				want := build(t, s, params)
				if err := c.Apply(want); err != nil {
					t.Fatalf("%s to %s: %v", from, to, err)
				}
				have, err := c.List()
				if err != nil {
					t.Fatalf("%s to %s: %v", from, to, err)
				}
				if d := cmp.Diff(want, have, equal); d != "" {
					t.Fatalf("%s to %s (want, have):\n%s", from, to, d)
				}
			}
		}
	}
}
