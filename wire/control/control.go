// Package control is what a command tells the process that works on one
// container's firewall, and what that answers: JSON objects, one request and
// one response.
//
// It must never import anything but the standard library.
package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
)

// Request is one operation on one container.
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
}

// Response is the outcome. Error is empty on success.
type Response struct {
	Error   string   `json:"error,omitempty"`
	State   string   `json:"state,omitempty"`
	Detail  string   `json:"detail,omitempty"`
	Listing string   `json:"listing,omitempty"`
	Applied []string `json:"applied,omitempty"`
	Warning string   `json:"warning,omitempty"`
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
