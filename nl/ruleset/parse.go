package ruleset

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of a text. What Build makes stays within them.
const (
	maxText     = 4 << 20 // bytes
	maxElements = 100_000
	maxRules    = 1000
	maxName     = 127 // bytes of a set's name
	maxIface    = 15  // bytes of an interface's name (IFNAMSIZ - 1)
	maxTimeout  = 366 * 24 * time.Hour
)

// Parse reads a table: as String and Listing write it, as `nft list table`
// prints it, or as a text for `nft -f` of the existing systems, in which
// commands that add elements may follow the table. It refuses whatever is not
// known to mean exactly what the value says, with the line it stands in.
//
// Permanent elements that overlap are joined, where nft refuses the whole
// text. The sets of the result are normalized.
func Parse(text string) (*Table, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("ruleset of %d bytes, at most %d are read", len(text), maxText)
	}
	p := &parser{lex: lexer{text: text, line: 1}, setLine: map[string]int{}}
	if err := p.advance(); err != nil {
		return nil, err
	}
	if err := p.file(); err != nil {
		return nil, err
	}
	return &p.table, nil
}

type parser struct {
	lex      lexer
	tok      token // not yet consumed
	table    Table
	setLine  map[string]int // where a set was declared
	uses     []setUse
	elements int
	rules    int
}

// setUse is a rule's reference to a set.
type setUse struct {
	DaddrIn
	line int
}

// advance reads the next token.
func (p *parser) advance() (err error) {
	p.tok, err = p.lex.next()
	return err
}

func (p *parser) errorf(format string, args ...any) error {
	return syntaxError(p.tok.line, format, args...)
}

// take consumes a token of that kind; what says in an error what is missing.
func (p *parser) take(kind tokenKind, what string) (token, error) {
	t := p.tok
	if t.kind != kind {
		return t, p.errorf("want %s, not %s", what, t.describe())
	}
	return t, p.advance()
}

// words consumes exactly these words.
func (p *parser) words(words ...string) error {
	for _, w := range words {
		if !p.is(w) {
			return p.errorf("want %q, not %s", w, p.tok.describe())
		}
		if err := p.advance(); err != nil {
			return err
		}
	}
	return nil
}

// is reports whether the next token is that word.
func (p *parser) is(word string) bool { return p.tok.kind == tokWord && p.tok.text == word }

// option consumes the word if it is there.
func (p *parser) option(word string) (bool, error) {
	if !p.is(word) {
		return false, nil
	}
	return true, p.advance()
}

// skip consumes tokens of these kinds.
func (p *parser) skip(kinds ...tokenKind) error {
	for slices.Contains(kinds, p.tok.kind) {
		if err := p.advance(); err != nil {
			return err
		}
	}
	return nil
}

// separator ends a statement: a line's end or a semicolon; nothing is needed
// before a closing brace and at the end of the text.
func (p *parser) separator() error {
	switch p.tok.kind {
	case tokClose, tokEOF:
		return nil
	case tokNewline, tokSemicolon:
		return p.skip(tokNewline, tokSemicolon)
	}
	return p.errorf("unexpected %s after a complete statement", p.tok.describe())
}

// block consumes statements in braces.
func (p *parser) block(statement func() error) error {
	if _, err := p.take(tokOpen, `"{"`); err != nil {
		return err
	}
	for {
		if err := p.skip(tokNewline, tokSemicolon); err != nil {
			return err
		}
		if p.tok.kind == tokClose {
			return p.advance()
		}
		if err := statement(); err != nil {
			return err
		}
		if err := p.separator(); err != nil {
			return err
		}
	}
}

func (p *parser) file() error {
	if err := p.skip(tokNewline, tokSemicolon); err != nil {
		return err
	}
	if !p.is("table") {
		return p.errorf("want a table first, not %s", p.tok.describe())
	}
	if err := p.words("table", "inet", TableName); err != nil {
		return err
	}
	if err := p.block(p.inTable); err != nil {
		return err
	}
	for {
		if err := p.separator(); err != nil {
			return err
		}
		if p.tok.kind == tokEOF {
			break
		}
		if err := p.addElements(); err != nil {
			return err
		}
	}
	for _, c := range []struct {
		name string
		*Chain
	}{{OutputHook, &p.table.Output}, {InputHook, &p.table.Input}} {
		if c.Policy == Continue {
			return p.errorf("%s chain missing", c.name)
		}
	}
	for _, u := range p.uses {
		switch s := p.table.Set(u.Set); {
		case s == nil:
			return syntaxError(u.line, "set %.40q is not declared", u.Set)
		case s.V6 != u.V6:
			return syntaxError(u.line, "set %s holds %s", u.Set, typeName(s.V6))
		}
	}
	for i := range p.table.Sets {
		s := &p.table.Sets[i]
		if err := s.Normalize(); err != nil {
			return syntaxError(p.setLine[s.Name], "%w", err)
		}
	}
	return nil
}

// addElements is a command after the table.
func (p *parser) addElements() error {
	if p.is("table") {
		return p.errorf("a second table")
	}
	if err := p.words("add", "element", "inet", TableName); err != nil {
		return err
	}
	name, err := p.take(tokWord, "a set's name")
	if err != nil {
		return err
	}
	s := p.table.Set(name.text)
	if s == nil {
		return syntaxError(name.line, "set %.40q is not declared", name.text)
	}
	return p.elementList(s)
}

func (p *parser) inTable() error {
	switch {
	case p.is("set"):
		return p.set()
	case p.is("chain"):
		return p.chain()
	}
	return p.errorf("want a set or a chain, not %s", p.tok.describe())
}

func (p *parser) set() error {
	if err := p.advance(); err != nil {
		return err
	}
	name, err := p.take(tokWord, "a set's name")
	if err != nil {
		return err
	}
	if !isName(name.text) {
		return syntaxError(name.line, "%.40q cannot be the name of a set", name.text)
	}
	if p.table.Set(name.text) != nil {
		return syntaxError(name.line, "set %s is declared twice", name.text)
	}
	p.setLine[name.text] = name.line
	s := Set{Name: name.text}
	seen := map[string]bool{}
	err = p.block(func() error {
		item := p.tok
		if item.kind != tokWord {
			return p.errorf("set %s: unexpected %s", s.Name, item.describe())
		}
		if seen[item.text] {
			return p.errorf("set %s: a second %.40q", s.Name, item.text)
		}
		seen[item.text] = true
		if err := p.advance(); err != nil {
			return err
		}
		switch item.text {
		case "type":
			t, err := p.take(tokWord, "the type of the elements")
			switch {
			case err != nil:
				return err
			case t.text != typeName(false) && t.text != typeName(true):
				return syntaxError(t.line, "set %s: unknown type %.40q", s.Name, t.text)
			}
			s.V6 = t.text == typeName(true)
			return nil
		case "flags":
			return p.setFlags(&s)
		case "timeout":
			t, err := p.take(tokWord, "a time")
			if err != nil {
				return err
			}
			s.Expiring = true // nft lets the default stand for the flag
			s.Timeout, err = p.duration(t)
			if err == nil && s.Timeout == 0 {
				err = syntaxError(t.line, "set %s: a default timeout of nothing", s.Name)
			}
			return err
		case "elements":
			if !seen["type"] {
				return syntaxError(item.line, "set %s: elements before their type", s.Name)
			}
			if _, err := p.take(tokEquals, `"="`); err != nil {
				return err
			}
			return p.elementList(&s)
		}
		return syntaxError(item.line, "set %s: unknown property %.40q", s.Name, item.text)
	})
	if err != nil {
		return err
	}
	if !seen["type"] {
		return syntaxError(name.line, "set %s has no type", s.Name)
	}
	p.table.Sets = append(p.table.Sets, s)
	return nil
}

func (p *parser) setFlags(s *Set) error {
	var seen []string
	for {
		t, err := p.take(tokWord, "a flag")
		switch {
		case err != nil:
			return err
		case slices.Contains(seen, t.text):
			return syntaxError(t.line, "set %s: flag %s twice", s.Name, t.text)
		case t.text == "interval":
			s.Interval = true
		case t.text == "timeout":
			s.Expiring = true
		default:
			return syntaxError(t.line, "set %s: unknown flag %.40q", s.Name, t.text)
		}
		seen = append(seen, t.text)
		if p.tok.kind != tokComma {
			return nil
		}
		if err := p.advance(); err != nil {
			return err
		}
	}
}

// isName reports whether s can name a set: what nft takes without quotes and
// nobody mistakes for something else.
func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c|0x20 < 'a' || c|0x20 > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && len(s) <= maxName
}

// elementList is { ELEMENT [timeout T] [expires T], … }, over several lines.
func (p *parser) elementList(s *Set) error {
	if _, err := p.take(tokOpen, `"{"`); err != nil {
		return err
	}
	for {
		if err := p.skip(tokNewline); err != nil {
			return err
		}
		t, err := p.take(tokWord, "an address")
		if err != nil {
			return err
		}
		if p.elements++; p.elements > maxElements {
			return syntaxError(t.line, "more than %d elements", maxElements)
		}
		r, err := parseRange(t.text)
		if err != nil {
			return syntaxError(t.line, "set %s: %w", s.Name, err)
		}
		if r.From.Is6() != s.V6 {
			return syntaxError(t.line, "set %s of %s cannot hold %s", s.Name, typeName(s.V6), r)
		}
		e := Element{Range: r}
		if err := p.elementTimes(&e); err != nil {
			return err
		}
		s.Elements = append(s.Elements, e)
		if err := p.skip(tokNewline); err != nil {
			return err
		}
		if p.tok.kind == tokClose {
			return p.advance()
		}
		if _, err := p.take(tokComma, `"," or "}" after an element`); err != nil {
			return err
		}
	}
}

func (p *parser) elementTimes(e *Element) error {
	if ok, err := p.option("timeout"); err != nil {
		return err
	} else if ok {
		t, err := p.take(tokWord, "a time")
		if err != nil {
			return err
		}
		// "never" is how later versions of nft say it.
		if t.text != "never" {
			if e.Timeout, err = p.duration(t); err != nil {
				return err
			}
		}
		if e.Timeout == 0 {
			e.Timeout = Permanent
		}
	}
	if ok, err := p.option("expires"); err != nil {
		return err
	} else if ok {
		t, err := p.take(tokWord, "a time")
		if err != nil {
			return err
		}
		if e.Expires, err = p.duration(t); err != nil {
			return err
		}
	}
	return nil
}

// parseRange reads a host, a prefix or from-to. Zones, leading zeros and host
// bits are refused: whoever wrote them meant something else.
func parseRange(s string) (Range, error) {
	if strings.Contains(s, "%") {
		return Range{}, fmt.Errorf("address %.60q has a zone", s)
	}
	if from, to, ok := strings.Cut(s, "-"); ok {
		a, errA := netip.ParseAddr(from)
		b, errB := netip.ParseAddr(to)
		switch r := (Range{a, b}); {
		case errA != nil || errB != nil:
			return Range{}, fmt.Errorf("%.100q is not a range of addresses", s)
		case a.BitLen() != b.BitLen():
			return Range{}, fmt.Errorf("range %.100q mixes address families", s)
		case !r.valid():
			return Range{}, fmt.Errorf("range %.100q is reversed", s)
		default:
			return r, nil
		}
	}
	p, err := parsePrefix(s)
	if err != nil {
		return Range{}, err
	}
	return RangeOf(p), nil
}

// parsePrefix reads a host or a prefix.
func parsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%.60q is not an address", s)
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%.60q is not a prefix", s)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("prefix %.60q has host bits set", s)
	}
	return p, nil
}

// duration reads a time as nft writes it, say 29m59s996ms.
func (p *parser) duration(t token) (time.Duration, error) {
	bad := func() (time.Duration, error) {
		return 0, syntaxError(t.line, "%.40q is not a time up to %d days", t.text, maxTimeout/(24*time.Hour))
	}
	var d time.Duration
	units := []struct {
		name string
		unit time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}, {"ms", time.Millisecond}}
	for rest := t.text; ; {
		end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		if end <= 0 {
			return bad()
		}
		n, err := strconv.ParseUint(rest[:end], 10, 64)
		if err != nil {
			return bad()
		}
		rest = rest[end:]
		name := rest[:len(rest)-len(strings.TrimLeft(rest, "dhms"))]
		i := slices.IndexFunc(units, func(u struct {
			name string
			unit time.Duration
		}) bool {
			return u.name == name
		})
		if i < 0 || n > uint64(maxTimeout/units[i].unit) {
			return bad()
		}
		d += time.Duration(n) * units[i].unit
		if d > maxTimeout {
			return bad()
		}
		units = units[i+1:] // each once, the largest first
		if rest = rest[len(name):]; rest == "" {
			return d, nil
		}
	}
}

func (p *parser) chain() error {
	if err := p.advance(); err != nil {
		return err
	}
	name, err := p.take(tokWord, "a chain's name")
	if err != nil {
		return err
	}
	var c *Chain
	switch name.text {
	case OutputHook:
		c = &p.table.Output
	case InputHook:
		c = &p.table.Input
	default:
		return syntaxError(name.line, "chain %.40q: only %s and %s are known", name.text, OutputHook, InputHook)
	}
	if c.Policy != Continue {
		return syntaxError(name.line, "chain %s is declared twice", name.text)
	}
	err = p.block(func() error {
		switch {
		case c.Policy == Continue:
			return p.hook(c, name.text)
		case p.is("type"), p.is("policy"):
			return p.errorf("chain %s: a second %q", name.text, p.tok.text)
		}
		if p.rules++; p.rules > maxRules {
			return p.errorf("more than %d rules", maxRules)
		}
		r, err := p.rule()
		c.Rules = append(c.Rules, r)
		return err
	})
	if err == nil && c.Policy == Continue {
		err = syntaxError(name.line, "chain %s is not attached to its hook", name.text)
	}
	return err
}

// hook is the line that makes a base chain of it, with its policy.
func (p *parser) hook(c *Chain, name string) error {
	if err := p.words("type", "filter", "hook", name, "priority"); err != nil {
		return err
	}
	if !p.is("filter") && !p.is("0") {
		return p.errorf("chain %s: want priority filter or 0, not %s", name, p.tok.describe())
	}
	if err := p.advance(); err != nil {
		return err
	}
	// nft would take its default, accept, for a policy that is not said.
	if _, err := p.take(tokSemicolon, `";" and the policy`); err != nil {
		return err
	}
	if err := p.skip(tokNewline); err != nil {
		return err
	}
	if err := p.words("policy"); err != nil {
		return err
	}
	switch {
	case p.is("accept"):
		c.Policy = Accept
	case p.is("drop"):
		c.Policy = Drop
	default:
		return p.errorf("chain %s: unknown policy %s", name, p.tok.describe())
	}
	return p.advance()
}

// stages are the words a statement begins with, in the one order in which they
// follow each other; only of matches there may be several.
var stages = map[string]int{
	"iifname": 1, "oifname": 1, "ct": 1, "tcp": 1, "udp": 1, "ip": 1, "ip6": 1, "icmpv6": 1,
	"limit":   2,
	"log":     3,
	"counter": 4,
	"accept":  5, "drop": 5, "reject": 5,
}

// rule is one line of a chain.
func (p *parser) rule() (r Rule, err error) {
	last := 1
	for p.tok.kind != tokNewline && p.tok.kind != tokSemicolon && p.tok.kind != tokClose && p.tok.kind != tokEOF {
		t, err := p.take(tokWord, "a statement")
		if err != nil {
			return r, err
		}
		switch stage := stages[t.text]; {
		case stage == 0:
			return r, syntaxError(t.line, "unknown statement %.40q", t.text)
		case stage < last, stage == last && stage > 1:
			return r, syntaxError(t.line, "%q cannot follow what stands before it", t.text)
		default:
			last = stage
		}
		switch t.text {
		case "limit":
			r.Limit, err = p.limit()
		case "log":
			r.Log, err = p.log()
		case "counter":
			r.Counted = true
			r.Packets, r.Bytes, err = p.counter()
		case "accept":
			r.Verdict = Accept
		case "drop":
			r.Verdict = Drop
		case "reject":
			r.Verdict = Reject
			err = p.words("with", "icmpx", "admin-prohibited")
		default:
			var m Match
			if m, err = p.match(t); err == nil && slices.ContainsFunc(r.Match, func(o Match) bool { return sameField(m, o) }) {
				err = syntaxError(t.line, "a second match of the same kind: %s", matchText(m))
			}
			r.Match = append(r.Match, m)
		}
		if err != nil {
			return r, err
		}
	}
	return r, nil
}

// sameField reports whether two matches look at the same field of a packet.
func sameField(a, b Match) bool {
	field := func(m Match) string {
		switch m.(type) {
		case Daddr, DaddrIn:
			return "daddr"
		}
		return fmt.Sprintf("%T", m)
	}
	return field(a) == field(b)
}

// match is what follows the word t.
func (p *parser) match(t token) (Match, error) {
	switch t.text {
	case "iifname", "oifname":
		name, err := p.take(tokString, "an interface's name in quotes")
		if err != nil {
			return nil, err
		}
		// A trailing asterisk would match many.
		bad := strings.ContainsFunc(name.text, func(r rune) bool { return strings.ContainsRune(`*\/ '`, r) })
		if name.text == "" || len(name.text) > maxIface || bad {
			return nil, syntaxError(name.line, "%.40q is not the name of one interface", name.text)
		}
		if t.text == "iifname" {
			return IIf(name.text), nil
		}
		return OIf(name.text), nil
	case "ct":
		if err := p.words("state"); err != nil {
			return nil, err
		}
		return p.ctState()
	case "tcp", "udp":
		if err := p.words("dport"); err != nil {
			return nil, err
		}
		port, err := p.number(16)
		if err == nil && port == 0 {
			err = syntaxError(t.line, "port 0")
		}
		proto := TCP
		if t.text == "udp" {
			proto = UDP
		}
		return DPort{proto, uint16(port)}, err
	case "ip", "ip6":
		return p.address(t)
	default: // icmpv6
		if err := p.words("type"); err != nil {
			return nil, err
		}
		for _, n := range ndNames {
			if p.is(n.name) {
				return n.typ, p.advance()
			}
		}
		typ, err := p.number(8)
		return ICMPv6(typ), err
	}
}

func (p *parser) ctState() (Match, error) {
	var ct CT
	for {
		t, err := p.take(tokWord, "a connection state")
		if err != nil {
			return nil, err
		}
		var bit CT
		for _, n := range ctNames {
			if n.name == t.text {
				bit = n.bit
			}
		}
		if bit == 0 || ct&bit != 0 {
			return nil, syntaxError(t.line, "unknown or repeated connection state %.40q", t.text)
		}
		ct |= bit
		if p.tok.kind != tokComma {
			return ct, nil
		}
		if err := p.advance(); err != nil {
			return nil, err
		}
	}
}

// address is what follows ip or ip6.
func (p *parser) address(family token) (Match, error) {
	v6 := family.text == "ip6"
	if p.is("saddr") {
		if err := p.advance(); err != nil {
			return nil, err
		}
		t, err := p.take(tokWord, "a set")
		if err != nil {
			return nil, err
		}
		name, ok := strings.CutPrefix(t.text, "@")
		if !ok {
			return nil, syntaxError(t.line, "a source is only looked up in a set, not compared with %.60q", t.text)
		}
		p.uses = append(p.uses, setUse{DaddrIn{Set: name, V6: v6}, t.line})
		return SaddrIn{Set: name, V6: v6}, nil
	}
	if err := p.words("daddr"); err != nil {
		return nil, err
	}
	t, err := p.take(tokWord, "an address")
	if err != nil {
		return nil, err
	}
	if name, ok := strings.CutPrefix(t.text, "@"); ok {
		m := DaddrIn{Set: name, V6: v6}
		p.uses = append(p.uses, setUse{m, t.line})
		return m, nil
	}
	if strings.Contains(t.text, "%") {
		return nil, syntaxError(t.line, "address %.60q has a zone", t.text)
	}
	prefix, err := parsePrefix(t.text)
	if err != nil {
		return nil, syntaxError(t.line, "%w", err)
	}
	if prefix.Addr().Is6() != v6 {
		return nil, syntaxError(t.line, "%s cannot be compared with %s", family.text, prefix)
	}
	return Daddr(prefix), nil
}

// limit is rate [over] N/second burst N packets.
func (p *parser) limit() (l Limit, err error) {
	if err = p.words("rate"); err != nil {
		return l, err
	}
	if l.Over, err = p.option("over"); err != nil {
		return l, err
	}
	t, err := p.take(tokWord, "a rate")
	if err != nil {
		return l, err
	}
	n, ok := strings.CutSuffix(t.text, "/second")
	if l.Rate, err = parseNumber(n, 32); !ok || err != nil || l.Rate == 0 {
		return l, syntaxError(t.line, "%.40q is not a rate of packets per second", t.text)
	}
	if err = p.words("burst"); err != nil {
		return l, err
	}
	burst, err := p.number(32)
	if err != nil {
		return l, err
	}
	l.Burst = uint32(burst)
	return l, p.words("packets")
}

// log is a prefix and a group, in either order.
func (p *parser) log() (prefix Prefix, err error) {
	line := p.tok.line
	group := false
	for {
		switch {
		case p.is("prefix") && prefix == "":
			if err := p.advance(); err != nil {
				return "", err
			}
			t, err := p.take(tokString, "a log prefix in quotes")
			if err != nil {
				return "", err
			}
			prefix = Prefix(t.text)
			if !slices.Contains(logPrefixes, prefix) {
				return "", syntaxError(t.line, "unknown log prefix %.60q", t.text)
			}
		case p.is("group") && !group:
			if err := p.advance(); err != nil {
				return "", err
			}
			n, err := p.number(16)
			if err != nil {
				return "", err
			}
			if n != Group {
				return "", syntaxError(line, "log group %d, want %d", n, Group)
			}
			group = true
		case prefix == "" || !group:
			return "", syntaxError(line, "a log statement needs one prefix and one group, not %s", p.tok.describe())
		default:
			return prefix, nil
		}
	}
}

var logPrefixes = []Prefix{LogBlocked, LogDenied, LogPrivate, LogAllowed, LogBypass, LogDown, LogQuarantine}

// counter is the counter's values, which only a listing has.
func (p *parser) counter() (packets, bytes uint64, err error) {
	ok, err := p.option("packets")
	if !ok || err != nil {
		return 0, 0, err
	}
	if packets, err = p.number(64); err != nil {
		return 0, 0, err
	}
	if err = p.words("bytes"); err != nil {
		return 0, 0, err
	}
	bytes, err = p.number(64)
	return packets, bytes, err
}

// number consumes a decimal number of so many bits.
func (p *parser) number(bits int) (uint64, error) {
	t, err := p.take(tokWord, "a number")
	if err != nil {
		return 0, err
	}
	n, err := parseNumber(t.text, bits)
	if err != nil {
		return 0, syntaxError(t.line, "%w", err)
	}
	return n, nil
}

// parseNumber reads a decimal number without sign and leading zeros.
func parseNumber(s string, bits int) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, bits)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%.40q is not a number up to %d", s, ^uint64(0)>>(64-bits))
	}
	return n, nil
}
