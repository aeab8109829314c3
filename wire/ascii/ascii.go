// Package ascii writes JSON strings in printable ASCII only: what comes out is
// harmless on a terminal whatever a container put into it.
//
// It must never import anything but the standard library.
package ascii

import (
	"strings"
	"unicode/utf16"
)

// AppendString appends s as a JSON string. What is not UTF-8 becomes U+FFFD.
func AppendString(out []byte, s string) []byte {
	out = append(out, '"')
	for _, r := range s {
		if r > 0xffff {
			hi, lo := utf16.EncodeRune(r)
			out = AppendUnit(AppendUnit(out, uint16(hi)), uint16(lo))
		} else {
			out = AppendUnit(out, uint16(r))
		}
	}
	return append(out, '"')
}

// AppendUnit appends one UTF-16 code unit as it stands inside a JSON string.
func AppendUnit(out []byte, u uint16) []byte {
	const digits = "0123456789abcdef"
	switch {
	case u == '"' || u == '\\':
		return append(out, '\\', byte(u))
	case u >= ' ' && u <= '~':
		return append(out, byte(u))
	case u < ' ':
		if i := strings.IndexByte("\b\f\n\r\t", byte(u)); i >= 0 {
			return append(out, '\\', "bfnrt"[i])
		}
	}
	return append(out, '\\', 'u', digits[u>>12], digits[u>>8&15], digits[u>>4&15], digits[u&15])
}
