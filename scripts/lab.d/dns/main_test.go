package main

import (
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestAnswer(t *testing.T) {
	s, err := newServer(zoneText)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		qtype uint16
		rcode int
		want  string // the last words of the answer's records
	}{
		{"allowed.test.", dns.TypeA, dns.RcodeSuccess, "203.0.113.10"},
		{"Www.Allowed.TEST.", dns.TypeAAAA, dns.RcodeSuccess, "2001:db8:113::10"},
		{"allowed.test.", dns.TypeTXT, dns.RcodeSuccess, ""},
		{"alias.test.", dns.TypeA, dns.RcodeSuccess, "target.test. 203.0.113.14"},
		{"alias.test.", dns.TypeCNAME, dns.RcodeSuccess, "target.test."},
		{"a.b.wild.test.", dns.TypeA, dns.RcodeSuccess, "203.0.113.15"},
		{"deep.cname.test.", dns.TypeA, dns.RcodeSuccess, "one.hop-a.test. two.hop-b.test. three.hop-c.test. four.hop-d.test. five.hop-e.test. 203.0.113.25"},
		{"rotate.test.", dns.TypeA, dns.RcodeSuccess, "203.0.113.101"},
		{"rotate.test.", dns.TypeA, dns.RcodeSuccess, "203.0.113.102"},
		{"v6only.test.", dns.TypeA, dns.RcodeSuccess, ""},
		{"mixed.test.", dns.TypeA, dns.RcodeSuccess, "203.0.113.17 10.99.0.17"},
		{"_srv._tcp.allowed.test.", dns.TypeSRV, dns.RcodeSuccess, "target.test."},
		{"_tcp.nothing.test.", dns.TypeSRV, dns.RcodeNameError, ""},
		{"c2VjcmV0.tunnel.test.", dns.TypeA, dns.RcodeNameError, ""},
		{"sub.rebind.test.", dns.TypeA, dns.RcodeNameError, ""},
		{"example.com.", dns.TypeA, dns.RcodeNameError, ""},
		{".", dns.TypeNS, dns.RcodeNameError, ""},
	} {
		m := s.answer(new(dns.Msg).SetQuestion(tt.name, tt.qtype))
		var got []string
		for _, rr := range m.Answer {
			words := strings.Fields(rr.String())
			got = append(got, words[len(words)-1])
		}
		if m.Rcode != tt.rcode || strings.Join(got, " ") != tt.want {
			t.Errorf("%s %s: %s, %q; want %q", tt.name, dns.Type(tt.qtype), dns.RcodeToString[m.Rcode], got, tt.want)
		}
		if soa := len(m.Ns) == 1; soa != (len(m.Answer) == 0) {
			t.Errorf("%s: SOA %v", tt.name, soa)
		}
	}
	if n := len(s.answer(new(dns.Msg).SetQuestion("cnameloop.test.", dns.TypeA)).Answer); n != maxAliases {
		t.Errorf("%d aliases in a circle, want %d", n, maxAliases)
	}
	m := s.answer(new(dns.Msg).SetQuestion("big.test.", dns.TypeA))
	if m.Truncate(dns.MinMsgSize); !m.Truncated {
		t.Error("big.test fits a datagram")
	}
}
