package shield

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/terok-ai/terok-box/applets/internal/shielded"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/control"
)

// packets are those that the container's firewall logs. The kernel gives them
// to one reader only; another one, if there is one, writes audit lines.
func (w *watch) packets(ctx context.Context) {
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.namer != nil {
			w.namer.Close()
			w.namer = nil
		}
	}()
	w.again(ctx, func(ctx context.Context) error {
		err := w.c.Packets(ctx, func(p control.Packet) error {
			e := packetEvent(p)
			e.Domain = w.nameOf(ctx, p.Dest)
			return w.tell(ctx, e)
		})
		if errors.Is(err, shielded.ErrBusy) {
			return fmt.Errorf("%w: they are shown as it writes them to the audit log", err)
		}
		return err
	})
}

// packetEvent is the event of a packet.
func packetEvent(p control.Packet) watchEvent {
	e := watchEvent{
		Time: p.Time.UTC().Format(timeFormat), Source: fromNFLOG, Action: "nflog", Dest: p.Dest.String(), Detail: strings.TrimSpace(p.Prefix),
		Port: p.Port, Proto: p.Proto, Missed: p.Lost,
	}
	for _, a := range []struct {
		prefix ruleset.Prefix
		action string
	}{
		{ruleset.LogBlocked, "queued_connection"}, {ruleset.LogDenied, "blocked_connection"}, {ruleset.LogPrivate, "private_range"},
		{ruleset.LogAllowed, "allowed_connection"}, {ruleset.LogBypass, "bypass_connection"},
	} {
		if p.Prefix == string(a.prefix) {
			e.Action = a.action
		}
	}
	return e
}
