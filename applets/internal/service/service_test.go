package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/wire/varlink"
)

// patience bounds what a test waits for and that has to come.
const patience = time.Minute

// childEnv makes the test binary a service with two sockets in that directory.
const childEnv = "TEST_SERVICE_DIR"

func TestMain(m *testing.M) {
	env := cmdenv.OS()
	if dir := env.Get(childEnv); dir != "" {
		os.Exit(serveTwo(env, dir))
	}
	os.Exit(m.Run())
}

// serveTwo greets whoever connects.
func serveTwo(env *cmdenv.Env, dir string) int {
	if env.Get("LISTEN_PID") == "self" {
		env.Vars["LISTEN_PID"] = strconv.Itoa(os.Getpid())
	}
	return env.Fail("two: ", Run(env, func(ctx context.Context, log *slog.Logger) error {
		ls, err := Listen(env, Socket{"events", filepath.Join(dir, "a.sock")}, Socket{"clients", filepath.Join(dir, "b.sock")})
		if err != nil {
			return err
		}
		for _, v := range env.Environ() {
			if strings.HasPrefix(v, "LISTEN_") {
				return fmt.Errorf("programs that it starts would see %s", v)
			}
		}
		done := make(chan error)
		for i, l := range ls {
			go func() {
				done <- varlink.Accept(ctx, l, 10, log, func(_ context.Context, c *net.UnixConn, _ varlink.Peer) { fmt.Fprintln(c, i) })
			}()
		}
		fmt.Fprintln(env.Stdout, "ready")
		return errors.Join(<-done, <-done)
	}))
}

// process is such a service.
type process struct {
	*exec.Cmd
	errs  bytes.Buffer
	ready chan bool
}

func startTwo(t *testing.T, dir string, vars []string, files ...*os.File) *process {
	t.Helper()
	p := &process{Cmd: exec.Command("/proc/self/exe"), ready: make(chan bool)}
	p.Env = append([]string{childEnv + "=" + dir}, vars...)
	p.ExtraFiles = files
	p.Stderr = &p.errs
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.Stdout = w
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() { p.Process.Kill(); p.Process.Wait() })
	go func() {
		b := make([]byte, 10)
		n, _ := r.Read(b)
		p.ready <- n > 0
		io.Copy(io.Discard, r)
	}()
	return p
}

func (p *process) up(t *testing.T) {
	t.Helper()
	select {
	case ok := <-p.ready:
		if !ok {
			p.Wait()
			t.Fatalf("it ended: %s", p.errs.String())
		}
	case <-time.After(patience):
		t.Fatal("it does not begin")
	}
}

// down is the exit code and what it said.
func (p *process) down(t *testing.T) (int, string) {
	t.Helper()
	select {
	case <-p.ready:
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	p.Wait()
	return p.ProcessState.ExitCode(), p.errs.String()
}

func greeting(t *testing.T, path string) string {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func exists(path string) bool { _, err := os.Lstat(path); return err == nil }

// dir is one that only its owner can look into.
func private(t *testing.T) string {
	t.Helper()
	d := t.TempDir()
	if err := os.Chmod(d, 0o700); err != nil {
		t.Fatal(err)
	}
	return d
}

// Without a service manager it makes its sockets, and removes them.
func TestOwnSockets(t *testing.T) {
	for sig, code := range map[syscall.Signal]int{syscall.SIGTERM: 0, syscall.SIGINT: 130} {
		dir := private(t)
		a, b := filepath.Join(dir, "a.sock"), filepath.Join(dir, "b.sock")
		p := startTwo(t, dir, nil)
		p.up(t)
		if ga, gb := greeting(t, a), greeting(t, b); ga != "0" || gb != "1" {
			t.Errorf("%q, %q", ga, gb)
		}
		// Another one does not take them away, and leaves nothing.
		os.Remove(a)
		other := startTwo(t, dir, nil)
		if code, said := other.down(t); code != 1 || !strings.Contains(said, "another server answers there") || !strings.Contains(said, "ss -xlp src "+b) {
			t.Errorf("exit code %d: %s", code, said)
		}
		if exists(a) {
			t.Error("a socket of the one that could not start is left")
		}
		began := time.Now()
		p.Process.Signal(sig)
		p.Wait()
		if got := p.ProcessState.ExitCode(); got != code || time.Since(began) > 5*time.Second { // the race detector alone takes one
			t.Errorf("%v: exit code %d, want %d, after %v", sig, got, code, time.Since(began))
		}
		if exists(b) {
			t.Error("its socket is left")
		}
	}
}

// bound are sockets as a service manager makes them.
func bound(t *testing.T, paths ...string) (files []*os.File) {
	t.Helper()
	for _, p := range paths {
		l, err := net.Listen("unix", p)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		f, err := l.(*net.UnixListener).File()
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		t.Cleanup(func() { f.Close() })
		files = append(files, f)
	}
	return files
}

// Sockets that were passed are served and not removed.
func TestPassedSockets(t *testing.T) {
	for name, tt := range map[string]struct {
		files []string // as they are passed
		names string
		want  map[string]string // greeting at each
	}{
		"by name":                   {[]string{"x", "y"}, "clients:events", map[string]string{"x": "1", "y": "0"}},
		"by file":                   {[]string{"b.sock", "a.sock"}, "", map[string]string{"a.sock": "0", "b.sock": "1"}},
		"by file, of the same unit": {[]string{"b.sock", "a.sock"}, "the.socket:the.socket", map[string]string{"a.sock": "0", "b.sock": "1"}},
		"one of two":                {[]string{"x"}, "events", map[string]string{"x": "0", "b.sock": "1"}},
		"fewer names":               {[]string{"x", "b.sock"}, "events", map[string]string{"x": "0", "b.sock": "1"}},
		"none":                      {nil, "", map[string]string{"a.sock": "0", "b.sock": "1"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := private(t)
			var paths []string
			for _, f := range tt.files {
				paths = append(paths, filepath.Join(dir, f))
			}
			files := bound(t, paths...)
			p := startTwo(t, dir, []string{"LISTEN_PID=self", fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES=" + tt.names}, files...)
			p.up(t)
			for f, want := range tt.want {
				if got := greeting(t, filepath.Join(dir, f)); got != want {
					t.Errorf("%s: %q, want %q", f, got, want)
				}
			}
			p.Process.Signal(syscall.SIGTERM)
			p.Wait()
			for f := range tt.want {
				passed := slices.Contains(tt.files, f)
				if exists(filepath.Join(dir, f)) != passed {
					t.Errorf("%s is there: %v", f, !passed)
				}
			}
		})
	}
}

// What is passed wrongly is refused, and what is meant for others left alone.
func TestPassedWrongly(t *testing.T) {
	dir := private(t)
	stray := bound(t, filepath.Join(dir, "x"))
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	tcpFile, err := tcp.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer tcpFile.Close()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	connected := os.NewFile(uintptr(pair[0]), "")
	defer connected.Close()
	defer syscall.Close(pair[1])
	for name, tt := range map[string]struct {
		number string
		files  []*os.File
		want   string
	}{
		"a stranger":       {"1", stray, "nobody here serves: descriptor 3 (" + filepath.Join(dir, "x") + ")"},
		"fewer than told":  {"2", stray, "descriptor 4: "},
		"no number":        {"x", stray, "not a number"},
		"no number at all": {"", stray, "not a number"},
		"negative":         {"-1", stray, "not a number"},
		"too many":         {"100000", stray, "not a number"},
		"no socket":        {"1", []*os.File{null}, "descriptor 3: "},
		"of the internet":  {"1", []*os.File{tcpFile}, "not a Unix socket that listens"},
		"connected":        {"1", []*os.File{connected}, "descriptor 3: "},
	} {
		t.Run(name, func(t *testing.T) {
			p := startTwo(t, dir, []string{"LISTEN_PID=self", "LISTEN_FDS=" + tt.number}, tt.files...)
			if code, said := p.down(t); code != 1 || !strings.Contains(said, tt.want) {
				t.Errorf("exit code %d: %s", code, said)
			}
			if exists(filepath.Join(dir, "a.sock")) {
				t.Error("a socket was made")
			}
		})
	}
	for name, pid := range map[string]string{"another's": "1", "nobody's": "", "no number": "x"} {
		t.Run(name, func(t *testing.T) {
			dir := private(t)
			p := startTwo(t, dir, []string{"LISTEN_PID=" + pid, "LISTEN_FDS=1"}, stray...)
			p.up(t)
			if got := greeting(t, filepath.Join(dir, "a.sock")); got != "0" {
				t.Errorf("%q", got)
			}
		})
	}
}

// What fails is what it returns.
func TestRun(t *testing.T) {
	broken := errors.New("broken")
	if err := Run(&cmdenv.Env{Stderr: io.Discard}, func(context.Context, *slog.Logger) error { return broken }); err != broken {
		t.Error(err)
	}
}
