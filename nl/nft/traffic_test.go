package nft

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/ruleset"
)

// sender sends datagrams from a namespace to one address without pause.
type sender struct {
	sent, refused atomic.Int64
	stop          chan struct{}
	done          chan error
}

func send(t testing.TB, ns *netns.NS, to netip.AddrPort) *sender {
	t.Helper()
	var conn *net.UDPConn
	if err := ns.Do(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	s := &sender{stop: make(chan struct{}), done: make(chan error, 1)}
	go func() {
		defer conn.Close()
		for {
			select {
			case <-s.stop:
				s.done <- nil
				return
			default:
			}
			switch _, err := conn.Write([]byte("x")); {
			case err == nil:
				s.sent.Add(1)
			case errors.Is(err, unix.EPERM), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES):
				s.refused.Add(1)
			default:
				s.done <- err
				return
			}
		}
	}()
	return s
}

func (s *sender) end(t testing.TB) {
	t.Helper()
	close(s.stop)
	if err := <-s.done; err != nil {
		t.Error(err)
	}
}

// count counts what arrives at a socket until it is closed.
func count(c *net.UDPConn) *atomic.Int64 {
	var n atomic.Int64
	go func() {
		b := make([]byte, 16)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
			n.Add(1)
		}
	}()
	return &n
}

// settled is a count that does not grow any more: on a busy machine what has
// arrived waits in a socket's buffer to be counted.
func settled(n *atomic.Int64) int64 {
	for {
		before := n.Load()
		time.Sleep(100 * time.Millisecond)
		if n.Load() == before {
			return before
		}
	}
}

// With packets sent all the time, a transition lets nothing through that is
// closed before and after it, and cuts nothing that is open before and after.
// The existing systems build the new table after deleting the old one, or add
// denied addresses later.
func TestTransitionsUnderTraffic(t *testing.T) {
	a, b := kerneltest.NewNS(t), kerneltest.NewNS(t)
	kerneltest.Pair(t, a, b)
	c := dialIn(t, a)

	never := []string{"198.51.100.66", "[2001:db8:1::66]"} // denied in every state
	private := "10.1.2.3"                                  // blocked up and down
	always := []string{"198.51.100.7", "[2001:db8:1::7]"}  // allowed in up and down
	p := ruleset.Params{
		Allow: prefixes("198.51.100.7/32", "198.51.100.64/28", "2001:db8:1::/48"),
		Deny:  prefixes("198.51.100.66/32", "2001:db8:1::66/128"),
	}
	more := p
	more.Allow = append(hosts(50, 20), p.Allow...)
	more.Deny = append(hosts(50, 21), p.Deny...)
	if err := c.Apply(build(t, ruleset.Up, p)); err != nil {
		t.Fatal(err)
	}

	arrived := map[string]*atomic.Int64{}
	senders := map[string]*sender{}
	for _, addr := range slices.Concat(never, always, []string{private}) {
		to := netip.MustParseAddrPort(addr + ":9")
		arrived[addr] = count(kerneltest.ListenUDP(t, b, to))
		senders[addr] = send(t, a, to)
	}
	flip := func(n int, tables ...*ruleset.Table) {
		t.Helper()
		for i := range n {
			if err := c.Apply(tables[i%len(tables)]); err != nil {
				t.Fatal(err)
			}
		}
	}

	// Open before and after: nothing is refused.
	flip(200, build(t, ruleset.Up, more), build(t, ruleset.Down, p), build(t, ruleset.Up, p), build(t, ruleset.Disengaged, more))
	for _, addr := range always {
		if n := senders[addr].refused.Load(); n != 0 {
			t.Errorf("%d packets to the allowed %s were refused", n, addr)
		}
	}
	// Not disengaged, which lets private addresses through. In the last two the
	// denied addresses are only blocked, so that the others have to deny and
	// open at once.
	if err := c.Apply(build(t, ruleset.Up, p)); err != nil {
		t.Fatal(err)
	}
	before := settled(arrived[private])
	blocked := ruleset.Params{Allow: p.Allow[:1]}
	flip(300, build(t, ruleset.Down, more), build(t, ruleset.Quarantine, p), build(t, ruleset.Up, p),
		build(t, ruleset.Up, blocked), build(t, ruleset.Down, p), build(t, ruleset.Up, blocked), build(t, ruleset.Up, more))
	for _, s := range senders {
		s.end(t)
	}
	if n := settled(arrived[private]) - before; n != 0 {
		t.Errorf("%d packets arrived at the private %s", n, private)
	}
	for _, addr := range never {
		if n := arrived[addr].Load(); n != 0 {
			t.Errorf("%d packets arrived at the denied %s", n, addr)
		}
		if senders[addr].sent.Load() != 0 || senders[addr].refused.Load() < 1000 {
			t.Errorf("to the denied %s: %d sent, %d refused", addr, senders[addr].sent.Load(), senders[addr].refused.Load())
		}
	}
	for _, addr := range always {
		if arrived[addr].Load() < 1000 {
			t.Errorf("only %d packets arrived at the allowed %s: this test shows nothing", arrived[addr].Load(), addr)
		}
	}
}

// The states as a program in the container meets them.
func TestStatesUnderTraffic(t *testing.T) {
	a, b := kerneltest.NewNS(t), kerneltest.NewNS(t)
	kerneltest.Pair(t, a, b)
	c := dialIn(t, a)
	p := ruleset.Params{
		DNS:   netip.MustParseAddr("198.51.100.53"),
		Allow: prefixes("198.51.100.7/32", "10.0.0.7/32", "2001:db8:1::7/128", "198.51.100.66/32"),
		Deny:  prefixes("198.51.100.66/32", "2001:db8:1::66/128"),
	}
	destinations := []string{"198.51.100.7:9", "10.0.0.7:9", "[2001:db8:1::7]:9", "198.51.100.66:9", "[2001:db8:1::66]:9",
		"198.51.100.1:9", "[2001:db8:1::1]:9", "10.0.0.1:9", "198.51.100.53:53", "198.51.100.53:54"}
	for state, open := range map[ruleset.State][]bool{
		ruleset.Up:         {true, true, true, false, false, false, false, false, true, false},
		ruleset.Down:       {true, true, true, false, false, true, true, false, true, true},
		ruleset.Disengaged: {true, true, true, false, false, true, true, true, true, true},
		ruleset.Quarantine: {false, false, false, false, false, false, false, false, false, false},
	} {
		if err := c.Apply(build(t, state, p)); err != nil {
			t.Fatal(err)
		}
		for i, d := range destinations {
			err := kerneltest.SendUDP(a, netip.MustParseAddrPort(d))
			if open[i] != (err == nil) || err != nil && !errors.Is(err, unix.EPERM) {
				t.Errorf("%s: to %s: %v", state, d, err)
			}
		}
	}
	// A denied address cuts a connection that is there.
	l := kerneltest.ListenTCP(t, b, netip.MustParseAddrPort("198.51.100.7:80"))
	if err := c.Apply(build(t, ruleset.Up, p)); err != nil {
		t.Fatal(err)
	}
	var conn net.Conn
	if err := a.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", "198.51.100.7:80", 5*time.Second)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	p.Deny = append(p.Deny, p.Allow[0])
	if err := c.Apply(build(t, ruleset.Up, p)); err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write([]byte("x"))
	_ = peer.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if n, err := peer.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Error("data gets through to an address that was denied meanwhile")
	}
	if err := kerneltest.DialTCP(a, netip.MustParseAddrPort("198.51.100.1:80"), 5*time.Second); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("blocked TCP: %v", err)
	}
}
