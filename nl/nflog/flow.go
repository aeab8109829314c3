package nflog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Protocols, as IANA assigns their numbers.
const (
	ICMP    = 1
	TCP     = 6
	UDP     = 17
	dccp    = 33
	ICMPv6  = 58
	sctp    = 132
	udpLite = 136
)

// Extension headers of IPv6 (RFC 8200 §4, RFC 4302).
const (
	hopByHop    = 0
	routing     = 43
	fragment    = 44
	authHeader  = 51
	destOptions = 60
	// maxExtensions is as many as fit the bytes that are copied: the
	// smallest have eight.
	maxExtensions = CopyRange / 8
)

// Flow is where a packet came from and where it was to go.
type Flow struct {
	Src, Dst netip.Addr
	// Proto is the protocol; that of an extension header if what follows it
	// is missing.
	Proto uint8
	// SrcPort and DstPort are those of TCP, UDP, UDP-Lite, SCTP and DCCP; 0 in
	// what is not a packet's first fragment or cut off before them.
	SrcPort, DstPort uint16
	// ICMPType and ICMPCode are those of ICMP and ICMPv6; -1 where a port
	// would be 0.
	ICMPType, ICMPCode int16
}

// Parse reads a packet from its IP header on, of which any part behind that
// header may be missing.
func Parse(b []byte) (Flow, error) {
	if len(b) == 0 {
		return Flow{}, errors.New("empty packet")
	}
	switch b[0] >> 4 {
	case 4:
		return parse4(b)
	case 6:
		return parse6(b)
	}
	return Flow{}, fmt.Errorf("packet of IP version %d", b[0]>>4)
}

// parse4 reads IPv4 (RFC 791 §3.1).
func parse4(b []byte) (Flow, error) {
	const smallest = 20
	header := int(b[0]&0xf) * 4
	if header < smallest || len(b) < smallest {
		return Flow{}, fmt.Errorf("IPv4 packet of %d bytes with a header of %d", len(b), header)
	}
	f := Flow{
		Src: netip.AddrFrom4([4]byte(b[12:16])), Dst: netip.AddrFrom4([4]byte(b[16:20])),
		Proto: b[9], ICMPType: -1, ICMPCode: -1,
	}
	if offset := binary.BigEndian.Uint16(b[6:]) & 0x1fff; offset == 0 && header <= len(b) {
		f.transport(ICMP, b[header:])
	}
	return f, nil
}

// parse6 reads IPv6 (RFC 8200 §3).
func parse6(b []byte) (Flow, error) {
	const header = 40
	if len(b) < header {
		return Flow{}, fmt.Errorf("IPv6 packet of %d bytes", len(b))
	}
	f := Flow{
		Src: netip.AddrFrom16([16]byte(b[8:24])), Dst: netip.AddrFrom16([16]byte(b[24:40])),
		Proto: b[6], ICMPType: -1, ICMPCode: -1,
	}
	b = b[header:]
	for range maxExtensions {
		const smallest = 8
		size := smallest
		switch f.Proto {
		case hopByHop, routing, destOptions:
			if len(b) >= smallest {
				size += int(b[1]) * 8
			}
		case authHeader:
			if len(b) >= smallest {
				size += int(b[1]) * 4
			}
		case fragment:
			if len(b) >= smallest && binary.BigEndian.Uint16(b[2:])>>3 != 0 { // not the first
				f.Proto = b[0]
				return f, nil
			}
		default:
			f.transport(ICMPv6, b)
			return f, nil
		}
		if len(b) < smallest {
			return f, nil
		}
		f.Proto = b[0]
		b = b[min(size, len(b)):]
	}
	return f, nil
}

// transport reads the start of what an IP packet carries; icmp is the number
// that ICMP has in its version of IP.
func (f *Flow) transport(icmp uint8, b []byte) {
	switch {
	case f.Proto == icmp && len(b) >= 2:
		f.ICMPType, f.ICMPCode = int16(b[0]), int16(b[1])
	case f.Proto == TCP, f.Proto == UDP, f.Proto == udpLite, f.Proto == sctp, f.Proto == dccp:
		if len(b) >= 4 {
			f.SrcPort, f.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		}
	}
}

// Messages of ICMPv6 that hosts send unasked: reports of multicast groups (RFC
// 2710, RFC 3810), and the search for routers and neighbours (RFC 4861).
const (
	mldQuery      = 130
	mldDone       = 132
	ndSolicit     = 133 // a router's
	ndRedirect    = 137
	mldv2Report   = 143
	broadcastByte = 255
)

// Noise reports whether the packet is a host's housekeeping in its own link,
// which nobody in the container asked for: multicast, broadcast, and the
// messages by which IPv6 finds its neighbours.
func (f Flow) Noise() bool {
	if f.Dst.IsMulticast() || f.Dst == netip.AddrFrom4([4]byte{broadcastByte, broadcastByte, broadcastByte, broadcastByte}) {
		return true
	}
	if f.Proto != ICMPv6 || !f.Dst.Is6() || !f.Dst.IsLinkLocalUnicast() {
		return false
	}
	t := f.ICMPType
	return t >= mldQuery && t <= mldDone || t >= ndSolicit && t <= ndRedirect || t == mldv2Report
}
