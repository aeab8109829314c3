package nft

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"net/netip"

	"github.com/terok-ai/terok-box/nl/ruleset"
	"golang.org/x/sys/unix"
)

const (
	// register is the one that every load goes to and every test reads.
	register = unix.NFT_REG_1

	ifNameSize = 16 // IFNAMSIZ

	offsetSaddr4 = 12 // of the source in an IPv4 header
	offsetDaddr4 = 16 // and of the destination
	offsetSaddr6 = 8  // of the source in an IPv6 header
	offsetDaddr6 = 24 // and of the destination
	offsetDPort  = 2  // of the destination port in a TCP or UDP header

	protoICMPv6 = 58 // IPPROTO_ICMPV6
	secondUnit  = 1  // NFTA_LIMIT_UNIT of "a second", in seconds
)

func addrSize(v6 bool) int {
	if v6 {
		return 16
	}
	return 4
}

// maskOf is a netmask of that many bits in size bytes.
func maskOf(bits, size int) []byte {
	m := make([]byte, size)
	for i := range bits {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}

// Verdicts of netfilter, also as policies (linux/netfilter.h).
const (
	nfDrop   = 0
	nfAccept = 1
)

func verdictCode(v ruleset.Verdict) uint32 {
	if v == ruleset.Accept {
		return nfAccept
	}
	return nfDrop
}

func verdictOf(code uint32) (ruleset.Verdict, bool) {
	switch code {
	case nfAccept:
		return ruleset.Accept, true
	case nfDrop:
		return ruleset.Drop, true
	}
	return 0, false
}

// expression is one of a rule's, as the kernel lists it.
type expression struct {
	name []byte // with the terminating zero
	data []byte
}

// decoder turns expressions back into a rule. It knows the expressions that
// encoder and nft make for the dialect, and nothing else.
type decoder struct {
	left       []expression
	l3, l4     byte
	use3, use4 bool // a match needed them
	err        error
}

// decodeRule reads the value of NFTA_RULE_EXPRESSIONS.
func decodeRule(b []byte) (r ruleset.Rule, err error) {
	d := decoder{left: make([]expression, 0, 16)}
	err = attributes(b, func(typ uint16, v []byte) error {
		outer, err := parseFields(v)
		if err != nil {
			return err
		}
		e := expression{outer.v[unix.NFTA_EXPR_NAME], outer.v[unix.NFTA_EXPR_DATA]}
		if typ != unix.NFTA_LIST_ELEM || !outer.only(unix.NFTA_EXPR_NAME, unix.NFTA_EXPR_DATA) {
			return foreign("an expression %q of unknown form", e.name)
		}
		d.left = append(d.left, e)
		return nil
	})
	if err != nil {
		return r, err
	}
	for more := true; more; {
		var m ruleset.Match
		if m, more, err = d.match(); err != nil {
			return r, err
		}
		if m != nil {
			r.Match = append(r.Match, m)
		}
	}
	if d.l3 != 0 && !d.use3 || d.l4 != 0 && !d.use4 {
		return r, foreign("a match of a protocol alone")
	}
	err = d.statements(&r)
	return r, cmp.Or(d.err, err)
}

// is reports whether the next expression has that name.
func (d *decoder) is(name string) bool {
	if len(d.left) == 0 {
		return false
	}
	n := d.left[0].name
	return len(n) == len(name)+1 && string(n[:len(name)]) == name && n[len(name)] == 0
}

// next takes the next expression if it has that name. One that cannot be read
// has no attributes, which none of the known ones can do without.
func (d *decoder) next(name string) (f fields, ok bool) {
	if !d.is(name) {
		return f, false
	}
	f, err := parseFields(d.left[0].data)
	if err != nil {
		d.err, f = err, fields{}
	}
	d.left = d.left[1:]
	return f, true
}

// match takes the next match, or a test of the protocol that later ones depend
// on, which is none itself. more is false where the statements begin.
func (d *decoder) match() (m ruleset.Match, more bool, err error) {
	if e, ok := d.next("meta"); ok {
		m, err = d.meta(&e)
		return m, true, err
	}
	if e, ok := d.next("payload"); ok {
		m, err = d.payload(&e)
		return m, true, err
	}
	if e, ok := d.next("ct"); ok {
		m, err = d.ct(&e)
		return m, true, err
	}
	return nil, false, nil
}

func (d *decoder) meta(e *fields) (ruleset.Match, error) {
	key, ok := e.u32(unix.NFTA_META_KEY)
	reg, ok2 := e.u32(unix.NFTA_META_DREG)
	if !ok || !ok2 || !e.only(unix.NFTA_META_KEY, unix.NFTA_META_DREG) {
		return nil, foreign("a meta expression of unknown form")
	}
	v, err := d.cmp(reg, unix.NFT_CMP_EQ)
	if err != nil {
		return nil, err
	}
	switch key {
	case unix.NFT_META_IIFNAME, unix.NFT_META_OIFNAME:
		name, rest, _ := bytes.Cut(v, []byte{0})
		if len(v) != ifNameSize || len(name) == 0 || len(name) == ifNameSize || !zero(rest) {
			return nil, foreign("an incomplete interface name %q", v)
		}
		if key == unix.NFT_META_IIFNAME {
			return ruleset.IIf(name), nil
		}
		return ruleset.OIf(name), nil
	case unix.NFT_META_NFPROTO:
		if len(v) == 1 && d.l3 == 0 && (v[0] == unix.NFPROTO_IPV4 || v[0] == unix.NFPROTO_IPV6) {
			d.l3 = v[0]
			return nil, nil
		}
	case unix.NFT_META_L4PROTO:
		if len(v) == 1 && d.l4 == 0 && v[0] != 0 {
			d.l4 = v[0]
			return nil, nil
		}
	}
	return nil, foreign("a match of packet information %d", key)
}

// cmp takes the comparison of a register.
func (d *decoder) cmp(reg, op uint32) ([]byte, error) {
	e, ok := d.next("cmp")
	if !ok || !e.is(unix.NFTA_CMP_SREG, reg) || !e.is(unix.NFTA_CMP_OP, op) ||
		!e.only(unix.NFTA_CMP_SREG, unix.NFTA_CMP_OP, unix.NFTA_CMP_DATA) {
		return nil, foreign("a comparison of unknown form")
	}
	return value(e.v[unix.NFTA_CMP_DATA])
}

// value reads a nested NFTA_DATA_VALUE.
func value(b []byte) ([]byte, error) {
	f, err := parseFields(b)
	if err != nil {
		return nil, err
	}
	if !f.has(unix.NFTA_DATA_VALUE) || !f.only(unix.NFTA_DATA_VALUE) {
		return nil, foreign("data of unknown form")
	}
	return f.v[unix.NFTA_DATA_VALUE], nil
}

// mask takes a bitwise and of the register with a mask of n bytes.
func (d *decoder) mask(reg uint32, n int) ([]byte, error) {
	e, ok := d.next("bitwise")
	if !ok || !e.is(unix.NFTA_BITWISE_SREG, reg) || !e.is(unix.NFTA_BITWISE_DREG, reg) ||
		!e.is(unix.NFTA_BITWISE_LEN, uint32(n)) ||
		!e.only(unix.NFTA_BITWISE_SREG, unix.NFTA_BITWISE_DREG, unix.NFTA_BITWISE_LEN,
			unix.NFTA_BITWISE_MASK, unix.NFTA_BITWISE_XOR) {
		return nil, foreign("a mask of unknown form")
	}
	xor, err := value(e.v[unix.NFTA_BITWISE_XOR])
	if err != nil {
		return nil, err
	}
	mask, err := value(e.v[unix.NFTA_BITWISE_MASK])
	if err != nil {
		return nil, err
	}
	if len(mask) != n || !zero(xor) {
		return nil, foreign("a mask of unknown form")
	}
	return mask, nil
}

func (d *decoder) ct(e *fields) (ruleset.Match, error) {
	const known = ruleset.CTInvalid | ruleset.CTEstablished | ruleset.CTRelated | ruleset.CTNew
	reg, ok := e.u32(unix.NFTA_CT_DREG)
	if !ok || !e.is(unix.NFTA_CT_KEY, unix.NFT_CT_STATE) || !e.only(unix.NFTA_CT_DREG, unix.NFTA_CT_KEY) {
		return nil, foreign("a connection tracking expression of unknown form")
	}
	mask, err := d.mask(reg, 4)
	if err != nil {
		return nil, err
	}
	v, err := d.cmp(reg, unix.NFT_CMP_NEQ)
	if err != nil {
		return nil, err
	}
	state := binary.NativeEndian.Uint32(mask)
	if len(v) != 4 || !zero(v) || state == 0 || state&^uint32(known) != 0 {
		return nil, foreign("a match of connection states %#x", state)
	}
	return ruleset.CT(state), nil
}

func (d *decoder) payload(e *fields) (ruleset.Match, error) {
	reg, ok := e.u32(unix.NFTA_PAYLOAD_DREG)
	base, ok2 := e.u32(unix.NFTA_PAYLOAD_BASE)
	offset, ok3 := e.u32(unix.NFTA_PAYLOAD_OFFSET)
	size, ok4 := e.u32(unix.NFTA_PAYLOAD_LEN)
	if !ok || !ok2 || !ok3 || !ok4 || !e.only(unix.NFTA_PAYLOAD_DREG, unix.NFTA_PAYLOAD_BASE,
		unix.NFTA_PAYLOAD_OFFSET, unix.NFTA_PAYLOAD_LEN) {
		return nil, foreign("a payload expression of unknown form")
	}
	switch {
	case base == unix.NFT_PAYLOAD_TRANSPORT_HEADER && offset == offsetDPort && size == 2 &&
		(d.l4 == byte(ruleset.TCP) || d.l4 == byte(ruleset.UDP)):
		v, err := d.cmp(reg, unix.NFT_CMP_EQ)
		if err != nil {
			return nil, err
		}
		if len(v) != 2 {
			return nil, foreign("a match of a port of %d bytes", len(v))
		}
		d.use4 = true
		return ruleset.DPort{Proto: ruleset.Proto(d.l4), Port: binary.BigEndian.Uint16(v)}, nil
	case base == unix.NFT_PAYLOAD_TRANSPORT_HEADER && offset == 0 && size == 1 &&
		d.l4 == protoICMPv6 && d.l3 == unix.NFPROTO_IPV6:
		v, err := d.cmp(reg, unix.NFT_CMP_EQ)
		if err != nil {
			return nil, err
		}
		if len(v) != 1 {
			return nil, foreign("a match of an ICMPv6 type of %d bytes", len(v))
		}
		d.use3, d.use4 = true, true
		return ruleset.ICMPv6(v[0]), nil
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && offset == offsetDaddr4 && d.l3 == unix.NFPROTO_IPV4,
		base == unix.NFT_PAYLOAD_NETWORK_HEADER && offset == offsetDaddr6 && d.l3 == unix.NFPROTO_IPV6:
		d.use3 = true
		return d.daddr(reg, int(size))
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && offset == offsetSaddr4 && size == 4 && d.l3 == unix.NFPROTO_IPV4,
		base == unix.NFT_PAYLOAD_NETWORK_HEADER && offset == offsetSaddr6 && size == 16 && d.l3 == unix.NFPROTO_IPV6:
		d.use3 = true
		set, err := d.lookup(reg)
		return ruleset.SaddrIn{Set: set, V6: d.l3 == unix.NFPROTO_IPV6}, err
	}
	return nil, foreign("a match of %d bytes at %d of header %d", size, offset, base)
}

// daddr takes what tests the first n bytes of the destination.
func (d *decoder) daddr(reg uint32, n int) (ruleset.Match, error) {
	v6 := d.l3 == unix.NFPROTO_IPV6
	size := addrSize(v6)
	if n < 1 || n > size {
		return nil, foreign("a match of %d bytes of an address", n)
	}
	if n == size && d.is("lookup") {
		set, err := d.lookup(reg)
		return ruleset.DaddrIn{Set: set, V6: v6}, err
	}
	bits := 8 * n
	if d.is("bitwise") {
		mask, err := d.mask(reg, n)
		if err != nil {
			return nil, err
		}
		bits = 0
		for bits < 8*n && mask[bits/8]&(0x80>>(bits%8)) != 0 {
			bits++
		}
		if !bytes.Equal(mask, maskOf(bits, n)) {
			return nil, foreign("an address mask with holes")
		}
	}
	v, err := d.cmp(reg, unix.NFT_CMP_EQ)
	if err != nil {
		return nil, err
	}
	if len(v) != n {
		return nil, foreign("%d bytes of an address compared with %d", n, len(v))
	}
	full := make([]byte, size)
	copy(full, v)
	addr, _ := netip.AddrFromSlice(full)
	p := netip.PrefixFrom(addr, bits)
	if p != p.Masked() {
		return nil, foreign("an address %s that its mask cannot leave", p)
	}
	return ruleset.Daddr(p), nil
}

// lookup takes a lookup of the register in a set.
func (d *decoder) lookup(reg uint32) (set string, err error) {
	e, ok := d.next("lookup")
	if !ok || !e.is(unix.NFTA_LOOKUP_SREG, reg) || !e.has(unix.NFTA_LOOKUP_SET) ||
		!e.only(unix.NFTA_LOOKUP_SREG, unix.NFTA_LOOKUP_SET) {
		return "", foreign("a set lookup of unknown form")
	}
	return e.str(unix.NFTA_LOOKUP_SET), nil
}

func (d *decoder) statements(r *ruleset.Rule) error {
	if e, ok := d.next("limit"); ok {
		rate, ok := e.u64(unix.NFTA_LIMIT_RATE)
		unit, ok2 := e.u64(unix.NFTA_LIMIT_UNIT)
		burst, ok3 := e.u32(unix.NFTA_LIMIT_BURST)
		flags, ok4 := e.u32(unix.NFTA_LIMIT_FLAGS)
		if !ok || !ok2 || !ok3 || !ok4 || unit != secondUnit || flags&^unix.NFT_LIMIT_F_INV != 0 || rate == 0 ||
			!e.only(unix.NFTA_LIMIT_RATE, unix.NFTA_LIMIT_UNIT, unix.NFTA_LIMIT_BURST, unix.NFTA_LIMIT_FLAGS) {
			return foreign("a limit of unknown form")
		}
		r.Limit = ruleset.Limit{Over: flags != 0, Rate: rate, Burst: burst}
	}
	if e, ok := d.next("log"); ok {
		group := e.v[unix.NFTA_LOG_GROUP]
		if len(group) != 2 || binary.BigEndian.Uint16(group) != ruleset.Group || e.str(unix.NFTA_LOG_PREFIX) == "" ||
			!e.only(unix.NFTA_LOG_GROUP, unix.NFTA_LOG_PREFIX) {
			return foreign("a log statement of unknown form")
		}
		r.Log = ruleset.Prefix(e.str(unix.NFTA_LOG_PREFIX))
	}
	if e, ok := d.next("counter"); ok {
		packets, ok := e.u64(unix.NFTA_COUNTER_PACKETS)
		bytes, ok2 := e.u64(unix.NFTA_COUNTER_BYTES)
		if !ok || !ok2 || !e.only(unix.NFTA_COUNTER_PACKETS, unix.NFTA_COUNTER_BYTES) {
			return foreign("a counter of unknown form")
		}
		r.Counted, r.Packets, r.Bytes = true, packets, bytes
	}
	if e, ok := d.next("immediate"); ok {
		v, err := immediate(&e)
		if err != nil {
			return err
		}
		r.Verdict = v
	} else if e, ok := d.next("reject"); ok {
		code := e.v[unix.NFTA_REJECT_ICMP_CODE]
		if !e.is(unix.NFTA_REJECT_TYPE, unix.NFT_REJECT_ICMPX_UNREACH) || len(code) != 1 ||
			code[0] != unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED || !e.only(unix.NFTA_REJECT_TYPE, unix.NFTA_REJECT_ICMP_CODE) {
			return foreign("a reject of unknown form")
		}
		r.Verdict = ruleset.Reject
	}
	if len(d.left) > 0 {
		return foreign("an expression %q where none is known", d.left[0].name)
	}
	return nil
}

func immediate(e *fields) (ruleset.Verdict, error) {
	data, err := parseFields(e.v[unix.NFTA_IMMEDIATE_DATA])
	if err != nil {
		return 0, err
	}
	verdict, err := parseFields(data.v[unix.NFTA_DATA_VERDICT])
	if err != nil {
		return 0, err
	}
	code, ok := verdict.u32(unix.NFTA_VERDICT_CODE)
	v, known := verdictOf(code)
	if !ok || !known || !verdict.only(unix.NFTA_VERDICT_CODE) || !data.only(unix.NFTA_DATA_VERDICT) ||
		!e.is(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT) || !e.only(unix.NFTA_IMMEDIATE_DREG, unix.NFTA_IMMEDIATE_DATA) {
		return 0, foreign("a verdict of unknown form")
	}
	return v, nil
}
