package names

import (
	"errors"

	"github.com/terok-ai/terok-box/wire/start"
)

// Program is the private program that is the process. It is started with its
// Args, by which others recognise it, and with the open files of package
// start and these.
const Program = "dns-proxy"

// Open files of the process besides those of package start, by their number.
// Those that it gets none of are /dev/null.
const (
	FileUDP = start.FileOwn + iota // port 53 in the namespace, of the proxy tier; of the first process none
	FileTCP                        // likewise
	files
)

// NumFiles is how many there are, without the standard streams.
const NumFiles = files - start.FileSpec

// Args are the arguments of a process: the program's name and its identity.
func (s Spec) Args(r start.Role) []string { return s.identity(r).Args(Program) }

func (s Spec) identity(r start.Role) start.Identity {
	return start.Identity{Role: r, StateDir: s.StateDir, NetNS: s.NetNS, Roster: s.Roster}
}

// ParseArgs is the inverse of Args.
func ParseArgs(args []string) (start.Identity, bool) {
	id, more, ok := start.ParseArgs(Program, args)
	if !ok || len(more) > 0 {
		return start.Identity{}, false
	}
	return id, true
}

// Check refuses what no process can have been started for.
func (s Spec) Check() error {
	if err := s.identity(start.Server).Check(s.PID, s.Start); err != nil {
		return err
	}
	if s.Socket == "" {
		return errors.New("no socket")
	}
	return start.CheckPath(s.Socket)
}
