// Package supervisor is the private program that stands by one container, or
// by those that share its network: it sees what their firewall blocks, asks
// people about it, and carries their answers out.
//
//	kernel ───► reader ───► outlet ───► hub ──── clearance/ID.sock ────► people
//	dns-proxy ─►   │           │         │▲                               │
//	               │           │         ││◄──────────────────────────────┘
//	               ▼           │         ▼│
//	             audit.jsonl   │       verdict ◄── verdict/ID.sock
//	                           │         │
//	                           │         ▼
//	                           │       firewall ◄── control/ID.sock ──── commands
//	                           ▼
//	                         events/ID.sock, where somebody else is the hub
//
// Each part is started again when it fails, while the others go on. The whole
// is two processes (see internal/pair), of which one keeps the other, and with
// it what was asked and not answered yet.
//
// It is the one applet that imports others.
package supervisor

import (
	"errors"
	"runtime/debug"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/pair"
	"github.com/terok-ai/terok-box/applets/internal/reach"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/start"
)

// Name is the program's name.
const Name = control.Program

const (
	keeperTitle = "sup-keeper"
	logName     = "supervisor.log" // in the state directory
	// gcPercent is how much the heap grows between collections: there is a
	// process per container, most of which have little to do.
	gcPercent = 50
)

// Run is the program; see control.Spec for what it is told and given.
func Run(env *cmdenv.Env, args []string) int { return program{pair.Usual()}.run(env, args) }

// program is what the real one and that of tests differ in.
type program struct{ pace pair.Pace }

func (p program) run(env *cmdenv.Env, args []string) int {
	if err := p.inherit(args); err != nil {
		return env.Fail(Name+": ", err)
	}
	return cmdenv.ExitOK
}

func (p program) inherit(args []string) error {
	id, ok := control.ParseArgs(append([]string{Name}, args...))
	if !ok {
		return errors.New("only reader-hook starts this")
	}
	spec, pipe, wait, err := pair.Inherit(func(s control.Spec) start.Identity { return s.Identity(id.Role).Identity }, id.Identity)
	if err != nil {
		return err
	}
	two := p.pair(spec)
	if id.Role == start.Keeper {
		pipe.Close()
		return two.Keep(keeperTitle, control.FileLog)
	}
	debug.SetGCPercent(gcPercent)
	return two.Serve(newWorker(spec, two.Home, p.pace), Name, pipe, wait)
}

// pair is what the processes of a container have in common.
func (p program) pair(spec control.Spec) pair.Pair {
	return pair.Pair{
		Home: pair.Home{StateDir: spec.StateDir, PID: spec.PID, Start: spec.Start, Roster: spec.Roster},
		Args: spec.Args,
		Spec: func(restarts int) any {
			spec.Restarts = restarts
			return spec
		},
		Restarts: spec.Restarts,
		Pace:     p.pace,
		Confine:  func() error { return reach.Supervisor(spec).Filter() },
	}
}
