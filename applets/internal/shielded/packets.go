package shielded

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/firewall"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nflog"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/varlink"
)

// opPackets has RunInside print the packets that the container's firewall
// logs, a JSON object a line, until it is killed.
const opPackets control.Op = "packets"

// packetLine is a line of opPackets.
type packetLine struct {
	control.Packet
	Busy  bool   // another process reads them
	Error string // or this went wrong
}

// maxPacketLine bounds a line, in bytes.
const maxPacketLine = 4 << 10

// ErrBusy says that another process reads the container's packets.
var ErrBusy = errors.New("another process reads its blocked packets")

// How long a supervisor that has ended may take to be back, and how often is
// looked whether there is one.
const (
	returnTimeout = 5 * time.Second
	returnPause   = 100 * time.Millisecond
)

var (
	errEnded    = errors.New("the container's supervisor has ended; packets are missed until it is back")
	errReturned = errors.New("the container's supervisor is back")
)

// Packets calls visit with every packet that the container's firewall logs
// until ctx ends, visit fails or the packets cannot be had any more; the
// caller may then call it again. The kernel gives them to one reader only: they
// come from the container's supervisor, and where it has none, or none for
// longer than one takes to be started again, they are read in the container's
// namespaces, for as long as that is so.
func (c Container) Packets(ctx context.Context, visit func(control.Packet) error) error {
	before, err := c.recorded()
	if err != nil {
		return err
	}
	client, _, err := c.Supervisor(ctx)
	for end := time.Now().Add(returnTimeout); errors.Is(err, ErrDead) && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(returnPause):
			client, _, err = c.Supervisor(ctx)
		}
	}
	switch {
	case err == nil:
		defer client.Close()
		if err = client.Packets(ctx, visit); errors.Is(err, varlink.ErrHungUp) {
			err = errEnded
		}
	case errors.Is(err, ErrNone), errors.Is(err, ErrDead), errors.Is(err, ErrOther):
		alone, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		go c.waitForSupervisor(alone, cancel, before)
		if err = c.readPackets(alone, visit); errors.Is(context.Cause(alone), errReturned) {
			err = nil
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// waitForSupervisor ends the context when the container has another supervisor
// than before, which cannot work while somebody else reads the packets.
func (c Container) waitForSupervisor(ctx context.Context, end context.CancelCauseFunc, before bundle.Supervisor) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(returnPause):
		}
		if s, err := c.recorded(); err == nil && s != before && s.Control != "" && s.Alive() {
			end(errReturned)
			return
		}
	}
}

// readPackets is Packets without a supervisor.
func (c Container) readPackets(ctx context.Context, visit func(control.Packet) error) error {
	req := control.Request{Op: opPackets, Container: c.Name, PID: c.PID, NetNS: c.NetNS}
	ns, err := netns.Open(c.PID)
	if err != nil {
		return err
	}
	defer ns.Close()
	if !netns.NeedsEnter(ns) {
		return packetsOf(ctx, req, visit)
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
	err := packetsOf(ctx, req, func(p control.Packet) error { return enc.Encode(packetLine{Packet: p}) })
	switch {
	case err == nil, ctx.Err() != nil:
		return nil
	case errors.Is(err, ErrBusy):
		return enc.Encode(packetLine{Busy: true})
	}
	return enc.Encode(packetLine{Error: err.Error()})
}

// packetsOf calls visit with every logged packet of the container's network
// namespace, which this process may enter.
func packetsOf(ctx context.Context, req control.Request, visit func(control.Packet) error) error {
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
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		conn.Close()
	})
	defer func() { // whoever comes next finds nobody reading
		if stop() {
			conn.Close()
		} else {
			<-closed
		}
	}()
	var lost uint64
	for err == nil {
		receiveErr := conn.Receive(func(p nflog.Packet) {
			flow, parseErr := nflog.Parse(p.Payload)
			if err != nil || parseErr != nil || flow.Noise() {
				return
			}
			was := lost
			lost = conn.Lost()
			err = visit(control.Packet{
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
