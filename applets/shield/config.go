package shield

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
)

type configCmd struct {
	JSON bool `name:"json" help:"Print a JSON object."`
}

func (c configCmd) Run(a *app) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	settings := cfg.Settings()
	if c.JSON {
		return a.printJSON(struct {
			Path     string `json:"path"` // of config.yml, whether it exists or not
			Settings any    `json:"settings"`
		}{cfg.Path, settings})
	}
	w := tabwriter.NewWriter(a.env.Stdout, 0, 0, 2, ' ', 0)
	for _, s := range settings {
		fmt.Fprintf(w, "%s\t%s\t%s\n", s.Key, cmdenv.Printable(settingText(s.Value)), cmdenv.Printable(s.From))
	}
	return w.Flush()
}

// settingText is a value as it can stand in config.yml.
func settingText(v any) string {
	switch v := v.(type) {
	case []string:
		return "[" + strings.Join(v, ", ") + "]"
	case []uint16:
		return strings.Join(strings.Fields(fmt.Sprint(v)), ", ")
	}
	return fmt.Sprint(v)
}
