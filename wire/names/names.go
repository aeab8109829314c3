// Package names is the varlink interface org.terok.ShieldDns1: what the
// process that finds the addresses of one container's names says about them,
// and how it is told that the lists of names have changed. It also has what
// the hook tells that process when it starts it.
//
// It must never import anything but the standard library and wire/varlink.
package names

import (
	"context"
	"net/netip"
)

// Service is what the interface does. Implementations are safe for
// concurrent use.
type Service interface {
	// Names are the names that this container asked for and was answered
	// with the address, the one that was asked for last first.
	Names(addr netip.Addr) []Name
	// Addresses are those the container may have been answered for a name,
	// and that it can reach now because of it.
	Addresses(name string) []netip.Addr
	// Reload reads the lists of names again. What was learned only for names
	// that are no longer allowed is closed before it returns.
	Reload(ctx context.Context) (Change, error)
	// Forget forgets what names were answered with, and closes every address
	// that is open because of a name: these it returns. No answer leaves later
	// than that whose addresses are not open again.
	Forget(ctx context.Context) ([]netip.Addr, error)
	Status() Status
	// Watch calls f with every question from now on, until ctx ends or f
	// fails. A watcher that is too slow misses questions, and the next one it
	// gets says how many.
	Watch(ctx context.Context, f func(Question) error) error
}

// Name is a name that the container asked for.
type Name struct {
	Name    string `json:"name"` // lower case, no trailing dot
	Allowed bool   `json:"allowed"`
	Age     int64  `json:"age"` // seconds since it was answered last
}

// Change is what a Reload did.
type Change struct {
	Allowed  int      `json:"allowed"`  // entries in force
	Denied   int      `json:"denied"`   // likewise
	Removed  []string `json:"removed"`  // addresses that are closed now
	Enforced bool     `json:"enforced"` // false: the firewall takes no addresses now (quarantine)
}

// Status is for people and tests.
type Status struct {
	Tier      string   `json:"tier"`      // "proxy", "dnsmasq" or "static"
	Upstreams []string `json:"upstreams"` // address:port
	Allowed   int      `json:"allowed"`   // entries
	Denied    int      `json:"denied"`
	Questions int64    `json:"questions"` // since the process started
	Refused   int64    `json:"refused"`   // of these, names that are not allowed: Refused or Denied
	Failed    int64    `json:"failed"`    // of these, ended in SERVFAIL
	Cached    int64    `json:"cached"`    // of these, answered without asking
	Entries   int      `json:"entries"`   // in the cache
	Bytes     int64    `json:"bytes"`     // of the cache, about
	Learned   int      `json:"learned"`   // addresses in the firewall because of names
	Restarts  int      `json:"restarts"`  // of the process that answers, since the container started
}

// Verdicts on a question.
const (
	Allowed  = "allowed"  // answered, its addresses can be reached
	Refused  = "refused"  // not on a list
	Denied   = "denied"   // refused, and no list would have it otherwise: denied by an entry, in quarantine, never looked up
	Resolved = "resolved" // not on a list, answered all the same: its addresses cannot be reached
	Failed   = "failed"   // allowed, and no answer was to be had
)

// Question is one question of the container and what became of it.
type Question struct {
	Time      string   `json:"time"`      // RFC 3339, UTC, microseconds
	Name      string   `json:"name"`      // lower case, no trailing dot, printable ASCII
	Type      string   `json:"type"`      // "A", "AAAA", "TYPE65280"
	Verdict   string   `json:"verdict"`   // see the constants
	Reason    string   `json:"reason"`    // why not allowed or failed, for people; "" if allowed
	Addresses []string `json:"addresses"` // that it was answered with
	Missed    int64    `json:"missed"`    // questions before this one that the watcher did not get
}

// Spec is what the hook tells the process when it starts it, and what a
// process tells the one that takes its place.
type Spec struct {
	StateDir  string `json:"state_dir"`
	Container string `json:"container"` // as the operator calls it
	ID        string `json:"id"`        // the first 12 digits of the container's id
	Socket    string `json:"socket"`    // where to serve the interface
	Audit     bool   `json:"audit"`     // write lines about refused names

	Tier     string `json:"tier"`     // "proxy", "dnsmasq" or "static"
	PID      int    `json:"pid"`      // the container's first process
	Start    uint64 `json:"start"`    // of that process: clock ticks after boot
	NetNS    string `json:"netns"`    // device:inode of the container's network namespace
	Roster   string `json:"roster"`   // the file that lists who lives in it; "" if nobody else can
	Restarts int    `json:"restarts"` // how often the process had to be started again
}
