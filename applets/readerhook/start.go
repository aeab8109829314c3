package readerhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/dossier"
	"github.com/terok-ai/terok-box/applets/internal/hook"
	"github.com/terok-ai/terok-box/applets/internal/reach"
	"github.com/terok-ai/terok-box/applets/internal/roster"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nflog"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/oci"
	"github.com/terok-ai/terok-box/wire/start"
)

// container is a container that starts. The firewall is not there yet, nor is
// the container on the roster.
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

// serve starts a supervisor, unless one serves the network already.
func (c *container) serve(ctx context.Context, env *cmdenv.Env) error {
	if dir, err := hook.RuntimeDir(env); err == nil {
		c.runtimeDir, c.path = dir, roster.Path(dir, c.process.NetNS)
		if c.roster, err = roster.Lock(ctx, c.path); err != nil {
			return err
		}
		defer c.roster.Unlock()
		if c.before, err = c.roster.Read(); err != nil {
			return err
		}
	}
	served, err := c.clean(ctx)
	if served || err != nil {
		return err
	}
	return c.start()
}

// clean ends what is left of earlier starts. served says that a supervisor
// stays that serves this container as well.
func (c *container) clean(ctx context.Context) (served bool, err error) {
	record, err := c.bundle.Supervisor()
	if err == nil && record.PID == 0 && len(c.before.Members) == 0 {
		return false, c.endReader(ctx)
	}
	found, err := find(func(id control.Identity) bool {
		return id.StateDir == c.bundle.Path() || id.NetNS == c.process.NetNS
	})
	if err != nil {
		return false, err
	}
	var left []control.Identity
	for _, id := range found {
		if !c.served(id) {
			left = append(left, id)
			continue
		}
		served = true
		err = errors.Join(err, c.join(id))
	}
	if len(left) > 0 || !served {
		err = errors.Join(err, end(ctx, c.bundle, left))
	}
	if !served {
		err = errors.Join(err, c.endReader(ctx))
	}
	if err != nil {
		err = fmt.Errorf("end what is left of an earlier start: %w", err)
	}
	return served, err
}

// served reports whether a process serves this container: it was started for
// it, or for another one with which it shares its network.
func (c *container) served(id control.Identity) bool {
	if id.NetNS != c.process.NetNS {
		return false
	}
	if id.PID == c.process.PID && id.Start == c.process.Start {
		return true
	}
	others := slices.ContainsFunc(c.before.Alive(c.process.NetNS), func(m roster.Member) bool { return m.StateDir != c.bundle.Path() })
	return others || id.StateDir != c.bundle.Path() && (bundle.Process{PID: id.PID, Start: id.Start}).Alive()
}

// join puts the container on the roster, so that the supervisor of another
// one does not end before this one does.
func (c *container) join(id control.Identity) error {
	if c.roster == nil || id.PID == c.process.PID {
		return nil
	}
	r := c.before
	if r.Owner == "" {
		r.Owner = id.StateDir
	}
	dir := c.bundle.Path()
	r.Members = append(slices.DeleteFunc(slices.Clone(r.Members), func(m roster.Member) bool { return m.StateDir == dir }),
		roster.Member{StateDir: dir, ID: c.state.Short(), PID: c.process.PID, Start: c.process.Start})
	return c.roster.Write(r)
}

// spec is what the supervisor is told.
func (c *container) spec() control.Spec {
	s := control.Spec{
		StateDir: c.bundle.Path(), Container: hook.Name(c.state), ID: c.state.ID,
		Dossier:    dossier.Called(c.state.Dossier(), hook.Name(c.state)),
		Audit:      c.state.Annotations[oci.KeyAuditEnabled] != "false",
		RuntimeDir: c.runtimeDir, PID: c.process.PID, Start: c.process.Start, NetNS: c.process.NetNS, Roster: c.path,
	}
	if len(c.before.Alive(c.process.NetNS)) > 0 && c.before.Owner != s.StateDir {
		s.Owner = c.before.Owner
	}
	return s
}

// start starts the supervisor, which does the rest by itself. From then on no
// packet is missed: the socket that gets them is open before it runs.
func (c *container) start() error {
	fail := func(err error) error {
		return fmt.Errorf("start the supervisor, which asks about what is blocked: %w", err)
	}
	spec := c.spec()
	var told bytes.Buffer
	if err := start.WriteSpec(&told, spec); err != nil {
		return fail(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer w.Close()
	defer r.Close()
	var log *nflog.Conn
	if err := c.ns.Do(func() (err error) { log, err = nflog.Open(ruleset.Group); return err }); err == nil {
		defer log.Close()
	} // else the supervisor finds out why
	files := [control.NumFiles]int{}
	for i := range files {
		files[i] = child.None
	}
	for n, of := range map[int]syscall.Conn{start.FileSpec: r, start.FileNetNS: c.ns.File(), control.FileLog: log} {
		if n == control.FileLog && log == nil {
			continue
		}
		fd, err := child.Duplicate(of)
		if err != nil {
			return fail(err)
		}
		defer syscall.Close(fd)
		files[n-start.FileSpec] = fd
	}
	if err := fill(w, told.Bytes()); err != nil {
		return fail(err)
	}
	rules := reach.Supervisor(spec)
	p, err := child.Start(child.Command{Args: spec.Args(start.Server), Files: files[:], Session: true, Rules: &rules})
	if err != nil {
		return fail(err)
	}
	// The next start must find it even if it comes before the supervisor has
	// begun, which it does when that is written down.
	self, err := bundle.ProcessOf(p.Pid, spec.NetNS)
	if err == nil {
		err = c.bundle.SetSupervisor(bundle.Supervisor{PID: self.PID, Start: self.Start})
	}
	if err == nil {
		err = start.Proceed(w)
	}
	if err != nil { // without a word of ours it ends
		return fail(err)
	}
	return p.Release()
}

// fill puts data into a pipe that nobody reads yet.
func fill(w *os.File, data []byte) error {
	const usual = 64 << 10 // bytes that a pipe holds: pipe(7)
	if len(data) >= usual {
		conn, err := w.SyscallConn()
		if err != nil {
			return err
		}
		var resized error
		if err := conn.Control(func(fd uintptr) { _, resized = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, start.MaxSpec) }); err != nil {
			return err
		}
		if resized != nil {
			return fmt.Errorf("tell it %d bytes: %w", len(data), resized)
		}
	}
	if err := w.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}
