package reader

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/names"
)

const (
	// lookupTimeout is how long a question waits for its name.
	lookupTimeout = 50 * time.Millisecond
	// lookupPause is how long nobody is asked who did not answer in time.
	lookupPause = time.Second
)

// resolver finds the name under which the container knows an address. It is
// for one goroutine.
type resolver struct {
	b      *bundle.Bundle
	client *names.Client // nil: not connected
	mute   time.Time     // nobody is asked before
	log    *queryLog
}

func newResolver(b *bundle.Bundle) *resolver { return &resolver{b: b, log: newQueryLog(b)} }

func (r *resolver) close() {
	r.disconnect()
	r.log.close()
}

func (r *resolver) disconnect() {
	if r.client != nil {
		r.client.Close()
		r.client = nil
	}
}

// name is the name that the container asked for last of those that have the
// address and are not allowed; "" if none is known.
func (r *resolver) name(ctx context.Context, addr netip.Addr) string {
	if time.Now().Before(r.mute) {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	for range 2 { // a connection may be to a process that has ended
		connected := r.client != nil
		if !connected {
			switch ok, err := r.connect(ctx); {
			case err != nil:
				r.later(ctx)
				return ""
			case !ok: // another program's container may have a log
				name, _ := r.log.name(addr) // what the log does not tell is not known
				return name
			}
		}
		found, err := r.client.Names(ctx, addr)
		if err == nil {
			for _, n := range found {
				if !n.Allowed && n.Name != "" {
					return n.Name
				}
			}
			return ""
		}
		r.disconnect()
		if !connected || ctx.Err() != nil {
			break
		}
	}
	r.later(ctx)
	return ""
}

// later leaves a process alone that did not answer in time.
func (r *resolver) later(ctx context.Context) {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		r.mute = time.Now().Add(lookupPause)
	}
}

// connect connects to the process that finds the addresses of the container's
// names; ok is false if there is none.
func (r *resolver) connect(ctx context.Context) (ok bool, err error) {
	n, err := r.b.Namer()
	if err != nil || n.Socket == "" || !n.Alive() {
		return false, err
	}
	r.client, err = names.Dial(ctx, n.Socket)
	return err == nil, err
}
