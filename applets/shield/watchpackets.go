package shield

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/firewall"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nflog"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/control"
)

// opPackets has RunInside print the packets that the container's firewall
// logs, a JSON object a line, until it is killed.
const opPackets control.Op = "packets"

// loggedPacket is such a line. The first has neither destination nor error:
// from then on nothing is missed.
type loggedPacket struct {
	Time   string     `json:"time,omitempty"`
	Prefix string     `json:"prefix,omitempty"`
	Dest   netip.Addr `json:"dest,omitzero"`
	Proto  uint8      `json:"proto,omitempty"`
	Port   uint16     `json:"port,omitempty"`
	Lost   int64      `json:"lost,omitempty"` // before this one
	Busy   bool       `json:"busy,omitempty"` // another process reads them
	Error  string     `json:"error,omitempty"`
}

// maxPacketLine bounds a line, in bytes.
const maxPacketLine = 4 << 10

// errBusy says that another process reads the container's packets.
var errBusy = errors.New("another process reads its blocked packets")

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
		err := w.app.logged(ctx, w.l, func(p loggedPacket) error {
			e := p.event()
			e.Domain = w.nameOf(ctx, p.Dest)
			return w.tell(ctx, e)
		})
		if errors.Is(err, errBusy) {
			return fmt.Errorf("%w: they are shown as it writes them to the audit log", err)
		}
		return err
	})
}

// event is that of a packet.
func (p loggedPacket) event() event {
	e := event{
		Time: p.Time, Source: fromNFLOG, Action: "nflog", Dest: p.Dest.String(), Detail: strings.TrimSpace(p.Prefix),
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

// logged calls visit with every packet that a container's firewall logs until
// ctx ends or visit fails. It reads them in the container's namespaces.
func (a *app) logged(ctx context.Context, l located, visit func(loggedPacket) error) error {
	req := control.Request{Op: opPackets, Container: l.name, PID: l.pid, NetNS: l.netns}
	ns, err := netns.Open(l.pid)
	if err != nil {
		return err
	}
	defer ns.Close()
	if !netns.NeedsEnter(ns) {
		return readPackets(ctx, req, visit)
	}
	ctx, cancel := context.WithCancel(ctx) // kills it
	defer cancel()
	return a.insideStream(ctx, ns, req, func(out io.Reader) error {
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, maxPacketLine)
		for lines.Scan() {
			var p loggedPacket
			if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
				return fmt.Errorf("packets: %w", err)
			}
			switch {
			case p.Busy:
				return errBusy
			case p.Error != "":
				return errors.New(p.Error)
			case !p.Dest.IsValid():
				continue
			}
			if err := visit(p); err != nil {
				return err
			}
		}
		return lines.Err()
	})
}

// servePackets is what RunInside does for opPackets.
func servePackets(ctx context.Context, out io.Writer, req control.Request) error {
	enc := json.NewEncoder(out)
	err := readPackets(ctx, req, func(p loggedPacket) error { return enc.Encode(p) })
	switch {
	case err == nil, ctx.Err() != nil:
		return nil
	case errors.Is(err, errBusy):
		return enc.Encode(loggedPacket{Busy: true})
	}
	return enc.Encode(loggedPacket{Error: err.Error()})
}

// readPackets calls visit with every logged packet of the container's network
// namespace, which this process may enter.
func readPackets(ctx context.Context, req control.Request, visit func(loggedPacket) error) error {
	ns, err := netns.Open(req.PID)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := firewall.NotHost(ns); err != nil {
		return err
	}
	switch id, err := ns.ID(); {
	case err != nil:
		return err
	case req.NetNS != "" && id.String() != req.NetNS:
		return fmt.Errorf("process %d is not the container's any more", req.PID)
	}
	var conn *nflog.Conn
	if err := ns.Do(func() (err error) { conn, err = nflog.Open(ruleset.Group); return err }); err != nil {
		if errors.Is(err, nflog.ErrBusy) {
			return errBusy
		}
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var lost uint64
	for err == nil {
		receiveErr := conn.Receive(func(p nflog.Packet) {
			flow, parseErr := nflog.Parse(p.Payload)
			if err != nil || parseErr != nil || flow.Noise() {
				return
			}
			was := lost
			lost = conn.Lost()
			err = visit(loggedPacket{
				Time: time.Now().UTC().Format(timeFormat), Prefix: p.Prefix,
				Dest: flow.Dst, Proto: flow.Proto, Port: flow.DstPort, Lost: int64(lost - was),
			})
		})
		if receiveErr != nil && err == nil {
			err = receiveErr
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}
