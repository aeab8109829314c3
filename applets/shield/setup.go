package shield

import (
	"github.com/terok-ai/terok-box/applets/internal/podman"
)

type setupCmd struct {
	Desktop bool `help:"Also have the questions of containers shown on the desktop from the next login on."`
	JSON    bool `name:"json" help:"Print a JSON object."`
}

type uninstallCmd struct {
	JSON bool `name:"json" help:"Print a JSON object."`
}

func (c setupCmd) Run(a *app) error {
	report, err := podman.Install(a.env, a.env.Self, podman.Firewall, podman.Reader)
	if err != nil {
		return err
	}
	if c.Desktop {
		desktop, err := podman.InstallDesktop(a.env)
		report.Written = append(report.Written, desktop.Written...)
		report.Replaced = append(report.Replaced, desktop.Replaced...)
		if err != nil {
			return err
		}
	}
	if c.JSON {
		return a.printJSON(report)
	}
	a.printf("Installing hooks to %s...\n", report.Dir)
	a.tell(report)
	a.printf("Done. Global hooks installed.\n")
	if c.Desktop {
		a.printf("Questions are shown on the desktop from the next login on. With systemd, to have it now:\n" +
			"  systemctl --user daemon-reload && systemctl --user start terok-clearance-notify\n")
	}
	return nil
}

func (c uninstallCmd) Run(a *app) error {
	report, err := podman.Uninstall(a.env)
	if err != nil {
		return err
	}
	if c.JSON {
		return a.printJSON(report)
	}
	a.tell(report)
	if len(report.Removed) == 0 {
		a.printf("Nothing was installed.\n")
		return nil
	}
	a.printf("Done. Global hooks removed. What containers have in their state directories stays.\n")
	return nil
}

// tell says what was not as usual, and what is left to do.
func (a *app) tell(r podman.Report) {
	for _, f := range r.Replaced {
		a.warn("replaced somebody else's " + f)
	}
	for _, f := range r.Kept {
		a.warn("left " + f + " as it is: somebody else's")
	}
	for _, t := range r.Todo {
		a.warn(t)
	}
}
