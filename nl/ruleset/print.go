package ruleset

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"time"
)

// String is the table as text for `nft -f`, as `nft --stateless list table`
// prints it: no counter values, no remaining times.
func (t *Table) String() string { return string(t.print(false)) }

// Listing is the table as `nft list table` prints it, with counters and
// remaining times: for people.
func (t *Table) Listing() string { return string(t.print(true)) }

func (t *Table) print(state bool) []byte {
	size := 4096
	for i := range t.Sets {
		size += 256 + 48*len(t.Sets[i].Elements)
	}
	b := make([]byte, 0, size)
	b = append(b, "table inet "+TableName+" {\n"...)
	for i := range t.Sets {
		b = t.Sets[i].print(b, state)
		b = append(b, '\n')
	}
	b = t.Output.print(b, OutputHook, state)
	b = append(b, '\n')
	b = t.Input.print(b, InputHook, state)
	return append(b, "}\n"...)
}

func (s *Set) print(b []byte, state bool) []byte {
	b = append(b, "\tset "+s.Name+" {\n\t\ttype "+typeName(s.V6)+"\n"...)
	// A default timeout implies the flag and nft does not repeat it alone.
	switch {
	case s.Interval && s.Expiring:
		b = append(b, "\t\tflags interval,timeout\n"...)
	case s.Interval:
		b = append(b, "\t\tflags interval\n"...)
	case s.Expiring && s.Timeout == 0:
		b = append(b, "\t\tflags timeout\n"...)
	}
	if s.Timeout > 0 {
		b = appendDuration(append(b, "\t\ttimeout "...), s.Timeout)
		b = append(b, '\n')
	}
	if len(s.Elements) > 0 {
		b = append(b, "\t\telements = { "...)
		for i, e := range s.Elements {
			// nft puts two IPv4 elements on a line and one IPv6 element.
			switch {
			case i == 0:
			case s.V6, i%2 == 0:
				b = append(b, ",\n\t\t\t     "...)
			default:
				b = append(b, ", "...)
			}
			b = e.print(b, state)
		}
		b = append(b, " }\n"...)
	}
	return append(b, "\t}\n"...)
}

func typeName(v6 bool) string {
	if v6 {
		return "ipv6_addr"
	}
	return "ipv4_addr"
}

// String is the element as in a listing.
func (e Element) String() string { return string(e.print(nil, true)) }

func (e Element) print(b []byte, state bool) []byte {
	b = e.append(b)
	switch {
	case e.Timeout > 0:
		b = appendDuration(append(b, " timeout "...), e.Timeout)
	case e.Timeout < 0:
		b = append(b, " timeout 0s"...)
	}
	if state && e.Expires > 0 {
		b = appendDuration(append(b, " expires "...), e.Expires)
	}
	return b
}

// String is a single address, a prefix if the range is one, else from-to.
func (r Range) String() string { return string(r.append(nil)) }

func (r Range) append(b []byte) []byte {
	if r.From == r.To {
		return appendAddr(b, r.From)
	}
	if p, ok := r.Prefix(); ok {
		b = append(appendAddr(b, p.Addr()), '/')
		return strconv.AppendInt(b, int64(p.Bits()), 10)
	}
	return appendAddr(append(appendAddr(b, r.From), '-'), r.To)
}

// appendAddr writes a as nft does: as netip, but for IPv4-compatible addresses
// (::/96 except ::/112), which the C library writes with a dotted quad.
func appendAddr(b []byte, a netip.Addr) []byte {
	if a.Is6() && a.Zone() == "" {
		if hi, lo := halves(a); hi == 0 && lo>>32 == 0 && lo>>16 != 0 {
			var v4 [4]byte
			binary.BigEndian.PutUint32(v4[:], uint32(lo))
			return netip.AddrFrom4(v4).AppendTo(append(b, "::"...))
		}
	}
	return a.AppendTo(b)
}

// appendDuration writes d as nft does: whole units, none of them zero. It
// rounds up to milliseconds, since "0s" would mean no timeout.
func appendDuration(b []byte, d time.Duration) []byte {
	ms := (d + time.Millisecond - 1) / time.Millisecond
	for _, u := range [...]struct {
		name string
		ms   time.Duration
	}{{"d", 86_400_000}, {"h", 3_600_000}, {"m", 60_000}, {"s", 1000}, {"ms", 1}} {
		if n := ms / u.ms; n > 0 {
			b = append(strconv.AppendInt(b, int64(n), 10), u.name...)
			ms %= u.ms
		}
	}
	return b
}

func (c Chain) print(b []byte, hook string, state bool) []byte {
	b = append(b, "\tchain "+hook+" {\n\t\ttype filter hook "+hook+" priority filter; policy "+c.Policy.String()+";\n"...)
	for _, r := range c.Rules {
		b = append(r.print(append(b, "\t\t"...), state), '\n')
	}
	return append(b, "\t}\n"...)
}

// String is the rule as a line of the table's text.
func (r Rule) String() string { return string(r.print(nil, false)) }

func (r Rule) print(b []byte, state bool) []byte {
	start := len(b)
	word := func(s string) {
		if len(b) > start {
			b = append(b, ' ')
		}
		b = append(b, s...)
	}
	for _, m := range r.Match {
		word(matchText(m))
	}
	if r.Limit != (Limit{}) {
		word("limit rate ")
		if r.Limit.Over {
			b = append(b, "over "...)
		}
		b = append(strconv.AppendUint(b, r.Limit.Rate, 10), "/second burst "...)
		b = append(strconv.AppendUint(b, uint64(r.Limit.Burst), 10), " packets"...)
	}
	if r.Log != "" {
		word(`log prefix "` + string(r.Log) + `" group ` + strconv.Itoa(Group))
	}
	if r.Counted {
		word("counter")
		if state {
			b = strconv.AppendUint(append(b, " packets "...), r.Packets, 10)
			b = strconv.AppendUint(append(b, " bytes "...), r.Bytes, 10)
		}
	}
	switch r.Verdict {
	case Continue:
	case Reject:
		word("reject with icmpx admin-prohibited")
	default:
		word(r.Verdict.String())
	}
	return b
}

// String is the verdict's word.
func (v Verdict) String() string {
	switch v {
	case Continue:
		return "continue"
	case Accept:
		return "accept"
	case Drop:
		return "drop"
	case Reject:
		return "reject"
	}
	return "verdict " + strconv.Itoa(int(v))
}

// String is the protocol's name, or its number.
func (p Proto) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return strconv.Itoa(int(p))
}

// ctNames are the states that have a bit here, in nft's order.
var ctNames = []struct {
	bit  CT
	name string
}{{CTInvalid, "invalid"}, {CTEstablished, "established"}, {CTRelated, "related"}, {CTNew, "new"}}

// ndNames are the ICMPv6 types of the dialect.
var ndNames = []struct {
	typ  ICMPv6
	name string
}{
	{NDRouterSolicit, "nd-router-solicit"},
	{NDRouterAdvert, "nd-router-advert"},
	{NDNeighborSolicit, "nd-neighbor-solicit"},
	{NDNeighborAdvert, "nd-neighbor-advert"},
}

func matchText(m Match) string {
	family := func(v6 bool) string {
		if v6 {
			return "ip6"
		}
		return "ip"
	}
	switch m := m.(type) {
	case IIf:
		return `iifname "` + string(m) + `"`
	case OIf:
		return `oifname "` + string(m) + `"`
	case CT:
		b := []byte("ct state ")
		for _, n := range ctNames {
			if m&n.bit != 0 {
				b = append(append(b, n.name...), ',')
			}
		}
		return string(b[:len(b)-1])
	case DPort:
		return m.Proto.String() + " dport " + strconv.Itoa(int(m.Port))
	case Daddr:
		p := netip.Prefix(m)
		if !p.IsValid() {
			return "ip daddr invalid"
		}
		b := appendAddr([]byte(family(p.Addr().Is6())+" daddr "), p.Addr())
		if !p.IsSingleIP() {
			b = strconv.AppendInt(append(b, '/'), int64(p.Bits()), 10)
		}
		return string(b)
	case DaddrIn:
		return family(m.V6) + " daddr @" + m.Set
	case SaddrIn:
		return family(m.V6) + " saddr @" + m.Set
	case ICMPv6:
		for _, n := range ndNames {
			if n.typ == m {
				return "icmpv6 type " + n.name
			}
		}
		return "icmpv6 type " + strconv.Itoa(int(m))
	}
	return "unknown match"
}
