package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables/expr"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"golang.org/x/sys/unix"
)

// encoder turns one rule into nf_tables expressions, the same ones as nft.
// What a match depends on, the protocol of network or transport, is tested
// once, before the first match that needs it.
type encoder struct {
	exprs  []expr.Any
	l3, l4 byte
	err    error
}

var errContradiction = errors.New("matches of two protocols in one rule")

// exprs are the expressions of a rule.
func exprs(r ruleset.Rule) ([]expr.Any, error) {
	e := encoder{exprs: make([]expr.Any, 0, 12)}
	for _, m := range r.Match {
		if err := e.match(m); err != nil {
			return nil, err
		}
	}
	if err := e.statements(r); err != nil {
		return nil, err
	}
	return e.exprs, e.err
}

func (e *encoder) add(x expr.Any) { e.exprs = append(e.exprs, x) }

func (e *encoder) match(m ruleset.Match) error {
	switch m := m.(type) {
	case ruleset.IIf:
		return e.ifName(expr.MetaKeyIIFNAME, string(m))
	case ruleset.OIf:
		return e.ifName(expr.MetaKeyOIFNAME, string(m))
	case ruleset.CT:
		mask := binary.NativeEndian.AppendUint32(nil, uint32(m))
		e.add(&expr.Ct{Register: register, Key: expr.CtKeySTATE})
		e.mask(mask)
		e.cmp(expr.CmpOpNeq, make([]byte, len(mask)))
	case ruleset.DPort:
		if m.Proto != ruleset.TCP && m.Proto != ruleset.UDP {
			return fmt.Errorf("a port of IP protocol %d cannot be matched", m.Proto)
		}
		e.transport(byte(m.Proto))
		e.payload(expr.PayloadBaseTransportHeader, offsetDPort, 2)
		e.cmp(expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, m.Port))
	case ruleset.ICMPv6:
		e.network(true)
		e.transport(protoICMPv6)
		e.payload(expr.PayloadBaseTransportHeader, 0, 1)
		e.cmp(expr.CmpOpEq, []byte{byte(m)})
	case ruleset.Daddr:
		p := netip.Prefix(m)
		if !p.IsValid() || p != p.Masked() {
			return fmt.Errorf("%s is not a prefix", p)
		}
		addr := p.Addr().AsSlice()
		if p.Bits() > 0 && p.Bits()%8 == 0 {
			n := p.Bits() / 8
			e.daddr(p.Addr().Is6(), n)
			e.cmp(expr.CmpOpEq, addr[:n])
			return nil
		}
		e.daddr(p.Addr().Is6(), len(addr))
		e.mask(maskOf(p.Bits(), len(addr)))
		e.cmp(expr.CmpOpEq, addr)
	case ruleset.DaddrIn:
		e.daddr(m.V6, addrSize(m.V6))
		e.lookup(m.Set)
	case ruleset.SaddrIn:
		e.network(m.V6)
		offset := uint32(offsetSaddr4)
		if m.V6 {
			offset = offsetSaddr6
		}
		e.payload(expr.PayloadBaseNetworkHeader, offset, uint32(addrSize(m.V6)))
		e.lookup(m.Set)
	default:
		return fmt.Errorf("a match of type %T is not known", m)
	}
	return nil
}

func (e *encoder) ifName(key expr.MetaKey, name string) error {
	if name == "" || len(name) >= ifNameSize {
		return fmt.Errorf("%q is not the name of an interface", name)
	}
	e.meta(key)
	padded := make([]byte, ifNameSize)
	copy(padded, name)
	e.cmp(expr.CmpOpEq, padded)
	return nil
}

// network makes sure that the packet is of an address family.
func (e *encoder) network(v6 bool) {
	l3 := byte(unix.NFPROTO_IPV4)
	if v6 {
		l3 = unix.NFPROTO_IPV6
	}
	e.protocol(&e.l3, l3, expr.MetaKeyNFPROTO)
}

// transport makes sure that the packet is of an IP protocol.
func (e *encoder) transport(l4 byte) { e.protocol(&e.l4, l4, expr.MetaKeyL4PROTO) }

func (e *encoder) protocol(known *byte, want byte, key expr.MetaKey) {
	if *known == want {
		return
	}
	if *known != 0 {
		e.err = errContradiction
	}
	*known = want
	e.meta(key)
	e.cmp(expr.CmpOpEq, []byte{want})
}

// daddr loads the first n bytes of the destination.
func (e *encoder) daddr(v6 bool, n int) {
	e.network(v6)
	offset := uint32(offsetDaddr4)
	if v6 {
		offset = offsetDaddr6
	}
	e.payload(expr.PayloadBaseNetworkHeader, offset, uint32(n))
}

func (e *encoder) meta(key expr.MetaKey) { e.add(&expr.Meta{Key: key, Register: register}) }

func (e *encoder) payload(base expr.PayloadBase, offset, size uint32) {
	e.add(&expr.Payload{DestRegister: register, Base: base, Offset: offset, Len: size})
}

func (e *encoder) lookup(set string) { e.add(&expr.Lookup{SourceRegister: register, SetName: set}) }

func (e *encoder) cmp(op expr.CmpOp, v []byte) {
	e.add(&expr.Cmp{Op: op, Register: register, Data: v})
}

func (e *encoder) mask(v []byte) {
	e.add(&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: uint32(len(v)), Mask: v, Xor: make([]byte, len(v))})
}

func (e *encoder) statements(r ruleset.Rule) error {
	if r.Limit != (ruleset.Limit{}) {
		e.add(&expr.Limit{Type: expr.LimitTypePkts, Rate: r.Limit.Rate, Over: r.Limit.Over, Unit: expr.LimitTimeSecond, Burst: r.Limit.Burst})
	}
	if r.Log != "" {
		e.add(&expr.Log{Key: 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX, Group: ruleset.Group, Data: []byte(r.Log)})
	}
	if r.Counted {
		e.add(&expr.Counter{})
	}
	switch r.Verdict {
	case ruleset.Continue:
	case ruleset.Accept:
		e.add(&expr.Verdict{Kind: expr.VerdictAccept})
	case ruleset.Drop:
		e.add(&expr.Verdict{Kind: expr.VerdictDrop})
	case ruleset.Reject:
		e.add(&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED})
	default:
		return fmt.Errorf("verdict %d is not known", r.Verdict)
	}
	return nil
}
