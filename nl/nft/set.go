package nft

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/terok-ai/terok-box/nl/ruleset"
	"golang.org/x/sys/unix"
)

// Data types of set keys, numbered by nft for its own use
// (enum datatypes in its datatype.h).
const (
	keyIPv4 = 7
	keyIPv6 = 8
)

// Attributes that x/sys does not name (linux/netfilter/nf_tables.h).
const (
	nftaSetHandle = 16 // NFTA_SET_HANDLE
	nftaSetType   = 19 // NFTA_SET_TYPE: the implementation, for information
	nftaSetCount  = 20 // NFTA_SET_COUNT: of elements, for information
)

// duration is of milliseconds, as the kernel counts them; a few hundred years at most.
func duration(ms uint64) time.Duration {
	return time.Duration(min(ms, math.MaxInt64/uint64(time.Millisecond))) * time.Millisecond
}

// decodeSet reads a set without its elements.
func decodeSet(f *fields) (s ruleset.Set, err error) {
	s.Name = f.str(unix.NFTA_SET_NAME)
	flags := uint32(0)
	if f.has(unix.NFTA_SET_FLAGS) {
		var ok bool
		if flags, ok = f.u32(unix.NFTA_SET_FLAGS); !ok {
			return s, foreign("set %s with flags of unknown form", s.Name)
		}
	}
	if flags&^(unix.NFT_SET_INTERVAL|unix.NFT_SET_TIMEOUT) != 0 {
		return s, foreign("set %s with flags %#x", s.Name, flags)
	}
	s.Interval = flags&unix.NFT_SET_INTERVAL != 0
	s.Expiring = flags&unix.NFT_SET_TIMEOUT != 0
	typ, _ := f.u32(unix.NFTA_SET_KEY_TYPE)
	s.V6 = typ == keyIPv6
	if typ != keyIPv4 && typ != keyIPv6 || !f.is(unix.NFTA_SET_KEY_LEN, uint32(addrSize(s.V6))) {
		return s, foreign("set %s of key type %d", s.Name, typ)
	}
	if f.has(unix.NFTA_SET_TIMEOUT) {
		ms, ok := f.u64(unix.NFTA_SET_TIMEOUT)
		if !ok || !s.Expiring {
			return s, foreign("set %s with a timeout of unknown form", s.Name)
		}
		s.Timeout = duration(ms)
	}
	desc, err := parseFields(f.v[unix.NFTA_SET_DESC])
	if err != nil {
		return s, err
	}
	// Attributes newer than these are for information, as the last ones were:
	// what changes the meaning of a set has a flag.
	for typ, v := range f.v[:nftaSetType] {
		switch typ {
		case unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME, unix.NFTA_SET_FLAGS, unix.NFTA_SET_KEY_TYPE,
			unix.NFTA_SET_KEY_LEN, unix.NFTA_SET_TIMEOUT, unix.NFTA_SET_DESC, unix.NFTA_SET_USERDATA,
			unix.NFTA_SET_PAD, nftaSetHandle:
		default:
			if !zero(v) {
				return s, foreign("set %s with attribute %d", s.Name, typ)
			}
		}
	}
	if !desc.only() {
		return s, foreign("set %s with a size", s.Name)
	}
	return s, nil
}

// bound is an element as the kernel has it: of an interval set one end of an
// interval.
type bound struct {
	at               netip.Addr
	end              bool          // at is the first address after the interval
	timeout, expires time.Duration // as of a ruleset.Element
}

// elementSize is what an element takes in an answer at least: itself, its key
// and the key's value, with 4 bytes of address.
const elementSize = 3*attrHeader + 4

// decodeElements reads the value of NFTA_SET_ELEM_LIST_ELEMENTS.
func decodeElements(s *ruleset.Set, b []byte, bounds []bound) ([]bound, error) {
	// Answers come by the hundred; room for as many again as there are keeps
	// large sets from being copied over and over.
	if n := len(b) / elementSize; cap(bounds)-len(bounds) < n {
		bounds = slices.Grow(bounds, max(n, len(bounds)))
	}
	err := attributes(b, func(typ uint16, v []byte) error {
		f, err := parseFields(v)
		if err != nil {
			return err
		}
		var d bound
		if typ != unix.NFTA_LIST_ELEM || !f.only(unix.NFTA_SET_ELEM_KEY, unix.NFTA_SET_ELEM_FLAGS,
			unix.NFTA_SET_ELEM_TIMEOUT, unix.NFTA_SET_ELEM_EXPIRATION, unix.NFTA_SET_ELEM_USERDATA) {
			return foreign("set %s has an element of unknown form", s.Name)
		}
		key, err := value(f.v[unix.NFTA_SET_ELEM_KEY])
		if err != nil {
			return err
		}
		d.at, _ = netip.AddrFromSlice(key)
		if len(key) != addrSize(s.V6) {
			return foreign("set %s has an element of %d bytes", s.Name, len(key))
		}
		if f.has(unix.NFTA_SET_ELEM_FLAGS) {
			flags, ok := f.u32(unix.NFTA_SET_ELEM_FLAGS)
			if !ok || flags&^unix.NFT_SET_ELEM_INTERVAL_END != 0 || flags != 0 && !s.Interval {
				return foreign("set %s has an element with flags %#x", s.Name, flags)
			}
			d.end = flags != 0
		}
		if err := d.lifetime(s, &f); err != nil {
			return err
		}
		bounds = append(bounds, d)
		return nil
	})
	return bounds, err
}

// lifetime reads what is said of an element's expiry. A permanent element has
// no expiration, and depending on the kernel a timeout of 0 or none.
func (d *bound) lifetime(s *ruleset.Set, f *fields) error {
	ms, hasTimeout := f.u64(unix.NFTA_SET_ELEM_TIMEOUT)
	left, expires := f.u64(unix.NFTA_SET_ELEM_EXPIRATION)
	if hasTimeout != f.has(unix.NFTA_SET_ELEM_TIMEOUT) || expires != f.has(unix.NFTA_SET_ELEM_EXPIRATION) ||
		!s.Expiring && (ms != 0 || expires) || ms != 0 && !expires {
		return foreign("set %s has an element with a timeout of unknown form", s.Name)
	}
	switch {
	case d.end || !s.Expiring:
	case expires:
		d.timeout, d.expires = duration(ms), duration(left)
	case s.Timeout != 0:
		d.timeout = ruleset.Permanent
	}
	return nil
}

// join makes ranges of the bounds of a set, in whatever order they come.
// odd reports intervals that meet without a bound that ends the first: some
// versions of nft make them, and they cannot be deleted one by one.
func join(s *ruleset.Set, bounds []bound) (elements []ruleset.Element, odd bool, err error) {
	if len(bounds) == 0 {
		return nil, false, nil
	}
	if !s.Interval {
		elements = make([]ruleset.Element, 0, len(bounds))
		for _, b := range bounds {
			elements = append(elements, ruleset.Element{Range: ruleset.Range{From: b.at, To: b.at}, Timeout: b.timeout, Expires: b.expires})
		}
		return elements, false, nil
	}
	elements = make([]ruleset.Element, 0, len(bounds)/2+1)
	slices.SortFunc(bounds, func(a, b bound) int {
		switch c := a.at.Compare(b.at); {
		case c != 0:
			return c
		case a.end == b.end:
			return 0
		case a.end:
			return -1
		default:
			return 1
		}
	})
	open := false
	for _, b := range bounds {
		if open {
			last := &elements[len(elements)-1]
			if last.To = b.at.Prev(); last.To.Less(last.From) || !last.To.IsValid() {
				return nil, false, foreign("set %s has two intervals from %s", s.Name, b.at)
			}
			odd = odd || !b.end
		}
		switch {
		case !b.end:
			elements = append(elements, ruleset.Element{Range: ruleset.Range{From: b.at}, Timeout: b.timeout, Expires: b.expires})
		case !open && !b.at.IsUnspecified() && !s.Expiring:
			// nft begins every set with an end at 0, and an expired beginning
			// disappears before its end does. There is no other reason.
			return nil, false, foreign("set %s has an interval that ends before %s and begins nowhere", s.Name, b.at)
		}
		open = !b.end
	}
	if open {
		elements[len(elements)-1].To = lastAddr(s.V6)
	}
	return elements, odd, nil
}

func lastAddr(v6 bool) netip.Addr {
	if v6 {
		return netip.AddrFrom16([16]byte(slices.Repeat([]byte{0xff}, 16)))
	}
	return netip.AddrFrom4([4]byte{0xff, 0xff, 0xff, 0xff})
}

// check refuses elements that cannot be said in a message.
func check(s *ruleset.Set) error {
	if s.Name == "" || len(s.Name) > 255 { // NFT_SET_MAXNAMELEN
		return fmt.Errorf("%.20q is not the name of a set", s.Name)
	}
	if s.Timeout < 0 || s.Timeout > 0 && !s.Expiring {
		return fmt.Errorf("set %s: its timeout %s means nothing", s.Name, s.Timeout)
	}
	return nil
}
