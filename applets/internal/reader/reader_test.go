package reader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/applets/internal/audit"
	"github.com/terok-ai/terok-box/nl/nflog"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/names"
)

const short = "0123456789ab"

// hub is whoever takes events.
type hub struct {
	mu     sync.Mutex
	events []event.Event
	err    error         // it takes none
	wait   chan struct{} // it takes its time until that is closed
	tries  int
}

func (h *hub) emit(e event.Event) error {
	h.mu.Lock()
	wait := h.wait
	h.tries++
	h.mu.Unlock()
	if wait != nil {
		<-wait
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		return h.err
	}
	h.events = append(h.events, e)
	return nil
}

func (h *hub) set(err error, wait chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err, h.wait = err, wait
}

// attempts is how often somebody tried to pass an event on.
func (h *hub) attempts() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tries
}

// peek is the events so far.
func (h *hub) peek() []event.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.events)
}

// take is the events so far, as text, and forgets them.
func (h *hub) take() (out []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		out = append(out, show(e))
	}
	h.events = nil
	return out
}

// show is an event without its time and dossier.
func show(e event.Event) string {
	switch e.Type {
	case event.Blocked:
		return strings.TrimSpace(fmt.Sprintf("%s %s %d/%d %s", e.ID, e.Dest, e.Proto, e.Port, e.Domain))
	case event.ContainerExited:
		return e.Type + " " + e.Reason
	}
	return e.Type
}

// logged is a logger whose lines a test can look at.
type logged struct {
	mu    sync.Mutex
	lines []string
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(p))
	return len(p), nil
}

func (l *logged) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *logged) count(part string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.lines {
		if strings.Contains(s, part) {
			n++
		}
	}
	return n
}

// payload is the start of an IPv4 packet.
func payload(dst string, proto byte, port uint16) []byte {
	b := make([]byte, 28)
	b[0], b[9] = 4<<4|5, proto
	copy(b[12:], netip.MustParseAddr("192.0.2.1").AsSlice())
	copy(b[16:], netip.MustParseAddr(dst).AsSlice())
	binary.BigEndian.PutUint16(b[22:], port)
	return b
}

func number(i int) string {
	return netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)}).String()
}

// dry is a Reader that gets its packets from a test, in which time passes at
// once.
type dry struct {
	*testing.T
	*Reader
	hub hub
	log logged
}

func inBubble(t *testing.T, c Config, f func(d *dry)) {
	t.Helper()
	c.Bundle = newBundle(t)
	c.Container, c.Audit = short, true
	synctest.Test(t, func(t *testing.T) {
		d := &dry{T: t}
		c.Emit, c.Log = d.hub.emit, d.log.logger()
		d.Reader = newReader(c)
		var wg sync.WaitGroup
		wg.Go(func() { d.resolve(t.Context()) })
		wg.Go(func() { d.emit(t.Context()) })
		wg.Go(func() { d.write(t.Context()) })
		f(d)
		close(d.found)
		synctest.Wait()
		close(d.asks)
		close(d.lines)
		wg.Wait()
	})
}

func (d *dry) blockedTCP(dst string, port uint16) {
	d.packet(nflog.Packet{Prefix: string(ruleset.LogBlocked), Payload: payload(dst, nflog.TCP, port)}, 0, time.Now())
}

func (d *dry) sees(want ...string) {
	d.Helper()
	synctest.Wait()
	if diff := cmp.Diff(want, d.hub.take()); diff != "" {
		d.Errorf("(-want +got)\n%s", diff)
	}
}

// lines are those of the audit log.
func auditLines(t testing.TB, b *bundle.Bundle) (out []audit.Entry) {
	t.Helper()
	all, err := audit.Read(b, 1_000_000)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		e := r.Entry()
		e.Time = time.Time{}
		out = append(out, e)
	}
	return out
}

// A destination is asked about, and written down, once in a window.
func TestWindow(t *testing.T) {
	inBubble(t, Config{}, func(d *dry) {
		d.sees("container_started")
		d.blockedTCP("198.51.100.7", 443)
		d.sees(short + ":1 198.51.100.7 6/443")
		for range 29 {
			time.Sleep(time.Second)
			d.blockedTCP("198.51.100.7", 80) // another port of it is the same
		}
		d.sees()
		time.Sleep(time.Second)
		d.blockedTCP("198.51.100.7", 80)
		d.sees(short + ":2 198.51.100.7 6/80")
		d.blockedTCP("198.51.100.8", 80)
		d.sees(short + ":3 198.51.100.8 6/80")
		s := d.Status()
		if s.Packets != 32 || s.Asked != 3 || s.Repeated != 29 || s.Suppressed != 0 || s.Undelivered != 0 || s.Next != 4 || s.Trouble != "" {
			t.Errorf("%+v", s)
		}
		want := []audit.Entry{
			{Container: short, Action: audit.Blocked, Dest: "198.51.100.7", Port: 443, Proto: "tcp"},
			{Container: short, Action: audit.Blocked, Dest: "198.51.100.7", Port: 80, Proto: "tcp"},
			{Container: short, Action: audit.Blocked, Dest: "198.51.100.8", Port: 80, Proto: "tcp"},
		}
		if diff := cmp.Diff(want, auditLines(t, d.Bundle)); diff != "" {
			t.Errorf("audit (-want +got)\n%s", diff)
		}
	})
}

// Only what nobody has decided about is asked about.
func TestPrefixes(t *testing.T) {
	inBubble(t, Config{}, func(d *dry) {
		for _, p := range []ruleset.Prefix{
			ruleset.LogDenied, ruleset.LogPrivate, ruleset.LogAllowed, ruleset.LogBypass, ruleset.LogDown, ruleset.LogQuarantine, "",
			ruleset.LogBlocked + "x", "BLOCKED",
		} {
			d.packet(nflog.Packet{Prefix: string(p), Payload: payload("198.51.100.7", nflog.TCP, 443)}, 0, time.Now())
		}
		blocked := string(ruleset.LogBlocked)
		d.packet(nflog.Packet{Prefix: blocked, Payload: payload("224.0.0.251", nflog.UDP, 5353)}, 0, time.Now())
		d.packet(nflog.Packet{Prefix: blocked, Payload: []byte{0x45}}, 0, time.Now())
		d.packet(nflog.Packet{Prefix: blocked}, 0, time.Now())
		d.sees("container_started")
		d.packet(nflog.Packet{Prefix: blocked, Payload: payload("198.51.100.9", nflog.ICMP, 0)}, 0, time.Now())
		d.sees(short + ":1 198.51.100.9 1/0")
		if lines := auditLines(t, d.Bundle); len(lines) != 1 || lines[0].Proto != "1" {
			t.Errorf("audit %v", lines)
		}
	})
}

// What is not delivered is asked again, under another id, with the next
// packet; the audit log has it all the same, once.
func TestUndelivered(t *testing.T) {
	inBubble(t, Config{First: 41}, func(d *dry) {
		d.hub.set(errors.New("nobody is there"), nil)
		d.blockedTCP("198.51.100.7", 443)
		d.sees()
		time.Sleep(2 * time.Second)
		d.blockedTCP("198.51.100.7", 443)
		d.sees()
		if s := d.Status(); s.Undelivered != 2 || s.Asked != 0 || s.Next != 43 || !strings.Contains(s.Trouble, "nobody is there") {
			t.Errorf("%+v", s)
		}
		d.hub.set(nil, nil)
		time.Sleep(startLongest)
		d.sees("container_started")
		d.blockedTCP("198.51.100.7", 443)
		d.sees(short + ":43 198.51.100.7 6/443")
		d.blockedTCP("198.51.100.7", 443)
		d.sees()
		if lines := auditLines(t, d.Bundle); len(lines) != 1 {
			t.Errorf("audit %v", lines)
		}
		if s := d.Status(); s.Trouble != "" || d.log.count("questions reach nobody") != 2 { // once each way
			t.Errorf("%+v; %q", s, d.log.all())
		}
	})
}

// What the audit log does not take is written with the next packet, and not
// asked again.
func TestUnwritten(t *testing.T) {
	inBubble(t, Config{}, func(d *dry) {
		path := filepath.Join(d.Bundle.Path(), bundle.FileAuditLog)
		if err := os.Symlink("elsewhere", path); err != nil {
			t.Fatal(err)
		}
		d.blockedTCP("198.51.100.7", 443)
		d.sees("container_started", short+":1 198.51.100.7 6/443")
		if s := d.Status(); !strings.Contains(s.Trouble, "audit") {
			t.Errorf("%+v", s)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(nameAge)
		d.blockedTCP("198.51.100.7", 443)
		d.sees()
		if lines := auditLines(t, d.Bundle); len(lines) != 1 {
			t.Errorf("audit %v", lines)
		}
		if s := d.Status(); s.Trouble != "" || s.Asked != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// A scan makes some questions and lines, and what is not asked about is
// counted. What comes after it is asked about again.
func TestScan(t *testing.T) {
	inBubble(t, Config{}, func(d *dry) {
		const n, seconds = 10_000, 10
		for i := range n {
			d.blockedTCP(number(i), 443)
			time.Sleep(seconds * time.Second / n)
			synctest.Wait()
		}
		events := d.hub.take()
		asked, lines := len(events)-1, auditLines(t, d.Bundle)
		if most := askBurst + askRate*seconds; asked > most || asked < most-2 {
			t.Errorf("%d questions", asked)
		}
		if most := lineBurst + lineRate*seconds; len(lines) > most || len(lines) < most-2 {
			t.Errorf("%d lines", len(lines))
		}
		s := d.Status()
		if s.Suppressed+s.Asked+s.Repeated != n || int(s.Asked) != asked || s.Repeated != 0 {
			t.Errorf("%+v", s)
		}
		told := 0
		for _, l := range lines {
			var more int
			if l.Detail != "" {
				if _, err := fmt.Sscanf(l.Detail, "%d more destinations before this one", &more); err != nil {
					t.Errorf("detail %q", l.Detail)
				}
			}
			told += 1 + more
		}
		if told < n*9/10 || told > n {
			t.Errorf("the audit log tells of %d destinations, of %d", told, n)
		}
		if len(d.ledger.keys) > 300 || len(d.aliases) > maxAliases || len(d.ledger.noted) > maxNoted {
			t.Errorf("in memory are %d, %d and %d", len(d.ledger.keys), len(d.aliases), len(d.ledger.noted))
		}
		time.Sleep(time.Second)
		d.blockedTCP(number(n-1), 443)
		d.sees(fmt.Sprintf("%s:%d %s 6/443", short, asked+1, number(n-1)))
	})
}

// Who answers is asked on, as fast as the firewall logs.
func TestAnswered(t *testing.T) {
	inBubble(t, Config{}, func(d *dry) {
		const n = 2000
		for i := range n {
			d.blockedTCP(number(i), 443)
			synctest.Wait()
			d.Answered()
			time.Sleep(time.Second / ruleset.LogRate)
		}
		if s := d.Status(); s.Asked != n || s.Suppressed != 0 {
			t.Errorf("%+v", s)
		}
		if len(d.ledger.keys) > maxKeys || len(d.aliases) > maxAliases {
			t.Errorf("in memory are %d and %d", len(d.ledger.keys), len(d.aliases))
		}
	})
}

// Where nobody is to be asked, the log tells of it all the same, and nothing
// counts as left out, however often it happens.
func TestNobodyAsked(t *testing.T) {
	inBubble(t, Config{Questions: -1}, func(d *dry) {
		d.sees("container_started")
		for range 100 {
			d.blockedTCP("198.51.100.7", 443)
			synctest.Wait()
		}
		d.sees()
		if lines := auditLines(t, d.Bundle); len(lines) != 1 {
			t.Errorf("audit %v", lines)
		}
		if s := d.Status(); s.Asked != 0 || s.Suppressed != 0 || s.Repeated != 99 {
			t.Errorf("%+v", s)
		}
	})
}

// A hub that does not read stalls nothing, and what it has missed is asked
// when it happens again.
func TestSlowHub(t *testing.T) {
	inBubble(t, Config{}, func(d *dry) {
		d.sees("container_started")
		release := make(chan struct{})
		d.hub.set(nil, release)
		const n = queueSize + 200
		for i := range n {
			d.blockedTCP(number(i), 443)
			time.Sleep(time.Second)
		}
		if s := d.Status(); s.Packets != n || s.Asked != 0 || s.Undelivered == 0 || s.Undelivered > n-queueSize {
			t.Errorf("%+v", s)
		}
		if lines := auditLines(t, d.Bundle); len(lines) != n {
			t.Errorf("%d lines", len(lines))
		}
		d.hub.set(nil, nil)
		close(release)
		synctest.Wait()
		if got := d.hub.take(); len(got) != queueSize+1 {
			t.Errorf("%d events", len(got))
		}
		d.blockedTCP(number(n-1), 443)
		d.sees(fmt.Sprintf("%s:%d %s 6/443", short, n+1, number(n-1)))
	})
}

// The start is told first, and again until somebody hears it.
func TestStarted(t *testing.T) {
	inBubble(t, Config{}, func(d *dry) {
		d.hub.set(errors.New("nobody is there yet"), nil)
		time.Sleep(3 * time.Second)
		if n := d.hub.attempts(); n < 5 || n > 8 {
			t.Errorf("%d attempts", n)
		}
		d.hub.set(nil, nil)
		d.blockedTCP("198.51.100.7", 443)
		d.sees("container_started", short+":1 198.51.100.7 6/443")
		time.Sleep(time.Minute)
		d.sees()
	})
}

// The end is told within bounds.
func TestExit(t *testing.T) {
	inBubble(t, Config{}, func(d *dry) {
		d.sees("container_started")
		if err := d.Exit("poststop"); err != nil {
			t.Error(err)
		}
		d.sees("container_exited poststop")
		never := make(chan struct{})
		d.hub.set(nil, never)
		began := time.Now()
		if err := d.Exit("eof"); err == nil || time.Since(began) != exitTimeout {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		close(never)
		d.sees("container_exited eof")
	})
}

func TestRefusedNames(t *testing.T) {
	inBubble(t, Config{Dossier: map[string]string{"task": "t"}}, func(d *dry) {
		d.sees("container_started")
		q := func(name, typ, verdict string, missed int64) {
			d.refused(names.Question{Name: name, Type: typ, Verdict: verdict, Missed: missed})
		}
		q("a.example.com", "A", names.Refused, 0)
		q("a.example.com", "AAAA", names.Refused, 0)
		synctest.Wait()
		if got := d.hub.peek(); len(got) != 1 || got[0].Dossier["task"] != "t" {
			t.Errorf("%v", got)
		}
		d.sees(short + ":1  17/53 a.example.com")
		q("b.example.com", "AAAA", names.Refused, 0)
		d.sees(short + ":2  17/53 b.example.com")
		for _, verdict := range []string{names.Allowed, names.Resolved, names.Failed, names.Denied, "", "other"} {
			q("c.example.com", "A", verdict, 0)
		}
		for _, typ := range []string{"TXT", "HTTPS", "PTR", "TYPE65280", ""} {
			q("d.example.com", typ, names.Refused, 0)
		}
		q("", "A", names.Refused, 0)
		q(".", "A", names.Refused, 17)
		d.sees()
		time.Sleep(window)
		q("a.example.com", "AAAA", names.Refused, 3)
		d.sees(short + ":3  17/53 a.example.com")
		if s := d.Status(); s.Asked != 3 || s.Repeated != 1 || s.Missed != 20 {
			t.Errorf("%+v", s)
		}
		if lines := auditLines(t, d.Bundle); len(lines) > 0 {
			t.Errorf("audit %v: they are written by who refuses them", lines)
		}
		if d.log.count("refused names were lost") != 2 {
			t.Errorf("log %q", d.log.all())
		}
		for i := range 1000 {
			q(fmt.Sprintf("x%d.example.com", i), "A", names.Refused, 0)
			synctest.Wait()
		}
		if got := d.hub.take(); len(got) >= askBurst {
			t.Errorf("%d questions", len(got))
		}
		if s := d.Status(); s.Suppressed < 1000-askBurst || s.Suppressed >= 1000 {
			t.Errorf("%+v", s)
		}
	})
}

// How many questions are asked at once is the operator's choice, also that
// there are none: then the audit log has it all the same.
func TestQuestions(t *testing.T) {
	for questions, want := range map[int]int{-1: 0, 1: 1, 7: 7} {
		inBubble(t, Config{Questions: questions}, func(d *dry) {
			d.sees("container_started")
			for i := range 20 {
				d.blockedTCP(fmt.Sprintf("203.0.113.%d", i), 443)
				d.refused(names.Question{Name: fmt.Sprintf("x%d.example.com", i), Type: "A", Verdict: names.Refused})
			}
			synctest.Wait()
			if got := len(d.hub.take()); got != want {
				t.Errorf("%d questions of %d", got, want)
			}
			if got := len(auditLines(t, d.Bundle)); got != 20 {
				t.Errorf("%d lines in the audit log", got)
			}
			if s := d.Status(); s.Suppressed != uint64(max(0, 40-want)) && questions > 0 || questions < 0 && s.Suppressed+s.Repeated != 0 {
				t.Errorf("%d: %+v", questions, s)
			}
		})
	}
}

// A name that was refused is not asked about again when its address is
// blocked, nor are the addresses of one name.
func TestOneQuestionOfAName(t *testing.T) {
	inBubble(t, Config{}, func(d *dry) {
		d.sees("container_started")
		appendLog(t, d.Bundle, answer("a.test", "198.51.100.1")+answer("a.test", "198.51.100.2")+answer("b.test", "198.51.100.3"))
		d.refused(names.Question{Name: "b.test", Type: "A", Verdict: names.Refused})
		d.sees(short + ":1  17/53 b.test")
		d.blockedTCP("198.51.100.3", 443)
		d.sees()
		d.blockedTCP("198.51.100.2", 443)
		d.sees(short + ":2 198.51.100.2 6/443 a.test")
		d.blockedTCP("198.51.100.1", 443)
		d.sees()
		// The same address under another name is another question.
		appendLog(t, d.Bundle, answer("c.test", "198.51.100.1"))
		d.blockedTCP("198.51.100.1", 443)
		d.sees()
		time.Sleep(nameAge)
		d.blockedTCP("198.51.100.1", 443)
		d.sees(short + ":3 198.51.100.1 6/443 c.test")
		if s := d.Status(); s.Asked != 3 || s.Repeated != 3 {
			t.Errorf("%+v", s)
		}
	})
}

// The dossier is what it is at the time of the question.
func TestDossier(t *testing.T) {
	meta := filepath.Join(t.TempDir(), "meta.json")
	write := func(text string) {
		if err := os.WriteFile(meta, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"task":"one","name":"n"}`)
	inBubble(t, Config{Dossier: map[string]string{"project": "p", "task": "zero", "meta_path": meta}}, func(d *dry) {
		d.blockedTCP("198.51.100.1", 1)
		synctest.Wait()
		write(`{"task":"two"}`)
		d.blockedTCP("198.51.100.2", 1)
		synctest.Wait()
		write(`broken`)
		d.blockedTCP("198.51.100.3", 1)
		synctest.Wait()
		want := []map[string]string{
			nil,
			{"project": "p", "task": "one", "name": "n"},
			{"project": "p", "task": "two"},
			{"project": "p", "task": "zero"},
		}
		var got, lines []map[string]string
		for _, e := range d.hub.peek() {
			got = append(got, e.Dossier)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		for _, l := range auditLines(t, d.Bundle) {
			lines = append(lines, l.Dossier)
		}
		if diff := cmp.Diff(want[1:], lines); diff != "" {
			t.Errorf("audit (-want +got)\n%s", diff)
		}
		if s := d.Status(); !strings.Contains(s.Trouble, "dossier") || d.log.count("dossier") != 1 {
			t.Errorf("%+v, %q", s, d.log.all())
		}
	})
}

// Losses are said once in a while, all of them.
func TestLossIsLogged(t *testing.T) {
	inBubble(t, Config{}, func(d *dry) {
		for range 100 {
			d.lost.Add(7)
			d.dropped()
			time.Sleep(time.Second)
		}
		time.Sleep(lossPause)
		synctest.Wait()
		sum := 0
		for _, l := range d.log.all() {
			var n int
			_, after, _ := strings.Cut(l, "count=")
			fmt.Sscan(after, &n)
			sum += n
		}
		if n := len(d.log.all()); n < 5 || n > 12 || sum != 700 {
			t.Errorf("%d lines about %d packets: %q", n, sum, d.log.all())
		}
	})
}
