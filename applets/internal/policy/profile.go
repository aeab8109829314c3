package policy

import (
	"bytes"
	"fmt"
	"net/netip"
)

const (
	// MaxProfileSize is the number of bytes of a profile.
	MaxProfileSize = 1 << 20
	maxEntries     = 100_000 // of a profile
)

// Profile is a named list of targets.
type Profile struct {
	Name    string
	Entries []Entry
}

// Entry is a target and where it stands in its profile.
type Entry struct {
	Target
	Line int // from 1
}

// ParseProfile reads the text of a profile: one target a line; blank lines
// and lines that begin with '#' mean nothing.
func ParseProfile(name string, text []byte) (Profile, error) {
	p := Profile{Name: name}
	if len(text) > MaxProfileSize {
		return Profile{}, fmt.Errorf("profile %s: %d bytes; at most %d are possible", shownName(name), len(text), MaxProfileSize)
	}
	n := 0
	for line := range bytes.Lines(text) {
		n++
		if line = bytes.TrimSpace(line); len(line) == 0 || line[0] == '#' {
			continue
		}
		if len(p.Entries) == maxEntries {
			return Profile{}, fmt.Errorf("profile %s, line %d: more than %d entries", shownName(name), n, maxEntries)
		}
		t, err := ParseTarget(string(line))
		if err != nil {
			return Profile{}, fmt.Errorf("profile %s, line %d: %w", shownName(name), n, err)
		}
		p.Entries = append(p.Entries, Entry{Target: t, Line: n})
	}
	return p, nil
}

// shownName is a profile's name in a message: bare if it is a proper one.
func shownName(name string) string {
	if ProfileName(name) != nil {
		return shown(name)
	}
	return name
}

// Policy is what several profiles allow together.
type Policy struct {
	Prefixes []netip.Prefix
	Names    []Target // domain names only
}

// Compose joins profiles in the given order. What is there already is left
// out; profiles do not include each other.
func Compose(profiles []Profile) Policy {
	var p Policy
	seen := make(map[Target]bool)
	for _, prof := range profiles {
		for _, e := range prof.Entries {
			key := e.Target
			key.Wildcard = false // the same meaning
			if seen[key] {
				continue
			}
			seen[key] = true
			if e.IsName() {
				p.Names = append(p.Names, e.Target)
			} else {
				p.Prefixes = append(p.Prefixes, e.Prefix)
			}
		}
	}
	return p
}
