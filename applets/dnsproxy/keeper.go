package dnsproxy

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime/debug"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/names"
)

// keep is the keeper.
func (p program) keep(spec names.Spec) error {
	entitle("dns-keeper")
	debug.SetGCPercent(20) // it has next to nothing
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	end := make(chan os.Signal, 1)
	signal.Notify(end, child.SignalEnd)
	go func() {
		<-end
		cancel(errEnd)
	}()
	f, err := child.Pollable(names.FilePeer)
	if err != nil {
		return err
	}
	server := &peer{f, time.Now()}
	wait := backoff{pace: p.pace}
	udp, tcp := child.None, child.None
	if spec.Tier == string(bundle.Proxy) {
		udp, tcp = names.FileUDP, names.FileTCP
	}
	over := false
	debug.FreeOSMemory()
	child.Trim()
	for {
		err := server.wait(ctx)
		if errors.Is(err, errEnd) {
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
		if over = pause(ctx, wait.after(time.Since(server.born)), spec); ctx.Err() != nil {
			return nil
		}
		spec.Restarts++
		for {
			if server, err = start(names.Server, spec, names.FileNetNS, udp, tcp); err == nil {
				break
			}
			over = pause(ctx, p.pace.longest, spec)
			if ctx.Err() != nil || over {
				return err
			}
		}
	}
}

// look is how often a keeper that waits looks whether it still has to.
const look = 500 * time.Millisecond

// pause waits, and returns early if no container is left (over) or ctx ends.
func pause(ctx context.Context, d time.Duration, spec names.Spec) (over bool) {
	for ; len(living(spec, nil)) > 0; d -= look {
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
