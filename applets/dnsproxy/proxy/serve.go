package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/applets/internal/learned"
)

const (
	// maxWaiting and maxReady are how many questions are worked on at a time:
	// those that wait for upstream, and those that at most wait for the
	// firewall and shall not wait for the others.
	maxWaiting = 448
	maxReady   = 64
	maxConns   = 64 // TCP connections
	// answerTime bounds one question over TCP, from its arrival.
	answerTime = 10 * time.Second
	idleTime   = 10 * time.Second // between questions on one connection, RFC 7766 §6.2.3
	// readTime is for the rest of a question that has begun, writeTime for an
	// answer.
	readTime  = 3 * time.Second
	writeTime = 3 * time.Second
	// pause after an error that may pass, such as no memory.
	pause = 10 * time.Millisecond
)

// serveUDP reads questions until ctx ends. What needs no one else is answered
// here, in order: it costs so little that a flood of it leaves room for the
// others.
func (e *Engine) serveUDP(ctx context.Context) error {
	// One byte more than a question may have, and the answers.
	buf, out := make([]byte, maxQuery+1), make([]byte, maxUDP+1)
	for {
		n, from, err := e.r.UDP.ReadFromUDPAddrPort(buf)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("the UDP socket: %w", err)
		case err != nil: // of an answer sent before, perhaps
			time.Sleep(pause)
			continue
		}
		q, m, ok := read(buf[:n], false)
		if ok {
			var v verdict
			l, life := e.lists.Load(), e.set.Life()
			if m, v = e.decide(l, q); m == nil {
				m = e.atOnce(q, l, v, life)
				if m == nil || !e.set.Leave(life, func() { e.sendUDP(q.packInto(out, m), from) }) {
					e.later(ctx, q, from)
				}
				continue
			}
		}
		if m != nil {
			e.sendUDP(q.packInto(out, m), from)
		}
	}
}

// pools are where a question can take its slot, of which those in the cache
// have some to themselves; a nil one never has any.
func (e *Engine) pools(q question) (own, all chan struct{}) {
	if e.cache.has(q.key()) {
		return e.ready, e.slots
	}
	return nil, e.slots
}

// later answers a question that has to wait, if not too many wait already.
func (e *Engine) later(ctx context.Context, q question, from netip.AddrPort) {
	own, slots := e.pools(q)
	select {
	case own <- struct{}{}:
		slots = own
	case slots <- struct{}{}:
	default:
		return // as if it had been lost: it will be asked again
	}
	e.resolve(q, 0, func(m *dns.Msg, _ learned.Life) {
		<-slots
		if ctx.Err() == nil { // else whoever serves next is asked again
			e.sendUDP(q.pack(m), from)
		}
	})
}

func (e *Engine) sendUDP(b []byte, to netip.AddrPort) {
	if b == nil {
		return
	}
	// It blocks for no time worth mentioning: loopback has no queue. An asker
	// who has gone is no error of ours.
	if _, err := e.r.UDP.WriteToUDPAddrPort(b, to); err != nil && !errors.Is(err, net.ErrClosed) {
		e.r.Log.Debug("send an answer", "err", err)
	}
}

// conns are the connections that are served. The one that was idle longest is
// the first to go; those that wait for an answer stay.
type conns struct {
	mu  sync.Mutex
	all map[net.Conn]*activity
}

type activity struct {
	busy bool // a question is not answered yet
	at   time.Time
}

// add reports whether there is room for a connection.
func (c *conns) add(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.all) >= maxConns {
		var oldest net.Conn
		for x, a := range c.all {
			if !a.busy && (oldest == nil || a.at.Before(c.all[oldest].at)) {
				oldest = x
			}
		}
		if oldest == nil {
			return false
		}
		oldest.Close()
		delete(c.all, oldest)
	}
	c.all[conn] = &activity{at: time.Now()}
	return true
}

func (c *conns) used(conn net.Conn, busy bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a, ok := c.all[conn]; ok {
		a.busy, a.at = busy, time.Now()
	}
}

func (c *conns) remove(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.all, conn)
}

// serveTCP accepts connections until ctx ends, and returns when the last one
// is closed.
func (e *Engine) serveTCP(ctx context.Context) error {
	all := conns{all: map[net.Conn]*activity{}}
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := e.r.TCP.AcceptTCP()
		switch {
		case ctx.Err() != nil:
			if conn != nil {
				conn.Close()
			}
			return ctx.Err()
		case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("the TCP socket: %w", err)
		case err != nil: // too many files, or one that was closed already
			time.Sleep(pause)
			continue
		}
		if !all.add(conn) {
			conn.Close()
			continue
		}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			defer all.remove(conn)
			defer conn.Close()
			e.converse(ctx, conn, func(busy bool) { all.used(conn, busy) })
		})
	}
}

// converse answers the questions of one connection in their order.
func (e *Engine) converse(ctx context.Context, conn *net.TCPConn, used func(busy bool)) {
	buf := make([]byte, maxQuery+1)
	for {
		_ = conn.SetDeadline(time.Now().Add(idleTime)) // fails when it is closed
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:1]); err != nil {
			return
		}
		_ = conn.SetDeadline(time.Now().Add(readTime))
		if _, err := io.ReadFull(conn, size[1:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(size[:]))
		if n < headerSize || n > maxQuery {
			return
		}
		if _, err := io.ReadFull(conn, buf[:n]); err != nil {
			return
		}
		used(true)
		q, m, ok := read(buf[:n], true)
		for begun := false; !begun; {
			life := e.set.Life()
			if ok {
				m, life = e.wait(ctx, q)
			}
			if m == nil {
				return
			}
			b := q.pack(m)
			if b == nil {
				return
			}
			var err error
			if begun, err = e.sendTCP(conn, life, append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
				return
			}
		}
		used(false)
	}
}

// sendTCP has an answer leave in the life in which its addresses were learned.
// begun is false if that was over before; if it ends later, that is an error.
func (e *Engine) sendTCP(conn *net.TCPConn, life learned.Life, b []byte) (begun bool, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false, err
	}
	_ = conn.SetDeadline(time.Now().Add(writeTime))
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		for len(b) > 0 {
			var n int
			var err error
			if !e.set.Leave(life, func() { n, err = unix.Write(int(fd), b) }) { // which does not block
				if begun {
					failed = learned.ErrForgotten
				}
				return true
			}
			switch {
			case err == nil:
				begun, b = true, b[n:]
			case errors.Is(err, unix.EAGAIN):
				return false
			case !errors.Is(err, unix.EINTR):
				failed = err
				return true
			}
		}
		return true
	})
	return begun, errors.Join(err, failed)
}

// wait answers a question however long it takes, up to answerTime.
func (e *Engine) wait(ctx context.Context, q question) (*dns.Msg, learned.Life) {
	if m, _ := e.decide(e.lists.Load(), q); m != nil {
		return m, e.set.Life()
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	own, slots := e.pools(q)
	select {
	case own <- struct{}{}:
		defer func() { <-own }()
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return nil, 0
	}
	type answer struct {
		m    *dns.Msg
		life learned.Life
	}
	done := make(chan answer, 1)
	e.resolve(q, 0, func(m *dns.Msg, life learned.Life) { done <- answer{m, life} })
	select {
	case a := <-done:
		return a.m, a.life
	case <-ctx.Done():
		return nil, 0
	}
}
