package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/nl/ruleset"
)

// history is a firewall that knows when it was changed.
type history struct {
	*nft.Conn

	mu      sync.Mutex
	changes []change
}

// change is one of a firewall, some time between two others.
type change struct {
	begun, done time.Time
	learned     []netip.Addr // nil: everything was forgotten
}

func (h *history) note(begun time.Time, learned []netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.changes = append(h.changes, change{begun, time.Now(), learned})
}

func (h *history) Learn(all []nft.Learned) error {
	begun, addrs := time.Now(), []netip.Addr{}
	for _, l := range all {
		addrs = append(addrs, l.Addr)
	}
	err := h.Conn.Learn(all)
	if err == nil {
		h.note(begun, addrs)
	}
	return err
}

func (h *history) ForgetAll() error {
	begun := time.Now()
	err := h.Conn.ForgetAll()
	if err == nil {
		h.note(begun, nil)
	}
	return err
}

// closed reports whether an address was certainly closed at a time: forgotten
// by then, and not learned since.
func (h *history) closed(a netip.Addr, at time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	since := time.Time{}
	for _, c := range h.changes {
		if c.learned == nil && c.done.Before(at) && c.begun.After(since) {
			since = c.begun
		}
	}
	return !slices.ContainsFunc(h.changes, func(c change) bool {
		return slices.Contains(c.learned, a) && c.done.After(since) && c.begun.Before(at)
	})
}

func (w *world) forget() []string {
	w.t.Helper()
	removed, err := w.engine.Forget(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	out := []string{}
	for _, a := range removed {
		out = append(out, a.String())
	}
	slices.Sort(out)
	return out
}

// What was learned is forgotten: in the firewall, in the cache, and as what
// needs no renewal. The lists are what they were.
func TestForget(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		text := map[uint16]string{dns.TypeA: " 3600 IN A 203.0.113.1", dns.TypeAAAA: " 3600 IN AAAA 2001:db8::1"}[q.Qtype]
		m.Answer = append(m.Answer, record(t, q.Name+text))
	})
	for _, network := range []string{"udp", "tcp"} {
		before := len(w.internet.questions())
		for range 3 {
			w.ask(network, "example.com", dns.TypeA, false)
			w.ask(network, "example.com", dns.TypeAAAA, false)
		}
		if n := len(w.internet.questions()) - before; n != 2 {
			t.Errorf("asked %d times", n)
		}
		w.expectOpen("2001:db8::1", "203.0.113.1")
		if d := cmp.Diff([]string{"2001:db8::1", "203.0.113.1"}, w.forget()); d != "" {
			t.Error(d)
		}
		w.expectOpen()
		if s := w.engine.Status(); s.Entries != 0 || s.Bytes != 0 || s.Learned != 0 || s.Allowed != 1 {
			t.Errorf("%+v", s)
		}
		if got := w.engine.Names(netip.MustParseAddr("203.0.113.1")); len(got) != 1 || got[0].Name != "example.com" {
			t.Errorf("who asks about what is blocked now learns %v", got)
		}
	}
	if got := w.forget(); len(got) != 0 {
		t.Errorf("twice: %q", got)
	}
	// Quarantine has nothing to forget but the cache.
	w.ask("udp", "example.com", dns.TypeA, false)
	w.apply(ruleset.Quarantine)
	if got := w.forget(); len(got) != 0 || w.engine.Status().Entries != 0 {
		t.Errorf("%q, %+v", got, w.engine.Status())
	}
	w.apply(ruleset.Up)
	if _, err := w.engine.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.expectOpen()
	w.ask("udp", "example.com", dns.TypeA, false)
	w.expectOpen("203.0.113.1")
}

// A question that is being asked when all is forgotten is asked anew: what it
// is answered with then counts, and nothing of before is kept.
func TestForgetWhileAsking(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			var n atomic.Int32
			asked, release := make(chan struct{}, 10), make(chan struct{})
			w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
				last := n.Add(1)
				asked <- struct{}{}
				if last == 1 {
					<-release
				}
				m.Answer = append(m.Answer, record(t, fmt.Sprintf("%s 3600 IN A 203.0.113.%d", q.Name, last)))
			})
			ask := func() chan []string {
				got := make(chan []string, 1)
				go func() { got <- answers(w.ask(network, "example.com", dns.TypeA, false)) }()
				return got
			}
			first := ask()
			<-asked
			if got := w.forget(); len(got) != 0 {
				t.Errorf("%q", got)
			}
			// Whoever asks now does not wait for what was asked before.
			want := []string{"example.com. 3600 IN A 203.0.113.2"}
			if d := cmp.Diff(want, <-ask()); d != "" {
				t.Error(d)
			}
			close(release)
			if d := cmp.Diff(want, <-first); d != "" {
				t.Errorf("asked before: %s", d)
			}
			w.expectOpen("203.0.113.2")
			if d := cmp.Diff(want, <-ask()); d != "" {
				t.Errorf("from the cache: %s", d)
			}
		})
	}
}

// What is being asked when the cache forgets is for those who wait already, and
// not kept.
func TestCacheForgets(t *testing.T) {
	c, k := newCache(), key{name: "example.com", qtype: dns.TypeA}
	var asked []func(*result)
	ask := func(found func(*result)) { asked = append(asked, found) }
	var got []*result
	then := func(res *result) { got = append(got, res) }
	of := func(n byte) *result {
		return &result{addrs: []netip.Addr{netip.AddrFrom4([4]byte{203, 0, 113, n})}, until: time.Now().Add(time.Hour)}
	}
	before, after := of(1), of(2)
	c.get(k, ask, then)
	c.get(k, ask, then)
	c.forget()
	c.get(k, ask, then)
	if len(asked) != 2 {
		t.Fatalf("asked %d times", len(asked))
	}
	asked[0](before)
	if len(got) != 2 || got[0] != before || got[1] != before || c.has(k) {
		t.Errorf("%v; kept: %t", got, c.has(k))
	}
	asked[1](after)
	if len(got) != 3 || got[2] != after || c.peek(k) != after {
		t.Errorf("%v, %v", got, c.peek(k))
	}
	c.forget()
	if n, bytes := c.size(); n != 0 || bytes != 0 || c.peek(k) != nil {
		t.Errorf("%d entries, %d bytes", n, bytes)
	}
}

// stamped connects from the container; what comes has the time at which it was
// sent, as soon as the kernel notes that.
func (w *world) stamped(network string) syscall.Conn {
	w.t.Helper()
	c := w.dial(network).(syscall.Conn)
	raw, err := c.SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
		}), err)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// receive is a message and the time at which it was sent.
func receive(c syscall.Conn) (b []byte, at time.Time, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, at, err
	}
	b, oob := make([]byte, 4096), make([]byte, 256)
	n, size := 0, 0
	readErr := raw.Read(func(fd uintptr) bool {
		n, size, _, _, err = unix.Recvmsg(int(fd), b, oob, 0)
		return !errors.Is(err, unix.EAGAIN)
	})
	if err := errors.Join(readErr, err); err != nil {
		return nil, at, err
	}
	controls, err := unix.ParseSocketControlMessage(oob[:size])
	for _, m := range controls {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})) {
			at = time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		}
	}
	return b[:n], at, err
}

// packed is a question as it is sent.
func packed(network, name string) []byte {
	q := new(dns.Msg)
	q.SetQuestion(name, dns.TypeA)
	b, err := q.Pack()
	if err != nil {
		panic(err)
	}
	if network == "tcp" {
		b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
	}
	return b
}

// All is forgotten again and again while many ask: no answer leaves with an
// address that is closed at that moment.
func TestForgetWhileAnswering(t *testing.T) {
	addr := func(name string) netip.Addr {
		var n byte
		if _, err := fmt.Sscanf(name, "n%d.example.com.", &n); err != nil {
			panic(err)
		}
		return netip.AddrFrom4([4]byte{203, 0, 113, n})
	}
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		m.Answer = append(m.Answer, record(t, q.Name+" 3600 IN A "+addr(q.Name).String()))
	})
	type answer struct {
		addr netip.Addr
		at   time.Time
	}
	var mu sync.Mutex
	var all []answer
	failed := 0
	answered := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(all)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first := w.stamped("tcp")
	for start, at := time.Now(), (time.Time{}); at.IsZero(); { // UDP has the time of arrival in its place
		if time.Since(start) > 20*time.Second {
			t.Fatal("the kernel does not tell when messages are sent")
		}
		_, err := first.(net.Conn).Write(packed("tcp", "n1.example.com."))
		if err == nil {
			_, at, err = receive(first)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for i := range 8 {
		network := []string{"udp", "tcp"}[i%2]
		c := w.stamped(network)
		wg.Go(func() {
			for ctx.Err() == nil {
				name := fmt.Sprintf("n%d.example.com.", 1+rand.N(4))
				c.(net.Conn).SetDeadline(time.Now().Add(20 * time.Second))
				if _, err := c.(net.Conn).Write(packed(network, name)); err != nil {
					t.Error(err)
					return
				}
				b, at, err := receive(c)
				if err != nil || at.IsZero() {
					t.Errorf("%s: %v, sent at %v", network, err, at)
					return
				}
				if network == "tcp" {
					b = b[min(2, len(b)):]
				}
				m := new(dns.Msg)
				if err := m.Unpack(b); err != nil {
					t.Errorf("%s: %v", network, err)
					return
				}
				mu.Lock()
				if m.Rcode == dns.RcodeSuccess && len(m.Answer) == 1 {
					all = append(all, answer{addr(name), at})
				} else {
					failed++
				}
				mu.Unlock()
			}
		})
	}
	const rounds = 150
	for range rounds {
		w.forget()
		for before, start := answered(), time.Now(); answered() < before+8; time.Sleep(time.Millisecond) {
			if time.Since(start) > 20*time.Second {
				t.Fatal("no answers any more")
			}
		}
	}
	cancel()
	wg.Wait()
	for _, a := range all {
		if w.kernel.closed(a.addr, a.at) {
			t.Errorf("%s was handed out at %v, and was closed", a.addr, a.at.Format(time.StampMicro))
		}
	}
	t.Logf("%d answers, %d failures, %d changes", len(all), failed, len(w.kernel.changes))
	if failed > rounds {
		t.Errorf("%d questions failed", failed)
	}
}
