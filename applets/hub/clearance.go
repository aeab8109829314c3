package hub

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/hook"
	prompts "github.com/terok-ai/terok-box/applets/internal/subscriber"
	"github.com/terok-ai/terok-box/applets/internal/terminal"
	"github.com/terok-ai/terok-box/wire/clearance"
)

const clearanceUsage = `usage: clearance-hub clearance [--hub PATH]... [--json]

Asks on this terminal about every connection that a shielded container of this
user is refused, as it happens, and has the answers carried out.

  --hub PATH   ask for the hub at this socket only; may be given several times
  --json       for programs: a JSON object a line, both ways

Commands:
  a N     allow: the container may reach the target, on every port
  d N     deny: it may not, and is not asked about again
  l       list what is pending
  q       quit; what is pending stays blocked, and is asked again by whoever
          comes next
  a 1 3 5-7 answers several; a alone the only one.

With --json commands are {"id":N,"action":"allow"}, "deny", and without an id
"list" and "quit". Lines have an "event": prompt, update (asked again), verdict
(with "ok"; if false it can be answered again), withdrawn, notice, list, error.

The containers of another machine:
  ssh -t HOST clearance-hub clearance
or, where only its socket is to be reached (ID: 12 digits of the container's):
  ssh -N -L "$XDG_RUNTIME_DIR/far.sock:/run/user/UID/terok/clearance/ID.sock" HOST &
  clearance-hub clearance --hub "$XDG_RUNTIME_DIR/far.sock"
UID is yours on HOST. With -o StreamLocalBindUnlink=yes ssh takes the place of
an earlier far.sock. A lost connection is made again as soon as it can be.

Exit codes: 0 quit or end of input, 1 a hub that was named does not answer,
2 wrong command line, 130 Ctrl-C.
`

// connectTimeout is for a hub that was named to answer at first.
const connectTimeout = 5 * time.Second

// clearanceOptions are the command line of clearance.
type clearanceOptions struct {
	hubs []string
	json bool
	help bool
}

func parseClearance(args []string) (o clearanceOptions, err error) {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		name, value, joined := strings.Cut(arg, "=")
		switch {
		case arg == "-h", arg == "--help":
			o.help = true
		case arg == "--json":
			o.json = true
		case name == "--hub":
			if !joined {
				if len(args) == 0 {
					return o, cmdenv.Usagef("--hub takes the path of a socket")
				}
				value, args = args[0], args[1:]
			}
			if value == "" {
				return o, cmdenv.Usagef("--hub takes the path of a socket")
			}
			if value, err = filepath.Abs(value); err != nil {
				return o, err
			}
			o.hubs = append(o.hubs, value)
		default:
			return o, cmdenv.Usagef("clearance takes no argument %q; see clearance-hub clearance --help", arg)
		}
	}
	return o, nil
}

// askOperator is the verb clearance: every question of the user's containers
// on a terminal.
func askOperator(env *cmdenv.Env, args []string) int {
	const prefix = "clearance-hub: "
	o, err := parseClearance(args)
	switch {
	case err != nil:
		return env.Fail(prefix, err)
	case o.help:
		fmt.Fprint(env.Stdout, clearanceUsage)
		return cmdenv.ExitOK
	}
	ctx, stop := cmdenv.Context()
	defer stop()
	err = o.run(ctx, env)
	if cmdenv.Interrupted(ctx) {
		return cmdenv.ExitInterrupted
	}
	return env.Fail("", err) // scripts know the text
}

func (o clearanceOptions) run(ctx context.Context, env *cmdenv.Env) error {
	hubs := prompts.Hubs{Paths: o.hubs}
	for _, path := range o.hubs {
		if err := reach(ctx, path); err != nil {
			return fmt.Errorf("clearance hub unavailable: %w", err)
		}
	}
	if len(o.hubs) == 0 {
		dir, err := hook.RuntimeDir(env)
		if err != nil {
			return fmt.Errorf("clearance hub unavailable: %w; name a hub's socket with --hub", err)
		}
		hubs.RuntimeDir = dir
	}
	connections := &terminal.Connections{Out: env.Stderr, All: len(o.hubs) > 0}
	hubs.Changed = connections.Changed
	c := terminal.Config{In: env.Stdin, Out: env.Stdout, Color: env.Color(env.Stdout), Banner: terminal.Banner()}
	if o.json {
		c.Style, c.Banner = terminal.JSON, nil
	}
	term := terminal.New(c)
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

// reach fails if no hub answers at a socket.
func reach(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	c, err := clearance.Dial(ctx, path)
	if err != nil {
		return err
	}
	return c.Close()
}
