// Package ascii writes JSON strings in printable ASCII only: what comes out is
// harmless on a terminal whatever a container put into it.
//
// It must never import anything but the standard library.
package ascii

import (
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// AppendString appends s as a JSON string. What is not UTF-8 becomes U+FFFD.
func AppendString(out []byte, s string) []byte {
	out = append(out, '"')
	start := 0 // of what stands for itself and was not appended yet
	for i, r := range s {
		if r >= ' ' && r <= '~' && r != '"' && r != '\\' {
			continue
		}
		out = append(out, s[start:i]...)
		if r > 0xffff {
			hi, lo := utf16.EncodeRune(r)
			out = AppendUnit(AppendUnit(out, uint16(hi)), uint16(lo))
		} else {
			out = AppendUnit(out, uint16(r))
		}
		_, n := utf8.DecodeRuneInString(s[i:])
		start = i + n
	}
	return append(append(out, s[start:]...), '"')
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
