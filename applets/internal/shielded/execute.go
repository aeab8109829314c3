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

// Execute has one operation done on the container, in this process where it
// may enter the namespaces, else in one that starts inside them. It fills in
// who is meant. An error of the response is an error.
func (c Container) Execute(ctx context.Context, req control.Request) (control.Response, error) {
	var resp control.Response
	if c.PID == 0 {
		return resp, fmt.Errorf("container %s is not running: start it with podman start %s", c.Name, c.Name)
	}
	req.Container, req.StateDir, req.PID, req.NetNS = c.Name, c.Dir, c.PID, c.NetNS
	ns, err := netns.Open(c.PID)
	if err != nil {
		return resp, fmt.Errorf("container %s: %w", c.Name, err)
	}
	defer ns.Close()
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	switch done := false; {
	case !netns.NeedsEnter(ns):
		resp = firewall.Execute(ctx, req)
	default:
		if resp, done = firewall.ExecuteNames(ctx, req); !done {
			err = c.inside(ctx, ns, req, &resp)
		}
	}
	if err == nil && resp.Error != "" {
		err = errors.New(resp.Error)
	}
	return resp, err
}
