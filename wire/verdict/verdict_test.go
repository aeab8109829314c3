package verdict

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/varlink"
)

// patience bounds what a test waits for and that has to come.
const patience = time.Minute

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// service is a function that is a Service.
type service func(ctx context.Context, container, dest, action string) (bool, string)

func (s service) Apply(ctx context.Context, container, dest, action string) (bool, string) {
	return s(ctx, container, dest, action)
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

func TestPaths(t *testing.T) {
	if got, want := SocketPath("/run/user/1000", "0123456789ab"), "/run/user/1000/terok/verdict/0123456789ab.sock"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := UserSocketPath("/run/user/1000"), "/run/user/1000/terok-clearance-verdict.sock"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestApply(t *testing.T) {
	var asked string
	var ok bool
	var stderr string
	path := SocketPath(t.TempDir(), "0123456789ab")
	serve(t, path, service(func(_ context.Context, container, dest, action string) (bool, string) {
		asked = container + " " + dest + " " + action
		return ok, stderr
	}))
	c, err := Dial(limited(t), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, o := range []struct {
		ok           bool
		stderr, want string
	}{
		{true, "", ""},
		{true, "a warning", "a warning"},
		{false, "why\n\x1b", "why  "},
		{false, strings.Repeat("x", 1000), strings.Repeat("x", MaxStderr-3) + "..."},
	} {
		ok, stderr = o.ok, o.stderr
		gotOK, got, err := c.Apply(limited(t), "0123456789ab", "-v", "allow")
		if err != nil || gotOK != o.ok || got != o.want || asked != "0123456789ab -v allow" {
			t.Errorf("%v, %q: %v, %q, %v; asked %s", o.ok, o.stderr, gotOK, got, err, asked)
		}
	}
}
