package shield

import (
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/control"
)

// target is what the verbs that change one container's state share.
type target struct {
	Container container `arg:"" help:"Container name or id."`
	JSON      bool      `name:"json" help:"Print a JSON object."`
}

// routed accepts the id that older scripts pass; it is looked up anyway.
type routed struct {
	ContainerID string `name:"container-id" hidden:""`
}

type upCmd struct {
	target
	routed
}

type downCmd struct {
	target
	routed
	All bool `help:"Private addresses too."`
}

type quarantineCmd struct{ target }

// outcome is what --json prints of a change.
type outcome struct {
	Container string   `json:"container"`
	State     string   `json:"state,omitempty"`
	Target    string   `json:"target,omitempty"`
	Names     []string `json:"names,omitempty"` // as they stand in the lists
	Addresses []string `json:"addresses,omitempty"`
}

func (c upCmd) Run(a *app) error {
	return c.change(a, control.OpUp, ruleset.Up, "Shield up for %s\n")
}

func (c downCmd) Run(a *app) error {
	if c.All {
		return c.change(a, control.OpDisengage, ruleset.Disengaged, "Shield down for %s (all traffic)\n")
	}
	return c.change(a, control.OpDown, ruleset.Down, "Shield down for %s\n")
}

func (c quarantineCmd) Run(a *app) error {
	return c.change(a, control.OpQuarantine, ruleset.Quarantine, "Shield QUARANTINED for %s — all traffic dropped\n")
}

func (c target) change(a *app, op control.Op, to ruleset.State, text string) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	l, err := a.locate(cfg, c.Container)
	if err != nil {
		return err
	}
	if _, err := a.execute(l, control.Request{Op: op, Audit: cfg.Audit}); err != nil {
		return err
	}
	if c.JSON {
		return a.printJSON(outcome{Container: l.Name, State: to.String()})
	}
	a.printf(text, l.Name)
	return nil
}
