// Package event is what happens in a container's firewall, as those that see
// it tell it the container's hub: one JSON object a line, over a Unix socket on
// which the hub never says anything.
//
// It must never import anything but the standard library and other packages of
// wire.
package event

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/terok-ai/terok-box/wire/ascii"
	"github.com/terok-ai/terok-box/wire/sanitize"
)

// Types of events, as a hub calls them.
const (
	Blocked          = "connection_blocked"
	ContainerStarted = "container_started"
	ContainerExited  = "container_exited"
	ShieldUp         = "shield_up"
	ShieldDown       = "shield_down"
	ShieldDisengaged = "shield_disengaged"
)

// pending is what producers call Blocked.
const pending = "pending"

// Bounds. Every event that Line writes is within them.
const (
	MaxLine    = 65536 // bytes of a line
	MaxDossier = 32    // pairs of a dossier
	MaxKey     = 64    // characters of a dossier's key
)

// Event is one thing that happened. A type has only the members that belong to
// it: all have Container and Dossier, Blocked has ID, Dest, Port, Proto, Domain
// and Time, ContainerExited has Reason.
type Event struct {
	Type      string
	Container string
	ID        string // of the question; with "" it cannot be answered
	Dest      string // IP address; "" if only the name is known
	Port      int64  // 0 if the protocol has none
	Proto     int64  // IP protocol number
	Domain    string // "" if no name is known
	Reason    string
	Dossier   map[string]string // what is known about the container
	Time      time.Time         // zero when written: now
}

// Line is the event as it is sent, with its LF: values sanitised, and of the
// dossier the first MaxDossier keys, in their order, that are printable and not
// longer than MaxKey. It fails for a type that is not one of the above.
func (e Event) Line() ([]byte, error) {
	out := make([]byte, 0, 512)
	member := func(name, value string) {
		out = append(append(append(out, `,"`...), name...), `":`...)
		out = ascii.AppendString(out, sanitize.String(value, sanitize.Max))
	}
	number := func(name string, n int64) {
		out = append(append(append(out, `,"`...), name...), `":`...)
		out = strconv.AppendInt(out, n, 10)
	}
	switch e.Type {
	case Blocked:
		out = append(out, `{"type":"`+pending+`"`...)
	case ContainerStarted, ContainerExited, ShieldUp, ShieldDown, ShieldDisengaged:
		out = append(append(append(out, `{"type":"`...), e.Type...), '"')
	default:
		return nil, fmt.Errorf("no events are of type %q", sanitize.String(e.Type, sanitize.Max))
	}
	member("container", e.Container)
	switch e.Type {
	case Blocked:
		member("id", e.ID)
		member("dest", e.Dest)
		number("port", e.Port)
		number("proto", e.Proto)
		member("domain", e.Domain)
	case ContainerExited:
		member("reason", e.Reason)
	}
	if d := dossier(e.Dossier); len(d) > 0 || e.Type == Blocked {
		out = append(out, `,"dossier":{`...)
		for i, k := range slices.Sorted(maps.Keys(d)) {
			if i > 0 {
				out = append(out, ',')
			}
			out = append(ascii.AppendString(out, k), ':')
			out = ascii.AppendString(out, d[k])
		}
		out = append(out, '}')
	}
	if e.Type == Blocked {
		member("ts", timestamp(e.Time))
	}
	return append(out, "}\n"...), nil
}

// timestamp is a time in UTC, with microseconds if there are any.
func timestamp(t time.Time) string {
	if t.IsZero() {
		t = time.Now()
	}
	layout := "2006-01-02T15:04:05.000000+00:00"
	if t = t.UTC().Truncate(time.Microsecond); t.Nanosecond() == 0 {
		layout = "2006-01-02T15:04:05+00:00"
	}
	return t.Format(layout)
}

// dossier is m within the bounds. It is never nil.
func dossier(m map[string]string) map[string]string {
	out := make(map[string]string, min(len(m), MaxDossier))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if len(out) == MaxDossier {
			break
		}
		if sanitize.String(k, MaxKey) == k {
			out[k] = sanitize.String(m[k], sanitize.Max)
		}
	}
	return out
}

// ErrIgnored says that a line is none of a hub's business: it is empty, or an
// event of another type.
var ErrIgnored = errors.New("nothing to do with the firewall of a container")

// SocketPath is where the hub of one container takes its events. runtimeDir is
// the user's, such as /run/user/1000; short the first 12 digits of the
// container's id.
func SocketPath(runtimeDir, short string) string {
	return filepath.Join(runtimeDir, "terok", "events", short+".sock")
}

// SocketPaths is where a producer finds the hub of one container, to be tried
// in this order: SocketPath, and where some other hubs take events.
func SocketPaths(runtimeDir, short string) []string {
	return []string{
		SocketPath(runtimeDir, short),
		filepath.Join(runtimeDir, "terok", "events", short, "ingester.sock"),
	}
}

// UserSocketPath is where a hub for all containers of a user takes events.
func UserSocketPath(runtimeDir string) string {
	return filepath.Join(runtimeDir, "terok-shield-events.sock")
}
