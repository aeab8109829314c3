package hub

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/terok-ai/terok-box/resources"
)

type unitsCmd struct {
	Dir string `arg:"" optional:"" complete:"dirs" help:"Where to (default: where systemd looks for yours, ~/.config/systemd/user)."`
}

// Help is what stands below the flags.
func (unitsCmd) Help() string {
	return `Examples:

  clearance-hub units                       where systemd looks for yours
  clearance-hub units ./units               to look at them`
}

// Run writes units that start the file that this program is.
func (c unitsCmd) Run(a *app) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program's own file: %w", err)
	}
	dir := c.Dir
	if dir == "" {
		config, err := a.env.XDG("CONFIG", ".config")
		if err != nil {
			return err
		}
		dir = filepath.Join(config, "systemd", "user")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	all := resources.Units()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		text, err := startingFile(all[name], self)
		if err == nil {
			err = replace(filepath.Join(dir, name), []byte(text), 0o644)
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		fmt.Fprintln(a.env.Stdout, filepath.Join(dir, name))
	}
	fmt.Fprintf(a.env.Stderr, "Now: systemctl --user daemon-reload && systemctl --user enable --now terok-clearance-hub.socket terok-clearance-verdict.socket\n")
	return nil
}

// startingFile is a unit that starts its program from a file whatever that is
// called: systemd passes the name that it has here.
func startingFile(unit, file string) (string, error) {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._+-"
	if strings.Trim(file, plain) != "" || !filepath.IsAbs(file) {
		return "", fmt.Errorf("%q has characters that mean something to systemd; install this program at a plainer path", file)
	}
	return strings.Replace(unit, "\nExecStart=", "\nExecStart=@"+file+" ", 1), nil
}
