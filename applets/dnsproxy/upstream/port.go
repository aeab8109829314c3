package upstream

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// A UDP socket of its own for every question would cost more than all the rest
// of the question. So many questions share some:
//
//   - A server is asked over at most maxPorts of them at a time. As long as
//     there are fewer, the next question opens another one; otherwise it goes
//     over any of them.
//   - None is used for more than portUses questions, nor for longer than
//     portAge. Who asks up to maxPorts questions in that time uses each of them
//     once.
//
// That forging an answer stays as hard as it is with a socket for each follows
// from this. The kernel chooses each port at random and takes packets of the
// server's address only. An answer has to come to the one port that its
// question left from, with the question's id and its case of letters; that the
// port has other questions does not make any of these easier to guess, and
// there is never more than one open question about a name that a guess could
// hit, for questions about the same are asked once. What is left is that a
// port that was found out, as by ICMP errors that others miss, is of use for
// longer. But packets that fit nothing are counted for each port, not for each
// question: after maxStrays of them, of 65,536 ids times two for each letter,
// the port is given up, and whoever still waits there asks over TCP. And there
// are fewer open ports to be found than with one for each question.
const (
	maxPorts = 16
	portUses = 64
	portAge  = 200 * time.Millisecond
)

// port is a UDP socket that is connected to a server.
//
//	new questions ──(portUses, portAge, a failure)──► no more ──(all answered or given up)──► closed
type port struct {
	c     *Client
	s     *server
	conn  *net.UDPConn
	until time.Time // for new questions

	mu      sync.Mutex
	retired bool // gets no new ones
	ids     [portUses]uint16
	asked   [portUses]*inquiry // also those that are over: an answer may come twice
	n       int                // of them
	open    int                // that are not over
	strays  int
}

// inquiry is a question on its way to a server.
type inquiry struct {
	q     *question
	port  *port
	sent  []byte
	start time.Time
	wake  func() // called once there is something to hear, unless it is nil

	// Guarded by the port's lock.
	over   bool       // it gets no answer any more
	told   bool       // heard is something
	heard  heard      // what was heard
	listen chan heard // gets it; has room for it
}

// heard is what became of an inquiry.
type heard struct {
	kind   kind
	packet []byte // for an answer
	err    error
}

// inquire sends a question to a server. Unless wake is nil, it is called in
// another goroutine once there is something to hear. If nothing was heard, end
// is to be called in the end.
func (c *Client) inquire(s *server, q *question, edns, mix bool, wake func()) (*inquiry, error) {
	in := &inquiry{q: q, sent: q.packet(edns, mix), start: time.Now(), wake: wake}
	for {
		p, err := c.pick(s)
		if err != nil {
			return nil, err
		}
		if p.add(in) {
			break
		}
	}
	if _, err := in.port.conn.Write(in.sent); err != nil {
		in.port.retire()
		in.end()
		return nil, err
	}
	return in, nil
}

// since is how long ago it was sent; 0 if in is nil.
func (in *inquiry) since() time.Duration {
	if in == nil {
		return 0
	}
	return time.Since(in.start)
}

// edns reports whether it was asked with EDNS.
func (in *inquiry) edns() bool { return len(in.sent) > in.q.end }

// again sends it once more as it is: a late answer counts, and nobody gets
// more to guess.
func (in *inquiry) again() error {
	_, err := in.port.conn.Write(in.sent)
	return err
}

// result is what was heard; wake has been called.
func (in *inquiry) result() heard {
	in.port.mu.Lock()
	defer in.port.mu.Unlock()
	return in.heard
}

// results is where it will be, or is already. It is called once.
func (in *inquiry) results() <-chan heard {
	in.port.mu.Lock()
	defer in.port.mu.Unlock()
	in.listen = make(chan heard, 1)
	if in.told {
		in.listen <- in.heard
	}
	return in.listen
}

// end gives it up, if nothing was heard yet.
func (in *inquiry) end() {
	p := in.port
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conclude(in)
	p.closeUnused()
}

// pick is a socket for a question to a server.
func (c *Client) pick(s *server) (*port, error) {
	now := time.Now()
	s.mu.Lock()
	s.ports = slices.DeleteFunc(s.ports, func(p *port) bool { return !now.Before(p.until) })
	if len(s.ports) >= maxPorts {
		p := s.ports[rand.IntN(len(s.ports))]
		s.mu.Unlock()
		return p, nil
	}
	s.mu.Unlock()
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(s.addr))
	if err != nil {
		return nil, err
	}
	p := &port{c: c, s: s, conn: conn, until: now.Add(portAge)}
	if err := conn.SetReadDeadline(p.until); err != nil {
		conn.Close()
		return nil, err
	}
	c.mu.Lock()
	c.ports[p] = struct{}{}
	c.mu.Unlock()
	s.mu.Lock()
	s.ports = append(s.ports, p)
	s.mu.Unlock()
	c.open.Add(1) // whoever asks keeps it from being zero
	go p.listen()
	return p, nil
}

// add makes an inquiry one of the port's. It reports whether there is room.
func (p *port) add(in *inquiry) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.retired {
		return false
	}
	for slices.Contains(p.ids[:p.n], in.id()) {
		in.q.number(in.sent)
	}
	p.ids[p.n], p.asked[p.n] = in.id(), in
	p.n++
	p.open++
	in.port = p
	if p.n == portUses {
		p.refuse()
	}
	return true
}

// id is the one of the question as it was sent.
func (in *inquiry) id() uint16 { return uint16(in.sent[0])<<8 | uint16(in.sent[1]) }

// retire has the port get no more questions.
func (p *port) retire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse()
	p.closeUnused()
}

// failPorts ends all inquiries.
func (c *Client) failPorts(err error) {
	c.mu.Lock()
	all := slices.Collect(maps.Keys(c.ports))
	c.mu.Unlock()
	for _, p := range all {
		p.fail(heard{err: err})
	}
}

// refuse is retire but for closing it. The lock is held.
func (p *port) refuse() {
	if p.retired {
		return
	}
	p.retired = true
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.s.ports = slices.DeleteFunc(p.s.ports, func(x *port) bool { return x == p })
}

// closeUnused closes it, which ends listen, if nobody needs it any more. The
// lock is held.
func (p *port) closeUnused() {
	if p.retired && p.open == 0 {
		p.conn.Close()
	}
}

// conclude reports whether the inquiry was not over yet. The lock is held.
func (p *port) conclude(in *inquiry) bool {
	if in.over {
		return false
	}
	in.over = true
	p.open--
	return true
}

// tell notes what is to be heard. The lock is held; wake is to be called
// without it.
func (in *inquiry) tell(h heard) {
	in.told, in.heard = true, h
	if in.listen != nil {
		in.listen <- h
	}
}

// listen passes answers on to those who wait for them.
func (p *port) listen() {
	defer p.c.open.Done()
	defer func() {
		p.c.mu.Lock()
		delete(p.c.ports, p)
		p.c.mu.Unlock()
	}()
	buf := p.c.buffers.Get().(*[maxUDP + 1]byte)
	defer p.c.buffers.Put(buf)
	for {
		n, err := p.conn.Read(buf[:])
		switch {
		case err == nil:
			p.take(buf[:n])
		case errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			_ = p.conn.SetReadDeadline(time.Time{}) // for those that are not answered yet
			p.retire()
		default: // such as "connection refused"
			p.fail(heard{err: err})
		}
	}
}

// take finds the inquiry that a packet is the answer to.
func (p *port) take(b []byte) {
	p.mu.Lock()
	k := stray
	var in *inquiry
	if len(b) >= headerLen {
		if i := slices.Index(p.ids[:p.n], uint16(b[0])<<8|uint16(b[1])); i >= 0 {
			in = p.asked[i]
			k = in.q.check(in.sent, b)
		}
	}
	if k == stray {
		p.strays++
		many := p.strays > maxStrays
		p.mu.Unlock()
		p.c.strays.Add(1)
		if many {
			p.c.warn(p.s)
			p.fail(heard{kind: stray})
		}
		return
	}
	h := heard{kind: k}
	switch {
	case k == answer && len(b) > maxUDP:
		h.kind = cut
	case k == answer:
		h.packet = bytes.Clone(b)
	}
	first := p.conclude(in) // else it is a second answer, to a question that was repeated
	if first {
		in.tell(h)
	}
	p.closeUnused()
	p.mu.Unlock()
	if first && in.wake != nil {
		in.wake()
	}
}

// fail ends all that is open.
func (p *port) fail(h heard) {
	p.mu.Lock()
	p.refuse()
	var failed []*inquiry
	for _, in := range p.asked[:p.n] {
		if p.conclude(in) {
			in.tell(h)
			failed = append(failed, in)
		}
	}
	p.closeUnused()
	p.mu.Unlock()
	for _, in := range failed {
		if in.wake != nil {
			in.wake()
		}
	}
}
