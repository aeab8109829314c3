package hub

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/varlink"
)

const (
	// maxClients bounds the connections of those who ask and answer. Each of
	// them has two.
	maxClients = 512
	// maxStall is how long one may not read before it is given up: it may
	// have been suspended, and keeps nobody from anything.
	maxStall = time.Hour
)

// Serve takes events at one listener and serves org.terok.Clearance1 at the
// other, until ctx ends, which is not an error, or one of them fails. It
// closes both, and when it returns, all connections have ended. The hub is
// the caller's to close.
func (h *Hub) Serve(ctx context.Context, ingest, clients net.Listener) error {
	srv, err := varlink.NewServer(varlink.Config{
		Info:       clearance.Info(cmdenv.Version()),
		Interfaces: []varlink.Interface{clearance.Interface(h, resources.Varlink(clearance.InterfaceName))},
		Log:        h.config.Log,
		MaxConns:   maxClients, WriteTimeout: maxStall,
	})
	if err != nil {
		return errors.Join(err, ingest.Close(), clients.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var errIngest, errClients error
	wg.Go(func() {
		defer cancel()
		if err := h.ServeIngest(ctx, ingest); err != nil {
			errIngest = fmt.Errorf("take events: %w", err)
		}
	})
	wg.Go(func() {
		defer cancel()
		if err := srv.Serve(ctx, clients); err != nil {
			errClients = fmt.Errorf("serve %s: %w", clearance.InterfaceName, err)
		}
	})
	wg.Wait()
	return errors.Join(errIngest, errClients)
}
