package shield

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/config"
	"github.com/terok-ai/terok-box/applets/internal/firewall"
	"github.com/terok-ai/terok-box/applets/internal/podman"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
)

// located is a container as its verbs need it.
type located struct {
	name  string
	dir   string // state directory
	pid   int    // 0: not running
	netns string // "" when only Podman told us about it
}

// dirOf is the state directory a container of that name gets from us.
func (a *app) dirOf(cfg config.Config, name string) string {
	if name == "" {
		name = "_default"
	}
	return filepath.Join(cfg.StateRoot, "containers", name)
}

// locate finds a container's state directory and process. The process file
// that the hook left answers without asking Podman, as long as that process
// lives; else Podman is asked, whose annotation also knows containers that an
// orchestrator keeps elsewhere.
func (a *app) locate(cfg config.Config, c container) (located, error) {
	if err := c.check(); err != nil {
		return located{}, err
	}
	l := located{name: string(c), dir: a.dirOf(cfg, string(c))}
	if b, err := bundle.Open(l.dir); err == nil {
		p, err := b.Process()
		if closeErr := b.Close(); closeErr != nil {
			return l, closeErr
		}
		if err == nil && p.PID != 0 && p.Alive() { // else Podman knows
			l.pid, l.netns = p.PID, p.NetNS
			return a.shared(l)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return l, err
	}
	p, err := a.podman()
	if err != nil {
		return l, err
	}
	got, err := p.Inspect(a.ctx, l.name)
	switch {
	case errors.Is(err, podman.ErrNotFound):
		if _, statErr := os.Stat(l.dir); statErr == nil {
			return l, nil // prepared, not created yet
		}
		return l, fmt.Errorf("no container %s, and nothing prepared for it in %s: see podman ps -a, or give --state-dir", l.name, l.dir)
	case err != nil:
		return l, err
	}
	l.pid = got.PID
	if a.stateDir == "" {
		if l.dir, err = got.StateDir(); err != nil {
			return l, fmt.Errorf("%s: %w (it was not started under terok-shield; or give --state-dir)", l.name, err)
		}
	}
	return a.shared(l)
}

// shared leads to the state directory whose lists govern the network that a
// running container shares with others, and says so.
func (a *app) shared(l located) (located, error) {
	if l.pid == 0 {
		return l, nil
	}
	b, err := bundle.Open(l.dir)
	if err != nil {
		return l, err
	}
	owner, err := b.Owner()
	if err := errors.Join(err, b.Close()); err != nil || owner == "" || owner == l.dir {
		return l, err
	}
	fmt.Fprintf(a.env.Stderr, "%s shares its network with %s, whose lists govern it.\n", l.name, cmdenv.Printable(filepath.Base(owner)))
	l.dir = owner
	return l, nil
}

// lockTimeout is how long a command waits for another on the same container.
const lockTimeout = 15 * time.Second

// execute has one operation done on a running container, in this process
// where it may enter the namespaces, else in one that starts inside them.
func (a *app) execute(l located, req control.Request) (control.Response, error) {
	var resp control.Response
	if l.pid == 0 {
		return resp, fmt.Errorf("container %s is not running: start it with podman start %s", l.name, l.name)
	}
	req.Container, req.StateDir, req.PID, req.NetNS = l.name, l.dir, l.pid, l.netns
	ns, err := netns.Open(l.pid)
	if err != nil {
		return resp, fmt.Errorf("container %s: %w", l.name, err)
	}
	defer ns.Close()
	ctx, cancel := context.WithTimeout(a.ctx, lockTimeout)
	defer cancel()
	switch done := false; {
	case !netns.NeedsEnter(ns):
		resp = firewall.Execute(ctx, req)
	default:
		if resp, done = firewall.ExecuteNames(ctx, req); !done {
			err = a.inside(ctx, ns, req, &resp)
		}
	}
	if err == nil && resp.Error != "" {
		err = errors.New(resp.Error)
	}
	if err == nil {
		a.warn(resp.Warning)
	}
	return resp, err
}
