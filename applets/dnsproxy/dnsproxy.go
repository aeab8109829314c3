// Package dnsproxy is the private program that finds the addresses of one
// container's names for as long as containers live in its network namespace:
// a life around an engine, which is one of three.
//
//	nft-hook ──starts──► server ──starts, once ready──► keeper
//	                       ▲                              │
//	                       └── starts another one, should it die,
//	                           with the same sockets ─────┘
//
// The server does the work. The keeper holds copies of the server's listening
// sockets and does nothing but wait for its death, and the server waits for
// the keeper's; either brings the other back. Questions that arrive meanwhile
// wait in the sockets. If both are killed at once, names stop resolving and
// nothing opens. Both end when the last container in the namespace has ended.
//
// It must never import another applet.
package dnsproxy

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/tier"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/names"
)

// Name is the program's name.
const Name = names.Program

// Run is the program; see names.Spec for what it is told and given.
func Run(env *cmdenv.Env, args []string) int {
	return program{
		engines: engines(),
		pace:    pace{first: 100 * time.Millisecond, longest: 5 * time.Second, healthy: 30 * time.Second},
	}.run(env, args)
}

// program is what the real one and that of tests differ in.
type program struct {
	engines map[bundle.Tier]func(tier.Resources) (tier.Engine, error)
	pace    pace
}

// pace is how soon a process that died is started again: at once if it had
// lived long enough, else after a pause that doubles.
type pace struct{ first, longest, healthy time.Duration }

// backoff is the pause before the next start.
type backoff struct {
	pace
	next time.Duration
}

// after is how long to wait after the end of a process that lived that long.
func (b *backoff) after(lived time.Duration) time.Duration {
	if lived >= b.healthy {
		b.next = 0
	}
	pause := b.next
	b.next = min(max(2*b.next, b.first), b.longest)
	return pause
}

func (p program) run(env *cmdenv.Env, args []string) int {
	if err := p.inherit(args); err != nil {
		return env.Fail(Name+": ", err)
	}
	return cmdenv.ExitOK
}

func (p program) inherit(args []string) error {
	id, ok := names.ParseArgs(append([]string{Name}, args...))
	if !ok {
		return errors.New("only nft-hook starts this")
	}
	if err := child.CloseOnExec(); err != nil {
		return err
	}
	pipe, err := child.Pollable(names.FileSpec)
	if err != nil {
		return err
	}
	spec, wait, err := names.ReadSpec(pipe)
	if err != nil {
		return err
	}
	if id.StateDir != spec.StateDir || id.NetNS != spec.NetNS || id.Roster != spec.Roster {
		return fmt.Errorf("called for %s and told about %s", id.StateDir, spec.StateDir)
	}
	if id.Role == names.Keeper {
		pipe.Close()
		return p.keep(spec)
	}
	return p.serve(spec, pipe, wait)
}

// entitle makes the process's own name tell what it is (comm of proc(5)),
// which is "exe" otherwise.
func entitle(name string) {
	_ = os.WriteFile("/proc/self/comm", []byte(name), 0)
}
