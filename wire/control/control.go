// Package control is what a command tells the process that works on one
// container's firewall, and what that answers. A process that a command
// started reads one request from a pipe and writes one response, JSON objects
// both. The container's supervisor serves the same as the varlink interface
// org.terok.ShieldControl1.
//
// It must never import anything but the standard library and other packages of
// wire.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"
)

// MaxMessage bounds a request or response, in bytes. A response carries at
// most a listing of 100,000 addresses.
const MaxMessage = 16 << 20

// Op is what is asked for.
type Op string

// The operations.
const (
	OpState      Op = "state"      // → State, and Detail when it is "error"
	OpRules      Op = "rules"      // → State, Listing
	OpVerify     Op = "verify"     // fails unless the kernel holds what the bundle says, enforcing
	OpUp         Op = "up"         //
	OpDown       Op = "down"       //
	OpDisengage  Op = "disengage"  //
	OpQuarantine Op = "quarantine" //
	OpAllow      Op = "allow"      // Targets, Names → Applied
	OpDeny       Op = "deny"       // Targets, Names → Applied
	OpSync       Op = "sync"       // sets are made what the state files say → Applied: addresses learned because of names
	OpReset      Op = "reset"      // what was learned because of names is forgotten → Applied: addresses closed
)

// ops are all of them.
func ops() []Op {
	return []Op{OpState, OpRules, OpVerify, OpUp, OpDown, OpDisengage, OpQuarantine, OpAllow, OpDeny, OpSync, OpReset}
}

// Request is one operation on one container. StateDir, PID and NetNS are
// never sent to a supervisor, which knows its container.
type Request struct {
	Op        Op       `json:"op"`
	Container string   `json:"container"` // as the operator calls it: for messages and the audit log
	StateDir  string   `json:"state_dir"`
	PID       int      `json:"pid"`               // a process of the container, in the host's numbering
	NetNS     string   `json:"netns,omitempty"`   // device:inode of its network namespace, when known
	Targets   []string `json:"targets,omitempty"` // addresses and CIDRs
	Names     []string `json:"names,omitempty"`   // as they stand in the lists: "example.com", "*.example.com", "=example.com"
	Target    string   `json:"target,omitempty"`  // what the operator typed: for the audit log
	Audit     bool     `json:"audit"`             // write audit lines

	// Until is when it is too late to begin; zero: never. Whoever has given up
	// waiting for a process that hangs is then not surprised by it. The wall
	// clock counts, in milliseconds.
	Until time.Time `json:"until,omitzero"`
}

// Late says that it is too late to begin.
func (r Request) Late() bool { return !r.Until.IsZero() && time.Now().Round(0).After(r.Until) }

// Response is the outcome. Error is empty on success.
type Response struct {
	Error   string   `json:"error,omitempty"`
	State   string   `json:"state,omitempty"`
	Detail  string   `json:"detail,omitempty"`
	Listing string   `json:"listing,omitempty"`
	Applied []string `json:"applied,omitempty"`
	Warning string   `json:"warning,omitempty"`
}

// Service is what a supervisor does for commands. Implementations are safe
// for concurrent use.
type Service interface {
	// Perform carries out a request on the supervisor's own container.
	Perform(ctx context.Context, req Request) Response
	// Packets calls f with every packet that the container's firewall logs
	// from now on, until ctx ends or f fails. Whoever is too slow misses
	// packets, and the next one counts them.
	Packets(ctx context.Context, f func(Packet) error) error
	Status() Status
}

// Packet is one packet that the container's firewall logged.
type Packet struct {
	Time   time.Time  // UTC, microseconds
	Prefix string     // what the rule says, as it stands there
	Dest   netip.Addr //
	Proto  uint8      // IP protocol number
	Port   uint16     // destination's; 0 if the protocol has none
	Lost   int64      // packets before this one that this watcher did not get
}

// Status is for people and tests.
type Status struct {
	Container   string `json:"container"`   // as the operator calls it
	ID          string `json:"id"`          // the first 12 digits of its id
	NetNS       string `json:"netns"`       // device:inode of the network namespace it works on
	PID         int    `json:"pid"`         // of the supervisor
	Uptime      int64  `json:"uptime"`      // of that process, in seconds
	Restarts    int    `json:"restarts"`    // of the supervisor, since the container started
	Packets     int64  `json:"packets"`     // logged, since the process started, as all of the following
	Lost        int64  `json:"lost"`        // of these, never seen because there were too many
	Asked       int64  `json:"asked"`       // questions put to whoever can answer
	Suppressed  int64  `json:"suppressed"`  // of the packets, repetitions of what was asked a moment ago
	Subscribers int    `json:"subscribers"` // who gets the questions now
	Pending     int    `json:"pending"`     // questions that nobody has answered yet
	Hub         bool   `json:"hub"`         // this process passes the questions on; else whoever serves their socket
	HubPID      int    `json:"hub_pid"`     // that process; 0 if nobody serves it
	Trouble     string `json:"trouble"`     // what does not work now, a line each, for people; "" if nothing
}

// Read decodes one message that must fill r to its end.
func Read(r io.Reader, into any) error {
	data, err := io.ReadAll(io.LimitReader(r, MaxMessage+1))
	switch {
	case err != nil:
		return fmt.Errorf("read message: %w", err)
	case len(data) > MaxMessage:
		return fmt.Errorf("message over %d bytes", MaxMessage)
	case len(data) == 0:
		return errors.New("no message")
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("message is not what was expected: %w", err)
	}
	return nil
}

// Write encodes one message.
func Write(w io.Writer, message any) error {
	data, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	_, err = w.Write(append(data, '\n'))
	return err
}
