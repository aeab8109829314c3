// Package pair is the life of a process that serves one container for as long
// as containers live in its network namespace.
//
//	a hook ──starts──► server ──starts, once it works──► keeper
//	                     ▲                                 │
//	                     └── starts another one, should it die,
//	                         with the same open files ─────┘
//
// The server does the work. The keeper holds copies of the server's open files
// and does nothing but wait for its death, and the server waits for the
// keeper's; either brings the other back. What arrives meanwhile waits in
// these files. If both are killed at once, that is the end of it, until a hook
// cleans up. Both end when the last container in the namespace has ended.
//
// It must never import a package of an applet, nor one that faces people.
package pair

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/wire/start"
)

// Reasons to end.
var (
	// ErrEnd is the reason to end for good, as the other process is to.
	ErrEnd = errors.New("the containers have ended")
	// errLeave is the reason to end so that another server takes over.
	errLeave = errors.New("told to end")
)

// Pair is what the two have in common.
type Pair struct {
	Home
	Args func(start.Role) []string // of a process in that role
	// Spec is what a process is told, after that many restarts of the server.
	Spec     func(restarts int) any
	Restarts int
	Pace     Pace
	// Confine takes from the first server what it has needed to start only; nil:
	// nothing. Those that come after it are started by one that was confined.
	Confine func() error
}

// Pace is how soon a process that died is started again: at once if it had
// lived long enough, else after a pause that doubles.
type Pace struct{ First, Longest, Healthy time.Duration }

// Usual is the pace outside of tests.
func Usual() Pace {
	return Pace{First: 100 * time.Millisecond, Longest: 5 * time.Second, Healthy: 30 * time.Second}
}

// Backoff is the pause before the next start.
type Backoff struct {
	Pace
	next time.Duration
}

// After is how long to wait after the end of something that lived that long.
func (b *Backoff) After(lived time.Duration) time.Duration {
	if lived >= b.Healthy {
		b.next = 0
	}
	pause := b.next
	b.next = min(max(2*b.next, b.First), b.Longest)
	return pause
}

// Inherit prepares a process that was started for an identity: its open files
// are kept from the programs that it starts, and it is told what to do. pipe
// is where wait waits.
func Inherit[T interface{ Check() error }](of func(spec T) start.Identity, id start.Identity) (spec T, pipe *os.File, wait func() error, err error) {
	if err := child.CloseOnExec(); err != nil {
		return spec, nil, nil, err
	}
	if pipe, err = child.Pollable(start.FileSpec); err != nil {
		return spec, nil, nil, err
	}
	if spec, wait, err = start.ReadSpec[T](pipe); err != nil {
		return spec, nil, nil, err
	}
	if of(spec) != id {
		return spec, nil, nil, fmt.Errorf("called for %s and told about %s", id.StateDir, of(spec).StateDir)
	}
	return spec, pipe, wait, nil
}

// signals cancels when the process is told to end; told is closed if that is
// for good.
func signals(cancel context.CancelCauseFunc) (told <-chan struct{}) {
	end := make(chan struct{})
	got := make(chan os.Signal, 1)
	signal.Notify(got, child.SignalEnd, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	go func() {
		for s := range got {
			if s == child.SignalEnd {
				close(end)
				cancel(ErrEnd)
				return
			}
			cancel(errLeave)
		}
	}()
	return end
}
