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
// first is an inquiry that is under way already, or nil.
func (c *Client) ask(ctx context.Context, s *server, q *question, conf resolve.Config, first *inquiry) (*dns.Msg, error) {
	limit := c.total
	if conf.Timeout > 0 {
		limit = min(conf.Timeout, limit)
	}
	outer := ctx
	ctx, cancel := context.WithTimeoutCause(ctx, limit, ErrTimeout)
	defer cancel()
	start := time.Now()
	edns, mix := s.manners()
	if first != nil {
		start, edns = first.start, first.edns()
	}
	m, err := c.askOnce(ctx, s, q, conf, edns, mix, first)
	if err == nil && edns && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) {
		// RFC 6891 §7
		m, err = c.askOnce(ctx, s, q, conf, false, mix, nil)
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
func (c *Client) askOnce(ctx context.Context, s *server, q *question, conf resolve.Config, edns, mix bool, first *inquiry) (*dns.Msg, error) {
	if conf.TCP {
		start := time.Now()
		m, _, err := c.overTCP(ctx, s, q, edns, mix)
		if err == nil {
			s.answered(time.Since(start))
		}
		return m, err
	}
	m, k, err := c.overUDP(ctx, s, q, conf, edns, mix, first)
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

// overUDP asks with the one packet that it may repeat, unless first has been
// sent already. A kind other than answer, without error, means that TCP has to
// do.
func (c *Client) overUDP(ctx context.Context, s *server, q *question, conf resolve.Config, edns, mix bool, first *inquiry) (*dns.Msg, kind, error) {
	in := first
	if in == nil {
		var err error
		if in, err = c.inquire(s, q, edns, mix, nil); err != nil {
			return nil, stray, err
		}
	}
	defer in.end()
	attempts := defaultAttempts
	if conf.Attempts > 0 {
		attempts = conf.Attempts
	}
	repeat := max(minRepeat, 4*s.usual())
	timer := time.NewTimer(repeat - time.Since(in.start))
	defer timer.Stop()
	results := in.results()
	for sent := 1; ; {
		select {
		case h := <-results:
			if h.err != nil || h.kind == stray {
				return nil, stray, h.err
			}
			s.answered(time.Since(in.start))
			m, k := q.understand(h)
			return m, k, nil
		case <-timer.C:
			if sent == attempts { // until ctx ends
				continue
			}
			if err := in.again(); err != nil {
				return nil, stray, err
			}
			timer.Reset(repeat << sent)
			sent++
		case <-ctx.Done():
			return nil, stray, context.Cause(ctx)
		}
	}
}

// understand is the message that was heard, and what it is if it is none.
func (q *question) understand(h heard) (*dns.Msg, kind) {
	switch h.kind {
	case answer:
		m, err := q.read(h.packet)
		if err != nil {
			return nil, broken
		}
		return m, answer
	case noEDNS:
		return q.formatError(), answer
	}
	return nil, h.kind
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
