package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/terok-ai/terok-box/applets/dnsproxy/upstream"
	"github.com/terok-ai/terok-box/applets/internal/learned"
	"github.com/terok-ai/terok-box/applets/internal/tier"
	"github.com/terok-ai/terok-box/nl/conntrack"
	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/names"
)

func TestMain(m *testing.M) { kerneltest.Main(m) }

// internet answers what a test says: f gets the question and fills the answer.
type internet struct {
	mu    sync.Mutex
	asked []string
	f     func(q dns.Question, m *dns.Msg)
}

func (i *internet) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	i.mu.Lock()
	i.asked = append(i.asked, strings.ToLower(q.Question[0].Name)+" "+dns.Type(q.Question[0].Qtype).String())
	f := i.f
	i.mu.Unlock()
	m := new(dns.Msg)
	m.SetReply(q)
	question := q.Question[0]
	question.Name = strings.ToLower(question.Name)
	f(question, m)
	_ = w.WriteMsg(m)
}

func (i *internet) questions() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.asked)
}

func record(t testing.TB, text string) dns.RR {
	t.Helper()
	rr, err := dns.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	return rr
}

// world is an internet, a container's namespace with its firewall, and the
// name server between them.
type world struct {
	t        testing.TB
	internet *internet
	kernel   *history
	ns       *netns.NS
	bundle   *bundle.Bundle
	fw       *nft.Conn // as an operator has it
	engine   *Engine
	addr     netip.AddrPort
	stop     context.CancelFunc
}

type lines struct {
	profile, live, denied []string
	resolve, audit        bool
}

func newWorld(t testing.TB, l lines, f func(q dns.Question, m *dns.Msg)) *world {
	t.Helper()
	w := &world{t: t, internet: &internet{f: f}, ns: kerneltest.NewNS(t)}

	// The internet is in the test's own namespace.
	udp, tcp := kerneltest.ListenLoopback(t)
	for _, s := range []*dns.Server{{PacketConn: udp, Handler: w.internet}, {Listener: tcp, Handler: w.internet}} {
		go s.ActivateAndServe()
		t.Cleanup(func() { s.Shutdown() })
	}
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 127.0.0.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	var err error
	if w.bundle, err = bundle.Create(filepath.Join(t.TempDir(), "sd")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.bundle.Close() })
	if err := errors.Join(w.bundle.SetProfileDomains(l.profile), w.bundle.SetLiveDomains(l.live),
		w.bundle.SetDeniedDomains(l.denied), w.bundle.SetResolveUnlisted(l.resolve)); err != nil {
		t.Fatal(err)
	}

	r := tier.Resources{
		Spec: names.Spec{Container: "c", Audit: l.audit}, Bundle: w.bundle, NetNS: w.ns,
		Log: slog.New(slog.DiscardHandler),
	}
	if err := w.ns.Do(func() (err error) {
		if w.fw, err = nft.Dial(); err != nil {
			return err
		}
		if r.NFT, err = nft.Dial(); err != nil {
			return err
		}
		if r.Track, err = conntrack.Dial(); err != nil {
			return err
		}
		at := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 53}
		if r.UDP, err = net.ListenUDP("udp", at); err != nil {
			return err
		}
		r.TCP, err = net.ListenTCP("tcp", &net.TCPAddr{IP: at.IP, Port: 53})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	w.apply(ruleset.Up)
	w.kernel = &history{Conn: r.NFT}
	set, err := learned.New(learned.Options{Kernel: w.kernel, Cut: r.Track.Cut})
	if err != nil {
		t.Fatal(err)
	}
	up := upstream.New(conf, r.Log, upstream.Port(uint16(udp.LocalAddr().(*net.UDPAddr).Port)))
	if w.engine, err = newEngine(r, up, set); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	t.Cleanup(func() {
		cancel()
		r.UDP.Close()
		r.TCP.Close()
		r.NFT.Close()
		r.Track.Close()
		w.fw.Close()
	})
	if err := w.engine.Start(ctx, func(err error) { t.Errorf("the engine failed: %v", err) }); err != nil {
		t.Fatal(err)
	}
	w.addr = netip.MustParseAddrPort("127.0.0.1:53")
	return w
}

func (w *world) apply(s ruleset.State) {
	w.t.Helper()
	table, err := ruleset.Build(s, ruleset.Params{})
	if err == nil {
		err = w.fw.Apply(table)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// dial connects from the container.
func (w *world) dial(network string) net.Conn {
	w.t.Helper()
	var c net.Conn
	if err := w.ns.Do(func() (err error) {
		c, err = net.Dial(network, w.addr.String())
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

// ask asks from the container, over "udp" or "tcp".
func (w *world) ask(network, name string, qtype uint16, edns bool) *dns.Msg {
	w.t.Helper()
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), qtype)
	if edns {
		q.SetEdns0(4096, false)
	}
	return w.exchange(network, q)
}

func (w *world) exchange(network string, q *dns.Msg) *dns.Msg {
	w.t.Helper()
	c := &dns.Conn{Conn: w.dial(network), UDPSize: 4096}
	defer c.Close()
	c.SetDeadline(time.Now().Add(15 * time.Second))
	if err := c.WriteMsg(q); err != nil {
		w.t.Fatal(err)
	}
	m, err := c.ReadMsg()
	if err != nil {
		w.t.Fatalf("%v: %v", q.Question, err)
	}
	if m.Id != q.Id || !m.Response {
		w.t.Errorf("%v: id %d for %d", q.Question, m.Id, q.Id)
	}
	return m
}

// insist asks as the resolver of a libc does, which knows that a flood may
// push its packet out of the socket.
func (w *world) insist(name string, qtype uint16) *dns.Msg {
	w.t.Helper()
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), qtype)
	c := &dns.Conn{Conn: w.dial("udp")}
	defer c.Close()
	const attempts = 5
	var failed error
	for range attempts {
		c.SetDeadline(time.Now().Add(3 * time.Second))
		if err := c.WriteMsg(q); err != nil {
			w.t.Fatal(err)
		}
		m, err := c.ReadMsg()
		if err == nil && m.Id == q.Id {
			return m
		}
		failed = err
	}
	w.t.Fatalf("%v: no answer in %d attempts: %v", q.Question, attempts, failed)
	return nil
}

// open is what the firewall lets through because of names.
func (w *world) open() []string {
	w.t.Helper()
	all, err := w.fw.Learned()
	if err != nil {
		w.t.Fatal(err)
	}
	got := []string{}
	for _, l := range all {
		got = append(got, l.Addr.String())
	}
	slices.Sort(got)
	return got
}

func (w *world) expectOpen(want ...string) {
	w.t.Helper()
	if d := cmp.Diff(append([]string{}, want...), w.open()); d != "" {
		w.t.Error(d)
	}
}

func answers(m *dns.Msg) (text []string) {
	for _, rr := range m.Answer {
		text = append(text, strings.Join(strings.Fields(rr.String()), " "))
	}
	return text
}

// extended is the extended error of an answer.
func extended(m *dns.Msg) (code uint16, text string) {
	opt := m.IsEdns0()
	if opt == nil {
		return 0, ""
	}
	for _, o := range opt.Option {
		if e, ok := o.(*dns.EDNS0_EDE); ok {
			return e.InfoCode, e.ExtraText
		}
	}
	return 0, ""
}

func TestAllowedNameIsOpenBeforeItIsAnswered(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		switch q.Qtype {
		case dns.TypeA:
			m.Answer = append(m.Answer,
				record(t, "www.example.com. 300 IN CNAME cdn.example.net."),
				record(t, "cdn.example.net. 60 IN CNAME edge.example.org."),
				record(t, "edge.example.org. 120 IN A 203.0.113.1"),
				record(t, "edge.example.org. 120 IN A 203.0.113.2"))
		case dns.TypeAAAA:
			m.Answer = append(m.Answer, record(t, "www.example.com. 5 IN AAAA 2001:db8::1"))
		}
		m.Extra = append(m.Extra, record(t, "other.example.net. 60 IN A 203.0.113.66"))
	})
	for _, network := range []string{"udp", "tcp"} {
		m := w.ask(network, "WWW.example.COM", dns.TypeA, false)
		if d := cmp.Diff([]string{
			"WWW.example.COM. 60 IN CNAME cdn.example.net.",
			"cdn.example.net. 60 IN CNAME edge.example.org.",
			"edge.example.org. 60 IN A 203.0.113.1",
			"edge.example.org. 60 IN A 203.0.113.2",
		}, answers(m)); d != "" {
			t.Errorf("%s: %s", network, d)
		}
		if len(m.Extra) > 0 {
			t.Errorf("%s: additional records: %v", network, m.Extra)
		}
	}
	w.expectOpen("203.0.113.1", "203.0.113.2")
	w.ask("udp", "www.example.com", dns.TypeAAAA, true)
	w.expectOpen("2001:db8::1", "203.0.113.1", "203.0.113.2")
	if n := len(w.internet.questions()); n != 2 {
		t.Errorf("asked %v", w.internet.questions())
	}
	// Whose name it is: what was asked for, not what it is an alias of.
	got := w.engine.Names(netip.MustParseAddr("203.0.113.1"))
	if len(got) != 1 || got[0].Name != "www.example.com" || !got[0].Allowed {
		t.Errorf("%v", got)
	}
	if got := w.engine.Addresses("WWW.example.com."); len(got) != 3 {
		t.Errorf("%v", got)
	}
}

func TestUnlistedNamesAreRefusedAndNotAsked(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}, denied: []string{"bad.example.com"}}, func(dns.Question, *dns.Msg) {})
	for _, tc := range []struct {
		name  string
		qtype uint16
		code  uint16
		text  string
	}{
		{"example.org", dns.TypeA, dns.ExtendedErrorCodeProhibited, "not on this container's list; terok-shield allow c example.org"},
		{"c2VjcmV0.tunnel.test", dns.TypeTXT, dns.ExtendedErrorCodeProhibited, "not on this container's list"},
		{"1.113.0.203.in-addr.arpa", dns.TypePTR, dns.ExtendedErrorCodeProhibited, "not on"},
		{"x.bad.example.com", dns.TypeA, dns.ExtendedErrorCodeBlocked, "denied by bad.example.com"},
		{"com", dns.TypeNS, dns.ExtendedErrorCodeProhibited, "not on"},
		{".", dns.TypeNS, dns.ExtendedErrorCodeProhibited, "not on"},
		{"example.com", dns.TypeAXFR, 0, ""},
		{strings.Repeat("a.", 100) + "test", dns.TypeA, dns.ExtendedErrorCodeProhibited, "not on this container's list"},
	} {
		for _, edns := range []bool{true, false} {
			m := w.ask("udp", tc.name, tc.qtype, edns)
			if m.Rcode != dns.RcodeRefused || len(m.Answer) > 0 {
				t.Errorf("%.40s: %v", tc.name, m)
			}
			code, text := extended(m)
			if edns && (code != tc.code || !strings.HasPrefix(text, tc.text)) {
				t.Errorf("%.40s: extended error %d %q", tc.name, code, text)
			}
			if !edns && m.IsEdns0() != nil {
				t.Errorf("%.40s: EDNS to one who has none", tc.name)
			}
		}
	}
	if got := w.internet.questions(); len(got) > 0 {
		t.Errorf("asked upstream: %v", got)
	}
	w.expectOpen()
}

func TestUnlistedNamesMayBeResolved(t *testing.T) {
	w := newWorld(t, lines{resolve: true, denied: []string{"bad.test"}}, func(q dns.Question, m *dns.Msg) {
		m.Answer = append(m.Answer, record(t, q.Name+" 60 IN A 203.0.113.1"))
	})
	if m := w.ask("udp", "other.test", dns.TypeA, false); len(m.Answer) != 1 {
		t.Errorf("%v", m)
	}
	w.expectOpen()
	if got := w.engine.Names(netip.MustParseAddr("203.0.113.1")); len(got) != 1 || got[0].Allowed {
		t.Errorf("%v", got)
	}
	if m := w.ask("udp", "bad.test", dns.TypeA, false); m.Rcode != dns.RcodeRefused {
		t.Errorf("%v", m)
	}
}

// Rebinding: whoever owns an allowed name points it at the host.
func TestPrivateAddressesOpenNothing(t *testing.T) {
	private := []string{"10.0.0.1", "169.254.169.254", "127.0.0.1", "0.0.0.0", "100.64.0.1", "192.168.0.1", "224.0.0.1", "255.255.255.255"}
	private6 := []string{"::1", "fd00:ec2::254", "fe80::1", "::ffff:203.0.113.1", "64:ff9b::a00:1", "2002:a00:1::1", "ff02::1", "::"}
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		all, typ := private, "A"
		if q.Qtype == dns.TypeAAAA {
			all, typ = private6, "AAAA"
		}
		for _, a := range all {
			m.Answer = append(m.Answer, record(t, q.Name+" 60 IN "+typ+" "+a))
		}
		if strings.HasPrefix(q.Name, "mixed.") {
			m.Answer = append(m.Answer, record(t, q.Name+" 60 IN A 203.0.113.1"))
		}
	})
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		m := w.ask("udp", "example.com", qtype, true)
		if len(m.Answer) > 0 || m.Rcode != dns.RcodeSuccess {
			t.Errorf("%v", m)
		}
		if code, text := extended(m); code != dns.ExtendedErrorCodeFiltered || !strings.Contains(text, "allow the address itself") {
			t.Errorf("extended error %d %q", code, text)
		}
	}
	w.expectOpen()
	if m := w.ask("udp", "mixed.example.com", dns.TypeA, false); len(m.Answer) != 1 {
		t.Errorf("%v", m)
	}
	w.expectOpen("203.0.113.1")
}

// Records that a server adds to what it was asked are no answer.
func TestForeignRecordsOpenNothing(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}, denied: []string{"denied.test"}}, func(q dns.Question, m *dns.Msg) {
		switch q.Name {
		case "example.com.":
			m.Answer = append(m.Answer,
				record(t, "example.org. 60 IN A 203.0.113.66"),
				record(t, "example.com. 60 IN AAAA 2001:db8::66"),
				record(t, "example.org. 60 IN CNAME example.com."),
				record(t, "example.com. 60 CH A 203.0.113.67"))
			m.Ns = append(m.Ns, record(t, "example.com. 60 IN NS ns.example.com."), record(t, "other.test. 60 IN SOA a. b. 1 2 3 4 5"))
			m.Extra = append(m.Extra, record(t, "example.com. 60 IN A 203.0.113.68"))
		case "loop.example.com.":
			m.Answer = append(m.Answer, record(t, "loop.example.com. 60 IN CNAME b.test."), record(t, "b.test. 60 IN CNAME loop.example.com."))
		case "long.example.com.":
			m.Answer = append(m.Answer, record(t, "long.example.com. 60 IN CNAME c0.test."))
			for i := range 20 {
				m.Answer = append(m.Answer, record(t, fmt.Sprintf("c%d.test. 60 IN CNAME c%d.test.", i, i+1)))
			}
			m.Answer = append(m.Answer, record(t, "c20.test. 60 IN A 203.0.113.69"))
		case "alias.example.com.":
			m.Answer = append(m.Answer, record(t, "alias.example.com. 60 IN CNAME x.denied.test."), record(t, "x.denied.test. 60 IN A 203.0.113.70"))
		case "refused.example.com.":
			m.Rcode = dns.RcodeRefused
			m.Answer = append(m.Answer, record(t, "refused.example.com. 60 IN A 203.0.113.71"))
		}
	})
	for name, want := range map[string]int{
		"example.com": dns.RcodeSuccess, "loop.example.com": dns.RcodeServerFailure, "long.example.com": dns.RcodeServerFailure,
		"alias.example.com": dns.RcodeRefused, "refused.example.com": dns.RcodeServerFailure,
	} {
		m := w.ask("tcp", name, dns.TypeA, true)
		if m.Rcode != want || len(m.Answer) > 0 || len(m.Ns) > 0 {
			t.Errorf("%s: %v", name, m)
		}
	}
	w.expectOpen()
}

func TestServiceRecordsHaveNoHints(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		for _, text := range []string{
			`1 . alpn="h3,h2" ipv4hint="203.0.113.66" ipv6hint="2001:db8::66" ech="AEX+DQBB"`,
			`2 svc.example.com. port="8443" ipv4hint="203.0.113.67"`,
			`3 svc.example.org. alpn="h2"`,
			`0 pool.example.net.`,
		} {
			m.Answer = append(m.Answer, record(t, q.Name+" 60 IN "+dns.Type(q.Qtype).String()+" "+text))
		}
	})
	for _, typ := range []uint16{dns.TypeHTTPS, dns.TypeSVCB} {
		m := w.ask("udp", "example.com", typ, true)
		name := dns.Type(typ).String()
		if d := cmp.Diff([]string{
			`example.com. 60 IN ` + name + ` 1 . alpn="h3,h2"`,
			`example.com. 60 IN ` + name + ` 2 svc.example.com. port="8443"`,
		}, answers(m)); d != "" {
			t.Error(d)
		}
	}
	w.expectOpen()
}

func TestDNS64(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		if q.Qtype == dns.TypeAAAA {
			m.Answer = append(m.Answer, record(t, q.Name+" 60 IN AAAA 64:ff9b::203.0.113.1"))
		}
	})
	if m := w.ask("udp", "example.com", dns.TypeA, false); len(m.Answer) > 0 {
		t.Errorf("%v", m)
	}
	if m := w.ask("udp", "example.com", dns.TypeAAAA, false); len(m.Answer) != 1 {
		t.Errorf("%v", m)
	}
	w.expectOpen("64:ff9b::cb00:7101")
}

func TestCache(t *testing.T) {
	var mu sync.Mutex
	n := 0
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		mu.Lock()
		n++
		last := n
		mu.Unlock()
		switch {
		case strings.HasPrefix(q.Name, "gone."):
			m.Rcode = dns.RcodeNameError
			m.Ns = append(m.Ns, record(t, "example.com. 3600 IN SOA a. b. 1 2 3 4 60"))
		case strings.HasPrefix(q.Name, "zero."):
			m.Answer = append(m.Answer, record(t, fmt.Sprintf("%s 0 IN A 203.0.113.%d", q.Name, last)))
		default:
			m.Answer = append(m.Answer, record(t, fmt.Sprintf("%s 86400 IN A 203.0.113.%d", q.Name, last)))
		}
	})
	for name, want := range map[string]int{"example.com": 1, "gone.example.com": 1, "zero.example.com": 5} {
		before := len(w.internet.questions())
		for range 5 {
			m := w.ask("udp", name, dns.TypeA, false)
			if len(m.Answer) > 0 && m.Answer[0].Header().Ttl > uint32(learned.MaxTTL/time.Second) {
				t.Errorf("%v", m)
			}
			if name == "gone.example.com" && (m.Rcode != dns.RcodeNameError || len(m.Ns) != 1 || m.Ns[0].Header().Ttl > 60) {
				t.Errorf("%v", m)
			}
		}
		if got := len(w.internet.questions()) - before; got != want {
			t.Errorf("%s: asked %d times for five questions, want %d", name, got, want)
		}
	}
	// What somebody else closes meanwhile is open again with the next answer
	// from the cache.
	w.apply(ruleset.Quarantine)
	w.apply(ruleset.Up)
	time.Sleep(50 * time.Millisecond) // longer than the firewall is taken to be unchanged
	w.ask("udp", "example.com", dns.TypeA, false)
	if got := w.open(); len(got) != 1 {
		t.Errorf("open: %v", got)
	}
}

// Questions for the same at the same time are one upstream.
func TestCoalescing(t *testing.T) {
	release := make(chan struct{})
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		<-release
		m.Answer = append(m.Answer, record(t, q.Name+" 60 IN A 203.0.113.1"))
	})
	c := &dns.Conn{Conn: w.dial("udp")}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	const n = 50
	for i := range n {
		q := new(dns.Msg)
		q.SetQuestion("example.com.", dns.TypeA)
		q.Id = uint16(i)
		if err := c.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
	}
	for len(w.engine.slots) < n {
		time.Sleep(time.Millisecond)
	}
	close(release)
	for range n {
		if m, err := c.ReadMsg(); err != nil || len(m.Answer) != 1 {
			t.Fatalf("%v, %v", m, err)
		}
	}
	// The server may be slow enough to be asked again, but not fifty times.
	if got := len(w.internet.questions()); got > 3 {
		t.Errorf("asked %d times", got)
	}
}

func TestReload(t *testing.T) {
	release := make(chan struct{})
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		if q.Name == "slow.example.com." {
			<-release
		}
		addr := map[string]string{"a.example.com.": "203.0.113.1", "b.example.com.": "203.0.113.2", "both.example.com.": "203.0.113.1"}[q.Name]
		if addr == "" {
			addr = "203.0.113.9"
		}
		m.Answer = append(m.Answer, record(t, q.Name+" 60 IN A "+addr))
	})
	w.ask("udp", "a.example.com", dns.TypeA, false)
	w.ask("udp", "b.example.com", dns.TypeA, false)
	slow := make(chan *dns.Msg, 1)
	go func() { slow <- w.ask("udp", "slow.example.com", dns.TypeA, false) }()
	for !slices.Contains(w.internet.questions(), "slow.example.com. A") {
		time.Sleep(time.Millisecond)
	}

	if err := w.bundle.SetDeniedDomains([]string{"a.example.com", "slow.example.com"}); err != nil {
		t.Fatal(err)
	}
	c, err := w.engine.Reload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(names.Change{Allowed: 1, Denied: 2, Removed: []string{"203.0.113.1"}, Enforced: true}, c); d != "" {
		t.Error(d)
	}
	w.expectOpen("203.0.113.2")
	if m := w.ask("udp", "a.example.com", dns.TypeA, false); m.Rcode != dns.RcodeRefused {
		t.Errorf("%v", m)
	}
	// Asked by the old lists, answered after the new ones.
	close(release)
	if m := <-slow; m.Rcode != dns.RcodeRefused || len(m.Answer) > 0 {
		t.Errorf("%v", m)
	}
	w.expectOpen("203.0.113.2")

	// An address that another allowed name has stays.
	w.ask("udp", "both.example.com", dns.TypeA, false)
	if err := w.bundle.SetDeniedDomains([]string{"b.example.com"}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.engine.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.ask("udp", "a.example.com", dns.TypeA, false)
	if err := w.bundle.SetDeniedDomains([]string{"a.example.com"}); err != nil {
		t.Fatal(err)
	}
	if c, err := w.engine.Reload(t.Context()); err != nil || len(c.Removed) > 0 {
		t.Errorf("%v, %v", c, err)
	}
	w.expectOpen("203.0.113.1")
}

// A list that cannot be read leaves the old ones in force, and says so.
func TestReloadOfADamagedList(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		m.Answer = append(m.Answer, record(t, q.Name+" 60 IN A 203.0.113.1"))
	})
	if err := os.Symlink("/dev/null", filepath.Join(w.bundle.Path(), bundle.FileDeniedDomains+".x")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(w.bundle.Path(), bundle.FileDeniedDomains+".x"), filepath.Join(w.bundle.Path(), bundle.FileDeniedDomains)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.engine.Reload(t.Context()); err == nil {
		t.Error("reloaded a symbolic link")
	}
	if m := w.ask("udp", "example.com", dns.TypeA, false); len(m.Answer) != 1 {
		t.Errorf("%v", m)
	}
}

func TestQuarantine(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		m.Answer = append(m.Answer, record(t, q.Name+" 0 IN A 203.0.113.1"))
	})
	w.ask("udp", "example.com", dns.TypeA, false)
	w.apply(ruleset.Quarantine)
	if c, err := w.engine.Reload(t.Context()); err != nil || c.Enforced {
		t.Errorf("%v, %v", c, err)
	}
	before := len(w.internet.questions())
	if m := w.ask("udp", "example.com", dns.TypeA, true); m.Rcode != dns.RcodeRefused {
		t.Errorf("%v", m)
	}
	if len(w.internet.questions()) != before {
		t.Error("asked upstream in quarantine")
	}
	w.apply(ruleset.Up)
	if c, err := w.engine.Reload(t.Context()); err != nil || !c.Enforced {
		t.Errorf("%v, %v", c, err)
	}
	if m := w.ask("udp", "example.com", dns.TypeA, false); len(m.Answer) != 1 {
		t.Errorf("%v", m)
	}
	w.expectOpen("203.0.113.1")
}

// Down, everything can be reached, so everything is resolved.
func TestOpen(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}, denied: []string{"bad.test"}}, func(q dns.Question, m *dns.Msg) {
		m.Answer = append(m.Answer, record(t, q.Name+" 60 IN A 203.0.113.1"))
	})
	for _, open := range []bool{true, false} {
		if err := w.bundle.SetOpen(open); err != nil {
			t.Fatal(err)
		}
		if _, err := w.engine.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		if m := w.ask("udp", "other.test", dns.TypeA, false); (m.Rcode == dns.RcodeSuccess) != open {
			t.Errorf("open %v: %v", open, m)
		}
		if m := w.ask("udp", "bad.test", dns.TypeA, false); m.Rcode != dns.RcodeRefused {
			t.Errorf("open %v: %v", open, m)
		}
	}
	w.expectOpen()
}

func TestWatchAndAudit(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}, audit: true}, func(q dns.Question, m *dns.Msg) {
		m.Answer = append(m.Answer, record(t, q.Name+" 60 IN A 203.0.113.1"))
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got := make(chan names.Question, 10)
	ended := make(chan error)
	go func() {
		ended <- w.engine.Watch(ctx, func(q names.Question) error {
			got <- q
			return nil
		})
	}()
	for w.engine.watchers.none() {
		time.Sleep(time.Millisecond)
	}
	for range 3 {
		w.ask("udp", "other.test", dns.TypeA, false)
	}
	w.ask("udp", "other.test", dns.TypeTXT, false)
	w.ask("udp", "www.example.com", dns.TypeA, false)
	var verdicts []string
	for range 5 {
		q := <-got
		verdicts = append(verdicts, q.Name+" "+q.Type+" "+q.Verdict+" "+strings.Join(q.Addresses, " "))
	}
	if d := cmp.Diff([]string{"other.test A refused ", "other.test A refused ", "other.test A refused ", "other.test TXT refused ",
		"www.example.com A allowed 203.0.113.1"}, verdicts); d != "" {
		t.Error(d)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	w.stop()
	var log string
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end) && log == ""; time.Sleep(time.Millisecond) {
		data, _ := os.ReadFile(filepath.Join(w.bundle.Path(), bundle.FileAuditLog))
		log = string(data)
	}
	if strings.Count(log, "\n") != 1 || !strings.Contains(log, `"action":"blocked"`) || !strings.Contains(log, `"domain":"other.test"`) {
		t.Errorf("audit log:\n%s", log)
	}
	s := w.engine.Status()
	if s.Questions != 5 || s.Refused != 4 || s.Learned != 1 || s.Allowed != 1 {
		t.Errorf("%+v", s)
	}
}

func TestTruncation(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		for i := range 200 {
			m.Answer = append(m.Answer, record(t, fmt.Sprintf("%s 60 IN A 203.0.113.%d", q.Name, i)))
		}
	})
	m := w.ask("udp", "example.com", dns.TypeA, false)
	m.Compress = true
	if !m.Truncated || m.Len() > minUDP {
		t.Errorf("%d bytes, truncated %v", m.Len(), m.Truncated)
	}
	if m := w.ask("tcp", "example.com", dns.TypeA, false); len(m.Answer) != 200 || m.Truncated {
		t.Errorf("%d answers over TCP", len(m.Answer))
	}
	if got := w.open(); len(got) != 200 {
		t.Errorf("%d open", len(got))
	}
}

func TestProtocolErrors(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		m.Answer = append(m.Answer, record(t, q.Name+" 60 IN A 203.0.113.1"))
	})
	query := func(change func(*dns.Msg)) *dns.Msg {
		q := new(dns.Msg)
		q.SetQuestion("example.com.", dns.TypeA)
		change(q)
		return q
	}
	for what, tc := range map[string]struct {
		q    *dns.Msg
		want int
	}{
		"two questions": {query(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		"none":          {query(func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		"an answer in":  {query(func(m *dns.Msg) { m.Answer = []dns.RR{record(t, "example.com. 1 IN A 203.0.113.1")} }), dns.RcodeFormatError},
		"class CH":      {query(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		"class ANY":     {query(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY }), dns.RcodeRefused},
		"status":        {query(func(m *dns.Msg) { m.Opcode = dns.OpcodeStatus }), dns.RcodeNotImplemented},
		"update":        {query(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		"EDNS 1": {query(func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.IsEdns0().SetVersion(1)
		}), dns.RcodeBadVers},
		"ANY":       {query(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeANY }), dns.RcodeSuccess},
		"localhost": {query(func(m *dns.Msg) { m.Question[0].Name = "LocalHost." }), dns.RcodeSuccess},
		"onion":     {query(func(m *dns.Msg) { m.Question[0].Name = "x.onion." }), dns.RcodeNameError},
	} {
		if m := w.exchange("udp", tc.q); m.Rcode != tc.want {
			t.Errorf("%s: %s", what, dns.RcodeToString[m.Rcode])
		}
	}
	if got := w.internet.questions(); len(got) > 0 {
		t.Errorf("asked upstream: %v", got)
	}
}

// Who asks slowly, not at all, or too often, keeps nobody else waiting.
func TestUnpleasantTCP(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		m.Answer = append(m.Answer, record(t, q.Name+" 60 IN A 203.0.113.1"))
	})
	for range 3 * maxConns {
		c := w.dial("tcp")
		_, _ = c.Write([]byte{0})
	}
	if m := w.ask("tcp", "example.com", dns.TypeA, false); len(m.Answer) != 1 {
		t.Errorf("%v", m)
	}
	for _, size := range []int{0, 1, headerSize - 1, maxQuery + 1, 65535} {
		c := w.dial("tcp")
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(size)), make([]byte, min(size, 100))...)); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := c.Read(make([]byte, 10)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("length %d: %d bytes, %v", size, n, err)
		}
	}
	// Several questions at once on one connection.
	c := &dns.Conn{Conn: w.dial("tcp")}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	for i := range 5 {
		q := new(dns.Msg)
		q.SetQuestion("example.com.", dns.TypeA)
		q.Id = uint16(i)
		if err := c.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 {
		if m, err := c.ReadMsg(); err != nil || m.Id != uint16(i) {
			t.Fatalf("%d: %v, %v", i, m, err)
		}
	}
}

// A flood of made-up names does not keep allowed ones from being answered, nor
// grow anything.
func TestFlood(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}, audit: true}, func(q dns.Question, m *dns.Msg) {
		m.Answer = append(m.Answer, record(t, q.Name+" 1 IN A 203.0.113.1"))
	})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		c := w.dial("udp")
		q := new(dns.Msg)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			q.SetQuestion(fmt.Sprintf("n%d.test.", i), dns.TypeA)
			b, err := q.Pack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = c.Write(b)
			if i%64 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	})
	for i := range 100 {
		if m := w.insist(fmt.Sprintf("n%d.example.com", i), dns.TypeA); len(m.Answer) != 1 {
			t.Errorf("%v", m)
		}
	}
	close(stop)
	wg.Wait()
	w.engine.audit.mu.Lock()
	defer w.engine.audit.mu.Unlock()
	if n := len(w.engine.audit.last); n > auditNames {
		t.Errorf("%d names remembered for the audit log", n)
	}
	for _, q := range w.internet.questions() {
		if !strings.HasSuffix(strings.Fields(q)[0], ".example.com.") {
			t.Fatalf("asked upstream for %s", q)
		}
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newCache()
	for i := range 3 * maxEntries {
		k := key{name: fmt.Sprintf("n%d.example.com", i), qtype: dns.TypeA}
		found := &result{until: time.Now().Add(time.Hour), size: i % 4000}
		var got *result
		if hit := c.get(k, func(f func(*result)) { f(found) }, func(r *result) { got = r }); hit != nil || got != found {
			t.Fatalf("%v from the cache, %v found", hit, got)
		}
		if n, bytes := c.size(); n > maxEntries || bytes > maxBytes {
			t.Fatalf("%d entries, %d bytes", n, bytes)
		}
	}
	if len(c.entries) != c.order.Len() || len(c.flights) > 0 {
		t.Errorf("%d entries, %d in order, %d flights", len(c.entries), c.order.Len(), len(c.flights))
	}
}

// Whatever a container sends, what comes back is no larger than allowed, has
// the id, and answers the question or none.
func FuzzRead(f *testing.F) {
	q := new(dns.Msg)
	q.SetQuestion("www.example.com.", dns.TypeA)
	q.SetEdns0(4096, true)
	b, _ := q.Pack()
	f.Add(b, false)
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"), true)
	f.Fuzz(func(t *testing.T, packet []byte, tcp bool) {
		q, m, ok := read(packet, tcp)
		if ok {
			m = q.because(dns.RcodeRefused, dns.ExtendedErrorCodeProhibited, strings.Repeat("x", 1000))
		}
		if m == nil {
			return
		}
		b := q.pack(m)
		if b == nil {
			return
		}
		limit := maxUDP
		if tcp {
			limit = dns.MaxMsgSize
		}
		if len(b) > limit || b[0] != packet[0] || b[1] != packet[1] || b[2]&0x80 == 0 {
			t.Fatalf("%x for %x", b, packet)
		}
		back := new(dns.Msg)
		if err := back.Unpack(b); err != nil {
			t.Fatalf("%v: %x", err, b)
		}
		if len(back.Answer) > 0 {
			t.Fatalf("%v", back)
		}
	})
}

// Whatever upstream says, only public addresses that belong to the question
// are opened, and every address that is handed out is among them.
func FuzzDistil(f *testing.F) {
	m := new(dns.Msg)
	m.SetQuestion("example.com.", dns.TypeA)
	for _, text := range []string{"example.com. 60 IN CNAME a.test.", "a.test. 60 IN A 203.0.113.1", "a.test. 60 IN A 10.0.0.1", "b.test. 60 IN A 203.0.113.9"} {
		rr, _ := dns.NewRR(text)
		m.Answer = append(m.Answer, rr)
	}
	b, _ := m.Pack()
	f.Add(b, uint16(dns.TypeA))
	f.Fuzz(func(t *testing.T, packet []byte, qtype uint16) {
		m := new(dns.Msg)
		if m.Unpack(packet) != nil {
			return
		}
		now := time.Now()
		r, err := distil(m, key{name: "example.com", qtype: qtype}, now)
		if err != nil {
			return
		}
		if r.until.After(now.Add(learned.MaxTTL)) || len(r.answer) > maxRecords+maxChain {
			t.Fatalf("%+v", r)
		}
		owners := append([]string{"example.com"}, r.aliases...)
		for _, rr := range r.answer {
			if !slices.Contains(owners, fold(rr.Header().Name)) {
				t.Fatalf("%v is no answer", rr)
			}
			if a, ok := address(rr); ok && !slices.Contains(r.addrs, a) {
				t.Fatalf("%v is handed out and not opened", a)
			}
		}
	})
}
