package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/terok-ai/terok-box/applets/internal/learned"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/wire/names"
)

const (
	headerSize = 12
	minUDP     = 512  // bytes that everybody takes, RFC 1035 §4.2.1
	maxUDP     = 1232 // that go anywhere in one piece, and what we ask upstream for
	maxQuery   = 4096 // bytes of a question; more is nothing but padding
	maxText    = 200  // bytes of an extended error's text
	localTTL   = 60
	anyTTL     = 300
)

// question is what the container asks.
type question struct {
	msg    *dns.Msg
	name   string // folded
	qtype  uint16
	do, cd bool
	size   int // bytes that the asker takes
}

// address reports whether it asks for addresses.
func (q question) address() bool { return q.qtype == dns.TypeA || q.qtype == dns.TypeAAAA }

// read reads a question. What is none gets an answer, if any, at once.
func read(packet []byte, tcp bool) (q question, answer *dns.Msg, ok bool) {
	if len(packet) < headerSize || packet[2]&0x80 != 0 { // an answer is never answered
		return q, nil, false
	}
	fail := func(rcode int) (question, *dns.Msg, bool) {
		m := &dns.Msg{MsgHdr: dns.MsgHdr{
			Id: uint16(packet[0])<<8 | uint16(packet[1]), Response: true, Opcode: int(packet[2] >> 3 & 0xf),
			RecursionDesired: packet[2]&1 != 0, RecursionAvailable: true, Rcode: rcode,
		}}
		return question{}, m, false
	}
	switch {
	case packet[2]>>3&0xf != dns.OpcodeQuery:
		return fail(dns.RcodeNotImplemented)
	case len(packet) > maxQuery, packet[2]&0x02 != 0: // truncated
		return fail(dns.RcodeFormatError)
	}
	m := new(dns.Msg)
	if err := m.Unpack(packet); err != nil || len(m.Question) != 1 || len(m.Answer) > 0 || len(m.Ns) > 0 || len(m.Extra) > 2 {
		return fail(dns.RcodeFormatError)
	}
	q = question{msg: m, name: fold(m.Question[0].Name), qtype: m.Question[0].Qtype, cd: m.CheckingDisabled, size: minUDP}
	opts := 0
	for _, rr := range m.Extra {
		if rr.Header().Rrtype == dns.TypeOPT {
			opts++
		}
	}
	if opts > 1 {
		return fail(dns.RcodeFormatError)
	}
	if opt := m.IsEdns0(); opt != nil {
		if opt.Version() != 0 {
			a := q.reply(dns.RcodeSuccess)
			a.Rcode = dns.RcodeBadVers
			return q, a, false
		}
		q.do = opt.Do()
		q.size = min(max(int(opt.UDPSize()), minUDP), maxUDP)
	}
	if tcp {
		q.size = dns.MaxMsgSize
	}
	switch {
	case m.Question[0].Qclass != dns.ClassINET:
		return q, q.reply(dns.RcodeRefused), false
	case q.qtype == dns.TypeAXFR, q.qtype == dns.TypeIXFR, q.qtype == dns.TypeMAILA, q.qtype == dns.TypeMAILB:
		return q, q.reply(dns.RcodeRefused), false
	case q.qtype == dns.TypeOPT, q.qtype == dns.TypeTSIG, q.qtype == dns.TypeTKEY, q.qtype == 0:
		return q, q.reply(dns.RcodeFormatError), false
	}
	return q, nil, true
}

// reply is an answer without records.
func (q question) reply(rcode int) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q.msg)
	m.RecursionAvailable = true
	m.Rcode = rcode
	if q.msg.IsEdns0() != nil {
		m.SetEdns0(maxUDP, q.do)
	}
	return m
}

// because is an answer without records that says why (RFC 8914), if the asker
// understands that.
func (q question) because(rcode int, info uint16, text string) *dns.Msg {
	m := q.reply(rcode)
	if opt := m.IsEdns0(); opt != nil {
		if len(text) > maxText {
			text = text[:maxText]
		}
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: info, ExtraText: text})
	}
	return m
}

// pack is the message on the wire, cut to what the asker takes; nil if it
// cannot be sent.
func (q question) pack(m *dns.Msg) []byte {
	m.Compress = true
	m.Truncate(max(q.size, minUDP))
	b, err := m.Pack()
	if err != nil && q.msg != nil { // because of records from outside; none should be so
		b, err = q.reply(dns.RcodeServerFailure).Pack()
	}
	if err != nil {
		return nil
	}
	return b
}

// verdict is what the lists say about a question.
type verdict uint8

const (
	open  verdict = iota // to be asked upstream, its addresses opened
	seen                 // to be asked upstream, and nothing opened
	local                // answered here
)

// decide answers at once what upstream is not asked for.
func (e *Engine) decide(q question) (*dns.Msg, verdict) {
	if !e.enforcing() {
		const why = "in quarantine: nothing is asked for"
		e.report(q, names.Refused, why, nil)
		return q.because(dns.RcodeRefused, dns.ExtendedErrorCodeBlocked, why), local
	}
	if m := special(q); m != nil {
		return m, local
	}
	l := e.lists.Load()
	d := l.names.Decide(q.name)
	switch {
	case d.Denied:
		why := "denied by " + shown(d.Entry())
		e.report(q, names.Refused, why, nil)
		return q.because(dns.RcodeRefused, dns.ExtendedErrorCodeBlocked, why), local
	case !d.Allowed && !l.resolve:
		const why = "not on this container's list"
		e.report(q, names.Refused, why, nil)
		text := fmt.Sprintf("%s; terok-shield allow %s %s", why, e.r.Spec.Container, q.name)
		if len(text) > maxText {
			text = why
		}
		return q.because(dns.RcodeRefused, dns.ExtendedErrorCodeProhibited, text), local
	case q.qtype == dns.TypeANY: // RFC 8482 §4.2
		m := q.reply(dns.RcodeSuccess)
		m.Answer = []dns.RR{&dns.HINFO{
			Hdr: dns.RR_Header{Name: q.msg.Question[0].Name, Rrtype: dns.TypeHINFO, Class: dns.ClassINET, Ttl: anyTTL}, Cpu: "RFC8482",
		}}
		return m, local
	case d.Allowed:
		return nil, open
	}
	return nil, seen
}

// special answers for names that no name server is to be asked for: RFC 6761
// §6.3 and §6.4, RFC 7686 §2.
func special(q question) *dns.Msg {
	under := func(zone string) bool { return q.name == zone || strings.HasSuffix(q.name, "."+zone) }
	switch {
	case under("localhost"):
		m := q.reply(dns.RcodeSuccess)
		h := dns.RR_Header{Name: q.msg.Question[0].Name, Rrtype: q.qtype, Class: dns.ClassINET, Ttl: localTTL}
		switch q.qtype {
		case dns.TypeA:
			m.Answer = []dns.RR{&dns.A{Hdr: h, A: []byte{127, 0, 0, 1}}}
		case dns.TypeAAAA:
			m.Answer = []dns.RR{&dns.AAAA{Hdr: h, AAAA: netip.IPv6Loopback().AsSlice()}}
		}
		return m
	case under("invalid"), under("onion"):
		return q.reply(dns.RcodeNameError)
	}
	return nil
}

// resolve answers a question that upstream is asked for.
func (e *Engine) resolve(ctx context.Context, q question, v verdict) *dns.Msg {
	k := key{q.name, q.qtype, q.do, q.cd}
	res, hit, err := e.cache.get(ctx, k, func() *result { return e.ask(k) })
	if err != nil {
		return nil // nobody waits for it
	}
	if hit {
		e.cached.Add(1)
	}
	if res.failure != "" {
		e.report(q, names.Failed, res.failure, nil)
		return q.because(dns.RcodeServerFailure, dns.ExtendedErrorCodeNetworkError, res.failure)
	}
	l := e.lists.Load()
	for _, alias := range res.aliases {
		if d := l.names.Decide(alias); d.Denied {
			why := fmt.Sprintf("an alias of %s, which is denied", shown(alias))
			e.report(q, names.Refused, why, nil)
			return q.because(dns.RcodeRefused, dns.ExtendedErrorCodeBlocked, why)
		}
	}
	now := time.Now()
	ttl := res.left(now)
	if len(res.addrs) > 0 && v == seen {
		e.set.See(q.name, res.addrs)
	} else if len(res.addrs) > 0 {
		answers := make([]learned.Answer, len(res.addrs))
		for i, a := range res.addrs {
			answers[i] = learned.Answer{Addr: a, TTL: time.Duration(ttl) * time.Second}
		}
		switch err := e.set.Learn(ctx, q.name, answers); {
		case err == nil:
		case errors.Is(err, learned.ErrNotAllowed): // since a moment ago
			const why = "no longer on this container's list"
			e.report(q, names.Refused, why, nil)
			return q.because(dns.RcodeRefused, dns.ExtendedErrorCodeProhibited, why)
		default:
			why := "its addresses cannot be opened"
			if errors.Is(err, nft.ErrNotLearning) {
				why = "the firewall takes no addresses now"
				e.look()
			} else {
				e.r.Log.Error("open the addresses of a name", "name", shown(q.name), "err", err)
			}
			e.report(q, names.Failed, why, nil)
			return q.because(dns.RcodeServerFailure, dns.ExtendedErrorCodeOther, why)
		}
	}

	m := q.reply(res.rcode)
	for _, rr := range res.answer {
		if other := leads(rr); other != "" && v == open && !l.names.Decide(other).Allowed {
			continue
		}
		rr = dns.Copy(rr)
		rr.Header().Ttl = min(ttl, rr.Header().Ttl)
		m.Answer = append(m.Answer, rr)
	}
	if len(m.Answer) > 0 && fold(m.Answer[0].Header().Name) == q.name {
		m.Answer[0].Header().Name = q.msg.Question[0].Name // as it was asked
	}
	if res.soa != nil {
		soa := dns.Copy(res.soa)
		soa.Header().Ttl = min(ttl, soa.Header().Ttl)
		m.Ns = []dns.RR{soa}
	}
	if res.private != "" {
		why := "answers with the private address " + res.private + ", which no name opens; allow the address itself"
		if opt := m.IsEdns0(); opt != nil {
			opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeFiltered, ExtraText: why[:min(len(why), maxText)]})
		}
		if len(res.addrs) == 0 {
			e.report(q, names.Failed, why, nil)
			return m
		}
	}
	what := names.Allowed
	if v == seen {
		what = names.Resolved
	}
	var addresses []string
	if !e.watchers.none() {
		for _, a := range res.addrs {
			addresses = append(addresses, a.String())
		}
	}
	e.report(q, what, "", addresses)
	return m
}
