package upstream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
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
)

// script is what a name server does with a question: it sends whatever it
// wants.
type script func(p packet)

// packet is a question that a server got.
type packet struct {
	tcp  bool
	raw  []byte
	msg  *dns.Msg
	from netip.AddrPort
	send func(b []byte) // over TCP with its length
	conn net.Conn       // of TCP
}

// stub is a name server on a loopback address that does as it is told.
type stub struct {
	mu  sync.Mutex
	do  script
	udp atomic.Int32
	tcp atomic.Int32
}

func (s *stub) set(do script) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.do = do
}

func (s *stub) handle(p packet) {
	n := &s.udp
	if p.tcp {
		n = &s.tcp
	}
	n.Add(1)
	p.msg = new(dns.Msg)
	if p.msg.Unpack(p.raw) != nil {
		return
	}
	s.mu.Lock()
	do := s.do
	s.mu.Unlock()
	if do != nil {
		do(p)
	}
}

// serve makes a server for each script, at 127.0.0.1, 127.0.0.2 and so on
// of one port.
func serve(t testing.TB, scripts ...script) (port uint16, stubs []*stub) {
	t.Helper()
	var udp []*net.UDPConn
	var tcp []*net.TCPListener
	closeAll := func() {
		for i := range udp {
			udp[i].Close()
		}
		for i := range tcp {
			tcp[i].Close()
		}
	}
	for try := 0; len(tcp) < len(scripts); try++ {
		if try == 20 {
			t.Fatal("no port is free at all addresses")
		}
		closeAll()
		udp, tcp, port = nil, nil, 0
		for i := range scripts {
			addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(i + 1)}), port)
			u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
			if err != nil {
				break
			}
			udp = append(udp, u)
			port = u.LocalAddr().(*net.UDPAddr).AddrPort().Port()
			l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr.Addr(), port)))
			if err != nil {
				break
			}
			tcp = append(tcp, l)
		}
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { closeAll(); wg.Wait() })
	for i, do := range scripts {
		s := &stub{do: do}
		stubs = append(stubs, s)
		wg.Go(func() { s.serveUDP(&wg, udp[i]) })
		wg.Go(func() { s.serveTCP(&wg, tcp[i]) })
	}
	return port, stubs
}

func (s *stub) serveUDP(wg *sync.WaitGroup, c *net.UDPConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		p := packet{raw: bytes.Clone(buf[:n]), from: from, send: func(b []byte) { c.WriteToUDPAddrPort(b, from) }}
		wg.Go(func() { s.handle(p) })
	}
}

func (s *stub) serveTCP(wg *sync.WaitGroup, l *net.TCPListener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(10 * time.Second))
			var length [2]byte
			if _, err := io.ReadFull(c, length[:]); err != nil {
				return
			}
			raw := make([]byte, binary.BigEndian.Uint16(length[:]))
			if _, err := io.ReadFull(c, raw); err != nil {
				return
			}
			s.handle(packet{tcp: true, raw: raw, conn: c, send: func(b []byte) {
				c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
			}})
		})
	}
}

// client makes a Client of a resolv.conf file with n servers.
func client(t testing.TB, port uint16, n int, more ...string) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write(t, path, conf(n, more...))
	c := New(path, slog.New(slog.DiscardHandler), Port(port))
	t.Cleanup(c.Close)
	return c
}

func conf(n int, more ...string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "nameserver 127.0.0.%d\n", i+1)
	}
	for _, s := range more {
		fmt.Fprintln(&b, s)
	}
	return b.String()
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// good is the answer of a server: records, and the question as it came.
func good(q *dns.Msg, records ...string) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.Compress = true
	for _, s := range records {
		rr, err := dns.NewRR(s)
		if err != nil {
			panic(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	return m
}

// wire packs a message.
func wire(m *dns.Msg) []byte {
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// always answers with an address.
func always(addr string) script {
	return func(p packet) { p.send(wire(good(p.msg, p.msg.Question[0].Name+" 60 A "+addr))) }
}

func rcode(code int) script {
	return func(p packet) { p.send(wire(new(dns.Msg).SetRcode(p.msg, code))) }
}

func dead(packet) {}

// wait asks and waits.
func wait(ctx context.Context, c *Client, q Query) (m *dns.Msg, err error) {
	done := make(chan struct{})
	c.Ask(ctx, q, func(a *dns.Msg, failed error) {
		m, err = a, failed
		close(done)
	})
	<-done
	return m, err
}

// ask asks for an address and expects it; "" expects an error, which it
// returns.
func ask(t *testing.T, c *Client, name, want string) error {
	t.Helper()
	m, err := wait(t.Context(), c, Query{Name: name, Type: dns.TypeA})
	if want == "" {
		if err == nil {
			t.Fatalf("%s: %v; want an error", name, m)
		}
		return err
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if len(m.Answer) != 1 {
		t.Fatalf("%s: %v", name, m)
	}
	if a, ok := m.Answer[0].(*dns.A); !ok || a.A.String() != want {
		t.Fatalf("%s: %v; want %s", name, m, want)
	}
	return nil
}

func TestExchange(t *testing.T) {
	seen := make(chan *dns.Msg, 10)
	port, _ := serve(t, func(p packet) {
		seen <- p.msg
		q := p.msg.Question[0]
		switch strings.ToLower(q.Name) {
		case "gone.example.com.":
			m := new(dns.Msg).SetRcode(p.msg, dns.RcodeNameError)
			m.Compress = true
			m.Ns = good(p.msg, q.Name[5:]+" 60 SOA ns."+q.Name[5:]+" x.example.net. 1 2 3 4 5").Answer
			p.send(wire(m))
		case "www.example.com.":
			p.send(wire(good(p.msg, q.Name+" 60 CNAME a."+q.Name[4:], "a."+q.Name[4:]+" 60 A 203.0.113.1")))
		default:
			m := good(p.msg, q.Name+" 60 A 203.0.113.1")
			m.Compress = false
			p.send(wire(m))
		}
	})
	c := client(t, port, 1)
	if got := c.Servers(); !slices.Equal(got, []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)}) {
		t.Errorf("servers %v", got)
	}
	for _, tt := range []struct {
		q    Query
		code int
		want []string // names in the answer
	}{
		// The case of the query comes back, wherever the server has ours.
		{Query{Name: "WWW.Example.com", Type: dns.TypeA}, 0, []string{"WWW.Example.com.", "a.Example.com."}},
		{Query{Name: "gone.example.com.", Type: dns.TypeAAAA, DO: true}, dns.RcodeNameError, []string{"example.com."}},
		{Query{Name: "_x.Y.example.com", Type: dns.TypeHTTPS, CD: true}, 0, []string{"_x.Y.example.com."}},
		{Query{Name: ".", Type: dns.TypeNS}, 0, []string{"."}},
		{Query{Name: `a\.b\032c.` + strings.Repeat("x", 63) + ".example.com", Type: dns.TypeTXT}, 0,
			[]string{`a\.b\ c.` + strings.Repeat("x", 63) + ".example.com."}},
	} {
		m, err := wait(t.Context(), c, tt.q)
		if err != nil {
			t.Errorf("%+v: %v", tt.q, err)
			continue
		}
		var owners []string
		for _, rr := range slices.Concat(m.Answer, m.Ns) {
			owners = append(owners, rr.Header().Name)
		}
		if diff := cmp.Diff(tt.want, owners); diff != "" && !strings.Contains(tt.q.Name, `\`) || m.Rcode != tt.code || m.Question[0].Name != dns.Fqdn(tt.q.Name) {
			t.Errorf("%+v: %v\n%s", tt.q, m, diff)
		}
		sent := <-seen
		o := sent.IsEdns0()
		if o == nil || o.UDPSize() != udpSize || o.Do() != tt.q.DO || sent.CheckingDisabled != tt.q.CD || !sent.RecursionDesired ||
			sent.Question[0].Qtype != tt.q.Type || sent.Question[0].Qclass != dns.ClassINET {
			t.Errorf("%+v was asked as %v", tt.q, sent)
		}
	}
	for _, name := range []string{"a..example", strings.Repeat("x", 64) + ".example", strings.Repeat("x.", 130)} {
		if _, err := wait(t.Context(), c, Query{Name: name, Type: dns.TypeA}); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// Whoever sees no question has to guess its id, its port and the case of its
// letters. A port has many questions only if there are many at a time, and
// never more than a few.
func TestQuestionsAreNotPredictable(t *testing.T) {
	var mu sync.Mutex
	ids, ports, names := map[uint16]bool{}, map[uint16]int{}, map[string]bool{}
	h := always("203.0.113.1")
	port, _ := serve(t, func(p packet) {
		mu.Lock()
		ids[p.msg.Id], names[p.msg.Question[0].Name] = true, true
		ports[p.from.Port()]++
		mu.Unlock()
		h(p)
	})
	c := client(t, port, 1)
	for n := range 2000 {
		ask(t, c, "unpredictable.example.com", "203.0.113.1")
		if n == maxPorts-1 {
			mu.Lock()
			if len(ports) != maxPorts {
				t.Errorf("%d ports of as many questions as there may be ports", len(ports))
			}
			mu.Unlock()
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ids) < 1900 || len(names) < 1900 { // some meet by chance
		t.Errorf("%d ids, %d names", len(ids), len(names))
	}
	for p, n := range ports {
		if n > portUses {
			t.Errorf("%d questions from port %d", n, p)
		}
	}
	if len(ports) < 2000/portUses {
		t.Errorf("%d ports", len(ports))
	}
}

// A port that may be found out does not last.
func TestPortsEnd(t *testing.T) {
	before := runtime.NumGoroutine()
	var mu sync.Mutex
	var last packet
	port, _ := serve(t, func(p packet) {
		mu.Lock()
		last = p
		mu.Unlock()
		always("203.0.113.1")(p)
	})
	started := runtime.NumGoroutine()
	c := client(t, port, 1)
	for range 2 * maxPorts {
		ask(t, c, "a.example.com", "203.0.113.1")
	}
	open := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.ports)
	}
	if n := open(); n != maxPorts {
		t.Errorf("%d ports", n)
	}
	for end := time.Now().Add(5 * time.Second); open() > 0 || runtime.NumGoroutine() > started; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d ports are still open, %d goroutines; %d before", open(), runtime.NumGoroutine(), before)
		}
	}
	// One that is guessed at ends at once.
	c = client(t, port, 1)
	ask(t, c, "a.example.com", "203.0.113.1")
	mu.Lock()
	forge := last.send
	mu.Unlock()
	for range maxStrays + 1 {
		forge([]byte("a packet that answers nothing"))
	}
	for end := time.Now().Add(5 * time.Second); open() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the port is still open")
		}
	}
	if n := c.strays.Load(); n != maxStrays+1 {
		t.Errorf("%d strays", n)
	}
}

// Answers to questions that were repeated come twice. That forges nothing, nor
// is it mixed up with other questions of the port.
func TestSecondAnswers(t *testing.T) {
	port, stubs := serve(t, func(p packet) {
		for range 5 {
			always("203.0.113.1")(p)
		}
	})
	c := client(t, port, 1)
	for range 20 * maxPorts {
		ask(t, c, "a.example.com", "203.0.113.1")
	}
	if c.strays.Load() != 0 || stubs[0].tcp.Load() != 0 {
		t.Errorf("%d strays, %d questions over TCP", c.strays.Load(), stubs[0].tcp.Load())
	}
}

// Many questions at the same time, over few ports, answered in any order: each
// gets its own answer.
func TestQuestionsShareAPort(t *testing.T) {
	port, stubs := serve(t, func(p packet) {
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
		var a, b int
		fmt.Sscanf(p.msg.Question[0].Name[1:], "%d-%d", &a, &b)
		always(fmt.Sprintf("203.0.%d.%d", a, b))(p)
	})
	c := client(t, port, 1)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			for j := range 20 {
				name, want := fmt.Sprintf("n%d-%d.example.com", i, j), fmt.Sprintf("203.0.%d.%d", i, j)
				m, err := wait(t.Context(), c, Query{Name: name, Type: dns.TypeA})
				if err != nil || len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != want {
					t.Errorf("%s: %v, %v", name, m, err)
				}
			}
		})
	}
	wg.Wait()
	if c.strays.Load() != 0 || stubs[0].tcp.Load() != 0 {
		t.Errorf("%d strays, %d questions over TCP", c.strays.Load(), stubs[0].tcp.Load())
	}
}

// Whatever is not the answer to the question is passed over, and the answer
// that comes after it counts.
func TestForgedAnswersArePassedOver(t *testing.T) {
	for title, change := range map[string]func(m *dns.Msg){
		"id":          func(m *dns.Msg) { m.Id ^= 1 },
		"name":        func(m *dns.Msg) { m.Question[0].Name = "b.example.com." },
		"longer name": func(m *dns.Msg) { m.Question[0].Name = "www.a.example.com." },
		"root":        func(m *dns.Msg) { m.Question[0].Name = "." },
		"type":        func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeTXT },
		"class":       func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS },
		"opcode":      func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify },
		"a question":  func(m *dns.Msg) { m.Response = false },
		"no question": func(m *dns.Msg) { m.Question = nil },
		"empty":       func(m *dns.Msg) { m.Question, m.Answer = nil, nil },
		"two":         func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) },
	} {
		t.Run(title, func(t *testing.T) {
			port, stubs := serve(t, func(p packet) {
				bad := good(p.msg, "a.example.com. 60 A 203.0.113.66")
				bad.Question = slices.Clone(bad.Question)
				change(bad)
				p.send(wire(bad))
				p.send(nil)
				p.send([]byte("no DNS"))
				p.send(make([]byte, 12))
				always("203.0.113.1")(p)
			})
			c := client(t, port, 1)
			ask(t, c, "a.example.com", "203.0.113.1")
			if c.strays.Load() != 4 || stubs[0].tcp.Load() != 0 {
				t.Errorf("%d strays, %d questions over TCP", c.strays.Load(), stubs[0].tcp.Load())
			}
		})
	}
}

// A packet from another address does not even count.
func TestOtherSource(t *testing.T) {
	port, _ := serve(t, func(p packet) {
		for _, at := range []string{"127.0.0.9:0", "127.0.0.1:0"} {
			other, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at)))
			if err != nil {
				t.Error(err)
				return
			}
			other.WriteToUDPAddrPort(wire(good(p.msg, "a.example.com. 60 A 203.0.113.66")), p.from)
			other.Close()
		}
		always("203.0.113.1")(p)
	})
	c := client(t, port, 1)
	ask(t, c, "a.example.com", "203.0.113.1")
	if c.strays.Load() != 0 {
		t.Errorf("%d strays", c.strays.Load())
	}
}

// A server whose answers over UDP cannot be used, or are in doubt, is asked
// over TCP.
func TestOverTCP(t *testing.T) {
	loop := func(p packet) []byte { // an owner that points at itself
		b := wire(good(p.msg))
		b[7] = 1
		return append(b, 0xc0, byte(len(b)), 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 66)
	}
	for title, udp := range map[string]script{
		"truncated": func(p packet) {
			m := good(p.msg)
			m.Truncated = true
			p.send(wire(m))
		},
		"truncated in a record": func(p packet) {
			m := good(p.msg, p.msg.Question[0].Name+" 60 A 203.0.113.66")
			m.Truncated = true
			b := wire(m)
			p.send(b[:len(b)-2])
		},
		"oversized": func(p packet) {
			p.send(append(wire(good(p.msg, p.msg.Question[0].Name+" 60 A 203.0.113.66")), make([]byte, 5000)...))
		},
		"garbage": func(p packet) {
			b := wire(good(p.msg))
			b[7] = 9 // answers
			p.send(append(b, "garbage, and more of it"...))
		},
		"fewer records than announced": func(p packet) {
			b := wire(good(p.msg))
			b[7] = 1
			p.send(b)
		},
		"compression loop": func(p packet) { p.send(loop(p)) },
		"flood": func(p packet) {
			bad := good(p.msg, p.msg.Question[0].Name+" 60 A 203.0.113.66")
			for i := range maxStrays + 1 {
				bad.Id = p.msg.Id + 1 + uint16(i)
				p.send(wire(bad))
			}
		},
		"other case": func(p packet) {
			p.msg.Question[0].Name = flip(p.msg.Question[0].Name)
			always("203.0.113.66")(p)
		},
	} {
		t.Run(title, func(t *testing.T) {
			port, stubs := serve(t, func(p packet) {
				if !p.tcp {
					udp(p)
					return
				}
				always("203.0.113.1")(p)
			})
			c := client(t, port, 1)
			for i := range int32(2) { // the second time, too: nothing is remembered of a server because of UDP
				ask(t, c, "a.example.com", "203.0.113.1")
				if u, n := stubs[0].udp.Load(), stubs[0].tcp.Load(); u != i+1 || n != i+1 {
					t.Errorf("%d questions over UDP, %d over TCP", u, n)
				}
			}
			if title == "flood" && c.strays.Load() != 2*(maxStrays+1) {
				t.Errorf("%d strays", c.strays.Load())
			}
			stubs[0].set(func(p packet) { udp(p) }) // the same over TCP: a server like this is of no use
			if title == "other case" || title == "oversized" {
				return // over TCP there is nothing wrong with that
			}
			err := ask(t, c, "a.example.com", "")
			var e *Error
			if !errors.As(err, &e) || len(e.Failures) != 1 || !strings.Contains(err.Error(), "127.0.0.1:") || !strings.Contains(err.Error(), "over TCP: it") {
				t.Errorf("%v", err)
			}
		})
	}
}

// flip changes the case of every letter.
func flip(s string) string {
	return strings.Map(func(r rune) rune {
		if c := r | 0x20; 'a' <= c && c <= 'z' {
			return r ^ 0x20
		}
		return r
	}, s)
}

// A server that does not preserve case is asked over TCP once and then as it
// likes it.
func TestServerWithoutCase(t *testing.T) {
	port, stubs := serve(t, func(p packet) {
		p.msg.Question[0].Name = strings.ToLower(p.msg.Question[0].Name)
		always("203.0.113.1")(p)
	})
	c := client(t, port, 1)
	const name = "a-name-that-has-enough-letters.example.com"
	for range 5 {
		ask(t, c, name, "203.0.113.1")
	}
	if u, n := stubs[0].udp.Load(), stubs[0].tcp.Load(); u != 5 || n != 1 {
		t.Errorf("%d questions over UDP, %d over TCP", u, n)
	}
}

func TestServerWithoutEDNS(t *testing.T) {
	for _, code := range []int{dns.RcodeFormatError, dns.RcodeNotImplemented} {
		for _, bare := range []bool{false, true} {
			for _, options := range []string{"", "options use-vc"} {
				var with atomic.Int32
				port, _ := serve(t, func(p packet) {
					if p.msg.IsEdns0() == nil {
						always("203.0.113.1")(p)
						return
					}
					with.Add(1)
					m := new(dns.Msg).SetRcode(p.msg, code)
					if bare {
						m.Question = nil
					}
					p.send(wire(m))
				})
				c := client(t, port, 1, options)
				for range 3 {
					ask(t, c, "a.example.com", "203.0.113.1")
				}
				if with.Load() != 1 {
					t.Errorf("code %d, bare %v, %q: asked %d times with EDNS", code, bare, options, with.Load())
				}
			}
		}
	}
}

func TestLargeAnswer(t *testing.T) {
	var records []string
	for i := range 3500 {
		records = append(records, fmt.Sprintf("a.example.com. 60 A 203.0.%d.%d", i/250, i%250+1))
	}
	port, stubs := serve(t, func(p packet) {
		m := good(p.msg, records...)
		if !p.tcp {
			m.Truncate(udpSize)
		}
		p.send(wire(m))
	})
	c := client(t, port, 1)
	m, err := wait(t.Context(), c, Query{Name: "a.example.com", Type: dns.TypeA})
	if err != nil || len(m.Answer) != len(records) || m.Len() < 50_000 {
		t.Errorf("%v", err)
	}
	if stubs[0].tcp.Load() != 1 {
		t.Errorf("%d questions over TCP", stubs[0].tcp.Load())
	}
}

// A server that takes its time over TCP costs no more of it than any other.
func TestBadTCP(t *testing.T) {
	for title, tt := range map[string]struct {
		tcp  script
		want string
	}{
		"byte by byte": {func(p packet) {
			b := wire(good(p.msg, "a.example.com. 60 A 203.0.113.66"))
			for _, x := range append([]byte{0, byte(len(b))}, b...) {
				if _, err := p.conn.Write([]byte{x}); err != nil {
					return
				}
				time.Sleep(30 * time.Millisecond)
			}
		}, "no answer in time"},
		"silent":       {func(p packet) { io.Copy(io.Discard, p.conn) }, "no answer in time"},
		"closes":       {func(packet) {}, "closes the connection"},
		"half a frame": {func(p packet) { p.conn.Write([]byte{0}) }, "closes the connection"},
		"half of it":   {func(p packet) { p.conn.Write([]byte{0xff, 0xff, 1, 2, 3}) }, "closes the connection"},
		"nothing":      {func(p packet) { p.conn.Write([]byte{0, 0}) }, "something else"},
		"other id": {func(p packet) {
			p.msg.Id++
			always("203.0.113.66")(p)
		}, "something else"},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			port, _ := serve(t, func(p packet) {
				if p.tcp {
					tt.tcp(p)
					return
				}
				m := good(p.msg)
				m.Truncated = true
				p.send(wire(m))
			})
			c := client(t, port, 1)
			c.total = 700 * time.Millisecond
			if err := ask(t, c, "a.example.com", ""); !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v; want %s", err, tt.want)
			}
		})
	}
}

// What one server cannot or will not answer another one is asked; what none
// answers is what the first said.
func TestFailover(t *testing.T) {
	for _, code := range []int{dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented} {
		port, stubs := serve(t, rcode(code), always("203.0.113.2"))
		c := client(t, port, 2)
		for range maxSoft {
			ask(t, c, "a.example.com", "203.0.113.2")
		}
		// One that never answers is no longer the first to be asked.
		before := stubs[0].udp.Load()
		ask(t, c, "a.example.com", "203.0.113.2")
		if n := stubs[0].udp.Load(); n != before {
			t.Errorf("code %d: asked %d times", code, n)
		}
	}
	port, _ := serve(t, rcode(dns.RcodeServerFailure), rcode(dns.RcodeRefused))
	m, err := wait(t.Context(), client(t, port, 2), Query{Name: "a.example.com", Type: dns.TypeA})
	if err != nil || m.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v, %v", m, err)
	}
	port, _ = serve(t, rcode(dns.RcodeServerFailure), dead)
	m, err = wait(t.Context(), client(t, port, 2), Query{Name: "a.example.com", Type: dns.TypeA})
	if err != nil || m.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v, %v", m, err)
	}
	port, stubs := serve(t, rcode(dns.RcodeNameError), always("203.0.113.2"))
	m, err = wait(t.Context(), client(t, port, 2), Query{Name: "a.example.com", Type: dns.TypeA})
	if err != nil || m.Rcode != dns.RcodeNameError || stubs[1].udp.Load() != 0 {
		t.Errorf("%v, %v", m, err)
	}
}

// A dead server delays nobody for long, and is used again when it is back.
func TestDeadServer(t *testing.T) {
	port, stubs := serve(t, dead, always("203.0.113.2"))
	c := client(t, port, 2)
	c.probeMin = time.Nanosecond
	for range 10 {
		ask(t, c, "a.example.com", "203.0.113.2")
	}
	if n := stubs[1].udp.Load(); n < 10 {
		t.Errorf("the other server was asked %d times", n)
	}
	stubs[0].set(always("203.0.113.1"))
	stubs[1].set(nil)
	ask(t, c, "a.example.com", "203.0.113.1")
	stubs[1].set(always("203.0.113.2"))
	for try := 0; ; try++ {
		m, err := wait(t.Context(), c, Query{Name: "a.example.com", Type: dns.TypeA})
		if err != nil {
			t.Fatal(err)
		}
		if m.Answer[0].(*dns.A).A.String() == "203.0.113.1" {
			break
		}
		if try == 1000 {
			t.Fatal("the server that is first in the file is not used again")
		}
		time.Sleep(time.Millisecond)
	}
}

// The first answer counts, also if it is of the server that was asked later.
func TestDelayed(t *testing.T) {
	port, _ := serve(t, func(p packet) {
		time.Sleep(300 * time.Millisecond)
		always("203.0.113.1")(p)
	}, always("203.0.113.2"))
	ask(t, client(t, port, 2), "a.example.com", "203.0.113.2")
	port, stubs := serve(t, func(p packet) {
		time.Sleep(700 * time.Millisecond) // later than the question is repeated
		always("203.0.113.1")(p)
	})
	ask(t, client(t, port, 1), "a.example.com", "203.0.113.1")
	if stubs[0].udp.Load() != 2 {
		t.Errorf("%d packets", stubs[0].udp.Load())
	}
	// One that was lost is sent again.
	var n atomic.Int32
	port, _ = serve(t, func(p packet) {
		if n.Add(1) == 2 {
			always("203.0.113.1")(p)
		}
	})
	ask(t, client(t, port, 1), "a.example.com", "203.0.113.1")
}

func TestAllDead(t *testing.T) {
	port, stubs := serve(t, dead, dead)
	c := client(t, port, 2)
	c.total = 300 * time.Millisecond
	err := ask(t, c, "a.example.com", "")
	var e *Error
	want := fmt.Sprintf("the host's name servers do not answer: 127.0.0.1:%d: no answer in time; 127.0.0.2:%d: no answer in time", port, port)
	if !errors.As(err, &e) || !errors.Is(err, ErrTimeout) || err.Error() != want {
		t.Errorf("%v\nwant %s", err, want)
	}
	ask(t, c, "a.example.com", "")
	stubs[1].set(always("203.0.113.2"))
	ask(t, c, "a.example.com", "203.0.113.2")
	stubs[0].set(always("203.0.113.1"))
	ask(t, c, "a.example.com", "203.0.113.2") // until it is time to see about the other one

	// Nobody listens: that is known at once.
	c = client(t, 1, 2)
	err = ask(t, c, "a.example.com", "")
	if !errors.As(err, &e) || len(e.Failures) != 2 || !errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, ErrTimeout) ||
		err.Error() != "the host's name servers do not answer: 127.0.0.1:1: connection refused; 127.0.0.2:1: connection refused" {
		t.Errorf("%v", err)
	}
}

func TestOptions(t *testing.T) {
	port, stubs := serve(t, always("203.0.113.1"), always("203.0.113.1"))
	c := client(t, port, 2, "options rotate")
	for range 10 {
		ask(t, c, "a.example.com", "203.0.113.1")
	}
	if a, b := stubs[0].udp.Load(), stubs[1].udp.Load(); a < 4 || b < 4 {
		t.Errorf("rotate: %d and %d", a, b)
	}
	c = client(t, port, 1, "options use-vc")
	before := stubs[0].udp.Load()
	ask(t, c, "a.example.com", "203.0.113.1")
	if stubs[0].udp.Load() != before || stubs[0].tcp.Load() != 1 {
		t.Error("use-vc: not asked over TCP")
	}
	stubs[0].set(nil)
	before = stubs[0].udp.Load()
	c = client(t, port, 1, "options attempts:1 timeout:1")
	c.total = 900 * time.Millisecond
	ask(t, c, "a.example.com", "")
	if n := stubs[0].udp.Load() - before; n != 1 {
		t.Errorf("attempts:1: %d packets", n)
	}
}

// The file may be replaced, or a symbolic link to it, at any time.
func TestFileChanges(t *testing.T) {
	port, _ := serve(t, always("203.0.113.1"), always("203.0.113.2"))
	dir := t.TempDir()
	path := filepath.Join(dir, "resolv.conf")
	c := New(path, slog.New(slog.DiscardHandler), Port(port))
	t.Cleanup(c.Close)
	if err := ask(t, c, "a.example.com", ""); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), `write "nameserver ADDRESS" into `+path) {
		t.Errorf("%v", err)
	}
	if got := c.Servers(); got != nil {
		t.Errorf("servers %v", got)
	}
	write(t, path+".1", "nameserver 127.0.0.1\n")
	write(t, path+".2", "nameserver 127.0.0.2\n")
	if err := os.Symlink("resolv.conf.1", path); err != nil {
		t.Fatal(err)
	}
	ask(t, c, "a.example.com", "203.0.113.1") // at once
	if err := os.Symlink("resolv.conf.2", path+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		m, err := wait(t.Context(), c, Query{Name: "a.example.com", Type: dns.TypeA})
		if err != nil {
			t.Fatal(err)
		}
		if m.Answer[0].(*dns.A).A.String() == "203.0.113.2" {
			break
		}
		if time.Since(start) > 10*time.Second {
			t.Fatal("the change is not noticed")
		}
	}
	if got := c.Servers(); len(got) != 1 || got[0].Addr() != netip.MustParseAddr("127.0.0.2") {
		t.Errorf("servers %v", got)
	}
}

// Servers have no more questions than they may; who waits for them can give up.
func TestQuestionsAreBounded(t *testing.T) {
	port, stubs := serve(t, dead)
	c := client(t, port, 1)
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for range maxAsked {
		wg.Go(func() { wait(ctx, c, Query{Name: "a.example.com", Type: dns.TypeA}) })
	}
	for stubs[0].udp.Load() < maxAsked {
		time.Sleep(time.Millisecond)
	}
	waiting, giveUp := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer giveUp()
	if _, err := wait(waiting, c, Query{Name: "late.example.com", Type: dns.TypeA}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	stubs[0].set(always("203.0.113.1"))
	cancel()
	ask(t, c, "a.example.com", "203.0.113.1")
	wg.Wait()
}

func TestClose(t *testing.T) {
	before := runtime.NumGoroutine()
	port, _ := serve(t, dead, dead)
	started := runtime.NumGoroutine()
	c := client(t, port, 2)
	errs := make(chan error, 20)
	for range cap(errs) {
		go func() {
			_, err := wait(t.Context(), c, Query{Name: "a.example.com", Type: dns.TypeA})
			errs <- err
		}()
	}
	for len(c.asked) < cap(errs) {
		time.Sleep(time.Millisecond)
	}
	c.Close()
	c.Close()
	for range cap(errs) {
		if err := <-errs; !errors.Is(err, errClosed) {
			t.Errorf("%v", err)
		}
	}
	if err := ask(t, c, "a.example.com", ""); !errors.Is(err, errClosed) {
		t.Errorf("%v", err)
	}
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > started; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines; %d with the servers, %d before", runtime.NumGoroutine(), started, before)
		}
	}
	if len(c.asked) != 0 || len(c.tcp) != 0 {
		t.Errorf("%d questions, %d over TCP", len(c.asked), len(c.tcp))
	}
}

func FuzzAnswer(f *testing.F) {
	q, err := newQuestion(Query{Name: "a.Example.com", Type: dns.TypeA})
	if err != nil {
		f.Fatal(err)
	}
	sent := bytes.Clone(q.wire)
	copy(sent, "\x12\x34\x01\x00")
	copy(sent[headerLen:], "\x01A\x07eXaMpLe\x03cOm")
	asked := new(dns.Msg)
	if err := asked.Unpack(sent); err != nil {
		f.Fatal(err)
	}
	add := func(change func(m *dns.Msg)) {
		m := good(asked, "A.eXaMpLe.cOm. 60 CNAME b.eXaMpLe.cOm.", "b.eXaMpLe.cOm. 60 A 203.0.113.1", "x. 1 HTTPS 1 . alpn=h2 ipv4hint=203.0.113.1")
		change(m)
		b := wire(m)
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	add(func(*dns.Msg) {})
	add(func(m *dns.Msg) { m.Compress = false })
	add(func(m *dns.Msg) { m.Truncated = true })
	add(func(m *dns.Msg) { m.Rcode = dns.RcodeNameError })
	add(func(m *dns.Msg) { m.Question[0].Name = "a.example.com." })
	add(func(m *dns.Msg) { m.Question, m.Answer, m.Rcode = nil, nil, dns.RcodeFormatError })
	add(func(m *dns.Msg) { m.SetEdns0(udpSize, true) })
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		k := q.check(sent, b)
		if k != answer {
			return
		}
		if !bytes.Equal(b[:2], sent[:2]) || b[2]&0x80 == 0 || !bytes.Equal(b[headerLen:q.end], sent[headerLen:q.end]) {
			t.Fatalf("taken for the answer: %x", b)
		}
		m, err := q.read(b)
		if !bytes.Equal(b, before) {
			t.Error("the packet was changed")
		}
		if err != nil {
			return
		}
		want := dns.Question{Name: "a.Example.com.", Qtype: dns.TypeA, Qclass: dns.ClassINET}
		if !m.Response || m.Truncated || len(m.Question) != 1 || m.Question[0] != want {
			t.Errorf("%v", m)
		}
		for _, rr := range m.Answer {
			if n := rr.Header().Name; strings.EqualFold(n, want.Name) && n != want.Name {
				t.Errorf("owner %q", n)
			}
		}
		_ = m.String()
	})
}

// What a question costs, with the server, on the same processors.
func BenchmarkExchange(b *testing.B) {
	for _, n := range []int{1, 2} {
		b.Run(fmt.Sprintf("%d servers", n), func(b *testing.B) {
			l, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			go func() {
				buf := make([]byte, 4096)
				for {
					n, from, err := l.ReadFromUDPAddrPort(buf)
					if err != nil {
						return
					}
					n -= optLen
					buf[2], buf[3], buf[7], buf[11] = 0x81, 0x80, 1, 0
					l.WriteToUDPAddrPort(append(buf[:n], 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 1), from)
				}
			}()
			c := client(b, uint16(l.LocalAddr().(*net.UDPAddr).Port), n)
			b.SetParallelism(25)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := wait(b.Context(), c, Query{Name: "www.example.com", Type: dns.TypeA}); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "q/s")
		})
	}
}
