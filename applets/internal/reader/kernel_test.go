package reader

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/applets/internal/audit"
	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nflog"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/names"
	"github.com/terok-ai/terok-box/wire/varlink"
)

// world is a container's network with a firewall, and a Reader of it.
type world struct {
	testing.TB
	ns  *netns.NS
	b   *bundle.Bundle
	hub hub
	log logged
	r   *Reader
	end func() // of Run; waits
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{TB: t, ns: kerneltest.NewNS(t), b: newBundle(t)}
	kerneltest.Pair(t, w.ns, kerneltest.NewNS(t))
	w.apply(ruleset.Up, ruleset.Params{
		Allow: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")},
		Deny:  []netip.Prefix{netip.MustParsePrefix("203.0.113.66/32")},
	})
	return w
}

func (w *world) apply(s ruleset.State, p ruleset.Params) {
	w.Helper()
	table, err := ruleset.Build(s, p)
	if err != nil {
		w.Fatal(err)
	}
	if err := w.ns.Do(func() error {
		c, err := nft.Dial()
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Apply(table)
	}); err != nil {
		w.Fatal(err)
	}
}

// run starts a Reader and waits until it has begun.
func (w *world) run(c Config) {
	w.Helper()
	c.Bundle, c.NetNS, c.Container, c.Audit, c.Log, c.Emit = w.b, w.ns, short, true, w.log.logger(), w.hub.emit
	var err error
	if w.r, err = New(c); err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- w.r.Run(ctx) }()
	w.end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.Error(err)
		}
		close(done)
	})
	w.Cleanup(w.end)
	w.sees("container_started")
}

func (w *world) within(d time.Duration, what string, f func() bool) {
	w.Helper()
	for end := time.Now().Add(d); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.Fatalf("not within %v: %s; %+v; log %q", d, what, w.r.Status(), w.log.all())
		}
	}
}

// sees waits for events, and for others that should not be there.
func (w *world) sees(want ...string) {
	w.Helper()
	var got []string
	w.within(5*time.Second, fmt.Sprintf("%q", want), func() bool {
		got = append(got, w.hub.take()...)
		return len(got) >= len(want)
	})
	time.Sleep(20 * time.Millisecond)
	got = append(got, w.hub.take()...)
	if diff := cmp.Diff(want, got); diff != "" {
		w.Errorf("(-want +got)\n%s", diff)
	}
}

func (w *world) udp(to string) {
	w.Helper()
	if err := kerneltest.SendUDP(w.ns, netip.MustParseAddrPort(to)); !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.EACCES) {
		w.Errorf("a packet to %s: %v", to, err)
	}
}

// service is a process that knows names.
type service struct {
	known   map[netip.Addr][]names.Name
	asked   chan names.Question
	stuck   chan struct{} // Names takes that long
	watched chan struct{} // gets one when somebody watches
}

func (s *service) Names(addr netip.Addr) []names.Name {
	if s.stuck != nil {
		<-s.stuck
	}
	return s.known[addr]
}
func (s *service) Addresses(string) []netip.Addr                { return nil }
func (s *service) Reload(context.Context) (names.Change, error) { return names.Change{}, nil }
func (s *service) Forget(context.Context) ([]netip.Addr, error) { return nil, nil }
func (s *service) Status() names.Status                         { return names.Status{} }
func (s *service) Watch(ctx context.Context, f func(names.Question) error) error {
	select {
	case s.watched <- struct{}{}:
	default:
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case q := <-s.asked:
			q.Addresses = []string{}
			if err := f(q); err != nil {
				return err
			}
		}
	}
}

// serve has the bundle name a process that knows names, until end is called.
func serve(t testing.TB, b *bundle.Bundle, s *service) (end func()) {
	t.Helper()
	s.asked, s.watched = make(chan names.Question), make(chan struct{}, 10)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "dns.sock")
	l, err := varlink.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := varlink.NewServer(varlink.Config{
		Interfaces: []varlink.Interface{names.Interface(s, resources.Varlink(names.InterfaceName))}, Log: (&logged{}).logger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	self, err := bundle.ProcessOf(os.Getpid(), "4:1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- srv.Serve(ctx, l) }()
	end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	if err := b.SetNamer(bundle.Namer{PID: self.PID, Start: self.Start, Socket: socket}); err != nil {
		t.Fatal(err)
	}
	return end
}

// One blocked connection is exactly one question with its name, port and
// dossier, and one line, at once and however often it is tried.
func TestBlockedConnection(t *testing.T) {
	w := newWorld(t)
	v4, v6 := netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:1::7")
	s := &service{known: map[netip.Addr][]names.Name{
		v4: {{Name: "open.example.com", Allowed: true}, {Name: "new.example.com"}, {Name: "old.example.com"}},
		v6: {{Name: "six.example.com"}},
	}}
	serve(t, w.b, s)
	watchers := make(chan control.Packet, 100)
	w.run(Config{Dossier: map[string]string{"task": "t"}, Packet: func(p control.Packet) { watchers <- p }})
	before := time.Now()
	if err := kerneltest.DialTCP(w.ns, netip.MustParseAddrPort("198.51.100.7:443"), 2*time.Second); err == nil {
		t.Fatal("it got through")
	}
	w.within(time.Second, "a question", func() bool { return w.r.Status().Asked == 1 })
	got := w.hub.peek()
	w.hub.take()
	if len(got) != 1 {
		t.Fatalf("%d events", len(got))
	}
	if d := got[0].Time.Sub(before); d < 0 || d > time.Second {
		t.Errorf("time %v after", d)
	}
	got[0].Time = time.Time{}
	want := event.Event{
		Type: event.Blocked, Container: short, ID: short + ":1", Dest: "198.51.100.7", Port: 443, Proto: 6,
		Domain: "new.example.com", Dossier: map[string]string{"task": "t"},
	}
	if diff := cmp.Diff(want, got[0]); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for range 3 {
		w.udp("198.51.100.7:80")
	}
	w.within(time.Second, "its repetition", func() bool { return w.r.Status().Repeated >= 3 })
	w.udp("[2001:db8:1::7]:99")
	w.sees(short + ":2 2001:db8:1::7 17/99 six.example.com")
	w.udp("198.51.100.8:99") // of no name
	w.sees(short + ":3 198.51.100.8 17/99")
	for _, quiet := range []string{"203.0.113.66:9", "10.1.2.3:9"} {
		w.udp(quiet)
	}
	if err := kerneltest.SendUDP(w.ns, netip.MustParseAddrPort("203.0.113.7:9")); err != nil {
		t.Error(err)
	}
	w.apply(ruleset.Quarantine, ruleset.Params{})
	if err := kerneltest.SendUDP(w.ns, netip.MustParseAddrPort("198.51.100.99:9")); err == nil {
		t.Error("it got out of the quarantine")
	}
	seen := map[string]bool{}
	w.within(time.Second, "watchers see all of them", func() bool {
		for len(watchers) > 0 {
			p := <-watchers
			seen[fmt.Sprintf("%s%s %d/%d", p.Prefix, p.Dest, p.Proto, p.Port)] = true
		}
		return seen["TEROK_SHIELD_QUARANTINE: 198.51.100.99 17/9"]
	})
	for _, p := range []string{
		"TEROK_SHIELD_BLOCKED: 198.51.100.7 6/443", "TEROK_SHIELD_BLOCKED: 2001:db8:1::7 17/99", "TEROK_SHIELD_DENIED: 203.0.113.66 17/9",
		"TEROK_SHIELD_PRIVATE: 10.1.2.3 17/9", "TEROK_SHIELD_ALLOWED: 203.0.113.7 17/9",
	} {
		if !seen[p] {
			t.Errorf("watchers did not see %s, but %v", p, seen)
		}
	}
	w.sees()
	w.end()
	lines := auditLines(t, w.b)
	wantLines := []audit.Entry{
		{Container: short, Action: audit.Blocked, Dest: "198.51.100.7", Port: 443, Proto: "tcp", Domain: "new.example.com", Dossier: map[string]string{"task": "t"}},
		{Container: short, Action: audit.Blocked, Dest: "2001:db8:1::7", Port: 99, Proto: "udp", Domain: "six.example.com", Dossier: map[string]string{"task": "t"}},
		{Container: short, Action: audit.Blocked, Dest: "198.51.100.8", Port: 99, Proto: "udp", Dossier: map[string]string{"task": "t"}},
	}
	if diff := cmp.Diff(wantLines, lines); diff != "" {
		t.Errorf("audit (-want +got)\n%s", diff)
	}
}

// What hides behind extension headers, and what is neither TCP nor UDP, is
// asked about with its port.
func TestOtherPackets(t *testing.T) {
	w := newWorld(t)
	w.run(Config{})
	send := func(domain, typ, proto int, to unix.Sockaddr, data []byte, options ...int) {
		t.Helper()
		if err := w.ns.Do(func() error {
			fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, proto)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			for _, o := range options {
				if err := unix.SetsockoptString(fd, unix.IPPROTO_IPV6, o, "\x00\x00\x01\x04\x00\x00\x00\x00"); err != nil {
					return err
				}
			}
			err = unix.Sendto(fd, data, 0, to)
			if err == nil {
				return errors.New("it got out")
			}
			if err != unix.EPERM && err != unix.EACCES {
				return err
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	v6 := &unix.SockaddrInet6{Port: 4711, Addr: netip.MustParseAddr("2001:db8:1::5").As16()}
	send(unix.AF_INET6, unix.SOCK_DGRAM, 0, v6, []byte("x"), unix.IPV6_HOPOPTS, unix.IPV6_DSTOPTS)
	w.sees(short + ":1 2001:db8:1::5 17/4711")
	sctp := []byte("\x10\x01\x01\xbb\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x14")
	send(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_SCTP, &unix.SockaddrInet4{Addr: [4]byte{198, 51, 100, 5}}, sctp)
	w.sees(short + ":2 198.51.100.5 132/443")
	send(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP, &unix.SockaddrInet4{Addr: [4]byte{198, 51, 100, 6}}, []byte{8, 0, 0, 0, 0, 1, 0, 1})
	w.sees(short + ":3 198.51.100.6 1/0")
	send(unix.AF_INET, unix.SOCK_RAW, 47, &unix.SockaddrInet4{Addr: [4]byte{198, 51, 100, 4}}, []byte("0123456789"))
	w.sees(short + ":4 198.51.100.4 47/0")
	w.end()
	var protos []string
	for _, l := range auditLines(t, w.b) {
		protos = append(protos, l.Proto)
	}
	if diff := cmp.Diff([]string{"udp", "132", "1", "47"}, protos); diff != "" {
		t.Errorf("audit (-want +got)\n%s", diff)
	}
}

// Nothing is missed between New and Run.
func TestNothingIsMissed(t *testing.T) {
	w := newWorld(t)
	var err error
	if w.r, err = New(Config{Bundle: w.b, NetNS: w.ns, Container: short, Log: w.log.logger(), Emit: w.hub.emit}); err != nil {
		t.Fatal(err)
	}
	w.udp("198.51.100.7:9")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.r.Run(ctx) }()
	w.sees("container_started", short+":1 198.51.100.7 17/9")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if lines := auditLines(t, w.b); len(lines) > 0 {
		t.Errorf("lines without being asked for: %v", lines)
	}
}

// What is blocked as the container ends is in the audit log.
func TestLastPacket(t *testing.T) {
	for i := range 20 {
		w := newWorld(t)
		w.run(Config{})
		w.udp("198.51.100.7:9") // logged, and not read yet
		w.end()
		if lines := auditLines(t, w.b); len(lines) != 1 {
			t.Errorf("%d: audit %v", i, lines)
		}
		if err := w.r.Exit("poststop"); err != nil {
			t.Error(err)
		}
		if got := w.hub.take(); got[len(got)-1] != "container_exited poststop" {
			t.Errorf("%q", got)
		}
	}
}

// An end that nobody listens to does not last.
func TestEndWithSlowHub(t *testing.T) {
	w := newWorld(t)
	w.run(Config{})
	never := make(chan struct{})
	defer close(never)
	w.hub.set(nil, never)
	w.udp("198.51.100.7:9")
	w.within(time.Second, "the packet", func() bool { return w.hub.attempts() > 1 })
	began := time.Now()
	w.end()
	if d := time.Since(began); d > 2*drainTimeout {
		t.Errorf("it took %v", d)
	}
}

// A hub that comes late gets the start, and what still happens.
func TestLateHub(t *testing.T) {
	w := newWorld(t)
	var err error
	w.hub.set(errors.New("not yet"), nil)
	if w.r, err = New(Config{Bundle: w.b, NetNS: w.ns, Container: short, Audit: true, Log: w.log.logger(), Emit: w.hub.emit}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.r.Run(ctx) }()
	w.udp("198.51.100.7:9")
	w.within(time.Second, "an attempt", func() bool { return w.r.Status().Undelivered == 1 })
	w.udp("198.51.100.7:9")
	w.within(time.Second, "an attempt", func() bool { return w.r.Status().Undelivered == 2 })
	w.hub.set(nil, nil)
	w.udp("198.51.100.7:9")
	w.sees("container_started", short+":3 198.51.100.7 17/9")
	w.udp("198.51.100.7:9")
	w.sees()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if lines := auditLines(t, w.b); len(lines) != 1 {
		t.Errorf("audit %v", lines)
	}
}

// unlimited blocks and logs every packet, as the existing systems' rulesets
// do.
const unlimited = `table inet flood {
	chain out {
		type filter hook output priority 10; policy accept;
		ip daddr 100.64.0.0/10 log prefix "TEROK_SHIELD_BLOCKED: " group 100 drop
	}
}
`

// flood sends one packet each to so many destinations.
func flood(t testing.TB, ns *netns.NS, n int) {
	t.Helper()
	if err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for i := range n {
			to := &unix.SockaddrInet4{Port: 9, Addr: [4]byte{100, 64 | byte(i>>16)&0x3f, byte(i >> 8), byte(i)}}
			if err := unix.Sendto(fd, []byte("x"), 0, to); err != unix.EPERM {
				return fmt.Errorf("packet %d: %w", i, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func newFloodWorld(t testing.TB) *world {
	t.Helper()
	w := &world{TB: t, ns: kerneltest.NewNS(t), b: newBundle(t)}
	kerneltest.Pair(t, w.ns, kerneltest.NewNS(t))
	kerneltest.NFT(t, w.ns, unlimited, "-f", "-")
	return w
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A container that scans makes no more questions and lines, and takes no more
// memory, than is bearable. What follows is still asked about.
func TestRealScan(t *testing.T) {
	w := newFloodWorld(t)
	w.run(Config{})
	before := heap()
	const n = 10_000
	began := time.Now()
	flood(t, w.ns, n)
	w.within(10*time.Second, "all of them", func() bool { s := w.r.Status(); return s.Packets+s.Lost >= n })
	seconds := int(time.Since(began).Seconds()) + 1
	time.Sleep(20 * time.Millisecond)
	if got := len(w.hub.take()); got < askBurst || got > askBurst+askRate*seconds {
		t.Errorf("%d questions in %d s", got, seconds)
	}
	if got := len(auditLines(t, w.b)); got < lineBurst/2 || got > lineBurst+lineRate*seconds {
		t.Errorf("%d lines in %d s", got, seconds)
	}
	if s := w.r.Status(); s.Suppressed+s.Asked+s.Lost < n-lookupBurst {
		t.Errorf("%+v", s)
	}
	if after := heap(); after > before+1<<20 {
		t.Errorf("memory grew from %d to %d", before, after)
	}
	time.Sleep(time.Second)
	flood(t, w.ns, 1) // to the very first one, which is known
	w.sees()
	kerneltest.SendUDP(w.ns, netip.MustParseAddrPort("100.100.1.1:4711"))
	w.within(time.Second, "a question", func() bool { return len(w.hub.peek()) > 0 })
	if got := w.hub.take(); len(got) != 1 || !strings.HasSuffix(got[0], " 100.100.1.1 17/4711") {
		t.Errorf("%q", got)
	}
}

// Packets that came too fast are counted, and people told.
func TestLoss(t *testing.T) {
	w := newFloodWorld(t)
	hold := make(chan struct{})
	var lost int64
	w.run(Config{Packet: func(p control.Packet) { <-hold; lost += p.Lost }})
	const n = 100_000
	flood(t, w.ns, n)
	close(hold)
	for was := uint64(0); ; time.Sleep(50 * time.Millisecond) {
		if is := w.r.Status().Packets; is > 0 && is == was {
			break // there is room again
		} else {
			was = is
		}
	}
	flood(t, w.ns, 1) // the loss shows with the next one
	w.within(10*time.Second, "the loss", func() bool { s := w.r.Status(); return s.Packets+s.Lost >= n+1 })
	s := w.r.Status()
	if s.Lost == 0 || s.Packets+s.Lost != n+1 {
		t.Errorf("%+v", s)
	}
	w.within(time.Second, "a line about it", func() bool { return w.log.count("packets were lost") == 1 })
	w.end()
	if uint64(lost) != s.Lost {
		t.Errorf("watchers were told of %d, of %d", lost, s.Lost)
	}
}

// Packets to where others have just gone leave nothing behind to be collected.
func TestNoGarbage(t *testing.T) {
	w := newFloodWorld(t)
	w.run(Config{Packet: func(control.Packet) {}})
	const n = 200 // fit the buffer, whatever else runs
	received := func() uint64 { s := w.r.Status(); return s.Packets + s.Lost }
	fd := -1
	if err := w.ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	to, data := &unix.SockaddrInet4{Port: 9, Addr: [4]byte{100, 64, 0, 1}}, []byte("x")
	allocs := testing.AllocsPerRun(10, func() {
		before := received()
		for range n {
			unix.Sendto(fd, data, 0, to)
		}
		for received() < before+n {
			time.Sleep(time.Millisecond)
		}
	})
	if allocs > n/4 { // of the test's own, and of looking the name up once a second
		t.Errorf("%v allocations for %d packets", allocs, n)
	}
}

// While another process reads the packets names are asked about, under ids
// that are not the other's; when it has ended packets are, too.
func TestBusy(t *testing.T) {
	w := newWorld(t)
	var other *nflog.Conn
	if err := w.ns.Do(func() (err error) { other, err = nflog.Open(ruleset.Group); return err }); err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := New(Config{Bundle: w.b, NetNS: w.ns, Sole: true, Log: w.log.logger(), Emit: w.hub.emit}); !errors.Is(err, nflog.ErrBusy) {
		t.Errorf("%v, want ErrBusy", err)
	}
	s := &service{}
	serve(t, w.b, s)
	w.run(Config{})
	if st := w.r.Status(); !strings.Contains(st.Trouble, "another process") || w.log.count("another process") != 1 {
		t.Errorf("%+v", st)
	}
	s.asked <- names.Question{Name: "a.test", Type: "A", Verdict: names.Refused}
	w.sees(fmt.Sprintf("%s:%d  17/53 a.test", short, uint64(besides+1)))
	w.udp("198.51.100.7:9")
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	w.within(openFirst+openLongest, "it reads packets", func() bool { return w.r.Status().Trouble == "" })
	w.udp("198.51.100.8:9")
	w.sees(fmt.Sprintf("%s:%d 198.51.100.8 17/9", short, uint64(besides+2)))
}

// The process that refuses names may start late, die and come back.
func TestNamerRestarts(t *testing.T) {
	w := newWorld(t)
	w.run(Config{})
	ask := func(s *service, name, want string) {
		t.Helper()
		select {
		case <-s.watched:
		case <-time.After(watchLongest + time.Second):
			t.Fatal("nobody watches")
		}
		s.asked <- names.Question{Name: name, Type: "A", Verdict: names.Refused}
		w.sees(want)
	}
	addr := netip.MustParseAddr("198.51.100.7")
	time.Sleep(watchLongest)
	first := &service{known: map[netip.Addr][]names.Name{addr: {{Name: "one.test"}}}}
	end := serve(t, w.b, first)
	ask(first, "a.test", short+":1  17/53 a.test")
	w.udp("198.51.100.7:9")
	w.sees(short + ":2 198.51.100.7 17/9 one.test")
	end()
	time.Sleep(nameAge)
	second := &service{known: map[netip.Addr][]names.Name{addr: {{Name: "two.test"}}}}
	serve(t, w.b, second)
	w.udp("198.51.100.7:9") // over a connection that has ended
	w.sees(short + ":3 198.51.100.7 17/9 two.test")
	ask(second, "b.test", short+":4  17/53 b.test")
	if s := w.r.Status(); s.Trouble != "" {
		t.Errorf("%+v", s)
	}
}

// A process of names that does not answer costs a question its name, and the
// packets behind it nothing.
func TestStuckNamer(t *testing.T) {
	w := newWorld(t)
	s := &service{stuck: make(chan struct{})}
	serve(t, w.b, s)
	defer close(s.stuck)
	w.run(Config{})
	began := time.Now()
	for i := range 5 {
		w.udp(fmt.Sprintf("198.51.100.%d:9", i+1))
	}
	w.within(time.Second, "questions", func() bool { return w.r.Status().Asked == 5 })
	if d := time.Since(began); d < lookupTimeout || d > 4*lookupTimeout {
		t.Errorf("after %v", d)
	}
}

// benchFlow is a Reader that asks nobody.
func benchReader(b *testing.B, c Config) *Reader {
	c.Bundle, c.Container, c.Audit = newBundle(b), short, true
	c.Log, c.Emit = (&logged{}).logger(), func(event.Event) error { return nil }
	r := newReader(c)
	ctx, cancel := context.WithCancel(context.Background())
	b.Cleanup(cancel)
	go r.resolve(ctx)
	go r.emit(ctx)
	go r.write(ctx)
	return r
}

// BenchmarkRepeated is a packet to where another one has just gone.
func BenchmarkRepeated(b *testing.B) {
	r := benchReader(b, Config{Packet: func(control.Packet) {}})
	p := nflog.Packet{Prefix: string(ruleset.LogBlocked), Payload: payload("198.51.100.7", nflog.TCP, 443)}
	r.packet(p, 0, time.Now())
	b.ReportAllocs()
	for b.Loop() {
		r.packet(p, 0, time.Now())
	}
}

// BenchmarkScanned is a packet of a scan.
func BenchmarkScanned(b *testing.B) {
	r := benchReader(b, Config{Packet: func(control.Packet) {}})
	p := nflog.Packet{Prefix: string(ruleset.LogBlocked), Payload: payload("100.64.0.0", nflog.TCP, 443)}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		p.Payload[17], p.Payload[18], p.Payload[19] = byte(i>>16), byte(i>>8), byte(i)
		r.packet(p, 0, time.Now())
	}
}
