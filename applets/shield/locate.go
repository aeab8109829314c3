package shield

import (
	"fmt"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/config"
	"github.com/terok-ai/terok-box/applets/internal/shielded"
	"github.com/terok-ai/terok-box/wire/control"
)

func (a *app) finder(cfg config.Config) shielded.Finder {
	return shielded.Finder{Env: a.env, StateRoot: cfg.StateRoot, Only: a.stateDir != "", Progress: a.progress()}
}

// dirOf is the state directory a container of that name gets from us.
func (a *app) dirOf(cfg config.Config, name string) string {
	if name == "" {
		name = "_default"
	}
	return a.finder(cfg).Dir(name)
}

// locate finds a container and says whose lists govern it, if not its own.
func (a *app) locate(cfg config.Config, name container) (shielded.Container, error) {
	c, err := a.finder(cfg).Locate(a.ctx, string(name))
	if err == nil && c.Owner != "" {
		fmt.Fprintf(a.env.Stderr, "%s shares its network with %s, whose lists govern it.\n", c.Name, cmdenv.Printable(c.Owner))
	}
	return c, err
}

// execute has one operation done on a running container.
func (a *app) execute(c shielded.Container, req control.Request) (control.Response, error) {
	resp, err := c.Execute(a.ctx, req)
	if err == nil {
		a.warn(resp.Warning)
	}
	return resp, err
}
