package hub

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/varlink"
)

// patience bounds what a test waits for and that has to come.
const patience = time.Minute

const (
	id        = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	shortened = "0123456789ab"
)

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// fixture is a hub behind real sockets.
type fixture struct {
	t               *testing.T
	hub             *Hub
	ingest, clients string // paths
	log             *syncBuffer
	stop            func()
}

// yes carries everything out.
func yes(context.Context, string, string, string) (bool, string) { return true, "" }

func start(t *testing.T, change func(*Config)) *fixture {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "s")
	f := &fixture{t: t, ingest: filepath.Join(dir, "events.sock"), clients: filepath.Join(dir, "clearance.sock"), log: new(syncBuffer)}
	c := Config{Verdict: yes, Log: slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if change != nil {
		change(&c)
	}
	var err error
	if f.hub, err = New(c); err != nil {
		t.Fatal(err)
	}
	ingest, err := varlink.Listen(f.ingest)
	if err != nil {
		t.Fatal(err)
	}
	clients, err := varlink.Listen(f.clients)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.hub.Serve(ctx, ingest, clients) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Errorf("Serve does not end:\n%s", stacks())
		}
		f.hub.Close()
	})
	t.Cleanup(func() {
		f.stop()
		noneLeft(t)
	})
	return f
}

func stacks() string {
	buf := make([]byte, 8<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

// noneLeft fails if something of a hub still runs.
func noneLeft(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		s := stacks()
		left := false
		for _, what := range []string{"hub.(*Hub)", "hub.(*producer)", "varlink.(*connection)", "varlink.accepter", "hub.(*subscriber)"} {
			left = left || strings.Contains(s, what)
		}
		if !left {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("left:\n%s", s)
		}
	}
}

// conn is a connection to a real socket.
type conn struct {
	t *testing.T
	*net.UnixConn
	in *bufio.Reader
}

func dial(t *testing.T, path string) *conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &conn{t: t, UnixConn: c.(*net.UnixConn), in: bufio.NewReader(c)}
}

func (c *conn) say(s string) {
	c.t.Helper()
	if _, err := c.Write([]byte(s)); err != nil {
		c.t.Fatal(err)
	}
}

// hear is the next varlink message.
func (c *conn) hear() string {
	c.t.Helper()
	s, err := c.in.ReadString(0)
	if err != nil {
		c.t.Fatalf("no message: %v", err)
	}
	return strings.TrimSuffix(s, "\x00")
}

// ended waits for the end of the connection.
func (c *conn) ended() {
	c.t.Helper()
	for {
		_, err := c.in.ReadByte()
		if err == nil {
			continue
		}
		if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
			c.t.Fatal("the connection is still open")
		}
		return
	}
}

// call is a varlink call with its reply.
func (c *conn) call(method string, parameters any) string {
	c.t.Helper()
	p, err := json.Marshal(parameters)
	if err != nil {
		c.t.Fatal(err)
	}
	c.say(fmt.Sprintf(`{"method":"org.terok.Clearance1.%s","parameters":%s}`+"\x00", method, p))
	return c.hear()
}

// subscribe subscribes over a real socket, and returns when it is in force.
func (f *fixture) subscribe() *conn {
	f.t.Helper()
	known := make(map[*subscriber]bool)
	added := func() (any bool) {
		f.hub.mu.Lock()
		defer f.hub.mu.Unlock()
		for s := range f.hub.subs {
			any = any || !known[s]
			known[s] = true
		}
		return any
	}
	added()
	c := dial(f.t, f.clients)
	c.say(`{"method":"org.terok.Clearance1.Subscribe","more":true}` + "\x00")
	until(f.t, added)
	return c
}

func (f *fixture) subscribers() int {
	f.hub.mu.Lock()
	defer f.hub.mu.Unlock()
	return len(f.hub.subs)
}

// until waits until it is so.
func until(t *testing.T, so func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not come to that:\n%s", stacks())
		}
	}
}

func get[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("nothing happens:\n%s", stacks())
		panic("unreachable")
	}
}

// block is an event of a blocked connection.
func block(container string, n int, dest, domain string) event.Event {
	return event.Event{
		Type: event.Blocked, Container: container, ID: fmt.Sprintf("%s:%d", container, n),
		Dest: dest, Domain: domain, Port: 443, Proto: 6, Dossier: map[string]string{"project": "p"},
	}
}

// asked is what subscribers get of it.
func asked(e event.Event) clearance.Event {
	d := e.Dossier
	if d == nil {
		d = map[string]string{}
	}
	return clearance.Event{
		Type: e.Type, Container: e.Container, RequestID: e.ID, Dest: e.Dest, Port: e.Port, Proto: e.Proto,
		Domain: e.Domain, Reason: e.Reason, Dossier: d,
	}
}

func newHub(t *testing.T, change func(*Config)) *Hub {
	t.Helper()
	c := Config{Verdict: yes}
	if change != nil {
		change(&c)
	}
	h, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func ingest(t *testing.T, h *Hub, events ...event.Event) {
	t.Helper()
	for _, e := range events {
		if err := h.Ingest(e); err != nil {
			t.Fatal(err)
		}
	}
}

func diff(t *testing.T, want, got any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestNew(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("a hub without anybody to carry verdicts out")
	}
}

// The table of event types: what subscribers get of each, and nothing else.
func TestTranslate(t *testing.T) {
	all := event.Event{
		Container: "c\n", ID: "c:1", Dest: "203.0.113.9", Port: 1 << 40, Proto: -1, Domain: "caf\u00e9.example", Reason: "eof\x1b",
		Dossier: map[string]string{"project": "a\u202eb", strings.Repeat("k", 65): "", "bad\nkey": ""}, Time: time.Now(),
	}
	dossier := map[string]string{"project": "a b"}
	for _, typ := range []string{event.Blocked, event.ContainerStarted, event.ContainerExited, event.ShieldUp, event.ShieldDown, event.ShieldDisengaged} {
		e := all
		e.Type = typ
		want := clearance.Event{Type: typ, Container: "c ", Dossier: dossier}
		switch typ {
		case event.Blocked:
			want.RequestID, want.Dest, want.Port, want.Proto, want.Domain = "c:1", "203.0.113.9", 1<<40, -1, "caf .example"
		case event.ContainerExited:
			want.Reason = "eof "
		}
		got, err := newHub(t, nil).translate(e)
		if err != nil {
			t.Fatal(err)
		}
		diff(t, &want, got)
	}
	for _, typ := range []string{"", clearance.VerdictApplied, "pending", "shield_down_all", "x\n"} {
		if _, err := newHub(t, nil).translate(event.Event{Type: typ}); err == nil {
			t.Errorf("%q was taken", typ)
		}
	}
	many := make(map[string]string)
	for i := range 100 {
		many[fmt.Sprintf("%03d", i)] = strings.Repeat("v", 1000)
	}
	e, err := newHub(t, nil).translate(event.Event{Type: event.ShieldUp, Dossier: many})
	if err != nil {
		t.Fatal(err)
	}
	if d := e.Dossier; len(d) != event.MaxDossier || len(d["000"]) != 256 {
		t.Errorf("%d pairs, values of %d", len(d), len(d["000"]))
	}
}

// A container's own hub takes what is said about it under any of its names.
func TestContainer(t *testing.T) {
	h := newHub(t, func(c *Config) { c.Container, c.Aliases = shortened, []string{id, "web"} })
	n := 0
	for _, name := range []string{shortened, id, "web", id[:40]} {
		n++
		e := block(name, n, "203.0.113.9", "")
		ingest(t, h, e)
		want := asked(e)
		want.Container = shortened
		got := h.Pending()
		diff(t, []clearance.Event{want}, got)
		if err := h.Verdict(t.Context(), clearance.Request{Container: shortened, RequestID: e.ID, Dest: e.Dest, Action: clearance.Allow}); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", "other", "0123456789", "0123456789ac", "0123456789abxdef", id + "0", "Web", "web "} {
		if err := h.Ingest(block(name, 1, "203.0.113.9", "")); err == nil {
			t.Errorf("%q was taken", name)
		}
	}
	if got := h.Pending(); len(got) > 0 {
		t.Errorf("%+v", got)
	}
}

// Commands call a container by its name, readers by its id.
func TestPurge(t *testing.T) {
	dossier := map[string]string{"container_name": "web", "name": "Fetch things"}
	other := block("ba9876543210", 1, "203.0.113.9", "")
	for name, tt := range map[string]struct {
		block, end event.Event
		kept       bool
	}{
		"the same":                {event.Event{Container: shortened}, event.Event{Container: shortened}, false},
		"full id":                 {event.Event{Container: shortened}, event.Event{Container: id}, false},
		"name":                    {event.Event{Container: "web"}, event.Event{Container: "web"}, false},
		"name, known":             {event.Event{Container: shortened, Dossier: dossier}, event.Event{Container: "web"}, false},
		"id of a name":            {event.Event{Container: "web"}, event.Event{Container: shortened, Dossier: dossier}, false},
		"what else it is called":  {event.Event{Container: shortened, Dossier: dossier}, event.Event{Container: "Fetch things"}, true},
		"its only name":           {event.Event{Container: shortened, Dossier: map[string]string{"name": "web"}}, event.Event{Container: "web"}, false},
		"another":                 {event.Event{Container: shortened}, event.Event{Container: "web"}, true},
		"another, with a dossier": {event.Event{Container: shortened, Dossier: dossier}, event.Event{Container: "db", Dossier: map[string]string{"container_name": "db"}}, true},
		"no name":                 {event.Event{Container: ""}, event.Event{Container: "web"}, true},
		"nobody":                  {event.Event{Container: "web"}, event.Event{Container: ""}, true},
	} {
		for _, typ := range []string{event.ShieldDown, event.ShieldDisengaged, event.ContainerExited} {
			h := newHub(t, nil)
			ingest(t, h, other)
			tt.block.Type, tt.block.ID, tt.block.Dest = event.Blocked, "c:1", "203.0.113.9"
			tt.end.Type = typ
			ingest(t, h, tt.block, tt.end)
			if kept := len(h.Pending()) == 2; kept != tt.kept {
				t.Errorf("%s, %s: kept %v", name, typ, kept)
			}
		}
	}
	h := newHub(t, nil)
	ingest(t, h, other, event.Event{Type: event.ShieldUp, Container: other.Container}, event.Event{Type: event.ContainerStarted, Container: other.Container})
	if len(h.Pending()) != 1 {
		t.Error("purged where nothing was opened")
	}
}

func TestLastID(t *testing.T) {
	h := newHub(t, nil)
	for _, tt := range []struct {
		id   string
		want uint64
	}{
		{"c:", 0}, {"x", 0}, {"c:-1", 0}, {"c:0", 0}, {"c:3", 3}, {"c:2", 3}, {"a:b:7", 7}, {"9", 9}, {"c:18446744073709551615", 9}, {"c:9223372036854775807", 9}, {"c:1e3", 9},
	} {
		ingest(t, h, event.Event{Type: event.Blocked, ID: tt.id})
		if got := h.LastID(); got != tt.want {
			t.Errorf("after %s: %d, want %d", tt.id, got, tt.want)
		}
	}
}

// Without an id it can be shown, and that is all.
func TestNoID(t *testing.T) {
	h := newHub(t, nil)
	ingest(t, h, event.Event{Type: event.Blocked, Container: "c", Dest: "203.0.113.9"})
	if got := h.Pending(); len(got) > 0 {
		t.Errorf("%+v", got)
	}
	if err := h.Verdict(t.Context(), clearance.Request{Container: "c", Dest: "203.0.113.9", Action: clearance.Allow}); err == nil {
		t.Error("was answered")
	}
}

// What Pending returns is the caller's.
func TestPendingCopies(t *testing.T) {
	h := newHub(t, nil)
	ingest(t, h, block("c", 1, "203.0.113.9", ""))
	h.Pending()[0].Dossier["project"] = "changed"
	if got := h.Pending()[0].Dossier["project"]; got != "p" {
		t.Errorf("%q", got)
	}
}

func TestClosed(t *testing.T) {
	h := newHub(t, nil)
	e := block("c", 1, "203.0.113.9", "")
	ingest(t, h, e)
	h.Close()
	h.Close()
	if err := h.Ingest(e); err != ErrClosed {
		t.Error(err)
	}
	if err := h.Subscribe(t.Context(), func(clearance.Event) error { return nil }); err != ErrClosed {
		t.Error(err)
	}
	if err, ok := h.Verdict(t.Context(), clearance.Request{Container: "c", RequestID: "c:1", Dest: "203.0.113.9", Action: clearance.Allow}).(clearance.UnknownRequest); !ok {
		t.Error(err)
	}
}
