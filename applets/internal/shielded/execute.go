package shielded

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/firewall"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/wire/control"
)

// lockTimeout is how long an operation waits for another on the same
// container.
const lockTimeout = 15 * time.Second

// Execute has one operation done on the container: by its supervisor if there
// is one, else in this process where it may enter the namespaces, else in one
// that starts inside them. It fills in who is meant. An error of the response
// is an error.
//
// A supervisor that dies may have carried the request out without saying so,
// and then it is carried out again. That changes nothing: every operation sets
// what it asks for. In the audit log it may stand twice.
func (c Container) Execute(ctx context.Context, req control.Request) (control.Response, error) {
	if c.PID == 0 {
		return control.Response{}, fmt.Errorf("container %s is not running: start it with podman start %s", c.Name, c.Name)
	}
	req.Container, req.StateDir, req.PID, req.NetNS = c.Name, c.Dir, c.PID, c.NetNS
	var resp control.Response
	var done bool
	var err error
	// A start is verified without the help of what the hooks have started.
	if req.Op != control.OpVerify {
		resp, done = c.ask(ctx, req)
	}
	if !done {
		if err := context.Cause(ctx); err != nil {
			return resp, err
		}
		resp, err = c.perform(ctx, req)
	}
	if err == nil && resp.Error != "" {
		err = errors.New(resp.Error)
	}
	return resp, err
}

// perform carries out a request without the supervisor.
func (c Container) perform(ctx context.Context, req control.Request) (resp control.Response, err error) {
	ns, err := netns.Open(c.PID)
	if err != nil {
		return resp, fmt.Errorf("container %s: %w", c.Name, err)
	}
	defer ns.Close()
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	if !netns.NeedsEnter(ns) {
		return firewall.Execute(ctx, req), nil
	}
	if resp, done := firewall.ExecuteNames(ctx, req); done {
		return resp, nil
	}
	err = c.inside(ctx, ns, req, &resp)
	return resp, err
}
