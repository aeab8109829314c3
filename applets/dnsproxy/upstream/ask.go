package upstream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/miekg/dns"

	"github.com/terok-ai/terok-box/applets/internal/resolve"
)

const (
	maxStrays       = 32 // packets that may answer a question wrongly before it is asked over TCP
	defaultAttempts = 3  // packets that ask one server
	minRepeat       = 500 * time.Millisecond
)

// ask asks one server, in the way that it understands, and notes how it is.
func (c *Client) ask(ctx context.Context, s *server, q *question, conf resolve.Config) (*dns.Msg, error) {
	limit := c.total
	if conf.Timeout > 0 {
		limit = min(conf.Timeout, limit)
	}
	outer := ctx
	ctx, cancel := context.WithTimeoutCause(ctx, limit, ErrTimeout)
	defer cancel()
	start := time.Now()
	edns, mix := s.manners()
	m, err := c.askOnce(ctx, s, q, conf, edns, mix)
	if err == nil && edns && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) {
		// RFC 6891 §7
		m, err = c.askOnce(ctx, s, q, conf, false, mix)
		if err == nil && m.Rcode != dns.RcodeFormatError && m.Rcode != dns.RcodeNotImplemented {
			s.without(true, false)
		}
	}
	switch {
	case err == nil:
		s.judged(refuses(m))
	case outer.Err() != nil && !errors.Is(context.Cause(outer), ErrTimeout):
		s.lost(time.Since(start))
		err = context.Cause(outer)
	default:
		s.failed()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	}
	return m, err
}

// askOnce asks over UDP, and over TCP if the answer does not fit or cannot be
// trusted.
func (c *Client) askOnce(ctx context.Context, s *server, q *question, conf resolve.Config, edns, mix bool) (*dns.Msg, error) {
	if conf.TCP {
		start := time.Now()
		m, _, err := c.overTCP(ctx, s, q, edns, mix)
		if err == nil {
			s.answered(time.Since(start))
		}
		return m, err
	}
	m, k, err := c.overUDP(ctx, s, q, conf, edns, mix)
	if err != nil || k == answer {
		return m, err
	}
	m, same, err := c.overTCP(ctx, s, q, edns, mix)
	if err != nil {
		return nil, fmt.Errorf("over TCP: %w", err)
	}
	// Over TCP it is the server that answers. If it does not preserve case
	// there either, it does not; if it does, somebody else answered before.
	if k == otherCase && !same {
		s.without(false, true)
	}
	return m, nil
}

// formatError stands for an answer that has nothing but this code.
func (q *question) formatError() *dns.Msg {
	return &dns.Msg{
		MsgHdr:   dns.MsgHdr{Response: true, Rcode: dns.RcodeFormatError},
		Question: []dns.Question{{Name: q.Name, Qtype: q.Type, Qclass: dns.ClassINET}},
	}
}

// overUDP asks over a socket of its own, whose port the kernel chooses at
// random and which gets packets of the server's address only. The question
// is repeated as it is: a late answer counts, and nobody gets more to guess.
// A kind other than answer, without error, means that TCP has to do.
func (c *Client) overUDP(ctx context.Context, s *server, q *question, conf resolve.Config, edns, mix bool) (*dns.Msg, kind, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(s.addr))
	if err != nil {
		return nil, stray, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()

	sent := q.packet(edns, mix)
	attempts := defaultAttempts
	if conf.Attempts > 0 {
		attempts = conf.Attempts
	}
	repeat := max(minRepeat, 4*s.usual())
	buf := c.buffers.Get().(*[maxUDP + 1]byte)
	defer c.buffers.Put(buf)
	start := time.Now()
	strays := 0
	for i := range attempts {
		if _, err := conn.Write(sent); err != nil {
			return nil, stray, err
		}
		var deadline time.Time // the last time: until ctx ends
		if i < attempts-1 {
			deadline = time.Now().Add(repeat << i)
		}
		conn.SetReadDeadline(deadline)
		if ctx.Err() != nil { // before that, and its deadline is overwritten
			return nil, stray, context.Cause(ctx)
		}
		for {
			n, err := conn.Read(buf[:])
			if err != nil {
				var late net.Error
				if ctx.Err() == nil && errors.As(err, &late) && late.Timeout() {
					break
				}
				return nil, stray, err
			}
			k := q.check(sent, buf[:n])
			var m *dns.Msg
			switch {
			case k == answer && n > maxUDP:
				k = cut
			case k == answer:
				if m, err = q.read(buf[:n]); err != nil {
					k = broken
				}
			case k == noEDNS:
				m, k = q.formatError(), answer
			case k == stray:
				c.strays.Add(1)
				if strays++; strays <= maxStrays {
					continue
				}
				c.warn(s)
			}
			if k != stray {
				s.answered(time.Since(start))
			}
			return m, k, nil
		}
	}
	return nil, stray, ErrTimeout
}

// warn tells, once a minute, that somebody may be guessing answers.
func (c *Client) warn(s *server) {
	now, last := time.Now().Unix(), c.warned.Load()
	if now-last >= 60 && c.warned.CompareAndSwap(last, now) {
		c.log.Warn("packets that seem to be of a name server do not answer what it was asked: somebody may be forging answers; it is asked over TCP",
			"server", s.addr, "packets", c.strays.Load())
	}
}

var errCut = errors.New("it cuts its answer off over TCP, too")

// overTCP asks over a connection of its own. Who answers on it is the server:
// same says whether it preserves case.
func (c *Client) overTCP(ctx context.Context, s *server, q *question, edns, mix bool) (m *dns.Msg, same bool, err error) {
	select {
	case c.tcp <- struct{}{}:
		defer func() { <-c.tcp }()
	case <-ctx.Done():
		return nil, false, context.Cause(ctx)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", s.addr.String())
	if err != nil {
		return nil, false, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()

	sent := q.packet(edns, mix)
	framed := append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(sent)), uint16(len(sent))), sent...) // RFC 1035 §4.2.2
	if _, err := conn.Write(framed); err != nil {
		return nil, false, err
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, false, closedEarly(err)
	}
	b := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(conn, b); err != nil {
		return nil, false, closedEarly(err)
	}
	switch k := q.check(sent, b); k {
	case answer, otherCase:
		if b[2]&2 != 0 {
			return nil, false, errCut
		}
		m, err = q.read(b)
		return m, k == answer, err
	case noEDNS:
		return q.formatError(), true, nil
	case cut:
		return nil, false, errCut
	}
	return nil, false, errors.New("it answers something else")
}

// closedEarly says what the end of a connection means.
func closedEarly(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it closes the connection instead of answering")
	}
	return err
}
