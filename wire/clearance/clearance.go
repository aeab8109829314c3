// Package clearance is the varlink interface org.terok.Clearance1: how a hub
// asks people about connections that were blocked, and how they answer.
//
// It must never import anything but the standard library and other packages of
// wire.
package clearance

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"

	"github.com/terok-ai/terok-box/wire/sanitize"
	"github.com/terok-ai/terok-box/wire/varlink"
)

// InterfaceName is what the interface is called.
const InterfaceName = "org.terok.Clearance1"

// VerdictApplied is the type of the events that a hub makes itself, besides
// those of package event: a question was answered.
const VerdictApplied = "verdict_applied"

// Actions: what people can answer.
const (
	Allow = "allow"
	Deny  = "deny"
)

// Event is what a hub tells its subscribers. All members are always sent;
// those that do not belong to the type are empty.
type Event struct {
	Type      string            `json:"type"`
	Container string            `json:"container"`
	RequestID string            `json:"request_id"` // "" if it cannot be answered
	Dest      string            `json:"dest"`       // IP address; "" if only the name is known
	Port      int64             `json:"port"`
	Proto     int64             `json:"proto"` // IP protocol number
	Domain    string            `json:"domain"`
	Action    string            `json:"action"` // of a verdict
	OK        bool              `json:"ok"`     // the verdict was carried out
	Reason    string            `json:"reason"` // why a container exited
	Dossier   map[string]string `json:"dossier"`
}

// Target is what the question is about: the name if one is known, else the
// address. A Request must have it as its Dest.
func (e Event) Target() string {
	if e.Domain != "" {
		return e.Domain
	}
	return e.Dest
}

// clean is the event with its text sanitised.
func (e Event) clean() Event {
	for _, s := range []*string{&e.Type, &e.Container, &e.RequestID, &e.Dest, &e.Domain, &e.Action, &e.Reason} {
		*s = sanitize.String(*s, sanitize.Max)
	}
	e.Dossier = dossier(e.Dossier)
	return e
}

// dossier is m with keys and values sanitised. It copies m only if it must.
func dossier(m map[string]string) map[string]string {
	copied := false
	for k, v := range m {
		key, value := sanitize.String(k, sanitize.Max), sanitize.String(v, sanitize.Max)
		if key == k && value == v {
			continue
		}
		if !copied {
			m, copied = maps.Clone(m), true
		}
		delete(m, k)
		m[key] = value
	}
	return m
}

// Request is somebody's answer to a question. Container, RequestID and Dest
// are those of the event that asked it, Action is Allow or Deny.
type Request struct {
	Container string `json:"container"`
	RequestID string `json:"request_id"`
	Dest      string `json:"dest"` // the event's Target
	Action    string `json:"action"`
}

// Service is what the interface does. Implementations are safe for concurrent
// use.
type Service interface {
	// Subscribe calls f with every event from now on, until ctx ends or f
	// fails.
	Subscribe(ctx context.Context, f func(Event) error) error
	// Verdict carries out an answer. It returns nil if that was done, and
	// otherwise UnknownRequest, TupleMismatch, InvalidAction or ShieldFailed.
	Verdict(ctx context.Context, r Request) error
}

// UnknownRequest says that no such question is open.
type UnknownRequest struct {
	RequestID string `json:"request_id"`
}

func (e UnknownRequest) Error() string {
	return fmt.Sprintf("no question %q is open: it was answered, or its container is gone", e.RequestID)
}

// TupleMismatch says that the question is about something else.
type TupleMismatch struct {
	ExpectedContainer string `json:"expected_container"`
	ExpectedDest      string `json:"expected_dest"`
	GotContainer      string `json:"got_container"`
	GotDest           string `json:"got_dest"`
}

func (e TupleMismatch) Error() string {
	return fmt.Sprintf("the question is about %s of container %s, not about %s of %s", e.ExpectedDest, e.ExpectedContainer, e.GotDest, e.GotContainer)
}

// InvalidAction says that the answer is neither Allow nor Deny.
type InvalidAction struct {
	Action string `json:"action"`
}

func (e InvalidAction) Error() string {
	return fmt.Sprintf("%q is neither %q nor %q", e.Action, Allow, Deny)
}

// ShieldFailed says that the answer could not be carried out. The question
// stays open.
type ShieldFailed struct {
	Action string `json:"action"`
	Stderr string `json:"stderr"` // why
}

func (e ShieldFailed) Error() string {
	return fmt.Sprintf("%s could not be carried out: %s", e.Action, e.Stderr)
}

// MaxStderr bounds why an answer could not be carried out, in characters.
const MaxStderr = 512

func (e UnknownRequest) clean() UnknownRequest {
	return UnknownRequest{sanitize.String(e.RequestID, sanitize.Max)}
}

func (e TupleMismatch) clean() TupleMismatch {
	for _, s := range []*string{&e.ExpectedContainer, &e.ExpectedDest, &e.GotContainer, &e.GotDest} {
		*s = sanitize.String(*s, sanitize.Max)
	}
	return e
}

func (e InvalidAction) clean() InvalidAction {
	return InvalidAction{sanitize.String(e.Action, sanitize.Max)}
}

func (e ShieldFailed) clean() ShieldFailed {
	return ShieldFailed{sanitize.String(e.Action, sanitize.Max), sanitize.String(e.Stderr, MaxStderr)}
}

// Info is what a hub tells about itself: the same as the hubs that it stands
// in for.
func Info(version string) varlink.Info {
	return varlink.Info{Vendor: "terok", Product: "terok-clearance", Version: version, URL: "https://github.com/terok-ai/terok-clearance"}
}

// SocketPath is where the hub of one container serves the interface.
// runtimeDir is the user's, such as /run/user/1000; short the first 12 digits
// of the container's id.
func SocketPath(runtimeDir, short string) string {
	return filepath.Join(runtimeDir, "terok", "clearance", short+".sock")
}

// UserSocketPath is where a hub for all containers of a user serves it.
func UserSocketPath(runtimeDir string) string {
	return filepath.Join(runtimeDir, "terok-clearance.sock")
}
