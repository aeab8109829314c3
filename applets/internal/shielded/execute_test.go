package shielded

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/applets/internal/audit"
	"github.com/terok-ai/terok-box/applets/internal/firewall"
	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/varlink"
)

func TestMain(m *testing.M) { kerneltest.Main(m) }

// live is a container that runs, in the tier static.
type live struct {
	*host
	Container
	b  *bundle.Bundle
	ns *netns.NS
}

func newLive(t *testing.T) *live {
	t.Helper()
	l := &live{host: newHost(t)}
	cmd := exec.Command("cat") // until its input ends
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	if l.ns, err = netns.Open(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.ns.Close() })
	kerneltest.Pair(t, l.ns, kerneltest.NewNS(t))
	id, err := l.ns.ID()
	if err != nil {
		t.Fatal(err)
	}
	p, err := bundle.ProcessOf(cmd.Process.Pid, id.String())
	if err != nil {
		t.Fatal(err)
	}
	l.b = l.container("demo", "0123456789ab", p)
	table, err := ruleset.Build(ruleset.Up, ruleset.Params{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		l.b.SetTier(bundle.Static), l.b.SetNetwork(bundle.Network{Mode: "none"}), l.b.SetLoopbackPorts(nil),
		l.b.SetRulesetFormat(ruleset.Format), l.b.SetRuleset(table.String()),
	); err != nil {
		t.Fatal(err)
	}
	if err := l.ns.Do(func() error {
		f, err := firewall.Here(l.b)
		if err != nil {
			return err
		}
		return errors.Join(f.Start(table, false), f.Close())
	}); err != nil {
		t.Fatal(err)
	}
	if l.Container, err = l.Locate(t.Context(), "demo"); err != nil {
		t.Fatal(err)
	}
	return l
}

// supervisor is one that works, until its conduct is changed.
type supervisor struct {
	l       *live
	perform func(context.Context, control.Request) control.Response
	netns   string
	packets chan control.Packet

	mu       sync.Mutex
	requests []control.Request
}

func (s *supervisor) Status() control.Status {
	return control.Status{Container: "demo", ID: "0123456789ab", NetNS: s.netns, PID: os.Getpid()}
}

func (s *supervisor) Perform(ctx context.Context, req control.Request) control.Response {
	s.mu.Lock()
	s.requests = append(s.requests, req)
	s.mu.Unlock()
	return s.perform(ctx, req)
}

func (s *supervisor) Packets(ctx context.Context, f func(control.Packet) error) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case p := <-s.packets:
			if err := f(p); err != nil {
				return err
			}
		}
	}
}

func (s *supervisor) got() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.requests)
}

func (l *live) supervisor() *supervisor {
	s := &supervisor{l: l, netns: l.NetNS, packets: make(chan control.Packet)}
	s.perform = func(ctx context.Context, req control.Request) control.Response {
		req.StateDir, req.PID, req.NetNS = l.Dir, l.PID, l.NetNS
		return firewall.Execute(ctx, req)
	}
	return s
}

// serve is what a supervisor does; end ends it.
func (s *supervisor) serve(t *testing.T) (end func()) {
	t.Helper()
	server, err := varlink.NewServer(varlink.Config{
		Interfaces: []varlink.Interface{control.Interface(s, resources.Varlink(control.InterfaceName))},
		Log:        slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s.l.serve(t, func(ctx context.Context, l net.Listener) error { return server.Serve(ctx, l) })
}

// serve has a function serve what is recorded as the supervisor's socket.
func (l *live) serve(t *testing.T, f func(context.Context, net.Listener) error) (end func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control", "s.sock")
	listener, err := varlink.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- f(ctx, listener) }()
	end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	l.record(t, path)
	return end
}

// record makes this process the supervisor.
func (l *live) record(t *testing.T, socket string) {
	t.Helper()
	p, err := bundle.ProcessOf(os.Getpid(), "0:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.b.SetSupervisor(bundle.Supervisor{PID: p.PID, Start: p.Start, Control: socket}); err != nil {
		t.Fatal(err)
	}
}

// state is what the kernel has, whoever is asked.
func (l *live) state(t *testing.T) string {
	t.Helper()
	resp := firewall.Execute(t.Context(), control.Request{Op: control.OpState, Container: "demo", StateDir: l.Dir, PID: l.PID})
	if resp.Error != "" {
		t.Fatal(resp.Error)
	}
	return resp.State
}

// log counts the lines of the audit log.
func (l *live) log(t *testing.T) int {
	t.Helper()
	records, err := audit.Read(l.b, 100)
	if err != nil {
		t.Fatal(err)
	}
	return len(records)
}

// The supervisor does the work, and its errors are the operator's.
func TestExecute(t *testing.T) {
	l := newLive(t)
	s := l.supervisor()
	s.serve(t)
	before := time.Now()
	resp, err := l.Decide(t.Context(), control.OpAllow, " 203.0.113.7 ", true)
	if d := cmp.Diff(control.Response{Applied: []string{"203.0.113.7"}}, resp); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if s.got() != 1 {
		t.Fatalf("%+v", s.requests)
	}
	req := s.requests[0]
	if left := req.Until.Sub(before); left <= 0 || left > time.Minute {
		t.Errorf("it has time until %v", req.Until)
	}
	req.Until = time.Time{}
	want := control.Request{Op: control.OpAllow, Container: "demo", Target: "203.0.113.7", Targets: []string{"203.0.113.7"}, Names: []string{}, Audit: true}
	if d := cmp.Diff(want, req); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for _, op := range []control.Op{control.OpState, control.OpRules, control.OpDown, control.OpDisengage, control.OpQuarantine, control.OpUp, control.OpSync, control.OpReset} {
		if _, err := l.Execute(t.Context(), control.Request{Op: op}); err != nil {
			t.Errorf("%s: %v", op, err)
		}
	}
	if s.got() != 9 {
		t.Errorf("%d requests", s.got())
	}
	s.perform = func(context.Context, control.Request) control.Response {
		return control.Response{Error: "it is as it is", Warning: "w"}
	}
	if _, err := l.Execute(t.Context(), control.Request{Op: control.OpQuarantine}); err == nil || err.Error() != "it is as it is" {
		t.Error(err)
	}
	if got := l.state(t); got != "up" {
		t.Errorf("done in spite of the supervisor's error: %s", got)
	}
	// A start is verified by ourselves.
	if _, err := l.Execute(t.Context(), control.Request{Op: control.OpVerify}); err != nil || s.got() != 10 {
		t.Errorf("%v; asked the supervisor", err)
	}
	stopped := l.Container
	stopped.PID = 0
	if _, err := stopped.Execute(t.Context(), control.Request{Op: control.OpUp}); err == nil || !strings.Contains(err.Error(), "podman start demo") {
		t.Error(err)
	}
}

// Whatever is in the place of the supervisor's socket, the operation is done,
// once, and soon.
func TestFallback(t *testing.T) {
	ignore := func(err error) error { return nil }
	// accept has f serve connections one after the other.
	accept := func(f func(net.Conn)) func(context.Context, net.Listener) error {
		return func(ctx context.Context, l net.Listener) error {
			defer context.AfterFunc(ctx, func() { l.Close() })()
			for {
				c, err := l.Accept()
				if err != nil {
					return ignore(err)
				}
				f(c)
				c.Close()
			}
		}
	}
	line := func(c net.Conn) { c.Read(make([]byte, 4096)) }
	for name, serve := range map[string]func(t *testing.T, l *live){
		"none":        func(*testing.T, *live) {},
		"no control":  func(t *testing.T, l *live) { l.record(t, "") },
		"no socket":   func(t *testing.T, l *live) { l.record(t, filepath.Join(t.TempDir(), "s")) },
		"hidden dir":  func(t *testing.T, l *live) { l.record(t, "/proc/1/root/none/s") },
		"regular":     func(t *testing.T, l *live) { l.record(t, filepath.Join(l.Dir, bundle.FileRuleset)) },
		"long path":   func(t *testing.T, l *live) { l.record(t, "/"+strings.Repeat("x/", 2000)) },
		"broken file": func(t *testing.T, l *live) { put(t, l, bundle.FileSupervisor, "{") },
		"dead": func(t *testing.T, l *live) {
			l.supervisor().serve(t)
			s, err := l.b.Supervisor()
			if err != nil {
				t.Fatal(err)
			}
			s.Start++
			if err := l.b.SetSupervisor(s); err != nil {
				t.Fatal(err)
			}
		},
		"ended": func(t *testing.T, l *live) { l.supervisor().serve(t)() },
		"nobody accepts": func(t *testing.T, l *live) {
			l.serve(t, func(ctx context.Context, l net.Listener) error { <-ctx.Done(); return l.Close() })
		},
		"hangs up":    func(t *testing.T, l *live) { l.serve(t, accept(func(net.Conn) {})) },
		"reads, ends": func(t *testing.T, l *live) { l.serve(t, accept(line)) },
		"garbage": func(t *testing.T, l *live) {
			l.serve(t, accept(func(c net.Conn) { line(c); c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n\x00")) }))
		},
		"endless": func(t *testing.T, l *live) {
			l.serve(t, accept(func(c net.Conn) {
				for {
					if _, err := c.Write(make([]byte, 1<<16)); err != nil {
						return
					}
				}
			}))
		},
		"other interface": func(t *testing.T, l *live) {
			server, err := varlink.NewServer(varlink.Config{Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			l.serve(t, func(ctx context.Context, l net.Listener) error { return server.Serve(ctx, l) })
		},
		"of another container": func(t *testing.T, l *live) {
			s := l.supervisor()
			s.netns = "4:1"
			s.perform = func(context.Context, control.Request) control.Response {
				t.Error("asked the supervisor of another container")
				return control.Response{}
			}
			s.serve(t)
		},
		"dies before it begins": func(t *testing.T, l *live) {
			s := l.supervisor()
			var end func()
			s.perform = func(ctx context.Context, _ control.Request) control.Response {
				go end()
				<-ctx.Done()
				return control.Response{Error: "interrupted"}
			}
			end = s.serve(t)
		},
		"hangs up on requests": func(t *testing.T, l *live) {
			status, err := json.Marshal(control.Status{NetNS: l.NetNS})
			if err != nil {
				t.Fatal(err)
			}
			l.serve(t, accept(func(c net.Conn) {
				line(c)
				c.Write([]byte(`{"parameters":{"status":` + string(status) + "}}\x00"))
				line(c)
			}))
		},
		"dies before it answers": func(t *testing.T, l *live) {
			s := l.supervisor()
			var end func()
			perform := s.perform
			s.perform = func(ctx context.Context, req control.Request) control.Response {
				req.Audit = false // it would be there twice
				resp := perform(ctx, req)
				if resp.Error != "" {
					t.Error(resp.Error)
				}
				go end()
				<-ctx.Done()
				resp.Error = "interrupted"
				return resp
			}
			end = s.serve(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLive(t)
			serve(t, l)
			start := time.Now()
			resp, err := l.Decide(t.Context(), control.OpAllow, "203.0.113.0/24", true)
			if d := cmp.Diff(control.Response{Applied: []string{"203.0.113.0/24"}}, resp); d != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, d)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
			live, err := l.b.LiveAllowed()
			if d := cmp.Diff([]netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}, live, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, d)
			}
			if n := l.log(t); n != 1 {
				t.Errorf("%d audit lines", n)
			}
			if _, err := l.Execute(t.Context(), control.Request{Op: control.OpQuarantine}); err != nil {
				t.Error(err)
			}
			if got := l.state(t); got != "quarantine" {
				t.Error(got)
			}
		})
	}
}

// What the supervisor that hung was asked for and did not begin, it does not
// do later: the operator may have asked for the contrary since.
func TestHangsMeanwhile(t *testing.T) {
	l := newLive(t)
	s := l.supervisor()
	s.serve(t)
	perform := s.perform
	hang, late := make(chan struct{}), make(chan control.Response)
	s.perform = func(ctx context.Context, req control.Request) control.Response {
		<-hang
		// As if the process had been stopped in the middle of the request.
		req.Until = time.Now().Add(-time.Millisecond)
		resp := perform(context.WithoutCancel(ctx), req)
		late <- resp
		return resp
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := l.Execute(ctx, control.Request{Op: control.OpDisengage}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	close(hang)
	if resp := <-late; !strings.Contains(resp.Error, "too late") {
		t.Errorf("%+v", resp)
	}
	if got := l.state(t); got != "up" {
		t.Error(got)
	}
}

func put(t *testing.T, l *live, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(l.Dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
