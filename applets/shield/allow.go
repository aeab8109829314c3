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
	Target    string    `arg:"" help:"Address, CIDR or name."`
	JSON      bool      `name:"json" help:"Print a JSON object."`
}

type (
	allowCmd struct{ verdictCmd }
	denyCmd  struct{ verdictCmd }
)

func (c allowCmd) Run(a *app) error {
	return c.decide(a, control.OpAllow, "Allowed %s -> %s for %s\n", "No IPs allowed for %s")
}

func (c denyCmd) Run(a *app) error {
	return c.decide(a, control.OpDeny, "Denied %s (%s) for %s\n", "No IPs denied for %s")
}

func (c verdictCmd) decide(a *app, op control.Op, done, none string) error {
	t, err := policy.ParseTarget(c.Target)
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
	addresses, err := a.addresses(t)
	if err != nil {
		return fmt.Errorf(none+": %w", l.name, err)
	}
	resp, err := a.execute(l, control.Request{Op: op, Targets: addresses, Target: c.Target, Audit: cfg.Audit})
	if err != nil {
		return fmt.Errorf(none+": %w", l.name, err)
	}
	if c.JSON {
		return a.printJSON(outcome{Container: l.name, Target: c.Target, Addresses: resp.Applied})
	}
	a.printf(done, c.Target, strings.Join(resp.Applied, ", "), l.name)
	return nil
}

// addresses is the target itself, or what its name resolves to now.
func (a *app) addresses(t policy.Target) ([]string, error) {
	if t.Prefix.IsValid() {
		return []string{bundle.FormatPrefix(t.Prefix)}, nil
	}
	found, err := a.lookup([]string{t.Name})
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
