package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/confined"
	"github.com/terok-ai/terok-box/applets/internal/grammar"
	"github.com/terok-ai/terok-box/applets/internal/hook"
	"github.com/terok-ai/terok-box/applets/internal/reach"
	"github.com/terok-ai/terok-box/applets/internal/service"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/verdict"
)

// Name is the program's name.
const Name = "clearance-hub"

const description = `Questions about connections that a container's firewall blocks, and their answers.

Containers started under terok-shield have a hub each, and need none of these services. One for all
containers of a user is for programs that start containers themselves.

Two more verbs are programs of their own: serve-verdict is clearance-verdict, notify is
terok-clearance-notify.

Exit codes: 0 done, 1 not done, 2 wrong command line, 130 interrupted.
`

// verbs is the command line; every field with cmd is a verb.
type verbs struct {
	Serve serveCmd `cmd:"" help:"Pass blocked connections on to whoever can answer, until told to end; clearance-verdict carries the answers out."`

	Clearance clearanceCmd `cmd:"" help:"Ask on this terminal about what the containers of this user are refused."`
	Units     unitsCmd     `cmd:"" help:"Write systemd units that start this service, and clearance-verdict, when they are needed."`
}

// app is what every verb works with.
type app struct{ env *cmdenv.Env }

// Run is clearance-hub; args are without the program's name.
func Run(env *cmdenv.Env, args []string) int { return env.Fail(Name+": ", run(env, args)) }

func run(env *cmdenv.Env, args []string) error {
	var g verbs
	parser, err := grammar.New(&g, Name, description, env.Stdout, env.Stderr)
	if err != nil {
		return fmt.Errorf("command line grammar: %w", err)
	}
	if len(args) == 0 {
		if _, err := grammar.Parse(parser, []string{"--help"}); err != nil {
			return err
		}
		return &cmdenv.Exit{Code: cmdenv.ExitUsage}
	}
	cmd, err := grammar.Parse(parser, args)
	switch {
	case err != nil:
		return cmdenv.Usagef("%w (see %s --help)", err, Name)
	case cmd == nil:
		return nil
	}
	return cmd.Run(&app{env})
}

// Grammar is the command line of clearance-hub.
func Grammar() (grammar.Program, error) {
	k, err := grammar.New(new(verbs), Name, description, io.Discard, io.Discard)
	if err != nil {
		return grammar.Program{}, err
	}
	return grammar.Of(k), nil
}

// ownDir is the service's own directory, in that of the user's sockets, and
// pendingFile what is in there.
const (
	ownDir      = "terok/hub"
	pendingFile = "pending.json"
)

type serveCmd struct{}

// Help is what stands below the flags.
func (serveCmd) Help() string {
	return `Example, without systemd (see units):

  clearance-verdict serve & clearance-hub serve`
}

// Run serves all containers of the user.
func (serveCmd) Run(a *app) error {
	dir, err := hook.RuntimeDir(a.env)
	if err != nil {
		return fmt.Errorf("no place for sockets: %w; set XDG_RUNTIME_DIR to a directory of your own", err)
	}
	own := filepath.Join(dir, ownDir)
	if err := os.MkdirAll(own, 0o700); err != nil {
		return fmt.Errorf("make a directory for what is asked: %w", err)
	}
	if err := confined.Program(a.env, Name, reach.Hub(dir, own), service.Log(a.env)); err != nil {
		return err
	}
	return service.Run(a.env, func(ctx context.Context, log *slog.Logger) error {
		sockets, err := service.Listen(a.env,
			service.Socket{Name: "events", Path: event.UserSocketPath(dir)},
			service.Socket{Name: "clearance", Path: clearance.UserSocketPath(dir)},
		)
		if err != nil {
			return err
		}
		m := memory{path: filepath.Join(own, pendingFile), log: log}
		h, err := New(Config{Verdict: remote(verdict.UserSocketPath(dir)), Restore: m.load(), Save: m.save, Log: log})
		if err != nil {
			return errors.Join(err, sockets[0].Close(), sockets[1].Close())
		}
		defer h.Close()
		log.Info("serving", "events", sockets[0].Addr(), "clearance", sockets[1].Addr())
		return h.Serve(ctx, sockets[0], sockets[1])
	})
}

// remote has verdicts carried out by the service at a socket. Each has a
// connection of its own: none waits for another, and none is sent twice.
func remote(path string) func(ctx context.Context, container, dest, action string) (ok bool, stderr string) {
	return func(ctx context.Context, container, dest, action string) (ok bool, stderr string) {
		c, err := verdict.Dial(ctx, path)
		if err == nil {
			defer c.Close()
			ok, stderr, err = c.Apply(ctx, container, dest, action)
		}
		if cause := context.Cause(ctx); err != nil && cause != nil {
			return false, cause.Error()
		}
		if err != nil {
			return false, "verdict helper unreachable: " + err.Error()
		}
		return ok, stderr
	}
}
