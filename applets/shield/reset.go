package shield

import (
	"fmt"

	"github.com/terok-ai/terok-box/wire/control"
)

type resetCmd struct{ target }

func (c resetCmd) Run(a *app) error {
	name, forgotten, err := c.reset(a)
	if err != nil {
		return err
	}
	if c.JSON {
		return a.printJSON(outcome{Container: name, Addresses: forgotten})
	}
	a.printf("Forgot %d IPs for %s\n", len(forgotten), name)
	for _, s := range forgotten {
		a.printf("  %s\n", s)
	}
	return nil
}

// reset has forgotten what a container has learned from names.
func (c target) reset(a *app) (name string, forgotten []string, err error) {
	cfg, err := a.config()
	if err != nil {
		return "", nil, err
	}
	found, err := a.locate(cfg, c.Container)
	if err != nil {
		return "", nil, err
	}
	if found.PID == 0 {
		return "", nil, fmt.Errorf("container %s is not running: there is nothing to forget, and it starts with nothing learned", found.Name)
	}
	resp, err := a.execute(found, control.Request{Op: control.OpReset, Audit: cfg.Audit})
	return found.Name, resp.Applied, err
}
