package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/applets/hub"
	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/varlink"
)

const (
	// look is how often it is looked whether somebody else has become the
	// hub, or is not any more.
	look = 5 * time.Second
	// drainTimeout is how long subscribers get to hear the last events.
	drainTimeout = 500 * time.Millisecond
	// changeTimeout is how long an event waits for a hub that is about to begin.
	changeTimeout = time.Second
	// reserve is how many numbers of questions are written down as used before
	// they are.
	reserve = 64
)

var (
	errNoHub  = errors.New("there is no hub yet")
	errStolen = errors.New("somebody else serves the container's events now")
)

// outlet is where events go: the hub of this process or, if there is another
// one for the container, that.
//
//	              its socket is served
//	   ┌──────────────────────────────────────────┐
//	   │                                          ▼
//	ours  ◄──────────────────────────────────  somebody else's
//	   ▲              nobody is there             ▲
//	   └────────────── (start) ───────────────────┘
type outlet struct {
	w    *worker
	gone chan struct{} // holds one element if the other hub did not take an event

	mu      sync.Mutex
	hub     *hub.Hub       // nil: not ours
	emitter *event.Emitter // to somebody else's; nil: none
	other   int            // process of somebody else's
	changed chan struct{}  // closed when there is a hub again; nil: there is one

	save sync.Mutex
	kept kept
}

// kept is what the process that takes this one's place goes on with.
type kept struct {
	First uint64          `json:"first"` // number of its first question
	Hub   json.RawMessage `json:"hub,omitempty"`
}

func newOutlet(w *worker) *outlet {
	o := &outlet{w: w, gone: make(chan struct{}, 1), changed: make(chan struct{}), kept: kept{First: 1}}
	if w.spec.Restarts == 0 { // what there may be is another life's
		return o
	}
	data, err := w.bundle.Pending()
	if err == nil && data != nil {
		err = json.Unmarshal(data, &o.kept)
	}
	if err != nil {
		o.kept = kept{First: 1}
		w.log.Warn("the questions that were open are lost", "err", err)
	}
	o.kept.First = max(o.kept.First, 1)
	return o
}

// first is the number of the next question: no process before has used it.
func (o *outlet) first() uint64 { return o.kept.First }

// used notes that the number of a question is used.
func (o *outlet) used(id string) {
	n, err := strconv.ParseUint(id[strings.LastIndexByte(id, ':')+1:], 10, 64)
	if err != nil {
		return
	}
	o.save.Lock()
	defer o.save.Unlock()
	if n >= o.kept.First {
		o.kept.First = n + reserve
		o.write()
	}
}

// keep is the hub's Save.
func (o *outlet) keep(state []byte) {
	o.save.Lock()
	defer o.save.Unlock()
	o.kept.Hub = state
	o.write()
}

func (o *outlet) write() {
	data, err := json.Marshal(o.kept)
	if err == nil {
		err = o.w.bundle.SetPending(data)
	}
	o.w.trouble("what is asked does not survive this process", err)
}

// emit passes an event on.
func (o *outlet) emit(e event.Event) error {
	o.w.activity.Add(1)
	if e.Type == event.ContainerStarted && o.w.spec.Restarts > 0 {
		return nil // it was this process that started again
	}
	if e.Type == event.Blocked {
		o.used(e.ID)
	}
	h, emitter := o.current()
	switch {
	case h != nil:
		return h.Ingest(e)
	case emitter == nil:
		return errNoHub
	}
	err := emitter.Send(e)
	if err != nil {
		select {
		case o.gone <- struct{}{}:
		default:
		}
	}
	return err
}

// serve is the hub, or looks on while somebody else is.
func (o *outlet) serve(ctx context.Context, begun func()) error {
	if pid := o.somebody(ctx, ""); pid != 0 {
		return o.lookOn(ctx, begun, pid)
	}
	events, err := varlink.Listen(o.w.paths.Events)
	if err != nil {
		return err
	}
	clients, err := varlink.Listen(o.w.paths.Clearance)
	if err != nil {
		return errors.Join(err, events.Close())
	}
	o.save.Lock()
	restore := o.kept.Hub
	o.save.Unlock()
	h, err := hub.New(hub.Config{
		Container: o.w.spec.Short(), Aliases: []string{o.w.spec.ID, o.w.spec.Container},
		Verdict: o.apply, Save: o.keep, Restore: restore, Log: o.w.log,
	})
	if err != nil {
		return errors.Join(err, events.Close(), clients.Close())
	}
	defer h.Close()
	o.become(h, nil, os.Getpid())
	defer o.become(nil, nil, 0)
	o.w.serving(func(r *bundle.Supervisor) { r.Events, r.Clearance = o.w.paths.Events, o.w.paths.Clearance })
	defer o.w.serving(func(r *bundle.Supervisor) { r.Events, r.Clearance = "", "" })
	begun()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() { o.w.again(ctx, "verdict", func() {}, o.w.serveVerdict) })
	parts.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(look):
			}
			if !events.Current() || !clients.Current() || o.somebody(ctx, o.w.paths.Events) != 0 {
				cancel(errStolen)
				return
			}
		}
	})
	err = h.Serve(ctx, events, clients)
	if cause := context.Cause(ctx); err == nil && errors.Is(cause, errStolen) {
		err = cause
	}
	cancel(nil)
	return err
}

// apply carries out an answer, after which there is room for another question.
func (o *outlet) apply(ctx context.Context, container, dest, action string) (ok bool, stderr string) {
	if ok, stderr = o.w.verdicts.Apply(ctx, container, dest, action); ok {
		o.w.reader.Answered()
	}
	return ok, stderr
}

// decided has questions withdrawn that a command, or the answer to another one,
// has settled.
func (o *outlet) decided(req control.Request) {
	var action string
	switch req.Op {
	case control.OpAllow:
		action = clearance.Allow
	case control.OpDeny:
		action = clearance.Deny
	default:
		return
	}
	o.mu.Lock()
	h := o.hub
	o.mu.Unlock()
	if h == nil {
		return
	}
	names, _, err := policy.NewNames(nil, req.Names, nil)
	if err != nil {
		return // cannot be: it was carried out
	}
	var targets []netip.Prefix
	for _, s := range req.Targets {
		if p, err := bundle.ParsePrefix(s); err == nil {
			targets = append(targets, p)
		}
	}
	h.Decided(action, func(e clearance.Event) bool {
		addr, err := netip.ParseAddr(e.Dest)
		return e.Domain != "" && names.Decide(e.Domain).Allowed ||
			err == nil && slices.ContainsFunc(targets, func(p netip.Prefix) bool { return p.Contains(addr) })
	})
}

// lookOn passes events on to somebody else's hub until that is gone.
func (o *outlet) lookOn(ctx context.Context, begun func(), pid int) error {
	o.w.log.Info("somebody else is the hub", "hub", pid)
	emitter := event.NewEmitter(o.w.hubs...)
	defer emitter.Close()
	o.become(nil, emitter, pid)
	defer o.become(nil, nil, 0)
	begun()
	for {
		before := o.there()
		select {
		case <-ctx.Done():
			return nil
		case <-o.gone:
		case <-time.After(look):
			if o.there() == before {
				continue
			}
		}
		switch now := o.somebody(ctx, ""); now {
		case pid:
		case 0:
			return errors.New("the other hub has ended")
		default:
			pid = now
			o.become(nil, emitter, pid)
		}
	}
}

// there tells the files that somebody else's socket may be apart from others at
// the same paths.
func (o *outlet) there() string {
	var b strings.Builder
	for _, path := range o.w.hubs {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			st = unix.Stat_t{}
		}
		fmt.Fprintf(&b, "%d:%d:%d ", st.Dev, st.Ino, st.Ctim.Nano())
	}
	return b.String()
}

// become says who is the hub.
func (o *outlet) become(h *hub.Hub, emitter *event.Emitter, pid int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.hub, o.emitter, o.other = h, emitter, pid
	switch none := h == nil && emitter == nil; {
	case none && o.changed == nil:
		o.changed = make(chan struct{})
	case !none && o.changed != nil:
		close(o.changed)
		o.changed = nil
	}
}

// current is who is the hub. While one takes the place of another it waits.
func (o *outlet) current() (*hub.Hub, *event.Emitter) {
	o.mu.Lock()
	changed := o.changed
	o.mu.Unlock()
	if changed != nil {
		select {
		case <-changed:
		case <-o.w.ctx.Done():
		case <-time.After(changeTimeout):
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.hub, o.emitter
}

// somebody is the process that takes the container's events, elsewhere than at
// a path; 0 if none does.
func (o *outlet) somebody(ctx context.Context, but string) (pid int) {
	ctx, cancel := context.WithTimeout(ctx, event.Timeout)
	defer cancel()
	for _, path := range o.w.hubs {
		if path == but {
			continue
		}
		conn, peer, err := varlink.Connect(ctx, path)
		if err != nil {
			continue
		}
		conn.Close()
		return peer.PID
	}
	return 0
}

// drain returns when every subscriber has heard what there was to say, or was
// too slow.
func (o *outlet) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	o.mu.Lock()
	h := o.hub
	o.mu.Unlock()
	if h != nil {
		h.Drain(ctx)
	}
}

// status is how things are.
func (o *outlet) status() (ours bool, pid, subscribers, pending int) {
	o.mu.Lock()
	h, pid := o.hub, o.other
	o.mu.Unlock()
	if h == nil {
		return false, pid, 0, 0
	}
	return true, pid, h.Subscribers(), len(h.Pending())
}
