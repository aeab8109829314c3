package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/audit"
	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/nl/conntrack"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/names"
)

const (
	// reloadTimeout is many times what reading 100,000 names takes.
	reloadTimeout = 5 * time.Second
	// returnTimeout is how long a process that was killed may take to be
	// back: its keeper starts it at once.
	returnTimeout = 2 * time.Second
	returnPause   = 20 * time.Millisecond
	// emergencyTimeout is what a quarantine, which is in force by then, waits.
	emergencyTimeout = time.Second
	maxShown         = 5 // names that a warning lists
	// maxForgotten is more addresses than a resolver puts into another system's
	// sets; of a range with more the first ones are shown.
	maxForgotten = 16384
)

// ExecuteNames carries out an allow or deny of names alone, for which the
// container's namespaces need not be entered: the process that answers the
// container is told. done is false if that is not enough; then Execute must be
// called with the same request, and repeats whatever was begun.
func ExecuteNames(ctx context.Context, req control.Request) (resp control.Response, done bool) {
	if req.Op != control.OpAllow && req.Op != control.OpDeny || len(req.Targets) > 0 || len(req.Names) == 0 {
		return resp, false
	}
	b, err := bundle.Open(req.StateDir)
	if err != nil {
		return control.Response{Error: err.Error()}, true
	}
	defer b.Close()
	unlock, err := lock(ctx, b, req)
	if err != nil {
		return control.Response{Error: err.Error()}, true
	}
	defer unlock()
	if half, err := b.Unsettled(); err != nil || half {
		return resp, false
	}
	f := &Firewall{bundle: b, container: req.Container, audit: req.Audit}
	switch err := f.change(ctx, req, &resp); {
	case errors.Is(err, errKernel):
		return control.Response{}, false
	case err != nil:
		return control.Response{Error: err.Error()}, true
	}
	resp.Warning = f.warning()
	return resp, true
}

// errKernel says that something is to be done in the kernel, and that there
// is no connection to it.
var errKernel = errors.New("the container's network namespace has to be entered")

var errNoNamer = errors.New("the process that finds the addresses of its names is not there: restart the container")

// namer connects to the process that finds the addresses of the container's
// names. One that was killed a moment ago is waited for.
func (f *Firewall) namer(ctx context.Context) (*names.Client, error) {
	if f.gone != nil { // waited for already
		return nil, f.gone
	}
	ctx, cancel := context.WithTimeout(ctx, returnTimeout)
	defer cancel()
	for {
		n, err := f.bundle.Namer()
		if err != nil {
			return nil, err
		}
		if n.Socket == "" {
			return nil, errNoNamer
		}
		c, err := names.Dial(ctx, n.Socket)
		if err == nil {
			return c, nil
		}
		select {
		case <-ctx.Done():
			f.gone = fmt.Errorf("reach the process that finds the addresses of its names: %w", err)
			return nil, f.gone
		case <-time.After(returnPause):
		}
	}
}

// reload has that process read the lists again, and returns the addresses it
// knows for the names. In the static tier there need not be one, nor where
// another program's hook started the container.
func (f *Firewall) reload(ctx context.Context, of []policy.Target) (change names.Change, addrs []netip.Addr, err error) {
	ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
	defer cancel()
	c, err := f.namer(ctx)
	if errors.Is(err, errNoNamer) {
		ok, err := f.namerless()
		if err != nil {
			return change, nil, err
		}
		if ok {
			return names.Change{Enforced: true}, nil, nil
		}
	}
	if err != nil {
		return change, nil, err
	}
	defer c.Close()
	if change, err = c.Reload(ctx); err != nil {
		return change, nil, fmt.Errorf("have the lists of names read again: %w", err)
	}
	for _, t := range of {
		got, err := c.Addresses(ctx, t.Name)
		if err != nil {
			return change, nil, err
		}
		addrs = append(addrs, got...)
	}
	return change, addrs, nil
}

// namerless reports whether the container may do without that process.
func (f *Firewall) namerless() (bool, error) {
	tier, err1 := f.bundle.Tier()
	format, err2 := f.bundle.RulesetFormat()
	return tier == bundle.Static || tier == "" || format == 0, errors.Join(err1, err2)
}

// reloadOrForget reloads, or if that fails closes every address that was
// opened because of a name: none may stay open for a name that is not allowed
// any more. settled is false if the process may still go by older lists.
func (f *Firewall) reloadOrForget(ctx context.Context) (change names.Change, settled bool, err error) {
	change, _, err = f.reload(ctx, nil)
	if err == nil {
		return change, true, nil
	}
	if f.conn == nil {
		return change, false, errKernel
	}
	change = names.Change{Enforced: true}
	forgotten, forgetErr := f.forget()
	if forgetErr != nil {
		return change, false, errors.Join(err, forgetErr)
	}
	for _, a := range forgotten {
		change.Removed = append(change.Removed, a.String())
	}
	f.warnings = append(f.warnings, fmt.Errorf("%w; every address that was open because of a name is closed instead, until the container asks for the name again", err))
	n, nErr := f.bundle.Namer()
	return change, nErr == nil && !n.Alive(), nil
}

// forget empties the learned sets and cuts the connections they had let
// through.
func (f *Firewall) forget() ([]netip.Addr, error) {
	learned, err := f.conn.Learned()
	if errors.Is(err, nft.ErrNotLearning) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := f.conn.ForgetAll(); err != nil && !errors.Is(err, nft.ErrNotLearning) {
		return nil, err
	}
	addrs := make([]netip.Addr, len(learned))
	for i, l := range learned {
		addrs[i] = l.Addr
	}
	f.cut(addrs)
	return addrs, nil
}

// cut ends the connections to addresses. That it fails is a warning.
func (f *Firewall) cut(addrs []netip.Addr) {
	if len(addrs) == 0 || f.netns == nil {
		return
	}
	err := f.netns.Do(func() error {
		track, err := conntrack.Dial()
		if err != nil {
			return err
		}
		_, err = track.Cut(addrs)
		return errors.Join(err, track.Close())
	})
	if err != nil {
		f.warnings = append(f.warnings, fmt.Errorf("connections that are open already may go on: %w", err))
	}
}

// reset forgets what was learned because of names, and returns the addresses
// that were closed. The process that finds them does so, which opens those of
// the next answers again before these leave; without it the sets are emptied
// here. Where another system's table has no sets of their own for them, its
// allow sets are made what the files say.
func (f *Firewall) reset(ctx context.Context) ([]string, error) {
	state, have, why := f.State()
	switch {
	case state == ruleset.Offline:
		return nil, errNoTable
	case have != nil && foreign(have):
		return nil, errForeign
	case state == ruleset.Error:
		f.warnings = append(f.warnings, fmt.Errorf("its firewall is in no known state (%w); mend it with: terok-shield up %s", why, f.container))
	}
	closed, err := f.forgetNames(ctx)
	if err != nil {
		return nil, err
	}
	if have != nil && len(have.Sets) > 0 && have.Set(ruleset.Learned4) == nil {
		more, err := f.forgetAllowed()
		if err != nil {
			return nil, err
		}
		closed = append(closed, more...)
	}
	slices.SortFunc(closed, netip.Addr.Compare)
	out := make([]string, len(closed))
	for i, a := range closed {
		out[i] = a.String()
	}
	return out, nil
}

// forgetNames has the process forget, or empties the learned sets.
func (f *Firewall) forgetNames(ctx context.Context) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
	defer cancel()
	c, err := f.namer(ctx)
	if err == nil {
		var closed []netip.Addr
		closed, err = c.Forget(ctx)
		c.Close()
		if err == nil {
			return closed, nil
		}
	}
	none := errors.Is(err, errNoNamer)
	closed, forgetErr := f.forget()
	if forgetErr != nil {
		return nil, errors.Join(err, forgetErr)
	}
	if none {
		if ok, err := f.namerless(); ok || err != nil {
			return closed, err
		}
	}
	n, nErr := f.bundle.Namer()
	if nErr == nil && !n.Alive() { // so it remembers nothing
		f.warnings = append(f.warnings, fmt.Errorf("%w; what names had opened is closed, and stays so until the container is restarted", err))
		return closed, nil
	}
	return nil, fmt.Errorf("%d addresses that names had opened are closed, but the process that finds them has not forgotten them and may open them again (%w): restart the container", len(closed), errors.Join(err, nErr))
}

// forgetAllowed takes the addresses that would expire out of the allow sets, and
// returns them. Since what expires is left to whoever has put it there, it is
// made permanent, and then what no file knows of.
func (f *Firewall) forgetAllowed() ([]netip.Addr, error) {
	have, err := f.conn.List()
	if err != nil || have == nil {
		return nil, err
	}
	p, err := f.policy()
	if err != nil {
		return nil, err
	}
	want := p.into(have)
	permanent := *want
	permanent.Sets = slices.Clone(want.Sets)
	var closed []netip.Addr
	for i, s := range have.Sets {
		for _, e := range s.Elements {
			if e.Expires == 0 {
				continue
			}
			for a := e.From; len(closed) < maxForgotten; a = a.Next() {
				closed = append(closed, a)
				if a == e.To {
					break
				}
			}
			set := &permanent.Sets[i]
			set.Elements = append(slices.Clone(set.Elements), ruleset.Element{Range: e.Range, Timeout: ruleset.Permanent})
		}
	}
	if len(closed) == 0 {
		return nil, nil
	}
	if err := f.bundle.SetUnsettled(true); err != nil {
		return nil, err
	}
	if err := f.conn.Apply(&permanent); err != nil {
		return nil, err
	}
	if err := f.conn.Apply(want); err != nil {
		return nil, err // unsettled: the next command makes the sets what the files say
	}
	f.cut(closed)
	return closed, f.bundle.SetUnsettled(false)
}

// unlisted makes known whether names on no list are to be resolved, because
// the firewall lets their addresses pass. A failure is a warning: the firewall
// is what was asked for.
func (f *Firewall) unlisted(ctx context.Context, open bool) {
	n, err := f.bundle.Namer()
	nobody := err == nil && n.Socket == "" // answers the container
	if err := f.bundle.SetOpen(open && !nobody); err != nil {
		f.warnings = append(f.warnings, err)
	}
	if nobody {
		return
	}
	if _, _, err := f.reload(ctx, nil); err != nil {
		f.warnings = append(f.warnings, fmt.Errorf("names may be answered as before: %w", err))
	}
}

// lists are the lists of names in the bundle.
type lists struct{ profile, live, denied []string }

func (f *Firewall) lists() (l lists, err error) {
	if l.profile, err = f.bundle.ProfileDomains(); err != nil {
		return l, err
	}
	if l.live, err = f.bundle.LiveDomains(); err != nil {
		return l, err
	}
	l.denied, err = f.bundle.DeniedDomains()
	return l, err
}

// entry is what a line of a list means; ok is false unless it ends in the
// name. Lists are long and few lines do, so only those are parsed.
func entry(line, name string) (t policy.Target, ok bool) {
	s := strings.TrimSuffix(line, ".")
	if len(s) < len(name) || !strings.EqualFold(s[len(s)-len(name):], name) {
		return t, false
	}
	t, err := policy.ParseTarget(line)
	return t, err == nil && t.IsName()
}

// covers reports whether one of the entries is of the target's name and means
// at least what the target does.
func covers(list []string, t policy.Target) bool {
	return slices.ContainsFunc(list, func(s string) bool {
		e, ok := entry(s, t.Name)
		return ok && e.Name == t.Name && (!e.Exact || t.Exact)
	})
}

// without is the list without the entries of the target's name that match.
func without(list []string, t policy.Target, match func(e policy.Target) bool) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool {
		e, ok := entry(s, t.Name)
		return ok && e.Name == t.Name && match(e)
	})
}

// with is the lists after an allow or deny, in which policy.Names decides as
// was asked for. Allowing a name takes every form of its denial back; denying
// a name itself ("=name") leaves it allowed below.
func (l lists) with(allow bool, targets []policy.Target) lists {
	for _, t := range targets {
		if allow {
			l.denied = without(l.denied, t, func(policy.Target) bool { return true })
			if !covers(l.live, t) && !covers(l.profile, t) {
				l.live = append(slices.Clone(l.live), t.String())
			}
			continue
		}
		l.live = without(l.live, t, func(e policy.Target) bool { return e.Exact || !t.Exact })
		// An exact entry in a profile stays there; one like it meets it.
		exact := policy.Target{Name: t.Name, Exact: true}
		met := slices.ContainsFunc(l.denied, is(exact)) || !slices.ContainsFunc(l.profile, is(exact))
		add := func(e policy.Target) { l.denied = append(slices.Clone(l.denied), e.String()) }
		switch {
		case !covers(l.denied, t):
			add(t)
			if !t.Exact && !met {
				add(exact)
			}
		case !met:
			add(exact)
		}
	}
	return l
}

// is matches the lines that mean exactly the target, an exact one.
func is(t policy.Target) func(line string) bool {
	return func(line string) bool {
		e, ok := entry(line, t.Name)
		return ok && e == t
	}
}

// exceptions are what a decision about a name does not change, though it may
// look so: entries below the name, which are more particular, and what is
// below it when "=name" took a whole denial back.
func (l lists) exceptions(allow bool, targets []policy.Target) (out []error) {
	others, word, verb := slices.Concat(l.profile, l.live), "allowed", "deny"
	if allow {
		others, word, verb = l.denied, "denied", "allow"
	}
	for _, t := range targets {
		var below []string
		for _, s := range others {
			e, ok := entry(s, t.Name)
			if ok && strings.HasSuffix(e.Name, "."+t.Name) && !t.Exact &&
				(allow || !covers(l.denied, e)) && !slices.Contains(below, e.String()) {
				below = append(below, e.String())
			}
		}
		if more := len(below) - maxShown; more > 0 {
			below = append(below[:maxShown], fmt.Sprintf("%d more", more))
		}
		if len(below) > 0 {
			out = append(out, fmt.Errorf("below %s stays %s what is listed by itself: %s; %s that, too, if you mean it",
				t.Name, word, strings.Join(below, ", "), verb))
		}
		if allow && t.Exact && slices.ContainsFunc(l.denied, func(s string) bool {
			e, ok := entry(s, t.Name)
			return ok && e.Name == t.Name && !e.Exact
		}) {
			out = append(out, fmt.Errorf("%s was denied with everything below it; that is denied no more", t.Name))
		}
	}
	return out
}

// writeNames replaces the lists that differ, the one that closes first. After
// an error they are what they were, as far as that can be had.
func (f *Firewall) writeNames(old, next lists, allow bool) error {
	live := func(from, to lists) error {
		if slices.Equal(from.live, to.live) {
			return nil
		}
		return f.bundle.SetLiveDomains(to.live)
	}
	denied := func(from, to lists) error {
		if slices.Equal(from.denied, to.denied) {
			return nil
		}
		return f.bundle.SetDeniedDomains(to.denied)
	}
	first, second := denied, live
	if allow { // a name in both is denied
		first, second = live, denied
	}
	err := first(old, next)
	if err == nil {
		if err = second(old, next); err == nil {
			return nil
		}
	}
	return errors.Join(err, second(next, old), first(next, old))
}

// recordNames writes the audit lines of a decision about names alone: one for
// each address, or one for a name none is known of.
func (f *Firewall) recordNames(action string, req control.Request, targets []policy.Target, addrs []string) {
	for _, a := range addrs {
		f.record(nil, audit.Entry{Action: action, Dest: a, Detail: "target=" + req.Target})
	}
	if len(addrs) > 0 {
		return
	}
	for _, t := range targets {
		f.record(nil, audit.Entry{Action: action, Domain: t.String(), Detail: "target=" + req.Target})
	}
}
