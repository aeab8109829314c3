package static

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/terok-ai/terok-box/applets/internal/resolve"
	"github.com/terok-ai/terok-box/applets/internal/tier"
	"github.com/terok-ai/terok-box/nl/conntrack"
	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
)

func TestMain(m *testing.M) { kerneltest.Main(m) }

// With the real firewall and a name server: what a name leads to is open when
// a Reload returns, and closed when it is denied.
//
// Known weakness: an allowed name that answered with a private, link-local or
// metadata address opened it.
func TestRebinding(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	server := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		m := new(dns.Msg).SetReply(q)
		name := q.Question[0].Name
		for _, s := range map[string][]string{
			"a.example.com.":    {"60 A 203.0.113.1", "60 AAAA 2001:db8::1", "60 A 203.0.113.2"},
			"evil.example.com.": {"60 A 10.0.0.1", "60 A 169.254.169.254", "60 A 127.0.0.1", "60 AAAA ::1", "60 AAAA fd00:ec2::254", "60 A 203.0.113.3"},
		}[name] {
			rr, err := dns.NewRR(name + " " + s)
			if err != nil {
				panic(err)
			}
			if rr.Header().Rrtype == q.Question[0].Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
		w.WriteMsg(m)
	})}
	up := make(chan struct{})
	server.NotifyStartedFunc = func() { close(up) }
	go server.ActivateAndServe()
	<-up
	t.Cleanup(func() { server.Shutdown() })

	ns := kerneltest.NewNS(t)
	r := tier.Resources{Log: slog.New(slog.DiscardHandler)}
	var fw *nft.Conn
	if err := ns.Do(func() (err error) {
		if fw, err = nft.Dial(); err == nil {
			r.NFT, err = nft.Dial()
		}
		if err == nil {
			r.Track, err = conntrack.Dial()
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fw.Close(); r.NFT.Close(); r.Track.Close() })
	table, err := ruleset.Build(ruleset.Up, ruleset.Params{})
	if err == nil {
		err = fw.Apply(table)
	}
	if err != nil {
		t.Fatal(err)
	}
	if r.Bundle, err = bundle.Create(filepath.Join(t.TempDir(), "sd")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Bundle.Close() })
	if err := errors.Join(r.Bundle.SetProfileDomains([]string{"a.example.com"}), r.Bundle.SetLiveDomains([]string{"evil.example.com"})); err != nil {
		t.Fatal(err)
	}
	made, err := New(r)
	if err != nil {
		t.Fatal(err)
	}
	e := made.(*engine)
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 127.0.0.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	e.servers = resolve.Follow(conf, uint16(pc.LocalAddr().(*net.UDPAddr).Port), r.Log)

	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() { cancel(); <-e.done })
	if err := e.Start(ctx, func(err error) { t.Errorf("the engine failed: %v", err) }); err != nil {
		t.Fatal(err)
	}
	open := func() string {
		all, err := fw.Learned()
		if err != nil {
			t.Fatal(err)
		}
		var list []string
		for _, l := range all {
			if l.Timeout < time.Minute || l.Timeout > 10*time.Minute {
				t.Errorf("%v for %v", l.Addr, l.Timeout)
			}
			list = append(list, l.Addr.String())
		}
		slices.Sort(list)
		return strings.Join(list, " ")
	}
	const both = "2001:db8::1 203.0.113.1 203.0.113.2 203.0.113.3"
	for start := time.Now(); open() != both || e.Status().Learned != 4; time.Sleep(5 * time.Millisecond) { // it counts afterwards
		if time.Since(start) > 20*time.Second {
			t.Fatalf("open are %q; want %q: %+v", open(), both, e.Status())
		}
	}
	if s := e.Status(); len(s.Upstreams) != 1 || s.Upstreams[0] != pc.LocalAddr().String() || s.Learned != 4 || s.Questions != 2 {
		t.Errorf("%+v", s)
	}
	if err := r.Bundle.SetDeniedDomains([]string{"evil.example.com"}); err != nil {
		t.Fatal(err)
	}
	c, err := e.Reload(t.Context())
	if err != nil || !c.Enforced || !slices.Equal(c.Removed, []string{"203.0.113.3"}) || open() != strings.TrimSuffix(both, " 203.0.113.3") {
		t.Errorf("%+v, %v; open are %q", c, err, open())
	}
	if err := r.Bundle.SetDeniedDomains(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Reload(t.Context()); err != nil || open() != both {
		t.Errorf("%v; open are %q", err, open())
	}
	before := asked.Load()
	if removed, err := e.Forget(t.Context()); err != nil || len(removed) != 4 || open() != both || asked.Load() == before {
		t.Errorf("forgot %v, %v; open are %q after %d questions", removed, err, open(), asked.Load()-before)
	}
}
