package shield

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/terok-ai/terok-box/applets/internal/dossier"
	"github.com/terok-ai/terok-box/applets/internal/hook"
	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/applets/internal/shielded"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/event"
)

// routed is the id under which older scripts have the container's hub told.
// Only a container of which no id is recorded needs it.
type routed struct {
	ContainerID string `name:"container-id" hidden:""`
}

// check refuses what is no id, before anything is done.
func (r routed) check() error {
	if r.ContainerID == "" {
		return nil
	}
	return policy.ContainerID(r.ContainerID)
}

// digits of an id are what a container's hub goes by.
const digits = 12

// announce tells the container's hub, if there is one, what became of its
// shield. Nothing depends on it, so why it failed interests nobody.
func (a *app) announce(c shielded.Container, kind string, r routed) (err error) {
	b, err := bundle.Open(c.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	id, err := b.ContainerID()
	switch {
	case err != nil:
		return err
	case id == "" && r.ContainerID == "":
		return fmt.Errorf("the id of %s is not known", c.Name)
	case id == "":
		id = r.ContainerID
	}
	id = id[:digits]
	e := event.Event{Type: kind, Container: id}
	if d, err := dossier.Of(b); err == nil {
		e.Dossier, _ = d.Now() // what there is
	}
	// Where the container's own supervisor takes events is recorded; others do
	// so in places known by custom.
	var paths []string
	if s, err := b.Supervisor(); err == nil && s.Events != "" && s.Alive() {
		paths = append(paths, s.Events)
	}
	if dir, err := hook.RuntimeDir(a.env); err == nil {
		paths = append(paths, event.SocketPaths(dir, id)...)
	}
	return event.Emit(append(paths, filepath.Join(b.Path(), "run", "events.sock")), e)
}
