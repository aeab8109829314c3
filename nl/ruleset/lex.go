package ruleset

import (
	"fmt"
	"strings"
)

// token is a word, a quoted string, or one of the characters of punctuation.
// Text is a part of the input, so that a large set costs no copies.
type token struct {
	kind tokenKind
	text string
	line int
}

type tokenKind uint8

const (
	tokEOF tokenKind = iota
	tokWord
	tokString  // text is without its quotes
	tokNewline // also a comment up to its end of line
	tokSemicolon
	tokOpen
	tokClose
	tokComma
	tokEquals
)

// describe says in an error what stands there instead.
func (t token) describe() string {
	switch t.kind {
	case tokEOF:
		return "the end of the text"
	case tokNewline:
		return "the end of the line"
	case tokString:
		return fmt.Sprintf("the string %.60q", t.text)
	}
	return fmt.Sprintf("%.60q", t.text)
}

// syntaxError is the refusal of a text at a line of it.
func syntaxError(line int, format string, args ...any) error {
	return fmt.Errorf("line %d: %w", line, fmt.Errorf(format, args...))
}

type lexer struct {
	text string
	pos  int
	line int
}

// wordEnd marks the characters that end a word: white space, punctuation and
// everything that has no place in the dialect.
var wordEnd = func() (t [256]bool) {
	for c := range t {
		t[c] = c <= ' ' || c >= 0x7f || strings.IndexByte(`{};,="#\'`+"`", byte(c)) >= 0
	}
	return t
}()

func (l *lexer) next() (token, error) {
	for l.pos < len(l.text) && (l.text[l.pos] == ' ' || l.text[l.pos] == '\t') {
		l.pos++
	}
	if l.pos == len(l.text) {
		return token{tokEOF, "", l.line}, nil
	}
	start := l.pos
	one := func(k tokenKind) (token, error) {
		l.pos++
		return token{k, l.text[start:l.pos], l.line}, nil
	}
	switch c := l.text[l.pos]; c {
	case '\n':
		t, _ := one(tokNewline)
		l.line++
		return t, nil
	case ';':
		return one(tokSemicolon)
	case '{':
		return one(tokOpen)
	case '}':
		return one(tokClose)
	case ',':
		return one(tokComma)
	case '=':
		return one(tokEquals)
	case '#':
		for ; l.pos < len(l.text) && l.text[l.pos] != '\n'; l.pos++ {
			if c := l.text[l.pos]; c < ' ' && c != '\t' || c == 0x7f {
				return token{}, syntaxError(l.line, "control character %q in a comment", c)
			}
		}
		return l.next()
	case '"':
		end := strings.IndexByte(l.text[start+1:], '"')
		if end < 0 {
			return token{}, syntaxError(l.line, "a string without its closing quote")
		}
		text := l.text[start+1 : start+1+end]
		for i := range len(text) {
			if c := text[i]; c < ' ' || c >= 0x7f {
				return token{}, syntaxError(l.line, "character %q in a string", c)
			}
		}
		l.pos += end + 2
		return token{tokString, text, l.line}, nil
	default:
		for l.pos < len(l.text) && !wordEnd[l.text[l.pos]] {
			l.pos++
		}
		if l.pos == start {
			return token{}, syntaxError(l.line, "character %q has no place in a ruleset", c)
		}
		return token{tokWord, l.text[start:l.pos], l.line}, nil
	}
}
