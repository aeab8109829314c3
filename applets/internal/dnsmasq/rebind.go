package dnsmasq

import (
	"net/netip"
	"strconv"
	"time"
)

const (
	// maxTTL is how long a container is told that an answer is good for; it
	// is renewed in the firewall for longer whenever it is asked for again.
	maxTTL = 10 * time.Minute
	// foreignTTL is the same where a set that another program declares keeps
	// its addresses for a fixed time and cannot be renewed: this is how long
	// at most such an address is missing from it while the container still
	// uses it.
	foreignTTL = time.Minute
)

// options are the lines of a configuration, or without a value the arguments,
// that mend what a configuration without them lacks: an allowed name must not
// open private addresses because its owner answers with them, and an answer
// from the cache would not put an address back that has left its set.
func options(ttl time.Duration) []string {
	out := []string{"cache-size=0", "max-ttl=" + strconv.Itoa(int(ttl/time.Second))}
	for _, p := range notPublic() {
		// An answer with such an address becomes NXDOMAIN, whatever else is
		// in it. stop-dns-rebind, which is for this, lets carrier-grade NAT,
		// reserved and multicast addresses pass, and private ones in NAT64
		// and 6to4.
		out = append(out, "bogus-nxdomain="+p.String())
	}
	return out
}

// notPublic are the ranges of which no name may open an address: those of
// policy.NotPublic.
func notPublic() []netip.Prefix {
	v4 := []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"),
		netip.MustParsePrefix("10.0.0.0/8"),
		netip.MustParsePrefix("100.64.0.0/10"),
		netip.MustParsePrefix("127.0.0.0/8"),
		netip.MustParsePrefix("169.254.0.0/16"),
		netip.MustParsePrefix("172.16.0.0/12"),
		netip.MustParsePrefix("192.0.0.0/24"),
		netip.MustParsePrefix("192.168.0.0/16"),
		netip.MustParsePrefix("224.0.0.0/3"),
	}
	// Besides NAT64 (RFC 6052) only 2000::/3 is public; of these two not what
	// leads to an IPv4 address that is not, in 6to4 (RFC 3056) either.
	out := append(v4, netip.MustParsePrefix("4000::/2"), netip.MustParsePrefix("8000::/1"))
	nat64 := netip.MustParsePrefix("64:ff9b::/96")
	for bit := 3; bit < nat64.Bits(); bit++ { // what differs from it in this bit first
		a := nat64.Addr().As16()
		a[bit/8] ^= 0x80 >> (bit % 8)
		out = append(out, netip.PrefixFrom(netip.AddrFrom16(a), bit+1).Masked())
	}
	for _, p := range v4 {
		b := p.Addr().As4()
		a := nat64.Addr().As16()
		copy(a[12:], b[:])
		out = append(out, netip.PrefixFrom(netip.AddrFrom16(a), 96+p.Bits()))
		a = [16]byte{0x20, 0x02}
		copy(a[2:], b[:])
		out = append(out, netip.PrefixFrom(netip.AddrFrom16(a), 16+p.Bits()))
	}
	return out
}
