package pair

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime/debug"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/wire/start"
)

// Keep is the keeper, which is called title. own are the program's own files,
// of which child.None are missing.
func (p Pair) Keep(title string, own ...int) error {
	cmdenv.Entitle(title)
	debug.SetGCPercent(20) // it has next to nothing
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	end := make(chan os.Signal, 1)
	signal.Notify(end, child.SignalEnd)
	go func() {
		<-end
		cancel(ErrEnd)
	}()
	f, err := child.Pollable(start.FilePeer)
	if err != nil {
		return err
	}
	server := &peer{f, time.Now()}
	wait := Backoff{Pace: p.Pace}
	over := false
	debug.FreeOSMemory()
	child.Trim()
	for {
		err := server.wait(ctx)
		if errors.Is(err, ErrEnd) {
			server.end() // if it was not the server who said so
			return nil
		}
		server.close()
		if err != nil {
			return err
		}
		if over { // its only task was to clean up
			return nil
		}
		if over = p.pause(ctx, wait.After(time.Since(server.born))); ctx.Err() != nil {
			return nil
		}
		p.Restarts++
		for {
			if server, err = p.start(start.Server, p.Restarts, own); err == nil {
				break
			}
			over = p.pause(ctx, p.Pace.Longest)
			if ctx.Err() != nil || over {
				return err
			}
		}
	}
}

// look is how often a keeper that waits looks whether it still has to.
const look = 500 * time.Millisecond

// pause waits, and returns early if no container is left (over) or ctx ends.
func (h Home) pause(ctx context.Context, d time.Duration) (over bool) {
	for ; len(h.Living(nil)) > 0; d -= look {
		if d <= 0 {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(min(d, look)):
		}
	}
	return true
}
