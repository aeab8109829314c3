package proxy

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"

	"github.com/terok-ai/terok-box/applets/dnsproxy/upstream"
	"github.com/terok-ai/terok-box/applets/internal/learned"
	"github.com/terok-ai/terok-box/applets/internal/policy"
)

const (
	maxChain   = 16 // aliases behind a name
	maxRecords = 512
	// askTimeout bounds one question upstream, which has bounds of its own.
	askTimeout   = 8 * time.Second
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
	private string // an address that was taken out, and why
	failure string // why there is no answer, for people
	until   time.Time
	size    int // bytes, about
}

// left is the TTL that can be handed out now, rounded up so that what has just
// come has what it came with.
func (r *result) left(now time.Time) uint32 {
	return uint32((max(r.until.Sub(now), 0) + time.Second - 1) / time.Second)
}

// ask asks upstream and never fails otherwise than in the result.
func (e *Engine) ask(k key) *result {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	m, err := e.up.Exchange(ctx, upstream.Query{Name: dns.Fqdn(k.name), Type: k.qtype, DO: k.do, CD: k.cd})
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
// lead on from its name, and the records of its type at their end.
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
		rr = dns.Copy(rr)
		ttl = min(ttl, rr.Header().Ttl)
		r.answer = append(r.answer, rr)
		r.size += dns.Len(rr) * 3 // as it lies in memory
	}
	owner := k.name
	if k.qtype != dns.TypeCNAME {
		for {
			i := slices.IndexFunc(m.Answer, func(rr dns.RR) bool {
				c, ok := rr.(*dns.CNAME)
				return ok && c.Hdr.Class == dns.ClassINET && fold(c.Hdr.Name) == owner
			})
			if i < 0 {
				break
			}
			target := fold(m.Answer[i].(*dns.CNAME).Target)
			if len(r.aliases) == maxChain || slices.Contains(r.aliases, target) || target == k.name {
				return nil, errors.New("its aliases do not end")
			}
			add(m.Answer[i])
			r.aliases = append(r.aliases, target)
			owner = target
		}
	}
	found := false
	for _, rr := range m.Answer {
		h := rr.Header()
		if h.Class != dns.ClassINET || fold(h.Name) != owner || len(r.answer) >= maxRecords {
			continue
		}
		sig, isSig := rr.(*dns.RRSIG)
		switch {
		case h.Rrtype == k.qtype:
		case k.do && isSig && sig.TypeCovered == k.qtype:
		default:
			continue
		}
		found = true
		if addr, ok := address(rr); ok {
			if why := policy.NotPublic(addr); why != "" {
				r.private = addr.String() + " (" + why + ")"
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
			r.soa = dns.Copy(soa)
			life = time.Duration(min(soa.Hdr.Ttl, soa.Minttl)) * time.Second
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

// withoutHints is a record without the addresses that HTTPS and SVCB records
// (RFC 9460 §7.3) carry: clients would use them without asking for them. The
// keys for encrypted names go, too, as they would have to be fetched anew for
// whatever comes of the rest.
func withoutHints(rr dns.RR) dns.RR {
	strip := func(values []dns.SVCBKeyValue) []dns.SVCBKeyValue {
		return slices.DeleteFunc(slices.Clone(values), func(v dns.SVCBKeyValue) bool {
			k := v.Key()
			return k == dns.SVCB_IPV4HINT || k == dns.SVCB_IPV6HINT || k == dns.SVCB_ECHCONFIG || k == dns.SVCB_MANDATORY
		})
	}
	switch rr := rr.(type) {
	case *dns.HTTPS:
		c := *rr
		c.Value = strip(rr.Value)
		return &c
	case *dns.SVCB:
		c := *rr
		c.Value = strip(rr.Value)
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
