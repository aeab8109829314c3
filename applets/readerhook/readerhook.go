// Package readerhook is the OCI hook that starts the supervisor of a
// container, which asks people about what its firewall blocks, and ends it
// after the container.
//
// It never keeps a container from starting: what fails is said, in the error
// log of the container's state directory and on standard error, and then
// nobody is asked. It runs on every container start and waits for nothing, so
// it must never import what is not needed for that (no command-line parser,
// D-Bus, DNS library or hub).
package readerhook

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/firewall"
	"github.com/terok-ai/terok-box/applets/internal/hook"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/oci"
)

const usage = `usage: reader-hook [createRuntime|poststop] < OCI-STATE

An OCI runtime runs this. createRuntime starts the process that asks about
what the container's firewall blocks, poststop ends it. Without this process,
what is blocked stays blocked.

Exit codes: 0 always.
`

const (
	prefix = "terok-shield bridge hook: "

	// memoryLimit in bytes, from which on garbage is collected after all.
	memoryLimit = 64 << 20
	// createTimeout is what a container's start is held up at most: by what is
	// left of an earlier one, or by others that start in the same network.
	createTimeout = 10 * time.Second
	// stopTimeout is as long as a process takes that has to be killed, twice.
	stopTimeout = 20 * time.Second
)

// Run is the hook. args[0] is the stage, createRuntime by default.
func Run(env *cmdenv.Env, args []string) (code int) {
	defer func() { // a defect of ours does not keep a container from starting
		if p := recover(); p != nil {
			env.Fail(prefix, fmt.Errorf("internal error: %v", p))
			code = cmdenv.ExitOK
		}
	}()
	// A hook ends before collecting garbage would pay.
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
	env.Fail(prefix, perform(context.Background(), env, stage))
	return cmdenv.ExitOK
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
			err = errors.Join(err, b.AppendError(prefix+err.Error()))
		}
	}()
	switch stage {
	case "createRuntime":
		ctx, cancel := context.WithTimeout(ctx, createTimeout)
		defer cancel()
		return create(ctx, env, st, b)
	case "poststop":
		ctx, cancel := context.WithTimeout(ctx, stopTimeout)
		defer cancel()
		return stop(ctx, env, st, b)
	default:
		return fmt.Errorf("unknown stage %q", stage)
	}
}

func create(ctx context.Context, env *cmdenv.Env, st *oci.State, b *bundle.Bundle) error {
	switch {
	case st.ID == "":
		return errors.New("the OCI state has no id: nobody can be asked about it")
	case st.PID == 0:
		return errors.New("the OCI state has no pid: nobody can be asked about it")
	}
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
	// Commands look there for what else is shown with their events.
	return errors.Join(remember(b, st.Dossier()[oci.DossierMetaPath]), c.serve(ctx, env))
}

// remember writes down where the rest of the dossier is.
func remember(b *bundle.Bundle, path string) error {
	if path == "" {
		return b.RemoveMetaPath()
	}
	if !filepath.IsAbs(path) {
		return errors.Join(fmt.Errorf("annotation %s%s is not an absolute path", oci.DossierPrefix, oci.DossierMetaPath), b.RemoveMetaPath())
	}
	return b.SetMetaPath(path)
}
