package policy

import "net/netip"

// NotPublic says why an address that came out of the DNS must not be opened
// because of its name; "" if it may. Whoever controls a name, or its server,
// could otherwise point it at the host, the local network or a cloud's
// metadata service (DNS rebinding). An operator who means such an address
// writes the address.
func NotPublic(a netip.Addr) string {
	switch {
	case !a.IsValid():
		return "not an address"
	case a.IsUnspecified():
		return "unspecified"
	case a.IsLoopback():
		return "loopback"
	case a.IsLinkLocalUnicast():
		return "link-local"
	case a.IsPrivate():
		return "private"
	case a.IsMulticast():
		return "multicast"
	}
	if a.Is4() {
		switch b := a.As4(); {
		case b[0] == 0:
			return "this network" // 0.0.0.0/8, RFC 1122 §3.2.1.3: Linux takes it as the host
		case b[0] == 100 && b[1]>>6 == 1:
			return "carrier-grade NAT" // 100.64.0.0/10, RFC 6598; a cloud's metadata service is here
		case b[0] == 192 && b[1] == 0 && b[2] == 0:
			return "protocol assignments" // 192.0.0.0/24, RFC 6890; likewise
		case b[0] >= 240:
			return "reserved" // 240.0.0.0/4, RFC 1112, and broadcast
		}
		return ""
	}
	b := a.As16()
	switch {
	case [12]byte(b[:12]) == [12]byte{0x00, 0x64, 0xff, 0x9b}: // 64:ff9b::/96, NAT64, RFC 6052
		return NotPublic(netip.AddrFrom4([4]byte(b[12:])))
	case b[0] == 0x20 && b[1] == 0x02: // 2002::/16, 6to4, RFC 3056
		return NotPublic(netip.AddrFrom4([4]byte(b[2:6])))
	case b[0]>>5 != 1: // 2000::/3 is all of global unicast, RFC 4291 §2.4
		return "not global unicast"
	}
	return ""
}
