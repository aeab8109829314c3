package shield

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/config"
	"github.com/terok-ai/terok-box/applets/internal/shielded"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/names"
)

type statusCmd struct {
	Container container `arg:"" complete:"containers" optional:"" help:"Container name or id."`
	JSON      bool      `name:"json" help:"Print a JSON object."`
}

func (c statusCmd) Run(a *app) error {
	if c.Container == "" {
		return c.installation(a)
	}
	resp, l, err := target{Container: c.Container}.look(a, control.OpState)
	if err != nil {
		return err
	}
	if c.JSON {
		s := containerStatus{Container: l.Name, State: resp.State, Detail: resp.Detail}
		for _, err := range []error{s.names(a, l), s.supervisor(a, l)} {
			if err != nil {
				a.warn(err.Error()) // the state is worth knowing all the same
			}
		}
		return a.printJSON(s)
	}
	a.warn(resp.Detail)
	a.printf("%s\n", resp.State)
	return nil
}

// containerStatus is what --json prints of a container.
type containerStatus struct {
	Container string        `json:"container"`
	State     string        `json:"state"`
	Detail    string        `json:"detail,omitempty"` // why the state is error
	Tier      string        `json:"tier,omitempty"`   // as in config.yml
	Namer     string        `json:"namer,omitempty"`  // the process that finds the addresses of its names: "alive", "dead", "silent"
	Names     *names.Status `json:"names,omitempty"`  // what that process says

	Supervisor string          `json:"supervisor,omitempty"` // the process that asks about what is blocked: "alive", "dead", "silent"
	Questions  *control.Status `json:"questions,omitempty"`  // what that process says
}

// statusTimeout is for a process that answers from its memory.
const statusTimeout = 2 * time.Second

// names fills in what is known about the container's names.
func (s *containerStatus) names(a *app, l shielded.Container) (err error) {
	b, err := bundle.Open(l.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	tier, err := b.Tier()
	if err != nil {
		return err
	}
	s.Tier = string(tier)
	n, err := b.Namer()
	switch {
	case err != nil || n.Socket == "" || l.PID == 0:
		return err
	case !n.Alive():
		s.Namer = "dead"
		return nil
	}
	s.Namer = "silent"
	ctx, cancel := context.WithTimeout(a.ctx, statusTimeout)
	defer cancel()
	client, err := names.Dial(ctx, n.Socket)
	if err != nil {
		return err
	}
	defer client.Close()
	status, err := client.Status(ctx)
	if err != nil {
		return err
	}
	s.Namer, s.Names = "alive", &status
	return nil
}

// supervisor fills in what is known about who asks.
func (s *containerStatus) supervisor(a *app, l shielded.Container) error {
	if l.PID == 0 {
		return nil
	}
	client, status, err := l.Supervisor(a.ctx)
	switch {
	case errors.Is(err, shielded.ErrNone), errors.Is(err, shielded.ErrOther):
		return nil
	case errors.Is(err, shielded.ErrDead):
		s.Supervisor = "dead"
		return nil
	case err != nil:
		s.Supervisor = "silent"
		return err
	}
	s.Supervisor, s.Questions = "alive", &status
	return client.Close()
}

func (c statusCmd) installation(a *app) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	e := a.environment(cfg)
	profiles, err := config.Profiles(cfg)
	if err != nil {
		return err
	}
	if c.JSON {
		return a.printJSON(struct {
			Version string `json:"version"`
			Mode    string `json:"mode"`
			Audit   bool   `json:"audit"`
			environment
			Profiles []string `json:"profiles"`
		}{cmdenv.Version(), "hook", cfg.Audit, e, profiles})
	}
	word := map[bool]string{true: "enabled", false: "disabled"}[cfg.Audit]
	list := strings.Join(profiles, ", ")
	if list == "" {
		list = "(none)"
	}
	for _, row := range [][2]string{
		{"Version:", cmdenv.Version()}, {"Podman:", e.PodmanVersion}, {"Mode:", "hook"}, {"Hooks:", e.Hooks},
		{"Health:", e.Health}, {"Audit:", word}, {"Profiles:", list},
	} {
		a.printf("%-10s%s\n", row[0], row[1])
	}
	e.print(a)
	return nil
}
