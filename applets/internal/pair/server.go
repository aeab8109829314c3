package pair

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/roster"
	"github.com/terok-ai/terok-box/nl/confine"
	"github.com/terok-ai/terok-box/wire/start"
)

// endTimeout is how long the end of a part is waited for.
const endTimeout = time.Second

// Worker is what a server does. Its methods are called one after the other,
// in this order but for Files.
type Worker interface {
	// Open opens the bundle, and gives the log.
	Open() (*slog.Logger, error)
	// Start opens the rest and begins to work, until ctx ends or it calls
	// failed. wait returns when the firewall is there.
	Start(ctx context.Context, wait func() error, failed func(error)) error
	// Publish makes the process known and serves its interface until ctx ends,
	// or cancels that if it cannot. served is closed when nobody is served any
	// more.
	Publish(ctx context.Context, cancel context.CancelCauseFunc) (served <-chan struct{}, err error)
	// Files are duplicates of the program's own files, of which child.None are
	// missing, for the other process. They are closed afterwards.
	Files() ([]int, error)
	// Finish leaves nothing behind: the containers have ended. told is closed
	// when, instead of noticing it, the process is told so. It may be called
	// whatever failed before.
	Finish(told <-chan struct{})
	// Close closes what has to be, before the process ends.
	Close()
}

// server is one life of the process that does the work.
type server struct {
	Pair
	worker Worker
	log    *slog.Logger
	other  *peer // nil: to be started
}

// Serve is the server, which is called title. pipe and wait are those of
// Inherit.
func (p Pair) Serve(w Worker, title string, pipe *os.File, wait func() error) (err error) {
	report, err := child.Pollable(start.FileReport)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	told := signals(cancel)
	stop := context.AfterFunc(ctx, func() { pipe.Close() })
	defer stop()

	s := &server{Pair: p, worker: w, log: slog.New(slog.DiscardHandler)}
	defer w.Close()
	finish := func() {
		if s.other != nil {
			s.other.end()
		}
		w.Finish(told)
	}
	failed := make(chan error, 1)
	if err := s.begin(ctx, wait, func(err error) { failed <- err }); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if errors.Is(err, ErrEnd) {
			finish()
			return nil
		}
		s.log.Error("cannot start", "err", err)
		w.Close()
		fmt.Fprintln(report, cmdenv.Printable(err.Error()))
		return err
	}
	stop()
	pipe.Close()
	served, err := w.Publish(ctx, cancel)
	if err == nil {
		_, err = fmt.Fprintln(report, start.Ready)
		report.Close()
	}
	if err != nil { // also if whoever waits for this has died
		s.log.Error("cannot start", "err", err)
		cancel(err)
		<-served
		if s.other == nil { // else another server will be started
			finish()
		}
		fmt.Fprintln(report, cmdenv.Printable(err.Error()))
		return err
	}
	if p.Confine != nil && p.Restarts == 0 {
		if err := p.Confine(); err != nil { // which leaves it as it is
			s.log.Warn("this process may do more than it should", "err", err)
		}
	}
	guarded := make(chan struct{})
	go func() {
		defer close(guarded)
		cancel(s.guard(ctx))
	}()
	go func() {
		p.outlive(ctx, s.log)
		cancel(ErrEnd)
	}()
	cmdenv.Entitle(title)
	s.log.Info("ready", "restarts", p.Restarts, "confined", confine.Status())
	if p.Roster != "" {
		roster.Purge(p.Roster)
	}
	child.Trim()
	select {
	case <-ctx.Done():
	case err := <-failed:
		cancel(err)
	}
	err = context.Cause(ctx)
	s.log.Info("end", "why", err)
	<-guarded
	select {
	case <-served:
	case <-time.After(endTimeout):
	}
	if errors.Is(err, ErrEnd) {
		finish()
		return nil
	}
	return err
}

// begin opens everything and starts to work, unless there is nobody left to
// work for.
func (s *server) begin(ctx context.Context, wait func() error, failed func(error)) (err error) {
	if s.log, err = s.worker.Open(); err != nil {
		s.log = slog.New(slog.DiscardHandler)
		return err
	}
	if s.Restarts > 0 {
		f, err := child.Pollable(start.FilePeer)
		if err != nil {
			return err
		}
		s.other = &peer{f, time.Now()}
		if len(s.Living(nil)) == 0 && s.vacant(ctx, s.log) {
			return ErrEnd
		}
	}
	return s.worker.Start(ctx, wait, failed)
}

// guard keeps a keeper running until ctx ends, and returns its cause, or ErrEnd
// if the keeper was told to end.
func (s *server) guard(ctx context.Context) error {
	wait := Backoff{Pace: s.Pace}
	for {
		if s.other == nil {
			var err error
			if s.other, err = s.startKeeper(); err != nil {
				s.log.Error("cannot start a keeper: nobody starts this process again should it die", "err", err)
				s.other = nil
			}
		}
		born := time.Now()
		if s.other != nil {
			born = s.other.born
			err := s.other.wait(ctx)
			if errors.Is(err, ErrEnd) { // who said so?
				s.other.end()
			}
			s.other.close()
			s.other = nil
			if err != nil {
				return err
			}
			s.log.Warn("the keeper has died")
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait.After(time.Since(born))):
		}
	}
}

func (s *server) startKeeper() (*peer, error) {
	own, err := s.worker.Files()
	defer func() {
		for _, fd := range own {
			if fd != child.None {
				syscall.Close(fd)
			}
		}
	}()
	if err != nil {
		return nil, err
	}
	return s.start(start.Keeper, s.Restarts, own)
}
