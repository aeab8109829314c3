package shield

import (
	"github.com/terok-ai/terok-box/applets/internal/shielded"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/event"
)

// target is what the verbs that change one container's state share.
type target struct {
	Container container `arg:"" complete:"containers" help:"Container name or id."`
	JSON      bool      `name:"json" help:"Print a JSON object."`
}

type upCmd struct {
	target
	routed
}

type downCmd struct {
	target
	routed
	All bool `aliases:"disengage" help:"Private addresses too."`
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
	return c.tell(a, c.routed, control.OpUp, ruleset.Up, event.ShieldUp, "Shield up for %s\n")
}

func (c downCmd) Run(a *app) error {
	if c.All {
		return c.tell(a, c.routed, control.OpDisengage, ruleset.Disengaged, event.ShieldDisengaged, "Shield down for %s (all traffic)\n")
	}
	return c.tell(a, c.routed, control.OpDown, ruleset.Down, event.ShieldDown, "Shield down for %s\n")
}

func (c quarantineCmd) Run(a *app) error {
	return c.tell(a, routed{}, control.OpQuarantine, ruleset.Quarantine, "", "Shield QUARANTINED for %s — all traffic dropped\n")
}

// tell makes a change and tells people, too.
func (c target) tell(a *app, r routed, op control.Op, to ruleset.State, kind, text string) error {
	found, err := c.change(a, r, op, kind)
	if err != nil {
		return err
	}
	return c.print(a, found, to, text)
}

// change makes a change that the container's hub is told of, if kind says as
// what.
func (c target) change(a *app, r routed, op control.Op, kind string) (found shielded.Container, err error) {
	if err := r.check(); err != nil {
		return found, err
	}
	cfg, err := a.config()
	if err != nil {
		return found, err
	}
	if found, err = a.locate(cfg, c.Container); err != nil {
		return found, err
	}
	if _, err = a.execute(found, control.Request{Op: op, Audit: cfg.Audit}); err == nil && kind != "" {
		_ = a.announce(found, kind, r)
	}
	return found, err
}

func (c target) print(a *app, found shielded.Container, to ruleset.State, text string) error {
	if c.JSON {
		return a.printJSON(outcome{Container: found.Name, State: to.String()})
	}
	a.printf(text, found.Name)
	return nil
}
