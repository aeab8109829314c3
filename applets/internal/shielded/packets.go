package shielded

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
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

// Packet is one that a container's firewall logged.
type Packet struct {
	Time   time.Time  `json:"time,omitzero"`
	Prefix string     `json:"prefix,omitempty"` // what the rule says
	Dest   netip.Addr `json:"dest,omitzero"`
	Proto  uint8      `json:"proto,omitempty"`
	Port   uint16     `json:"port,omitempty"`
	Lost   int64      `json:"lost,omitempty"` // before this one
}

// packetLine is a line of opPackets.
type packetLine struct {
	Packet
	Busy  bool   `json:"busy,omitempty"` // another process reads them
	Error string `json:"error,omitempty"`
}

// maxPacketLine bounds a line, in bytes.
const maxPacketLine = 4 << 10

// ErrBusy says that another process reads the container's packets.
var ErrBusy = errors.New("another process reads its blocked packets")

// Packets calls visit with every packet that the container's firewall logs
// until ctx ends or visit fails. It reads them in the container's namespaces.
func (c Container) Packets(ctx context.Context, visit func(Packet) error) error {
	req := control.Request{Op: opPackets, Container: c.Name, PID: c.PID, NetNS: c.NetNS}
	ns, err := netns.Open(c.PID)
	if err != nil {
		return err
	}
	defer ns.Close()
	if !netns.NeedsEnter(ns) {
		return readPackets(ctx, req, visit)
	}
	ctx, cancel := context.WithCancel(ctx) // kills it
	defer cancel()
	return c.insideStream(ctx, ns, req, func(out io.Reader) error {
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, maxPacketLine)
		for lines.Scan() {
			var p packetLine
			if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
				return fmt.Errorf("packets: %w", err)
			}
			switch {
			case p.Busy:
				return ErrBusy
			case p.Error != "":
				return errors.New(p.Error)
			case !p.Dest.IsValid():
				continue
			}
			if err := visit(p.Packet); err != nil {
				return err
			}
		}
		return lines.Err()
	})
}

// servePackets is what RunInside does for opPackets.
func servePackets(ctx context.Context, out io.Writer, req control.Request) error {
	enc := json.NewEncoder(out)
	err := readPackets(ctx, req, func(p Packet) error { return enc.Encode(packetLine{Packet: p}) })
	switch {
	case err == nil, ctx.Err() != nil:
		return nil
	case errors.Is(err, ErrBusy):
		return enc.Encode(packetLine{Busy: true})
	}
	return enc.Encode(packetLine{Error: err.Error()})
}

// readPackets calls visit with every logged packet of the container's network
// namespace, which this process may enter.
func readPackets(ctx context.Context, req control.Request, visit func(Packet) error) error {
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
			return ErrBusy
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
			err = visit(Packet{
				Time: time.Now().UTC(), Prefix: p.Prefix,
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
