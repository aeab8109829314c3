package hub

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/event"
)

// session is a running clearance verb.
type session struct {
	t      *testing.T
	env    *cmdenv.Env
	in     *io.PipeWriter
	out    *syncBuffer
	errs   *syncBuffer
	ended  chan error
	cancel context.CancelFunc
}

func ask(t *testing.T, c clearanceCmd, runtimeDir string) *session {
	t.Helper()
	in, typed := io.Pipe()
	a := &session{t: t, in: typed, out: new(syncBuffer), errs: new(syncBuffer), ended: make(chan error, 1)}
	a.env = &cmdenv.Env{
		Stdin: in, Stdout: a.out, Stderr: a.errs, UID: os.Getuid(), EUID: os.Geteuid(), Vars: map[string]string{"XDG_RUNTIME_DIR": runtimeDir},
	}
	ctx, cancel := context.WithCancel(t.Context())
	a.cancel = cancel
	go func() { a.ended <- c.run(ctx, a.env) }()
	t.Cleanup(func() {
		cancel()
		in.Close()
	})
	return a
}

func (a *session) types(line string) {
	a.t.Helper()
	if _, err := io.WriteString(a.in, line+"\n"); err != nil {
		a.t.Fatal(err)
	}
}

func (a *session) waitFor(text string) {
	a.t.Helper()
	for end := time.Now().Add(patience); !strings.Contains(a.out.String(), text); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			a.t.Fatalf("no %q in\n%s\nstderr:\n%s", text, a.out, a.errs)
		}
	}
}

func (a *session) end() error {
	a.t.Helper()
	select {
	case err := <-a.ended:
		return err
	case <-time.After(patience):
		a.t.Fatalf("it does not end:\n%s", stacks())
		return nil
	}
}

// relay passes connections to a socket on to another one, as ssh -L does,
// until the returned function is called.
func relay(t *testing.T, from, to string) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", from)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var open []net.Conn
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", to)
			if err != nil {
				near.Close()
				continue
			}
			mu.Lock()
			open = append(open, near, far)
			mu.Unlock()
			for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
				go func() { io.Copy(way[0], way[1]); way[0].Close() }()
			}
		}
	}()
	stop = sync.OnceFunc(func() {
		l.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range open {
			c.Close()
		}
	})
	t.Cleanup(stop)
	return stop
}

func blockOf(container, request, domain, dest string) event.Event {
	return event.Event{
		Type: event.Blocked, Container: container, ID: request, Dest: dest, Domain: domain, Port: 443, Proto: 6,
		Dossier: map[string]string{"name": "demo"},
	}
}

// From a block to its answer, through a forwarded socket that is lost once.
func TestClearanceForwarded(t *testing.T) {
	var mu sync.Mutex
	var done []string
	fail := true
	f := start(t, func(c *Config) {
		c.Verdict = func(_ context.Context, container, dest, action string) (bool, string) {
			mu.Lock()
			defer mu.Unlock()
			done = append(done, container+" "+dest+" "+action)
			if fail {
				fail = false
				return false, "busy"
			}
			return true, ""
		}
	})
	near := filepath.Join(t.TempDir(), "far.sock")
	cut := relay(t, near, f.clients)
	a := ask(t, clearanceCmd{Hub: []string{near}}, "")
	a.waitFor("Shield clearance — listening on per-container sockets\nCommands: a <N> allow, d <N> deny, l list, q quit\n\n")
	ingest := func(e event.Event) {
		t.Helper()
		if err := f.hub.Ingest(e); err != nil {
			t.Fatal(err)
		}
	}
	ingest(blockOf(shortened, shortened+":1", "example.com", "192.0.2.7"))
	a.waitFor("[1] BLOCKED  Blocked: example.com:443  Container: demo; Protocol: TCP; Address: 192.0.2.7\n")
	ingest(blockOf(shortened, shortened+":2", "", "192.0.2.8"))
	a.waitFor("[2] BLOCKED  Blocked: 192.0.2.8:443")
	a.types("a 1")
	a.waitFor("[1] FAILED  Allow failed: example.com  Container: demo; Reason: busy; Address: 192.0.2.7\n")
	a.types("a 1")
	a.waitFor("\nAllowed: example.com  Container: demo\n")

	cut()
	ingest(blockOf(shortened, shortened+":3", "", "192.0.2.9")) // while nobody listens
	for end := time.Now().Add(patience); !strings.Contains(a.errs.String(), "far.sock: no connection to the hub, trying again: "); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(a.errs)
		}
	}
	relay(t, near, f.clients)
	a.waitFor("[3] BLOCKED  Blocked: 192.0.2.9:443")
	a.types("d 2-3")
	a.waitFor("Denied: 192.0.2.8")
	a.waitFor("Denied: 192.0.2.9")
	a.types("l")
	a.waitFor("  (no pending requests)\n")
	a.types("q")
	if err := a.end(); err != nil {
		t.Error(err)
	}
	if !strings.HasSuffix(a.errs.String(), "far.sock: connected again\n") {
		t.Error(a.errs)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(done) != 4 || done[0] != shortened+" example.com allow" || done[1] != done[0] {
		t.Error(done)
	}
}

// All hubs below the runtime directory, as they come; an empty one is fine.
func TestClearanceAll(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	a := ask(t, clearanceCmd{JSON: true}, dir)
	a.types(`{"action":"list"}`)
	a.waitFor(`{"event":"list","prompts":[]}`)
	f := start(t, nil)
	path := clearance.SocketPath(dir, shortened)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := f.hub.Ingest(blockOf(shortened, shortened+":1", "", "192.0.2.7")); err != nil { // before
		t.Fatal(err)
	}
	relay(t, path, f.clients)
	a.waitFor(`{"event":"prompt","id":1,"hub":"` + path + `","container":"` + shortened + `"`)
	a.types(`{"id":1,"action":"deny"}`)
	a.waitFor(`"action":"deny","ok":true`)
	a.in.Close() // the end of the input
	if err := a.end(); err != nil {
		t.Error(err)
	}
	if a.errs.String() != "" {
		t.Error(a.errs)
	}
}

func TestClearanceUnavailable(t *testing.T) {
	dir := t.TempDir()
	for name, tt := range map[string]struct {
		args []string
		dir  string
		want string
		code int
	}{
		"no hub":               {[]string{"--hub", filepath.Join(dir, "x.sock")}, dir, "clearance hub unavailable: connect to " + filepath.Join(dir, "x.sock") + ": no such file or directory\n", 1},
		"no runtime directory": {nil, filepath.Join(dir, "x"), "clearance hub unavailable: stat " + filepath.Join(dir, "x") + ": no such file or directory; name a hub's socket with --hub\n", 1},
		"usage":                {[]string{"--frobnicate"}, dir, "clearance-hub: unknown flag --frobnicate (see clearance-hub --help)\n", 2},
		"no path":              {[]string{"--hub"}, dir, "clearance-hub: --hub: missing value, expecting \"<arg>\" (see clearance-hub --help)\n", 2},
		"a container":          {[]string{"demo"}, dir, "clearance-hub: unexpected argument demo (see clearance-hub --help)\n", 2},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			env := &cmdenv.Env{
				Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, UID: os.Getuid(), EUID: os.Geteuid(), Vars: map[string]string{"XDG_RUNTIME_DIR": tt.dir},
			}
			if code := Run(env, append([]string{"clearance"}, tt.args...)); code != tt.code || errs.String() != tt.want || out.Len() > 0 {
				t.Errorf("exit code %d, stdout %q, stderr %q", code, out.String(), errs.String())
			}
		})
	}
	var out bytes.Buffer
	if code := Run(&cmdenv.Env{Stdout: &out}, []string{"clearance", "--help"}); code != 0 || !strings.Contains(out.String(), "ssh -N -L") {
		t.Error(code, out.String())
	}
}

func TestClearanceCancelled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	a := ask(t, clearanceCmd{}, dir)
	a.waitFor("q quit\n")
	a.cancel()
	if err := a.end(); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
