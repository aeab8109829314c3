package subscriber

import (
	"context"
	"time"

	"github.com/terok-ai/terok-box/wire/clearance"
)

// Notifier shows notifications to somebody. Its methods are called one after
// the other and may take their time: what comes meanwhile is put together, so
// that of each notification only the newest state is shown. Errors are logged;
// what could not be shown is tried again when there is news of it, or with
// Subscriber.Again. An Observer is told more.
type Notifier interface {
	// Notify shows a notification, in place of the one with the same ID if it
	// Replaces one.
	Notify(ctx context.Context, n Notification) error
	// Close takes one away that was shown; reason is for people.
	Close(ctx context.Context, id uint64, reason string) error
}

// Observer is a Notifier that wants to know what becomes of containers and
// their shields, whether or not that is shown.
type Observer interface {
	Observe(ctx context.Context, e Lifecycle)
}

// Lifecycle is one of the events of wire/event but a block.
type Lifecycle struct {
	Type      string
	Container string
	Reason    string // why it exited
}

// State is what a notification is about.
type State uint8

// The states. Asking, Repeated and Failed are those of a prompt that can be
// answered; Answered is its last.
const (
	Notice   State = iota // an event of a container or its shield
	Asking                // a question
	Repeated              // the same question: the container tried again
	Failed                // the answer could not be carried out, for now
	Answered              // it was
)

// Urgency is the urgency of a notification, as desktops count it.
type Urgency uint8

// The urgencies.
const (
	Low Urgency = iota
	Normal
	Critical
)

// Timeouts that are no times.
const (
	Never         time.Duration = 0
	AsIsCustomary time.Duration = -1 // as the one who shows it thinks fit
)

// Action is something that can be done about a notification.
type Action struct {
	Key   string // for Subscriber.Act
	Label string
}

// Notification is what is shown. Its texts are printable and of bounded
// length; they hold text that somebody else chose, set off where it could be
// taken for ours, and mark nothing up.
type Notification struct {
	ID       uint64 // never 0, nor used for anything else later
	Replaces bool   // one with this ID was shown
	Category Category
	State    State
	Summary  string
	Body     string // lines, without a line feed at the end
	Actions  []Action
	Urgency  Urgency
	// Resident ones stay when an action was chosen, transient ones are not
	// kept in a history.
	Resident, Transient bool
	Timeout             time.Duration // Never, AsIsCustomary or how long it stays
	Identity            Identity
	Prompt              *Prompt // nil for a Notice
}

// Prompt is a question that was not answered yet: may a container reach a
// target?
type Prompt struct {
	ID       uint64 // 1, 2, 3 …
	Hub      string // the name of the hub that asks
	Identity Identity
	Domain   string // the name that the container asked for; "" if none is known
	Dest     string // the address; "" if the name was refused before it was looked up
	Port     int64  // of the newest attempt
	Proto    int64  // IP protocol number
	Ports    []Port // that were tried, the newest last
	Count    int    // attempts, as far as they were reported
	First    time.Time
	Last     time.Time

	Answering bool   // an answer is being carried out
	Action    string // the last answer
	Failed    string // why that could not be carried out; "" if it was not tried
}

// Port is a port of a target that was tried.
type Port struct{ Proto, Port int64 }

// Target is what an answer is about: the name if one is known, else the
// address.
func (p Prompt) Target() string {
	if p.Domain != "" {
		return p.Domain
	}
	return p.Dest
}

// answers are the actions of every prompt.
func answers() []Action {
	return []Action{{clearance.Allow, "Allow"}, {clearance.Deny, "Deny"}}
}
