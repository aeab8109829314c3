package firewall

import (
	"net/netip"
	"testing"

	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/nl/ruleset"
)

func TestMain(m *testing.M) { kerneltest.Main(m) }

// A container that scans is blocked as before, but only so many of its packets
// are logged: the existing systems log every one.
func TestFloodIsNotLogged(t *testing.T) {
	a, b := kerneltest.NewNS(t), kerneltest.NewNS(t)
	kerneltest.Pair(t, a, b)
	var conn *nft.Conn
	if err := a.Do(func() (err error) { conn, err = nft.Dial(); return err }); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	table, err := ruleset.Build(ruleset.Up, ruleset.Params{Deny: []netip.Prefix{netip.MustParsePrefix("203.0.113.9/32")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Apply(table); err != nil {
		t.Fatal(err)
	}
	const packets = 3000
	for _, to := range []string{"203.0.113.1:9", "203.0.113.9:9", "[2001:db8:1::1]:9"} {
		for range packets {
			if err := kerneltest.SendUDP(a, netip.MustParseAddrPort(to)); err == nil {
				t.Fatalf("a packet to %s got out", to)
			}
		}
	}
	got, err := conn.List()
	if err != nil {
		t.Fatal(err)
	}
	logged, quiet := map[ruleset.Prefix]uint64{}, uint64(0)
	for _, r := range got.Output.Rules {
		switch {
		case r.Log != "" && r.Counted:
			logged[r.Log] += r.Packets
		case r.Limit.Over:
			quiet += r.Packets
		}
	}
	// The kernel adds a few of its own: multicast listener reports.
	if sum := logged[ruleset.LogBlocked] + logged[ruleset.LogDenied] + quiet; sum < 3*packets || sum > 3*packets+100 {
		t.Errorf("%v logged and %d not, of %d", logged, quiet, 3*packets)
	}
	for _, p := range []ruleset.Prefix{ruleset.LogBlocked, ruleset.LogDenied} {
		if n := logged[p]; n < ruleset.LogBurst || n > packets/2 {
			t.Errorf("%q: %d packets were logged", p, n)
		}
	}
}
