package proxy

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/terok-ai/terok-box/applets/dnsproxy/upstream"
	"github.com/terok-ai/terok-box/applets/internal/learned"
	"github.com/terok-ai/terok-box/applets/internal/policy"
)

const (
	maxChain     = 16 // aliases behind a name
	maxRecords   = 512
	maxNegative  = 5 * time.Minute // of "there is no such name", RFC 2308 §5
	noSOA        = 5 * time.Second // of that without a word on how long
	failureCache = time.Second     // RFC 2308 §7.1 allows up to five minutes
)

// result is what upstream says about a name, freed of what is no answer to
// the question. It does not change.
type result struct {
	rcode   int
	answer  []dns.RR // aliases in order, then the records of the asked type
	soa     dns.RR   // of a negative answer, or nil
	aliases []string // names that the aliases lead to, folded
	addrs   []netip.Addr
	hidden  []hidden // records with addresses that no name opens
	failure string   // why there is no answer, for people
	until   time.Time
	size    int // bytes, about
}

// hidden is a record with an address that no name opens.
type hidden struct {
	rr   dns.RR
	addr netip.Addr
}

// left is the TTL that can be handed out now, rounded up so that what has just
// come has what it came with.
func (r *result) left(now time.Time) uint32 {
	return uint32((max(r.until.Sub(now), 0) + time.Second - 1) / time.Second)
}

// ask asks upstream. It never fails otherwise than in the result, with which
// it calls found.
func (e *Engine) ask(k key, found func(*result)) {
	q := upstream.Query{Name: dns.Fqdn(k.name), Type: k.qtype, DO: k.do, CD: k.cd}
	// Others may come to wait for it, so it ends when upstream says so, not
	// with the one who asks first.
	e.up.Ask(context.Background(), q, func(m *dns.Msg, err error) { found(e.judge(m, err, k)) })
}

// judge is the result of what upstream says.
func (e *Engine) judge(m *dns.Msg, err error, k key) *result {
	now := time.Now()
	if err != nil {
		e.r.Log.Debug("no answer", "name", shown(k.name), "err", err)
		return &result{rcode: dns.RcodeServerFailure, failure: "the host's name servers do not answer", until: now.Add(failureCache)}
	}
	r, err := distil(m, k, now)
	if err != nil {
		return &result{rcode: dns.RcodeServerFailure, failure: err.Error(), until: now.Add(failureCache)}
	}
	return r
}

// distil takes from an answer what belongs to the question: the aliases that
// lead on from its name, and the records of its type at their end. The message
// is of no more use: its records are the result's.
func distil(m *dns.Msg, k key, now time.Time) (*result, error) {
	r := &result{rcode: m.Rcode}
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return nil, errors.New("the host's name server says " + dns.RcodeToString[m.Rcode])
	}
	if len(m.Answer) > maxRecords*4 {
		return nil, errors.New("an answer of too many records")
	}
	ttl := uint32(learned.MaxTTL / time.Second)
	add := func(rr dns.RR) {
		rr.Header().Ttl = lifetime(rr.Header().Ttl)
		ttl = min(ttl, rr.Header().Ttl)
		r.answer = append(r.answer, rr)
		r.size += dns.Len(rr) * 3 // as it lies in memory
	}
	owner := k.name
	if k.qtype != dns.TypeCNAME {
		for {
			alias := renamed(m, owner)
			if alias == nil {
				break
			}
			target := fold(alias.Target)
			if len(r.aliases) == maxChain || slices.Contains(r.aliases, target) || target == k.name {
				return nil, errors.New("its aliases do not end")
			}
			add(alias)
			r.aliases = append(r.aliases, target)
			owner = target
		}
	}
	found := false
	for _, rr := range m.Answer {
		h := rr.Header()
		if m.Rcode != dns.RcodeSuccess || h.Class != dns.ClassINET || fold(h.Name) != owner || len(r.answer)+len(r.hidden) >= maxRecords {
			continue
		}
		sig, isSig := rr.(*dns.RRSIG)
		switch {
		case h.Rrtype == k.qtype:
		case k.do && isSig && sig.TypeCovered == k.qtype && !service(k.qtype): // which is not as it was signed
		default:
			continue
		}
		found = true
		if addr, ok := address(rr); ok {
			if policy.NotPublic(addr) != "" {
				rr.Header().Ttl = lifetime(rr.Header().Ttl)
				ttl = min(ttl, rr.Header().Ttl)
				r.hidden = append(r.hidden, hidden{rr, addr})
				r.size += dns.Len(rr) * 3
				continue
			}
			r.addrs = append(r.addrs, addr)
		}
		if rr = withoutHints(rr); rr != nil {
			add(rr)
		}
	}
	life := time.Duration(ttl) * time.Second
	if !found {
		life = noSOA
		for _, rr := range m.Ns {
			soa, ok := rr.(*dns.SOA)
			if !ok || soa.Hdr.Class != dns.ClassINET || !dns.IsSubDomain(soa.Hdr.Name, dns.Fqdn(owner)) {
				continue
			}
			r.soa = soa
			life = time.Duration(min(lifetime(soa.Hdr.Ttl), lifetime(soa.Minttl))) * time.Second
			r.size += dns.Len(soa) * 3
			break
		}
		life = min(life, maxNegative, time.Duration(ttl)*time.Second)
	}
	r.until = now.Add(life)
	return r, nil
}

// address is the address that a record holds.
func address(rr dns.RR) (netip.Addr, bool) {
	var ip []byte
	switch rr := rr.(type) {
	case *dns.A:
		ip = rr.A.To4()
	case *dns.AAAA:
		ip = rr.AAAA.To16()
	default:
		return netip.Addr{}, false
	}
	addr, _ := netip.AddrFromSlice(ip)
	return addr, true // which policy.NotPublic refuses if it is none
}

// lifetime is a TTL; one that is negative as a signed number is 0 (RFC 2181 §8).
func lifetime(ttl uint32) uint32 {
	if ttl >= 1<<31 {
		return 0
	}
	return ttl
}

// renamed is the alias of a name, folded, in an answer: there as such, or what
// follows from a name above it that is renamed with everything below (RFC 6672
// §3.1).
func renamed(m *dns.Msg, name string) *dns.CNAME {
	for _, rr := range m.Answer {
		if c, ok := rr.(*dns.CNAME); ok && c.Hdr.Class == dns.ClassINET && fold(c.Hdr.Name) == name {
			return c
		}
	}
	whole := dns.Fqdn(name)
	for _, rr := range m.Answer {
		d, ok := rr.(*dns.DNAME)
		if !ok || d.Hdr.Class != dns.ClassINET {
			continue
		}
		owner := dns.CanonicalName(d.Hdr.Name)
		if owner == "." || owner == whole || !dns.IsSubDomain(owner, whole) {
			continue
		}
		target := whole[:len(whole)-len(owner)] + strings.TrimPrefix(dns.CanonicalName(d.Target), ".")
		if !packable(target) {
			continue
		}
		return &dns.CNAME{
			Hdr:    dns.RR_Header{Name: whole, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: d.Hdr.Ttl},
			Target: target,
		}
	}
	return nil
}

// packable reports whether a name is short enough to be sent.
func packable(name string) bool {
	var b [4 * maxName]byte
	end, err := dns.PackDomainName(name, b[:], 0, nil, false)
	return err == nil && end <= maxName
}

// service reports whether records of a type say how a service is reached.
func service(qtype uint16) bool { return qtype == dns.TypeHTTPS || qtype == dns.TypeSVCB }

// withoutHints is an HTTPS or SVCB record (RFC 9460) with nothing but the
// parameters that are known to lead to no address: clients would use the hints
// of §7.3 without asking for the addresses, and keys for encrypted names hide
// whom they talk to. It is nil if the record is not to be used by those who do
// not have a parameter that was taken out (§8).
func withoutHints(rr dns.RR) dns.RR {
	strip := func(s *dns.SVCB) bool {
		if s.Priority == 0 { // an alias, §2.4.2
			s.Value = nil
			return true
		}
		kept := func(k dns.SVCBKey) bool {
			return k == dns.SVCB_MANDATORY || k == dns.SVCB_ALPN || k == dns.SVCB_NO_DEFAULT_ALPN || k == dns.SVCB_PORT
		}
		for _, v := range s.Value {
			if v, ok := v.(*dns.SVCBMandatory); ok && slices.ContainsFunc(v.Code, func(k dns.SVCBKey) bool { return !kept(k) }) {
				return false
			}
		}
		s.Value = slices.DeleteFunc(slices.Clone(s.Value), func(v dns.SVCBKeyValue) bool { return !kept(v.Key()) })
		return true
	}
	switch rr := rr.(type) {
	case *dns.HTTPS:
		c := *rr
		if !strip(&c.SVCB) {
			return nil
		}
		return &c
	case *dns.SVCB:
		c := *rr
		if !strip(&c) {
			return nil
		}
		return &c
	}
	return rr
}

// leads is the name of another host that a client goes on with, folded; ""
// if there is none.
func leads(rr dns.RR) string {
	switch rr := rr.(type) {
	case *dns.HTTPS:
		return otherTarget(rr.SVCB)
	case *dns.SVCB:
		return otherTarget(*rr)
	}
	return ""
}

func otherTarget(rr dns.SVCB) string {
	if target := fold(rr.Target); target != "" && target != fold(rr.Hdr.Name) {
		return target
	}
	return ""
}
