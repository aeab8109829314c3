package resolve

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

const (
	udpSize   = 1232 // bytes of an answer over UDP that we ask for, DNS flag day 2020: no fragments
	bufSize   = 4096 // bytes that we read at most, for servers that take no notice
	maxChain  = 16   // CNAMEs from a question to its addresses
	minRounds = 3    // questions about one name and type that are sent, if need be
)

// ask finds the addresses of one family. A question goes to one server after
// the other, and to the first ones again, evenly over the time that is left,
// or at once if a server says that it cannot answer. Whichever answers first
// is right: a late answer to an earlier question counts, too.
func (l *lookup) ask(ctx context.Context, name string, qtype uint16) answer {
	if len(l.servers) == 0 {
		return answer{err: errors.New("no name server to ask")}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the questions still open

	type reply struct {
		server int
		answer
	}
	n := len(l.servers)
	rounds := max(n, minRounds)
	pause := max(l.perName/time.Duration(rounds), time.Millisecond)
	replies := make(chan reply, rounds)
	first := int(l.best.Load()) % n
	sent, open := 0, 0
	send := func() {
		i := (first + sent) % n
		sent, open = sent+1, open+1
		go func() {
			replies <- reply{i, exchange(ctx, l.servers[i], name, qtype)}
		}()
	}
	send()
	tick := time.NewTicker(pause)
	defer tick.Stop()
	var failure error
	for open > 0 && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			if sent < rounds {
				send()
			}
		case r := <-replies:
			open--
			if definite(r.err) {
				l.best.Store(int32(r.server))
				return r.answer
			}
			if ctx.Err() != nil {
				continue // r.err only says that we gave up
			}
			failure = r.err
			// The same server would say the same again at once: only the
			// others are worth it.
			if sent < n {
				send()
				tick.Reset(pause)
			}
		}
	}
	return answer{err: also(failure, context.Cause(ctx))}
}

// definite says whether no other server needs to be asked.
func definite(err error) bool {
	return err == nil || errors.Is(err, ErrNoSuchName) || errors.Is(err, ErrNoAddresses)
}

// exchange asks one server, over TCP if the answer does not fit, without
// EDNS if the server does not understand it.
func exchange(ctx context.Context, server netip.AddrPort, name string, qtype uint16) answer {
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), qtype)
	q.SetEdns0(udpSize, false)
	m, err := over(ctx, "udp", server, q)
	if err == nil && q.IsEdns0() != nil && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) {
		q.Extra = nil
		q.Id = dns.Id()
		m, err = over(ctx, "udp", server, q)
	}
	if err == nil && m.Truncated {
		q.Id = dns.Id()
		m, err = over(ctx, "tcp", server, q)
		if err == nil && m.Truncated {
			err = fmt.Errorf("%w: it cuts its answer off over TCP, too", ErrServer)
		}
	}
	if err != nil {
		return answer{err: fmt.Errorf("name server %v: %w", server, err)}
	}
	a := addresses(m, q.Question[0])
	if errors.Is(a.err, ErrServer) {
		a.err = fmt.Errorf("name server %v: %w", server, a.err)
	}
	return a
}

// over sends one question over a new socket, whose port the kernel chooses
// at random, and waits for what answers it. Over UDP everything else that
// arrives is passed over, because anybody may have sent it.
func over(ctx context.Context, network string, server netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()

	out, err := q.Pack()
	if err != nil {
		return nil, err
	}
	if network == "tcp" {
		out = append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)
	}
	if _, err := c.Write(out); err != nil {
		return nil, err
	}
	buf := make([]byte, bufSize)
	if network == "tcp" {
		if _, err := io.ReadFull(c, buf[:2]); err != nil {
			return nil, err
		}
		buf = make([]byte, binary.BigEndian.Uint16(buf))
		if _, err := io.ReadFull(c, buf); err != nil {
			return nil, err
		}
		m, err := parse(buf, q)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrServer, err)
		}
		return m, nil
	}
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if m, err := parse(buf[:n], q); err == nil {
			return m, nil
		}
	}
}

// parse reads an answer to q.
func parse(b []byte, q *dns.Msg) (*dns.Msg, error) {
	m := new(dns.Msg)
	// The header comes first: the rest is worth nothing if it is not ours,
	// and a truncated answer need not be readable to the end.
	if len(b) < 12 || binary.BigEndian.Uint16(b) != q.Id {
		return nil, errors.New("not the answer to the question asked")
	}
	err := m.Unpack(b)
	if err != nil && !m.Truncated {
		return nil, errors.New("answer not readable")
	}
	if !m.Response || m.Opcode != dns.OpcodeQuery {
		return nil, errors.New("not the answer to the question asked")
	}
	// A server that finds fault with the question need not repeat it.
	if len(m.Question) == 0 && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) {
		return m, nil
	}
	want := q.Question[0]
	if len(m.Question) != 1 || m.Question[0].Qtype != want.Qtype || m.Question[0].Qclass != want.Qclass ||
		dns.CanonicalName(m.Question[0].Name) != dns.CanonicalName(want.Name) {
		return nil, errors.New("not the answer to the question asked")
	}
	return m, nil
}

// addresses follows an answer from its question, through CNAMEs that it
// contains itself, to addresses. Records of other owners are passed over.
func addresses(m *dns.Msg, q dns.Question) answer {
	switch m.Rcode {
	case dns.RcodeSuccess:
	case dns.RcodeNameError:
		return answer{err: ErrNoSuchName}
	default:
		word, ok := dns.RcodeToString[m.Rcode]
		if !ok {
			word = fmt.Sprintf("code %d", m.Rcode)
		}
		return answer{err: fmt.Errorf("%w: %s", ErrServer, word)}
	}
	type target struct {
		name string
		ttl  uint32
	}
	alias := make(map[string]target)
	found := make(map[string]answer)
	for _, rr := range m.Answer {
		h := rr.Header()
		if h.Class != dns.ClassINET {
			continue
		}
		owner := dns.CanonicalName(h.Name)
		var addr netip.Addr
		switch rr := rr.(type) {
		case *dns.CNAME:
			if _, ok := alias[owner]; !ok {
				alias[owner] = target{dns.CanonicalName(rr.Target), h.Ttl}
			}
			continue
		case *dns.A:
			if q.Qtype == dns.TypeA {
				addr, _ = netip.AddrFromSlice(rr.A.To4())
			}
		case *dns.AAAA:
			if q.Qtype == dns.TypeAAAA {
				addr, _ = netip.AddrFromSlice(rr.AAAA)
			}
		}
		if addr.IsValid() {
			a, known := found[owner]
			if ttl := seconds(h.Ttl); !known || ttl < a.ttl {
				a.ttl = ttl
			}
			a.addrs = append(a.addrs, addr)
			found[owner] = a
		}
	}
	name := dns.CanonicalName(q.Name)
	ttl := seconds(maxTTL)
	for range maxChain + 1 {
		if a, ok := found[name]; ok {
			a.ttl = min(a.ttl, ttl)
			return a
		}
		next, ok := alias[name]
		if !ok {
			return answer{err: ErrNoAddresses}
		}
		name, ttl = next.name, min(ttl, seconds(next.ttl))
	}
	return answer{err: fmt.Errorf("%w: more than %d CNAMEs, or a loop of them", ErrNoAddresses, maxChain)}
}

// maxTTL is the greatest time to live of a record, in seconds; what is more
// means none at all (RFC 2181 §8).
const maxTTL = 1<<31 - 1

func seconds(ttl uint32) time.Duration {
	if ttl > maxTTL {
		ttl = 0
	}
	return time.Duration(ttl) * time.Second
}
