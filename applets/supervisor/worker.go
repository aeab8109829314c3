package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/applets/internal/firewall"
	"github.com/terok-ai/terok-box/applets/internal/pair"
	"github.com/terok-ai/terok-box/applets/internal/reader"
	"github.com/terok-ai/terok-box/applets/verdict"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nflog"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/start"
	"github.com/terok-ai/terok-box/wire/varlink"
	wireverdict "github.com/terok-ai/terok-box/wire/verdict"
)

// Why a container has ended, as its last event says.
const (
	reasonTold = "poststop" // the runtime said so
	reasonSeen = "eof"      // nobody did
)

// toldTimeout is how long, after the container, the runtime is waited for to
// say so.
const toldTimeout = time.Second

const (
	// startTimeout is when all of the process has begun its work.
	startTimeout = time.Second
	// quietTimeout is when it has nothing to do, as far as can be seen.
	quietTimeout = 10 * time.Second
)

// worker is one life of the process that does the work.
type worker struct {
	spec     control.Spec
	home     pair.Home
	pace     pair.Pace
	paths    control.Sockets
	hubs     []string // where events are taken, by this process or somebody else
	born     time.Time
	log      *slog.Logger
	bundle   *bundle.Bundle
	lists    *bundle.Bundle // of who governs the network; the same unless another container does
	ns       *netns.NS
	firewall *firewall.Kept // of ns

	ctx    context.Context // of the parts, which outlive the containers by a moment
	cancel context.CancelFunc
	parts  sync.WaitGroup

	activity atomic.Uint64 // counts requests, answers and questions
	verdicts wireverdict.Service
	watchers watchers
	outlet   *outlet
	reader   *reader.Reader
	stop     context.CancelFunc // of the reader
	stopped  chan struct{}      // the reader has

	mu       sync.Mutex
	record   bundle.Supervisor // what is served now
	recorded bool              // it stands in the bundle
	troubles map[string]string // by part
}

func newWorker(spec control.Spec, home pair.Home, pace pair.Pace) *worker {
	w := &worker{
		spec: spec, home: home, pace: pace, paths: control.SocketsOf(spec.RuntimeDir, spec.StateDir, spec.Short()), born: time.Now(),
		log: slog.New(slog.DiscardHandler), troubles: make(map[string]string),
	}
	w.hubs = []string{w.paths.Events}
	if spec.RuntimeDir != "" {
		w.hubs = event.SocketPaths(spec.RuntimeDir, spec.Short())
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// Open opens the bundle.
func (w *worker) Open() (_ *slog.Logger, err error) {
	if w.bundle, err = bundle.Open(w.spec.StateDir); err != nil {
		return nil, err
	}
	w.log = pair.NewLog(w.bundle, logName)
	w.lists = w.bundle
	if w.spec.Owner == "" {
		return w.log, nil
	}
	if owner, err := bundle.Open(w.spec.Owner); err == nil {
		w.lists = owner
	} else {
		w.log.Warn("the container that is in charge of the network has no state directory", "err", err)
	}
	return w.log, nil
}

// Start starts the parts.
func (w *worker) Start(_ context.Context, wait func() error, _ func(error)) (err error) {
	if err := wait(); err != nil { // until the hook has written this process down
		return err
	}
	if w.ns, err = netns.OpenFile(fmt.Sprintf("/proc/self/fd/%d", start.FileNetNS)); err != nil {
		return err
	}
	if id, err := w.ns.ID(); err != nil || id.String() != w.spec.NetNS {
		return errors.Join(errors.New("given another network namespace than told"), err)
	}
	w.firewall = firewall.Keep(w.ns)
	conn, err := nflog.Adopt(control.FileLog)
	if err != nil {
		conn = nil // it was not given one, and tries itself
	}
	w.verdicts = verdict.Service(w.execute, w.log)
	w.outlet = newOutlet(w)
	questions, err := w.lists.Questions()
	if err != nil {
		w.log.Warn("as many questions are asked as usually", "err", err)
	}
	if questions == 0 {
		questions = -1
	}
	if w.reader, err = reader.New(reader.Config{
		Bundle: w.lists, NetNS: w.ns, Container: w.spec.Short(), Dossier: w.spec.Dossier, Audit: w.spec.Audit, Log: w.log,
		Emit: w.outlet.emit, Packet: w.watchers.packet, First: w.outlet.first(), Conn: conn,
		Questions: questions,
	}); err != nil {
		return err
	}
	w.run("control", w.serveControl)
	w.run("hub", w.outlet.serve)
	w.parts.Go(w.settle)
	ctx, cancel := context.WithCancel(w.ctx)
	w.stop, w.stopped = cancel, make(chan struct{})
	w.parts.Go(func() {
		defer close(w.stopped)
		_ = w.reader.Run(ctx) // it starts again what fails in it
	})
	return nil
}

// settle lets go of what only the start has needed, once that is over, and of
// what was needed for a while, once nothing happens any more.
func (w *worker) settle() {
	var before, trimmed uint64 // activity at the last look, and at the last time
	for pause := startTimeout; ; pause = quietTimeout {
		select {
		case <-w.ctx.Done():
			return
		case <-time.After(pause):
		}
		now := w.activity.Load() + w.reader.Status().Packets
		if now != trimmed && (now == before || pause == startTimeout) {
			debug.FreeOSMemory()
			child.Trim()
			trimmed = now
		}
		before = now
	}
}

// part is something that goes on until the process ends. It calls begun when
// it does its work.
type part func(ctx context.Context, begun func()) error

// run runs a part, and returns when it does its work or has failed to for the
// first time.
func (w *worker) run(name string, p part) {
	begun := make(chan struct{})
	once := sync.OnceFunc(func() { close(begun) })
	w.parts.Go(func() { w.again(w.ctx, name, once, p) })
	<-begun
}

// again runs a part until ctx ends, and again after a while when it fails. It
// calls begun when the part does its work, or has failed to.
func (w *worker) again(ctx context.Context, name string, begun func(), p part) {
	wait := pair.Backoff{Pace: w.pace}
	for {
		born := time.Now()
		err := p(ctx, func() {
			w.trouble(name, nil)
			begun()
		})
		if ctx.Err() != nil {
			return
		}
		w.trouble(name, err)
		begun()
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait.After(time.Since(born))):
		}
	}
}

// trouble notes whether a part works, and logs when that changes.
func (w *worker) trouble(name string, err error) {
	why := ""
	if err != nil {
		why = err.Error()
	}
	w.mu.Lock()
	was := w.troubles[name]
	w.troubles[name] = why
	w.mu.Unlock()
	switch {
	case why != "" && was != why:
		w.log.Warn("a part does not work", "part", name, "err", err)
	case why == "" && was != "":
		w.log.Info("a part works again", "part", name)
	}
}

// allTroubles is what does not work now.
func (w *worker) allTroubles() (lines []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(w.troubles)) {
		if why := w.troubles[name]; why != "" {
			lines = append(lines, name+": "+why)
		}
	}
	return lines
}

// serving notes what is served, and writes it down.
func (w *worker) serving(change func(r *bundle.Supervisor)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.record
	change(&w.record)
	if w.record == before || !w.recorded {
		return
	}
	if err := w.bundle.SetSupervisor(w.record); err != nil {
		w.log.Error("record this process", "err", err)
	}
}

// Publish records the process. Its parts serve by themselves.
func (w *worker) Publish(context.Context, context.CancelCauseFunc) (served <-chan struct{}, err error) {
	done := make(chan struct{})
	close(done)
	self, err := bundle.ProcessOf(os.Getpid(), w.spec.NetNS)
	if err != nil {
		return done, err
	}
	if r, err := w.bundle.Supervisor(); err == nil && r.Alive() && r.PID != self.PID {
		return done, fmt.Errorf("process %d has taken this one's place", r.PID)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.record.PID, w.record.Start = self.PID, self.Start
	w.recorded = true
	return done, w.bundle.SetSupervisor(w.record)
}

// Files are the socket of logged packets.
func (w *worker) Files() ([]int, error) {
	s := w.reader.Socket()
	if s == nil {
		return []int{child.None}, nil
	}
	fd, err := child.Duplicate(s)
	return []int{fd}, err
}

// Finish says that the container has ended to everybody who wants to know, and
// leaves nothing behind. What fails is not worth more than a line: the hook
// cleans up once more.
func (w *worker) Finish(told <-chan struct{}) {
	reason := reasonTold
	if w.stop != nil {
		w.stop()
	}
	select {
	case <-told:
	case <-time.After(toldTimeout):
		reason = reasonSeen
	}
	if w.reader != nil {
		<-w.stopped
		if err := w.reader.Exit(reason); err != nil {
			w.log.Warn("nobody was told of the end", "err", err)
		}
		w.outlet.drain()
	} else if err := event.Emit(w.hubs, event.Event{Type: event.ContainerExited, Container: w.spec.Short(), Reason: reason}); err != nil {
		w.log.Info("nobody was told of the end", "err", err)
	}
	w.cancel()
	w.parts.Wait()
	w.forget()
}

// forget removes what is written down about this process.
func (w *worker) forget() {
	if w.bundle == nil {
		return
	}
	r, err := w.bundle.Supervisor()
	if err != nil || r.Alive() && r.PID != os.Getpid() {
		return // it is another process's
	}
	var errs []error
	if w.reader == nil { // those of the process before
		for _, path := range w.paths.All() {
			errs = append(errs, varlink.RemoveDead(path))
		}
	}
	errs = append(errs, w.bundle.RemoveSupervisor(), w.bundle.RemovePending(), w.home.Vacate())
	if err := errors.Join(errs...); err != nil {
		w.log.Error("forget this process", "err", err)
	}
}

// Close ends the parts: what was asked is written down for who comes next, and
// the sockets are removed.
func (w *worker) Close() {
	w.cancel()
	w.parts.Wait()
	// The process ends: the kernel closes the rest, and nothing waits.
}
