// Package ruleset is the container's firewall as a value: the one table, its
// sets, chains and rules. It builds, parses, prints, verifies and compares
// them and is the security boundary of the project: what it has not
// understood completely it refuses.
//
// It is pure: it does no I/O and must never import anything but the standard
// library. Package nl/nft carries its values to the kernel and back.
package ruleset

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Names and numbers that the existing systems share with us.
const (
	TableName  = "terok_shield" // of family inet
	Group      = 100            // NFLOG group of every log statement
	OutputHook = "output"       // chain name, hook of the same name
	InputHook  = "input"
)

// Prefix is the text that a log statement puts before a packet. The reader
// tells verdicts apart by it.
type Prefix string

// The log prefixes, exactly as they stand in the kernel.
const (
	LogBlocked    Prefix = "TEROK_SHIELD_BLOCKED: "
	LogDenied     Prefix = "TEROK_SHIELD_DENIED: "
	LogPrivate    Prefix = "TEROK_SHIELD_PRIVATE: "
	LogAllowed    Prefix = "TEROK_SHIELD_ALLOWED: "
	LogBypass     Prefix = "TEROK_SHIELD_BYPASS: "
	LogDown       Prefix = "TEROK_SHIELD_DOWN: "       // written by later systems only
	LogQuarantine Prefix = "TEROK_SHIELD_QUARANTINE: " // nobody is asked about these
)

// Flood bounds: beyond them a packet meets the same verdict without a log
// line, so that a scanning container cannot flood the reader.
const (
	LogRate  = 100 // log lines a second
	LogBurst = 200 // packets
)

// Table is the whole of table inet terok_shield.
type Table struct {
	Sets   []Set // in order of declaration
	Output Chain
	Input  Chain
}

// Set is a named set of addresses of one family.
type Set struct {
	Name     string
	V6       bool
	Interval bool          // flags interval
	Expiring bool          // flags timeout
	Timeout  time.Duration // default of an element; 0: none. Only with Expiring
	Elements []Element     // sorted, not overlapping, minimal: see Normalize
}

// Element is a range of addresses, in most cases a single one.
type Element struct {
	Range
	// Timeout of this element: 0 is the set's default, or none where the set
	// has none; Permanent never expires even in a set that has a default.
	Timeout time.Duration
	// Expires is what is left of it in a listing; 0 elsewhere.
	Expires time.Duration
}

// Permanent as an element's timeout overrides the default of its set.
const Permanent time.Duration = -1

// Chain is one of the two base chains; type filter, priority filter (0).
type Chain struct {
	Policy Verdict // Accept or Drop
	Rules  []Rule
}

// Rule is matches and statements in the one order that exists in this
// dialect: matches, limit, log, counter, verdict.
type Rule struct {
	Match   []Match // all must hold; empty matches everything
	Limit   Limit   // zero: none
	Log     Prefix  // "": no log statement
	Counted bool    // has a counter
	Packets uint64  // counter values, only in listings; never compared
	Bytes   uint64
	Verdict Verdict // Continue: the rule only logs
}

// Limit is "limit rate [over] Rate/second burst Burst packets".
type Limit struct {
	Over  bool
	Rate  uint64
	Burst uint32
}

// Verdict ends the evaluation of a packet.
type Verdict uint8

// The verdicts of the dialect. Reject is "reject with icmpx admin-prohibited".
const (
	Continue Verdict = iota
	Accept
	Drop
	Reject
)

// Match is one condition of a rule: IIf, OIf, CT, DPort, Daddr, DaddrIn, SaddrIn or
// ICMPv6. The types are comparable.
type Match interface{ match() }

type (
	// IIf is iifname "NAME".
	IIf string
	// OIf is oifname "NAME".
	OIf string
	// CT is ct state in the given ones.
	CT uint8
	// DPort is (tcp|udp) dport PORT.
	DPort struct {
		Proto Proto
		Port  uint16
	}
	// Daddr is (ip|ip6) daddr PREFIX; a host is a full-length prefix.
	Daddr netip.Prefix
	// DaddrIn is (ip|ip6) daddr @SET.
	DaddrIn struct {
		Set string
		V6  bool
	}
	// SaddrIn is (ip|ip6) saddr @SET.
	SaddrIn struct {
		Set string
		V6  bool
	}
	// ICMPv6 is icmpv6 type TYPE, by number.
	ICMPv6 uint8
)

// Proto is an IP protocol number.
type Proto uint8

// The protocols a DPort knows.
const (
	TCP Proto = 6
	UDP Proto = 17
)

// Bits of CT, as the kernel numbers them (NF_CT_STATE_BIT).
const (
	CTInvalid     CT = 1
	CTEstablished CT = 2
	CTRelated     CT = 4
	CTNew         CT = 8
)

// ICMPv6 types of neighbour discovery (RFC 4861).
const (
	NDRouterSolicit   ICMPv6 = 133
	NDRouterAdvert    ICMPv6 = 134
	NDNeighborSolicit ICMPv6 = 135
	NDNeighborAdvert  ICMPv6 = 136
)

func (IIf) match()     {}
func (OIf) match()     {}
func (CT) match()      {}
func (DPort) match()   {}
func (Daddr) match()   {}
func (DaddrIn) match() {}
func (SaddrIn) match() {}
func (ICMPv6) match()  {}

// State is what a table does to the container's traffic.
type State uint8

// The states, in the words of the command line.
const (
	Offline    State = iota // no table
	Up                      // only what is allowed
	Down                    // everything but denied and private addresses
	Disengaged              // everything but denied addresses
	Quarantine              // nothing
	Error                   // a table that is none of these
)

var stateWords = [...]string{"offline", "up", "down", "disengaged", "quarantine", "error"}

// String is the word of the command line.
func (s State) String() string {
	if int(s) < len(stateWords) {
		return stateWords[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// ParseState is the inverse of String.
func ParseState(s string) (State, error) {
	if i := slices.Index(stateWords[:], s); i >= 0 {
		return State(i), nil
	}
	return Error, fmt.Errorf("unknown state %.20q: want one of %s", s, strings.Join(stateWords[:], ", "))
}

// Set is the set of that name, or nil.
func (t *Table) Set(name string) *Set {
	for i := range t.Sets {
		if t.Sets[i].Name == name {
			return &t.Sets[i]
		}
	}
	return nil
}

// Equal reports whether two rules do the same. Counter values do not matter.
func (r Rule) Equal(o Rule) bool {
	return r.Limit == o.Limit && r.Log == o.Log && r.Counted == o.Counted && r.Verdict == o.Verdict &&
		slices.Equal(r.Match, o.Match)
}

// Equal reports whether two chains have the same policy and rules.
func (c Chain) Equal(o Chain) bool {
	return c.Policy == o.Policy && slices.EqualFunc(c.Rules, o.Rules, Rule.Equal)
}
