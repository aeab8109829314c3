package hub

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/examples"
	"github.com/terok-ai/terok-box/applets/internal/grammar"
	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/varlink"
	"github.com/terok-ai/terok-box/wire/verdict"
)

func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args     []string
		code     int
		out, err string // of which it has at least this
	}{
		{nil, 2, "Usage: clearance-hub <command>", ""},
		{[]string{"--help"}, 0, "Usage: clearance-hub <command>", ""},
		{[]string{"serve", "-h"}, 0, "Usage: clearance-hub serve", ""},
		{[]string{"frobnicate\x1b[31m"}, 2, "", "clearance-hub: unexpected argument frobnicate?[31m (see clearance-hub --help)\n"},
		{[]string{"serve", "x"}, 2, "", "unexpected argument x"},
		{[]string{"--nonsense"}, 2, "", "unknown flag --nonsense"},
		{[]string{"serve"}, 1, "", "clearance-hub: no place for sockets: "},
	} {
		var out, errs bytes.Buffer
		env := &cmdenv.Env{Stdout: &out, Stderr: &errs, Vars: map[string]string{"XDG_RUNTIME_DIR": filepath.Join(t.TempDir(), "none")}}
		code := Run(env, tt.args)
		if code != tt.code || !strings.Contains(out.String(), tt.out) || (tt.out == "") != (out.Len() == 0) ||
			!strings.Contains(errs.String(), tt.err) || (tt.err == "") != (errs.Len() == 0) {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q", tt.args, code, out.String(), errs.String())
		}
	}
}

// apply is a function that is a verdict service.
type apply func(ctx context.Context, container, dest, action string) (bool, string)

func (f apply) Apply(ctx context.Context, container, dest, action string) (bool, string) {
	return f(ctx, container, dest, action)
}

func serveVerdict(t *testing.T, path string, f apply) (stop func()) {
	t.Helper()
	srv, err := varlink.NewServer(varlink.Config{
		Info:       verdict.Info(""),
		Interfaces: []varlink.Interface{verdict.Interface(f, resources.Varlink(verdict.InterfaceName))},
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
		if err := srv.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return stop
}

// Verdicts are carried out elsewhere, by who is there when they are given.
func TestRemote(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s", "verdict.sock")
	f := remote(path)
	if ok, stderr := f(t.Context(), "c", "203.0.113.9", "allow"); ok || !strings.HasPrefix(stderr, "verdict helper unreachable: connect to ") {
		t.Errorf("%v, %q", ok, stderr)
	}
	var asked string
	gate := make(chan struct{})
	service := func(_ context.Context, container, dest, action string) (bool, string) {
		if container == "slow" {
			<-gate
			return true, ""
		}
		asked = container + " " + dest + " " + action
		return action == "allow", "why"
	}
	stop := serveVerdict(t, path, service)
	slow := make(chan bool, 1)
	go func() { ok, _ := f(t.Context(), "slow", "x", "allow"); slow <- ok }()
	for range 2 {
		if ok, stderr := f(t.Context(), "c", "203.0.113.9", "allow"); !ok || stderr != "why" || asked != "c 203.0.113.9 allow" {
			t.Errorf("%v, %q; asked %s", ok, stderr, asked)
		}
		if ok, stderr := f(t.Context(), "c", "-v", "deny"); ok || stderr != "why" || asked != "c -v deny" {
			t.Errorf("%v, %q; asked %s", ok, stderr, asked)
		}
		if asked = ""; len(slow) > 0 {
			t.Error("one waited for another")
		}
	}
	close(gate)
	if !get(t, slow) {
		t.Error("the slow one failed")
	}
	stop()
	serveVerdict(t, path, service)
	if ok, stderr := f(t.Context(), "c", "203.0.113.9", "allow"); !ok {
		t.Errorf("after a restart: %q", stderr)
	}
}

// Who dies in the middle has not answered, and is not asked twice.
func TestRemoteDies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s", "verdict.sock")
	l, err := varlink.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	heard := make(chan string, 10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(heard)
				return
			}
			b := make([]byte, 1000)
			n, _ := c.Read(b)
			heard <- string(b[:n])
			c.Close()
		}
	}()
	if ok, stderr := remote(path)(t.Context(), "c", "203.0.113.9", "allow"); ok || !strings.Contains(stderr, "closed the connection") {
		t.Errorf("%v, %q", ok, stderr)
	}
	l.Close()
	n := 0
	for range heard {
		n++
	}
	if n != 1 {
		t.Errorf("asked %d times", n)
	}
}

// Who answers nonsense, or never, has failed.
func TestRemoteNonsense(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s", "verdict.sock")
	for _, answer := range []string{
		"nonsense\x00", "{}\x00", `{"parameters":{"ok":true}}` + "\x00", `{"parameters":{"ok":"true","stderr":""}}` + "\x00", `{"parameters":{"ok":true,"stderr":"","x":1}}` + "\x00",
		`{"error":"org.varlink.service.MethodNotFound","parameters":{"method":"Apply"}}` + "\x00", `{"continues":true,"parameters":{"ok":true,"stderr":""}}` + "\x00",
	} {
		l, err := varlink.Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 1000))
			io.WriteString(c, answer)
			c.Close()
		}()
		if ok, stderr := remote(path)(t.Context(), "c", "203.0.113.9", "allow"); ok || stderr == "" {
			t.Errorf("%q: %v, %q", answer, ok, stderr)
		}
		l.Close()
	}
	h := newHub(t, func(c *Config) { c.Verdict = remote(path) })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	l, err := varlink.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if ok, stderr := h.config.Verdict(ctx, "c", "203.0.113.9", "allow"); ok || stderr != context.DeadlineExceeded.Error() {
		t.Errorf("%v, %q", ok, stderr)
	}
}

// What is asked outlives the service, and what lies in the file's place harms
// nobody.
func TestMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), pendingFile)
	log := new(syncBuffer)
	m := memory{path: path, log: slog.New(slog.NewTextHandler(log, nil))}
	if got := m.load(); got != nil || log.String() != "" {
		t.Errorf("%q; log %s", got, log)
	}
	h := newHub(t, func(c *Config) { c.Save = m.save })
	e := block("c", 1, "203.0.113.9", "")
	ingest(t, h, e)
	until(t, func() bool { return m.load() != nil }) // while it runs
	h.Close()
	if st, err := os.Lstat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	diff(t, []clearance.Event{asked(e)}, newHub(t, func(c *Config) { c.Restore = m.load() }).Pending())
	for name, make := range map[string]func() error{
		"a link":    func() error { return os.Symlink("/etc/passwd", path) },
		"a pipe":    func() error { return syscall.Mkfifo(path, 0o600) },
		"directory": func() error { return os.Mkdir(path, 0o700) },
	} {
		if err := errors.Join(os.RemoveAll(path), make()); err != nil {
			t.Fatal(err)
		}
		if got := m.load(); len(got) > 0 {
			t.Errorf("%s: %q", name, got)
		}
		before := strings.Count(log.String(), "will not outlive")
		m.save([]byte("{}"))
		m.save([]byte("{}"))
		if strings.Count(log.String(), "will not outlive") > before+1 {
			t.Errorf("%s: log:\n%s", name, log)
		}
		if st, err := os.Lstat(path); err != nil || st.Mode().IsRegular() {
			t.Errorf("%s was replaced", name)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if m.save([]byte("{}")); string(m.load()) != "{}" {
		t.Error("not saved")
	}
}

// What README and the man pages show can be typed.
func TestExamples(t *testing.T) {
	shown := 0
	for _, e := range examples.All(t) {
		for _, words := range e.Commands(t, "terok-shield", "clearance-hub", "clearance-verdict", "terok-clearance-notify", "terok-box") {
			if words[0] != Name || slices.Contains([]string{"notify", "serve-verdict"}, words[1]) {
				continue
			}
			shown++
			k, err := grammar.New(new(verbs), Name, description, io.Discard, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := grammar.Parse(k, words[1:]); err != nil {
				t.Errorf("%s:%d: %q: %v", e.File, e.Line, words, err)
			}
		}
	}
	if shown < 3 {
		t.Errorf("%d examples only", shown)
	}
}

// The help of every verb shows an example of it.
func TestHelpExamples(t *testing.T) {
	k, err := grammar.New(new(verbs), Name, description, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range k.Model.Children {
		if !strings.Contains(n.Detail, "\n  "+Name+" "+n.Name) && !strings.Contains(n.Detail, "& "+Name+" "+n.Name) {
			t.Errorf("%s: %q", n.Name, n.Detail)
		}
	}
}
