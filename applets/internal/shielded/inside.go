package shielded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/firewall"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/wire/control"
)

// InsideName is the private program that does one operation inside a
// container's user namespace: request on stdin, response on stdout.
const InsideName = "shield-inside"

// RunInside is that program. others are operations besides those of a
// firewall.
func RunInside(env *cmdenv.Env, others map[control.Op]func() error) int {
	ctx, stop := cmdenv.Context()
	defer stop()
	var req control.Request
	if err := control.Read(env.Stdin, &req); err != nil {
		return env.Fail(InsideName+": ", err)
	}
	if req.Op == opPackets {
		return env.Fail(InsideName+": ", servePackets(ctx, env.Stdout, req))
	}
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	var resp control.Response
	if f := others[req.Op]; f != nil {
		if err := f(); err != nil {
			resp.Error = err.Error()
		}
	} else {
		resp = firewall.Execute(ctx, req)
	}
	return env.Fail(InsideName+": ", control.Write(env.Stdout, resp))
}

// inside starts this program again in the user namespace that owns ns and has
// it do the request.
func (c Container) inside(ctx context.Context, ns *netns.NS, req control.Request, resp *control.Response) error {
	return c.insideStream(ctx, ns, req, func(out io.Reader) error { return control.Read(out, resp) })
}

// insideStream does that and has what the process prints read. It is killed
// if that fails, or when ctx ends.
func (c Container) insideStream(ctx context.Context, ns *netns.NS, req control.Request, read func(io.Reader) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	user, err := ns.UserNS()
	if err != nil {
		return err
	}
	defer user.Close()
	inR, inW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer inR.Close()
	outR, outW, err := os.Pipe()
	if err != nil {
		return errors.Join(err, inW.Close())
	}
	defer outR.Close()
	cmd := netns.Cmd{
		Path: c.finder.Env.Self, Args: []string{"terok-box", InsideName}, Env: c.finder.Env.Environ(),
		Stdin: inR, Stdout: outW, Stderr: os.Stderr, UserNS: user,
	}
	err = cmd.Start(ctx)
	inR.Close()
	outW.Close()
	if err != nil {
		return errors.Join(fmt.Errorf("enter the user namespace of the container: %w", err), inW.Close())
	}
	sent := make(chan error, 1)
	go func() { sent <- errors.Join(control.Write(inW, req), inW.Close()) }()
	readErr := read(outR)
	if readErr != nil {
		cancel()
	}
	code, waitErr := cmd.Wait()
	if readErr != nil && req.Op == opPackets { // what it was told
		return readErr
	}
	if err := errors.Join(<-sent, readErr, waitErr); err != nil || code != 0 {
		return fmt.Errorf("the process inside the container's namespaces failed (exit code %d): %w", code, err)
	}
	return nil
}
