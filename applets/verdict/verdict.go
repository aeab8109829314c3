// Package verdict carries out answers that a hub has found to be authorised:
// it allows or denies a container a name or an address.
//
// It takes nobody's word for what it is told, and hands nothing on that could
// mean something else than a name or an address. It must never import another
// applet.
package verdict

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/attempt"
	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/verdict"
)

const (
	timeout = 10 * time.Second
	// maxAttempts bounds what is carried out at a time.
	maxAttempts = 64
	maxStderr   = 512 // bytes
)

// Executor carries an answer out that is well formed. It must end soon after
// ctx does. The warning is what there is to say though it was done.
type Executor func(ctx context.Context, container, dest, action string) (warning string, err error)

// Service is the verdict service over an Executor, which it gives 10 seconds.
// Whatever happens is told, and nothing of it is more than that answer's.
func Service(execute Executor, log *slog.Logger) verdict.Service {
	return server{execute, attempt.NewLimits(maxAttempts, timeout), log}
}

type server struct {
	execute Executor
	limits  *attempt.Limits
	log     *slog.Logger
}

// Apply carries an answer out.
func (s server) Apply(ctx context.Context, container, dest, action string) (ok bool, stderr string) {
	if err := Check(container, dest, action); err != nil {
		s.log.Warn("verdict refused", "err", err)
		return false, shorten(err.Error())
	}
	log := s.log.With("container", container, "target", dest, "action", action)
	type outcome struct {
		warning string
		err     error
	}
	o, err := attempt.Do(ctx, s.limits, func(ctx context.Context) (o outcome) {
		o.warning, o.err = s.execute(ctx, container, dest, action)
		if o.err != nil && ctx.Err() != nil {
			o.err = context.Cause(ctx) // and not what that led to
		}
		return o
	})
	if p, ok := errors.AsType[*attempt.Panic](err); ok {
		log.Error("carrying a verdict out panicked", "panic", p)
		return false, shorten("internal verdict helper error: " + p.Error())
	}
	if err == nil {
		err = o.err
	}
	if err != nil {
		log.Warn("verdict failed", "err", err)
		return false, shorten(err.Error())
	}
	log.Info("verdict carried out", "warning", o.warning)
	return true, shorten(o.warning)
}

// Check refuses what cannot be carried out, and a dest that is anything but
// one address or the name of one host: a container chooses the names that it
// asks for, and in lists "*." and "=" at the front of one mean something.
func Check(container, dest, action string) error {
	if action != clearance.Allow && action != clearance.Deny {
		return clearance.InvalidAction{Action: shown(action)}
	}
	if err := policy.ContainerName(container); err != nil {
		return err
	}
	t, err := policy.ParseTarget(dest)
	switch {
	case err != nil:
		return err
	case strings.TrimSpace(dest) != dest:
		return fmt.Errorf("invalid target %q: white space around it", shown(dest))
	case t.IsName() && (t.Exact || t.Wildcard):
		return fmt.Errorf("invalid target %q: not the name of one host", shown(dest))
	case !t.IsName() && (strings.Contains(dest, "/") || !t.Prefix.IsSingleIP()):
		return fmt.Errorf("invalid target %q: not one address", shown(dest))
	}
	return nil
}

// shown is what is repeated of something that is not right.
func shown(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

// shorten is what a hub is told of a text.
func shorten(s string) string {
	return strings.TrimSpace(strings.ToValidUTF8(s[:min(len(s), maxStderr)], "\ufffd"))
}
