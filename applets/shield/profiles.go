package shield

import "github.com/terok-ai/terok-box/applets/internal/config"

type profilesCmd struct {
	JSON bool `name:"json" help:"Print a JSON array."`
}

func (c profilesCmd) Run(a *app) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	names, err := config.Profiles(cfg)
	if err != nil {
		return err
	}
	if c.JSON {
		return a.printJSON(names)
	}
	for _, n := range names {
		a.printf("%s\n", n)
	}
	return nil
}
