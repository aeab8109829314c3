package control

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/start"
	"github.com/terok-ai/terok-box/wire/verdict"
)

// Program is the private program that is a container's supervisor. It is
// started with its Args, by which others recognise it, and with the open files
// of package start and this one.
const Program = "supervisor"

// FileLog is the number of an open file of a process besides those of package
// start: the socket that gets the packets which the firewall logs. Without it,
// as when somebody else has them, it is /dev/null.
const (
	FileLog = start.FileOwn + iota
	files
)

// NumFiles is how many open files there are, without the standard streams.
const NumFiles = files - start.FileSpec

// Spec is what the hook tells the supervisor when it starts it, and what a
// process tells the one that takes its place.
type Spec struct {
	StateDir  string            `json:"state_dir"`
	Owner     string            `json:"owner"`     // state directory whose lists govern the network; "" if it is StateDir
	Container string            `json:"container"` // as the operator calls it
	ID        string            `json:"id"`        // 12 to 64 digits
	Dossier   map[string]string `json:"dossier"`   // as the annotations have it, meta_path included
	Audit     bool              `json:"audit"`     // write lines about blocked packets

	RuntimeDir string `json:"runtime_dir"` // where the sockets are; "": below the state directory
	PID        int    `json:"pid"`         // the container's first process
	Start      uint64 `json:"start"`       // of that process: clock ticks after boot
	NetNS      string `json:"netns"`       // device:inode of the container's network namespace
	Roster     string `json:"roster"`      // the file that lists who lives in it; "" if nobody else can
	Restarts   int    `json:"restarts"`    // how often the process had to be started again
}

// shortID is how many digits of an id name a container's sockets.
const shortID = 12

// Short is the first 12 digits of the container's id.
func (s Spec) Short() string { return s.ID[:min(shortID, len(s.ID))] }

// Sockets are where a supervisor serves, if nobody else does.
type Sockets struct{ Control, Events, Clearance, Verdict string }

// All are all of them.
func (s Sockets) All() []string { return []string{s.Control, s.Events, s.Clearance, s.Verdict} }

// SocketsOf are the sockets of a container in the user's runtime directory,
// such as /run/user/1000, or if that is "" below its state directory.
func SocketsOf(runtimeDir, stateDir, short string) Sockets {
	if runtimeDir == "" {
		in := func(name string) string { return filepath.Join(stateDir, "run", name+".sock") }
		return Sockets{in("control"), in("events"), in("clearance"), in("verdict")}
	}
	return Sockets{
		SocketPath(runtimeDir, short), event.SocketPath(runtimeDir, short),
		clearance.SocketPath(runtimeDir, short), verdict.SocketPath(runtimeDir, short),
	}
}

// Identity is what tells a container's processes from others.
type Identity struct {
	start.Identity
	ID    string // the first 12 digits of the id of the container that it was started for
	PID   int    // that container's first process
	Start uint64 // of that process
}

// Identity is that of a process in a role.
func (s Spec) Identity(r start.Role) Identity {
	return Identity{start.Identity{Role: r, StateDir: s.StateDir, NetNS: s.NetNS, Roster: s.Roster}, s.Short(), s.PID, s.Start}
}

// Args are the arguments of a process: the program's name and its identity.
func (s Spec) Args(r start.Role) []string {
	i := s.Identity(r)
	return i.Args(Program, i.ID, fmt.Sprintf("%d:%d", i.PID, i.Start))
}

// ParseArgs is the inverse of Args.
func ParseArgs(args []string) (i Identity, ok bool) {
	common, more, ok := start.ParseArgs(Program, args)
	if !ok || len(more) != 2 {
		return Identity{}, false
	}
	pid, began, _ := strings.Cut(more[1], ":")
	n, err1 := strconv.Atoi(pid)
	t, err2 := strconv.ParseUint(began, 10, 64)
	if err1 != nil || err2 != nil {
		return Identity{}, false
	}
	return Identity{common, more[0], n, t}, true
}

// Check refuses what no process can have been started for.
func (s Spec) Check() error {
	if err := s.Identity(start.Server).Check(s.PID, s.Start); err != nil {
		return err
	}
	if len(s.ID) < shortID || strings.Trim(s.ID, "0123456789abcdefABCDEF") != "" {
		return errors.New("no id of the container")
	}
	for _, p := range []string{s.Owner, s.RuntimeDir} {
		if p == "" {
			continue
		}
		if err := start.CheckPath(p); err != nil {
			return err
		}
	}
	return nil
}
