package resolve

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/terok-ai/terok-box/nl/kerneltest"
)

var compareAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// serve is a name server on UDP and TCP of one loopback port.
func serve(t *testing.T, h dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	pc, ln := kerneltest.ListenLoopback(t)
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: ln, Handler: h}} {
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		done := make(chan error, 1)
		go func() { done <- s.ActivateAndServe() }()
		<-up
		t.Cleanup(func() {
			if err := s.Shutdown(); err != nil {
				t.Error(err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

// zone answers from lists of records, as "name TYPE data" by name. Names
// that are not there do not exist.
func zone(t *testing.T, records map[string][]string) dns.HandlerFunc {
	t.Helper()
	byName := make(map[string][]dns.RR)
	for name, list := range records {
		byName[name] = nil
		for _, s := range list {
			rr, err := dns.NewRR(s)
			if err != nil {
				t.Fatal(err)
			}
			byName[name] = append(byName[name], rr)
		}
	}
	return func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		rrs, ok := byName[strings.ToLower(q.Question[0].Name)]
		if !ok {
			m.Rcode = dns.RcodeNameError
		}
		for _, rr := range rrs {
			if typ := rr.Header().Rrtype; typ == q.Question[0].Qtype || typ == dns.TypeCNAME {
				m.Answer = append(m.Answer, rr)
			}
		}
		reply(w, q, m)
	}
}

// reply cuts an answer off as a name server does.
func reply(w dns.ResponseWriter, q, m *dns.Msg) {
	size := dns.MaxMsgSize
	if w.LocalAddr().Network() == "udp" {
		size = dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = int(o.UDPSize())
		}
	}
	m.Truncate(size)
	w.WriteMsg(m)
}

func resolver(servers ...netip.AddrPort) *Resolver {
	return &Resolver{Servers: servers, PerName: 2 * time.Second, Total: 20 * time.Second, Parallel: 8}
}

func addrs(ss ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range ss {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// expect compares what was found, by name and in order.
func expect(t *testing.T, got Result, want map[string][]netip.Addr, order ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got.ByName, compareAddrs); diff != "" {
		t.Errorf("by name (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(addrs(order...), got.Addrs, compareAddrs); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

// expectFailed compares failures by name, and their errors by kind and by a
// part of their text.
func expectFailed(t *testing.T, got Result, want ...any) {
	t.Helper()
	if len(want) != 3*len(got.Failed) {
		t.Fatalf("%d failures; want %d: %v", len(got.Failed), len(want)/3, got.Failed)
	}
	for i, f := range got.Failed {
		name, kind, text := want[3*i].(string), want[3*i+1].(error), want[3*i+2].(string)
		if f.Name != name || !errors.Is(f.Err, kind) || !strings.Contains(f.Err.Error(), text) || strings.Contains(f.Err.Error(), "\n") {
			t.Errorf("failure of %s: %v\nwant %s: %v, with %q", f.Name, f.Err, name, kind, text)
		}
	}
}

func TestLookup(t *testing.T) {
	server := serve(t, zone(t, map[string][]string{
		"both.example.":    {"both.example. A 192.0.2.2", "both.example. A 192.0.2.1", "both.example. AAAA 2001:db8::1"},
		"four.example.":    {"four.example. A 192.0.2.1", "four.example. A 192.0.2.3"},
		"six.example.":     {"six.example. AAAA 2001:db8::6"},
		"none.example.":    {"none.example. TXT x"},
		"_x.example.":      {"_x.example. A 192.0.2.4"},
		"xn--b-xga.exmpl.": {"xn--b-xga.exmpl. A 192.0.2.5"},
	}))
	var calls []int
	got := resolver(server).Lookup(t.Context(),
		[]string{"both.example", "gone.example", "*.four.example", "=six.example", "none.example", "both.example",
			"_x.example", "XN--B-XGA.exmpl.", "192.0.2.7", "localhost"},
		func(done, total int) {
			if total != 9 {
				t.Errorf("total = %d", total)
			}
			calls = append(calls, done)
		})
	expect(t, got, map[string][]netip.Addr{
		"both.example":     addrs("192.0.2.2", "192.0.2.1", "2001:db8::1"),
		"*.four.example":   addrs("192.0.2.1", "192.0.2.3"),
		"=six.example":     addrs("2001:db8::6"),
		"_x.example":       addrs("192.0.2.4"),
		"XN--B-XGA.exmpl.": addrs("192.0.2.5"),
	}, "192.0.2.2", "192.0.2.1", "2001:db8::1", "192.0.2.3", "2001:db8::6", "192.0.2.4", "192.0.2.5")
	expectFailed(t, got,
		"gone.example", ErrNoSuchName, "no such name",
		"none.example", ErrNoAddresses, "has no addresses",
		"192.0.2.7", got.Failed[2].Err, "not a name",
		"localhost", got.Failed[3].Err, "at least two parts")
	if want := []int{1, 2, 3, 4, 5, 6, 7, 8, 9}; !slices.Equal(calls, want) {
		t.Errorf("progress: %v", calls)
	}
}

func TestNothingToDo(t *testing.T) {
	got := resolver().Lookup(t.Context(), nil, nil)
	expect(t, got, map[string][]netip.Addr{})
	expectFailed(t, got)
	got = resolver().Lookup(t.Context(), []string{"a.example"}, nil)
	expectFailed(t, got, "a.example", got.Failed[0].Err, "no name server to ask")
}

func TestChain(t *testing.T) {
	// chain is n CNAMEs and the address at their end.
	chain := func(label string, n int, addr string) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprintf("%s%d.example. CNAME %s%d.example.", label, i, label, i+1))
		}
		return append(list, fmt.Sprintf("%s%d.example. A %s", label, n, addr))
	}
	server := serve(t, zone(t, map[string][]string{
		// The order of records means nothing, nor does upper case.
		"a.example.":    {"T.example. A 192.0.2.1", "B.example. CNAME t.EXAMPLE.", "A.example. CNAME b.example."},
		"loop.example.": {"loop.example. CNAME pool.example.", "pool.example. CNAME loop.example."},
		"self.example.": {"self.example. CNAME self.example."},
		"l0.example.":   chain("l", maxChain+1, "192.0.2.66"),
		"r0.example.":   chain("r", maxChain, "192.0.2.5"),
		// An address of another owner was not asked for.
		"foreign.example.": {"other.example. A 192.0.2.66"},
		"half.example.":    {"half.example. CNAME elsewhere.example.", "other.example. A 192.0.2.66"},
		"mixed.example.":   {"other.example. A 192.0.2.66", "mixed.example. A 192.0.2.3"},
		"two.example.":     {"two.example. CNAME x.example.", "two.example. CNAME y.example.", "x.example. A 192.0.2.4", "y.example. A 192.0.2.66"},
		"chaos.example.":   {"chaos.example. CH A 192.0.2.66"}, // another class
	}))
	names := []string{"a.example", "loop.example", "self.example", "l0.example", "r0.example",
		"foreign.example", "half.example", "mixed.example", "two.example", "chaos.example"}
	got := resolver(server).Lookup(t.Context(), names, nil)
	expect(t, got, map[string][]netip.Addr{
		"a.example":     addrs("192.0.2.1"),
		"r0.example":    addrs("192.0.2.5"),
		"mixed.example": addrs("192.0.2.3"),
		"two.example":   addrs("192.0.2.4"),
	}, "192.0.2.1", "192.0.2.5", "192.0.2.3", "192.0.2.4")
	expectFailed(t, got,
		"loop.example", ErrNoAddresses, "a loop of them",
		"self.example", ErrNoAddresses, "a loop of them",
		"l0.example", ErrNoAddresses, "more than 16 CNAMEs",
		"foreign.example", ErrNoAddresses, "",
		"half.example", ErrNoAddresses, "",
		"chaos.example", ErrNoAddresses, "")
}

// An answer is good as long as the records that it needs are.
func TestTTL(t *testing.T) {
	server := serve(t, zone(t, map[string][]string{
		"one.example.":   {"one.example. 300 A 192.0.2.1"},
		"two.example.":   {"two.example. 300 A 192.0.2.1", "two.example. 20 A 192.0.2.2", "two.example. 0 TXT x"},
		"six.example.":   {"six.example. 300 A 192.0.2.1", "six.example. 200 AAAA 2001:db8::1"},
		"four.example.":  {"four.example. 100 A 192.0.2.1", "four.example. 200 AAAA 2001:db8::1"},
		"alias.example.": {"alias.example. 50 CNAME a.example.", "a.example. 300 A 192.0.2.1", "b.example. 1 A 192.0.2.2"},
		"last.example.":  {"last.example. 300 CNAME a.example.", "a.example. 50 A 192.0.2.1"},
		"zero.example.":  {"zero.example. 0 A 192.0.2.1"},
		"much.example.":  {"much.example. 2147483647 A 192.0.2.1"},
		"none.example.":  {"none.example. 2147483648 A 192.0.2.1"},
	}))
	var list []string
	want := map[string]time.Duration{
		"one.example": 300, "two.example": 20, "six.example": 200, "four.example": 100, "alias.example": 50,
		"last.example": 50, "zero.example": 0, "much.example": 1<<31 - 1, "none.example": 0,
	}
	for name := range want {
		want[name] *= time.Second
		list = append(list, name)
	}
	got := resolver(server).Lookup(t.Context(), append(list, "gone.example"), nil)
	if diff := cmp.Diff(want, got.TTL); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// forge sends a raw answer and says nothing else.
func forge(w dns.ResponseWriter, m *dns.Msg) {
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	w.Write(b)
}

// Whatever is not the answer to the question is passed over, and the answer
// that comes after it counts.
func TestForgedAnswersArePassedOver(t *testing.T) {
	for title, change := range map[string]func(m *dns.Msg){
		"id":          func(m *dns.Msg) { m.Id ^= 1 },
		"name":        func(m *dns.Msg) { m.Question[0].Name = "evil.example." },
		"type":        func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeTXT },
		"class":       func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS },
		"opcode":      func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify },
		"a question":  func(m *dns.Msg) { m.Response = false },
		"no question": func(m *dns.Msg) { m.Question = nil },
		"two":         func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) },
	} {
		t.Run(title, func(t *testing.T) {
			answer := func(q *dns.Msg, addr string) *dns.Msg {
				m := new(dns.Msg).SetReply(q)
				if q.Question[0].Qtype == dns.TypeA {
					m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.ParseIP(addr)}}
				}
				return m
			}
			server := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
				bad := answer(q, "192.0.2.66")
				bad.Question = slices.Clone(bad.Question)
				change(bad)
				forge(w, bad)
				w.Write([]byte("not DNS"))
				w.Write(nil)
				w.Write(make([]byte, 12))
				forge(w, answer(q, "192.0.2.1"))
			})
			got := resolver(server).Lookup(t.Context(), []string{"a.example"}, nil)
			expect(t, got, map[string][]netip.Addr{"a.example": addrs("192.0.2.1")}, "192.0.2.1")
			expectFailed(t, got)

			only := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
				bad := answer(q, "192.0.2.66")
				bad.Question = slices.Clone(bad.Question)
				change(bad)
				forge(w, bad)
			})
			r := resolver(only)
			r.PerName = 100 * time.Millisecond
			got = r.Lookup(t.Context(), []string{"a.example"}, nil)
			expect(t, got, map[string][]netip.Addr{})
			expectFailed(t, got, "a.example", ErrTimeout, "100ms")
		})
	}
}

func TestTruncated(t *testing.T) {
	var list []string
	for i := range 60 {
		list = append(list, fmt.Sprintf("big.example. A 192.0.2.%d", i+1), fmt.Sprintf("big.example. AAAA 2001:db8::%x", i+1))
	}
	var tcp atomic.Int32
	h := zone(t, map[string][]string{"big.example.": list})
	server := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if w.LocalAddr().Network() == "tcp" {
			tcp.Add(1)
		} else if q.IsEdns0().UDPSize() != 1232 {
			t.Errorf("UDP size %d", q.IsEdns0().UDPSize())
		}
		h(w, q)
	})
	got := resolver(server).Lookup(t.Context(), []string{"big.example"}, nil)
	if tcp.Load() != 1 { // 60 A records fit into 1232 bytes, 60 AAAA records do not
		t.Errorf("%d questions over TCP; want 1", tcp.Load())
	}
	// 120 addresses are more than a name may have.
	if n := len(got.ByName["big.example"]); n != maxAddrs || len(got.Addrs) != maxAddrs {
		t.Errorf("%d addresses; want %d", n, maxAddrs)
	}
	expectFailed(t, got, "big.example", got.Failed[0].Err, "more than 64 addresses")
}

func TestTruncatedForGood(t *testing.T) {
	server := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Truncated = true
		w.WriteMsg(m)
	})
	got := resolver(server).Lookup(t.Context(), []string{"a.example"}, nil)
	expectFailed(t, got, "a.example", ErrServer, "over TCP, too")
}

func TestHugeAnswer(t *testing.T) {
	// As much as fits into a message over TCP.
	server := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Compress = true
		if w.LocalAddr().Network() == "udp" {
			m.Truncated = true
		} else if q.Question[0].Qtype == dns.TypeA {
			for i := range 4000 {
				m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET},
					A: net.IPv4(198, 51, byte(i>>8), byte(i))})
			}
		}
		w.WriteMsg(m)
	})
	got := resolver(server).Lookup(t.Context(), []string{"a.example"}, nil)
	if len(got.Addrs) != maxAddrs {
		t.Errorf("%d addresses; want %d", len(got.Addrs), maxAddrs)
	}
	expectFailed(t, got, "a.example", got.Failed[0].Err, "more than 64 addresses")

	// More over UDP than was asked for is not read.
	server = serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		for i := range 1000 {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET},
				A: net.IPv4(198, 51, byte(i>>8), byte(i))})
		}
		w.WriteMsg(m)
	})
	r := resolver(server)
	r.PerName = 200 * time.Millisecond
	got = r.Lookup(t.Context(), []string{"a.example"}, nil)
	expect(t, got, map[string][]netip.Addr{})
	expectFailed(t, got, "a.example", ErrTimeout, "")
}

// dead is an address where a question gets no answer, not even an error.
func dead(t *testing.T) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

func TestFailover(t *testing.T) {
	records := make(map[string][]string)
	want := make(map[string][]netip.Addr)
	var names, order []string
	for i := range 40 {
		n, a := fmt.Sprintf("n%d.example", i), fmt.Sprintf("192.0.2.%d", i+1)
		records[n+"."] = []string{n + ". A " + a}
		want[n], names, order = addrs(a), append(names, n), append(order, a)
	}
	good := serve(t, zone(t, records))
	rcode := func(code int) netip.AddrPort {
		return serve(t, func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(q, code)) })
	}
	closed := netip.MustParseAddrPort("127.0.0.1:1") // answers with an ICMP error
	for title, first := range map[string]netip.AddrPort{
		"silent": dead(t), "closed": closed,
		"SERVFAIL": rcode(dns.RcodeServerFailure), "REFUSED": rcode(dns.RcodeRefused),
	} {
		t.Run(title, func(t *testing.T) {
			r := resolver(first, closed, good)
			r.Parallel = 2
			start := time.Now()
			got := r.Lookup(t.Context(), names, nil)
			expect(t, got, want, order...)
			expectFailed(t, got)
			// The server that answers is asked first from then on: 40 names
			// do not wait 20 times 2/3 s.
			if d := time.Since(start); d > 3*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

// A lost question is asked again.
func TestLostQuestion(t *testing.T) {
	var asked atomic.Int32
	h := zone(t, map[string][]string{"a.example.": {"a.example. A 192.0.2.1", "a.example. AAAA 2001:db8::1"}})
	server := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if asked.Add(1) > 2 {
			h(w, q)
		}
	})
	got := resolver(server).Lookup(t.Context(), []string{"a.example"}, nil)
	expect(t, got, map[string][]netip.Addr{"a.example": addrs("192.0.2.1", "2001:db8::1")}, "192.0.2.1", "2001:db8::1")
	expectFailed(t, got)
}

// A server that takes most of the time is waited for, even if others are
// asked meanwhile.
func TestSlowServer(t *testing.T) {
	h := zone(t, map[string][]string{"a.example.": {"a.example. A 192.0.2.1"}})
	slow := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		time.Sleep(700 * time.Millisecond)
		h(w, q)
	})
	got := resolver(slow, dead(t)).Lookup(t.Context(), []string{"a.example"}, nil)
	expect(t, got, map[string][]netip.Addr{"a.example": addrs("192.0.2.1")}, "192.0.2.1")
	expectFailed(t, got)
}

func TestFailureTexts(t *testing.T) {
	rcode := func(code int) netip.AddrPort {
		return serve(t, func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(q, code)) })
	}
	for _, tt := range []struct {
		server netip.AddrPort
		kind   error
		text   string
	}{
		{rcode(dns.RcodeServerFailure), ErrServer, "SERVFAIL"},
		{rcode(dns.RcodeRefused), ErrServer, "REFUSED"},
		{rcode(dns.RcodeNameError), ErrNoSuchName, "no such name"},
		{rcode(dns.RcodeSuccess), ErrNoAddresses, "has no addresses"},
		{rcode(13), ErrServer, "code 13"},
		{netip.MustParseAddrPort("127.0.0.1:1"), syscall.ECONNREFUSED, "name server 127.0.0.1:1: "},
	} {
		got := resolver(tt.server).Lookup(t.Context(), []string{"a.example"}, nil)
		expectFailed(t, got, "a.example", tt.kind, tt.text)
	}
}

// An old server that does not understand EDNS is asked without it.
func TestNoEDNS(t *testing.T) {
	h := zone(t, map[string][]string{"a.example.": {"a.example. A 192.0.2.1"}})
	for _, code := range []int{dns.RcodeFormatError, dns.RcodeNotImplemented} {
		server := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
			if q.IsEdns0() != nil {
				forge(w, &dns.Msg{MsgHdr: dns.MsgHdr{Id: q.Id, Response: true, Rcode: code}}) // without the question
				return
			}
			h(w, q)
		})
		got := resolver(server).Lookup(t.Context(), []string{"a.example"}, nil)
		expect(t, got, map[string][]netip.Addr{"a.example": addrs("192.0.2.1")}, "192.0.2.1")
		expectFailed(t, got)
	}
}

// One family that fails does not keep the other from being used.
func TestHalfFailure(t *testing.T) {
	server := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if q.Question[0].Qtype == dns.TypeAAAA {
			w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
			return
		}
		zone(t, map[string][]string{"a.example.": {"a.example. A 192.0.2.1"}, "none.example.": nil})(w, q)
	})
	got := resolver(server).Lookup(t.Context(), []string{"a.example", "gone.example", "none.example"}, nil)
	expect(t, got, map[string][]netip.Addr{"a.example": addrs("192.0.2.1")}, "192.0.2.1")
	expectFailed(t, got,
		"a.example", ErrServer, "no IPv6 addresses: name server",
		"gone.example", ErrServer, "SERVFAIL",
		"none.example", ErrServer, "SERVFAIL")
}

// Known weakness: an allowed name that answered with a private, link-local or
// metadata address opened it.
func TestRebinding(t *testing.T) {
	server := serve(t, zone(t, map[string][]string{
		"all.example.": {"all.example. A 10.0.0.1", "all.example. A 169.254.169.254", "all.example. A 127.0.0.1",
			"all.example. A 0.0.0.0", "all.example. AAAA ::1", "all.example. AAAA fd00:ec2::254", "all.example. AAAA ::ffff:10.0.0.1"},
		"some.example.":  {"some.example. A 192.168.1.1", "some.example. A 192.0.2.1", "some.example. AAAA fe80::1"},
		"alias.example.": {"alias.example. CNAME in.example.", "in.example. A 172.16.0.1"},
	}))
	got := resolver(server).Lookup(t.Context(), []string{"all.example", "some.example", "alias.example"}, nil)
	expect(t, got, map[string][]netip.Addr{"some.example": addrs("192.0.2.1")}, "192.0.2.1")
	expectFailed(t, got,
		"all.example", ErrNotPublic, "10.0.0.1 (private), 169.254.169.254 (link-local), 127.0.0.1 (loopback), 0.0.0.0 (unspecified)",
		"some.example", ErrNotPublic, "192.168.1.1 (private), fe80::1 (link-local)",
		"alias.example", ErrNotPublic, "172.16.0.1 (private)")
}

// Known weakness: names were resolved one after another, up to 10 s each.
func TestTotalTime(t *testing.T) {
	r := resolver(dead(t))
	r.PerName, r.Total, r.Parallel = 300*time.Millisecond, 500*time.Millisecond, 4
	var names []string
	for i := range 1000 {
		names = append(names, fmt.Sprintf("n%d.example", i))
	}
	start := time.Now()
	got := r.Lookup(t.Context(), names, nil)
	if d := time.Since(start); d < 400*time.Millisecond || d > 3*time.Second {
		t.Errorf("took %v; want 500ms", d)
	}
	if len(got.Failed) != len(names) || len(got.Addrs) != 0 {
		t.Fatalf("%d failures, %d addresses", len(got.Failed), len(got.Addrs))
	}
	for i, want := range map[int]string{0: "300ms have passed", 5: "500ms for all names", 999: "not asked for: no answer in time: 500ms for all names"} {
		if err := got.Failed[i].Err; !errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), want) {
			t.Errorf("name %d: %v; want %q", i, err, want)
		}
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	before := runtime.NumGoroutine()
	start := time.Now()
	got := resolver(dead(t)).Lookup(ctx, []string{"a.example", "b.example"}, nil)
	if d := time.Since(start); d > 1500*time.Millisecond {
		t.Errorf("took %v after it was cancelled", d)
	}
	expectFailed(t, got, "a.example", context.Canceled, "", "b.example", context.Canceled, "")
	// The questions still open end, and their sockets with them.
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines; %d before", runtime.NumGoroutine(), before)
		}
	}
}

func TestManyNames(t *testing.T) {
	addr := func(name string) netip.Addr {
		var i int
		fmt.Sscanf(name, "n%d.", &i)
		return netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
	}
	var now, most atomic.Int32
	server := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		defer now.Add(-1)
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET},
				A: addr(q.Question[0].Name).AsSlice()}}
		}
		w.WriteMsg(m)
	})
	const count = 10_000
	var names []string
	for i := range count {
		names = append(names, fmt.Sprintf("n%d.example", i))
	}
	r := &Resolver{Servers: []netip.AddrPort{server}, Total: time.Minute}
	start := time.Now()
	last := 0
	got := r.Lookup(t.Context(), names, func(done, total int) {
		if done != last+1 || total != count {
			t.Errorf("progress %d of %d after %d", done, total, last)
		}
		last = done
	})
	t.Logf("%d names in %v, at most %d questions at a time", count, time.Since(start), most.Load())
	expectFailed(t, got)
	if last != count || len(got.Addrs) != count || len(got.ByName) != count {
		t.Fatalf("%d done, %d addresses, %d names", last, len(got.Addrs), len(got.ByName))
	}
	for i, n := range names {
		if got.Addrs[i] != addr(n) {
			t.Fatalf("address %d is %v; want %v", i, got.Addrs[i], addr(n))
		}
	}
	if limit := int32(2 * minRounds * defaultParallel); most.Load() > limit {
		t.Errorf("%d questions at a time; want at most %d", most.Load(), limit)
	}
}

// A server that rotates its answers gives the same addresses.
func TestRotated(t *testing.T) {
	var turn atomic.Int32
	list := []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}
	server := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			k := int(turn.Add(1)) % 3
			for i := range list {
				m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET},
					A: net.ParseIP(list[(i+k)%3])})
			}
		}
		w.WriteMsg(m)
	})
	r := resolver(server)
	for range 4 {
		got := r.Lookup(t.Context(), []string{"a.example", "b.example"}, nil)
		for n, a := range got.ByName {
			a = slices.SortedFunc(slices.Values(a), netip.Addr.Compare)
			if !slices.Equal(a, addrs(list...)) {
				t.Errorf("%s: %v", n, a)
			}
		}
		if len(got.Addrs) != 3 || !slices.Equal(got.Addrs, got.ByName["a.example"]) {
			t.Errorf("addresses %v; want those of the first name: %v", got.Addrs, got.ByName["a.example"])
		}
	}
}

// Every question has an id and a source port of its own.
func TestQuestionsAreNotPredictable(t *testing.T) {
	var mu sync.Mutex
	ids, ports := make(map[uint16]bool), make(map[string]bool)
	server := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		ids[q.Id], ports[w.RemoteAddr().String()] = true, true
		mu.Unlock()
		w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeNameError))
	})
	var names []string
	for i := range 50 {
		names = append(names, fmt.Sprintf("n%d.example", i))
	}
	resolver(server).Lookup(t.Context(), names, nil)
	mu.Lock()
	defer mu.Unlock()
	if len(ids) < 90 || len(ports) < 90 { // of 100; a few may meet by chance
		t.Errorf("%d ids and %d ports for 100 questions", len(ids), len(ports))
	}
	steps := make(map[int]int)
	sorted := slices.Sorted(maps.Keys(ids))
	for i := 1; i < len(sorted); i++ {
		steps[int(sorted[i])-int(sorted[i-1])]++
	}
	if steps[1] > 20 {
		t.Errorf("ids are counted up: %v", sorted)
	}
}

func TestParseResolvConf(t *testing.T) {
	for text, want := range map[string][]string{
		"":                                  {"127.0.0.1:53"},
		"search example.com\n":              {"127.0.0.1:53"},
		"nameserver 192.0.2.1":              {"192.0.2.1:53"},
		"nameserver\t192.0.2.1 # comment\n": {"192.0.2.1:53"},
		"# nameserver 192.0.2.9\n; nameserver 192.0.2.8\nnameserver 127.0.0.53\noptions edns0": {"127.0.0.53:53"},
		"nameserver 192.0.2.1\r\nnameserver 2001:db8::1\nnameserver fe80::1%eth0\n":            {"192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%eth0]:53"},
		"nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4": {
			"192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:53"},
		"nameserver dns.example\nnameserver\nnameserver 2001:db8::1%eth0\nnameserver 224.0.0.1\nnameserver 192.0.2.1": {"192.0.2.1:53"},
		"nameserver 0.0.0.0\nnameserver ::":       {"127.0.0.1:53", "[::1]:53"},
		"nameserver ::ffff:192.0.2.1":             {"192.0.2.1:53"},
		"nameserver ::ffff:0.0.0.0":               {"127.0.0.1:53"},
		"nameservers 192.0.2.1\n":                 {"127.0.0.1:53"},
		"nameserver dns.example\n":                nil,
		"nameserver\n":                            nil,
		strings.Repeat("#", maxResolvConf+1):      nil,
		strings.Repeat("nameserver x\n", 1000):    nil,
		strings.Repeat("\n", maxResolvConf):       {"127.0.0.1:53"},
		"nameserver 192.0.2.1:53\nnameserver ::1": {"[::1]:53"},
	} {
		got, err := ParseResolvConf([]byte(text))
		if (err == nil) != (want != nil) {
			t.Errorf("%.60q: error %v", text, err)
			continue
		}
		var s []string
		for _, a := range got {
			s = append(s, a.String())
		}
		if diff := cmp.Diff(want, s); diff != "" {
			t.Errorf("%.60q (-want +got):\n%s", text, diff)
		}
	}
}

func TestSystem(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "resolv.conf")
	if r, err := System(path); err == nil || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %+v, %v", r, err)
	}
	if err := os.WriteFile(path, []byte("nameserver 192.0.2.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := System(path)
	if err != nil || !slices.Equal(r.Servers, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}) {
		t.Errorf("%+v, %v", r, err)
	}
	if err := os.WriteFile(path, []byte("nameserver x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := System(path); err == nil || !strings.HasPrefix(err.Error(), path+": ") {
		t.Errorf("junk: %+v, %v", r, err)
	}
	if r, err := System(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: %+v, %v", r, err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := System(pipe); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a pipe: %+v, %v", r, err)
	}
	if err := os.WriteFile(path, make([]byte, maxResolvConf+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := System(path); err == nil || !strings.Contains(err.Error(), "64 KiB") {
		t.Errorf("too large: %+v, %v", r, err)
	}
}

func FuzzParseResolvConf(f *testing.F) {
	for _, s := range []string{"", "nameserver 1.1.1.1", "nameserver fe80::1%eth0\r\nnameserver x", "#\n;\nnameserver", "nameserver ::ffff:1.2.3.4", "\x00nameserver 1"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := ParseResolvConf(text)
		if (err == nil) != (len(got) > 0) || len(got) > maxServers {
			t.Fatalf("%v, %v", got, err)
		}
		for _, s := range got {
			if !s.IsValid() || s.Port() != port || s.Addr().IsUnspecified() || s.Addr().Is4In6() {
				t.Errorf("server %v", s)
			}
		}
	})
}

func FuzzAnswer(f *testing.F) {
	q := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
	q.Id = 0x1234
	add := func(change func(m *dns.Msg)) {
		m := new(dns.Msg).SetReply(q)
		for _, s := range []string{"a.example. CNAME b.example.", "b.example. A 192.0.2.1", "b.example. AAAA 2001:db8::1", "c.example. A 192.0.2.66"} {
			rr, err := dns.NewRR(s)
			if err != nil {
				f.Fatal(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		change(m)
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	add(func(m *dns.Msg) {})
	add(func(m *dns.Msg) { m.Compress = true })
	add(func(m *dns.Msg) { m.Truncated = true })
	add(func(m *dns.Msg) { m.Answer[0].(*dns.CNAME).Target = "a.example." })
	add(func(m *dns.Msg) { m.Rcode = dns.RcodeNameError })
	add(func(m *dns.Msg) { m.Question = nil; m.Rcode = dns.RcodeFormatError })
	add(func(m *dns.Msg) { m.SetEdns0(udpSize, true) })
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b, q)
		if err != nil {
			return
		}
		if m.Id != q.Id || !m.Response || m.Opcode != dns.OpcodeQuery {
			t.Fatalf("taken for the answer: %v", m)
		}
		if m.Truncated {
			return // asked again over TCP
		}
		a := addresses(m, q.Question[0])
		got, err := a.addrs, a.err
		if a.ttl < 0 || a.ttl > maxTTL*time.Second {
			t.Errorf("time to live %v", a.ttl)
		}
		if (err == nil) != (len(got) > 0) {
			t.Fatalf("%v, %v", got, err)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\n\x00\x1b") {
			t.Errorf("message %q", err)
		}
		for _, a := range got {
			if !a.Is4() {
				t.Errorf("%v for a question about A", a)
			}
		}
	})
}
