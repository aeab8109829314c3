// Package notify shows people what happens to their containers and hears what
// they choose: popups on a desktop, over D-Bus. It is also the program
// terok-clearance-notify, and can be used by other Go programs.
//
// A Notifier shows popups: Desktop on whatever desktop there is, Callback to a
// function, Null to nobody. A Subscriber knows the questions of all hubs of a
// user; Popups shows them with a Notifier; Watch is both together.
//
// The program confines itself, which the package never does: it would be
// another program's process.
//
// It must never import another applet, nor anything of the kernel's side. No
// other package of this project speaks D-Bus.
package notify

import (
	"context"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/terok-ai/terok-box/applets/internal/subscriber"
)

// Bounds of what is shown, in characters. What is longer is cut.
const (
	maxSummary = 512
	maxBody    = 4096
	maxWord    = 128 // a key or label
	maxActions = 8
)

// Notifier shows popups to somebody. Its methods are safe for concurrent use.
type Notifier interface {
	// Notify shows a popup and returns its id, which is 0 if there is nobody
	// to see it.
	Notify(ctx context.Context, p Popup) (id uint32, err error)
	// Close takes a popup away; neither of its functions is called for that. One
	// that is not there any more is no error.
	Close(ctx context.Context, id uint32) error
	// Disconnect ends the notifier. What is shown stays, and no function is
	// called any more.
	Disconnect()
}

// Popup is what a Notifier shows. Its texts are plain: nothing in them marks
// anything up.
type Popup struct {
	Summary   string
	Body      string   // lines
	Actions   []Action // buttons
	Unable    string   // one more line of the body where there can be no buttons: what to do instead
	Urgency   Urgency
	Resident  bool          // stays when an action was chosen
	Transient bool          // is not kept in a history
	Timeout   time.Duration // Never, AsIsCustomary or how long it stays
	Icon      string        // a name, or the URI of a file; "": ours
	Replaces  uint32        // the popup that it takes the place of; 0: none
	Identity  Identity      // for notifiers that are no desktops

	// Chosen is called when an action was chosen, Closed when the popup is not
	// there any more. They may be nil, and may call the notifier.
	Chosen func(key string)
	Closed func(r Reason)
}

// Action is a button: a key for Popup.Chosen, and its label.
type Action = subscriber.Action

// Urgency is the urgency of a popup.
type Urgency = subscriber.Urgency

// The urgencies.
const (
	Low      = subscriber.Low
	Normal   = subscriber.Normal
	Critical = subscriber.Critical
)

// Timeouts that are no times.
const (
	Never         = subscriber.Never
	AsIsCustomary = subscriber.AsIsCustomary
)

// Identity is the container that a popup is about.
type Identity = subscriber.Identity

// Reason is why a popup is not there any more, as desktops count it.
type Reason uint32

// The reasons.
const (
	Expired   Reason = 1 // its time was over
	Dismissed Reason = 2 // somebody has taken it away
	Withdrawn Reason = 3 // a program has
	Undefined Reason = 4
	Vanished  Reason = 1 << 16 // with what had shown it: the desktop ended, or began anew
)

func (r Reason) String() string {
	switch r {
	case Expired:
		return "expired"
	case Dismissed:
		return "dismissed"
	case Withdrawn:
		return "withdrawn"
	case Vanished:
		return "vanished"
	}
	return "undefined"
}

// Null shows nothing.
type Null struct{}

// Notify returns 0.
func (Null) Notify(context.Context, Popup) (uint32, error) { return 0, nil }

// Close does nothing.
func (Null) Close(context.Context, uint32) error { return nil }

// Disconnect does nothing.
func (Null) Disconnect() {}

// bounded is the popup with texts that every desktop takes: valid UTF-8, of
// bounded length, without control characters.
func (p Popup) bounded() Popup {
	p.Summary = text(p.Summary, maxSummary, false)
	p.Body = text(p.Body, maxBody, true)
	p.Unable = text(p.Unable, maxBody, true)
	p.Icon = text(p.Icon, maxBody, false)
	actions := make([]Action, 0, min(len(p.Actions), maxActions))
	for _, a := range p.Actions[:min(len(p.Actions), maxActions)] {
		actions = append(actions, Action{Key: text(a.Key, maxWord, false), Label: text(a.Label, maxWord, false)})
	}
	p.Actions = actions
	return p
}

// text is s as it can be sent: control characters, and those that reorder
// text, become blanks. Lines may stay lines.
func text(s string, limit int, lines bool) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' && lines:
			return r
		case unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r), r == 0x2028, r == 0x2029:
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, string(utf8.RuneError)))
	if utf8.RuneCountInString(s) <= limit {
		return s
	}
	return string([]rune(s)[:limit-1]) + "…"
}
