// Package policy is what an operator means by a target, a profile and the
// merge of profiles with the decisions taken while a container runs. It is
// pure: texts and values in, values out.
//
// It must never do I/O and never import anything of this project but
// wire/bundle, which defines how addresses are written.
package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/terok-ai/terok-box/wire/bundle"
)

const (
	maxName      = 253  // bytes of a domain name in text form, RFC 1035 §2.3.4
	maxLabel     = 63   // bytes of a label, likewise
	maxTarget    = 1024 // bytes of anything that is to become a target
	maxContainer = 255  // bytes of a container name; it names a directory
	maxProfile   = 251  // bytes of a profile name; with ".txt" it names a file
)

// Target is what is allowed or denied: a network or a domain name.
type Target struct {
	Prefix netip.Prefix // masked; invalid if the target is a name

	// Name is a domain name in lower case without a trailing dot; "" if the
	// target is a network. It stands for itself and everything below it.
	Name     string
	Exact    bool // written "=name": nothing below it
	Wildcard bool // written "*.name": means the same as the plain name
}

// IsName says whether the target is a domain name.
func (t Target) IsName() bool { return t.Name != "" }

// String is the canonical form; ParseTarget reads it back.
func (t Target) String() string {
	switch {
	case t.Exact:
		return "=" + t.Name
	case t.Wildcard:
		return "*." + t.Name
	case t.IsName():
		return t.Name
	}
	return bundle.FormatPrefix(t.Prefix)
}

// ParseTarget reads an address, a network or a domain name. What looks like
// an address but is none is refused instead of becoming a name, because some
// resolver would find an address in it; so is a single label, because with
// everything below it it would be a whole top-level domain.
func ParseTarget(s string) (Target, error) {
	if len(s) > maxTarget {
		return Target{}, fmt.Errorf("target of %d bytes; at most %d are possible", len(s), maxTarget)
	}
	s = strings.TrimSpace(s)
	if s == "" {
		return Target{}, errors.New("empty target; give an address, a network or a domain name")
	}
	if p, err := bundle.ParsePrefix(s); err == nil {
		return Target{Prefix: p}, nil
	}
	var t Target
	if rest, ok := strings.CutPrefix(s, "="); ok {
		t.Exact, t.Name = true, rest
	} else if rest, ok := strings.CutPrefix(s, "*."); ok {
		t.Wildcard, t.Name = true, rest
	} else {
		t.Name = s
	}
	t.Name = strings.TrimSuffix(t.Name, ".")
	if err := checkName(t.Name); err != nil {
		return Target{}, fmt.Errorf("invalid target %s: %w", shown(s), err)
	}
	t.Name = strings.ToLower(t.Name) // all ASCII by now
	return t, nil
}

// checkName says what is wrong with a domain name.
func checkName(s string) error {
	if strings.HasPrefix(s, "-") {
		return errors.New("it begins with '-', like an option")
	}
	if strings.ContainsAny(s, ":/[]%@") {
		return errors.New("neither an address, a network nor a domain name; leave out scheme, port, path, brackets and zone")
	}
	for i := range len(s) {
		if s[i] >= 0x80 {
			return errors.New("not ASCII; write an internationalised domain name in its xn-- form")
		}
	}
	if len(s) > maxName {
		return fmt.Errorf("a domain name has at most %d characters", maxName)
	}
	labels := strings.Split(s, ".")
	for _, l := range labels {
		switch {
		case l == "":
			return errors.New("a part between dots is empty")
		case len(l) > maxLabel:
			return fmt.Errorf("a part between dots has at most %d characters", maxLabel)
		case l[0] == '-' || l[len(l)-1] == '-':
			return errors.New("a part between dots begins or ends with '-'")
		case strings.Contains(l, "*"):
			return errors.New("'*' is possible only once, at the front, as in *.example.com")
		}
		for i := range len(l) {
			if c := l[i]; !isAlnum(c) && c != '-' && c != '_' {
				return fmt.Errorf("character %s is not possible in a domain name", strconv.QuoteRune(rune(c)))
			}
		}
	}
	if looksNumeric(labels[len(labels)-1]) {
		return errors.New("it looks like an address but is none; write 192.0.2.1, 192.0.2.0/24, 2001:db8::1 or 2001:db8::/32")
	}
	if len(labels) == 1 {
		return errors.New("a name needs at least two parts, as in example.com")
	}
	return nil
}

// looksNumeric reports whether a name that ends in this label is taken for an
// IPv4 address by some resolver: digits, or 0x and hexadecimal digits.
func looksNumeric(label string) bool {
	digits := "0123456789"
	if len(label) >= 2 && label[0] == '0' && label[1]|0x20 == 'x' {
		label, digits = label[2:], "0123456789abcdefABCDEF"
	}
	return strings.Trim(label, digits) == ""
}

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
}

// ProfileName refuses what must not become a file name.
func ProfileName(s string) error {
	if !nameLike(s, "._-", maxProfile) || !isAlnum(s[0]) {
		return fmt.Errorf("Unsafe name: %s", shown(s)) //nolint:staticcheck // text known from the existing systems
	}
	return nil
}

// ContainerName refuses what Podman does not take as a name or an id, and
// what must not become an argument or the name of a directory.
func ContainerName(s string) error {
	if !nameLike(s, "._-", maxContainer) || !isAlnum(s[0]) && s[0] != '_' {
		return fmt.Errorf("Unsafe container name: %s", shown(s)) //nolint:staticcheck // text known from the existing systems
	}
	return nil
}

// ContainerID refuses what is not a container's id or at least its first 12
// digits.
func ContainerID(s string) error {
	if len(s) < 12 || len(s) > 64 || strings.Trim(s, "0123456789abcdefABCDEF") != "" {
		return fmt.Errorf("Unsafe container id: %s", shown(s)) //nolint:staticcheck // text known from the existing systems
	}
	return nil
}

// nameLike reports whether s has 1 to limit bytes, all of them ASCII letters,
// digits or among others.
func nameLike(s, others string, limit int) bool {
	for i := range len(s) {
		if !isAlnum(s[i]) && strings.IndexByte(others, s[i]) < 0 {
			return false
		}
	}
	return 0 < len(s) && len(s) <= limit
}

// shown is s in single quotes, shortened and with invisible characters
// escaped.
func shown(s string) string {
	const most = 80
	tail := ""
	if len(s) > most {
		s, tail = s[:most], "…"
	}
	q := strconv.Quote(s)
	return "'" + q[1:len(q)-1] + tail + "'"
}
