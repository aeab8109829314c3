// Package nfthook is the OCI hook that puts the firewall into a container
// before its first instruction, and cleans up after its last.
//
// It is fail-closed: what it cannot verify it refuses, and a refusal keeps
// the container from starting. It runs on every container start, so it must
// never import what is not needed for that (no command-line parser, D-Bus,
// DNS library or hub).
package nfthook

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/firewall"
	"github.com/terok-ai/terok-box/applets/internal/hook"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/oci"
)

const usage = `usage: nft-hook [createRuntime|poststop] < OCI-STATE

An OCI runtime runs this. createRuntime reads the state directory from the
annotation terok.shield.state_dir, verifies the ruleset in it and puts it into
the container's network namespace; with any doubt it fails, and the runtime
then refuses to start the container. poststop cleans up.

Exit codes: 0 done, 1 the container must not start.
`

// memoryLimit in bytes, from which on garbage is collected after all: several
// times what 50,000 addresses take.
const memoryLimit = 256 << 20

// timeout of a hook: preparing the same container anew, which looks names up,
// keeps it waiting for ten seconds at most, and so does each of a container
// that starts in the same network and the process of names.
const timeout = time.Minute

// Run is the hook. args[0] is the stage, createRuntime by default. It moves
// its thread into the container's network namespace and leaves it there: the
// caller must end soon. Signals have their default effect.
func Run(env *cmdenv.Env, args []string) int {
	// A hook ends before collecting garbage would pay.
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(memoryLimit)
	stage := "createRuntime"
	if len(args) > 0 {
		stage = args[0]
	}
	if stage == "-h" || stage == "--help" {
		fmt.Fprint(env.Stdout, usage)
		return cmdenv.ExitOK
	}
	return env.Fail("terok-shield hook: ", perform(context.Background(), env, stage))
}

func perform(ctx context.Context, env *cmdenv.Env, stage string) (err error) {
	st, err := oci.Read(env.Stdin)
	if err != nil {
		return err
	}
	dir, err := st.StateDir(env.EUID)
	if err != nil {
		return fmt.Errorf("no state dir: %w", err)
	}
	b, err := bundle.Open(dir)
	if err != nil {
		return err
	}
	defer b.Close()
	defer func() {
		if err != nil {
			err = fmt.Errorf("container %s: %w", hook.Name(st), err)
			err = errors.Join(err, b.AppendError("terok-shield hook: "+err.Error()))
		}
	}()
	switch stage {
	case "createRuntime":
		return create(ctx, env, st, b)
	case "poststop":
		return stop(ctx, env, st, b)
	default:
		return fmt.Errorf("unknown stage %q", stage)
	}
}

func create(ctx context.Context, env *cmdenv.Env, st *oci.State, b *bundle.Bundle) error {
	if _, err := oci.Version(st.Annotations[oci.KeyVersion]); err != nil {
		return err
	}
	if st.PID == 0 {
		return errors.New("the OCI state has no pid")
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// What is read must not change before it is in force.
	unlock, err := b.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	ns, err := netns.Open(st.PID)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := firewall.NotHost(ns); err != nil {
		return err
	}
	id, err := ns.ID()
	if err != nil {
		return err
	}
	c := &container{state: st, bundle: b, ns: ns}
	if c.process, err = bundle.ProcessOf(st.PID, id.String()); err != nil {
		return err
	}
	if err := c.openRoster(ctx, env); err != nil {
		return err
	}
	defer c.closeRoster()
	if len(c.others()) > 0 {
		return c.join(ctx)
	}
	return c.own(ctx)
}

// own puts the container in charge of its network namespace, in which no
// other lives: firewall and process of names are made from its bundle.
func (c *container) own(ctx context.Context) (err error) {
	b := c.bundle
	if err := c.clean(ctx); err != nil {
		return err
	}
	t, err := tierOf(b)
	if err != nil {
		return err
	}
	var p *starting
	if t != "" { // it and what follows take about the same time
		if p, err = launch(c.spec(t), c.ns); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, p.kill(), c.abandon(ctx))
			}
		}()
	}
	want, err := firewall.Load(b)
	if err != nil {
		return err
	}
	if err := c.ns.Enter(); err != nil {
		return err
	}
	f, err := firewall.Here(b)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Start(want, c.roster != nil); err != nil {
		return fmt.Errorf("put the firewall into its network namespace: %w", err)
	}
	if err := c.record(b.Path()); err != nil {
		return err
	}
	if p == nil {
		return nil
	}
	return p.ready(ctx)
}
