// Package reader turns what a container's firewall blocks into questions for
// people and lines of its audit log: packets, which the firewall logs, and
// names, which the process that finds their addresses refuses.
//
//	packets ──► receive ──► resolve ──► emit ──► whoever passes questions on
//	              │            └──────► write ─► audit.jsonl
//	              └► watchers     ▲
//	names ─────────────────► watch
//
// Between them are short queues, and nobody waits for the next one: who has
// too much to do drops, and counts it. What a container can make this process
// do is bounded in time and memory, and so is what it can make people see.
//
// It must never import an engine of containers, nor a package that faces
// people.
package reader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/dossier"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nflog"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/event"
)

const (
	queueSize = 256 // of each of the queues
	// drainTimeout is what the end of Run gets to bring out what is known.
	drainTimeout = 500 * time.Millisecond
	// exitTimeout is what Exit takes at most.
	exitTimeout = 2 * time.Second
	// besides is added to the numbers of questions if another process reads
	// the packets, whose numbers begin at 1.
	besides = 1 << 32
)

// Config is what a Reader works with.
type Config struct {
	Bundle    *bundle.Bundle
	NetNS     *netns.NS         // the container's; open until Run has returned
	Container string            // in events and audit lines: the first 12 digits of its id
	Dossier   map[string]string // as oci.State.Dossier has it, meta_path included
	Audit     bool              // write lines about packets
	Log       *slog.Logger
	// Emit passes an event on; nil says that it was delivered. While it does
	// not return, questions wait in a queue, and what does not fit is asked
	// when it happens again.
	Emit func(event.Event) error
	// Packet gets every logged packet that is no noise, whatever becomes of
	// it. It must not wait. May be nil.
	Packet func(control.Packet)
	First  uint64 // number of the first question; 0: 1
	// Questions is how many are asked at once, which none has to be answered
	// for; 0: as many as a person can look through, less: none ever.
	Questions int
	// Conn gets the packets already; nil: one is opened. It is the Reader's.
	Conn *nflog.Conn
	// Sole has New fail if packets cannot be read, as with nflog.ErrBusy where
	// another process reads them. Else names are asked about until they can.
	Sole bool
}

// Status is counts since the start, and how things are.
type Status struct {
	Packets     uint64 // logged ones that arrived
	Lost        uint64 // that did not
	Asked       uint64 // questions that were delivered
	Undelivered uint64 // that were not, and are asked when it happens again
	Repeated    uint64 // packets and refused names that were asked about a moment ago
	Suppressed  uint64 // destinations that were not asked about because of their number
	Missed      uint64 // refused names that were not heard of because of their number
	Next        uint64 // number of the next question
	Trouble     string // what does not work now, a line each, for people; "" if nothing
}

// part is what can fail while the rest goes on.
type part int

const (
	partPackets part = iota
	partNames
	partEmit
	partAudit
	partDossier
	parts
)

func (p part) String() string {
	return [parts]string{
		"blocked packets are not seen", "refused names are not seen", "questions reach nobody",
		"blocked packets do not get into the audit log", "the dossier is incomplete",
	}[p]
}

// Reader asks about one container.
type Reader struct {
	Config
	dossier dossier.Dossier
	found   chan blocked  // receive → resolve
	asks    chan question // resolve, watch → emit
	lines   chan line     // resolve → write
	loss    chan struct{} // something was lost; has room for one

	packets, lost, asked, undelivered, repeated, missed atomic.Uint64

	mu       sync.Mutex // of what follows
	conn     *nflog.Conn
	closed   bool
	ledger   *ledger
	aliases  aliases
	lookups  bucket
	next     uint64
	unlined  uint64 // of ledger.suppressed[record], what the audit log tells
	troubles [parts]string
}

// New begins to read: from then on no packet is missed.
func New(c Config) (*Reader, error) {
	r := newReader(c)
	if c.Conn != nil {
		r.conn = c.Conn
		return r, nil
	}
	if err := r.open(); err != nil {
		if c.Sole {
			return nil, err
		}
		if errors.Is(err, nflog.ErrBusy) {
			r.next += besides
		}
		r.report(partPackets, err)
	}
	return r, nil
}

// Socket is what gets the packets, for another process to go on with (see
// nflog.Adopt); nil if there is none now.
func (r *Reader) Socket() syscall.Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == nil {
		return nil
	}
	return r.conn
}

// newReader is a Reader that does not read packets yet.
func newReader(c Config) *Reader {
	now := time.Now()
	return &Reader{
		Config: c, dossier: dossier.New(c.Dossier),
		found: make(chan blocked, queueSize), asks: make(chan question, queueSize), lines: make(chan line, queueSize),
		loss: make(chan struct{}, 1), ledger: newLedger(c.Questions, now), aliases: aliases{}, lookups: newBucket(lookupBurst, lookupRate, now),
		next: max(c.First, 1),
	}
}

// Close gives up reading. Run does it, too.
func (r *Reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	if r.conn == nil {
		return nil
	}
	err := r.conn.Close()
	r.conn = nil
	return err
}

// Run asks until ctx ends, which is not an error. It is called once.
func (r *Reader) Run(ctx context.Context) error {
	defer r.Close()
	// What is known is told after ctx has ended, too, but not for long.
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var sources, resolver, ends sync.WaitGroup
	sources.Go(func() { r.receive(ctx) })
	sources.Go(func() { r.watch(ctx) })
	resolver.Go(func() { r.resolve(late) })
	ends.Go(func() { r.emit(late) })
	ends.Go(func() { r.write(late) })
	<-ctx.Done()
	timer := time.AfterFunc(drainTimeout, cancel)
	defer timer.Stop()
	sources.Wait()
	close(r.found)
	resolver.Wait()
	close(r.asks)
	close(r.lines)
	told := make(chan struct{})
	go func() { // Emit may take its time
		ends.Wait()
		close(told)
	}()
	select {
	case <-told:
	case <-late.Done():
	}
	return nil
}

// Exit says that the container, or the interest in it, has ended: "poststop"
// when told so, else "eof". It is called after Run.
func (r *Reader) Exit(reason string) error {
	sent := make(chan error, 1)
	go func() {
		sent <- r.Emit(event.Event{Type: event.ContainerExited, Container: r.Container, Reason: reason})
	}()
	select {
	case err := <-sent:
		return err
	case <-time.After(exitTimeout):
		return fmt.Errorf("the end of container %s: not delivered within %v", r.Container, exitTimeout)
	}
}

// Answered makes room for another question: a person has answered one.
func (r *Reader) Answered() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ledger.buckets[people].give()
}

// Status is how things are.
func (r *Reader) Status() Status {
	s := Status{
		Packets: r.packets.Load(), Lost: r.lost.Load(), Asked: r.asked.Load(), Undelivered: r.undelivered.Load(),
		Repeated: r.repeated.Load(), Missed: r.missed.Load(),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.Suppressed, s.Next = r.ledger.suppressed[people], r.next
	var lines []string
	for p, why := range r.troubles {
		if why != "" {
			lines = append(lines, part(p).String()+": "+why)
		}
	}
	s.Trouble = strings.Join(lines, "\n")
	return s
}

// report notes whether a part works, and logs when that changes.
func (r *Reader) report(p part, err error) {
	why := ""
	if err != nil {
		why = err.Error()
	}
	r.mu.Lock()
	was := r.troubles[p]
	r.troubles[p] = why
	r.mu.Unlock()
	switch {
	case was == "" && err != nil:
		r.Log.Warn(p.String(), "err", err)
	case was != "" && err == nil:
		r.Log.Info("works again", "was", p.String())
	}
}

// id is the id of the next question. The caller holds mu.
func (r *Reader) id() string {
	n := r.next
	r.next++
	return fmt.Sprintf("%s:%d", r.Container, n)
}

// dropped has a loss reported.
func (r *Reader) dropped() {
	select {
	case r.loss <- struct{}{}:
	default:
	}
}

// alias is the name of an address, as far as it is known.
type alias struct {
	name    string
	at      time.Time // when it was looked up
	pending bool      // it is being looked up
}

func (a *alias) key(addr netip.Addr) key {
	if a == nil || a.name == "" {
		return key{addr: addr}
	}
	return key{name: a.name}
}

const (
	// nameAge is for how long the name of an address is not looked up again.
	nameAge = time.Second
	// maxAliases is for how many addresses that is remembered: as many as the
	// rate of lookups admits in a window.
	maxAliases = lookupBurst + lookupRate*int(window/time.Second)
)

// aliases are the addresses that were looked up.
type aliases map[netip.Addr]*alias

// pend notes that an address is being looked up.
func (as aliases) pend(addr netip.Addr, now time.Time) {
	if a := as[addr]; a != nil {
		a.pending = true
		return
	}
	if len(as) >= maxAliases {
		var victim netip.Addr
		for addr, a := range as {
			if !a.pending {
				victim = addr
				if now.Sub(a.at) >= window {
					delete(as, addr)
				}
			}
		}
		if len(as) >= maxAliases {
			delete(as, victim)
		}
	}
	as[addr] = &alias{at: now, pending: true}
}
