// Package firewall is one container's firewall as verbs: what the state files
// say, carried into the kernel and back, under the bundle's lock.
//
// The files are the truth about what is allowed and denied; the kernel is the
// truth about the state (up, down, …). An operation that was killed half way
// leaves a mark in the bundle, and the next one first makes the kernel's sets
// what the files say.
//
// It never runs a program and must never import a package that faces people.
package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/audit"
	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/names"
)

// Firewall is a container's bundle, locked, and its table in the kernel.
type Firewall struct {
	bundle    *bundle.Bundle
	conn      *nft.Conn // nil in ExecuteNames
	netns     *netns.NS // that of conn; nil in a hook
	container string
	audit     bool
	warnings  []error
	gone      error // why the process of names cannot be reached, once that is known
}

// Execute carries out one request and never fails otherwise than in its
// response. The caller must be able to enter the container's network
// namespace.
func Execute(ctx context.Context, req control.Request) control.Response {
	ns, err := netns.Open(req.PID)
	if err != nil {
		return control.Response{Error: fmt.Sprintf("%s: %v", req.Container, err)}
	}
	defer ns.Close()
	k := Keep(ns)
	defer k.Close()
	return k.Execute(ctx, req)
}

// Kept is the network namespace of a container, for who carries out many
// requests there: the connection to its nf_tables, and what they hold as long
// as nobody else changes it, are kept from one to the next. Its methods can be
// called at the same time.
type Kept struct {
	ns   *netns.NS
	mu   sync.Mutex // held while a request is carried out
	conn *nft.Conn  // nil: there is none at this time
}

// Keep is for who has the container's network namespace open, and may not be
// allowed to open it by the process any more. It stays the caller's to close.
func Keep(ns *netns.NS) *Kept { return &Kept{ns: ns} }

// Close disconnects; Execute connects again.
func (k *Kept) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.disconnect()
}

// disconnect is Close with the lock held.
func (k *Kept) disconnect() error {
	conn := k.conn
	if k.conn = nil; conn == nil {
		return nil
	}
	return conn.Close()
}

// Execute carries out one request and never fails otherwise than in its
// response.
func (k *Kept) Execute(ctx context.Context, req control.Request) control.Response {
	var resp control.Response
	if err := k.execute(ctx, req, &resp); err != nil {
		resp.Error = err.Error()
	}
	return resp
}

// connect connects to nf_tables, of which the host's are never touched. The
// lock is held.
func (k *Kept) connect() (*nft.Conn, error) {
	if k.conn != nil {
		return k.conn, nil
	}
	if err := NotHost(k.ns); err != nil {
		return nil, err
	}
	err := k.ns.Do(func() (err error) {
		k.conn, err = dial()
		return err
	})
	return k.conn, err
}

func (k *Kept) execute(ctx context.Context, req control.Request, resp *control.Response) error {
	b, err := bundle.Open(req.StateDir)
	if err != nil {
		return err
	}
	defer b.Close()
	switch id, err := k.ns.ID(); {
	case err != nil:
		return fmt.Errorf("%s: %w", req.Container, err)
	case req.NetNS != "" && id.String() != req.NetNS:
		return fmt.Errorf("%s: process %d is not the container's any more; try again", req.Container, req.PID)
	}
	unlock, err := lock(ctx, b, req)
	if err != nil {
		return err
	}
	defer unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	conn, err := k.connect()
	if err != nil {
		return fmt.Errorf("%s: %w", req.Container, err)
	}
	f := Firewall{bundle: b, conn: conn, netns: k.ns, container: req.Container, audit: req.Audit}
	if err := f.perform(ctx, req, resp); err != nil {
		_ = k.disconnect() // whatever it was, the next one begins anew
		return err
	}
	resp.Warning = f.warning()
	return nil
}

// lock takes the bundle's lock, as long as it is not too late for the request.
func lock(ctx context.Context, b *bundle.Bundle, req control.Request) (unlock func(), err error) {
	if !req.Until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, req.Until)
		defer cancel()
	}
	unlock, err = b.Lock(ctx)
	if err == nil && req.Late() { // this process may have been stopped meanwhile
		unlock()
		err = errors.New("nothing was done, because it was too late by the time it could be; try again")
	}
	return unlock, err
}

// warning is what did not stop the operation; "" if there is nothing.
func (f *Firewall) warning() string {
	var texts []string
	for _, w := range f.warnings {
		if s := w.Error(); !slices.Contains(texts, s) {
			texts = append(texts, s)
		}
	}
	return strings.Join(texts, "\n")
}

// NotHost refuses the network namespace this process lives in: rules there
// would meet the host's own traffic.
func NotHost(ns *netns.NS) error {
	own, err := netns.Current()
	if err != nil {
		return err
	}
	defer own.Close()
	id, err := ns.ID()
	if err != nil {
		return err
	}
	switch ownID, err := own.ID(); {
	case err != nil:
		return err
	case id == ownID:
		return errors.New("it shares the host's network, which is never touched; start it with a network of its own")
	}
	return nil
}

// Here connects to nf_tables of the network namespace that the calling thread
// is in. The caller holds the bundle's lock until after Close.
func Here(b *bundle.Bundle) (*Firewall, error) {
	conn, err := dial()
	if err != nil {
		return nil, err
	}
	return &Firewall{bundle: b, conn: conn}, nil
}

func dial() (*nft.Conn, error) {
	conn, err := nft.Dial()
	if err != nil {
		return nil, fmt.Errorf("reach nf_tables in the container's network namespace: %w", err)
	}
	return conn, nil
}

// Close disconnects.
func (f *Firewall) Close() error { return f.conn.Close() }

func (f *Firewall) perform(ctx context.Context, req control.Request, resp *control.Response) error {
	var err error
	switch req.Op {
	case control.OpState, control.OpRules:
		if err := f.settle(ctx); err != nil { // what there is can be shown all the same
			f.warnings = append(f.warnings, err)
		}
		return f.describe(req.Op == control.OpRules, resp)
	case control.OpVerify:
		return f.Verify()
	case control.OpUp:
		err = f.transition(ctx, ruleset.Up, "Ruleset verification failed: ")
		f.record(err, audit.Entry{Action: "shield_up"})
	case control.OpDown:
		err = f.transition(ctx, ruleset.Down, "Shield-down ruleset verification failed: ")
		f.record(err, audit.Entry{Action: "shield_down"})
	case control.OpDisengage:
		err = f.transition(ctx, ruleset.Disengaged, "Shield-down ruleset verification failed: ")
		f.record(err, audit.Entry{Action: "shield_down", Detail: "allow_all=True"})
	case control.OpQuarantine:
		err = f.transition(ctx, ruleset.Quarantine, "Quarantine ruleset verification failed: ")
		f.record(err, audit.Entry{Action: "shield_quarantine"})
	case control.OpAllow, control.OpDeny:
		if err := f.settle(ctx); err != nil {
			return err
		}
		return f.change(ctx, req, resp)
	case control.OpReset:
		if err := f.settle(ctx); err != nil { // what closes does so all the same
			f.warnings = append(f.warnings, err)
		}
		if resp.Applied, err = f.reset(ctx); err == nil {
			f.record(nil, audit.Entry{Action: audit.Reset, Detail: fmt.Sprintf("addresses=%d", len(resp.Applied))})
		}
	case control.OpSync:
		if err = f.sync(ctx); err == nil {
			resp.Applied, err = f.learned()
		}
	default:
		err = fmt.Errorf("unknown operation %q", req.Op)
	}
	return err
}

// record appends an audit line for something that succeeded. The log failing
// is a warning: the firewall has changed already.
func (f *Firewall) record(err error, e audit.Entry) {
	if err != nil || !f.audit {
		return
	}
	e.Time, e.Container = time.Now(), f.container
	if err := audit.Append(f.bundle, e); err != nil {
		f.warnings = append(f.warnings, err)
	}
}

// policy is the effective sets of the state files.
func (f *Firewall) policy() (files, error) {
	var p files
	var err error
	if p.profile, err = f.bundle.ProfileAllowed(); err != nil {
		return p, err
	}
	if p.live, err = f.bundle.LiveAllowed(); err != nil {
		return p, err
	}
	p.deny, err = f.bundle.DenyList()
	return p, err
}

// files are the lists of addresses in the bundle.
type files struct{ profile, live, deny []netip.Prefix }

// into returns the table with its allow and deny sets holding what the files
// say. Tables without such sets (quarantine, later systems' tiers) are
// returned as they are.
func (p files) into(t *ruleset.Table) *ruleset.Table {
	allow, deny := bundle.Effective(p.profile, p.live, p.deny)
	return ruleset.WithAddresses(t, allow, deny)
}

// Load is the table that belongs into the kernel of a container that starts:
// the bundle's ruleset with the sets the files say, verified.
func Load(b *bundle.Bundle) (*ruleset.Table, error) {
	text, err := b.Ruleset()
	if err != nil {
		return nil, err
	}
	t, err := ruleset.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("ruleset.nft: %w", err)
	}
	f := Firewall{bundle: b}
	format, err := b.RulesetFormat()
	if err != nil {
		return nil, err
	}
	if format != 0 && format != ruleset.Format {
		// Another version of this program wrote it: what was asked for is
		// taken from it, and built as this one does.
		if t, err = f.target(t, ruleset.Up); err != nil {
			return nil, err
		}
	}
	p, err := f.policy()
	if err != nil {
		return nil, err
	}
	t = p.into(t)
	k, err := known(b)
	if err != nil {
		return nil, err
	}
	switch state, err := ruleset.Verify(t, k); {
	case err != nil:
		return nil, fmt.Errorf("ruleset.nft is not a safe ruleset: %w", err)
	case state != ruleset.Up && state != ruleset.Quarantine:
		return nil, fmt.Errorf("ruleset.nft would leave the container %s", state)
	}
	return t, nil
}

func known(b *bundle.Bundle) (ruleset.Known, error) {
	dns, err1 := b.UpstreamDNS()
	ports, err2 := b.LoopbackPorts()
	network, err3 := b.Network()
	tier, err4 := b.Tier()
	format, err5 := b.RulesetFormat()
	// Our resolver asks from outside of the container; another program's may
	// ask from inside.
	k := ruleset.Known{DNS: dns, NoDNS: tier == bundle.Proxy && format != 0, Ports: ports}
	if network.Mode != "" { // else prepared by another program
		k.Hosts = append([]netip.Addr{}, network.Hosts...)
	}
	return k, errors.Join(err1, err2, err3, err4, err5)
}

// Start puts the bundle's table into a namespace that has none. A table that
// is there already must be the same one, or one of ours that a container left
// behind: if the namespace is vacant, as far as is known, it is replaced, and
// what was learned for names is forgotten.
func (f *Firewall) Start(want *ruleset.Table, vacant bool) error {
	have, err := f.conn.List()
	if err != nil {
		return err
	}
	if have != nil {
		ours := len(have.Sets) == 0 || have.Set("learned_v4") != nil
		if d := ruleset.Diff(have, want); !d.Empty() && !(vacant && ours) {
			return fmt.Errorf("its network namespace holds another firewall already (%s): stop the containers it shares its network with, or give it a network of its own", d)
		}
		if err := f.conn.ForgetAll(); err != nil && !errors.Is(err, nft.ErrNotLearning) {
			return err
		}
	}
	if err := f.conn.Apply(want); err != nil {
		return err
	}
	return f.bundle.SetUnsettled(false)
}

// settle finishes what a killed command left half done.
func (f *Firewall) settle(ctx context.Context) error {
	half, err := f.bundle.Unsettled()
	if err != nil || !half {
		return err
	}
	if err := f.sync(ctx); err != nil && !errors.Is(err, errNoTable) {
		return fmt.Errorf("finish an interrupted command: %w", err)
	}
	return nil
}

// sync makes the kernel's sets what the files say, and has the lists of names
// read again.
func (f *Firewall) sync(ctx context.Context) error {
	have, err := f.conn.List()
	if err != nil {
		return err
	}
	if have == nil {
		return errNoTable
	}
	p, err := f.policy()
	if err != nil {
		return err
	}
	if err := f.conn.Apply(p.into(have)); err != nil {
		return err
	}
	if _, settled, err := f.reloadOrForget(ctx); err != nil || !settled {
		return err
	}
	return f.bundle.SetUnsettled(false)
}

// learned are the addresses that are open because of a name.
func (f *Firewall) learned() ([]string, error) {
	all, err := f.conn.Learned()
	if errors.Is(err, nft.ErrNotLearning) {
		return nil, nil
	}
	out := make([]string, len(all))
	for i, l := range all {
		out[i] = l.Addr.String()
	}
	slices.Sort(out)
	return out, err
}

var errNoTable = errors.New("it has no firewall: it was not started under terok-shield; stop it, or put one there with: terok-shield up")

// State is what the kernel holds; the error says why it is ruleset.Error.
func (f *Firewall) State() (ruleset.State, *ruleset.Table, error) { return f.state(f.conn.List) }

func (f *Firewall) state(list func() (*ruleset.Table, error)) (ruleset.State, *ruleset.Table, error) {
	have, err := list()
	if err != nil {
		if errors.Is(err, nft.ErrForeign) {
			return ruleset.Error, nil, err
		}
		return ruleset.Error, nil, fmt.Errorf("list the ruleset: %w", err)
	}
	k, err := known(f.bundle)
	if err != nil {
		return ruleset.Error, have, err
	}
	state, err := ruleset.Verify(have, k)
	return state, have, err
}

func (f *Firewall) describe(listing bool, resp *control.Response) error {
	state, have, why := f.State()
	resp.State = state.String()
	if why != nil {
		resp.Detail = why.Error()
	}
	if listing && have != nil {
		resp.Listing = have.Listing()
	}
	return nil
}

// Verify fails unless the kernel holds exactly what Load gives.
func (f *Firewall) Verify() error {
	want, err := Load(f.bundle)
	if err != nil {
		return err
	}
	have, err := f.conn.List()
	if err != nil {
		return err
	}
	if have == nil {
		return errors.New("no firewall in its network namespace")
	}
	if d := ruleset.Diff(have, want); !d.Empty() {
		return fmt.Errorf("its firewall is not the prepared one: %s", d)
	}
	return nil
}

// transition moves the container to another state; its sets become what the
// files say, so there is nothing to settle before. Quarantine, the way out of
// any trouble, reads nothing of the bundle before it is in force.
func (f *Firewall) transition(ctx context.Context, to ruleset.State, prefix string) error {
	var want *ruleset.Table
	var k ruleset.Known
	var err error
	if to == ruleset.Quarantine {
		want, err = ruleset.Build(to, ruleset.Params{})
	} else {
		want, k, err = f.prepared(to)
	}
	if err != nil {
		return err
	}
	// Names on no list resolve only while their addresses can be reached.
	if open, err := f.bundle.Open(); to == ruleset.Up && (open || err != nil) {
		f.unlisted(ctx, false)
	}
	if err := f.conn.Apply(want); err != nil {
		return err
	}
	have, err := f.conn.List()
	if err != nil {
		return fmt.Errorf("%s%w", prefix, err)
	}
	switch state, err := ruleset.Verify(have, k); {
	case err != nil:
		return fmt.Errorf("%s%w", prefix, err)
	case state != to:
		return fmt.Errorf("%sstate is %s", prefix, state)
	}
	if to == ruleset.Quarantine { // which has no sets
		ctx, cancel := context.WithTimeout(ctx, emergencyTimeout)
		defer cancel()
		f.unlisted(ctx, false)
		return nil
	}
	f.unlisted(ctx, to != ruleset.Up)
	return f.bundle.SetUnsettled(false)
}

// prepared is the table of a state, from the bundle, and what it is held to.
func (f *Firewall) prepared(to ruleset.State) (*ruleset.Table, ruleset.Known, error) {
	k, err := known(f.bundle)
	if err != nil {
		return nil, k, err
	}
	text, err := f.bundle.Ruleset()
	if err != nil {
		return nil, k, err
	}
	t, err := ruleset.Parse(text)
	if err != nil {
		return nil, k, fmt.Errorf("ruleset.nft: %w", err)
	}
	t, err = f.target(t, to)
	return t, k, err
}

// target is the table of a state of a container that was prepared with that
// ruleset. One whose addresses are sorted by origin comes from a later
// version of the other terok-shield, which keeps them in files of its own: it
// can be quarantined and put back.
func (f *Firewall) target(prepared *ruleset.Table, to ruleset.State) (*ruleset.Table, error) {
	switch {
	case foreign(prepared) && to == ruleset.Up:
		return prepared, nil
	case foreign(prepared):
		return nil, errForeign
	}
	params, err := ruleset.ParamsOf(prepared)
	if err != nil {
		return nil, fmt.Errorf("ruleset.nft: %w", err)
	}
	p, err := f.policy()
	if err != nil {
		return nil, err
	}
	params.Allow, params.Deny = bundle.Effective(p.profile, p.live, p.deny)
	return ruleset.Build(to, params)
}

var errForeign = errors.New("it was prepared by a later version of the other terok-shield, whose lists this one does not change: use that one")

// foreign reports whether a table keeps what is allowed elsewhere than in our
// sets. A quarantined one keeps nothing.
func foreign(t *ruleset.Table) bool { return len(t.Sets) > 0 && t.Set("allow_v4") == nil }

// change allows or denies addresses and names: kernel, files and the process
// that answers the container together.
func (f *Firewall) change(ctx context.Context, req control.Request, resp *control.Response) error {
	c, err := f.plan(ctx, req)
	if err != nil {
		return err
	}
	f.warnings = append(f.warnings, c.caveats...)
	// The mark stays behind if we are killed from here on. An allow changes
	// the kernel first and a deny the files first: whichever half survives a
	// kill, the next command settles on the closed side. The lists of names
	// are what the process reads, so they always come before it.
	if err := f.bundle.SetUnsettled(true); err != nil {
		return err
	}
	for i, s := range c.steps {
		if err := s.do(); err != nil {
			if errors.Is(err, errKernel) {
				return err
			}
			for _, done := range slices.Backward(c.steps[:i]) {
				err = errors.Join(err, done.undo())
			}
			if len(c.names) > 0 && f.gone == nil { // it may have read the lists
				_, _, _ = f.reload(ctx, nil)
			}
			return err // unsettled: the next command looks at both sides again
		}
	}
	if !c.unsettled {
		if err := f.bundle.SetUnsettled(false); err != nil {
			return err
		}
	}
	action := audit.Allowed
	if req.Op == control.OpDeny {
		action = audit.Denied
	}
	if !c.told.Enforced && len(c.names) > 0 {
		f.warnings = append(f.warnings, fmt.Errorf("its firewall takes no addresses of names now, as in quarantine; what was decided holds from: terok-shield up %s", f.container))
	}
	if len(c.targets) == 0 {
		resp.Applied = c.applied
		f.recordNames(action, req, c.names, c.applied)
		return nil
	}
	for _, t := range c.targets {
		s := bundle.FormatPrefix(t)
		resp.Applied = append(resp.Applied, s)
		f.record(nil, audit.Entry{Action: action, Dest: s, Detail: "target=" + req.Target})
	}
	return nil
}

// decision is an allow or deny on its way.
type decision struct {
	targets []netip.Prefix
	names   []policy.Target
	caveats []error // warnings if it succeeds
	steps   []step

	told      names.Change // what the process said
	unsettled bool         // the process may go by older lists
	applied   []string     // addresses of the names
}

// step is a part of a change. After a failed do everything is as before.
type step struct{ do, undo func() error }

// plan says what a request comes to, without doing anything.
func (f *Firewall) plan(ctx context.Context, req control.Request) (*decision, error) {
	allow := req.Op == control.OpAllow
	c := &decision{told: names.Change{Enforced: true}}
	for _, s := range req.Targets {
		p, err := bundle.ParsePrefix(s)
		if err != nil {
			return nil, err
		}
		c.targets = append(c.targets, p)
	}
	for _, s := range req.Names {
		t, err := policy.ParseTarget(s)
		if err == nil && !t.IsName() {
			err = fmt.Errorf("%s is not a name", t)
		}
		if err != nil {
			return nil, err
		}
		c.names = append(c.names, t)
	}
	var kernel, addresses, lists, process step
	if len(c.targets) > 0 {
		var err error
		if kernel, addresses, err = f.planAddresses(c, allow); err != nil {
			return nil, err
		}
	}
	if len(c.names) > 0 {
		old, err := f.lists()
		if err != nil {
			return nil, err
		}
		next := old.with(allow, c.names)
		c.caveats = append(c.caveats, old.exceptions(allow, c.names)...)
		lists.do = func() error { return f.writeNames(old, next, allow) }
		lists.undo = func() error { return f.writeNames(next, old, !allow) }
		process.do = func() (err error) {
			if allow {
				var addrs []netip.Addr
				c.told, addrs, err = f.reload(ctx, c.names)
				for _, a := range addrs {
					c.applied = append(c.applied, a.String())
				}
				return err
			}
			settled := false
			c.told, settled, err = f.reloadOrForget(ctx)
			c.applied, c.unsettled = c.told.Removed, !settled
			return err
		}
	}
	order := []step{kernel, addresses, lists, process}
	if !allow {
		order = []step{lists, addresses, kernel, process}
	}
	for _, s := range order {
		if s.do != nil {
			c.steps = append(c.steps, s)
		}
	}
	return c, nil
}

// planAddresses is the part of a decision that is about addresses.
func (f *Firewall) planAddresses(c *decision, allow bool) (kernel, addresses step, err error) {
	state, have, why := f.state(f.conn.Known)
	switch {
	case state == ruleset.Offline:
		return kernel, addresses, errNoTable
	case state == ruleset.Error:
		return kernel, addresses, fmt.Errorf("its firewall is in no known state (%w); mend it with: terok-shield up %s", why, f.container)
	case foreign(have):
		return kernel, addresses, errForeign
	case state == ruleset.Quarantine && allow:
		return kernel, addresses, fmt.Errorf("it is in quarantine, where nothing is allowed; lift it with: terok-shield up %s", f.container)
	}
	old, err := f.policy()
	if err != nil {
		return kernel, addresses, err
	}
	next := old.with(allow, c.targets)
	if allow {
		for _, t := range c.targets {
			if i := slices.IndexFunc(next.deny, func(d netip.Prefix) bool { return d.Bits() < t.Bits() && d.Contains(t.Addr()) }); i >= 0 {
				c.caveats = append(c.caveats, fmt.Errorf("%s stays blocked: it lies in %s, which is denied",
					bundle.FormatPrefix(t), bundle.FormatPrefix(next.deny[i])))
			}
		}
	}
	kernel.do = func() error { return f.conn.ApplyOver(have, next.into(have)) }
	kernel.undo = func() error { return f.conn.Apply(old.into(have)) }
	addresses.do = func() error {
		err := f.write(old, next)
		if err != nil {
			err = errors.Join(err, f.write(next, old))
		}
		return err
	}
	addresses.undo = func() error { return f.write(next, old) }
	return kernel, addresses, nil
}

// with is the lists after an allow or deny of the targets.
func (p files) with(allow bool, targets []netip.Prefix) files {
	without := func(list []netip.Prefix) []netip.Prefix {
		return slices.DeleteFunc(slices.Clone(list), func(x netip.Prefix) bool { return slices.Contains(targets, x) })
	}
	add := func(list []netip.Prefix) []netip.Prefix {
		out := slices.Clone(list)
		for _, t := range targets {
			if !slices.Contains(out, t) {
				out = append(out, t)
			}
		}
		return out
	}
	if allow {
		return files{profile: p.profile, live: add(p.live), deny: without(p.deny)}
	}
	return files{profile: p.profile, live: without(p.live), deny: add(p.deny)}
}

// write replaces the files that differ, the ones that close first.
func (f *Firewall) write(old, next files) error {
	deny := func() error {
		if slices.Equal(old.deny, next.deny) {
			return nil
		}
		return f.bundle.SetDenyList(next.deny)
	}
	live := func() error {
		if slices.Equal(old.live, next.live) {
			return nil
		}
		return f.bundle.SetLiveAllowed(next.live)
	}
	if len(next.deny) < len(old.deny) { // un-denying opens: last
		return errors.Join(live(), deny())
	}
	return errors.Join(deny(), live())
}
