package shield

import (
	"fmt"
	"strings"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/podman"
)

type setupCmd struct {
	Desktop bool `help:"Also have the questions of containers shown on the desktop from the next login on."`
	JSON    bool `name:"json" help:"Print a JSON object."`
}

type uninstallCmd struct {
	Force bool `help:"Even if there are containers that start without a firewall then."`
	JSON  bool `name:"json" help:"Print a JSON object."`
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
	if !c.Force {
		if err := a.bared(); err != nil {
			return err
		}
	}
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

// bared fails if there are containers that Podman would start without a
// firewall once it runs our hooks no more. Without Podman there are none.
func (a *app) bared() error {
	p, err := a.podman()
	if err != nil {
		return nil
	}
	names, err := p.Shielded(a.ctx)
	if err != nil {
		return fmt.Errorf("nothing was removed: it cannot be seen whether containers would start without their firewall: %w; mend that, or give --force", err)
	}
	if len(names) == 0 {
		return nil
	}
	for i, name := range names {
		names[i] = cmdenv.Printable(name)
	}
	list := strings.Join(names, " ")
	return fmt.Errorf("nothing was removed: containers that are started again would have no firewall; remove them first (podman rm --force %s), or give --force", list)
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
