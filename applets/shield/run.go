package shield

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/config"
	"github.com/terok-ai/terok-box/applets/internal/podman"
	"github.com/terok-ai/terok-box/wire/control"
)

type runCmd struct {
	Container container `arg:"" help:"Name the container will have."`
	Profiles  []string  `complete:"profiles" placeholder:"A,B" help:"Allowlist profiles (default: default_profiles of config.yml)."`
	Runtime   string    `placeholder:"NAME" help:"krun, for a virtual machine instead of a container."`
}

// removeTimeout bounds the clean-up after a start that failed.
const removeTimeout = 30 * time.Second

// Run creates the container, has Podman set it up without starting it, looks
// whether the firewall is really there, and only then starts the workload:
// Podman starts a container whose hook program is missing.
func (c runCmd) Run(a *app) error {
	if err := c.Container.check(); err != nil {
		return err
	}
	if c.Runtime != "" {
		a.tail = append([]string{"--runtime=" + c.Runtime}, a.tail...)
	}
	args, err := podman.ParseRun(a.tail)
	if err != nil {
		return err
	}
	cfg, err := a.config()
	if err != nil {
		return err
	}
	p, err := a.podman()
	if err != nil {
		return err
	}
	name := string(c.Container)
	if args.Replace {
		if err := a.hooked(p); err != nil {
			return err
		}
		if _, err := p.Output(a.ctx, "rm", "--force", "--ignore", name); err != nil {
			return err
		}
	}
	flags, err := a.prepare(cfg, p, c.Container, c.Profiles, args.Runtime)
	if err != nil {
		return err
	}
	create := append([]string{"create", "--name", name}, flags...)
	create = append(create, args.Create...)
	create = append(create, args.Image)
	create = append(create, args.Command...)
	id, err := a.podmanRun(p, create...)
	if err != nil {
		return err // Podman has said why
	}
	id = strings.TrimSpace(id)
	if err := a.verified(cfg, p, c.Container, id); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), removeTimeout)
		defer cancel()
		if _, rmErr := p.Output(ctx, "rm", "--force", id); rmErr != nil && !errors.Is(rmErr, podman.ErrNotFound) {
			err = errors.Join(err, fmt.Errorf("and it could not be removed, do that yourself: podman rm --force %s: %w", name, rmErr))
		}
		return fmt.Errorf("container %s was not started: %w", name, err)
	}
	start := append([]string{"start"}, args.Start...)
	if args.Detach {
		if _, err := a.podmanRun(p, append(start, id)...); err != nil {
			return err
		}
		a.printf("%s\n", id)
		return nil
	}
	// From here on this process is podman: its exit code is the workload's,
	// its terminal and signals too.
	argv := append([]string{p.Path}, append(start, "--attach", id)...)
	return fmt.Errorf("run %s: %w", p.Path, syscall.Exec(p.Path, argv, a.env.Environ()))
}

// verified sets the container up and fails unless its firewall is in force.
func (a *app) verified(cfg config.Config, p *podman.Client, c container, id string) error {
	if _, err := a.podmanRun(p, "init", id); err != nil {
		return fmt.Errorf("podman init failed; the hook's reason is above and in %s/hook-error.log", a.dirOf(cfg, string(c)))
	}
	got, err := p.Inspect(a.ctx, id)
	if err != nil {
		return err
	}
	l := a.finder(cfg).Started(string(c), got.PID)
	if _, err := a.execute(l, control.Request{Op: control.OpVerify}); err != nil {
		return fmt.Errorf("%w; see terok-shield check-environment", err)
	}
	return nil
}

// podmanRun runs podman with our stdin and stderr and returns its stdout. Its
// failure carries its exit code and no text of ours: podman has printed one.
func (a *app) podmanRun(p *podman.Client, args ...string) (string, error) {
	cmd := exec.CommandContext(a.ctx, p.Path, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = removeTimeout
	cmd.Env = a.env.Environ()
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, &out, a.env.Stderr
	err := cmd.Run()
	if x, ok := errors.AsType[*exec.ExitError](err); ok && x.ExitCode() > 0 {
		return out.String(), &cmdenv.Exit{Code: x.ExitCode()}
	}
	return out.String(), err
}
