package nflog

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// bytes4 is an IPv4 packet from 192.0.2.1.
func bytes4(proto byte, dst string, options int, fragment uint16, rest string) []byte {
	b := make([]byte, 20+options)
	b[0] = 4<<4 | byte(len(b)/4)
	binary.BigEndian.PutUint16(b[6:], fragment)
	b[9] = proto
	copy(b[12:], netip.MustParseAddr("192.0.2.1").AsSlice())
	copy(b[16:], netip.MustParseAddr(dst).AsSlice())
	return append(b, unhex(rest)...)
}

// bytes6 is an IPv6 packet from 2001:db8::1.
func bytes6(next byte, dst, rest string) []byte {
	b := make([]byte, 40)
	b[0], b[6] = 6<<4, next
	copy(b[8:], netip.MustParseAddr("2001:db8::1").AsSlice())
	copy(b[24:], netip.MustParseAddr(dst).AsSlice())
	return append(b, unhex(rest)...)
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

const (
	ports = "c001 01bb 0000 0000" // 49153, 443
	d4    = "203.0.113.9"
	d6    = "2001:db8::9"
)

func TestParse(t *testing.T) {
	none := func(proto uint8) Flow { return Flow{Proto: proto, ICMPType: -1, ICMPCode: -1} }
	full := func(proto uint8) Flow {
		return Flow{Proto: proto, SrcPort: 0xc001, DstPort: 443, ICMPType: -1, ICMPCode: -1}
	}
	icmp := func(proto uint8, typ, code int16) Flow { return Flow{Proto: proto, ICMPType: typ, ICMPCode: code} }
	for _, tt := range []struct {
		name string
		in   []byte
		want Flow
	}{
		{"tcp", bytes4(TCP, d4, 0, 0, ports), full(TCP)},
		{"udp", bytes4(UDP, d4, 0, 0, ports), full(UDP)},
		{"udp-lite", bytes4(udpLite, d4, 0, 0, ports), full(udpLite)},
		{"sctp", bytes4(sctp, d4, 0, 0, ports), full(sctp)},
		{"dccp", bytes4(dccp, d4, 0, 0, ports), full(dccp)},
		{"gre has no ports", bytes4(47, d4, 0, 0, ports), none(47)},
		{"options", bytes4(UDP, d4, 40, 0, ports), full(UDP)},
		{"cut in the options", bytes4(UDP, d4, 40, 0, "")[:30], none(UDP)},
		{"cut in the ports", bytes4(UDP, d4, 0, 0, "c00101"), none(UDP)},
		{"first fragment", bytes4(UDP, d4, 0, 0x2000, ports), full(UDP)},
		{"later fragment", bytes4(UDP, d4, 0, 0x2001, ports), none(UDP)},
		{"last fragment", bytes4(UDP, d4, 0, 0x00b9, ports), none(UDP)},
		{"do not fragment", bytes4(UDP, d4, 0, 0x4000, ports), full(UDP)},
		{"echo", bytes4(ICMP, d4, 0, 0, "0800"), icmp(ICMP, 8, 0)},
		{"ICMPv6 is nothing in IPv4", bytes4(ICMPv6, d4, 0, 0, "8000"), none(ICMPv6)},

		{"tcp 6", bytes6(TCP, d6, ports), full(TCP)},
		{"echo 6", bytes6(ICMPv6, d6, "8000"), icmp(ICMPv6, 128, 0)},
		{"ICMP is nothing in IPv6", bytes6(ICMP, d6, "0800"), none(ICMP)},
		{"hop-by-hop", bytes6(hopByHop, d6, "1100 0000 0000 0000"+ports), full(UDP)},
		{"long destination options", bytes6(destOptions, d6, "1101"+strings.Repeat("00", 14)+ports), full(UDP)},
		{"routing", bytes6(routing, d6, "0600 0000 0000 0000"+ports), full(TCP)},
		{"authentication header", bytes6(authHeader, d6, "0604"+strings.Repeat("00", 22)+ports), full(TCP)},
		{"first fragment 6", bytes6(fragment, d6, "1100 0001 0000 0001"+ports), full(UDP)},
		{"later fragment 6", bytes6(fragment, d6, "1100 0008 0000 0001"+ports), none(UDP)},
		{"chain", bytes6(hopByHop, d6, "2b00 0000 0000 0000 3c00 0000 0000 0000 2c00 0000 0000 0000 0600 0001 0000 0001"+ports), full(TCP)},
		{"chain that is cut", bytes6(hopByHop, d6, "2b00 0000 0000 0000 3c00"), none(routing)},
		{"header beyond the packet", bytes6(hopByHop, d6, "06ff 0000 0000 0000"+ports), none(TCP)},
		{"encrypted", bytes6(50, d6, ports), none(50)},
		{"no next header", bytes6(59, d6, ports), none(59)},
		{"no end of extensions", bytes6(hopByHop, d6, strings.Repeat("0000 0000 0000 0000", 30)), none(hopByHop)},
	} {
		tt.want.Src, tt.want.Dst = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr(d4)
		if tt.in[0]>>4 == 6 {
			tt.want.Src, tt.want.Dst = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr(d6)
		}
		got, err := Parse(tt.in)
		if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, diff)
		}
	}
	for _, bad := range [][]byte{
		nil, {0x45}, bytes4(UDP, d4, 0, 0, "")[:19], bytes6(UDP, d6, "")[:39], {0x50}, make([]byte, 60),
		slices.Concat([]byte{0x44}, bytes4(UDP, d4, 0, 0, ports)[1:]), // a header of 16 bytes
	} {
		if f, err := Parse(bad); err == nil {
			t.Errorf("%x: no error, but %+v", bad, f)
		}
	}
}

// Chatter that nobody in the container asked for makes no prompts.
func TestNoise(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   []byte
		want bool
	}{
		{"multicast", bytes4(UDP, "224.0.0.251", 0, 0, ports), true},
		{"igmp", bytes4(2, "224.0.0.22", 24, 0, ""), true},
		{"broadcast", bytes4(UDP, "255.255.255.255", 0, 0, ports), true},
		{"unicast", bytes4(UDP, d4, 0, 0, ports), false},
		{"ping", bytes4(ICMP, d4, 0, 0, "0800"), false},
		{"group report", bytes6(hopByHop, "ff02::16", "3a00 0502 0000 0100 8f00"), true},
		{"router solicitation", bytes6(ICMPv6, "ff02::2", "8500"), true},
		{"multicast 6", bytes6(UDP, "ff05::1:3", ports), true},
		{"neighbour solicitation to a neighbour", bytes6(ICMPv6, "fe80::1", "8700"), true},
		{"group report to a neighbour", bytes6(hopByHop, "fe80::1", "3a00 0502 0000 0100 8f00"), true},
		{"solicitation to a host elsewhere", bytes6(ICMPv6, d6, "8700"), false},
		{"ping to a neighbour", bytes6(ICMPv6, "fe80::1", "8000"), false},
		{"udp to a neighbour", bytes6(UDP, "fe80::1", ports), false},
		{"unicast 6", bytes6(TCP, d6, ports), false},
	} {
		f, err := Parse(tt.in)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if f.Noise() != tt.want {
			t.Errorf("%s: noise %v, want %v", tt.name, f.Noise(), tt.want)
		}
	}
}

// A longer piece of the same packet says no less, and nothing else, than a
// shorter one.
func FuzzParse(f *testing.F) {
	f.Add(bytes4(TCP, d4, 4, 0, ports), 20)
	f.Add(bytes6(hopByHop, d6, "2c00 0000 0000 0000 0600 0001 0000 0001"+ports), 50)
	f.Add(bytes6(ICMPv6, "ff02::2", "8500"), 41)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		whole, err := Parse(b)
		if err != nil {
			return
		}
		_ = whole.Noise()
		if !whole.Src.IsValid() || !whole.Dst.IsValid() || whole.Src.Is4() != whole.Dst.Is4() {
			t.Fatalf("addresses %v and %v", whole.Src, whole.Dst)
		}
		if cut < 0 || cut > len(b) {
			return
		}
		part, err := Parse(b[:cut])
		if err != nil {
			return
		}
		if part.Src != whole.Src || part.Dst != whole.Dst ||
			part.SrcPort|part.DstPort != 0 && (part.SrcPort != whole.SrcPort || part.DstPort != whole.DstPort || part.Proto != whole.Proto) ||
			part.ICMPType >= 0 && part.ICMPType != whole.ICMPType {
			t.Errorf("of %d bytes %+v, of the first %d %+v", len(b), whole, cut, part)
		}
	})
}
