package shield

import (
	"errors"
	"fmt"
	"strings"

	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
)

type verdictCmd struct {
	Container container `arg:"" help:"Container name or id."`
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
	cfg, err := a.config()
	if err != nil {
		return err
	}
	l, err := a.locate(cfg, c.Container)
	if err != nil {
		return err
	}
	req := control.Request{Op: v.op, Target: typed, Audit: cfg.Audit}
	if err := a.aim(&req, l, t); err != nil {
		return fmt.Errorf(v.none+": %w", l.name, err)
	}
	resp, err := a.execute(l, req)
	if err != nil {
		return fmt.Errorf(v.none+": %w", l.name, err)
	}
	switch {
	case c.JSON:
		return a.printJSON(outcome{Container: l.name, Target: typed, Names: req.Names, Addresses: resp.Applied})
	case len(resp.Applied) > 0:
		a.printf(v.done, typed, strings.Join(resp.Applied, ", "), l.name)
	default:
		a.printf(v.unasked, typed, l.name)
	}
	return nil
}

// aim fills in what a target means for the container: an address itself; a
// name, where its addresses are not found when the container asks for it, with
// those it has now.
func (a *app) aim(req *control.Request, l located, t policy.Target) (err error) {
	if !t.IsName() {
		req.Targets = []string{bundle.FormatPrefix(t.Prefix)}
		return nil
	}
	req.Names = []string{t.String()}
	b, err := bundle.Open(l.dir)
	if err != nil {
		return err
	}
	asked, err := namesAsked(b)
	if err = errors.Join(err, b.Close()); err != nil || asked {
		return err
	}
	req.Targets, err = a.addresses(t.Name)
	return err
}

// addresses is what a name resolves to now.
func (a *app) addresses(name string) ([]string, error) {
	found, err := a.lookup([]string{name})
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, f := range found.Failed {
		errs = append(errs, fmt.Errorf("%s: %w", f.Name, f.Err))
	}
	if len(found.Addrs) == 0 {
		return nil, errors.Join(errs...)
	}
	out := make([]string, 0, len(found.Addrs))
	for _, addr := range found.Addrs {
		out = append(out, addr.String())
	}
	return out, nil
}
