package nft

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Netlink attributes (struct nlattr): length including this header, type, in
// the machine's byte order, then the value, padded to four bytes. Numbers in
// nf_tables' values are big endian.
const (
	attrHeader = 4
	attrType   = 1<<14 - 1
)

// appendAttr appends the header of an attribute whose value, which the caller
// appends and pads, has a size.
func appendAttr(b []byte, typ uint16, size int) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeader+size))
	return binary.NativeEndian.AppendUint16(b, typ)
}

// appendString appends an attribute whose value is a string.
func appendString(b []byte, typ uint16, text string) []byte {
	b = append(appendAttr(b, typ, len(text)+1), text...)
	for b = append(b, 0); len(b)%4 != 0; {
		b = append(b, 0)
	}
	return b
}

// attributes calls f with each attribute's type, without flags, and value.
func attributes(b []byte, f func(typ uint16, v []byte) error) error {
	for len(b) > 0 {
		if len(b) < attrHeader {
			return fmt.Errorf("netlink attributes: %d bytes left over", len(b))
		}
		size := int(binary.NativeEndian.Uint16(b))
		typ := binary.NativeEndian.Uint16(b[2:]) & attrType
		if size < attrHeader || size > len(b) {
			return fmt.Errorf("netlink attribute %d: %d bytes in the space of %d", typ, size, len(b))
		}
		if err := f(typ, b[attrHeader:size]); err != nil {
			return err
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}

// fields are a message's or an expression's attributes by type. Those beyond
// its size are in more.
type fields struct {
	v    [24][]byte
	more bool // a type beyond v that is not all zero
}

func parseFields(b []byte) (f fields, err error) {
	err = attributes(b, func(typ uint16, v []byte) error {
		if v == nil {
			v = []byte{}
		}
		if int(typ) >= len(f.v) {
			f.more = f.more || !zero(v)
			return nil
		}
		if f.v[typ] != nil {
			return fmt.Errorf("netlink attribute %d twice", typ)
		}
		f.v[typ] = v
		return nil
	})
	return f, err
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func (f *fields) has(typ uint16) bool { return f.v[typ] != nil }

// only reports whether all attributes but the known ones are zero. A kernel
// that learns a new attribute sends it with everything; zero means that the
// new thing is not in use.
func (f *fields) only(known ...uint16) bool {
	for typ, v := range f.v {
		if !zero(v) && !slices.Contains(known, uint16(typ)) {
			return false
		}
	}
	return !f.more
}

// u32 is a number; ok is false if it is missing or of another size.
func (f *fields) u32(typ uint16) (v uint32, ok bool) {
	if len(f.v[typ]) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(f.v[typ]), true
}

// is reports whether typ is a number of that value.
func (f *fields) is(typ uint16, want uint32) bool {
	v, ok := f.u32(typ)
	return ok && v == want
}

// u64 is a number of 64 bits; ok is as of u32.
func (f *fields) u64(typ uint16) (v uint64, ok bool) {
	if len(f.v[typ]) != 8 {
		return 0, false
	}
	return binary.BigEndian.Uint64(f.v[typ]), true
}

// str is a string without its terminating zero, "" if missing.
func (f *fields) str(typ uint16) string {
	v := f.v[typ]
	if n := len(v); n > 0 && v[n-1] == 0 {
		v = v[:n-1]
	}
	return string(v)
}
