// Package dnsproxy is the private program that finds the addresses of one
// container's names for as long as containers live in its network namespace:
// a life around an engine, which is one of three.
//
// The server does the work, and the keeper, which holds copies of its listening
// sockets, starts another one should it die (see internal/pair). Questions that
// arrive meanwhile wait in the sockets. If both are killed at once, names stop
// resolving and nothing opens.
//
// It must never import another applet.
package dnsproxy

import (
	"errors"
	"log/slog"
	"runtime/debug"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/pair"
	"github.com/terok-ai/terok-box/applets/internal/reach"
	"github.com/terok-ai/terok-box/applets/internal/tier"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/names"
	"github.com/terok-ai/terok-box/wire/start"
)

// Name is the program's name.
const Name = names.Program

// Run is the program; see names.Spec for what it is told and given.
func Run(env *cmdenv.Env, args []string) int {
	return program{engines: engines(), pace: pair.Usual()}.run(env, args)
}

// program is what the real one and that of tests differ in.
type program struct {
	engines map[bundle.Tier]func(tier.Resources) (tier.Engine, error)
	pace    pair.Pace
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
	spec, pipe, wait, err := pair.Inherit(func(s names.Spec) start.Identity {
		return start.Identity{Role: id.Role, StateDir: s.StateDir, NetNS: s.NetNS, Roster: s.Roster}
	}, id)
	if err != nil {
		return err
	}
	two := p.pair(spec)
	if id.Role == start.Server {
		debug.SetGCPercent(gcPercent)
		return two.Serve(&server{engines: p.engines, spec: spec, home: two.Home, log: slog.New(slog.DiscardHandler)}, Name, pipe, wait)
	}
	pipe.Close()
	if spec.Tier != string(bundle.Proxy) {
		return two.Keep("dns-keeper", child.None, child.None)
	}
	return two.Keep("dns-keeper", names.FileUDP, names.FileTCP)
}

// pair is what the processes of a container have in common.
func (p program) pair(spec names.Spec) pair.Pair {
	return pair.Pair{
		Home: pair.Home{StateDir: spec.StateDir, PID: spec.PID, Start: spec.Start, Roster: spec.Roster},
		Args: spec.Args,
		Spec: func(restarts int) any {
			spec.Restarts = restarts
			return spec
		},
		Restarts: spec.Restarts,
		Pace:     p.pace,
		Confine:  func() error { return reach.Names(spec).Filter() },
	}
}
