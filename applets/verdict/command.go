package verdict

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/config"
	"github.com/terok-ai/terok-box/applets/internal/hook"
	"github.com/terok-ai/terok-box/applets/internal/service"
	"github.com/terok-ai/terok-box/applets/internal/shielded"
	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/varlink"
	"github.com/terok-ai/terok-box/wire/verdict"
)

// Name is the program's name.
const Name = "clearance-verdict"

const usage = `Usage: clearance-verdict [serve]

Carries out answers about blocked connections of this user's containers, as a clearance-hub tells it
to, until it is told to end. Containers started under terok-shield need it not: they do so themselves.

Exit codes: 0 done, 1 not done, 2 wrong command line, 130 interrupted.
`

// Run is clearance-verdict; args are without the program's name.
func Run(env *cmdenv.Env, args []string) int {
	switch {
	case len(args) == 1 && (args[0] == "-h" || args[0] == "--help"):
		fmt.Fprint(env.Stdout, usage)
		return cmdenv.ExitOK
	case len(args) > 1 || len(args) == 1 && args[0] != "serve":
		return env.Fail(Name+": ", cmdenv.Usagef("unexpected argument %s (see %s --help)", args[len(args)-1], Name))
	}
	return env.Fail(Name+": ", service.Run(env, func(ctx context.Context, log *slog.Logger) error { return serve(ctx, env, log) }))
}

// serve serves all containers of the user.
func serve(ctx context.Context, env *cmdenv.Env, log *slog.Logger) error {
	dir, err := hook.RuntimeDir(env)
	if err != nil {
		return fmt.Errorf("no place for a socket: %w; set XDG_RUNTIME_DIR to a directory of your own", err)
	}
	srv, err := varlink.NewServer(varlink.Config{
		Info:       verdict.Info(cmdenv.Version()),
		Interfaces: []varlink.Interface{verdict.Interface(Service(Outside(env), log), resources.Varlink(verdict.InterfaceName))},
		Log:        log,
	})
	if err != nil {
		return err
	}
	sockets, err := service.Listen(env, service.Socket{Name: "verdict", Path: verdict.UserSocketPath(dir)})
	if err != nil {
		return err
	}
	log.Info("serving", "verdict", sockets[0].Addr())
	return srv.Serve(ctx, sockets[0])
}

// Outside carries answers out on whatever container of the user is named, by
// its name or at least 12 digits of its id. The operator's configuration is
// read every time: it may have changed.
func Outside(env *cmdenv.Env) Executor {
	return func(ctx context.Context, container, dest, action string) (warning string, err error) {
		cfg, _, err := config.Load(env)
		if err != nil {
			return "", err
		}
		root, err := config.StateRoot(env, "")
		if err != nil {
			return "", err
		}
		c, err := shielded.Finder{Env: env, StateRoot: root}.Locate(ctx, container)
		if err != nil {
			return "", err
		}
		op := control.OpDeny
		if action == clearance.Allow {
			op = control.OpAllow
		}
		resp, err := c.Decide(ctx, op, dest, cfg.Audit)
		return resp.Warning, err
	}
}
