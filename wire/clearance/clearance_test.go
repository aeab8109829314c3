package clearance

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/varlink"
)

// patience bounds what a test waits for and that has to come.
const patience = time.Minute

// fake is a Service that says what it is told to.
type fake struct {
	events     chan Event // that Subscribe passes on
	subscribed chan struct{}
	left       chan error // gets why a Subscribe ended
	passed     chan Event // gets each event that was passed on
	verdict    func(ctx context.Context, r Request) error
}

func newFake() *fake {
	return &fake{events: make(chan Event, 100), subscribed: make(chan struct{}, 100), left: make(chan error, 100), passed: make(chan Event, 100)}
}

func (f *fake) Subscribe(ctx context.Context, g func(Event) error) error {
	f.subscribed <- struct{}{}
	for {
		select {
		case <-ctx.Done():
			f.left <- context.Cause(ctx)
			return ctx.Err()
		case e := <-f.events:
			if err := g(e); err != nil {
				f.left <- err
				return err
			}
			f.passed <- e
		}
	}
}

func (f *fake) Verdict(ctx context.Context, r Request) error { return f.verdict(ctx, r) }

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func get[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing happens")
		panic("unreachable")
	}
}

// serve serves a Service at a path until stop is called.
func serve(t *testing.T, path string, s Service) (stop func()) {
	t.Helper()
	server, err := varlink.NewServer(varlink.Config{
		Info:       Info("0.0.0"),
		Interfaces: []varlink.Interface{Interface(s, resources.Varlink(InterfaceName))},
		Log:        slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := varlink.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := server.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return stop
}

// private is a new directory as sockets are made in.
func private(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "private")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func connect(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(limited(t), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestPaths(t *testing.T) {
	if got, want := SocketPath("/run/user/1000", "0123456789ab"), "/run/user/1000/terok/clearance/0123456789ab.sock"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := UserSocketPath("/run/user/1000"), "/run/user/1000/terok-clearance.sock"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestSubscribe(t *testing.T) {
	f := newFake()
	path := SocketPath(t.TempDir(), "0123456789ab")
	serve(t, path, f)
	c := connect(t, path)
	sent := []Event{
		{Type: "connection_blocked", Container: "0123456789ab", RequestID: "0123456789ab:1", Dest: "203.0.113.9", Port: 443, Proto: 6, Domain: "example.com", Dossier: map[string]string{"k": "v"}},
		{Type: VerdictApplied, Container: "a\nb", Action: Allow, OK: true, Reason: "\x1b", Dossier: map[string]string{"k\n": "v\r"}},
		{},
	}
	for _, e := range sent {
		f.events <- e
	}
	want := []Event{sent[0], {Type: VerdictApplied, Container: "a b", Action: Allow, OK: true, Reason: " ", Dossier: map[string]string{"k ": "v "}}, {Dossier: map[string]string{}}}
	enough := errors.New("enough")
	var got []Event
	err := c.Subscribe(limited(t), func(e Event) error {
		if got = append(got, e); len(got) == len(sent) {
			return enough
		}
		return nil
	})
	if diff := cmp.Diff(want, got); diff != "" || !errors.Is(err, enough) {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if get(t, f.left) == nil {
		t.Error("the hub does not know that the subscriber left")
	}
}

func TestVerdict(t *testing.T) {
	var asked Request
	var answer error
	f := newFake()
	f.verdict = func(_ context.Context, r Request) error { asked = r; return answer }
	path := SocketPath(t.TempDir(), "0123456789ab")
	serve(t, path, f)
	c := connect(t, path)
	r := Request{"0123456789ab", "0123456789ab:1", "example.com", Allow}
	for _, answer = range []error{
		nil,
		UnknownRequest{"0123456789ab:1"},
		TupleMismatch{"a", "b", "c", "d"},
		InvalidAction{"ALLOW"},
		ShieldFailed{"allow", "why"},
	} {
		err := c.Verdict(limited(t), r)
		if err != answer {
			t.Errorf("%v, want %v", err, answer)
		}
		if diff := cmp.Diff(r, asked); diff != "" {
			t.Errorf("(-sent +received):\n%s", diff)
		}
	}
	answer = errors.New("a defect")
	err := c.Verdict(limited(t), r)
	if e, ok := errors.AsType[*varlink.Error](err); !ok || e.Name != varlink.InternalServerError {
		t.Error(err)
	}
}
