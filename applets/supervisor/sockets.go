package supervisor

import (
	"path/filepath"

	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/verdict"
)

// paths are where a container's sockets are.
type paths struct {
	control, events, clearance, verdict string
	others                              []string // where somebody else may take events
}

func pathsOf(spec control.Spec) paths {
	if spec.RuntimeDir == "" {
		in := func(name string) string { return filepath.Join(spec.StateDir, "run", name+".sock") }
		return paths{control: in("control"), events: in("events"), clearance: in("clearance"), verdict: in("verdict"), others: []string{in("events")}}
	}
	dir, short := spec.RuntimeDir, spec.Short()
	return paths{
		control: control.SocketPath(dir, short), events: event.SocketPath(dir, short),
		clearance: clearance.SocketPath(dir, short), verdict: verdict.SocketPath(dir, short),
		others: event.SocketPaths(dir, short),
	}
}
