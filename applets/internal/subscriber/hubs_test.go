package subscriber

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/varlink"
)

// deadline bounds what a test waits for and that has to come.
const deadline = 30 * time.Second

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not in %v", what, deadline)
		}
	}
}

// standIn is a hub behind a real socket. What it asks outlives its server.
type standIn struct {
	path string

	mu      sync.Mutex
	open    []clearance.Event
	subs    map[int]chan clearance.Event
	next    int
	done    []clearance.Request
	wrong   int // answers that are to other questions
	slow    chan struct{}
	failing string
	stop    func()
}

func (h *standIn) serve(t *testing.T) {
	t.Helper()
	s, err := varlink.NewServer(varlink.Config{
		Info:       clearance.Info("0"),
		Interfaces: []varlink.Interface{clearance.Interface(h, resources.Varlink(clearance.InterfaceName))}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := varlink.Listen(h.path)
	if err != nil {
		t.Fatal(err)
	}
	h.subs = make(map[int]chan clearance.Event)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(h.stop)
}

func (h *standIn) Subscribe(ctx context.Context, f func(clearance.Event) error) error {
	h.mu.Lock()
	id, c, open := h.next, make(chan clearance.Event, 100), slices.Clone(h.open)
	h.next++
	h.subs[id] = c
	h.mu.Unlock()
	defer func() { h.mu.Lock(); defer h.mu.Unlock(); delete(h.subs, id) }()
	for _, e := range open {
		if err := f(e); err != nil {
			return err
		}
	}
	for {
		select {
		case e := <-c:
			if err := f(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (h *standIn) send(e clearance.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e.Type == event.Blocked {
		h.open = append(h.open, e)
	}
	for _, c := range h.subs {
		c <- e
	}
}

func (h *standIn) Verdict(ctx context.Context, r clearance.Request) error {
	h.mu.Lock()
	slow, failing := h.slow, h.failing
	i := slices.IndexFunc(h.open, func(e clearance.Event) bool { return e.RequestID == r.RequestID })
	if i < 0 {
		h.mu.Unlock()
		return clearance.UnknownRequest{RequestID: r.RequestID}
	}
	e := h.open[i]
	if e.Target() != r.Dest || e.Container != r.Container {
		h.wrong++
		h.mu.Unlock()
		return clearance.TupleMismatch{ExpectedContainer: e.Container, ExpectedDest: e.Target(), GotContainer: r.Container, GotDest: r.Dest}
	}
	h.mu.Unlock()
	if slow != nil {
		select {
		case <-slow:
		case <-ctx.Done():
		}
	}
	h.mu.Lock()
	if failing == "" {
		h.open = slices.DeleteFunc(h.open, func(o clearance.Event) bool { return o.RequestID == e.RequestID })
		h.done = append(h.done, r)
	}
	h.mu.Unlock()
	h.send(clearance.Event{Type: clearance.VerdictApplied, Container: r.Container, RequestID: r.RequestID, Action: r.Action, OK: failing == ""})
	if failing != "" {
		return clearance.ShieldFailed{Action: r.Action, Stderr: failing}
	}
	return nil
}

func (h *standIn) subscribers() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.subs)
}

// following is a subscriber connected with the hubs below a directory.
type following struct {
	*testing.T
	*Subscriber
	screen *screen
	dir    string

	mu    sync.Mutex
	state map[string]error // of hubs: nil is connected
}

func follow(t *testing.T, paths ...string) *following {
	f := &following{T: t, screen: &screen{shown: make(map[uint64]Notification)}, dir: filepath.Join(t.TempDir(), "run"), state: make(map[string]error)}
	if err := os.Mkdir(f.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f.Subscriber = New(Config{Notifier: f.screen, Categories: All, Log: slog.New(logTo{t})})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- f.Follow(ctx, Hubs{RuntimeDir: f.dir, Paths: paths, Changed: func(path string, err error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.state[path] = err
		}})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		f.Close()
	})
	return f
}

func (f *following) prompts() []string {
	var all []string
	for _, p := range f.Prompts() {
		all = append(all, fmt.Sprintf("%d %s %s %d", p.ID, p.Identity.ContainerID, p.Target(), p.Count))
	}
	return all
}

func (f *following) waitFor(want ...string) {
	f.Helper()
	eventually(f.T, fmt.Sprint(want), func() bool { return cmp.Equal(want, f.prompts()) })
}

func (f *following) answer(id uint64, action string) {
	f.Helper()
	if err := f.Act(id, action); err != nil {
		f.Fatal(err)
	}
}

func of(container string, request int, domain, dest string) clearance.Event {
	e := block(request, domain, dest, 443)
	e.Container = container
	return e
}

func TestFollow(t *testing.T) {
	f := follow(t)
	const other = "ba9876543210"
	one := &standIn{path: clearance.SocketPath(f.dir, short)}
	two := &standIn{path: filepath.Join(f.dir, "terok", "clearance", other, "hub.sock")}
	all := &standIn{path: clearance.UserSocketPath(f.dir)}
	one.open = []clearance.Event{of(short, 1, "example.com", "")} // since before
	one.serve(t)
	f.waitFor("1 " + short + " example.com 1")
	two.serve(t)
	all.serve(t)
	eventually(t, "three hubs", func() bool { return one.subscribers()+two.subscribers()+all.subscribers() == 3 })
	two.send(of(other, 1, "example.com", "192.0.2.7"))
	f.waitFor("1 "+short+" example.com 1", "2 "+other+" example.com 1")
	all.send(of("c", 1, "", "192.0.2.7"))
	f.waitFor("1 "+short+" example.com 1", "2 "+other+" example.com 1", "3 c 192.0.2.7 1")

	// A hub that takes its time over an answer goes on telling.
	two.mu.Lock()
	two.slow = make(chan struct{})
	two.mu.Unlock()
	f.answer(2, clearance.Allow)
	two.send(of(other, 2, "", "192.0.2.8"))
	f.waitFor("1 "+short+" example.com 1", "2 "+other+" example.com 1", "3 c 192.0.2.7 1", "4 "+other+" 192.0.2.8 1")
	close(two.slow)
	f.waitFor("1 "+short+" example.com 1", "3 c 192.0.2.7 1", "4 "+other+" 192.0.2.8 1")
	for _, h := range []*standIn{one, all} {
		if len(h.done) != 0 {
			t.Errorf("%+v", h.done)
		}
	}
	if want := []clearance.Request{{Container: other, RequestID: short + ":1", Dest: "example.com", Action: "allow"}}; !cmp.Equal(want, two.done) {
		t.Errorf("%+v", two.done)
	}

	// One that cannot carry it out says why.
	all.mu.Lock()
	all.failing = "no such container"
	all.mu.Unlock()
	f.answer(3, clearance.Deny)
	eventually(t, "failure", func() bool { p := f.Prompts(); return len(p) == 3 && p[1].Failed == "no such container" })

	// The container of one ends, and the other's socket vanishes without.
	one.send(life(event.ContainerExited, "demo"))
	f.waitFor("3 c 192.0.2.7 1", "4 "+other+" 192.0.2.8 1")
	two.stop()
	eventually(t, "gone", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return errors.Is(f.state[two.path], clearance.ErrGone) })
	f.waitFor("3 c 192.0.2.7 1", "4 "+other+" 192.0.2.8 1")
	f.answer(4, clearance.Allow)
	eventually(t, "failure", func() bool { p := f.Prompts(); return len(p) == 2 && p[1].Failed != "" })

	// It comes back, and the question is still there.
	two.serve(t)
	eventually(t, "back", func() bool { return two.subscribers() == 1 })
	eventually(t, "connected", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.state[two.path] == nil })
	f.answer(4, clearance.Allow)
	f.waitFor("3 c 192.0.2.7 1")
}

// A hub is killed with questions open, and comes back: what it still asks goes
// on, what was answered meanwhile goes.
func TestFollowRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s", "forwarded.sock")
	h := &standIn{path: path}
	h.serve(t)
	f := follow(t, path, path)
	eventually(t, "subscription", func() bool { return h.subscribers() == 1 })
	for i, dest := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"} {
		h.send(of(short, i+1, "", dest))
	}
	f.waitFor("1 "+short+" 192.0.2.1 1", "2 "+short+" 192.0.2.2 1", "3 "+short+" 192.0.2.3 1")
	h.stop()
	h.mu.Lock()
	h.open = h.open[:2]
	h.mu.Unlock()
	h.serve(t)
	eventually(t, "subscription", func() bool { return h.subscribers() == 1 })
	f.answer(2, clearance.Allow)
	f.waitFor("1 "+short+" 192.0.2.1 1", "3 "+short+" 192.0.2.3 1")
	f.answer(3, clearance.Deny)
	eventually(t, "failure", func() bool { p := f.Prompts(); return len(p) == 2 && p[1].Failed == notKnown })
	h.send(of(short, 9, "", "192.0.2.3"))
	f.waitFor("1 "+short+" 192.0.2.1 1", "3 "+short+" 192.0.2.3 2")
	f.answer(3, clearance.Deny)
	f.waitFor("1 " + short + " 192.0.2.1 1")
	if h.wrong != 0 {
		t.Errorf("%d answers to other questions", h.wrong)
	}
}

func TestOnlyContainer(t *testing.T) {
	for path, want := range map[string]string{
		"/run/user/1/terok/clearance/0123456789ab.sock":     "0123456789ab",
		"/run/user/1/terok/clearance/0123456789ab/hub.sock": "0123456789ab",
		"/run/user/1/terok-clearance.sock":                  "",
		"/tmp/demo.sock":                                    "",
		"/tmp/0123456789ab":                                 "",
	} {
		if got := onlyContainer(path); got != want {
			t.Errorf("%s: %q", path, got)
		}
	}
}

func TestUnreachable(t *testing.T) {
	h := New(Config{Notifier: &screen{}, Log: slog.New(slog.DiscardHandler)})
	defer h.Close()
	if err := verdict(t.Context(), filepath.Join(t.TempDir(), "x.sock"), clearance.Request{}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
