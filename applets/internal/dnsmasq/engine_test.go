package dnsmasq

import (
	"context"
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
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/applets/internal/tier"
	"github.com/terok-ai/terok-box/nl/conntrack"
	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/names"
)

// patience is how long something is waited for that must happen.
const patience = 20 * time.Second

const learnedTable = `table inet terok_shield {
	set learned_v4 { type ipv4_addr; flags timeout; timeout 30m; }
	set learned_v6 { type ipv6_addr; flags timeout; timeout 30m; }
}
`

// world is a container's network with a name server in it that has a zone.
type world struct {
	b    *bundle.Bundle
	ns   *netns.NS
	conn *nft.Conn

	mu    sync.Mutex
	zone  map[string][]string // records without their names, by name
	asked []string
}

// newWorld has lists of names: those allowed, those denied.
func newWorld(t *testing.T, allow, deny []string, zone map[string][]string) *world {
	t.Helper()
	b, err := bundle.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := end(context.Background(), b); err != nil {
			t.Error(err)
		}
		b.Close()
	})
	w := &world{b: b, ns: kerneltest.NewNS(t), zone: zone}
	if err := errors.Join(
		b.SetRulesetFormat(ruleset.Format),
		b.SetUpstreamDNS(netip.MustParseAddr(upstream)),
		b.SetProfileDomains(allow),
		b.SetDeniedDomains(deny),
	); err != nil {
		t.Fatal(err)
	}
	kerneltest.NFT(t, w.ns, learnedTable, "-f", "-")
	at := netip.MustParseAddrPort(upstream + ":53")
	socket, listener := kerneltest.ListenUDP(t, w.ns, at), kerneltest.ListenTCP(t, w.ns, at)
	var all sync.WaitGroup
	for _, server := range []*dns.Server{{PacketConn: socket}, {Listener: listener}} {
		server.Handler = dns.HandlerFunc(w.serve)
		all.Go(func() { server.ActivateAndServe() })
	}
	t.Cleanup(func() {
		socket.Close()
		listener.Close()
		all.Wait()
	})
	return w
}

// serve answers with the records of the right type, and follows one CNAME.
func (w *world) serve(rw dns.ResponseWriter, q *dns.Msg) {
	w.mu.Lock()
	defer w.mu.Unlock()
	name := strings.TrimSuffix(strings.ToLower(q.Question[0].Name), ".")
	w.asked = append(w.asked, name)
	a := new(dns.Msg)
	a.SetReply(q)
	for range 2 {
		next := ""
		for _, record := range w.zone[name] {
			rr, err := dns.NewRR(name + ". 3600 " + record)
			if err != nil {
				panic(err)
			}
			if cname, ok := rr.(*dns.CNAME); ok {
				next = strings.TrimSuffix(cname.Target, ".")
			} else if rr.Header().Rrtype != q.Question[0].Qtype {
				continue
			}
			a.Answer = append(a.Answer, rr)
		}
		if name = next; name == "" {
			break
		}
	}
	rw.WriteMsg(a)
}

func (w *world) wasAsked(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Contains(w.asked, name)
}

// run is one life of the process with the engine. It ends with the test or
// when cancel is called, which waits for it.
func (w *world) run(t *testing.T) (e *engine, cancel func()) {
	t.Helper()
	r := tier.Resources{
		Spec:   names.Spec{StateDir: w.b.Path(), Container: "c", ID: "0123456789ab", Audit: true},
		Bundle: w.b, NetNS: w.ns, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if err := w.ns.Do(func() (err error) {
		if r.NFT, err = nft.Dial(); err != nil {
			return err
		}
		r.Track, err = conntrack.Dial()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	w.conn = r.NFT
	e, err := newEngine(r)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	if err := e.Start(ctx, func(err error) { t.Errorf("failed: %v", err) }); err != nil {
		stop()
		t.Fatal(err)
	}
	var once sync.Once
	cancel = func() {
		once.Do(func() {
			stop()
			<-e.done
			r.NFT.Close()
			r.Track.Close()
		})
	}
	t.Cleanup(cancel)
	return e, cancel
}

// answer is what the container is told: the addresses, or the code.
func (w *world) answer(t *testing.T, name string, typ uint16) string {
	t.Helper()
	r, err := w.exchange(name, typ, 5*time.Second)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	var out []string
	for _, rr := range r.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			out = append(out, rr.A.String())
		case *dns.AAAA:
			out = append(out, rr.AAAA.String())
		}
		if ttl := time.Duration(rr.Header().Ttl) * time.Second; ttl > maxTTL {
			t.Errorf("%s: TTL %v", name, ttl)
		}
	}
	if out == nil {
		return dns.RcodeToString[r.Rcode]
	}
	return strings.Join(out, " ")
}

func (w *world) exchange(name string, typ uint16, timeout time.Duration) (r *dns.Msg, err error) {
	q := new(dns.Msg)
	q.SetQuestion(name+".", typ)
	err = w.ns.Do(func() (err error) {
		c := dns.Client{Timeout: timeout}
		r, _, err = c.Exchange(q, "127.0.0.1:53")
		return err
	})
	return r, err
}

// open are the addresses that can be reached because of a name.
func (w *world) open(t *testing.T) (out []string) {
	t.Helper()
	all, err := w.conn.Learned()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		out = append(out, l.Addr.String())
	}
	slices.Sort(out)
	return out
}

// until waits for something to be true.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for started := time.Now(); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Since(started) > patience {
			t.Fatalf("not in %v: %s", patience, what)
		}
	}
}

// questions collects what a watcher sees; the first call waits until it watches.
func questions(t *testing.T, e *engine) func() []names.Question {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var mu sync.Mutex
	var seen []names.Question
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Watch(ctx, func(q names.Question) error {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, q)
			return nil
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	until(t, "it watches", func() bool {
		e.watch.mu.Lock()
		defer e.watch.mu.Unlock()
		return len(e.watch.all) > 0
	})
	return func() []names.Question {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(seen)
	}
}

// What the lists say about names is what becomes of questions: all names were
// forwarded, allowed or not; what allows beat what denies; names with
// underscores, digits or punycode at their end were never tracked; an address
// was ascribed to the end of a chain of aliases instead of to the name asked
// for.
func TestQuestions(t *testing.T) {
	w := newWorld(t,
		[]string{"example.com", "*.wild.test", "=exact.test", "below.exact2.test", "=exact2.test", "_tcp.u_s.test", "1.2.x3.test", "a.xn--p1ai", "back.denied.test"},
		[]string{"sub.example.com", "denied.test", "=only.wild.test", "deep.back.denied.test"},
		map[string][]string{
			"example.com": {"A 11.0.0.1", "AAAA 2001:db8::1"}, "www.example.com": {"A 11.0.0.2"},
			"alias.example.com": {"CNAME end.other.test."}, "end.other.test": {"A 11.0.0.3"},
			"sub.example.com": {"A 11.0.1.1"}, "x.sub.example.com": {"A 11.0.1.2"}, "evilexample.com": {"A 11.0.1.3"},
			"wild.test": {"A 11.0.0.4"}, "a.wild.test": {"A 11.0.0.5"}, "only.wild.test": {"A 11.0.1.4"}, "a.only.wild.test": {"A 11.0.0.6"},
			"exact.test": {"A 11.0.0.7"}, "a.exact.test": {"A 11.0.1.5"}, "exact2.test": {"A 11.0.0.8"}, "below.exact2.test": {"A 11.0.0.9"},
			"a.below.exact2.test": {"A 11.0.0.10"}, "other.exact2.test": {"A 11.0.1.6"},
			"_tcp.u_s.test": {"A 11.0.0.11"}, "1.2.x3.test": {"A 11.0.0.12"}, "a.xn--p1ai": {"A 11.0.0.13"}, "y._tcp.u_s.test": {"A 11.0.0.14"},
			"denied.test": {"A 11.0.1.7"}, "a.denied.test": {"A 11.0.1.8"}, "back.denied.test": {"A 11.0.0.15"}, "a.back.denied.test": {"A 11.0.0.16"},
			"deep.back.denied.test": {"A 11.0.1.9"}, "other.test": {"A 11.0.1.10"},
		})
	for _, resolve := range []bool{false, true} {
		t.Run(map[bool]string{false: "refuse", true: "resolve"}[resolve], func(t *testing.T) {
			if err := w.b.SetResolveUnlisted(resolve); err != nil {
				t.Fatal(err)
			}
			kerneltest.NFT(t, w.ns, "", "flush", "set", "inet", "terok_shield", "learned_v4")
			w.mu.Lock()
			w.asked = nil
			w.mu.Unlock()
			e, cancel := w.run(t)
			defer cancel()
			seen := questions(t, e)
			var want []string
			for name, records := range w.zone {
				_, addr, _ := strings.Cut(records[0], " ")
				d := e.current().names.Decide(name)
				// Nothing below a name that alone is allowed, see forwards.
				forwarded := d.Allowed || resolve && !d.Denied && name != "a.exact.test" && name != "other.exact2.test"
				got := w.answer(t, name, dns.TypeA)
				switch {
				case name == "alias.example.com":
					addr = "11.0.0.3"
					fallthrough
				case d.Allowed:
					want = append(want, addr)
					fallthrough
				case forwarded:
					if got != addr {
						t.Errorf("%s is %s instead of %s", name, got, addr)
					}
				default:
					if got != "NXDOMAIN" || w.wasAsked(name) {
						t.Errorf("%s is %s; upstream was asked: %t", name, got, w.wasAsked(name))
					}
				}
			}
			if got := w.answer(t, "example.com", dns.TypeAAAA); got != "2001:db8::1" {
				t.Errorf("AAAA is %s", got)
			}
			want = append(want, "2001:db8::1")
			slices.Sort(want)
			if diff := cmp.Diff(want, w.open(t)); diff != "" {
				t.Errorf("open (-want +got):\n%s", diff)
			}
			until(t, "every question is seen", func() bool { return len(seen()) == len(w.zone)+1 })
			verdicts := map[string]string{}
			for _, q := range seen() {
				verdicts[q.Name+" "+q.Type] = q.Verdict + " " + q.Reason + " " + strings.Join(q.Addresses, ",")
				if _, err := time.Parse(time.RFC3339Nano, q.Time); err != nil || q.Missed != 0 {
					t.Errorf("%+v: %v", q, err)
				}
			}
			other := "refused not on this container's list "
			if resolve {
				other = "resolved not on this container's list 11.0.1.10"
			}
			for q, want := range map[string]string{
				"example.com AAAA":        "allowed  2001:db8::1",
				"alias.example.com A":     "allowed  11.0.0.3",
				"x.sub.example.com A":     "denied denied by sub.example.com ",
				"only.wild.test A":        "denied denied by =only.wild.test ",
				"deep.back.denied.test A": "denied denied by deep.back.denied.test ",
				"a.exact.test A":          "refused not on this container's list ",
				"other.test A":            other,
			} {
				if verdicts[q] != want {
					t.Errorf("%s: %q instead of %q", q, verdicts[q], want)
				}
			}
			if got := e.Names(netip.MustParseAddr("11.0.0.3")); len(got) == 0 || got[0].Name != "alias.example.com" || !got[0].Allowed {
				t.Errorf("11.0.0.3 is of %v", got)
			}
			if got := e.Addresses("alias.example.com"); len(got) != 1 || got[0].String() != "11.0.0.3" {
				t.Errorf("alias.example.com has %v", got)
			}
			if got := e.Names(netip.MustParseAddr("11.0.1.10")); (len(got) == 1) != resolve || resolve && got[0].Allowed {
				t.Errorf("11.0.1.10 is of %v", got)
			}
			s := e.Status()
			if s.Tier != "dnsmasq" || s.Allowed != 9 || s.Denied != 4 || s.Questions != int64(len(w.zone)+1) || (s.Refused > 10) == resolve || s.Failed != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// A change of the lists takes effect at once (SIGHUP does not make dnsmasq
// read its configuration), and no question is refused meanwhile.
func TestReload(t *testing.T) {
	w := newWorld(t, []string{"example.com", "shared.test"}, nil, map[string][]string{
		"example.com": {"A 11.0.0.1"}, "shared.test": {"A 11.0.0.2"}, "also.example.com": {"A 11.0.0.2"}, "new.test": {"A 11.0.0.3"},
	})
	e, _ := w.run(t)
	for _, name := range []string{"example.com", "shared.test", "also.example.com", "new.test"} {
		w.answer(t, name, dns.TypeA)
	}
	if diff := cmp.Diff([]string{"11.0.0.1", "11.0.0.2"}, w.open(t)); diff != "" {
		t.Fatal(diff)
	}
	// Of what is still to be read in the log, nobody will say that it was closed.
	for name, want := range map[string]string{"example.com": "11.0.0.1", "shared.test": "11.0.0.2"} {
		until(t, "what the log says of "+name, func() bool { return slices.Contains(e.Addresses(name), netip.MustParseAddr(want)) })
	}
	stop, failures := make(chan struct{}), make(chan error)
	go func() {
		defer close(failures)
		for {
			_, err := w.exchange("shared.test", dns.TypeA, time.Second)
			if errors.Is(err, os.ErrDeadlineExceeded) { // an answer that the old one waited for
				_, err = w.exchange("shared.test", dns.TypeA, time.Second)
			}
			if err != nil {
				failures <- err
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	before := pidOf(t, w.b)
	if err := errors.Join(w.b.SetLiveDomains([]string{"new.test"}), w.b.SetDeniedDomains([]string{"example.com"})); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	change, err := e.Reload(t.Context())
	t.Logf("reloaded in %v", time.Since(started))
	if diff := cmp.Diff(names.Change{Allowed: 3, Denied: 1, Removed: []string{"11.0.0.1"}, Enforced: true}, change); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	close(stop)
	for err := range failures {
		t.Errorf("during the reload: %v", err)
	}
	if pid := pidOf(t, w.b); pid == before || len(running(t, w.b)) != 1 {
		t.Errorf("pid %d as before, or several of %v", pid, running(t, w.b))
	}
	if got := w.answer(t, "new.test", dns.TypeA) + " " + w.answer(t, "example.com", dns.TypeA); got != "11.0.0.3 NXDOMAIN" {
		t.Errorf("now they are %s", got)
	}
	if diff := cmp.Diff([]string{"11.0.0.2", "11.0.0.3"}, w.open(t)); diff != "" {
		t.Error(diff)
	}
	// What dnsmasq has opened and nobody knows of is closed, too.
	kerneltest.NFT(t, w.ns, "", "add", "element", "inet", "terok_shield", "learned_v4", "{ 11.0.0.99 }")
	if change, err := e.Reload(t.Context()); err != nil || !slices.Equal(change.Removed, []string{"11.0.0.99"}) {
		t.Errorf("%+v, %v", change, err)
	}
	if s := e.Status(); s.Restarts != 0 {
		t.Errorf("%d restarts", s.Restarts)
	}
}

// What is forgotten is closed, also what only dnsmasq knows of, and so is what
// it remembers: the next question is asked upstream, and its answer opens what
// it has. Meanwhile every name is answered, and every answer is open.
func TestForget(t *testing.T) {
	w := newWorld(t, []string{"example.com", "shared.test"}, nil, map[string][]string{
		"example.com": {"A 11.0.0.1"}, "shared.test": {"A 11.0.0.2"},
	})
	e, _ := w.run(t)
	for _, name := range []string{"example.com", "shared.test"} {
		w.answer(t, name, dns.TypeA)
	}
	kerneltest.NFT(t, w.ns, "", "add", "element", "inet", "terok_shield", "learned_v4", "{ 11.0.0.99 }")
	stop, failures := make(chan struct{}), make(chan error)
	go func() {
		defer close(failures)
		for {
			_, err := w.exchange("shared.test", dns.TypeA, time.Second)
			if errors.Is(err, os.ErrDeadlineExceeded) { // an answer that the old one waited for
				_, err = w.exchange("shared.test", dns.TypeA, time.Second)
			}
			if err != nil {
				failures <- err
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	w.mu.Lock()
	w.zone["example.com"], w.asked = []string{"A 11.0.0.11"}, nil
	w.mu.Unlock()
	removed, err := e.Forget(t.Context())
	want := []netip.Addr{netip.MustParseAddr("11.0.0.1"), netip.MustParseAddr("11.0.0.2"), netip.MustParseAddr("11.0.0.99")}
	if !slices.Equal(removed, want) || err != nil {
		t.Errorf("forgot %v, %v", removed, err)
	}
	close(stop)
	for err := range failures {
		t.Errorf("meanwhile: %v", err)
	}
	if got := w.open(t); slices.Contains(got, "11.0.0.1") || slices.Contains(got, "11.0.0.99") {
		t.Errorf("open are %v", got)
	}
	if w.wasAsked("example.com") {
		t.Error("asked for by nobody")
	}
	for name, want := range map[string]string{"example.com": "11.0.0.11", "shared.test": "11.0.0.2"} {
		if got := w.answer(t, name, dns.TypeA); got != want || !w.wasAsked(name) {
			t.Errorf("%s is %s", name, got)
		}
		if !slices.Contains(w.open(t), want) {
			t.Errorf("%s was handed out and is closed", want)
		}
	}
	// The engine keeps open what is open now, and nothing of before.
	until(t, "what the log says", func() bool { return e.Addresses("example.com") != nil && e.Addresses("shared.test") != nil })
	if diff := cmp.Diff([]string{"11.0.0.11", "11.0.0.2"}, w.open(t)); diff != "" {
		t.Error(diff)
	}
	if s := e.Status(); s.Restarts != 0 || s.Learned != 2 || len(running(t, w.b)) != 1 {
		t.Errorf("%+v, processes %v", s, running(t, w.b))
	}

	// Where there are no sets there is nothing to close.
	kerneltest.NFT(t, w.ns, "", "delete", "table", "inet", "terok_shield")
	if removed, err := e.Forget(t.Context()); err != nil || len(removed) != 0 {
		t.Errorf("%v, %v", removed, err)
	}
}

// An answer renews its address, though dnsmasq adds it again to no effect.
func TestCachedAnswersRefresh(t *testing.T) {
	w := newWorld(t, []string{"example.com"}, nil, map[string][]string{"example.com": {"A 11.0.0.1"}})
	e, _ := w.run(t)
	left := func() time.Duration {
		all, err := w.conn.Learned()
		if err != nil || len(all) != 1 {
			t.Fatalf("%v, %v", all, err)
		}
		return all[0].Timeout
	}
	for range 3 {
		w.answer(t, "example.com", dns.TypeA)
		until(t, "renewed", func() bool { return e.Addresses("example.com") != nil && left() > maxTTL })
		kerneltest.NFT(t, w.ns, "add element inet terok_shield learned_v4 { 11.0.0.1 timeout 1m }\n"+
			"delete element inet terok_shield learned_v4 { 11.0.0.1 }\nadd element inet terok_shield learned_v4 { 11.0.0.1 timeout 1m }", "-f", "-")
		if left() > time.Minute {
			t.Fatal("not shortened")
		}
	}
}

// No rebinding protection: an allowed name opens public addresses only.
func TestRebinding(t *testing.T) {
	zone := map[string][]string{}
	var want []string
	for i, s := range []string{
		"0.1.2.3", "10.1.2.3", "100.64.0.1", "100.127.255.254", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.0.0.192", "192.168.1.1",
		"224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:10.0.0.1", "::ffff:11.0.0.1", "fd00::1", "fe80::1", "fec0::1", "ff02::1",
		"64:ff9b::a00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::6440:1", "64:ff9b:1::1", "2002:a00:1::1", "2002:a9fe:a9fe::1", "2002:6440:1::1", "1234::1", "4000::1",
		"11.0.0.1", "100.128.0.1", "192.0.1.1", "223.255.255.255", "2001:db8::1", "64:ff9b::b00:1", "2002:b00:1::1",
	} {
		a := netip.MustParseAddr(s)
		typ := "AAAA "
		if a.Is4() {
			typ = "A "
		}
		if typ == "AAAA " && a.Is4In6() {
			s = "::ffff:" + a.Unmap().String()
		}
		zone[fmt.Sprintf("n%d.example.com", i)] = []string{typ + s}
		if policy.NotPublic(a) == "" {
			want = append(want, a.String())
		}
	}
	zone["both.example.com"] = []string{"A 11.0.0.2", "A 10.0.0.1"}
	slices.Sort(want)
	w := newWorld(t, []string{"example.com"}, nil, zone)
	e, _ := w.run(t)
	seen := questions(t, e)
	for name, records := range zone {
		typ := dns.TypeA
		if strings.HasPrefix(records[0], "AAAA") {
			typ = dns.TypeAAAA
		}
		w.answer(t, name, typ)
	}
	if diff := cmp.Diff(want, w.open(t)); diff != "" {
		t.Errorf("open (-want +got):\n%s", diff)
	}
	until(t, "every question is seen", func() bool { return len(seen()) == len(zone) })
	failed := 0
	for _, q := range seen() {
		if q.Verdict == names.Failed && strings.Contains(q.Reason, "public") {
			failed++
		} else if q.Verdict != names.Allowed || len(q.Addresses) != 1 {
			t.Errorf("%+v", q)
		}
	}
	if failed != len(zone)-len(want) {
		t.Errorf("%d of %d are said to have failed", failed, len(zone)-len(want))
	}
}

// Over TCP it is a child of dnsmasq that answers and logs, with numbers of its
// own.
func TestTCP(t *testing.T) {
	w := newWorld(t, []string{"example.com"}, nil, map[string][]string{
		"example.com": {"A 11.0.0.1"}, "lan.example.com": {"A 100.64.0.1"}, "other.test": {"A 11.0.0.2"}, "txt.example.com": {`TXT "11.0.0.66"`},
	})
	e, _ := w.run(t)
	for name := range w.zone {
		q := new(dns.Msg)
		q.SetQuestion(name+".", dns.TypeA)
		if name == "txt.example.com" {
			q.Question[0].Qtype = dns.TypeTXT
		}
		if err := w.ns.Do(func() error {
			c := dns.Client{Net: "tcp", Timeout: patience}
			r, _, err := c.Exchange(q, "127.0.0.1:53")
			if err == nil && (r.Rcode == dns.RcodeSuccess) != (name == "example.com" || name == "txt.example.com") {
				t.Errorf("%s: %v", name, r)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff([]string{"11.0.0.1"}, w.open(t)); diff != "" {
		t.Error(diff)
	}
	if got := e.Names(netip.MustParseAddr("11.0.0.1")); len(got) != 1 || got[0].Name != "example.com" {
		t.Errorf("11.0.0.1 is of %v", got)
	}
	// Whoever owns a name may write an address into its text.
	if got := e.Names(netip.MustParseAddr("11.0.0.66")); len(got) != 0 {
		t.Errorf("11.0.0.66 is of %v", got)
	}
	if _, err := e.Reload(t.Context()); err != nil {
		t.Error(err)
	}
}

// What the container asks for can imitate the log, and be a lot.
func TestHostileQuestions(t *testing.T) {
	w := newWorld(t, []string{"example.com"}, nil, map[string][]string{"example.com": {"A 11.0.0.1"}})
	e, _ := w.run(t)
	for _, name := range []string{
		`x\032is\03211.0.0.9.example.com`, `a\032from\032127.0.0.1.example.com`, `a\010Nov\0324.example.com`, `\027[31m.example.com`, `\000.test`,
	} {
		w.answer(t, name, dns.TypeA)
	}
	c, err := dial(t.Context(), w.ns, netip.MustParseAddrPort("127.0.0.1:53"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 5000 {
		q := new(dns.Msg)
		q.SetQuestion(fmt.Sprintf("n%d.random.test.", i), dns.TypeA)
		packet, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		c.Write(packet)
		c.Write(packet[:i%len(packet)])
	}
	until(t, "allowed names resolve", func() bool {
		r, err := w.exchange("example.com", dns.TypeA, time.Second)
		return err == nil && len(r.Answer) == 1
	})
	if diff := cmp.Diff([]string{"11.0.0.1"}, w.open(t)); diff != "" {
		t.Error(diff)
	}
	if got := e.Names(netip.MustParseAddr("11.0.0.9")); len(got) != 0 {
		t.Errorf("11.0.0.9 is of %v", got)
	}
	until(t, "all is told", func() bool {
		e.journal.mu.Lock()
		defer e.journal.mu.Unlock()
		return e.journal.refused > 0 && len(e.journal.order) == 0 && len(e.journal.questions) == 0
	})
	records, err := os.ReadFile(filepath.Join(w.b.Path(), bundle.FileAuditLog))
	if n := strings.Count(string(records), "\n"); err != nil || n == 0 || n > maxAudited {
		t.Errorf("%d audit lines, %v", n, err)
	}
}

// The log does not grow without bound, and dnsmasq goes on in it.
func TestLogIsBounded(t *testing.T) {
	w := newWorld(t, []string{"example.com"}, nil, map[string][]string{"example.com": {"A 11.0.0.1"}, "www.example.com": {"A 11.0.0.2"}})
	e, _ := w.run(t)
	w.answer(t, "example.com", dns.TypeA)
	if got := e.Names(netip.MustParseAddr("11.0.0.1")); len(got) != 1 {
		t.Errorf("11.0.0.1 is of %v", got)
	}
	name := filepath.Join(w.b.Path(), fileLog)
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	junk := []byte(strings.Repeat(strings.Repeat("x", 99)+"\n", 1000))
	for range 50 {
		if _, err := f.Write(junk); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the log is short again", func() bool {
		fi, err := f.Stat()
		return err == nil && fi.Size() < maxLog
	})
	w.answer(t, "www.example.com", dns.TypeA)
	for addr, name := range map[string]string{"11.0.0.1": "example.com", "11.0.0.2": "www.example.com"} {
		if got := e.Names(netip.MustParseAddr(addr)); len(got) != 1 || got[0].Name != name {
			t.Errorf("%s is of %v", addr, got)
		}
	}
	if fi, err := f.Stat(); err != nil || fi.Size() == 0 || fi.Size() > 10_000 {
		t.Errorf("%v, %v", fi, err)
	}
}

// dnsmasq dying was not noticed. It comes back, nothing is open meanwhile that
// was not before.
func TestKilled(t *testing.T) {
	w := newWorld(t, []string{"example.com"}, nil, map[string][]string{"example.com": {"A 11.0.0.1"}, "other.test": {"A 11.0.0.2"}})
	e, _ := w.run(t)
	for i := range 3 {
		old := pidOf(t, w.b)
		if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		until(t, "another one answers", func() bool { pid := pidOf(t, w.b); return pid != 0 && pid != old && len(running(t, w.b)) == 1 })
		if got := w.answer(t, "example.com", dns.TypeA); got != "11.0.0.1" {
			t.Errorf("example.com is %s", got)
		}
		if got := w.answer(t, "other.test", dns.TypeA); got != "NXDOMAIN" || w.wasAsked("other.test") {
			t.Errorf("other.test is %s", got)
		}
		until(t, "it is counted", func() bool { return e.Status().Restarts == i+1 })
	}
	if diff := cmp.Diff([]string{"11.0.0.1"}, w.open(t)); diff != "" {
		t.Error(diff)
	}
}

// One that a former life of the process left running is replaced, what it has
// logged is known, and at the end none is left.
func TestFormerLife(t *testing.T) {
	w := newWorld(t, []string{"example.com"}, nil, map[string][]string{"example.com": {"A 11.0.0.1"}})
	e, cancel := w.run(t)
	w.answer(t, "example.com", dns.TypeA)
	if e.Names(netip.MustParseAddr("11.0.0.1")) == nil {
		t.Error("nobody asked for it")
	}
	cancel()
	gone(t, w.b)
	// As a process leaves it that was killed.
	conf, err := w.b.DnsmasqConf()
	if err != nil {
		t.Fatal(err)
	}
	left, err := spawn(t.Context(), w.b, w.ns, e.program, conf, nil)
	if err != nil {
		t.Fatal(err)
	}
	e, cancel = w.run(t)
	<-left.done
	if pids := running(t, w.b); len(pids) != 1 || pids[0] == left.cmd.Process.Pid {
		t.Errorf("running %v", pids)
	}
	if got := e.Names(netip.MustParseAddr("11.0.0.1")); len(got) != 1 || !got[0].Allowed {
		t.Errorf("11.0.0.1 is of %v", got)
	}
	cancel()
	gone(t, w.b)
}

// What cannot start is not started in vain without end, and starts when it can.
func TestCannotStart(t *testing.T) {
	w := newWorld(t, []string{"example.com"}, nil, map[string][]string{"example.com": {"A 11.0.0.1"}})
	e, _ := w.run(t)
	log := filepath.Join(w.b.Path(), fileLog)
	if err := errors.Join(os.Remove(log), os.Mkdir(log, 0o700)); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Reload(t.Context()); err == nil || !strings.Contains(strings.ToLower(err.Error()), "is a directory") {
		t.Errorf("%v", err)
	}
	if pids := running(t, w.b); pids != nil {
		t.Errorf("running %v", pids)
	}
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	until(t, "it answers again", func() bool { return len(running(t, w.b)) == 1 && pidOf(t, w.b) != 0 })
	if got := w.answer(t, "example.com", dns.TypeA); got != "11.0.0.1" {
		t.Errorf("example.com is %s", got)
	}
}

// While an operator has taken the firewall down, names on no list resolve;
// denied ones do not, and nothing is opened.
func TestOpen(t *testing.T) {
	w := newWorld(t, []string{"example.com"}, []string{"denied.test"}, map[string][]string{
		"other.test": {"A 11.0.0.1"}, "denied.test": {"A 11.0.0.2"},
	})
	e, _ := w.run(t)
	for _, open := range []bool{true, false} {
		if err := w.b.SetOpen(open); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := map[bool]string{true: "11.0.0.1", false: "NXDOMAIN"}[open]
		if got := w.answer(t, "other.test", dns.TypeA); got != want {
			t.Errorf("open %t: %s", open, got)
		}
		if got := w.answer(t, "denied.test", dns.TypeA); got != "NXDOMAIN" {
			t.Errorf("open %t: denied.test is %s", open, got)
		}
	}
	if got := w.open(t); got != nil {
		t.Errorf("open are %v", got)
	}
	// In quarantine there are no sets.
	kerneltest.NFT(t, w.ns, "", "delete", "table", "inet", "terok_shield")
	if change, err := e.Reload(t.Context()); err != nil || change.Enforced {
		t.Errorf("%+v, %v", change, err)
	}
	w.answer(t, "example.com", dns.TypeA)
}

// Denied entries that cannot be read: nobody knows what to keep closed.
func TestUnreadableDenial(t *testing.T) {
	w := newWorld(t, []string{"example.com"}, nil, map[string][]string{"example.com": {"A 11.0.0.1"}})
	e, _ := w.run(t)
	if err := w.b.SetDeniedDomains([]string{"what?.test"}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "what?.test") {
		t.Errorf("%v", err)
	}
	if _, err := Conf(w.b, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr(upstream)); err == nil {
		t.Error("a configuration all the same")
	}
}

// A bundle that another program prepared: its own configuration and sets are
// used, and a configuration that it replaces is put into force although it
// only sends SIGHUP.
func TestForeignBundle(t *testing.T) {
	w := newWorld(t, []string{"example.com"}, nil, map[string][]string{
		"example.com": {"A 11.0.0.1"}, "new.test": {"A 11.0.0.2"}, "meta.example.com": {"A 100.64.0.1"}, "other.test": {"A 11.0.0.3"},
	})
	if err := os.Remove(filepath.Join(w.b.Path(), bundle.FileRulesetFormat)); err != nil {
		t.Fatal(err)
	}
	kerneltest.NFT(t, w.ns, "delete table inet terok_shield\n"+table, "-f", "-")
	put(t, w.b, bundle.FileDnsmasqConf, conf(w.b.Path(), "127.0.0.1"))
	e, _ := w.run(t)
	for name, want := range map[string]string{"example.com": "11.0.0.1", "other.test": "11.0.0.3", "meta.example.com": "NXDOMAIN", "new.test": "11.0.0.2"} {
		if got := w.answer(t, name, dns.TypeA); got != want {
			t.Errorf("%s is %s", name, got)
		}
	}
	if set := allowed(t, w.ns); !strings.Contains(set, "11.0.0.1") || strings.Contains(set, "11.0.0.2") || strings.Contains(set, "100.64") {
		t.Errorf("allowed are %s", set)
	}
	// Its allow: the list, the file, SIGHUP.
	if err := w.b.SetLiveDomains([]string{"new.test"}); err != nil {
		t.Fatal(err)
	}
	old := pidOf(t, w.b)
	put(t, w.b, bundle.FileDnsmasqConf, conf(w.b.Path(), "127.0.0.1")+"nftset=/new.test/"+setsNamed(setAllow)+"\n")
	if err := syscall.Kill(old, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	until(t, "it was started again", func() bool { pid := pidOf(t, w.b); return pid != old && pid != 0 && e.allows("new.test") })
	w.answer(t, "new.test", dns.TypeA)
	if set := allowed(t, w.ns); !strings.Contains(set, "11.0.0.2") {
		t.Errorf("allowed are %s", set)
	}
	if got := e.Names(netip.MustParseAddr("11.0.0.2")); len(got) != 1 || got[0].Name != "new.test" || !got[0].Allowed {
		t.Errorf("11.0.0.2 is of %v", got)
	}
	// Our deny.
	if err := w.b.SetDeniedDomains([]string{"new.test"}); err != nil {
		t.Fatal(err)
	}
	if change, err := e.Reload(t.Context()); err != nil || change.Denied != 1 || !change.Enforced {
		t.Errorf("%+v, %v", change, err)
	}
	if got := w.answer(t, "new.test", dns.TypeA); got != "NXDOMAIN" {
		t.Errorf("new.test is %s", got)
	}
}

// A watcher that does not read misses questions and is told how many.
func TestSlowWatcher(t *testing.T) {
	var ws watchers
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan names.Question)
	done := make(chan error)
	go func() {
		done <- ws.watch(ctx, func(q names.Question) error { got <- q; return nil })
	}()
	until(t, "it watches", func() bool { ws.mu.Lock(); defer ws.mu.Unlock(); return len(ws.all) == 1 })
	const sent = watchQueue + 100
	for range sent {
		ws.publish(names.Question{})
	}
	n := 0
	for range watchQueue {
		n += 1 + int((<-got).Missed)
	}
	ws.publish(names.Question{})
	for n < sent+1 {
		n += 1 + int((<-got).Missed)
	}
	if n != sent+1 {
		t.Errorf("%d of %d", n, sent+1)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The address of a krun guest's name server is put on lo.
func TestEngineListens(t *testing.T) {
	w := newWorld(t, []string{"example.com"}, nil, map[string][]string{"example.com": {"A 11.0.0.1"}})
	if err := w.b.SetListen(netip.MustParseAddr("169.254.1.3")); err != nil {
		t.Fatal(err)
	}
	e, _ := w.run(t)
	if got := ask(t, w.ns, "169.254.1.3", "example.com."); len(got) != 1 {
		t.Errorf("%v", got)
	}
	if _, err := e.Reload(t.Context()); err != nil {
		t.Error(err)
	}
	if got := ask(t, w.ns, "169.254.1.3", "example.com."); len(got) != 1 {
		t.Errorf("%v", got)
	}
	if err := w.ns.Do(func() error {
		c, err := net.Dial("udp", "127.0.0.1:53")
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Second))
		c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("somebody listens at 127.0.0.1: %v", err)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}
