package pair

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/applets/internal/roster"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// Home is the network namespace that a process serves, and whose life there it
// shares.
type Home struct {
	StateDir string // of the container in charge of the namespace
	PID      int    // a container's first process
	Start    uint64 // of that process, as in bundle.Process
	Roster   string // the file that lists who lives in the namespace; "" if nobody else can
}

// Living are the containers in the namespace that still live: those on the
// roster, the one that the process was started for, and others known before,
// should the roster have been lost.
func (h Home) Living(known []roster.Member) []roster.Member {
	all := append([]roster.Member{{StateDir: h.StateDir, PID: h.PID, Start: h.Start}}, known...)
	if h.Roster != "" {
		if r, err := roster.Read(h.Roster); err == nil {
			all = append(all, r.Members...)
		}
	}
	var alive []roster.Member
	for _, m := range all {
		same := func(o roster.Member) bool { return o.PID == m.PID && o.Start == m.Start }
		if !slices.ContainsFunc(alive, same) && (bundle.Process{PID: m.PID, Start: m.Start}).Alive() {
			alive = append(alive, m)
		}
	}
	return alive
}

// outlive returns when no container is left in the namespace, or ctx ends. It
// waits for one after the other: which of them ends last does not matter.
func (h Home) outlive(ctx context.Context, log *slog.Logger) {
	const again = time.Second // after something that should not happen
	var known []roster.Member
	for {
		known = h.Living(known)
		if len(known) == 0 && h.vacant(ctx, log) {
			return
		}
		for _, m := range known {
			p, err := child.Open(m.PID, m.Start)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = p.Wait(ctx)
				p.Close()
			}
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				log.Error("cannot watch a container", "err", err)
				select {
				case <-ctx.Done():
				case <-time.After(again):
				}
			}
			break
		}
	}
}

// vacant reports whether nobody is left in a namespace that was found empty.
// Whoever was about to join it has done so then, or cannot any more: who comes
// next comes first, and ends this process if it is still there.
func (h Home) vacant(ctx context.Context, log *slog.Logger) bool {
	if h.Roster == "" {
		return true
	}
	const patience = time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	f, err := roster.Lock(ctx, h.Roster)
	if err != nil {
		// The directory is gone, or somebody is about to come first.
		log.Warn("cannot look at the roster", "err", err)
		return true
	}
	defer f.Unlock()
	if len(h.Living(nil)) == 0 {
		return true
	}
	r, err := f.Read()
	return err == nil && r.Owner != h.StateDir // it has another process
}

// Vacate removes the roster of a namespace in which nobody is left, unless
// somebody holds it: a hook, which removes it as well or makes it its own.
func (h Home) Vacate() error {
	if h.Roster == "" {
		return nil
	}
	now, cancel := context.WithCancel(context.Background())
	cancel()
	f, err := roster.Lock(now, h.Roster)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Unlock()
	r, err := f.Read()
	if err != nil || r.Owner != h.StateDir && r.Owner != "" || len(h.Living(nil)) > 0 {
		return err
	}
	return f.Remove()
}
