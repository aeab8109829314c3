package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/terok-ai/terok-box/applets/internal/learned"
	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/wire/names"
)

const (
	headerSize = 12
	optSize    = 11   // of an OPT record without options, RFC 6891 §6.1.2
	maxName    = 255  // bytes of a name on the wire, RFC 1035 §2.3.4
	minUDP     = 512  // bytes that everybody takes, RFC 1035 §4.2.1
	maxUDP     = 1232 // that go anywhere in one piece, and what we ask upstream for
	maxQuery   = 4096 // bytes of a question; more is nothing but padding
	maxText    = 200  // bytes of an extended error's text
	maxChanges = 3    // of the lists, or Forgets, while one question is answered
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

// key is what the answer to it depends on.
func (q question) key() key { return key{q.name, q.qtype, q.do, q.cd} }

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
	if !wellFormed(packet) || m.Unpack(packet) != nil || len(m.Question) != 1 {
		return fail(dns.RcodeFormatError)
	}
	q = question{msg: m, name: fold(m.Question[0].Name), qtype: m.Question[0].Qtype, cd: m.CheckingDisabled, size: minUDP}
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
	case q.qtype == dns.TypeOPT, q.qtype == dns.TypeTSIG, q.qtype == dns.TypeTKEY, q.qtype == 0:
		return q, q.reply(dns.RcodeFormatError), false
	}
	return q, nil, true
}

// wellFormed reports whether a packet is one question and perhaps an OPT
// record, and nothing else. The library is content with less than the header
// announces and with more than it does.
func wellFormed(p []byte) bool {
	count := func(at int) uint16 { return binary.BigEndian.Uint16(p[at:]) }
	if count(4) != 1 || count(6) != 0 || count(8) != 0 || count(10) > 1 {
		return false
	}
	off := headerSize
	for { // the first name in a message has nothing to point to
		if off >= len(p) || p[off] > 63 {
			return false
		}
		n := int(p[off])
		off += n + 1
		if n == 0 {
			break
		}
	}
	if off-headerSize > maxName || off+4 > len(p) {
		return false
	}
	opt := p[off+4:]
	if count(10) == 0 {
		return len(opt) == 0
	}
	if len(opt) < optSize || opt[0] != 0 || binary.BigEndian.Uint16(opt[1:]) != dns.TypeOPT {
		return false
	}
	return int(binary.BigEndian.Uint16(opt[9:])) == len(opt)-optSize
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
func (q question) pack(m *dns.Msg) []byte { return q.packInto(nil, m) }

// packInto is pack, into a buffer if that is large enough.
func (q question) packInto(buf []byte, m *dns.Msg) []byte {
	m.Compress = true
	m.Truncate(max(q.size, minUDP))
	b, err := m.PackBuffer(buf)
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
func (e *Engine) decide(l *lists, q question) (*dns.Msg, verdict) {
	if m, why := special(q); m != nil {
		if why != "" {
			e.report(q, names.Denied, why, nil)
		} else {
			e.report(q, names.Allowed, "", nil)
		}
		return m, local
	}
	refuse := func(what string, info uint16, why, text string) (*dns.Msg, verdict) {
		e.report(q, what, why, nil)
		return q.because(dns.RcodeRefused, info, text), local
	}
	if meta(q.qtype) {
		e.report(q, names.Denied, "not a type of records that are looked up", nil)
		return q.reply(dns.RcodeRefused), local
	}
	if !e.enforcing() {
		const why = "in quarantine: nothing is asked for"
		return refuse(names.Denied, dns.ExtendedErrorCodeBlocked, why, why)
	}
	d := l.names.Decide(q.name)
	switch {
	case d.Denied:
		why := "denied by " + shown(d.Entry())
		return refuse(names.Denied, dns.ExtendedErrorCodeBlocked, why, why)
	case !d.Allowed && !l.resolve:
		const why = "not on this container's list"
		return refuse(names.Refused, dns.ExtendedErrorCodeProhibited, why, advice(why, e.r.Spec.Container, q.name))
	case q.qtype == dns.TypeANY: // RFC 8482 §4.2
		m := q.reply(dns.RcodeSuccess)
		m.Answer = []dns.RR{&dns.HINFO{
			Hdr: dns.RR_Header{Name: q.msg.Question[0].Name, Rrtype: dns.TypeHINFO, Class: dns.ClassINET, Ttl: anyTTL}, Cpu: "RFC8482",
		}}
		if d.Allowed {
			e.report(q, names.Allowed, "", nil)
		} else {
			e.report(q, names.Resolved, "", nil)
		}
		return m, local
	case d.Allowed:
		return nil, open
	}
	return nil, seen
}

// advice says what an operator can do about a name. People type it as it is:
// a name that is more to a shell than a name is not in it.
func advice(why, container, name string) string {
	if policy.ContainerName(container) != nil {
		return why
	}
	if t, err := policy.ParseTarget(name); err != nil || t.String() != name || !t.IsName() {
		return why
	}
	text := fmt.Sprintf("%s; terok-shield allow %s %s", why, container, name)
	if len(text) > maxText {
		return why
	}
	return text
}

// meta reports whether a type is one of questions and not of records (RFC 6895
// §3.1), such as a transfer; ANY has an answer of its own.
func meta(qtype uint16) bool { return qtype >= 128 && qtype <= 255 && qtype != dns.TypeANY }

func under(name, zone string) bool { return name == zone || strings.HasSuffix(name, "."+zone) }

// nowhere says why a name means nothing to name servers, and is no business of
// theirs: RFC 6761 §6.4, RFC 7686 §2.
func nowhere(name string) string {
	switch {
	case under(name, "invalid"):
		return "names under invalid do not exist"
	case under(name, "onion"):
		return "names under onion are not looked up"
	}
	return ""
}

// special answers for names that no name server is to be asked for; why is set
// if that is a refusal. localhost is RFC 6761 §6.3.
func special(q question) (m *dns.Msg, why string) {
	if why := nowhere(q.name); why != "" {
		return q.reply(dns.RcodeNameError), why
	}
	if !under(q.name, "localhost") {
		return nil, ""
	}
	m = q.reply(dns.RcodeSuccess)
	h := dns.RR_Header{Name: q.msg.Question[0].Name, Rrtype: q.qtype, Class: dns.ClassINET, Ttl: localTTL}
	switch q.qtype {
	case dns.TypeA:
		m.Answer = []dns.RR{&dns.A{Hdr: h, A: []byte{127, 0, 0, 1}}}
	case dns.TypeAAAA:
		m.Answer = []dns.RR{&dns.AAAA{Hdr: h, AAAA: netip.IPv6Loopback().AsSlice()}}
	}
	return m, ""
}

// reachable reports whether a client that is sent on to a name can look it up.
func (l *lists) reachable(name string) bool {
	d := l.names.Decide(name)
	return nowhere(name) == "" && (d.Allowed || l.resolve && !d.Denied)
}

// leave has an answer leave, in the life in which its addresses were learned,
// and waits for nothing.
type leave func(m *dns.Msg, life learned.Life)

// resolve answers a question that upstream is asked for: it calls done with the
// answer, before it returns or in another goroutine, for which others wait
// meanwhile. changes is how often that was begun before.
func (e *Engine) resolve(q question, changes int, done leave) {
	k, life := q.key(), e.set.Life() // before the cache, which forgets first
	res := e.cache.get(k, func(found func(*result)) { e.ask(k, found) }, func(res *result) { e.settle(q, res, life, changes, done) })
	if res != nil {
		e.cached.Add(1)
		e.settle(q, res, life, changes, done)
	}
}

// settle calls done with the answer that a result leads to, once its addresses
// are open. Meanwhile the lists may change: those count that are in force when
// the answer leaves. If what was learned is forgotten, the question is asked
// anew. changes is how often either has happened.
func (e *Engine) settle(q question, res *result, life learned.Life, changes int, done leave) {
	if changes >= maxChanges {
		const why = "what is allowed, or was learned, keeps changing"
		e.report(q, names.Failed, why, nil)
		done(q.because(dns.RcodeServerFailure, dns.ExtendedErrorCodeOther, why), life)
		return
	}
	l := e.lists.Load()
	m, v := e.decide(l, q)
	if m == nil {
		m = e.objection(q, l, res)
	}
	if m != nil {
		done(m, life)
		return
	}
	then := func(err error) {
		if errors.Is(err, learned.ErrForgotten) {
			e.resolve(q, changes+1, done)
			return
		}
		m, ok := e.answer(q, l, v, res, err)
		switch {
		case !ok:
			e.settle(q, res, life, changes+1, done)
		case !e.set.Leave(life, func() { done(m, life) }):
			e.resolve(q, changes+1, done)
		}
	}
	if v == seen || len(res.addrs) == 0 {
		then(nil)
		return
	}
	answers := make([]learned.Answer, len(res.addrs))
	ttl := time.Duration(res.left(time.Now())) * time.Second
	for i, a := range res.addrs {
		answers[i] = learned.Answer{Addr: a, TTL: ttl}
	}
	e.set.LearnThen(life, q.name, answers, then)
}

// atOnce is the answer from the cache where that waits for nobody: its
// addresses are in the firewall for long enough. It is nil if there is more to
// do. life was the present one before.
func (e *Engine) atOnce(q question, l *lists, v verdict, life learned.Life) *dns.Msg {
	res := e.cache.peek(q.key())
	if res == nil || len(res.hidden) > 0 { // about which files say more
		return nil
	}
	m := e.objection(q, l, res)
	if m == nil {
		if v == open && len(res.addrs) > 0 && !e.set.TryLearn(life, q.name, res.addrs, time.Duration(res.left(time.Now()))*time.Second) {
			return nil
		}
		var ok bool
		if m, ok = e.answer(q, l, v, res, nil); !ok {
			return nil
		}
	}
	e.cached.Add(1)
	return m
}

// objection is the answer of a result whose addresses are not to be opened,
// or nil.
func (e *Engine) objection(q question, l *lists, res *result) *dns.Msg {
	if res.failure != "" {
		e.report(q, names.Failed, res.failure, nil)
		return q.because(dns.RcodeServerFailure, dns.ExtendedErrorCodeNetworkError, res.failure)
	}
	for _, alias := range res.aliases {
		if d := l.names.Decide(alias); d.Denied {
			why := fmt.Sprintf("an alias of %s, which is denied", shown(alias))
			e.report(q, names.Denied, why, nil)
			return q.because(dns.RcodeRefused, dns.ExtendedErrorCodeBlocked, why)
		}
	}
	return nil
}

// answer is the answer by some lists, whose addresses are open unless err says
// why not. ok is false if the lists are not in force any more.
func (e *Engine) answer(q question, l *lists, v verdict, res *result, err error) (m *dns.Msg, ok bool) {
	switch {
	case err == nil:
	case errors.Is(err, learned.ErrNotAllowed): // since a moment ago
		return nil, false
	default:
		why := "its addresses cannot be opened"
		if errors.Is(err, nft.ErrNotLearning) {
			why = "the firewall takes no addresses now"
			e.look()
		} else {
			e.r.Log.Error("open the addresses of a name", "name", shown(q.name), "err", err)
		}
		e.report(q, names.Failed, why, nil)
		return q.because(dns.RcodeServerFailure, dns.ExtendedErrorCodeOther, why), true
	}
	if v == seen && len(res.addrs) > 0 {
		e.set.See(q.name, res.addrs)
	}
	ttl := res.left(time.Now())

	explicit, private := e.sortOut(res)
	if len(explicit) > 0 {
		addrs := make([]netip.Addr, len(explicit))
		for i, h := range explicit {
			addrs[i] = h.addr
		}
		e.set.See(q.name, addrs)
	}
	if e.lists.Load() != l {
		return nil, false
	}

	m = q.reply(res.rcode)
	for _, rr := range res.answer {
		if other := leads(rr); other != "" && !l.reachable(other) {
			continue
		}
		rr = dns.Copy(rr)
		rr.Header().Ttl = min(ttl, rr.Header().Ttl)
		m.Answer = append(m.Answer, rr)
	}
	for _, h := range explicit {
		rr := dns.Copy(h.rr)
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
	if private.IsValid() {
		why := fmt.Sprintf("answers with the private address %s (%s), which no name opens; allow the address itself", private, policy.NotPublic(private))
		if opt := m.IsEdns0(); opt != nil {
			opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeFiltered, ExtraText: why[:min(len(why), maxText)]})
		}
		if len(res.addrs)+len(explicit) == 0 {
			e.report(q, names.Failed, why, nil)
			return m, true
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
		for _, h := range explicit {
			addresses = append(addresses, h.addr.String())
		}
	}
	e.report(q, what, "", addresses)
	return m, true
}
