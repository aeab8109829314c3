package shield

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/audit"
	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/firewall"
	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/names"
	"github.com/terok-ai/terok-box/wire/varlink"
)

func TestMain(m *testing.M) { kerneltest.Main(m) }

// resolver is a process of names that says what the test has it say.
type resolver struct{ questions chan names.Question }

func (r *resolver) Names(addr netip.Addr) []names.Name {
	return []names.Name{{Name: "for-" + strings.ReplaceAll(addr.String(), ".", "-") + ".example.com"}, {Name: "older.example.com"}}
}

func (r *resolver) Addresses(string) []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("203.0.113.5")}
}

func (r *resolver) Reload(context.Context) (names.Change, error) {
	return names.Change{Enforced: true}, nil
}

func (r *resolver) Forget(context.Context) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("203.0.113.5"), netip.MustParseAddr("2001:db8::5")}, nil
}

func (r *resolver) Status() names.Status {
	return names.Status{Tier: "proxy", Upstreams: []string{"192.0.2.53:53"}, Questions: 7}
}

func (r *resolver) Watch(ctx context.Context, f func(names.Question) error) error {
	for {
		select {
		case q := <-r.questions:
			if err := f(q); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// live is a container in the tier proxy that runs.
type live struct {
	root   string // of the state
	b      *bundle.Bundle
	ns     *netns.NS
	names  *resolver
	end    func() // of its process
	silent func() // ends the process of names
}

func newLive(t *testing.T) *live {
	t.Helper()
	l := &live{root: t.TempDir()}
	var err error
	if l.b, err = bundle.Create(filepath.Join(l.root, "containers", "demo")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.b.Close() })
	table, err := ruleset.Build(ruleset.Up, ruleset.Params{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		l.b.SetTier(bundle.Proxy), l.b.SetNetwork(bundle.Network{Mode: "none"}), l.b.SetLoopbackPorts(nil),
		l.b.SetRulesetFormat(ruleset.Format), l.b.SetRuleset(table.String()),
	); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cat") // until its input ends
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l.end = sync.OnceFunc(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(l.end)
	if l.ns, err = netns.Open(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.ns.Close() })
	kerneltest.Pair(t, l.ns, kerneltest.NewNS(t))
	if err := l.ns.Do(func() error {
		f, err := firewall.Here(l.b)
		if err != nil {
			return err
		}
		return errors.Join(f.Start(table, false), f.Close())
	}); err != nil {
		t.Fatal(err)
	}
	id, err := l.ns.ID()
	if err != nil {
		t.Fatal(err)
	}
	p, err := bundle.ProcessOf(cmd.Process.Pid, id.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.b.SetProcess(p); err != nil {
		t.Fatal(err)
	}
	l.serve(t)
	return l
}

// serve starts a process of names.
func (l *live) serve(t *testing.T) {
	t.Helper()
	l.names = &resolver{questions: make(chan names.Question)}
	server, err := varlink.NewServer(varlink.Config{
		Interfaces: []varlink.Interface{names.Interface(l.names, resources.Varlink(names.InterfaceName))},
		Log:        slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "dns", "s.sock")
	listener, err := varlink.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- server.Serve(ctx, listener) }()
	l.silent = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(l.silent)
	self, err := bundle.ProcessOf(os.Getpid(), "0:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.b.SetNamer(bundle.Namer{PID: self.PID, Start: self.Start, Socket: socket}); err != nil {
		t.Fatal(err)
	}
}

// ask has the container ask a question, once somebody watches.
func (l *live) ask(t *testing.T, name, verdict string) {
	t.Helper()
	q := names.Question{Time: "2026-03-04T05:06:07.000008Z", Name: name, Type: "A", Verdict: verdict, Reason: "not on a list"}
	select {
	case l.names.questions <- q:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody watches the questions")
	}
}

// env is the environment of a command; its output goes to the writers.
func (l *live) env(out, errs io.Writer) *cmdenv.Env {
	return &cmdenv.Env{
		Stdin: strings.NewReader(""), Stdout: out, Stderr: errs, EUID: os.Geteuid(), Self: "/proc/self/exe",
		Vars: map[string]string{"HOME": l.root, "TEROK_SHIELD_STATE_DIR": l.root, "NO_COLOR": "1"},
	}
}

// command runs one that ends by itself.
func (l *live) command(t *testing.T, args ...string) (out, errs string) {
	t.Helper()
	return l.commandIn(t, nil, args...)
}

// commandIn does so with more environment variables.
func (l *live) commandIn(t *testing.T, vars []string, args ...string) (out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	env := l.env(&o, &e)
	for _, kv := range vars {
		k, v, _ := strings.Cut(kv, "=")
		env.Vars[k] = v
	}
	if err := run(t.Context(), env, args); err != nil {
		t.Errorf("%q: %v", args, err)
	}
	return o.String(), e.String()
}

// watching is a watch command.
type watching struct {
	lines chan string
	errs  chan string
	stop  context.CancelFunc
	done  chan error
}

func (l *live) watch(t *testing.T, flags ...string) *watching {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &watching{lines: make(chan string, 100), errs: make(chan string, 100), stop: cancel, done: make(chan error, 1)}
	outR, outW := io.Pipe()
	errR, errW := io.Pipe()
	for r, to := range map[io.Reader]chan string{outR: w.lines, errR: w.errs} {
		go func() {
			for s := bufio.NewScanner(r); s.Scan(); {
				to <- s.Text()
			}
			close(to)
		}()
	}
	go func() {
		w.done <- run(ctx, l.env(outW, errW), append([]string{"watch", "demo"}, flags...))
		outW.Close()
		errW.Close()
	}()
	t.Cleanup(cancel)
	return w
}

// until is the next line that has the text.
func (w *watching) until(t *testing.T, lines <-chan string, text string) string {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		select {
		case s, ok := <-lines:
			if !ok {
				t.Fatalf("the output ended before %q", text)
			}
			if strings.Contains(s, text) {
				return s
			}
		case <-timeout:
			t.Fatalf("no %q", text)
		}
	}
}

// ended waits for the end, which must be a good one.
func (w *watching) ended(t *testing.T) {
	t.Helper()
	select {
	case err := <-w.done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on")
	}
}

// send has the container try to reach an address until stop.
func (l *live) send(t *testing.T, to string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			_ = kerneltest.SendUDP(l.ns, netip.MustParseAddrPort(to)) // refused
			time.Sleep(20 * time.Millisecond)
		}
	})
	return func() { cancel(); wg.Wait() }
}

// Questions, packets and audit lines are all seen; packets from the
// container's own namespace, and audit lines with port, protocol and name,
// unlike in the existing system.
func TestWatch(t *testing.T) {
	l := newLive(t)
	w := l.watch(t)
	l.ask(t, "allowed.example.com", names.Allowed) // not shown
	l.ask(t, "refused.example.com", names.Refused)
	got := w.until(t, w.lines, `"dns"`)
	want := `{"ts":"2026-03-04T05:06:07.000008+00:00","source":"dns","action":"blocked_query","container":"demo","domain":"refused.example.com","query_type":"A","detail":"not on a list"}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	stop := l.send(t, "203.0.113.9:7")
	got = w.until(t, w.lines, `"nflog"`)
	stop()
	if _, rest, _ := strings.Cut(got, `,`); rest != `"source":"nflog","action":"queued_connection","container":"demo","domain":"for-203-0-113-9.example.com","dest":"203.0.113.9","detail":"TEROK_SHIELD_BLOCKED:","port":7,"proto":17}` {
		t.Errorf("got %s", got)
	}
	if err := audit.Append(l.b, audit.Entry{Time: noon, Container: "x", Action: audit.Blocked, Dest: "203.0.113.9", Port: 7, Proto: "udp", Domain: "a.example.com"}); err != nil {
		t.Fatal(err)
	}
	got = w.until(t, w.lines, `"audit"`)
	want = `{"ts":"2026-03-04T12:00:00+00:00","source":"audit","action":"blocked","container":"demo","domain":"a.example.com","dest":"203.0.113.9","port":7,"proto":17}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}

	// A second one sees all but the packets, which go to one reader only, and
	// says so.
	second := l.watch(t, "--all", "--pretty")
	if got := second.until(t, second.errs, "another process reads"); !strings.Contains(got, "as it writes them to the audit log") {
		t.Error(got)
	}
	l.command(t, "allow", "demo", "a.example.com")
	second.until(t, second.lines, "audit allowed 203.0.113.5 (target=a.example.com)")
	second.stop()
	second.ended(t)

	// The process of names is killed and comes back.
	l.silent()
	l.serve(t)
	l.ask(t, "again.example.com", names.Refused)
	w.until(t, w.lines, `"again.example.com"`)

	l.end()
	w.ended(t)
}

func TestWatchPretty(t *testing.T) {
	l := newLive(t)
	w := l.watch(t, "--all", "--pretty")
	l.ask(t, "allowed.example.com", names.Allowed)
	w.until(t, w.lines, "dns   allowed query allowed.example.com A")
	w.stop()
	w.ended(t)
	l.end()
	if err := run(t.Context(), l.env(io.Discard, io.Discard), []string{"watch", "demo"}); err == nil {
		t.Error("watched a container that has ended")
	}
}

// What people and scripts get to read about names.
func TestNamesOutput(t *testing.T) {
	l := newLive(t)
	for _, tt := range []struct{ args, out, errs string }{
		{"allow demo a.example.com", "Allowed a.example.com -> 203.0.113.5 for demo\n", ""},
		{"deny demo A.example.com.", "Denied A.example.com. for demo\n", ""},
		{"deny demo --json *.example.com", `{"container":"demo","target":"*.example.com","names":["*.example.com"]}` + "\n", ""},
		{"allow demo --json =a.example.com", `{"container":"demo","target":"=a.example.com","names":["=a.example.com"],"addresses":["203.0.113.5"]}` + "\n",
			"Warning [shield]: a.example.com was denied with everything below it; that is denied no more\n"},
		{"allow demo 203.0.113.77", "Allowed 203.0.113.77 -> 203.0.113.77 for demo\n", ""},
		{"reset demo", "Forgot 2 IPs for demo\n  203.0.113.5\n  2001:db8::5\n", ""},
		{"reset demo --json", `{"container":"demo","addresses":["203.0.113.5","2001:db8::5"]}` + "\n", ""},
		{"down demo", "Shield down for demo\n", ""},
		{"quarantine demo", "Shield QUARANTINED for demo — all traffic dropped\n", ""},
		{"up demo", "Shield up for demo\n", ""},
		{"status demo", "up\n", ""},
	} {
		if out, errs := l.command(t, strings.Fields(tt.args)...); out != tt.out || errs != tt.errs {
			t.Errorf("%s:\n%q\n%q", tt.args, out, errs)
		}
	}
	out, _ := l.command(t, "status", "demo", "--json")
	var s containerStatus
	if err := json.Unmarshal([]byte(out), &s); err != nil || s.State != "up" || s.Tier != "proxy" || s.Namer != "alive" || s.Names == nil || s.Names.Questions != 7 {
		t.Errorf("%s, %v", out, err)
	}
	l.silent()
	out, errs := l.command(t, "status", "demo", "--json")
	if !strings.Contains(out, `"namer":"silent"`) || !strings.Contains(errs, "Warning") {
		t.Errorf("%s, %s", out, errs)
	}
	if err := run(t.Context(), l.env(io.Discard, io.Discard), []string{"allow", "demo", "b.example.com"}); err == nil {
		t.Error("allowed without the process of names")
	}
	err := run(t.Context(), l.env(io.Discard, io.Discard), []string{"reset", "demo"})
	if err == nil || !strings.Contains(err.Error(), "restart the container") {
		t.Errorf("reset without the process of names: %v", err)
	}
	l.end()
	err = run(t.Context(), l.env(io.Discard, io.Discard), []string{"reset", "demo"})
	if err == nil || err.Error() != "Error: container demo is not running: there is nothing to forget, and it starts with nothing learned" {
		t.Errorf("reset of a container that has ended: %v", err)
	}
}

// A container that shares its network with another is governed by that one's
// lists, whatever verb is used.
func TestSharedNetwork(t *testing.T) {
	l := newLive(t)
	joined, err := bundle.Create(filepath.Join(l.root, "containers", "sidecar"))
	if err != nil {
		t.Fatal(err)
	}
	defer joined.Close()
	p, err := l.b.Process()
	if err := errors.Join(err, joined.SetProcess(p), joined.SetOwner(l.b.Path())); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"allow", "sidecar", "a.example.com"}, {"deny", "sidecar", "203.0.113.1"}, {"status", "sidecar"}, {"down", "sidecar"}} {
		if _, errs := l.command(t, args...); errs != "sidecar shares its network with demo, whose lists govern it.\n" {
			t.Errorf("%q: %q", args, errs)
		}
	}
	live, err1 := l.b.LiveDomains()
	deny, err2 := l.b.DenyList()
	own, err3 := joined.LiveDomains()
	if err := errors.Join(err1, err2, err3); err != nil || len(live) != 1 || len(deny) != 1 || len(own) != 0 {
		t.Errorf("%q, %v, %q, %v", live, deny, own, err)
	}
	if out, _ := l.command(t, "status", "demo"); out != "down\n" {
		t.Errorf("%q", out)
	}
}
