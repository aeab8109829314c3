package bundle

import (
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ParsePrefix reads an address or a network in the notation of the lists: an
// IP address, or one with a prefix length or (IPv4) a netmask or hostmask
// after a slash. Host bits are cleared; an address is the network of itself
// alone; an IPv4-mapped IPv6 address stays IPv6. Zones, surrounding space and
// every other form are refused, so that what it refuses may be taken for a
// domain name.
func ParsePrefix(s string) (netip.Prefix, error) {
	fail := func(why string) (netip.Prefix, error) {
		return netip.Prefix{}, fmt.Errorf("%s is not an IP address or network: %s", quote(s), why)
	}
	host, mask, slash := strings.Cut(s, "/")
	addr, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return fail("want a form like 192.0.2.1, 192.0.2.0/24 or 2001:db8::/32")
	case addr.Zone() != "":
		return fail("a zone means nothing to a firewall")
	case !slash:
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	n, ok := prefixLength(mask, addr.Is4())
	if !ok || n > addr.BitLen() {
		return fail("what follows the slash is not a prefix length or mask")
	}
	return netip.PrefixFrom(addr, n).Masked(), nil
}

// prefixLength is the number of network bits that mask stands for.
func prefixLength(mask string, v4 bool) (int, bool) {
	if mask != "" && strings.Trim(mask, "0123456789") == "" {
		n, err := strconv.ParseUint(mask, 10, 16)
		return int(n), err == nil
	}
	addr, err := netip.ParseAddr(mask)
	if err != nil || !v4 || !addr.Is4() {
		return 0, false
	}
	b := addr.As4()
	m := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	if n := bits.LeadingZeros32(^m); m<<n == 0 {
		return n, true // ones, then zeros
	}
	if n := bits.LeadingZeros32(m); m<<n>>n == m && bits.OnesCount32(m) == 32-n {
		return n, true // zeros, then ones
	}
	return 0, false
}

// FormatPrefix is the one spelling of a network in the lists: what ParsePrefix
// made of any other, with a single address written without its length. An
// IPv4-mapped address is written in hexadecimal, as other programs do it.
func FormatPrefix(p netip.Prefix) string {
	addr := p.Addr()
	host := addr.String()
	if addr.Is4In6() {
		b := addr.As16()
		host = fmt.Sprintf("::ffff:%x:%x", uint(b[12])<<8|uint(b[13]), uint(b[14])<<8|uint(b[15]))
	}
	if p.IsSingleIP() {
		return host
	}
	return host + "/" + strconv.Itoa(p.Bits())
}

// Effective combines the lists of a container: allow is profile followed by
// live without what stands in deny, deny is deny, both without repetitions,
// in order. Networks compare by value, so 192.0.2.1/32 is 192.0.2.1; one that
// merely overlaps a denied network stays, because the firewall asks deny
// first.
func Effective(profile, live, denied []netip.Prefix) (allow, deny []netip.Prefix) {
	seen := make(map[netip.Prefix]struct{}, len(profile)+len(live)+len(denied))
	unseen := func(to, from []netip.Prefix) []netip.Prefix {
		for _, p := range from {
			n := len(seen)
			if seen[p.Masked()] = struct{}{}; len(seen) > n {
				to = append(to, p.Masked())
			}
		}
		return to
	}
	deny = unseen(make([]netip.Prefix, 0, len(denied)), denied)
	allow = unseen(unseen(make([]netip.Prefix, 0, len(profile)+len(live)), profile), live)
	return slices.Clip(allow), slices.Clip(deny)
}

// quote makes untrusted text fit for one line of a message.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return strconv.Quote(s[:most]) + "…"
	}
	return strconv.Quote(s)
}
