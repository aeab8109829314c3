// Command labdns is the name server of the lab's internet. It answers for the
// names in a zone file and a few whose answers are made up; everything else
// does not exist. Each question becomes a line of its log:
//
//	TIME CLIENT NAME TYPE
//
// It is for the lab only and must never import the product, whose behaviour it
// is there to test.
package main

import (
	_ "embed"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

//go:embed names.zone
var zoneText string

const (
	ttl        = 60  // seconds, of records that do not change
	maxAliases = 16  // in one answer
	bigRecords = 200 // of big.test
	slowAnswer = 2 * time.Second
	udpSize    = 1232
)

// key is a name, in lower case and with its final dot, and a type.
type key struct {
	name  string
	qtype uint16
}

type server struct {
	zone   map[key][]dns.RR
	exists map[string]bool
	log    *os.File // opened for appending, so that it can be truncated meanwhile
	turn   atomic.Uint32
}

func newServer(zone string) (*server, error) {
	s := &server{zone: map[key][]dns.RR{}, exists: map[string]bool{}}
	p := dns.NewZoneParser(strings.NewReader(zone), "test.", "names.zone")
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		h := rr.Header()
		name := dns.CanonicalName(h.Name)
		s.zone[key{name, h.Rrtype}] = append(s.zone[key{name, h.Rrtype}], rr)
		s.exists[name] = true
	}
	return s, p.Err()
}

// records are those of a name and type; exists is false for a name that has
// none of any type.
func (s *server) records(name string, qtype uint16) (rrs []dns.RR, exists bool) {
	address := func(i int) dns.RR {
		a := netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})
		return &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl}, A: a.AsSlice()}
	}
	switch name {
	case "rotate.test.": // another address with every answer
		if qtype == dns.TypeA {
			rr := address(100 + int(s.turn.Add(1)%100))
			rr.Header().Ttl = 1
			rrs = append(rrs, rr)
		}
		return rrs, true
	case "big.test.": // more than a datagram holds
		for i := range bigRecords {
			if qtype == dns.TypeA {
				rrs = append(rrs, address(i+1))
			}
		}
		return rrs, true
	case "slow.test.":
		if qtype == dns.TypeA {
			rrs = append(rrs, address(26))
		}
		return rrs, true
	}
	if s.exists[name] {
		return s.ofType(name, qtype), true
	}
	for parent, ok := cut(name); ok; parent, ok = cut(parent) {
		if s.exists["*."+parent] {
			for _, rr := range s.ofType("*."+parent, qtype) {
				rr = dns.Copy(rr)
				rr.Header().Name = name
				rrs = append(rrs, rr)
			}
			return rrs, true
		}
		if s.exists[parent] {
			break
		}
	}
	return nil, false
}

// cut is a name without its first label; ok is false if none is left.
func cut(name string) (rest string, ok bool) {
	i, end := dns.NextLabel(name, 0)
	return name[i:], !end
}

// ofType are a name's records of a type, or its alias.
func (s *server) ofType(name string, qtype uint16) []dns.RR {
	if rrs := s.zone[key{name, qtype}]; rrs != nil {
		return rrs
	}
	return s.zone[key{name, dns.TypeCNAME}]
}

// answer is the response to a question, aliases followed.
func (s *server) answer(req *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(req)
	m.RecursionAvailable = true
	q := req.Question[0]
	name := dns.CanonicalName(q.Name)
	for range maxAliases {
		rrs, exists := s.records(name, q.Qtype)
		if !exists {
			m.Rcode = dns.RcodeNameError
		}
		m.Answer = append(m.Answer, rrs...)
		alias := ""
		for _, rr := range rrs {
			if c, ok := rr.(*dns.CNAME); ok && q.Qtype != dns.TypeCNAME {
				alias = dns.CanonicalName(c.Target)
			}
		}
		if len(rrs) == 0 {
			m.Ns = []dns.RR{&dns.SOA{
				Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
				Ns:  "ns.test.", Mbox: "nobody.test.", Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ttl,
			}}
		}
		if alias == "" {
			break
		}
		name = alias
	}
	return m
}

func (s *server) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	if len(req.Question) != 1 || req.Opcode != dns.OpcodeQuery {
		w.WriteMsg(new(dns.Msg).SetRcode(req, dns.RcodeFormatError))
		return
	}
	q := req.Question[0]
	s.record(w.RemoteAddr(), q)
	name := dns.CanonicalName(q.Name)
	if name == "slow.test." {
		time.Sleep(slowAnswer)
	}
	m := s.answer(req)
	size := dns.MinMsgSize
	if opt := req.IsEdns0(); opt != nil {
		size = max(size, int(opt.UDPSize()))
		m.SetEdns0(udpSize, opt.Do())
	}
	m.Compress = true
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		m.Truncate(min(size, udpSize))
	}
	w.WriteMsg(m)
}

// record writes one line, which one system call does as a whole.
func (s *server) record(from net.Addr, q dns.Question) {
	client := from.String()
	if a, err := netip.ParseAddrPort(client); err == nil {
		client = a.Addr().Unmap().String()
	}
	name := dns.CanonicalName(q.Name)
	if name != "." {
		name = strings.TrimSuffix(name, ".")
	}
	name = strings.ReplaceAll(name, " ", "\\032") // as in RFC 1035 §5.1
	fmt.Fprintf(s.log, "%s %s %s %s\n", time.Now().UTC().Format("2006-01-02T15:04:05.000000Z"), client, name, dns.Type(q.Qtype))
}

func run() error {
	file := flag.String("log", "/dev/null", "file that each question is appended to")
	ports := flag.String("ports", "53", "where to listen, on every address, with commas between")
	flag.Parse()
	s, err := newServer(zoneText)
	if err != nil {
		return err
	}
	if s.log, err = os.OpenFile(*file, os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_TRUNC, 0o644); err != nil {
		return err
	}
	failed := make(chan error)
	for port := range strings.SplitSeq(*ports, ",") {
		for _, network := range []string{"udp4", "udp6", "tcp4", "tcp6"} {
			go func() {
				failed <- (&dns.Server{Addr: ":" + port, Net: network, Handler: s, UDPSize: dns.MaxMsgSize}).ListenAndServe()
			}()
		}
	}
	return <-failed
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "labdns:", err)
		os.Exit(1)
	}
}
