package hub

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/hook"
	prompts "github.com/terok-ai/terok-box/applets/internal/subscriber"
	"github.com/terok-ai/terok-box/applets/internal/terminal"
	"github.com/terok-ai/terok-box/wire/clearance"
)

type clearanceCmd struct {
	Hub  []string `sep:"none" complete:"files" placeholder:"PATH" help:"Ask for the hub at this socket only; may be given several times."`
	JSON bool     `name:"json" help:"For programs: a JSON object a line, both ways."`
}

// Help is what stands below the flags.
func (clearanceCmd) Help() string {
	return `Asks on this terminal about every connection that a container of this user is refused, as it
happens, and has the answers carried out. What can be typed:

  a N   allow: the container may reach the target, on every port
  d N   deny: it may not, and is not asked about again
  l     list what is pending
  q     quit; what is pending stays blocked, and is asked again by whoever comes next

"a 1 3 5-7" answers several, "a" alone the only one. Of all your containers:

  clearance-hub clearance

With --json commands are {"id":N,"action":"allow"} or "deny", and without an id "list" or "quit".
What is printed has an "event": prompt, update (the container tried again), verdict (with "ok"; if
it is false it can be answered again), withdrawn, notice, list, error.

The containers of another machine:

  ssh -t HOST clearance-hub clearance

or, where no more than one socket is to be reached (ID: 12 digits of the container's):

  ssh -N -L "$XDG_RUNTIME_DIR/far.sock:/run/user/UID/terok/clearance/ID.sock" HOST &
  clearance-hub clearance --hub "$XDG_RUNTIME_DIR/far.sock"

UID is yours on HOST. With -o StreamLocalBindUnlink=yes ssh takes the place of an earlier far.sock.
A connection that is lost is made again as soon as it can be.`
}

// connectTimeout is for a hub that was named to answer at first.
const connectTimeout = 5 * time.Second

// Run asks the operator until the input ends.
func (c clearanceCmd) Run(a *app) error {
	ctx, stop := cmdenv.Context()
	defer stop()
	err := c.run(ctx, a.env)
	if cmdenv.Interrupted(ctx) {
		return &cmdenv.Exit{Code: cmdenv.ExitInterrupted}
	}
	return err
}

// unavailable is an error that scripts know the text of.
func unavailable(env *cmdenv.Env, err error) error {
	fmt.Fprintf(env.Stderr, "clearance hub unavailable: %s\n", cmdenv.Printable(err.Error()))
	return &cmdenv.Exit{Code: cmdenv.ExitFailure}
}

func (c clearanceCmd) run(ctx context.Context, env *cmdenv.Env) error {
	var hubs prompts.Hubs
	for _, path := range c.Hub {
		path, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		if err := answers(ctx, path); err != nil {
			return unavailable(env, err)
		}
		hubs.Paths = append(hubs.Paths, path)
	}
	if len(c.Hub) == 0 {
		dir, err := hook.RuntimeDir(env)
		if err != nil {
			return unavailable(env, fmt.Errorf("%w; name a hub's socket with --hub", err))
		}
		hubs.RuntimeDir = dir
	}
	connections := &terminal.Connections{Out: env.Stderr, All: len(c.Hub) > 0}
	hubs.Changed = connections.Changed
	screen := terminal.Config{In: env.Stdin, Out: env.Stdout, Color: env.Color(env.Stdout), Banner: terminal.Banner()}
	if c.JSON {
		screen.Style, screen.Banner = terminal.JSON, nil
	}
	term := terminal.New(screen)
	sub := prompts.New(prompts.Config{
		Notifier: term, Categories: prompts.All,
		Log: slog.New(slog.NewTextHandler(env.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	defer sub.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		defer cancel()
		ended <- sub.Follow(ctx, hubs)
	}()
	err := term.Run(ctx, sub)
	cancel()
	if followErr := <-ended; err == nil {
		err = followErr
	}
	return err
}

// answers fails if no hub answers at a socket.
func answers(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	c, err := clearance.Dial(ctx, path)
	if err != nil {
		return err
	}
	return c.Close()
}
