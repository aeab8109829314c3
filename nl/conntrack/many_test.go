package conntrack

import (
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nft"
)

// flows has a namespace track n connections to an address and returns how many
// the kernel took.
func flows(t testing.TB, ns *netns.NS, to netip.Addr, n int) {
	t.Helper()
	var c *net.UDPConn
	if err := ns.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", &net.UDPAddr{})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range n {
		if _, err := c.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(to, uint16(1+i%65000))); err != nil {
			t.Fatalf("flow %d: %v", i, err)
		}
	}
}

// A container may have as many connections as the kernel tracks. Ending them
// takes neither memory for each nor for ever.
func TestCutMany(t *testing.T) {
	inside, _, fw, ct := container(t)
	const n = 40_000
	addr, other := netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("203.0.113.8")
	if err := fw.Learn([]nft.Learned{{Addr: addr, Timeout: time.Minute}, {Addr: other, Timeout: time.Minute}}); err != nil {
		t.Fatal(err)
	}
	flows(t, inside, addr, n)
	flows(t, inside, other, 10)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	got, err := ct.Cut([]netip.Addr{addr})
	runtime.ReadMemStats(&after)
	if got != n || err != nil {
		t.Errorf("cut %d: %v; want %d", got, err, n)
	}
	t.Logf("%d in %v", got, time.Since(start))
	if n := after.TotalAlloc - before.TotalAlloc; n > 24<<20 { // garbage, for the most part
		t.Errorf("%d bytes allocated", n)
	}
	if got, err := ct.Cut([]netip.Addr{addr}); got != 0 || err != nil {
		t.Errorf("cut %d again: %v", got, err)
	}
	if got, err := ct.Cut([]netip.Addr{other}); got != 10 || err != nil {
		t.Errorf("of the other address %d: %v", got, err)
	}
}
