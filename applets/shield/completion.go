package shield

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/terok-ai/terok-box/applets/internal/config"
	"github.com/terok-ai/terok-box/applets/internal/grammar"
	"github.com/terok-ai/terok-box/applets/internal/policy"
)

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

func (c completionCmd) Run(a *app) error {
	p, err := Grammar()
	if err != nil {
		return err
	}
	text, _, _ := p.Completion(c.Shell)
	a.printf("%s", text)
	return nil
}

// namesCmd prints what completions offer, one a line: of containers those
// that have a state directory, without asking Podman.
type namesCmd struct {
	Kind grammar.Kind `arg:"" enum:"containers,profiles" help:"containers or profiles."`
}

// maxNames is more than anybody chooses from.
const maxNames = 1000

func (c namesCmd) Run(a *app) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	var found []string
	if c.Kind == grammar.Profiles {
		found, err = config.Profiles(cfg)
	} else {
		found, err = stateNames(cfg.StateRoot)
	}
	for _, n := range found[:min(len(found), maxNames)] {
		a.printf("%s\n", n)
	}
	return err
}

// stateNames are the containers that have a state directory.
func stateNames(root string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(root, "containers"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var found []string
	for _, e := range entries {
		if e.IsDir() && e.Name() != "_default" && policy.ContainerName(e.Name()) == nil {
			found = append(found, e.Name())
		}
	}
	return found, nil
}
