package nfthook

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/dnsmasq"
	"github.com/terok-ai/terok-box/applets/internal/firewall"
	"github.com/terok-ai/terok-box/applets/internal/hook"
	"github.com/terok-ai/terok-box/applets/internal/roster"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/names"
	"github.com/terok-ai/terok-box/wire/oci"
	"github.com/terok-ai/terok-box/wire/start"
)

const (
	// cleanTimeout is what cleaning up may take, from two seconds for
	// processes to end by themselves to seven for one that has to be killed.
	cleanTimeout = 8 * time.Second
	// lockTimeout is how long the end of a container waits for others in its
	// network.
	lockTimeout = 5 * time.Second
	// returnTimeout is how long a process of names that died may take to be
	// back.
	returnTimeout = 10 * time.Second
	returnPause   = 20 * time.Millisecond
)

// container is a container that starts.
type container struct {
	state   *oci.State
	bundle  *bundle.Bundle
	process bundle.Process // its first
	ns      *netns.NS

	runtimeDir string       // "" if there is none to be used
	path       string       // of the roster; "" likewise
	roster     *roster.File // locked; nil likewise
	before     roster.Roster
}

// openRoster finds out who else lives in the namespace. Without a runtime
// directory that cannot be known, and another firewall there is refused.
func (c *container) openRoster(ctx context.Context, env *cmdenv.Env) error {
	dir, err := hook.RuntimeDir(env)
	if err != nil {
		return nil
	}
	path := roster.Path(dir, c.process.NetNS)
	f, err := roster.Lock(ctx, path)
	if err != nil {
		return context.Cause(ctx)
	}
	c.runtimeDir, c.path, c.roster = dir, path, f
	c.before, err = f.Read()
	if err != nil {
		f.Unlock()
	}
	return err
}

func (c *container) closeRoster() {
	if c.roster != nil {
		c.roster.Unlock()
	}
}

// others are the other containers in the namespace.
func (c *container) others() []roster.Member {
	return without(c.before.Alive(c.process.NetNS), c.bundle.Path())
}

func without(all []roster.Member, dir string) []roster.Member {
	return slices.DeleteFunc(all, func(m roster.Member) bool { return m.StateDir == dir })
}

// spec is what the container's process of names is told.
func (c *container) spec(t bundle.Tier) names.Spec {
	short := c.state.Short()
	return names.Spec{
		StateDir: c.bundle.Path(), Container: hook.Name(c.state), ID: short, Socket: socketPath(c.runtimeDir, short, c.bundle),
		Audit: c.state.Annotations[oci.KeyAuditEnabled] != "false",
		Tier:  string(t), PID: c.process.PID, Start: c.process.Start, NetNS: c.process.NetNS, Roster: c.path,
	}
}

// clean removes what an end without poststop left.
func (c *container) clean(ctx context.Context) error {
	b := c.bundle
	n, err := b.Namer()
	if err != nil || n.PID != 0 || len(c.before.Members) > 0 {
		err := endProcesses(ctx, b, func(id start.Identity) bool {
			return id.StateDir == b.Path() || id.NetNS == c.process.NetNS
		})
		if err != nil {
			return fmt.Errorf("end what is left of an earlier start: %w", err)
		}
	}
	return b.SetOpen(false)
}

// record makes known that the container lives in its namespace, which the
// bundle in owner governs.
func (c *container) record(owner string) error {
	b, short := c.bundle, c.state.Short()
	other := owner
	if owner == b.Path() {
		other = ""
	}
	if err := b.SetOwner(other); err != nil {
		return err
	}
	if err := b.SetContainerID(short); err != nil {
		return err
	}
	if err := b.SetProcess(c.process); err != nil {
		return err
	}
	if c.roster == nil {
		return nil
	}
	self := roster.Member{StateDir: b.Path(), ID: short, PID: c.process.PID, Start: c.process.Start}
	return c.roster.Write(roster.Roster{Owner: owner, Members: append(c.others(), self)})
}

// abandon undoes what cannot stay if the container does not start after all.
// Its firewall, which can, does.
func (c *container) abandon(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	b := c.bundle
	err := errors.Join(endProcesses(ctx, b, func(id start.Identity) bool {
		return id.StateDir == b.Path() && id.NetNS == c.process.NetNS
	}), dnsmasq.Stop(ctx, b), b.RemoveProcess())
	if c.roster != nil {
		err = errors.Join(err, c.roster.Remove())
	}
	return err
}

// join lets the container live under the firewall that is there. The bundle
// of the container that came first governs it, and its own does not count.
func (c *container) join(ctx context.Context) (err error) {
	b, owner := c.bundle, c.bundle
	if dir := c.before.Owner; dir != b.Path() {
		if owner, err = bundle.Open(dir); err != nil {
			return fmt.Errorf("it shares the network of a container whose state directory is gone; stop that one first: %w", err)
		}
		defer owner.Close()
	}
	fail := func(err error) error {
		return fmt.Errorf("it shares the network of %s: %w", filepath.Base(owner.Path()), err)
	}
	t, err := tierOf(owner)
	if err != nil {
		return fail(err)
	}
	mine, err := tierOf(b)
	if err != nil {
		return err
	}
	serves := func(t bundle.Tier) bool { return t == bundle.Proxy || t == bundle.Dnsmasq }
	if serves(mine) && !serves(t) {
		return fail(errors.New("nobody answers questions for names there; prepare both for the same DNS tier"))
	}
	if err := c.ns.Enter(); err != nil {
		return err
	}
	// Looking takes no lock: the other's hook waits for us with its own held.
	f, err := firewall.Here(owner)
	if err != nil {
		return fail(err)
	}
	state, _, err := f.State()
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fail(fmt.Errorf("its firewall is in no known state, mend it with terok-shield up: %w", err))
	}
	if state != ruleset.Up && state != ruleset.Quarantine {
		return fail(fmt.Errorf("its firewall is %s; put it up with terok-shield up", state))
	}
	if t != "" {
		if err := alive(ctx, owner); err != nil {
			return fail(err)
		}
	}
	return c.record(owner.Path())
}

// alive waits until the bundle's process of names lives, which may have died
// a moment ago.
func alive(ctx context.Context, b *bundle.Bundle) error {
	ctx, cancel := context.WithTimeout(ctx, returnTimeout)
	defer cancel()
	for {
		if n, err := b.Namer(); err != nil || n.PID != 0 && n.Alive() {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.New("the process that finds the addresses of its names has ended; restart that container")
		case <-time.After(returnPause):
		}
	}
}

// stop goes on whatever fails and says all of it. The last container in a
// namespace ends the process of names there.
func stop(ctx context.Context, env *cmdenv.Env, st *oci.State, b *bundle.Bundle) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	p, err := b.Process()
	if err != nil {
		p = bundle.Process{}
	}
	if id, err := b.ContainerID(); err == nil && id != "" && st.ID != "" && id != st.Short() && p.PID != 0 && p.Alive() {
		return nil // another container of the same name has started meanwhile
	}
	errs := []error{err}
	left, err := leave(ctx, env, b, p.NetNS)
	errs = append(errs, err)
	if left {
		errs = append(errs, dnsmasq.Stop(ctx, b))
	}
	return errors.Join(append(errs, b.SetOwner(""), b.RemoveProcess())...)
}

// leave takes the container off the roster of its namespace, and ends the
// processes there if it was the last on it, which is what left says.
func leave(ctx context.Context, env *cmdenv.Env, b *bundle.Bundle, ns string) (left bool, err error) {
	recorded := ns
	ours := func(id start.Identity) bool {
		if recorded != "" {
			return id.NetNS == recorded
		}
		return id.StateDir == b.Path()
	}
	path, ns, err := findRoster(env, b, ns, ours)
	if err != nil {
		return false, err
	}
	if path == "" {
		return true, endProcesses(ctx, b, ours)
	}
	lockCtx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	f, err := roster.Lock(lockCtx, path)
	if err != nil {
		// Processes end by themselves with the last container.
		return false, err
	}
	defer f.Unlock()
	r, err := f.Read()
	if err != nil {
		return false, err
	}
	if r.Members = without(r.Alive(ns), b.Path()); len(r.Members) > 0 {
		return r.Owner != b.Path(), f.Write(r)
	}
	return true, errors.Join(endProcesses(ctx, b, ours), f.Remove())
}

// findRoster is the roster that the processes go by, and its namespace, or
// else the one that they would: the environment at the start may have been
// another one. "" if there can be none.
func findRoster(env *cmdenv.Env, b *bundle.Bundle, ns string, ours func(start.Identity) bool) (path, netNS string, err error) {
	found, err := child.Find(func(args []string) bool {
		id, ok := names.ParseArgs(args)
		if ok = ok && ours(id); ok {
			path, ns = id.Roster, id.NetNS
		}
		return ok
	})
	if err != nil {
		return "", "", err
	}
	child.Release(found)
	if len(found) > 0 || ns == "" {
		return path, ns, nil
	}
	// A process that has been killed says in its record where it was.
	if n, err := b.Namer(); err == nil && n.Socket != "" {
		dir := filepath.Dir(filepath.Dir(filepath.Dir(n.Socket)))
		if n.Socket == names.SocketPath(dir, strings.TrimSuffix(filepath.Base(n.Socket), ".sock")) {
			return roster.Path(dir, ns), ns, nil
		}
	}
	dir, err := hook.RuntimeDir(env)
	if err != nil {
		return "", ns, nil
	}
	return roster.Path(dir, ns), ns, nil
}
