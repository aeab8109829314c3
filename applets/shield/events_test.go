package shield

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/firewall"
	"github.com/terok-ai/terok-box/applets/internal/grammar"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/varlink"
)

// hub takes events at a path until the test ends.
func hub(t *testing.T, path string) chan string {
	t.Helper()
	l, err := varlink.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	got := make(chan string, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			for s := bufio.NewScanner(c); s.Scan(); {
				got <- s.Text()
			}
			c.Close()
		}
	}()
	return got
}

// heard is what a hub got until now; it has read nothing else a moment later.
func heard(got chan string) (all []string) {
	for {
		select {
		case s := <-got:
			all = append(all, s)
		case <-time.After(100 * time.Millisecond):
			return all
		}
	}
}

const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// The hub is told of up and down, and of nothing else; of the container by the
// beginning of its id, whatever the operator calls it.
func TestEvents(t *testing.T) {
	l := newLive(t)
	meta := filepath.Join(t.TempDir(), "meta.json")
	if err := errors.Join(
		l.b.SetContainerID(id[:12]), l.b.SetMetaPath(meta),
		os.WriteFile(meta, []byte(`{"project":"p","task":"","name":"n\n","meta_path":"/x"}`), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	runtimeDir := t.TempDir()
	if err := os.Chmod(runtimeDir, 0o700); err != nil {
		t.Fatal(err)
	}
	env := func() []string { return []string{"XDG_RUNTIME_DIR=" + runtimeDir} }
	commands := func(t *testing.T) {
		t.Helper()
		for _, args := range []string{
			"down demo", "down demo --all --container-id " + id, "allow demo 203.0.113.1", "deny demo 203.0.113.1", "reset demo", "quarantine demo", "up demo --json",
			"down " + id[:12], "status demo", "up " + id,
		} {
			if _, errs := l.commandIn(t, env(), strings.Fields(args)...); errs != "" {
				t.Errorf("%s: %s", args, errs)
			}
		}
	}
	const dossier = `,"dossier":{"name":"n ","project":"p"}}`
	want := []string{
		`{"type":"shield_down","container":"0123456789ab"` + dossier,
		`{"type":"shield_disengaged","container":"0123456789ab"` + dossier,
		`{"type":"shield_up","container":"0123456789ab"` + dossier,
		`{"type":"shield_down","container":"0123456789ab"` + dossier,
		`{"type":"shield_up","container":"0123456789ab"` + dossier,
	}
	commands(t) // nobody listens
	recorded := filepath.Join(t.TempDir(), "events", "e.sock")
	for _, path := range []string{
		filepath.Join(l.b.Path(), "run", "events.sock"), event.SocketPaths(runtimeDir, id[:12])[1], event.SocketPath(runtimeDir, id[:12]), recorded,
	} { // each is preferred to those before it
		if path == recorded {
			self, err := bundle.ProcessOf(os.Getpid(), "0:0")
			if err != nil {
				t.Fatal(err)
			}
			if err := l.b.SetSupervisor(bundle.Supervisor{PID: self.PID, Start: self.Start, Events: recorded}); err != nil {
				t.Fatal(err)
			}
		}
		got := hub(t, path)
		commands(t)
		if d := cmp.Diff(want, heard(got)); d != "" {
			t.Errorf("%s (-want +got):\n%s", path, d)
		}
	}
}

// Whose lists govern a shared network is told, whoever of it was named.
func TestSharedEvents(t *testing.T) {
	l := newLive(t)
	joined, err := bundle.Create(filepath.Join(l.root, "containers", "sidecar"))
	if err != nil {
		t.Fatal(err)
	}
	defer joined.Close()
	p, err := l.b.Process()
	if err := errors.Join(err, l.b.SetContainerID(id[:12]), joined.SetContainerID("fedcba987654"), joined.SetProcess(p), joined.SetOwner(l.b.Path())); err != nil {
		t.Fatal(err)
	}
	got := hub(t, filepath.Join(l.b.Path(), "run", "events.sock"))
	hub(t, filepath.Join(joined.Path(), "run", "events.sock"))
	l.command(t, "down", "sidecar")
	l.command(t, "up", "fedcba987654")
	want := []string{`{"type":"shield_down","container":"0123456789ab"}`, `{"type":"shield_up","container":"0123456789ab"}`}
	if d := cmp.Diff(want, heard(got)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// What is no id is refused before anything happens, and one that is not needed
// changes nothing. Where none is recorded it tells the hub.
func TestContainerID(t *testing.T) {
	l := newLive(t)
	runtimeDir := t.TempDir()
	if err := os.Chmod(runtimeDir, 0o700); err != nil {
		t.Fatal(err)
	}
	got := hub(t, event.SocketPath(runtimeDir, id[:12]))
	for _, bad := range []string{"demo", id[:11], id + "0", "../../../etc/x", "0123456789ag", "-1", " " + id} {
		var out, errs bytes.Buffer
		err := run(t.Context(), l.env(&out, &errs), []string{"down", "demo", "--container-id=" + bad})
		if err == nil || !strings.HasPrefix(err.Error(), "Error: Unsafe container id: ") || out.Len() > 0 {
			t.Errorf("%q: %v, %q", bad, err, out.String())
		}
	}
	if out, _ := l.command(t, "status", "demo"); out != "up\n" {
		t.Errorf("changed: %q", out)
	}
	l.commandIn(t, []string{"XDG_RUNTIME_DIR=" + runtimeDir}, "down", "demo")
	l.commandIn(t, []string{"XDG_RUNTIME_DIR=" + runtimeDir}, "down", "demo", "--container-id", id)
	if d := cmp.Diff([]string{`{"type":"shield_down","container":"0123456789ab"}`}, heard(got)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// A hub that does not read is given up, and nothing is said.
func TestHubThatHangs(t *testing.T) {
	l := newLive(t)
	if err := l.b.SetContainerID(id[:12]); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(l.b.Path(), "run", "events.sock")
	silent, err := varlink.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	var full []net.Conn // of which nobody accepts any
	defer func() {
		for _, c := range full {
			c.Close()
		}
	}()
	for range 1 << 13 {
		c, err := net.DialTimeout("unix", path, time.Millisecond)
		if err != nil {
			break
		}
		full = append(full, c)
	}
	start := time.Now()
	if out, errs := l.command(t, "down", "demo"); out != "Shield down for demo\n" || errs != "" {
		t.Errorf("%q, %q", out, errs)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("took %v", took)
	}
}

// supervisor is one that works on the container.
type supervisor struct {
	l       *live
	packets chan control.Packet

	mu  sync.Mutex
	ops []control.Op
}

func (s *supervisor) Perform(ctx context.Context, req control.Request) control.Response {
	s.mu.Lock()
	s.ops = append(s.ops, req.Op)
	s.mu.Unlock()
	p, err := s.l.b.Process()
	if err != nil {
		return control.Response{Error: err.Error()}
	}
	req.StateDir, req.PID, req.NetNS = s.l.b.Path(), p.PID, p.NetNS
	return firewall.Execute(ctx, req)
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

func (s *supervisor) Status() control.Status {
	p, _ := s.l.b.Process()
	return control.Status{Container: "demo", ID: id[:12], NetNS: p.NetNS, PID: 7, Pending: 3, Lost: 2, Subscribers: 1, Hub: true, HubPID: 7}
}

// supervise serves it; end ends it.
func (l *live) supervise(t *testing.T) (s *supervisor, end func()) {
	t.Helper()
	s = &supervisor{l: l, packets: make(chan control.Packet)}
	server, err := varlink.NewServer(varlink.Config{
		Interfaces: []varlink.Interface{control.Interface(s, resources.Varlink(control.InterfaceName))},
		Log:        slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "control", "s.sock")
	listener, err := varlink.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- server.Serve(ctx, listener) }()
	end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	self, err := bundle.ProcessOf(os.Getpid(), "0:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.b.SetSupervisor(bundle.Supervisor{PID: self.PID, Start: self.Start, Control: path}); err != nil {
		t.Fatal(err)
	}
	return s, end
}

// tell has whoever watches see a packet.
func (s *supervisor) tell(t *testing.T, to string) {
	t.Helper()
	p := control.Packet{Time: noon, Prefix: string(ruleset.LogBlocked), Dest: netip.MustParseAddr(to), Proto: 6, Port: 443}
	select {
	case s.packets <- p:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody watches")
	}
}

// The supervisor does what commands want done, and says how it is.
func TestSupervisor(t *testing.T) {
	l := newLive(t)
	s, end := l.supervise(t)
	var want []control.Op
	for _, c := range []struct {
		args, out string
		op        control.Op
	}{
		{"allow demo 203.0.113.1", "Allowed 203.0.113.1 -> 203.0.113.1 for demo\n", control.OpAllow},
		{"deny demo a.example.com", "Denied a.example.com for demo\n", control.OpDeny},
		{"down demo", "Shield down for demo\n", control.OpDown},
		{"down demo --all", "Shield down for demo (all traffic)\n", control.OpDisengage},
		{"quarantine demo", "Shield QUARANTINED for demo — all traffic dropped\n", control.OpQuarantine},
		{"up demo", "Shield up for demo\n", control.OpUp},
		{"reset demo", "Forgot 2 IPs for demo\n  203.0.113.5\n  2001:db8::5\n", control.OpReset},
		{"status demo", "up\n", control.OpState},
	} {
		if out, errs := l.command(t, strings.Fields(c.args)...); out != c.out || errs != "" {
			t.Errorf("%s: %q, %q", c.args, out, errs)
		}
		want = append(want, c.op)
	}
	l.command(t, "resolve", "demo", "--profiles", "base")
	with, _ := l.command(t, "rules", "demo")
	if d := cmp.Diff(append(want, control.OpSync, control.OpRules), s.ops); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	out, errs := l.command(t, "status", "demo", "--json")
	var status containerStatus
	if err := json.Unmarshal([]byte(out), &status); err != nil || errs != "" {
		t.Fatal(err, errs)
	}
	if q := status.Questions; status.Supervisor != "alive" || q == nil || q.Pending != 3 || q.Lost != 2 || q.Subscribers != 1 {
		t.Errorf("%s", out)
	}
	end()
	without, _ := l.command(t, "rules", "demo")
	counted := regexp.MustCompile(`packets \d+ bytes \d+`)
	if d := cmp.Diff(counted.ReplaceAllString(without, ""), counted.ReplaceAllString(with, "")); d != "" {
		t.Errorf("the same rules look otherwise through the supervisor (-without +with):\n%s", d)
	}
	if out, errs := l.command(t, "status", "demo", "--json"); !strings.Contains(out, `"supervisor":"silent"`) || !strings.Contains(errs, "supervisor") {
		t.Errorf("%s, %s", out, errs)
	}
	if err := l.b.SetSupervisor(bundle.Supervisor{PID: 1, Start: 1, Control: "/nowhere"}); err != nil {
		t.Fatal(err)
	}
	if out, errs := l.command(t, "status", "demo", "--json"); !strings.Contains(out, `"supervisor":"dead"`) || errs != "" {
		t.Errorf("%s, %s", out, errs)
	}
}

// A watch has the packets from the supervisor, also from the next one.
func TestWatchSupervisor(t *testing.T) {
	l := newLive(t)
	s, end := l.supervise(t)
	w := l.watch(t)
	s.tell(t, "203.0.113.9")
	got := w.until(t, w.lines, `"nflog"`)
	want := `{"ts":"2026-03-04T12:00:00.000000+00:00","source":"nflog","action":"queued_connection","container":"demo","domain":"for-203-0-113-9.example.com","dest":"203.0.113.9","detail":"TEROK_SHIELD_BLOCKED:","port":443,"proto":6}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	end()
	w.until(t, w.errs, "the container's supervisor has ended")
	s, _ = l.supervise(t)
	s.tell(t, "203.0.113.10")
	w.until(t, w.lines, `"203.0.113.10"`)
	w.stop()
	w.ended(t)
}

// What begins with a hyphen is no target, and never taken for something else
// that succeeds.
func TestDashedTarget(t *testing.T) {
	l := newLive(t)
	for _, verb := range []string{"allow", "deny"} {
		for _, target := range []string{
			"-h", "--help", "--version", "--json", "--state-dir", "--state-dir=/tmp", "-", "-1", "-203.0.113.1", "-example.com", "--example.com", "-x", "---", "-json",
			"--no-json", "--help=false", "-\x1b[31m", "",
		} {
			for _, args := range [][]string{{verb, "demo", target}, {verb, "--json", "demo", target}, {"--state-dir", l.root, verb, "demo", target}, {verb, "demo", "203.0.113.1", target}} {
				if len(args) > 3 && args[2] == "203.0.113.1" && (target == "--json" || strings.HasPrefix(target, "--state-dir=")) {
					continue // a flag where flags may stand
				}
				var out, errs bytes.Buffer
				if err := run(t.Context(), l.env(&out, &errs), args); err == nil || out.Len() > 0 && !strings.Contains(out.String(), "Usage") {
					t.Errorf("%q: %v, %q", args, err, out.String())
				}
			}
		}
	}
	live, err1 := l.b.LiveAllowed()
	deny, err2 := l.b.DenyList()
	names, err3 := l.b.LiveDomains()
	denied, err4 := l.b.DeniedDomains()
	if err := errors.Join(err1, err2, err3, err4); err != nil || len(live)+len(deny)+len(names)+len(denied) > 0 {
		t.Errorf("%v: %v, %v, %v, %v", err, live, deny, names, denied)
	}
	for _, args := range [][]string{{"allow", "--help"}, {"deny", "-h"}, {"--help"}, {"up", "demo", "--help"}} {
		var out, errs bytes.Buffer
		if err := run(t.Context(), l.env(&out, &errs), args); err != nil || !strings.Contains(out.String(), "Usage") {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// A command line that is not read by the grammar means what the grammar says.
func TestUnflagged(t *testing.T) {
	short := 0
	for verb := range strings.FieldsSeq("status up down quarantine reset allow deny rules watch run profiles nonsense") {
		for _, rest := range [][]string{
			nil, {"demo"}, {"demo", "203.0.113.1"}, {"demo", "=a b\n"}, {"demo", "203.0.113.1", "x"}, {""}, {"demo", ""}, {"-h"}, {"demo", "--json"}, {"--json", "demo"},
			{"demo", "-x"}, {"${HOME}"}, {"demo", "a,b"}, {"demo", "$x"}, {"demo", "@/etc/passwd"},
		} {
			args := append([]string{verb}, rest...)
			got := unflagged(args)
			if got == nil {
				continue
			}
			short++
			var g verbs
			parser, err := newParser(&cmdenv.Env{Stdout: io.Discard, Stderr: io.Discard}, &g)
			if err != nil {
				t.Fatal(err)
			}
			cmd, err := grammar.Parse(parser, args)
			if err != nil || cmd == nil {
				t.Errorf("%q: the grammar refuses it: %v", args, err)
				continue
			}
			if want := cmd.Selected().Target.Interface(); !reflect.DeepEqual(got, want) {
				t.Errorf("%q: %#v, want %#v", args, got, want)
			}
		}
	}
	if short < 18 {
		t.Errorf("only %d", short)
	}
}
