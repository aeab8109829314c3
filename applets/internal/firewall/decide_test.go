package firewall

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/terok-ai/terok-box/applets/internal/audit"
	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/names"
	"github.com/terok-ai/terok-box/wire/varlink"
)

// engine is a process of names that reads the lists and learns nothing.
type engine struct {
	b *bundle.Bundle

	mu       sync.Mutex
	reloads  int
	open     []bool // what each Reload found
	live     []string
	denied   []string
	fail     error // of Reload
	quiet    bool  // the firewall takes no addresses
	removed  []string
	forgets  int
	answered map[string][]netip.Addr
}

func (e *engine) Names(netip.Addr) []names.Name { return nil }
func (e *engine) Status() names.Status          { return names.Status{Tier: "proxy"} }

func (e *engine) Watch(ctx context.Context, _ func(names.Question) error) error {
	<-ctx.Done()
	return nil
}

func (e *engine) Addresses(name string) []netip.Addr {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.answered[name]
}

func (e *engine) Reload(context.Context) (names.Change, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reloads++
	if e.fail != nil {
		return names.Change{}, e.fail
	}
	live, err1 := e.b.LiveDomains()
	denied, err2 := e.b.DeniedDomains()
	open, err3 := e.b.Open()
	e.live, e.denied, e.open = live, denied, append(e.open, open)
	return names.Change{Removed: slices.Clone(e.removed), Enforced: !e.quiet}, errors.Join(err1, err2, err3)
}

func (e *engine) Forget(context.Context) (all []netip.Addr, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forgets++
	for _, s := range e.removed {
		all = append(all, netip.MustParseAddr(s))
	}
	return all, e.fail
}

func (e *engine) set(f func(*engine)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f(e)
}

// shielded is a bundle of the tier proxy whose table is in a namespace of its
// own, and the process of names.
type shielded struct {
	b      *bundle.Bundle
	ns     *netns.NS
	pid    int
	engine *engine
	stop   func() // ends the process
}

// learnt is an address that is open because of some name.
var learnt = netip.MustParseAddr("203.0.113.77")

func newShielded(t *testing.T, profile ...string) *shielded {
	t.Helper()
	b, err := bundle.Create(filepath.Join(t.TempDir(), "sd"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	table, err := ruleset.Build(ruleset.Up, ruleset.Params{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		b.SetTier(bundle.Proxy), b.SetNetwork(bundle.Network{Mode: "none"}), b.SetLoopbackPorts(nil), b.SetProfileDomains(profile),
		b.SetRulesetFormat(ruleset.Format), b.SetRuleset(table.String()),
	); err != nil {
		t.Fatal(err)
	}
	s := &shielded{b: b}
	process := exec.Command("cat") // until its input ends
	process.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	stdin, err := process.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := process.Wait(); err != nil {
			t.Error(err)
		}
	})
	s.pid = process.Process.Pid
	if s.ns, err = netns.Open(s.pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.ns.Close() })
	if err := s.ns.Do(func() error {
		f, err := Here(b)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := f.Start(table, false); err != nil {
			return err
		}
		return f.conn.Learn([]nft.Learned{{Addr: learnt, Timeout: time.Hour}})
	}); err != nil {
		t.Fatal(err)
	}
	s.serve(t)
	return s
}

// serve starts the process of names.
func (s *shielded) serve(t *testing.T) {
	t.Helper()
	s.engine = &engine{b: s.b, answered: map[string][]netip.Addr{}}
	server, err := varlink.NewServer(varlink.Config{
		Interfaces: []varlink.Interface{names.Interface(s.engine, resources.Varlink(names.InterfaceName))},
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
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- server.Serve(ctx, l) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(s.stop)
	p, err := bundle.ProcessOf(os.Getpid(), "0:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.b.SetNamer(bundle.Namer{PID: p.PID, Start: p.Start, Socket: socket}); err != nil {
		t.Fatal(err)
	}
}

func (s *shielded) request(op control.Op, of ...string) control.Request {
	r := control.Request{Op: op, Container: "demo", StateDir: s.b.Path(), PID: s.pid, Audit: true, Names: of}
	if len(of) > 0 {
		r.Target = of[0]
	}
	return r
}

// learned is what is in the learned sets.
func (s *shielded) learned(t *testing.T) (out []netip.Addr) {
	t.Helper()
	if err := s.ns.Do(func() error {
		c, err := nft.Dial()
		if err != nil {
			return err
		}
		defer c.Close()
		all, err := c.Learned()
		for _, l := range all {
			out = append(out, l.Addr)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// check compares the files, and what the process read last, with what is
// wanted; the words are separated by blanks.
func (s *shielded) check(t *testing.T, live, denied string) {
	t.Helper()
	gotLive, err1 := s.b.LiveDomains()
	gotDenied, err2 := s.b.DeniedDomains()
	half, err3 := s.b.Unsettled()
	if err := errors.Join(err1, err2, err3); err != nil || half {
		t.Errorf("%v, unsettled: %t", err, half)
	}
	if d := cmp.Diff([][]string{strings.Fields(live), strings.Fields(denied)}, [][]string{gotLive, gotDenied}, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("files (-want +got)\n%s", d)
	}
	s.engine.set(func(e *engine) {
		if d := cmp.Diff([][]string{gotLive, gotDenied}, [][]string{e.live, e.denied}, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("the process goes by other lists (-files +process)\n%s", d)
		}
	})
}

// log is the audit log without times.
func (s *shielded) log(t *testing.T) (out []string) {
	t.Helper()
	records, err := audit.Read(s.b, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		e := r.Entry()
		out = append(out, strings.Join([]string{e.Action, e.Dest, e.Domain, e.Detail}, "|"))
	}
	return out
}

// bothWays does a test in this process alone and in the namespaces.
func bothWays(t *testing.T, test func(t *testing.T, execute func(t *testing.T, req control.Request) control.Response)) {
	t.Run("outside", func(t *testing.T) {
		t.Parallel()
		test(t, func(t *testing.T, req control.Request) control.Response {
			resp, done := ExecuteNames(t.Context(), req)
			if !done {
				t.Log("going inside")
				resp = Execute(t.Context(), req)
			}
			return resp
		})
	})
	t.Run("inside", func(t *testing.T) {
		t.Parallel()
		test(t, func(t *testing.T, req control.Request) control.Response { return Execute(t.Context(), req) })
	})
}

func TestNames(t *testing.T) {
	bothWays(t, func(t *testing.T, execute func(*testing.T, control.Request) control.Response) {
		s := newShielded(t, "listed.test", "api.example.com")
		s.engine.answered["a.example.com"] = []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")}
		for _, step := range []struct {
			op           control.Op
			name         string
			removed      []string
			want         control.Response
			live, denied string
		}{
			{op: control.OpAllow, name: "new.example.com", live: "new.example.com"},
			{op: control.OpAllow, name: "a.example.com", want: control.Response{Applied: []string{"203.0.113.1", "2001:db8::1"}},
				live: "new.example.com a.example.com"},
			{op: control.OpAllow, name: "listed.test", live: "new.example.com a.example.com"},
			{op: control.OpDeny, name: "listed.test", removed: []string{"203.0.113.5"}, want: control.Response{Applied: []string{"203.0.113.5"}},
				live: "new.example.com a.example.com", denied: "listed.test"},
			{op: control.OpDeny, name: "new.example.com", live: "a.example.com", denied: "listed.test new.example.com"},
			{op: control.OpAllow, name: "listed.test", live: "a.example.com", denied: "new.example.com"},
			{op: control.OpDeny, name: "example.com", live: "a.example.com", denied: "new.example.com example.com", want: control.Response{
				Warning: "below example.com stays allowed what is listed by itself: api.example.com, a.example.com; deny that, too, if you mean it"}},
		} {
			s.engine.set(func(e *engine) { e.removed = step.removed })
			got := execute(t, s.request(step.op, step.name))
			if d := cmp.Diff(step.want, got, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("%s %s (-want +got)\n%s", step.op, step.name, d)
			}
			s.check(t, step.live, step.denied)
		}
		want := []string{
			"allowed||new.example.com|target=new.example.com",
			"allowed|203.0.113.1||target=a.example.com", "allowed|2001:db8::1||target=a.example.com",
			"allowed||listed.test|target=listed.test",
			"denied|203.0.113.5||target=listed.test", "denied||new.example.com|target=new.example.com",
			"allowed||listed.test|target=listed.test", "denied||example.com|target=example.com",
		}
		if d := cmp.Diff(want, s.log(t)); d != "" {
			t.Errorf("audit (-want +got)\n%s", d)
		}
		if got := s.learned(t); !slices.Equal(got, []netip.Addr{learnt}) {
			t.Errorf("learned %v", got)
		}
	})
}

// A deny that the process cannot be told of closes everything that was opened
// because of a name, and holds.
func TestDenyWithoutProcess(t *testing.T) {
	for name, breakIt := range map[string]func(*shielded){
		"gone":   func(s *shielded) { s.stop() },
		"broken": func(s *shielded) { s.engine.set(func(e *engine) { e.fail = errors.New("the disk is full") }) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bothWays(t, func(t *testing.T, execute func(*testing.T, control.Request) control.Response) {
				s := newShielded(t)
				breakIt(s)
				got := execute(t, s.request(control.OpDeny, "a.example.com"))
				if got.Error != "" || !strings.Contains(got.Warning, "every address that was open because of a name is closed") {
					t.Errorf("%+v", got)
				}
				if left := s.learned(t); len(left) > 0 {
					t.Errorf("still open: %v", left)
				}
				if denied, err := s.b.DeniedDomains(); !slices.Equal(denied, []string{"a.example.com"}) || err != nil {
					t.Errorf("%q, %v", denied, err)
				}
				// What goes by older lists is told with the next command.
				if half, err := s.b.Unsettled(); !half || err != nil {
					t.Errorf("unsettled %t, %v", half, err)
				}
				s.stop()
				s.serve(t)
				if got := Execute(t.Context(), s.request(control.OpState)); got.State != "up" || got.Error+got.Warning != "" {
					t.Errorf("%+v", got)
				}
				s.check(t, "", "a.example.com")
			})
		})
	}
}

// An allow that the process cannot be told of did not happen.
func TestAllowWithoutProcess(t *testing.T) {
	for name, breakIt := range map[string]func(*shielded){
		"gone":   func(s *shielded) { s.stop() },
		"broken": func(s *shielded) { s.engine.set(func(e *engine) { e.fail = errors.New("the disk is full") }) },
		"none": func(s *shielded) {
			if err := s.b.RemoveNamer(); err != nil {
				panic(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bothWays(t, func(t *testing.T, execute func(*testing.T, control.Request) control.Response) {
				s := newShielded(t)
				if err := errors.Join(s.b.SetDeniedDomains([]string{"a.example.com"}), s.b.SetLiveDomains([]string{"b.example.com"})); err != nil {
					t.Fatal(err)
				}
				breakIt(s)
				if got := execute(t, s.request(control.OpAllow, "a.example.com")); got.Error == "" {
					t.Errorf("%+v", got)
				}
				s.stop()
				s.serve(t)
				if got := Execute(t.Context(), s.request(control.OpState)); got.State != "up" || got.Error+got.Warning != "" {
					t.Errorf("%+v", got)
				}
				s.check(t, "b.example.com", "a.example.com")
				if log := s.log(t); len(log) > 0 {
					t.Errorf("audit: %q", log)
				}
			})
		})
	}
}

// The process of names forgets, and nothing else changes.
func TestReset(t *testing.T) {
	s := newShielded(t, "listed.test")
	if err := errors.Join(s.b.SetLiveDomains([]string{"a.example.com"}), s.b.SetLiveAllowed([]netip.Prefix{netip.MustParsePrefix("203.0.113.9/32")})); err != nil {
		t.Fatal(err)
	}
	if got := Execute(t.Context(), s.request(control.OpSync)); got.Error+got.Warning != "" {
		t.Fatalf("%+v", got)
	}
	for i, removed := range [][]string{{"2001:db8::1", "203.0.113.5"}, nil} {
		s.engine.set(func(e *engine) { e.removed = removed })
		slices.Sort(removed)
		slices.Reverse(removed) // 203… before 2001:…
		if d := cmp.Diff(control.Response{Applied: removed}, Execute(t.Context(), s.request(control.OpReset)), cmpopts.EquateEmpty()); d != "" {
			t.Errorf("(-want +got)\n%s", d)
		}
		s.engine.set(func(e *engine) {
			if e.forgets != i+1 {
				t.Errorf("forgotten %d times", e.forgets)
			}
		})
		s.check(t, "a.example.com", "")
	}
	// It is the process that closes them.
	if got := s.learned(t); !slices.Equal(got, []netip.Addr{learnt}) {
		t.Errorf("learned %v", got)
	}
	if d := cmp.Diff([]string{"shield_reset|||addresses=2", "shield_reset|||addresses=0"}, s.log(t)); d != "" {
		t.Errorf("audit (-want +got)\n%s", d)
	}
	if listing := Execute(t.Context(), s.request(control.OpRules)).Listing; !strings.Contains(listing, "203.0.113.9") {
		t.Error("an address that was allowed by hand is closed")
	}

	if got := Execute(t.Context(), s.request(control.OpQuarantine)); got.Error+got.Warning != "" {
		t.Fatalf("%+v", got)
	}
	if d := cmp.Diff(control.Response{}, Execute(t.Context(), s.request(control.OpReset)), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("in quarantine (-want +got)\n%s", d)
	}
	s.engine.set(func(e *engine) {
		if e.forgets != 3 {
			t.Errorf("the process remembers in quarantine: %d", e.forgets)
		}
	})
}

// Without the process the sets are emptied all the same. That is not enough
// where it is there and remembers.
func TestResetWithoutProcess(t *testing.T) {
	none := func(s *shielded) {
		if err := s.b.RemoveNamer(); err != nil {
			panic(err)
		}
	}
	for name, tt := range map[string]struct {
		breakIt        func(*shielded)
		error, warning string
	}{
		"silent": {func(s *shielded) { s.stop() }, "1 addresses that names had opened are closed, but the process", ""},
		"broken": {func(s *shielded) { s.engine.set(func(e *engine) { e.fail = errors.New("the disk is full") }) }, "the disk is full", ""},
		"dead": {func(s *shielded) {
			s.stop()
			n, err := s.b.Namer()
			n.Start++
			if err := errors.Join(err, s.b.SetNamer(n)); err != nil {
				panic(err)
			}
		}, "", "is closed, and stays so until the container is restarted"},
		"none": {none, "", "is not there"},
		"static": {func(s *shielded) {
			none(s)
			if err := s.b.SetTier(bundle.Static); err != nil {
				panic(err)
			}
		}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShielded(t)
			tt.breakIt(s)
			got := Execute(t.Context(), s.request(control.OpReset))
			if !strings.Contains(got.Error, tt.error) || !strings.Contains(got.Warning, tt.warning) || (got.Error == "") != (tt.error == "") || (got.Warning == "") != (tt.warning == "") {
				t.Errorf("%+v", got)
			}
			if tt.error == "" && !slices.Equal(got.Applied, []string{learnt.String()}) {
				t.Errorf("%+v", got)
			}
			if left := s.learned(t); len(left) > 0 {
				t.Errorf("still open: %v", left)
			}
			if log := s.log(t); (len(log) == 0) != (tt.error != "") {
				t.Errorf("audit: %q", log)
			}
		})
	}
}

// Somebody's hand on the table keeps nothing open; without one there is nothing
// to forget.
func TestResetOfAnotherFirewall(t *testing.T) {
	s := newShielded(t)
	s.stop()
	if err := errors.Join(s.b.RemoveNamer(), s.b.SetTier(bundle.Static)); err != nil {
		t.Fatal(err)
	}
	kerneltest.NFT(t, s.ns, "", "insert", "rule", "inet", "terok_shield", "output", "meta", "skuid", "0", "accept")
	got := Execute(t.Context(), s.request(control.OpReset))
	if got.Error != "" || !strings.Contains(got.Warning, "mend it with: terok-shield up demo") || !slices.Equal(got.Applied, []string{learnt.String()}) || len(s.learned(t)) > 0 {
		t.Errorf("%+v; open are %v", got, s.learned(t))
	}
	kerneltest.NFT(t, s.ns, "", "delete", "table", "inet", "terok_shield")
	if got := Execute(t.Context(), s.request(control.OpReset)); got.Error != errNoTable.Error() {
		t.Errorf("%+v", got)
	}
}

// A process that was killed a moment ago is waited for.
func TestReturningProcess(t *testing.T) {
	s := newShielded(t)
	s.stop()
	back := make(chan struct{})
	go func() {
		defer close(back)
		time.Sleep(3 * returnPause)
		s.serve(t)
	}()
	resp, done := ExecuteNames(t.Context(), s.request(control.OpAllow, "a.example.com"))
	<-back
	if !done || resp.Error+resp.Warning != "" {
		t.Errorf("%+v, %t", resp, done)
	}
	s.check(t, "a.example.com", "")
}

// In quarantine names can be decided about, and nothing opens.
func TestNamesInQuarantine(t *testing.T) {
	s := newShielded(t)
	if got := Execute(t.Context(), s.request(control.OpQuarantine)); got.Error+got.Warning != "" {
		t.Fatalf("%+v", got)
	}
	s.engine.set(func(e *engine) { e.quiet = true })
	for _, op := range []control.Op{control.OpAllow, control.OpDeny} {
		resp, done := ExecuteNames(t.Context(), s.request(op, string(op)+".example.com"))
		if !done || resp.Error != "" || !strings.Contains(resp.Warning, "holds from: terok-shield up demo") {
			t.Errorf("%s: %+v, %t", op, resp, done)
		}
	}
	s.check(t, "allow.example.com", "deny.example.com")
}

// Names on no list resolve while their addresses can be reached, no sooner
// and no longer.
func TestUnlistedNames(t *testing.T) {
	s := newShielded(t)
	for _, step := range []struct {
		op   control.Op
		open bool
		want []bool // what the process found, each time it was told
	}{
		{control.OpDown, true, []bool{true}},
		{control.OpDisengage, true, []bool{true}},
		{control.OpUp, false, []bool{false, false}}, // before and after
		{control.OpUp, false, []bool{false}},
		{control.OpDown, true, []bool{true}},
		{control.OpQuarantine, false, []bool{false}},
		{control.OpDown, true, []bool{true}},
	} {
		s.engine.set(func(e *engine) { e.open = nil })
		if got := Execute(t.Context(), s.request(step.op)); got.Error+got.Warning != "" {
			t.Errorf("%s: %+v", step.op, got)
		}
		if open, err := s.b.Open(); open != step.open || err != nil {
			t.Errorf("%s: open %t, %v", step.op, open, err)
		}
		s.engine.set(func(e *engine) {
			if !slices.Equal(e.open, step.want) {
				t.Errorf("%s: the process found %v, not %v", step.op, e.open, step.want)
			}
		})
	}
	// Without the process the firewall changes all the same.
	s.stop()
	for op, state := range map[control.Op]string{control.OpUp: "up", control.OpQuarantine: "quarantine"} {
		got := Execute(t.Context(), s.request(op))
		if got.Error != "" || !strings.Contains(got.Warning, "names may be answered as before") {
			t.Errorf("%s: %+v", op, got)
		}
		if got := Execute(t.Context(), s.request(control.OpState)); got.State != state {
			t.Errorf("%s: %+v", op, got)
		}
		if open, err := s.b.Open(); open || err != nil {
			t.Errorf("%s: open %t, %v", op, open, err)
		}
	}
}

// Only names, and only an allow or deny, are done without the namespaces; and
// nothing is when a command before was killed.
func TestExecuteNamesDeclines(t *testing.T) {
	s := newShielded(t)
	addresses := s.request(control.OpAllow, "a.example.com")
	addresses.Targets = []string{"203.0.113.1"}
	for _, req := range []control.Request{s.request(control.OpState), s.request(control.OpAllow), addresses, s.request(control.OpUp, "a.example.com")} {
		if resp, done := ExecuteNames(t.Context(), req); done {
			t.Errorf("%+v: %+v", req, resp)
		}
	}
	if err := s.b.SetUnsettled(true); err != nil {
		t.Fatal(err)
	}
	if resp, done := ExecuteNames(t.Context(), s.request(control.OpAllow, "a.example.com")); done {
		t.Errorf("unsettled: %+v", resp)
	}
	for _, name := range []string{"203.0.113.1", "com", "-x.example.com", "ä.test", ""} {
		if got := Execute(t.Context(), s.request(control.OpAllow, name)); got.Error == "" {
			t.Errorf("%q: %+v", name, got)
		}
	}
	if live, err := s.b.LiveDomains(); len(live) > 0 || err != nil {
		t.Errorf("%q, %v", live, err)
	}
}

// In the static tier, and in bundles of the other system, a name is remembered
// with the addresses it has, whether or not there is a process that looks them
// up again.
func TestStaticNames(t *testing.T) {
	for name, change := range map[string]func(*bundle.Bundle) error{
		"with a process": func(b *bundle.Bundle) error { return b.SetTier(bundle.Static) },
		"without":        func(b *bundle.Bundle) error { return errors.Join(b.SetTier(bundle.Static), b.RemoveNamer()) },
		"another's dnsmasq": func(b *bundle.Bundle) error {
			return errors.Join(b.SetTier(bundle.Dnsmasq), b.RemoveNamer(), os.Remove(filepath.Join(b.Path(), bundle.FileRulesetFormat)))
		},
	} {
		s := newShielded(t)
		if err := change(s.b); err != nil {
			t.Fatal(err)
		}
		for _, op := range []control.Op{control.OpAllow, control.OpDeny} {
			req := s.request(op, "a.example.com")
			req.Targets = []string{"203.0.113.1"}
			if d := cmp.Diff(control.Response{Applied: []string{"203.0.113.1"}}, Execute(t.Context(), req)); d != "" {
				t.Errorf("%s, %s (-want +got)\n%s", op, name, d)
			}
		}
		deny, err1 := s.b.DenyList()
		live, err2 := s.b.LiveAllowed()
		denied, err3 := s.b.DeniedDomains()
		if err := errors.Join(err1, err2, err3); err != nil || len(deny) != 1 || len(live) != 0 || !slices.Equal(denied, []string{"a.example.com"}) {
			t.Errorf("%v, %v, %q, %v", deny, live, denied, err)
		}
	}
}

// In the tier proxy no name server can be reached from inside, whatever
// ruleset.nft says.
func TestProxyOpensNoDNS(t *testing.T) {
	s := newShielded(t)
	dns := netip.MustParseAddr("192.0.2.53")
	table, err := ruleset.Build(ruleset.Up, ruleset.Params{DNS: dns})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.b.SetRuleset(table.String()), s.b.SetUpstreamDNS(dns)); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(s.b); err == nil {
		t.Error("loaded")
	}
	if err := s.b.SetTier(bundle.Static); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(s.b); err != nil {
		t.Error(err)
	}
}

// What is asked for too late is not begun, nor after waiting too long for
// another command: whoever asked has gone another way by then.
func TestLate(t *testing.T) {
	bothWays(t, func(t *testing.T, execute func(*testing.T, control.Request) control.Response) {
		s := newShielded(t)
		req := s.request(control.OpAllow, "a.example.com")
		req.Until = time.Now().Add(-time.Millisecond)
		if resp := execute(t, req); !strings.Contains(resp.Error, "too late") {
			t.Errorf("%+v", resp)
		}
		unlock, err := s.b.Lock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		req.Until = time.Now().Add(50 * time.Millisecond)
		if resp := execute(t, req); !strings.Contains(resp.Error, "another command") {
			t.Errorf("%+v", resp)
		}
		unlock()
		s.check(t, "", "")
		req.Until = time.Now().Add(time.Minute)
		if resp := execute(t, req); resp.Error != "" {
			t.Error(resp.Error)
		}
		s.check(t, "a.example.com", "")
	})
}
