package shield

import (
	"strings"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/config"
	"github.com/terok-ai/terok-box/wire/control"
)

type statusCmd struct {
	Container container `arg:"" optional:"" help:"Container name or id."`
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
		return a.printJSON(struct {
			outcome
			Detail string `json:"detail,omitempty"`
		}{outcome{Container: l.name, State: resp.State}, resp.Detail})
	}
	a.warn(resp.Detail)
	a.printf("%s\n", resp.State)
	return nil
}

func (c statusCmd) installation(a *app) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	e := a.environment()
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
