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
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/terok-ai/terok-box/applets/dnsproxy/upstream"
	"github.com/terok-ai/terok-box/applets/internal/learned"
	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/applets/internal/tier"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/names"
)

// raw sends a packet and is what comes back; nil if nothing does before the
// answer to an ordinary question that follows it.
func (w *world) raw(packet []byte) []byte {
	w.t.Helper()
	c := w.dial("udp")
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	follow := new(dns.Msg)
	follow.SetQuestion("follows.invalid.", dns.TypeA)
	follow.Id = 0xfeed
	last, err := follow.Pack()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, p := range [][]byte{packet, last} {
		if _, err := c.Write(p); err != nil {
			w.t.Fatal(err)
		}
	}
	var got []byte
	for {
		b := make([]byte, 4096)
		n, err := c.Read(b)
		if err != nil {
			w.t.Fatalf("after %x: %v", packet, err)
		}
		if n >= 2 && binary.BigEndian.Uint16(b) == follow.Id {
			return got
		}
		got = b[:n]
	}
}

// What is not exactly one question is none.
func TestMalformedQuestions(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		m.Answer = append(m.Answer, record(t, q.Name+" 60 IN A 203.0.113.1"))
	})
	const name = "\x07example\x03com\x00"
	const in = "\x00\x01\x00\x01"
	header := func(counts ...byte) string {
		h := []byte{0x12, 0x34, 1, 0}
		for _, c := range counts {
			h = append(h, 0, c)
		}
		return string(h)
	}
	opt := func(options string) string {
		return "\x00\x00\x29\x04\xd0\x00\x00\x00\x00" + string([]byte{0, byte(len(options))}) + options
	}
	for what, packet := range map[string]string{
		"a count of answers that are not there":     header(1, 3, 0, 0) + name + in,
		"a count of authorities that are not there": header(1, 0, 3, 0) + name + in,
		"a count of others that are not there":      header(1, 0, 0, 1) + name + in,
		"bytes behind the question":                 header(1, 0, 0, 0) + name + in + "x",
		"bytes behind the OPT record":               header(1, 0, 0, 1) + name + in + opt("") + "x",
		"a name that points to itself":              header(1, 0, 0, 0) + "\xc0\x0c" + in,
		"a name that points into the header":        header(1, 0, 0, 0) + "\x07example\x03com\xc0\x04" + in,
		"two names that point to each other":        header(1, 0, 0, 0) + "\x01a\xc0\x10\x01b\xc0\x0c" + in,
		"a record that is not OPT":                  header(1, 0, 0, 1) + name + in + "\x00" + in + "\x00\x00\x00\x3c\x00\x04\xcb\x00\x71\x01",
		"two OPT records":                           header(1, 0, 0, 2) + name + in + opt("") + opt(""),
		"an OPT record with an owner":               header(1, 0, 0, 1) + name + in + "\x01a" + opt(""),
		"an option that is cut off":                 header(1, 0, 0, 1) + name + in + opt("\x00\x0a\x00\x08abc"),
		"a label of 64 bytes":                       header(1, 0, 0, 0) + "\x40" + strings.Repeat("a", 64) + "\x00" + in,
		"a name of 256 bytes":                       header(1, 0, 0, 0) + strings.Repeat("\x3f"+strings.Repeat("a", 63), 4) + "\x00" + in,
		"no end of the name":                        header(1, 0, 0, 0) + "\x07example\x03com",
		"no class":                                  header(1, 0, 0, 0) + name + "\x00\x01",
		"nothing but a header":                      header(1, 0, 0, 0),
		"more than any question has":                header(1, 0, 0, 1) + name + in + opt("") + strings.Repeat("x", 5000),
	} {
		b := w.raw([]byte(packet))
		if b == nil {
			continue // passed over is as good
		}
		if len(b) > len(packet) && len(b) > headerSize || b[0] != 0x12 || b[1] != 0x34 || b[2]&0x80 == 0 || b[3]&15 != dns.RcodeFormatError {
			t.Errorf("%s: %x", what, b)
		}
	}
	for what, packet := range map[string]string{
		"nothing": "", "half a header": header(1, 0), "an answer": "\x12\x34\x80\x00" + header(1, 0, 0, 0)[4:] + name + in,
	} {
		if b := w.raw([]byte(packet)); b != nil {
			t.Errorf("%s is answered: %x", what, b)
		}
	}
	if got := w.internet.questions(); len(got) > 0 {
		t.Errorf("asked upstream: %v", got)
	}
}

// What an operator is told to type does what it says, whatever the container
// asked for.
func TestAdviceCanBeTyped(t *testing.T) {
	w := newWorld(t, lines{}, func(dns.Question, *dns.Msg) {})
	for name, typed := range map[string]bool{
		"fine.example.com.":      true,
		"_dmarc.example.com.":    true,
		"$(reboot).example.com.": false,
		"`id`.example.com.":      false,
		"a|b.example.com.":       false,
		"a\\ b.example.com.":     false,
		"a\\;b.example.com.":     false,
		"-f.example.com.":        false,
		"\\027[31m.example.com.": false,
		"a&b.example.com.":       false,
		"single.":                false,
		".":                      false,
		"4.3.2.1.":               false,
		strings.Repeat("a.", 120) + "example.com.": false, // does not fit
	} {
		m := w.ask("udp", name, dns.TypeA, true)
		code, text := extended(m)
		if m.Rcode != dns.RcodeRefused || code != dns.ExtendedErrorCodeProhibited || !strings.Contains(text, "not on this container's list") {
			t.Errorf("%s: %s, %d %q", name, dns.RcodeToString[m.Rcode], code, text)
		}
		if got := strings.Contains(text, "terok-shield allow c "+strings.TrimSuffix(name, ".")); got != typed || strings.Contains(text, "terok-shield") != typed {
			t.Errorf("%s: %q", name, text)
		}
		if len(text) > maxText || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%s: %q", name, text)
		}
	}
}

// Name servers that are dead or slow, and a container that asks for all it
// can, do not keep the names from being answered that are known.
func TestDeadUpstreamAndCachedNames(t *testing.T) {
	release := make(chan struct{})
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		if q.Name != "known.example.com." {
			<-release
		}
		m.Answer = append(m.Answer, record(t, q.Name+" 600 IN A 203.0.113.1"))
	})
	defer close(release)
	if m := w.ask("udp", "known.example.com", dns.TypeA, false); len(m.Answer) != 1 {
		t.Fatal(m)
	}
	c := w.dial("udp")
	for i := range 2 * maxWaiting {
		q := new(dns.Msg)
		q.SetQuestion(fmt.Sprintf("n%d.example.com.", i), dns.TypeA)
		b, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if i%50 == 49 { // all that were sent have been read when this is answered
			w.ask("udp", "x.invalid", dns.TypeA, false)
		}
	}
	q := new(dns.Msg)
	q.SetQuestion("known.example.com.", dns.TypeA)
	known := &dns.Conn{Conn: w.dial("udp")}
	known.SetDeadline(time.Now().Add(3 * time.Second)) // less than upstream takes to give up
	if err := known.WriteMsg(q); err != nil {
		t.Fatal(err)
	}
	if m, err := known.ReadMsg(); err != nil || len(m.Answer) != 1 {
		t.Errorf("a name in the cache: %v, %v", m, err)
	}
	if m := w.ask("udp", "unlisted.test", dns.TypeA, false); m.Rcode != dns.RcodeRefused {
		t.Errorf("a name on no list: %v", m)
	}
}

// The lists change while a question is asked upstream: the answer is given by
// the new ones, whatever the type and whatever the name was before.
func TestReloadWhileAsking(t *testing.T) {
	for what, tc := range map[string]struct {
		before, after lines
		qtype         uint16
		rcode         int
		open          []string
	}{
		"denied meanwhile":            {lines{profile: []string{"example.com"}}, lines{profile: []string{"example.com"}, denied: []string{"a.example.com"}}, dns.TypeA, dns.RcodeRefused, nil},
		"no longer allowed":           {lines{profile: []string{"example.com"}}, lines{}, dns.TypeA, dns.RcodeRefused, nil},
		"another type":                {lines{profile: []string{"example.com"}}, lines{}, dns.TypeTXT, dns.RcodeRefused, nil},
		"resolved, denied meanwhile":  {lines{resolve: true}, lines{resolve: true, denied: []string{"example.com"}}, dns.TypeA, dns.RcodeRefused, nil},
		"resolved, then no more":      {lines{resolve: true}, lines{}, dns.TypeA, dns.RcodeRefused, nil},
		"resolved, allowed meanwhile": {lines{resolve: true}, lines{resolve: true, live: []string{"example.com"}}, dns.TypeA, dns.RcodeSuccess, []string{"203.0.113.1"}},
		"allowed, resolved from then": {lines{profile: []string{"example.com"}, resolve: true}, lines{resolve: true}, dns.TypeA, dns.RcodeSuccess, nil},
	} {
		t.Run(what, func(t *testing.T) {
			asked, release := make(chan struct{}, 10), make(chan struct{})
			w := newWorld(t, tc.before, func(q dns.Question, m *dns.Msg) {
				asked <- struct{}{}
				<-release
				text := " 60 IN A 203.0.113.1"
				if q.Qtype == dns.TypeTXT {
					text = " 60 IN TXT secret"
				}
				m.Answer = append(m.Answer, record(t, q.Name+text))
			})
			got := make(chan *dns.Msg, 1)
			c := &dns.Conn{Conn: w.dial("udp")}
			c.SetDeadline(time.Now().Add(10 * time.Second))
			q := new(dns.Msg)
			q.SetQuestion("a.example.com.", tc.qtype)
			if err := c.WriteMsg(q); err != nil {
				t.Fatal(err)
			}
			go func() {
				m, _ := c.ReadMsg()
				got <- m
			}()
			<-asked
			if err := errors.Join(w.bundle.SetProfileDomains(tc.after.profile), w.bundle.SetLiveDomains(tc.after.live),
				w.bundle.SetDeniedDomains(tc.after.denied), w.bundle.SetResolveUnlisted(tc.after.resolve)); err != nil {
				t.Fatal(err)
			}
			if _, err := w.engine.Reload(t.Context()); err != nil {
				t.Fatal(err)
			}
			close(release)
			m := <-got
			if m == nil || m.Rcode != tc.rcode || (m.Rcode == dns.RcodeRefused) != (len(m.Answer) == 0) {
				t.Errorf("%v", m)
			}
			w.expectOpen(tc.open...)
		})
	}
}

// In quarantine nothing leaves, whatever is asked for and whether or not it is
// in the cache.
func TestQuarantineWhileAsking(t *testing.T) {
	asked, release := make(chan struct{}, 10), make(chan struct{})
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		asked <- struct{}{}
		<-release
		m.Answer = append(m.Answer, record(t, q.Name+" 60 IN A 203.0.113.1"))
	})
	got := make(chan *dns.Msg, 1)
	go func() { got <- w.ask("udp", "a.example.com", dns.TypeA, true) }()
	<-asked
	w.apply(ruleset.Quarantine)
	close(release)
	if m := <-got; m.Rcode == dns.RcodeSuccess || len(m.Answer) > 0 {
		t.Errorf("%v", m)
	}
	before := len(w.internet.questions())
	for _, qtype := range []uint16{dns.TypeA, dns.TypeTXT} {
		if m := w.ask("udp", "b.example.com", qtype, false); m.Rcode == dns.RcodeSuccess {
			t.Errorf("%v", m)
		}
	}
	if n := len(w.internet.questions()); n != before {
		t.Error("asked upstream in quarantine")
	}
	if m := w.ask("udp", "localhost", dns.TypeA, false); len(m.Answer) != 1 {
		t.Errorf("localhost in quarantine: %v", m)
	}
	w.apply(ruleset.Up)
	if _, err := w.engine.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m := w.ask("udp", "a.example.com", dns.TypeA, false); len(m.Answer) != 1 {
		t.Errorf("%v", m)
	}
	w.expectOpen("203.0.113.1")
}

// An operator who has allowed a private address, as the refusal advises, gets
// it by its name, too. The name still opens nothing.
func TestPrivateAddressThatIsAllowedItself(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		m.Answer = append(m.Answer, record(t, q.Name+" 600 IN A 10.0.0.1"), record(t, q.Name+" 600 IN A 10.9.9.9"))
	})
	expect := func(when string, want ...string) {
		t.Helper()
		var m *dns.Msg
		for range 50 { // it is noticed within a moment
			m = w.ask("udp", "example.com", dns.TypeA, true)
			if slices.Equal(answers(m), want) {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if d := cmp.Diff(want, answers(m)); d != "" {
			t.Errorf("%s: %s", when, d)
		}
		w.expectOpen()
	}
	ps := []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}
	expect("before")
	if err := w.bundle.SetLiveAllowed(ps); err != nil {
		t.Fatal(err)
	}
	// The TTL may have begun to run.
	var m *dns.Msg
	for range 50 {
		if m = w.ask("udp", "example.com", dns.TypeA, true); len(m.Answer) == 1 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if len(m.Answer) != 1 || !strings.HasSuffix(answers(m)[0], "IN A 10.0.0.1") {
		t.Errorf("when it is allowed: %v", answers(m))
	}
	w.expectOpen()
	if got := w.engine.Names(netip.MustParseAddr("10.0.0.1")); len(got) != 1 {
		t.Errorf("its names: %v", got)
	}
	if err := w.bundle.SetDenyList(ps); err != nil {
		t.Fatal(err)
	}
	expect("when it is denied")
}

// What a name server says about how a service is reached leads nowhere that a
// client could not look up, and a record is not used by clients it was not
// meant for.
func TestServiceRecordsThatMustNotBeUsed(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}, denied: []string{"bad.test"}, resolve: true}, func(q dns.Question, m *dns.Msg) {
		for _, text := range []string{
			`1 . mandatory="alpn" alpn="h2"`,
			`2 . mandatory="ipv4hint" ipv4hint="203.0.113.66"`,
			`3 . mandatory="ech" ech="AEX+DQBB"`,
			`4 . mandatory="key65280" key65280="x"`,
			`5 bad.test.`,
			`6 x.bad.test.`,
			`7 x.onion.`,
			`8 other.test.`,
			`0 bad.test.`,
		} {
			m.Answer = append(m.Answer, record(t, q.Name+" 60 IN HTTPS "+text))
		}
	})
	for _, name := range []string{"example.com.", "unlisted.test."} {
		if d := cmp.Diff([]string{
			name + ` 60 IN HTTPS 1 . mandatory="alpn" alpn="h2"`,
			name + ` 60 IN HTTPS 8 other.test.`,
		}, answers(w.ask("udp", name, dns.TypeHTTPS, true))); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// A name that does not exist has no addresses, whatever else the answer says,
// and a TTL that is negative as a signed number is none (RFC 2181 §8).
func TestContradictoryAnswers(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		switch q.Name {
		case "none.example.com.":
			m.Rcode = dns.RcodeNameError
			m.Answer = append(m.Answer, record(t, q.Name+" 60 IN A 203.0.113.1"))
		case "negative.example.com.":
			m.Answer = append(m.Answer, record(t, q.Name+" 60 IN A 203.0.113.2"))
			m.Answer[0].Header().Ttl = 1<<31 + 5
		}
	})
	if m := w.ask("udp", "none.example.com", dns.TypeA, false); len(m.Answer) > 0 || m.Rcode != dns.RcodeNameError {
		t.Errorf("%v", m)
	}
	w.expectOpen()
	if m := w.ask("udp", "negative.example.com", dns.TypeA, false); len(m.Answer) != 1 || m.Answer[0].Header().Ttl != 0 {
		t.Errorf("%v", m)
	}
	w.expectOpen("203.0.113.2")
}

// A name is renamed by a DNAME (RFC 6672), whether or not the server adds the
// alias that follows from it; what the other name is matters.
func TestDNAME(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}, denied: []string{"bad.test"}}, func(q dns.Question, m *dns.Msg) {
		switch q.Name {
		case "a.old.example.com.":
			m.Answer = append(m.Answer, record(t, "old.example.com. 30 IN DNAME new.test."), record(t, "a.new.test. 60 IN A 203.0.113.1"))
		case "b.old.example.com.":
			m.Answer = append(m.Answer, record(t, "old.example.com. 30 IN DNAME bad.test."), record(t, "b.bad.test. 60 IN A 203.0.113.66"))
		case "old.example.com.": // not below itself
			m.Answer = append(m.Answer, record(t, "old.example.com. 30 IN DNAME new.test."), record(t, "new.test. 60 IN A 203.0.113.67"))
		case "xold.example.com.":
			m.Answer = append(m.Answer, record(t, "old.example.com. 30 IN DNAME new.test."), record(t, "xnew.test. 60 IN A 203.0.113.68"))
		case "loop.old.example.com.":
			m.Answer = append(m.Answer, record(t, "old.example.com. 30 IN DNAME x.old.example.com."))
		}
	})
	m := w.ask("udp", "a.old.example.com", dns.TypeA, false)
	if d := cmp.Diff([]string{
		"a.old.example.com. 30 IN CNAME a.new.test.",
		"a.new.test. 30 IN A 203.0.113.1",
	}, answers(m)); d != "" {
		t.Error(d)
	}
	if m := w.ask("udp", "b.old.example.com", dns.TypeA, false); m.Rcode != dns.RcodeRefused {
		t.Errorf("%v", m)
	}
	for _, name := range []string{"old.example.com", "xold.example.com"} {
		if m := w.ask("udp", name, dns.TypeA, false); len(m.Answer) > 0 {
			t.Errorf("%v", m)
		}
	}
	if m := w.ask("udp", "loop.old.example.com", dns.TypeA, false); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", m)
	}
	w.expectOpen("203.0.113.1")
}

// A label with a dot in it is not two labels.
func TestDotsInLabels(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com", "sub.example.org"}}, func(q dns.Question, m *dns.Msg) {
		m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(203, 0, 113, 1)})
	})
	for name, rcode := range map[string]int{
		`evil\.example.com.`:    dns.RcodeRefused,
		`sub\.example.org.`:     dns.RcodeRefused,
		`example\.com.`:         dns.RcodeRefused,
		`a\.b.example.com.`:     dns.RcodeSuccess,
		`\000\255.example.com.`: dns.RcodeSuccess,
	} {
		if m := w.ask("udp", name, dns.TypeA, true); m.Rcode != rcode || m.Question[0].Name != name {
			t.Errorf("%s: %v", name, m)
		}
	}
}

// Watchers see every question, and every one is counted.
func TestEveryQuestionIsSeen(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}, denied: []string{"no.example.com", "no.test"}}, func(q dns.Question, m *dns.Msg) {
		if q.Name == "alias.example.com." {
			m.Answer = append(m.Answer, record(t, q.Name+" 60 IN CNAME www.no.test."))
			return
		}
		m.Answer = append(m.Answer, record(t, q.Name+" 60 IN A 203.0.113.1"))
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := make(chan names.Question, 100)
	go w.engine.Watch(ctx, func(q names.Question) error {
		seen <- q
		return nil
	})
	for w.engine.watchers.none() {
		time.Sleep(time.Millisecond)
	}
	type asked struct {
		Name, Type, Verdict string
	}
	var want []asked
	for _, tc := range []struct {
		name    string
		qtype   uint16
		verdict string
	}{
		{"example.com", dns.TypeA, names.Allowed},
		{"example.com", dns.TypeANY, names.Allowed},
		{"localhost", dns.TypeA, names.Allowed},
		{"x.onion", dns.TypeA, names.Denied},
		{"other.test", dns.TypeA, names.Refused},
		{"other.test", dns.TypeTXT, names.Refused},
		{"www.no.example.com", dns.TypeA, names.Denied},
		{"alias.example.com", dns.TypeA, names.Denied},
		{"1.113.0.203.in-addr.arpa", dns.TypePTR, names.Refused},
		{"example.com", dns.TypeAXFR, names.Denied},
	} {
		w.ask("udp", tc.name, tc.qtype, false)
		want = append(want, asked{tc.name, dns.Type(tc.qtype).String(), tc.verdict})
	}
	var got []asked
	for range want {
		select {
		case q := <-seen:
			got = append(got, asked{q.Name, q.Type, q.Verdict})
		case <-time.After(5 * time.Second):
			t.Fatalf("seen so far: %v", got)
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if s := w.engine.Status(); s.Questions != int64(len(want)) {
		t.Errorf("%+v", s)
	}
}

// Connections on which nothing happens make way, not one that waits for its
// answer.
func TestIdleConnectionsMakeWay(t *testing.T) {
	asked, release := make(chan struct{}, 1), make(chan struct{})
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		asked <- struct{}{}
		<-release
		m.Answer = append(m.Answer, record(t, q.Name+" 60 IN A 203.0.113.1"))
	})
	busy := &dns.Conn{Conn: w.dial("tcp")}
	busy.SetDeadline(time.Now().Add(10 * time.Second))
	q := new(dns.Msg)
	q.SetQuestion("example.com.", dns.TypeA)
	if err := busy.WriteMsg(q); err != nil {
		t.Fatal(err)
	}
	<-asked
	for range 2 * maxConns {
		w.dial("tcp")
	}
	// That this is answered says that all of them were accepted.
	if m := w.ask("tcp", "x.onion", dns.TypeA, false); m == nil {
		t.Fatal("no answer")
	}
	close(release)
	if m, err := busy.ReadMsg(); err != nil || len(m.Answer) != 1 {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("no answer in time")
		}
		t.Errorf("%v, %v", m, err)
	}
}

// Somebody who knows a name server's answers may fill lists with what is no
// name; the log does not grow with it.
func TestUnreadableListsAreReportedBriefly(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(dns.Question, *dns.Msg) {})
	log := &countingHandler{}
	w.engine.r.Log = log.logger()
	junk := slices.Repeat([]string{"localhost"}, 10_000)
	if err := w.bundle.SetLiveDomains(junk); err != nil {
		t.Fatal(err)
	}
	if c, err := w.engine.Reload(t.Context()); err != nil || c.Allowed != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	if n := log.n.Load(); n == 0 || n > 20 {
		t.Errorf("%d lines in the log", n)
	}
}

// countingHandler counts lines of a log.
type countingHandler struct{ n atomic.Int64 }

func (h *countingHandler) logger() *slog.Logger                      { return slog.New(h) }
func (h *countingHandler) Enabled(context.Context, slog.Level) bool  { return true }
func (h *countingHandler) Handle(context.Context, slog.Record) error { h.n.Add(1); return nil }
func (h *countingHandler) WithAttrs([]slog.Attr) slog.Handler        { return h }
func (h *countingHandler) WithGroup(string) slog.Handler             { return h }

// firewall is one that remembers everything.
type firewall struct {
	mu   sync.Mutex
	open map[netip.Addr]bool
	n    uint32
}

func (f *firewall) Learn(all []nft.Learned) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	for _, l := range all {
		f.open[l.Addr] = true
	}
	return nil
}
func (f *firewall) Forget([]netip.Addr) error       { return nil }
func (f *firewall) ForgetAll() error                { return nil }
func (f *firewall) Learned() ([]nft.Learned, error) { return nil, nil }
func (f *firewall) Generation() (uint32, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n, nil
}

// liar is an upstream that answers with what it is told to.
type liar struct{ m *dns.Msg }

func (l liar) Ask(_ context.Context, _ upstream.Query, done func(*dns.Msg, error)) {
	if l.m == nil {
		done(nil, errors.New("no answer"))
		return
	}
	done(l.m.Copy(), nil)
}
func (liar) Servers() []netip.AddrPort { return nil }
func (liar) Close()                    {}

// Whatever a container sends and upstream answers: what comes back is no
// larger than allowed, answers that question by id and name, and holds no
// address that was not opened before, or that a name opens never.
func FuzzHandle(f *testing.F) {
	pack := func(m *dns.Msg, text ...string) []byte {
		for _, s := range text {
			rr, err := dns.NewRR(s)
			if err != nil {
				f.Fatal(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeTXT, dns.TypeANY, dns.TypeAXFR} {
		q := new(dns.Msg)
		q.SetQuestion("wWw.example.com.", qtype)
		a := new(dns.Msg)
		a.SetReply(q)
		q.SetEdns0(1232, true)
		f.Add(pack(q), pack(a,
			"www.example.com. 60 IN CNAME x.test.", "x.test. 60 IN A 203.0.113.1", "x.test. 60 IN A 10.0.0.1",
			"x.test. 60 IN AAAA 2001:db8::1", "x.test. 60 IN HTTPS 1 . ipv4hint=203.0.113.9", "www.example.com. 1 IN A 203.0.113.2"), qtype%2 == 0)
	}
	q := new(dns.Msg)
	q.SetQuestion("unlisted.test.", dns.TypeA)
	f.Add(pack(q), []byte{}, true)
	b, err := bundle.Create(filepath.Join(f.TempDir(), "sd"))
	if err == nil {
		err = b.SetProfileDomains([]string{"example.com", "=exact.test"})
	}
	if err == nil {
		err = b.SetDeniedDomains([]string{"bad.example.com"})
	}
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, packet, said []byte, tcp bool) {
		fw := &firewall{open: map[netip.Addr]bool{}}
		set, err := learned.New(learned.Options{Kernel: fw, Cut: func([]netip.Addr) (int, error) { return 0, nil }})
		if err != nil {
			t.Fatal(err)
		}
		defer set.Close()
		up := liar{new(dns.Msg)}
		if up.m.Unpack(said) != nil {
			up.m = nil
		}
		e, err := newEngine(tier.Resources{
			Spec: names.Spec{Container: "c"}, Bundle: b, Log: slog.New(slog.DiscardHandler),
		}, up, set)
		if err != nil {
			t.Fatal(err)
		}
		q, m, ok := read(packet, tcp)
		if ok {
			m, _ = e.wait(t.Context(), q)
		}
		if m == nil {
			if ok {
				t.Fatalf("a question without an answer: %x", packet)
			}
			return
		}
		limit := maxUDP
		if tcp {
			limit = dns.MaxMsgSize
		}
		out := q.pack(m)
		back := new(dns.Msg)
		if err := back.Unpack(out); err != nil || len(out) > limit {
			t.Fatalf("%v, %d bytes: %x", err, len(out), out)
		}
		if out[0] != packet[0] || out[1] != packet[1] || !back.Response {
			t.Fatalf("not an answer to %x: %x", packet, out)
		}
		if q.msg != nil && (len(back.Question) != 1 || back.Question[0] != q.msg.Question[0]) {
			t.Fatalf("%v for %v", back.Question, q.msg.Question)
		}
		if len(back.Extra) > 1 || len(back.Extra) == 1 && back.IsEdns0() == nil {
			t.Fatalf("more than was asked for: %v", back)
		}
		fw.mu.Lock()
		defer fw.mu.Unlock()
		for _, rr := range append(back.Answer, back.Ns...) {
			if a, ok := address(rr); ok && !fw.open[a] && !under(q.name, "localhost") {
				t.Fatalf("%v is handed out and not open", a)
			}
			var s *dns.SVCB
			switch rr := rr.(type) {
			case *dns.HTTPS:
				s = &rr.SVCB
			case *dns.SVCB:
				s = rr
			default:
				continue
			}
			for _, v := range s.Value {
				if k := v.Key(); k == dns.SVCB_IPV4HINT || k == dns.SVCB_IPV6HINT || k == dns.SVCB_ECHCONFIG {
					t.Fatalf("%v has a hint", rr)
				}
			}
		}
		for a := range fw.open {
			if why := policy.NotPublic(a); why != "" {
				t.Fatalf("%v is open: %s", a, why)
			}
		}
		if len(fw.open) > 0 && !e.allowed(q.name) {
			t.Fatalf("%s has opened %v", q.name, fw.open)
		}
	})
}

// A container with many questions at once about names that are in the cache
// gets an answer to each of them.
func TestManyCachedQuestionsAtOnce(t *testing.T) {
	w := newWorld(t, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		m.Answer = append(m.Answer, record(t, q.Name+" 3600 IN A 203.0.113.1"))
	})
	w.ask("udp", "example.com", dns.TypeA, false)
	// As many as wait at a time, each on a socket of its own: none can be
	// lost on the way back.
	const n = 3 * maxReady
	var wg sync.WaitGroup
	conns := make([]*dns.Conn, n)
	for i := range conns {
		conns[i] = &dns.Conn{Conn: w.dial("udp")}
		conns[i].SetDeadline(time.Now().Add(10 * time.Second))
	}
	for _, c := range conns {
		wg.Go(func() {
			q := new(dns.Msg)
			q.SetQuestion("example.com.", dns.TypeA)
			if err := c.WriteMsg(q); err != nil {
				t.Error(err)
			}
			if m, err := c.ReadMsg(); err != nil || len(m.Answer) != 1 {
				t.Errorf("%v, %v", m, err)
			}
		})
	}
	wg.Wait()
}
