package subscriber

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"

	"github.com/terok-ai/terok-box/wire/clearance"
)

// Hubs are the hubs that a Subscriber is connected with.
type Hubs struct {
	// RuntimeDir is the user's, such as /run/user/1000, whose hubs are found
	// as they come and go.
	RuntimeDir string
	// Paths are sockets of hubs; if there are any, only these count.
	Paths []string
	// Changed, if not nil, is told when a hub is connected (nil) and when it
	// is not any more, or could not be: for people. It is called by several
	// goroutines.
	Changed func(path string, err error)
}

// Follow has the subscriber connected with hubs until ctx ends, which is not an
// error. Events come over one connection for each hub, verdicts go over
// others.
func (s *Subscriber) Follow(ctx context.Context, hubs Hubs) error {
	handler := func(path string) clearance.Handler {
		h := s.Hub(path, func(ctx context.Context, r clearance.Request) error { return verdict(ctx, path, r) })
		h.For(onlyContainer(path))
		changed := func(err error) {
			if hubs.Changed != nil {
				hubs.Changed(path, err)
			}
		}
		return clearance.Handler{
			Connected: func() { h.Connected(); changed(nil) },
			Event:     h.Event,
			Lost: func(err error) {
				if errors.Is(err, clearance.ErrGone) {
					h.Gone()
				} else {
					h.Lost()
				}
				changed(err)
			},
		}
	}
	if len(hubs.Paths) == 0 {
		return clearance.FollowAll(ctx, hubs.RuntimeDir, handler)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	seen := make(map[string]bool)
	for _, path := range hubs.Paths {
		if !seen[path] {
			seen[path] = true
			wg.Go(func() { clearance.Follow(ctx, path, handler(path)) })
		}
	}
	return nil
}

// verdict sends one answer over a connection of its own: the one with the
// events serves for nothing else. It is not sent twice.
func verdict(ctx context.Context, path string, r clearance.Request) error {
	c, err := clearance.Dial(ctx, path)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Verdict(ctx, r)
}

// onlyContainer is the id of the container whose hub's socket this is; "" if
// the path does not tell.
func onlyContainer(path string) string {
	name := strings.TrimSuffix(filepath.Base(path), ".sock")
	if filepath.Base(path) == "hub.sock" {
		name = filepath.Base(filepath.Dir(path))
	}
	if !isID(name) || !strings.HasSuffix(path, ".sock") {
		return ""
	}
	return name
}
