package varlink

import (
	"errors"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Bounds on one message, besides its size.
const (
	maxDepth    = 32      // objects and arrays in each other
	maxElements = 1 << 20 // members of all objects and arrays together
)

var (
	errSyntax   = errors.New("not JSON")
	errDepth    = errors.New("nested too deeply")
	errElements = errors.New("too many elements")
)

// scan reports whether data is one JSON text (RFC 8259) in UTF-8, within the
// bounds.
func scan(data []byte) error {
	if !utf8.Valid(data) {
		return errSyntax
	}
	s := scanner{data: data}
	if err := s.value(0); err != nil {
		return err
	}
	if s.space(); s.pos != len(data) {
		return errSyntax
	}
	return nil
}

// scanner is a place in a JSON text.
type scanner struct {
	data     []byte
	pos      int
	elements int
}

func (s *scanner) space() {
	for s.pos < len(s.data) {
		switch s.data[s.pos] {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return
		}
	}
}

// peek is the first byte of what comes next; 0 at the end.
func (s *scanner) peek() byte {
	s.space()
	if s.pos < len(s.data) {
		return s.data[s.pos]
	}
	return 0
}

// take passes over c if it comes next.
func (s *scanner) take(c byte) bool {
	if s.peek() != c || s.pos >= len(s.data) {
		return false
	}
	s.pos++
	return true
}

// word passes over a word if it comes next.
func (s *scanner) word(w string) bool {
	if s.space(); len(s.data)-s.pos < len(w) || string(s.data[s.pos:s.pos+len(w)]) != w {
		return false
	}
	s.pos += len(w)
	return true
}

// value passes over a value of any type.
func (s *scanner) value(depth int) error {
	ok := false
	switch s.peek() {
	case '{':
		return s.members(depth, '{', '}')
	case '[':
		return s.members(depth, '[', ']')
	case '"':
		_, ok = s.text()
	case 't':
		ok = s.word("true")
	case 'f':
		ok = s.word("false")
	case 'n':
		ok = s.word("null")
	default:
		_, ok = s.number()
	}
	if !ok {
		return errSyntax
	}
	return nil
}

// members passes over an object or array.
func (s *scanner) members(depth int, open, end byte) error {
	if depth == maxDepth {
		return errDepth
	}
	s.take(open)
	for first := true; !s.take(end); first = false {
		if !first && !s.take(',') {
			return errSyntax
		}
		if s.elements++; s.elements > maxElements {
			return errElements
		}
		if open == '{' {
			if _, ok := s.text(); !ok || !s.take(':') {
				return errSyntax
			}
		}
		if err := s.value(depth + 1); err != nil {
			return err
		}
	}
	return nil
}

// text passes over a string and returns it with its quotes.
func (s *scanner) text() ([]byte, bool) {
	if s.peek() != '"' {
		return nil, false
	}
	start := s.pos
	for i := start + 1; i < len(s.data); i++ {
		switch c := s.data[i]; {
		case c == '"':
			s.pos = i + 1
			return s.data[start:s.pos], true
		case c < ' ':
			return nil, false
		case c == '\\':
			i++
			if i == len(s.data) {
				return nil, false
			}
			switch s.data[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				if _, ok := hex4(s.data[i+1:]); !ok {
					return nil, false
				}
				i += 4
			default:
				return nil, false
			}
		}
	}
	return nil, false
}

// number passes over a number and returns it.
func (s *scanner) number() (text []byte, ok bool) {
	s.space()
	start := s.pos
	digits := func() bool {
		from := s.pos
		for s.pos < len(s.data) && '0' <= s.data[s.pos] && s.data[s.pos] <= '9' {
			s.pos++
		}
		return s.pos > from
	}
	// Unlike take, this allows no space in between.
	one := func(cs ...byte) bool {
		for _, c := range cs {
			if s.pos < len(s.data) && s.data[s.pos] == c {
				s.pos++
				return true
			}
		}
		return false
	}
	one('-')
	if !one('0') && !digits() {
		return nil, false
	}
	if one('.') && !digits() {
		return nil, false
	}
	if one('e', 'E') {
		one('+', '-')
		if !digits() {
			return nil, false
		}
	}
	return s.data[start:s.pos], true
}

// str passes over a string and returns what it stands for. Half of a
// surrogate pair becomes U+FFFD.
func (s *scanner) str() (string, bool) {
	text, ok := s.text()
	if !ok {
		return "", false
	}
	text = text[1 : len(text)-1]
	i := 0
	for i < len(text) && text[i] != '\\' {
		i++
	}
	if i == len(text) {
		return string(text), true
	}
	out := append(make([]byte, 0, len(text)), text[:i]...)
	for i < len(text) {
		c := text[i]
		if c != '\\' {
			out = append(out, c)
			i++
			continue
		}
		c = text[i+1]
		i += 2
		switch c {
		case 'b':
			c = '\b'
		case 'f':
			c = '\f'
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'u':
			r, _ := hex4(text[i:])
			i += 4
			if utf16.IsSurrogate(r) {
				low := rune(0)
				if i+6 <= len(text) && text[i] == '\\' && text[i+1] == 'u' {
					low, _ = hex4(text[i+2:])
				}
				if r = utf16.DecodeRune(r, low); r != utf8.RuneError {
					i += 6
				}
			}
			out = utf8.AppendRune(out, r)
			continue
		}
		out = append(out, c)
	}
	return string(out), true
}

// hex4 is the number that the first four hexadecimal digits stand for.
func hex4(b []byte) (rune, bool) {
	if len(b) < 4 {
		return 0, false
	}
	for _, c := range b[:4] {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
			return 0, false
		}
	}
	n, err := strconv.ParseUint(string(b[:4]), 16, 16)
	return rune(n), err == nil
}
