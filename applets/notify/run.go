package notify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/hook"
	"github.com/terok-ai/terok-box/applets/internal/subscriber"
)

// Name is the program's own name.
const Name = "terok-clearance-notify"

// BusName is what the one program of a session has that shows questions.
const BusName = "org.terok.ClearanceNotify"

const usage = `usage: terok-clearance-notify TITLE [BODY] [-t MS] [--actions KEY:LABEL...] [--wait]
       terok-clearance-notify --watch [--events LIST] [--hub PATH]...

Shows a notification on the desktop and prints its id. Where there is no
desktop it prints 0.

` + flagsUsage + `
With --watch it asks about every connection that a shielded container of this
user is refused, as it happens, and has the answers carried out, until it is
ended. It waits for a desktop if there is none. One does per session: a second
one says so and ends.

  --watch                ask, as said above
  --events LIST          what is shown, with commas between: blocked, verdict,
                         shield_up, shield_down, container_started,
                         container_exited, or all. Default:
                         $TEROK_CLEARANCE_NOTIFY_EVENTS, else blocked,verdict
  --hub PATH             ask for the hub at this socket only; may be given
                         several times

A container with more than five open questions has one notification for the
rest; clearance-hub clearance lists and answers them in a terminal.

Exit codes: 0 done, 1 the desktop does not answer, or --watch runs already,
2 wrong command line, 3 --watch has to be started anew, 130 Ctrl-C.
`

// exitOpener is for errOpener. A service manager that leaves it at 1, since
// another one runs, begins anew.
const exitOpener = 3

// flagsUsage are the flags of both.
const flagsUsage = `  -t, --timeout MS       how long it stays: 0 for ever, -1 (default) as the
                         desktop thinks fit
  --actions KEY:LABEL... its buttons, up to the next flag
  --wait                 stay until one was chosen, whose KEY is printed, or the
                         notification is gone
  -v, --verbose          say on stderr why nothing is shown
`

// verbUsage is that of clearance-hub notify.
const verbUsage = `usage: clearance-hub notify TITLE [BODY] [-t MS] [--actions KEY:LABEL...] [--wait]

The same as terok-clearance-notify without --watch.

` + flagsUsage

// showTimeout is for a desktop to show a notification, or to be started.
const showTimeout = 15 * time.Second

// options are the command line.
type options struct {
	title, body string
	timeout     time.Duration
	actions     []Action
	wait        bool
	verbose     bool
	help        bool

	watch  bool
	events *string // nil: what the environment says
	hubs   []string
}

// parse reads the command line; canWatch says that there is --watch.
func parse(args []string, canWatch bool) (o options, err error) {
	o.timeout = AsIsCustomary
	var words []string
	value := func(name, joined string, isJoined bool) string {
		if !isJoined {
			if len(args) == 0 {
				err = cmdenv.Usagef("%s takes a value", name)
				return ""
			}
			joined, args = args[0], args[1:]
		}
		return joined
	}
	for len(args) > 0 && err == nil {
		arg := args[0]
		args = args[1:]
		name, joined, isJoined := strings.Cut(arg, "=")
		if !strings.HasPrefix(arg, "--") {
			name, isJoined = arg, false
		}
		switch {
		case arg == "--":
			words = append(words, args...)
			args = nil
		case arg == "-h", arg == "--help":
			o.help = true
		case arg == "-v", arg == "--verbose":
			o.verbose = true
		case arg == "--wait":
			o.wait = true
		case name == "-t", name == "--timeout":
			text := value(name, joined, isJoined)
			ms, failed := strconv.ParseInt(text, 10, 32)
			if err == nil && (failed != nil || ms < -1) {
				err = cmdenv.Usagef("--timeout takes milliseconds, 0 or -1, not %q", text)
			}
			o.timeout = AsIsCustomary
			if ms >= 0 {
				o.timeout = time.Duration(ms) * time.Millisecond
			}
		case name == "--actions":
			list := []string{joined}
			if !isJoined {
				n := 0
				for n < len(args) && !strings.HasPrefix(args[n], "-") {
					n++
				}
				list, args = args[:n], args[n:]
			}
			if len(list) == 0 {
				err = cmdenv.Usagef("--actions takes KEY:LABEL")
			}
			for _, pair := range list {
				key, label, ok := strings.Cut(pair, ":")
				if !ok || key == "" || label == "" {
					err = cmdenv.Usagef("--actions takes KEY:LABEL, not %q", pair)
				}
				o.actions = append(o.actions, Action{Key: key, Label: label})
			}
		case arg == "--watch" && canWatch:
			o.watch = true
		case name == "--events" && canWatch:
			text := value(name, joined, isJoined)
			o.events = &text
		case name == "--hub" && canWatch:
			path := value(name, joined, isJoined)
			if err == nil && path == "" {
				err = cmdenv.Usagef("--hub takes the path of a socket")
			}
			if err == nil {
				path, err = filepath.Abs(path)
			}
			o.hubs = append(o.hubs, path)
		case strings.HasPrefix(arg, "-") && arg != "-":
			err = cmdenv.Usagef("no flag %q; see --help", arg)
		default:
			words = append(words, arg)
		}
	}
	switch {
	case err != nil || o.help:
		return o, err
	case o.watch && (len(words) > 0 || o.wait || len(o.actions) > 0):
		return o, cmdenv.Usagef("--watch takes no notification")
	case !o.watch && (o.events != nil || len(o.hubs) > 0):
		return o, cmdenv.Usagef("--events and --hub go with --watch")
	case !o.watch && len(words) == 0:
		return o, cmdenv.Usagef("a notification has a title; see --help")
	case len(words) > 2:
		return o, cmdenv.Usagef("a notification has a title and a body: what is %q?", words[2])
	case len(o.actions) > maxActions:
		return o, cmdenv.Usagef("a notification has up to %d actions", maxActions)
	}
	words = append(words, "", "")
	o.title, o.body = words[0], words[1]
	return o, nil
}

// Run is terok-clearance-notify; args are without the program's name.
func Run(env *cmdenv.Env, args []string) int { return run(env, Name+": ", usage, true, args) }

// RunVerb is clearance-hub notify; args are without that.
func RunVerb(env *cmdenv.Env, args []string) int {
	return run(env, "clearance-hub: ", verbUsage, false, args)
}

func run(env *cmdenv.Env, prefix, usage string, canWatch bool, args []string) int {
	o, err := parse(args, canWatch)
	switch {
	case err != nil:
		return env.Fail(prefix, err)
	case o.help:
		fmt.Fprint(env.Stdout, usage)
		return cmdenv.ExitOK
	}
	level := slog.LevelError // and there is nothing of that level
	switch {
	case o.verbose:
		level = slog.LevelDebug
	case o.watch:
		level = slog.LevelWarn
	}
	log := slog.New(slog.NewTextHandler(env.Stderr, &slog.HandlerOptions{Level: level}))
	var terminals *opener
	if o.watch { // before signals are heard: none gets lost between its two lives
		if terminals, err = o.confine(env, log); err != nil {
			return env.Fail(prefix, err)
		}
		defer terminals.part()
	}
	ctx, stop := cmdenv.Context()
	defer stop()
	if o.watch {
		err = o.follow(ctx, env, terminals, log)
	} else {
		err = o.show(ctx, env, log)
	}
	if cmdenv.Interrupted(ctx) {
		return cmdenv.ExitInterrupted
	}
	return env.Fail(prefix, err)
}

// show shows one notification.
func (o options) show(ctx context.Context, env *cmdenv.Env, log *slog.Logger) error {
	n := New(Config{Vars: env.Vars, Log: log})
	defer n.Disconnect()
	became := make(chan string, 1)
	tell := func(key string) {
		select {
		case became <- key:
		default: // it was answered already
		}
	}
	shown, cancel := context.WithTimeout(ctx, showTimeout)
	defer cancel()
	id, err := n.Notify(shown, Popup{
		Summary: o.title, Body: o.body, Actions: o.actions, Urgency: Normal, Timeout: o.timeout,
		Chosen: tell, Closed: func(Reason) { tell("") },
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(env.Stdout, id)
	if !o.wait || id == 0 {
		return nil
	}
	select {
	case key := <-became:
		if key != "" {
			fmt.Fprintln(env.Stdout, cmdenv.Printable(key))
		}
		return nil
	case <-ctx.Done():
		return n.Close(context.WithoutCancel(ctx), id) // nobody would hear what is chosen
	}
}

// runtimeDir is where hubs are looked for; "" if they are named.
func (o options) runtimeDir(env *cmdenv.Env) (string, error) {
	if len(o.hubs) > 0 {
		return "", nil
	}
	dir, err := hook.RuntimeDir(env)
	if err != nil {
		return "", fmt.Errorf("find the hubs of this user: %w; name a hub's socket with --hub", err)
	}
	return dir, nil
}

// follow shows what hubs ask. terminals may be nil: then there are none.
func (o options) follow(ctx context.Context, env *cmdenv.Env, terminals *opener, log *slog.Logger) error {
	c := WatchConfig{Hubs: Hubs{Paths: o.hubs}}
	var unknown []string
	if o.events != nil {
		c.Categories, unknown = subscriber.ParseCategories(*o.events)
		if len(unknown) > 0 {
			return cmdenv.Usagef("--events: there is no %q", unknown)
		}
	} else if c.Categories, unknown = subscriber.Chosen(env.Vars); len(unknown) > 0 {
		log.Warn("there are no such events to be shown", "variable", subscriber.EventsVar, "unknown", unknown)
	}
	var err error
	if c.Hubs.RuntimeDir, err = o.runtimeDir(env); err != nil {
		return err
	}
	c.Hubs.Changed = func(path string, err error) { log.Info("hub", "path", path, "err", err) }
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	n := New(Config{
		AppName: "terok-clearance", Name: BusName, Taken: func() { cancel(ErrRunning) }, Vars: env.Vars, Log: log,
	})
	defer n.Disconnect()
	c.Notifier, c.Log = n, log
	if terminals != nil {
		c.List = terminals.list
		go func() {
			select {
			case <-terminals.gone:
				cancel(errOpener)
			case <-ctx.Done():
			}
		}()
	}
	err = Watch(ctx, c)
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, ErrRunning):
		return ErrRunning
	case errors.Is(cause, errOpener):
		return &cmdenv.Exit{Code: exitOpener, Err: errOpener}
	}
	return err
}
