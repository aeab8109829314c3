package applets

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/terok-ai/terok-box/applets/internal/firewall"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/names"
	"github.com/terok-ai/terok-box/wire/varlink"
)

// listReader stands for the process that finds the addresses of names: it
// only reads the lists when it is told to.
type listReader struct {
	b *bundle.Bundle

	mu           sync.Mutex
	live, denied []string
}

func (r *listReader) Names(netip.Addr) []names.Name                                 { return nil }
func (r *listReader) Addresses(string) []netip.Addr                                 { return nil }
func (r *listReader) Forget(context.Context) ([]netip.Addr, error)                  { return nil, nil }
func (r *listReader) Status() names.Status                                          { return names.Status{} }
func (r *listReader) Watch(ctx context.Context, _ func(names.Question) error) error { return nil }

func (r *listReader) Reload(context.Context) (names.Change, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var err1, err2 error
	r.live, err1 = r.b.LiveDomains()
	r.denied, err2 = r.b.DeniedDomains()
	return names.Change{Enforced: true}, errors.Join(err1, err2)
}

// allowed is what the process goes by: a name on both lists is denied.
func (r *listReader) allowed(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.live, name) && !slices.Contains(r.denied, name)
}

// serveNames records this process as the one of the bundle, in the tier proxy.
func serveNames(t *testing.T, dir string) *listReader {
	t.Helper()
	b, err := bundle.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	r := &listReader{b: b}
	server, err := varlink.NewServer(varlink.Config{
		Interfaces: []varlink.Interface{names.Interface(r, resources.Varlink(names.InterfaceName))},
		Log:        slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "dns", "s.sock")
	l, err := varlink.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	p, err := bundle.ProcessOf(os.Getpid(), "0:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.SetTier(bundle.Proxy), b.SetNamer(bundle.Namer{PID: p.PID, Start: p.Start, Socket: socket})); err != nil {
		t.Fatal(err)
	}
	return r
}

// startFirewall does what the hook does but for the process of names.
func startFirewall(t *testing.T, b *bundle.Bundle, c *standIn) {
	t.Helper()
	want, err := firewall.Load(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.ns.Do(func() error {
		f, err := firewall.Here(b)
		if err != nil {
			return err
		}
		return errors.Join(f.Start(want, false), f.Close())
	}); err != nil {
		t.Fatal(err)
	}
	id, err := c.ns.ID()
	if err != nil {
		t.Fatal(err)
	}
	p, err := bundle.ProcessOf(c.pid, id.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.SetProcess(p); err != nil {
		t.Fatal(err)
	}
}

// TestNamesKilledAtEveryStep kills an allow or deny of a name at every system
// call that matters: the process that answers the container never goes by
// more than the lists before or after, and after the next command by the
// lists; a denial that was written is not lost.
func TestNamesKilledAtEveryStep(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatalf("strace is needed to kill at a system call: %v", err)
	}
	bin := filepath.Join(t.TempDir(), Name)
	build := exec.Command("go", "build", "-o", bin, "..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	const name = "a.example.com"
	for _, tt := range []struct {
		title, verb  string
		live, denied []string // before
		before       bool     // the name is allowed
	}{
		{title: "allow", verb: "allow"},
		{title: "allow what was denied", verb: "allow", denied: []string{name}},
		{title: "deny", verb: "deny", live: []string{name}, before: true},
	} {
		t.Run(tt.title, func(t *testing.T) {
			after := tt.verb == "allow"
			steps := 0
			for n := 1; ; n++ {
				if n > maxSteps {
					t.Fatalf("no end after %d steps", n)
				}
				c := newStandIn(t)
				root := t.TempDir()
				dir := filepath.Join(root, "containers", "demo")
				prepareBundle(t, dir, ruleset.Params{})
				r := serveNames(t, dir)
				startFirewall(t, r.b, c)
				if err := errors.Join(r.b.SetLiveDomains(tt.live), r.b.SetDeniedDomains(tt.denied)); err != nil {
					t.Fatal(err)
				}
				if _, err := r.Reload(t.Context()); err != nil || r.allowed(name) != tt.before {
					t.Fatalf("before: allowed %t, %v", r.allowed(name), err)
				}
				cmd := exec.Command(strace, "-f", "-qq", "-o", "/dev/null",
					"-e", "trace="+dangerous, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", dangerous, n), bin,
					"terok-shield", "--state-dir", root, tt.verb, "demo", name)
				out, err := cmd.CombinedOutput()
				done := err == nil
				if x, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok ||
					x.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL && x.ExitCode() != 128+int(syscall.SIGKILL)) {
					t.Fatalf("step %d: %v\n%s", n, err, out)
				}
				denied, err := r.b.DeniedDomains()
				if err != nil {
					t.Errorf("step %d: %v", n, err)
				}
				written := slices.Contains(denied, name)
				if out, err := exec.Command(bin, "terok-shield", "--state-dir", root, "status", "demo").CombinedOutput(); err != nil {
					t.Fatalf("step %d: %v\n%s", n, err, out)
				}
				half, err1 := r.b.Unsettled()
				live, err2 := r.b.LiveDomains()
				denied, err3 := r.b.DeniedDomains()
				if err := errors.Join(err1, err2, err3); err != nil || half {
					t.Errorf("step %d: unsettled %t, %v", n, half, err)
				}
				r.mu.Lock()
				if !slices.Equal(live, r.live) || !slices.Equal(denied, r.denied) {
					t.Errorf("step %d: files %q, %q; the process goes by %q, %q", n, live, denied, r.live, r.denied)
				}
				r.mu.Unlock()
				switch got := r.allowed(name); {
				case done && got != after:
					t.Errorf("step %d: done, and allowed is %t", n, got)
				case tt.verb == "deny" && written && got:
					t.Errorf("step %d: a denial that was written is not in force", n)
				}
				c.end()
				if done {
					break
				}
				steps++
			}
			if steps < 10 {
				t.Errorf("only %d steps: nothing was killed in time", steps)
			}
			t.Logf("killed at %d steps", steps)
		})
	}
}
