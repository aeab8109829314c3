package nflog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/nl/ruleset"
)

func openIn(t testing.TB, ns *netns.NS, buffer int) *Conn {
	t.Helper()
	var c *Conn
	if err := ns.Do(func() (err error) { c, err = open(ruleset.Group, buffer); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func apply(t testing.TB, ns *netns.NS, s ruleset.State, p ruleset.Params) {
	t.Helper()
	table, err := ruleset.Build(s, p)
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(func() error {
		c, err := nft.Dial()
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Apply(table)
	}); err != nil {
		t.Fatal(err)
	}
}

// logged is what a test compares of a packet.
type logged struct {
	Prefix string
	Flow   Flow
}

func (l logged) String() string { return fmt.Sprintf("%+v", l.Flow) }

// wait receives until there is a packet that is no noise.
func wait(t testing.TB, c *Conn) logged {
	t.Helper()
	var got []logged
	for len(got) == 0 {
		if err := c.Receive(func(p Packet) {
			f, err := Parse(p.Payload)
			if err != nil {
				t.Errorf("packet with prefix %q: %v", p.Prefix, err)
			}
			if !f.Noise() {
				got = append(got, logged{p.Prefix, f})
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	return got[0]
}

// What the firewall blocks or lets pass arrives with the rule's prefix and the
// destination, whatever the version of IP and the protocol.
func TestPacketsOfFirewall(t *testing.T) {
	a, b := kerneltest.NewNS(t), kerneltest.NewNS(t)
	kerneltest.Pair(t, a, b)
	apply(t, a, ruleset.Up, ruleset.Params{
		Allow: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")},
		Deny:  []netip.Prefix{netip.MustParsePrefix("203.0.113.66/32")},
	})
	c := openIn(t, a, receiveBuffer)
	udp := func(to string) func() error {
		return func() error { return kerneltest.SendUDP(a, netip.MustParseAddrPort(to)) }
	}
	tcp := func(to string) func() error {
		return func() error { return kerneltest.DialTCP(a, netip.MustParseAddrPort(to), time.Second) }
	}
	echo := func(domain, proto int, to unix.Sockaddr, typ byte) func() error {
		return func() error {
			return a.Do(func() error {
				fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				return unix.Sendto(fd, []byte{typ, 0, 0, 0, 0, 1, 0, 1}, 0, to)
			})
		}
	}
	v6 := netip.MustParseAddr("2001:db8:1::9").As16()
	for _, tt := range []struct {
		name   string
		send   func() error
		passes bool
		want   ruleset.Prefix
		dst    string
		flow   Flow
	}{
		{"udp", udp("198.51.100.7:9"), false, ruleset.LogBlocked, "198.51.100.7", Flow{Proto: UDP, DstPort: 9, ICMPType: -1, ICMPCode: -1}},
		{"tcp", tcp("198.51.100.7:443"), false, ruleset.LogBlocked, "198.51.100.7", Flow{Proto: TCP, DstPort: 443, ICMPType: -1, ICMPCode: -1}},
		{"udp 6", udp("[2001:db8:1::7]:9"), false, ruleset.LogBlocked, "2001:db8:1::7", Flow{Proto: UDP, DstPort: 9, ICMPType: -1, ICMPCode: -1}},
		{"tcp 6", tcp("[2001:db8:1::7]:80"), false, ruleset.LogBlocked, "2001:db8:1::7", Flow{Proto: TCP, DstPort: 80, ICMPType: -1, ICMPCode: -1}},
		{"icmp", echo(unix.AF_INET, ICMP, &unix.SockaddrInet4{Addr: [4]byte{198, 51, 100, 9}}, 8), false, ruleset.LogBlocked, "198.51.100.9", Flow{Proto: ICMP, ICMPType: 8}},
		{"icmp 6", echo(unix.AF_INET6, ICMPv6, &unix.SockaddrInet6{Addr: v6}, 128), false, ruleset.LogBlocked, "2001:db8:1::9", Flow{Proto: ICMPv6, ICMPType: 128}},
		{"denied", udp("203.0.113.66:9"), false, ruleset.LogDenied, "203.0.113.66", Flow{Proto: UDP, DstPort: 9, ICMPType: -1, ICMPCode: -1}},
		{"private", udp("10.1.2.3:9"), false, ruleset.LogPrivate, "10.1.2.3", Flow{Proto: UDP, DstPort: 9, ICMPType: -1, ICMPCode: -1}},
		{"allowed", udp("203.0.113.7:9"), true, ruleset.LogAllowed, "203.0.113.7", Flow{Proto: UDP, DstPort: 9, ICMPType: -1, ICMPCode: -1}},
	} {
		if err := tt.send(); (err == nil) != tt.passes {
			t.Fatalf("%s: send: %v", tt.name, err)
		}
		got := wait(t, c)
		tt.flow.Dst = netip.MustParseAddr(tt.dst)
		tt.flow.Src = kerneltest.A4
		if tt.flow.Dst.Is6() {
			tt.flow.Src = kerneltest.A6
		}
		if (got.Flow.SrcPort != 0) != (tt.flow.DstPort != 0) {
			t.Errorf("%s: source port %d", tt.name, got.Flow.SrcPort)
		}
		got.Flow.SrcPort = 0
		if diff := cmp.Diff(logged{string(tt.want), tt.flow}, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		// Some send a packet again: those are not the next test's.
		for drained := false; !drained; {
			n, err := c.read(false)
			drained = err == unix.EAGAIN
			for i := range n {
				c.take(c.datagram(i), func(Packet) {})
			}
		}
	}
	if c.Lost() != 0 {
		t.Errorf("%d packets lost", c.Lost())
	}
}

// The kernel gives the packets of a group to one reader only.
func TestSecondReader(t *testing.T) {
	ns := kerneltest.NewNS(t)
	first := openIn(t, ns, receiveBuffer)
	open := func() error {
		return ns.Do(func() error {
			c, err := Open(ruleset.Group)
			if err == nil {
				c.Close()
			}
			return err
		})
	}
	if err := open(); !errors.Is(err, ErrBusy) {
		t.Errorf("second reader: %v, want ErrBusy", err)
	}
	if err := ns.Do(func() error { c, err := Open(ruleset.Group + 1); c.Close(); return err }); err != nil {
		t.Errorf("reader of another group: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := open(); err != nil {
		t.Errorf("after the first has gone: %v", err)
	}
}

// Without the right to use netfilter nobody is told that somebody else reads.
func TestNoPrivilege(t *testing.T) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with this goroutine
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		err := unix.Capset(&head, &none[0])
		if err == nil {
			_, err = Open(ruleset.Group)
		}
		done <- err
	}()
	if err := <-done; !errors.Is(err, unix.EPERM) || errors.Is(err, ErrBusy) {
		t.Errorf("%v, want EPERM", err)
	}
}

// Close ends a Receive that waits.
func TestClose(t *testing.T) {
	c := openIn(t, kerneltest.NewNS(t), receiveBuffer)
	done := make(chan error)
	go func() { done <- c.Receive(func(Packet) { t.Error("packet from nowhere") }) }()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("%v, want os.ErrClosed", err)
	}
	if err := c.Receive(func(Packet) {}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v, want os.ErrClosed", err)
	}
}

// Interrupt ends a Receive that waits, and those to come, also where there are
// packets; none of these is lost.
func TestInterrupt(t *testing.T) {
	ns := kerneltest.NewNS(t)
	kerneltest.Pair(t, ns, kerneltest.NewNS(t))
	kerneltest.NFT(t, ns, flood, "-f", "-")
	c := openIn(t, ns, receiveBuffer)
	none := func(Packet) { t.Error("packet from nowhere") }
	done := make(chan error)
	go func() { done <- c.Receive(none) }()
	if err := c.Interrupt(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrInterrupted) {
		t.Errorf("%v, want ErrInterrupted", err)
	}
	if err := c.Rest(none); err != nil {
		t.Errorf("where there is nothing: %v", err)
	}
	const n = 3 * batch
	for range n {
		kerneltest.SendUDP(ns, netip.MustParseAddrPort("198.51.100.1:9"))
	}
	if err := c.Interrupt(); err != nil {
		t.Fatal(err)
	}
	if err := c.Receive(none); !errors.Is(err, ErrInterrupted) {
		t.Errorf("%v, want ErrInterrupted", err)
	}
	got := 0
	if err := c.Rest(func(Packet) { got++ }); err != nil || got != n {
		t.Errorf("%d packets of %d, %v", got, n, err)
	}
	c.Close()
	if err := c.Rest(none); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v, want os.ErrClosed", err)
	}
}

// flood logs and drops all that goes to 198.51.100.0/24, without a limit.
const flood = `table inet flood {
	chain out {
		type filter hook output priority 0; policy accept;
		ip daddr 198.51.100.0/24 log prefix "FLOOD: " group 100 drop
	}
}
`

// What does not fit the buffer is lost; how much that was is known exactly,
// and reading goes on. The existing reader takes an overflow for the end.
func TestLossIsCounted(t *testing.T) {
	for _, tt := range []struct {
		buffer, sent int
		loses        bool
	}{{4 << 10, 3000, true}, {receiveBuffer, 100, false}} {
		a, b := kerneltest.NewNS(t), kerneltest.NewNS(t)
		kerneltest.Pair(t, a, b)
		kerneltest.NFT(t, a, flood, "-f", "-")
		c := openIn(t, a, tt.buffer)
		to := netip.MustParseAddrPort("198.51.100.1:9")
		for range tt.sent {
			kerneltest.SendUDP(a, to)
		}
		received := 0
		take := func(p Packet) {
			if p.Prefix != "FLOOD: " {
				t.Errorf("prefix %q", p.Prefix)
			}
			received++
		}
		// The loss at the end shows only when one more arrives.
		if err := c.Receive(take); err != nil {
			t.Fatal(err)
		}
		kerneltest.SendUDP(a, to)
		for total := uint64(tt.sent) + 1; uint64(received)+c.Lost() < total; {
			if err := c.Receive(take); err != nil {
				t.Fatal(err)
			}
		}
		if got := uint64(received) + c.Lost(); got != uint64(tt.sent)+1 || c.Lost() > 0 != tt.loses {
			t.Errorf("buffer of %d: %d received, %d lost, %d sent", tt.buffer, received, c.Lost(), tt.sent+1)
		}
	}
}

// A large packet is not copied as a whole, as it is by default.
func TestPayloadIsCut(t *testing.T) {
	a, b := kerneltest.NewNS(t), kerneltest.NewNS(t)
	kerneltest.Pair(t, a, b)
	kerneltest.NFT(t, a, flood, "-f", "-")
	c := openIn(t, a, receiveBuffer)
	_ = a.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, make([]byte, 1200), 0, &unix.SockaddrInet4{Port: 7, Addr: [4]byte{198, 51, 100, 1}})
	})
	if err := c.Receive(func(p Packet) {
		if len(p.Payload) != CopyRange {
			t.Errorf("%d bytes, want %d", len(p.Payload), CopyRange)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

// datagram makes netlink messages.
func datagram(typ uint16, attrs ...[]byte) []byte {
	b := header(typ, 0, 100)
	for _, a := range attrs {
		b = append(b, a...)
	}
	return sized(b)
}

func TestMessages(t *testing.T) {
	const packet = unix.NFNL_SUBSYS_ULOG<<8 | msgPacket
	payload := appendAttr(nil, attrPayload, 0x45, 0, 0)
	prefix := appendAttr(nil, attrPrefix, []byte("BLOCKED: \x00junk")...)
	seq := appendAttr(nil, attrSeq, 0, 0, 1, 2)
	other := appendAttr(nil, 4, 0, 0, 0, 3)
	whole := datagram(packet, other, prefix, payload, seq)
	want := Packet{Prefix: "BLOCKED: ", Payload: []byte{0x45, 0, 0}, Seq: 0x102}
	done := datagram(unix.NLMSG_DONE)
	short := slices.Clone(whole)
	binary.NativeEndian.PutUint32(short, uint32(len(short)+4))
	tiny := slices.Clone(whole)
	binary.NativeEndian.PutUint32(tiny, headerSize-1)
	for _, tt := range []struct {
		name string
		in   []byte
		want []Packet
		err  bool
	}{
		{"one", whole, []Packet{want}, false},
		{"two and the end", slices.Concat(whole, whole, done), []Packet{want, want}, false},
		{"nested flag", datagram(packet, appendAttr(nil, attrPrefix|unix.NLA_F_NESTED, 'x'), seq), []Packet{{Prefix: "x", Seq: 0x102}}, false},
		{"not printable", datagram(packet, appendAttr(nil, attrPrefix, []byte("a\x1b[31m\xff")...)), []Packet{{Prefix: "a.[31m."}}, false},
		{"long prefix", datagram(packet, appendAttr(nil, attrPrefix, []byte(strings.Repeat("x", 4000))...)), []Packet{{Prefix: strings.Repeat("x", 127)}}, false},
		{"long payload", datagram(packet, appendAttr(nil, attrPayload, make([]byte, 4000)...)), []Packet{{Payload: make([]byte, CopyRange)}}, false},
		{"sequence number of two bytes", datagram(packet, appendAttr(nil, attrSeq, 1, 2)), nil, false},
		{"attribute beyond the message", datagram(packet, []byte{200, 0, attrPayload, 0}), nil, false},
		{"attribute of no size", datagram(packet, []byte{0, 0, 0, 0}), nil, false},
		{"half an attribute", datagram(packet, []byte{4, 0}), nil, false},
		{"message beyond the datagram", short, nil, true},
		{"message smaller than its header", tiny, nil, true},
		{"half a header", slices.Concat(whole, whole[:7]), []Packet{want}, true},
		{"no generic header", sized(header(packet, 0, 100)[:headerSize]), nil, false},
		{"nothing", nil, nil, false},
	} {
		c := &Conn{}
		var got []Packet
		err := messages(slices.Clone(tt.in), func(typ uint16, _ uint32, body []byte) {
			if typ != packet {
				return
			}
			if p, _, err := c.packet(body); err == nil {
				got = append(got, p)
			}
		})
		if diff := cmp.Diff(tt.want, got); diff != "" || (err != nil) != tt.err {
			t.Errorf("%s: error %v (-want +got):\n%s", tt.name, err, diff)
		}
	}
}

// Whatever the bytes, what comes out of them is within bounds and printable.
func FuzzMessages(f *testing.F) {
	const packet = unix.NFNL_SUBSYS_ULOG<<8 | msgPacket
	f.Add(datagram(packet, appendAttr(nil, attrPrefix, []byte("BLOCKED: \x00")...), appendAttr(nil, attrPayload, 0x45), appendAttr(nil, attrSeq, 0, 0, 0, 1)))
	f.Add(slices.Concat(datagram(packet), datagram(unix.NLMSG_DONE)))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &Conn{}
		total := 0
		err := messages(slices.Clone(b), func(_ uint16, _ uint32, body []byte) {
			total += headerSize + len(body)
			p, _, err := c.packet(body)
			if err != nil {
				return
			}
			if len(p.Payload) > CopyRange || len(p.Prefix) >= maxPrefix {
				t.Errorf("payload of %d bytes, prefix of %d", len(p.Payload), len(p.Prefix))
			}
			if strings.ContainsFunc(p.Prefix, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("prefix %q", p.Prefix)
			}
		})
		if total > len(b) || err == nil && total+3*len(b)/headerSize < len(b)-3 {
			t.Errorf("messages of %d bytes in %d", total, len(b))
		}
	})
}

// What comes while a socket changes hands is not lost, and nobody else gets
// between.
func TestAdopt(t *testing.T) {
	a, b := kerneltest.NewNS(t), kerneltest.NewNS(t)
	kerneltest.Pair(t, a, b)
	apply(t, a, ruleset.Up, ruleset.Params{})
	send := func(port uint16) {
		t.Helper()
		if err := kerneltest.SendUDP(a, netip.AddrPortFrom(netip.MustParseAddr("198.51.100.7"), port)); err == nil {
			t.Fatal("sent")
		}
	}
	c := openIn(t, a, receiveBuffer)
	send(1)
	if got := wait(t, c); got.Flow.DstPort != 1 {
		t.Errorf("%v", got)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	if err := raw.Control(func(from uintptr) { fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 3) }); err != nil || fd < 0 {
		t.Fatal(err)
	}
	send(2)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	send(3)
	if err := a.Do(func() error { _, err := Open(ruleset.Group); return err }); !errors.Is(err, ErrBusy) {
		t.Errorf("another one: %v", err)
	}
	next, err := Adopt(fd)
	if err != nil {
		t.Fatal(err)
	}
	var ports []uint16
	for len(ports) < 2 {
		if err := next.Receive(func(p Packet) {
			if f, err := Parse(p.Payload); err == nil && !f.Noise() {
				ports = append(ports, f.DstPort)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(ports, []uint16{2, 3}) || next.Lost() != 0 {
		t.Errorf("packets to %v, %d lost", ports, next.Lost())
	}
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	openIn(t, a, receiveBuffer)
}

func TestAdoptOther(t *testing.T) {
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range []int{null, socket, -1} {
		if _, err := Adopt(fd); err == nil {
			t.Errorf("adopted %d", fd)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			t.Errorf("%d is still open", fd)
		}
	}
}
