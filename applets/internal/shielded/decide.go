package shielded

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/applets/internal/resolve"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
)

// ResolvConf lists the host's resolvers.
const ResolvConf = "/etc/resolv.conf"

// Decide allows or denies (control.OpAllow, control.OpDeny) what an operator
// typed: an address, a network or a name. With audit, lines of the audit log
// are written.
func (c Container) Decide(ctx context.Context, op control.Op, typed string, audit bool) (control.Response, error) {
	req, err := c.Request(ctx, op, typed, audit)
	if err != nil {
		return control.Response{}, err
	}
	return c.Execute(ctx, req)
}

// Request is what Decide has carried out, for who does that by himself: who is
// meant is to be filled in. Of the container only Dir has to be known.
func (c Container) Request(ctx context.Context, op control.Op, typed string, audit bool) (control.Request, error) {
	typed = strings.TrimSpace(typed)
	t, err := policy.ParseTarget(typed)
	if err != nil {
		return control.Request{}, err
	}
	req := control.Request{Op: op, Target: typed, Audit: audit}
	return req, c.aim(ctx, &req, t)
}

// aim fills in what a target means for the container: an address itself; a
// name, where its addresses are not found when the container asks for it, with
// those it has now.
func (c Container) aim(ctx context.Context, req *control.Request, t policy.Target) (err error) {
	if !t.IsName() {
		req.Targets = []string{bundle.FormatPrefix(t.Prefix)}
		return nil
	}
	req.Names = []string{t.String()}
	b, err := bundle.Open(c.Dir)
	if err != nil {
		return err
	}
	asked, err := NamesAsked(b)
	if err = errors.Join(err, b.Close()); err != nil || asked {
		return err
	}
	req.Targets, err = c.addresses(ctx, t.Name)
	return err
}

// NamesAsked reports whether the addresses of names are found when the
// container asks for them. In bundles of the other system they are also looked
// up beforehand, whatever the tier; so they are where the tier is unknown.
func NamesAsked(b *bundle.Bundle) (bool, error) {
	tier, err1 := b.Tier()
	format, err2 := b.RulesetFormat()
	return (tier == bundle.Proxy || tier == bundle.Dnsmasq) && format != 0, errors.Join(err1, err2)
}

// addresses is what a name resolves to now.
func (c Container) addresses(ctx context.Context, name string) ([]string, error) {
	r, err := resolve.System(ResolvConf)
	if err != nil {
		return nil, err
	}
	progress := c.finder.Progress
	if progress == nil {
		progress = func(int, int) {}
	}
	found := r.Lookup(ctx, []string{name}, progress)
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
