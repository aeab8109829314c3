package reader

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"time"

	"github.com/terok-ai/terok-box/nl/nflog"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/control"
)

// Pauses before reading packets is tried again: it fails as long as another
// process reads them.
const (
	openFirst   = time.Second
	openLongest = 10 * time.Second
)

// blocked is a packet to ask about.
type blocked struct {
	dst   netip.Addr
	proto uint8
	port  uint16
	at    time.Time
}

// open begins to read packets.
func (r *Reader) open() error {
	var conn *nflog.Conn
	if err := r.NetNS.Do(func() (err error) { conn, err = nflog.Open(ruleset.Group); return err }); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.Join(os.ErrClosed, conn.Close())
	}
	r.conn = conn
	return nil
}

// receive reads packets until ctx ends.
func (r *Reader) receive(ctx context.Context) {
	for pause := openFirst; ; {
		r.mu.Lock()
		conn := r.conn
		r.mu.Unlock()
		if conn != nil {
			pause = openFirst
			r.report(partPackets, nil)
			err := r.receiveFrom(ctx, conn)
			if ctx.Err() != nil {
				return
			}
			r.report(partPackets, err)
			r.mu.Lock()
			r.conn = nil
			r.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, openLongest)
		if err := r.open(); err != nil {
			r.report(partPackets, err)
		}
	}
}

// receiveFrom reads from one connection until that fails, or ctx ends; then
// what was logged by then is read.
func (r *Reader) receiveFrom(ctx context.Context, conn *nflog.Conn) error {
	defer conn.Close()
	interrupted := make(chan error, 1)
	defer context.AfterFunc(ctx, func() {
		err := conn.Interrupt()
		if err != nil {
			conn.Close()
		}
		interrupted <- err
	})()
	var seen uint64 // of those lost
	take := func(p nflog.Packet) {
		lost := conn.Lost() - seen
		if lost > 0 {
			seen += lost
			r.lost.Add(lost)
			r.dropped()
		}
		r.packet(p, lost, time.Now())
	}
	for {
		err := conn.Receive(take)
		switch {
		case errors.Is(err, nflog.ErrInterrupted):
			if err := <-interrupted; err != nil {
				return err
			}
			return conn.Rest(take)
		case err != nil:
			return err
		}
	}
}

// packet looks at a packet. There may be 100,000 a second: it allocates only
// for what nobody was told of, as far as that is admitted.
func (r *Reader) packet(p nflog.Packet, lost uint64, now time.Time) {
	r.packets.Add(1)
	flow, err := nflog.Parse(p.Payload)
	if err != nil || flow.Noise() {
		return
	}
	if r.Packet != nil {
		r.Packet(control.Packet{
			Time: now.UTC(), Prefix: p.Prefix, Dest: flow.Dst, Proto: flow.Proto, Port: flow.DstPort, Lost: int64(lost),
		})
	}
	if p.Prefix == string(ruleset.LogBlocked) {
		r.blocked(blocked{flow.Dst, flow.Proto, flow.DstPort, now})
	}
}

// blocked has a packet asked about, unless its destination is known.
func (r *Reader) blocked(b blocked) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.aliases[b.dst]
	k := a.key(b.dst)
	known := r.known(k, b.at)
	switch {
	case a != nil && a.pending, a != nil && known && b.at.Sub(a.at) < nameAge:
		r.repeated.Add(1)
		return
	case !known && !r.admits(b.at):
	case r.lookups.take(b.at):
		select {
		case r.found <- b:
			r.aliases.pend(b.dst, b.at)
			return
		default:
		}
	}
	if known {
		r.repeated.Add(1)
		return
	}
	r.suppress(k, b.at)
}

// known reports whether everybody was told of a destination. The caller holds
// mu, as for the following.
func (r *Reader) known(k key, now time.Time) bool {
	return r.ledger.recent(k, people, now) && (!r.Audit || r.ledger.recent(k, record, now))
}

// admits reports whether anybody can be told of one more destination.
func (r *Reader) admits(now time.Time) bool {
	return r.ledger.buckets[people].ready(now) || r.Audit && r.ledger.buckets[record].ready(now)
}

// suppress counts a destination that nobody is told of.
func (r *Reader) suppress(k key, now time.Time) {
	for s := range sinks {
		if (s != record || r.Audit) && !r.ledger.recent(k, s, now) {
			r.ledger.suppress(k, s, now)
		}
	}
}
