package shield

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/hook"
	"github.com/terok-ai/terok-box/applets/internal/shielded"
	"github.com/terok-ai/terok-box/applets/internal/subscriber"
	"github.com/terok-ai/terok-box/applets/internal/terminal"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/event"
)

type simpleClearanceCmd struct {
	Container container `arg:"" complete:"containers" help:"Container name or id."`
	JSON      bool      `name:"json" help:"For programs: a JSON object a line, both ways; see clearance-hub clearance --help."`
}

const (
	// readerName is the private program that prints a container's blocks.
	readerName = "nflog-reader"
	// readerGrace is what it gets to end.
	readerGrace = 2 * time.Second
)

func (c simpleClearanceCmd) Run(a *app) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	l, err := a.locate(cfg, c.Container)
	if err != nil {
		return err
	}
	if l.PID == 0 {
		return fmt.Errorf("container %s is not running: start it with podman start %s", l.Name, l.Name)
	}
	screen := terminal.Config{
		In: a.env.Stdin, Out: a.env.Stdout, Style: terminal.Queued, Color: a.env.Color(a.env.Stdout), Banner: terminal.QueuedBanner(),
	}
	if c.JSON {
		screen.Style, screen.Banner = terminal.JSON, nil
	}
	term := terminal.New(screen)
	sub := subscriber.New(subscriber.Config{
		Notifier: term, Categories: subscriber.All,
		Log: slog.New(slog.NewTextHandler(a.env.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	defer sub.Close()
	s := simple{app: a, l: l, audit: cfg.Audit, sub: sub}
	ctx, cancel := context.WithCancel(a.ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		defer cancel()
		ended <- s.source(ctx)
		last, cancel := context.WithTimeout(ctx, readerGrace)
		defer cancel()
		sub.Drain(last)
	}()
	err = term.Run(ctx, sub)
	cancel()
	if sourceErr := <-ended; err == nil {
		err = sourceErr
	}
	return err
}

// simple is a running simple-clearance command.
type simple struct {
	app   *app
	l     shielded.Container
	audit bool
	sub   *subscriber.Subscriber
}

// source has the container's questions come in until it or ctx ends: from its
// hub if there is one, else from a reader of our own.
func (s simple) source(ctx context.Context) error {
	if path := s.hub(ctx); path != "" {
		return s.follow(ctx, path)
	}
	return s.read(ctx)
}

// hub is the socket of the hub that asks about the container; "" if there is
// none.
func (s simple) hub(ctx context.Context) string {
	b, err := bundle.Open(s.l.Dir)
	if err != nil {
		return ""
	}
	defer b.Close()
	if c, _, err := s.l.Supervisor(ctx); err == nil {
		c.Close()
		if r, err := b.Supervisor(); err == nil && r.Clearance != "" {
			return r.Clearance
		}
	}
	// One that somebody else has started.
	dir, err := hook.RuntimeDir(s.app.env)
	if err != nil {
		return ""
	}
	short, err := b.ContainerID()
	if err != nil || short == "" {
		return ""
	}
	own := clearance.SocketPath(dir, short)
	for _, path := range []string{own, filepath.Join(filepath.Dir(own), short, "hub.sock")} {
		if c, err := clearance.Dial(ctx, path); err == nil {
			c.Close()
			return path
		}
	}
	return ""
}

// follow takes the questions of a hub.
func (s simple) follow(ctx context.Context, path string) error {
	process, err := bundle.ProcessOf(s.l.PID, s.l.NetNS)
	if err != nil {
		return fmt.Errorf("container %s: %w", s.l.Name, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer cancel()
		alive := time.NewTicker(watchPause)
		defer alive.Stop()
		for last := false; ; {
			select {
			case <-ctx.Done():
				return
			case <-alive.C:
			}
			if last { // its hub has said so by now
				return
			}
			last = !process.Alive()
		}
	}()
	connections := &terminal.Connections{Out: s.app.env.Stderr, All: true}
	return s.sub.Follow(ctx, subscriber.Hubs{Paths: []string{path}, Changed: connections.Changed})
}

// read takes the questions of a reader, and has verdicts carried out as
// terok-shield allow and deny would.
func (s simple) read(ctx context.Context) error {
	hub := s.sub.Hub(s.l.Name, func(ctx context.Context, r clearance.Request) error {
		op := control.OpAllow
		if r.Action == clearance.Deny {
			op = control.OpDeny
		}
		resp, err := s.l.Decide(ctx, op, r.Dest, s.audit)
		if err != nil {
			return clearance.ShieldFailed{Action: r.Action, Stderr: err.Error()}
		}
		s.app.warn(resp.Warning)
		return nil
	})
	hub.Connected()
	any := false
	err := s.blocks(ctx, func(e event.Event) {
		any = true
		hub.Event(clearance.Event{
			Type: e.Type, Container: e.Container, RequestID: e.ID, Dest: e.Dest, Port: e.Port, Proto: e.Proto, Domain: e.Domain,
			Reason: e.Reason, Dossier: e.Dossier,
		})
	})
	if err == nil && !any && ctx.Err() == nil {
		err = errors.New("the container's blocked packets cannot be read; the reason is above")
	}
	return err
}

// blocks starts a reader and visits what it prints, until it or ctx ends.
func (s simple) blocks(ctx context.Context, visit func(event.Event)) error {
	// It is killed when the thread that started it ends, should this process
	// not come to end it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, s.app.env.Self, readerName, "--emit=json", "--", s.l.Dir, s.l.Name)
	cmd.Args[0] = "terok-box"
	cmd.Env = s.app.env.Environ()
	cmd.Stderr = s.app.env.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = readerGrace
	// Ctrl-C is for us, who end it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the reader of blocked packets: %w", err)
	}
	in := bufio.NewScanner(out)
	in.Buffer(nil, event.MaxLine+1)
	for in.Scan() && ctx.Err() == nil {
		if e, err := event.Parse(in.Bytes()); err == nil {
			visit(e)
		}
	}
	readErr := in.Err()
	if readErr != nil {
		readErr = errors.Join(readErr, cmd.Cancel())
	}
	err = cmd.Wait()
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		err = fmt.Errorf("the reader of blocked packets: %w", err)
	}
	return errors.Join(err, readErr)
}
