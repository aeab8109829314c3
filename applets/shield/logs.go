package shield

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/terok-ai/terok-box/applets/internal/audit"
	"github.com/terok-ai/terok-box/wire/bundle"
)

type logsCmd struct {
	Container container `complete:"containers" help:"Only this container's." placeholder:"C"`
	N         int       `short:"n" default:"50" help:"How many of the newest lines."`
	JSON      bool      `name:"json" hidden:"" help:"The lines are JSON anyway."`
}

func (c logsCmd) Run(a *app) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	var dirs []string
	if c.Container != "" {
		l, err := a.locate(cfg, c.Container)
		if err != nil {
			return err
		}
		dirs = []string{l.Dir}
	} else {
		root := filepath.Join(cfg.StateRoot, "containers")
		entries, err := os.ReadDir(root)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			dirs = append(dirs, filepath.Join(root, e.Name()))
		}
	}
	var logs [][]audit.Record
	for _, dir := range dirs {
		got, err := newest(dir, c.N)
		if err != nil {
			a.warn(err.Error()) // the others' lines are still worth seeing
		}
		logs = append(logs, got)
	}
	found := audit.Merge(c.N, logs...)
	for _, r := range found {
		a.printf("%s\n", r)
	}
	if len(found) == 0 && c.Container == "" {
		a.printf("No audit logs found.\n")
	}
	return nil
}

// newest is the last n lines of one container's log.
func newest(dir string, n int) (_ []audit.Record, err error) {
	b, err := bundle.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	return audit.Read(b, n)
}
