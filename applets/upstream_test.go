package applets

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/terok-ai/terok-box/nl/netns"
)

// newUpstream is a name server in this network namespace that knows the
// entries, NAME=ADDRESS[,ADDRESS…], for one second. It writes every question
// into a file.
func newUpstream(t testing.TB, asked string, entries []string) netip.Addr {
	t.Helper()
	known := make(map[string][]string)
	for _, e := range entries {
		name, addrs, _ := strings.Cut(e, "=")
		known[dns.CanonicalName(name)] = strings.Split(addrs, ",")
	}
	file, err := os.OpenFile(asked, os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		question := q.Question[0]
		_, _ = file.WriteString(question.Name + " " + dns.TypeToString[question.Qtype] + "\n")
		addrs, ok := known[dns.CanonicalName(question.Name)]
		if !ok {
			m.Rcode = dns.RcodeNameError
		}
		for _, s := range addrs {
			a, header := netip.MustParseAddr(s), dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: 1}
			switch {
			case a.Is4() && question.Qtype == dns.TypeA:
				m.Answer = append(m.Answer, &dns.A{Hdr: header, A: a.AsSlice()})
			case a.Is6() && question.Qtype == dns.TypeAAAA:
				m.Answer = append(m.Answer, &dns.AAAA{Hdr: header, AAAA: a.AsSlice()})
			}
		}
		_ = w.WriteMsg(m) // the asker may be gone
	})
	at := netip.MustParseAddr("127.0.0.153")
	pc, l, err := listenDNS(at)
	for errors.Is(err, syscall.EADDRINUSE) && at.As4()[3] < 254 { // another script's is there
		at = at.Next()
		pc, l, err = listenDNS(at)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: l, Handler: handler}} {
		up, done := make(chan struct{}), make(chan error, 1)
		s.NotifyStartedFunc = func() { close(up) }
		go func() { done <- s.ActivateAndServe() }()
		<-up
		t.Cleanup(func() {
			if err := errors.Join(s.Shutdown(), <-done); err != nil {
				t.Error(err)
			}
		})
	}
	return at
}

// lookup asks the name server at 127.0.0.1 of a namespace for both kinds of
// addresses and returns them in order, with the worse of the response codes.
func lookup(ns *netns.NS, name string) (addrs []string, rcode int, err error) {
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		var r *dns.Msg
		err := ns.Do(func() (err error) {
			conn, err := net.Dial("udp", "127.0.0.1:53")
			if err != nil {
				return err
			}
			defer conn.Close()
			client := dns.Client{Timeout: 5 * time.Second}
			r, _, err = client.ExchangeWithConn(new(dns.Msg).SetQuestion(dns.Fqdn(name), kind), &dns.Conn{Conn: conn})
			return err
		})
		if err != nil {
			return nil, 0, err
		}
		rcode = max(rcode, r.Rcode)
		for _, rr := range r.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				addrs = append(addrs, rr.A.String())
			case *dns.AAAA:
				addrs = append(addrs, rr.AAAA.String())
			}
		}
	}
	slices.Sort(addrs)
	return addrs, rcode, nil
}

// listenDNS listens on both ports that a name server has.
func listenDNS(at netip.Addr) (net.PacketConn, net.Listener, error) {
	to := netip.AddrPortFrom(at, 53)
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(to))
	if err != nil {
		return nil, nil, err
	}
	pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(to))
	if err != nil {
		return nil, nil, errors.Join(err, l.Close())
	}
	return pc, l, nil
}
