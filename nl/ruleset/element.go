package ruleset

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"time"
)

// Range is an inclusive range of addresses of one family, without zone.
type Range struct{ From, To netip.Addr }

// RangeOf is the range that p covers; host bits of p do not matter.
func RangeOf(p netip.Prefix) Range {
	from := p.Masked().Addr()
	if from.Is4() {
		a := from.As4()
		binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])|uint32(1<<(32-p.Bits())-1))
		return Range{from, netip.AddrFrom4(a)}
	}
	a := from.As16()
	hi, lo := halves(from)
	binary.BigEndian.PutUint64(a[:8], hi|(^uint64(0)>>min(p.Bits(), 64)))
	binary.BigEndian.PutUint64(a[8:], lo|(^uint64(0)>>max(p.Bits()-64, 0)))
	return Range{from, netip.AddrFrom16(a)}
}

// halves splits the 128 bits of an address; IPv4 is in the low 32.
func halves(a netip.Addr) (hi, lo uint64) {
	if a.Is4() {
		b := a.As4()
		return 0, uint64(binary.BigEndian.Uint32(b[:]))
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

// Prefix is the prefix that covers exactly r, if there is one.
func (r Range) Prefix() (netip.Prefix, bool) {
	if !r.valid() {
		return netip.Prefix{}, false
	}
	fromHi, fromLo := halves(r.From)
	toHi, toLo := halves(r.To)
	// The addresses differ in the host bits, all of them: 0 in From, 1 in To.
	var host int
	if fromHi != toHi {
		host = 64 + bits.Len64(fromHi^toHi)
	} else {
		host = bits.Len64(fromLo ^ toLo)
	}
	p := netip.PrefixFrom(r.From, r.From.BitLen()-host)
	if RangeOf(p) != r {
		return netip.Prefix{}, false
	}
	return p, true
}

// Contains reports whether a lies in r.
func (r Range) Contains(a netip.Addr) bool {
	return a.BitLen() == r.From.BitLen() && r.From.Compare(a) <= 0 && a.Compare(r.To) <= 0
}

// Overlaps reports whether r and o have an address in common.
func (r Range) Overlaps(o Range) bool {
	return r.From.BitLen() == o.From.BitLen() && r.From.Compare(o.To) <= 0 && o.From.Compare(r.To) <= 0
}

// valid reports whether r is a range: one family, no zone, not reversed.
func (r Range) valid() bool {
	return r.From.IsValid() && r.From.BitLen() == r.To.BitLen() && r.From.Zone() == "" && r.To.Zone() == "" &&
		r.From.Compare(r.To) <= 0
}

// MergePrefixes is the minimal list of elements that covers p: sorted, without
// what another one contains. The kernel refuses overlapping intervals. The
// prefixes must be valid; host bits do not matter.
func MergePrefixes(p []netip.Prefix) []Element {
	if len(p) == 0 {
		return nil
	}
	sorted := make([]netip.Prefix, len(p))
	for i := range p {
		sorted[i] = p[i].Masked()
	}
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	merged := make([]Element, 0, len(sorted))
	var last Range
	for _, p := range sorted {
		// Prefixes nest: whoever starts inside another ends inside it.
		if len(merged) > 0 && last.Contains(p.Addr()) {
			continue
		}
		last = RangeOf(p)
		merged = append(merged, Element{Range: last})
	}
	return merged
}

// Lifetime is how long an element of s lives from when it was added; Permanent
// if it does not expire.
func (s *Set) Lifetime(e Element) time.Duration {
	switch {
	case !s.Expiring, e.Timeout < 0:
		return Permanent
	case e.Timeout > 0:
		return e.Timeout
	case s.Timeout > 0:
		return s.Timeout
	default:
		return Permanent
	}
}

// Normalize brings the elements of s into the one form in which sets compare:
// sorted, permanent ones that overlap joined, and no timeout that the set's
// default says anyway. It fails on elements that the set cannot hold.
func (s *Set) Normalize() error {
	for i := range s.Elements {
		e := &s.Elements[i]
		switch {
		case !e.valid():
			return fmt.Errorf("set %s: %s is not a range of addresses", s.Name, e.Range)
		case e.From.Is6() != s.V6:
			return fmt.Errorf("set %s: %s is of the other address family", s.Name, e.Range)
		case !s.Interval && e.From != e.To:
			return fmt.Errorf("set %s: %s is not a single address and the set has no intervals", s.Name, e.Range)
		case !s.Expiring && (e.Timeout != 0 || e.Expires != 0):
			return fmt.Errorf("set %s: %s has a timeout and the set has none", s.Name, e.Range)
		}
		switch life := s.Lifetime(*e); {
		case life == Permanent && s.Timeout != 0:
			e.Timeout = Permanent
		case life == Permanent, life == s.Timeout:
			e.Timeout = 0
		}
	}
	order := func(a, b Element) int { return cmp.Or(a.From.Compare(b.From), a.To.Compare(b.To)) }
	if !slices.IsSortedFunc(s.Elements, order) {
		slices.SortStableFunc(s.Elements, order)
	}
	kept := s.Elements[:0]
	for _, e := range s.Elements {
		if len(kept) == 0 || !kept[len(kept)-1].Overlaps(e.Range) {
			kept = append(kept, e)
			continue
		}
		last := &kept[len(kept)-1]
		switch {
		case s.Lifetime(*last) == Permanent && s.Lifetime(e) == Permanent:
			if last.To.Less(e.To) {
				last.To = e.To
			}
		case last.Range == e.Range && last.Timeout == e.Timeout:
			last.Expires = max(last.Expires, e.Expires)
		default:
			return fmt.Errorf("set %s: %s and %s overlap and expire at different times: give one of them",
				s.Name, last.Range, e.Range)
		}
	}
	clear(s.Elements[len(kept):])
	s.Elements = kept
	return nil
}
