package readerhook

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/hook"
	"github.com/terok-ai/terok-box/applets/internal/roster"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/oci"
	"github.com/terok-ai/terok-box/wire/varlink"
)

const (
	// lockTimeout is how long the end of a container waits for others in its
	// network. Processes end by themselves with the last container.
	lockTimeout = 5 * time.Second
	// dyingTimeout is how long the kernel may take to end a killed process.
	dyingTimeout = 2 * time.Second
)

// stop goes on whatever fails and says all of it. The last container in a
// network ends the supervisor there.
func stop(ctx context.Context, env *cmdenv.Env, st *oci.State, b *bundle.Bundle) error {
	errs := []error{endReader(ctx, b)}
	netNS := ""
	if id, err := b.ContainerID(); err == nil && id == st.Short() {
		if p, err := b.Process(); err == nil {
			netNS = p.NetNS
		}
	}
	// Another container of the same name may have started meanwhile.
	ours := func(id control.Identity) bool {
		return id.ID == st.Short() || netNS != "" && id.NetNS == netNS || st.ID == "" && id.StateDir == b.Path()
	}
	all, err := find(ours)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	list, needed, err := stillNeeded(ctx, st, b, all, netNS)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	if list != nil {
		defer list.Unlock()
	}
	if needed {
		return errors.Join(errs...)
	}
	var places []place
	if dir, err := hook.RuntimeDir(env); err == nil && st.ID != "" {
		places = append(places, place{dir, st.Short()})
	}
	errs = append(errs, end(ctx, b, all, places...))
	if list != nil {
		errs = append(errs, list.Remove())
	}
	return errors.Join(errs...)
}

// find finds supervisors.
func find(match func(control.Identity) bool) (all []control.Identity, err error) {
	found, err := child.Find(func(args []string) bool {
		id, ok := control.ParseArgs(args)
		return ok && match(id)
	})
	child.Release(found)
	for _, p := range found {
		if id, ok := control.ParseArgs(p.Args); ok {
			all = append(all, id)
		}
	}
	return all, err
}

// end ends supervisors, whichever of their two processes has been found, and
// removes what they leave behind and what is left of the bundle's own, in
// certain places as well.
func end(ctx context.Context, b *bundle.Bundle, all []control.Identity, places ...place) error {
	var errs []error
	if len(all) > 0 {
		_, err := child.End(ctx, func(args []string) bool {
			id, ok := control.ParseArgs(args)
			return ok && slices.ContainsFunc(all, func(o control.Identity) bool {
				o.Role = id.Role
				return o == id
			})
		})
		errs = append(errs, err)
	}
	for _, id := range all {
		if p := (place{runtimeDir(id.Roster), id.ID}); id.StateDir == b.Path() {
			places = append(places, p)
		}
	}
	errs = append(errs, forget(ctx, b, places...))
	for _, id := range all {
		if id.StateDir == b.Path() {
			continue
		}
		other, err := bundle.Open(id.StateDir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = errors.Join(forget(ctx, other, place{runtimeDir(id.Roster), id.ID}), other.Close())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// stillNeeded reports whether others live in the network of the processes. The
// list of these is locked until it is unlocked; it is nil if there is none.
func stillNeeded(ctx context.Context, st *oci.State, b *bundle.Bundle, all []control.Identity, netNS string) (list *roster.File, needed bool, err error) {
	path := ""
	switch {
	case len(all) > 0:
		path, netNS = all[0].Roster, all[0].NetNS
	case netNS != "":
		path = rosterOf(b, netNS)
	}
	if path != "" {
		ctx, cancel := context.WithTimeout(ctx, lockTimeout)
		defer cancel()
		if list, err = roster.Lock(ctx, path); err != nil {
			return nil, false, err
		}
		r, err := list.Read()
		if err != nil {
			list.Unlock()
			return nil, false, err
		}
		needed = slices.ContainsFunc(r.Alive(netNS), func(m roster.Member) bool { return m.StateDir != b.Path() })
	}
	// One that started just now may not be on the roster yet.
	needed = needed || slices.ContainsFunc(all, func(id control.Identity) bool {
		return id.ID != st.Short() && id.StateDir != b.Path() && (bundle.Process{PID: id.PID, Start: id.Start}).Alive()
	})
	return list, needed, nil
}

// rosterOf is the roster that a supervisor went by which has ended, as far as
// its record says; "" if that does not.
func rosterOf(b *bundle.Bundle, netNS string) string {
	s, err := b.Supervisor()
	if err != nil || s.Control == "" || s.Alive() {
		return ""
	}
	dir := runtimeDirOf(s.Control)
	if dir == "" {
		return ""
	}
	return roster.Path(dir, netNS)
}

// place is where sockets of a container are.
type place struct{ runtimeDir, short string }

// forget removes the record and the sockets of a supervisor that has ended. It
// may have been killed before it wrote down where these are.
func forget(ctx context.Context, b *bundle.Bundle, places ...place) error {
	s, err := b.Supervisor()
	if err == nil && s.PID != 0 && s.Alive() && !dying(ctx, b, s) {
		return nil
	}
	if short := strings.TrimSuffix(filepath.Base(s.Control), ".sock"); s.Control != "" {
		places = append(places, place{"", short}, place{runtimeDirOf(s.Control), short})
	}
	var errs []error
	for i, p := range places {
		if slices.Contains(places[:i], p) {
			continue
		}
		for _, path := range control.SocketsOf(p.runtimeDir, b.Path(), p.short).All() {
			errs = append(errs, varlink.RemoveDead(path))
		}
	}
	return errors.Join(append(errs, b.RemoveSupervisor(), b.RemovePending())...)
}

// dying reports whether a supervisor has ended that still seemed to live: a
// process that was killed has no arguments any more, but takes a moment.
func dying(ctx context.Context, b *bundle.Bundle, s bundle.Supervisor) bool {
	found, err := find(func(id control.Identity) bool { return id.StateDir == b.Path() })
	if err != nil || len(found) > 0 {
		return false
	}
	p, err := child.Open(s.PID, s.Start)
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil {
		return false
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(ctx, dyingTimeout)
	defer cancel()
	return p.Wait(ctx) == nil
}

// runtimeDir is the runtime directory that a roster is in; "" if there is none.
func runtimeDir(rosterPath string) string {
	if rosterPath == "" {
		return ""
	}
	return filepath.Dir(filepath.Dir(filepath.Dir(rosterPath)))
}

// runtimeDirOf is the runtime directory that a control socket is in; "" if it
// is in none.
func runtimeDirOf(path string) string {
	dir := filepath.Dir(filepath.Dir(filepath.Dir(path)))
	if path != control.SocketPath(dir, strings.TrimSuffix(filepath.Base(path), ".sock")) {
		return ""
	}
	return dir
}

func (c *container) endReader(ctx context.Context) error { return endReader(ctx, c.bundle) }

// endReader ends the reader that another program's hook started for the
// container, if one did. It consists of two processes, of which one lives in
// the container's network and keeps that from ending.
func endReader(ctx context.Context, b *bundle.Bundle) error {
	pid, err := b.ReaderPID()
	if err != nil {
		return err
	}
	if pid == 0 {
		return b.RemoveReaderPID()
	}
	_, err = child.EndOther(ctx, func(args []string) bool {
		return len(args) >= 4 && strings.HasSuffix(args[0], "python3") && filepath.Base(args[1]) == "nflog-reader.py" &&
			slices.Contains(args[2:], b.Path())
	})
	return errors.Join(err, b.RemoveReaderPID())
}
