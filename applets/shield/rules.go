package shield

import (
	"fmt"
	"net/netip"

	"github.com/terok-ai/terok-box/applets/internal/shielded"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
)

type rulesCmd struct{ target }

type previewCmd struct {
	Down bool `help:"The ruleset of a container that is down."`
	All  bool `aliases:"disengage" help:"With --down: private addresses too."`
	JSON bool `name:"json" help:"Print a JSON object."`
}

func (c rulesCmd) Run(a *app) error {
	resp, l, err := c.look(a, control.OpRules)
	if err != nil {
		return err
	}
	switch {
	case c.JSON:
		return a.printJSON(struct {
			Container string `json:"container"`
			State     string `json:"state"`
			Detail    string `json:"detail,omitempty"`
			Rules     string `json:"rules"`
		}{l.Name, resp.State, resp.Detail, resp.Listing})
	case resp.Listing == "":
		a.warn(resp.Detail)
		a.printf("No rules found for %s\n", l.Name)
	default:
		a.warn(resp.Detail)
		a.printf("State: %s\n", resp.State)
		lines(a.env.Stdout, resp.Listing)
	}
	return nil
}

// previewParams are those of a container that pasta connects.
func previewParams(tier bundle.Tier) ruleset.Params {
	pasta := netip.AddrFrom4([4]byte{169, 254, 1, 1})
	switch tier {
	case bundle.Proxy:
		return ruleset.Params{}
	case bundle.Dnsmasq:
		return ruleset.Params{DNS: pasta, Lifetime: learnedLifetime}
	}
	return ruleset.Params{DNS: pasta}
}

// previews are the tables of all states, with every rule there can be.
func previews() ([]*ruleset.Table, error) {
	var out []*ruleset.Table
	for _, s := range []ruleset.State{ruleset.Up, ruleset.Down, ruleset.Disengaged, ruleset.Quarantine} {
		t, err := ruleset.Build(s, previewParams(bundle.Dnsmasq))
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

// look asks for the state of a container; one that does not run is offline.
func (c target) look(a *app, op control.Op) (control.Response, shielded.Container, error) {
	cfg, err := a.config()
	if err != nil {
		return control.Response{}, shielded.Container{}, err
	}
	l, err := a.locate(cfg, c.Container)
	if err != nil {
		return control.Response{}, l, err
	}
	if l.PID == 0 {
		return control.Response{State: ruleset.Offline.String()}, l, nil
	}
	resp, err := a.execute(l, control.Request{Op: op})
	return resp, l, err
}

func (c previewCmd) Run(a *app) error {
	state, label := ruleset.Up, "enforce"
	switch {
	case c.All && !c.Down:
		return fmt.Errorf("--all requires --down")
	case c.All:
		state, label = ruleset.Disengaged, "bypass (all traffic)"
	case c.Down:
		state, label = ruleset.Down, "bypass"
	}
	cfg, err := a.config()
	if err != nil {
		return err
	}
	t, err := ruleset.Build(state, previewParams(cfg.Tier))
	if err != nil {
		return err
	}
	if c.JSON {
		return a.printJSON(struct {
			State string `json:"state"`
			Rules string `json:"rules"`
		}{state.String(), t.String()})
	}
	a.printf("# Ruleset preview (%s):\n", label)
	lines(a.env.Stdout, t.String())
	return nil
}
