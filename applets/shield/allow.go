package shield

import (
	"fmt"
	"strings"

	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/applets/internal/shielded"
	"github.com/terok-ai/terok-box/wire/control"
)

type verdictCmd struct {
	Container container `arg:"" complete:"containers" help:"Container name or id."`
	Target    string    `arg:"" help:"Address, CIDR or name; a name covers those below it, =name does not."`
	JSON      bool      `name:"json" help:"Print a JSON object."`
}

type (
	allowCmd struct{ verdictCmd }
	denyCmd  struct{ verdictCmd }
)

func (c allowCmd) Run(a *app) error {
	return c.decide(a, verdict{
		op: control.OpAllow, none: "No IPs allowed for %s",
		done: "Allowed %s -> %s for %s\n", unasked: "Allowed %s for %s (when it is asked for)\n",
	})
}

func (c denyCmd) Run(a *app) error {
	return c.decide(a, verdict{
		op: control.OpDeny, none: "No IPs denied for %s",
		done: "Denied %s (%s) for %s\n", unasked: "Denied %s for %s\n",
	})
}

// verdict is one of the two, and what is said about it.
type verdict struct {
	op      control.Op
	none    string // it failed: container
	done    string // target, addresses, container
	unasked string // a name of which no address is known: target, container
}

func (c verdictCmd) decide(a *app, v verdict) error {
	typed := strings.TrimSpace(c.Target)
	t, err := policy.ParseTarget(typed)
	if err != nil {
		return err
	}
	found, resp, err := a.decide(c.Container, v.op, typed)
	if err != nil {
		if found.Name != "" {
			err = fmt.Errorf(v.none+": %w", found.Name, err)
		}
		return err
	}
	var names []string
	if t.IsName() {
		names = []string{t.String()}
	}
	switch {
	case c.JSON:
		return a.printJSON(outcome{Container: found.Name, Target: typed, Names: names, Addresses: resp.Applied})
	case len(resp.Applied) > 0:
		a.printf(v.done, typed, strings.Join(resp.Applied, ", "), found.Name)
	default:
		a.printf(v.unasked, typed, found.Name)
	}
	return nil
}

// decide has a target allowed or denied. The container that it returns is that
// of an error, too, if it was found.
func (a *app) decide(name container, op control.Op, typed string) (found shielded.Container, resp control.Response, err error) {
	cfg, err := a.config()
	if err != nil {
		return found, resp, err
	}
	located, err := a.locate(cfg, name)
	if err != nil {
		return found, resp, err
	}
	if resp, err = located.Decide(a.ctx, op, typed, cfg.Audit); err == nil {
		a.warn(resp.Warning)
	}
	return located, resp, err
}
