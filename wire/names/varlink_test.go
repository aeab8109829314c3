package names

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/varlink"
)

var compareAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// patience bounds what a test waits for and that has to come.
const patience = time.Minute

// fake is a Service that says what it is told to.
type fake struct {
	names     map[netip.Addr][]Name
	addresses map[string][]netip.Addr
	change    Change
	reload    error
	removed   []netip.Addr
	forget    error
	status    Status
	questions chan Question // that Watch passes on
	left      chan error    // gets why a Watch ended
}

func (f *fake) Names(addr netip.Addr) []Name                      { return f.names[addr] }
func (f *fake) Addresses(name string) []netip.Addr                { return f.addresses[name] }
func (f *fake) Reload(context.Context) (change Change, err error) { return f.change, f.reload }
func (f *fake) Forget(context.Context) ([]netip.Addr, error)      { return f.removed, f.forget }
func (f *fake) Status() Status                                    { return f.status }

func (f *fake) Watch(ctx context.Context, g func(Question) error) error {
	for {
		select {
		case <-ctx.Done():
			f.left <- context.Cause(ctx)
			return ctx.Err()
		case q := <-f.questions:
			if err := g(q); err != nil {
				f.left <- err
				return err
			}
		}
	}
}

// serve serves an interface and returns a client that is connected.
func serve(t *testing.T, i varlink.Interface) *Client {
	t.Helper()
	s, err := varlink.NewServer(varlink.Config{Interfaces: []varlink.Interface{i}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	path := SocketPath(t.TempDir(), "0123456789ab")
	l, err := varlink.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	c, err := Dial(limited(t), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); cancel(); wg.Wait() })
	return c
}

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func description(t *testing.T) string {
	t.Helper()
	text := resources.Varlink(InterfaceName)
	if text == "" {
		t.Fatal("the interface is not described")
	}
	return text
}

// The description in the resources is what the code does.
func TestDescription(t *testing.T) {
	if err := Interface(&fake{}, description(t)).Check(); err != nil {
		t.Error(err)
	}
}

func TestSocketPath(t *testing.T) {
	if got, want := SocketPath("/run/user/1000", "0123456789ab"), "/run/user/1000/terok/dns/0123456789ab.sock"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestService(t *testing.T) {
	v4, v6 := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")
	f := &fake{
		names: map[netip.Addr][]Name{
			v4: {{"www.example.com", true, 3}, {"bad\nname\x1b", false, -1}},
			v6: {{"", true, 0}}, // the root
		},
		addresses: map[string][]netip.Addr{"www.example.com": {v4, v6}, "_x.example.com": {v6}},
		change:    Change{Allowed: 1, Denied: 2, Removed: []string{"203.0.113.1", "2001:db8::1"}, Enforced: true},
		status: Status{
			Tier: "proxy", Upstreams: []string{"192.0.2.1:53", "[2001:db8::53]:53"}, Allowed: 1, Denied: 2, Questions: 1 << 40,
			Refused: 4, Failed: 5, Cached: 6, Entries: 7, Bytes: 8, Learned: 9, Restarts: 10,
		},
	}
	c := serve(t, Interface(f, description(t)))
	ctx := limited(t)

	for addr, want := range map[string][]Name{
		"203.0.113.1":        {{"www.example.com", true, 3}, {"bad name ", false, -1}},
		"::ffff:203.0.113.1": {{"www.example.com", true, 3}, {"bad name ", false, -1}},
		"2001:db8::1":        {{"", true, 0}},
		"203.0.113.2":        {},
	} {
		got, err := c.Names(ctx, netip.MustParseAddr(addr))
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("Names(%s): %v (-want +got):\n%s", addr, err, diff)
		}
	}
	for _, addr := range []netip.Addr{{}, netip.MustParseAddr("fe80::1%lo")} {
		_, err := c.Names(ctx, addr)
		var e *varlink.Error
		if !errors.As(err, &e) || e.Name != InterfaceName+".InvalidAddress" {
			t.Errorf("Names(%v): %v", addr, err)
		}
	}

	for name, want := range map[string][]netip.Addr{
		"www.example.com":   {v4, v6},
		"WWW.Example.COM.":  {v4, v6},
		"_x.example.com":    {v6},
		"other.example.com": {},
	} {
		got, err := c.Addresses(ctx, name)
		if diff := cmp.Diff(want, got, compareAddrs); diff != "" || err != nil {
			t.Errorf("Addresses(%s): %v (-want +got):\n%s", name, err, diff)
		}
	}
	for _, name := range []string{"", ".", "a\x00b", "bücher.example.com", "a\nb", strings.Repeat("x", 256)} {
		_, err := c.Addresses(ctx, name)
		var e *varlink.Error
		if !errors.As(err, &e) || e.Name != varlink.InvalidParameter || string(e.Parameters) != `{"parameter":"name"}` {
			t.Errorf("Addresses(%q): %v", name, err)
		}
	}

	change, err := c.Reload(ctx)
	if diff := cmp.Diff(f.change, change); diff != "" || err != nil {
		t.Errorf("Reload: %v (-want +got):\n%s", err, diff)
	}
	f.change.Removed = nil
	if change, err = c.Reload(ctx); err != nil || len(change.Removed) > 0 {
		t.Errorf("Reload: %+v, %v", change, err)
	}
	f.reload = errors.New("profile.domains, line 3: \x1b[31mwrong" + strings.Repeat("x", 2000))
	_, err = c.Reload(ctx)
	if !errors.Is(err, ErrReload) || !strings.Contains(err.Error(), "profile.domains, line 3:  [31mwrong") || !strings.HasSuffix(err.Error(), "x...") {
		t.Errorf("Reload: %v", err)
	}

	for _, want := range [][]netip.Addr{nil, {v4}, {v4, v6}} {
		f.removed = want
		got, err := c.Forget(ctx)
		if !slices.Equal(got, want) || err != nil {
			t.Errorf("Forget: %v, %v", got, err)
		}
	}
	f.forget = errors.New("the firewall\nis stuck" + strings.Repeat("x", 2000))
	_, err = c.Forget(ctx)
	if !errors.Is(err, ErrForget) || !strings.Contains(err.Error(), "the firewall is stuck") || !strings.HasSuffix(err.Error(), "x...") {
		t.Errorf("Forget: %v", err)
	}

	status, err := c.Status(ctx)
	if diff := cmp.Diff(f.status, status); diff != "" || err != nil {
		t.Errorf("Status: %v (-want +got):\n%s", err, diff)
	}
	if c.PID() == 0 {
		t.Error("the process is not known")
	}
}

func TestWatch(t *testing.T) {
	f := &fake{questions: make(chan Question, 10), left: make(chan error, 10)}
	c := serve(t, Interface(f, description(t)))
	first := Question{"2025-01-02T03:04:05.000006Z", "www.example.com", "A", Allowed, "", []string{"203.0.113.1"}, 0}
	f.questions <- first
	f.questions <- Question{Name: "\u202eb\xffd" + strings.Repeat("x", 300), Type: "A\n", Verdict: Refused, Reason: "a\tb", Missed: 7}
	var got []Question
	enough := errors.New("enough")
	err := c.Watch(limited(t), func(q Question) error {
		got = append(got, q)
		if len(got) == 2 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Error(err)
	}
	want := []Question{first, {Name: " b d" + strings.Repeat("x", maxName-7) + "...", Type: "A ", Verdict: Refused, Reason: "a b", Addresses: []string{}, Missed: 7}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// The service knows that nobody watches any more.
	select {
	case <-f.left:
	case <-time.After(patience):
		t.Error("Watch goes on")
	}
}

// The end of the context ends a Watch on both sides.
func TestWatchCancelled(t *testing.T) {
	f := &fake{questions: make(chan Question, 10), left: make(chan error, 10)}
	c := serve(t, Interface(f, description(t)))
	f.questions <- Question{Name: "example.com"}
	ctx, cancel := context.WithCancel(limited(t))
	defer cancel()
	if err := c.Watch(ctx, func(Question) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	select {
	case <-f.left:
	case <-time.After(patience):
		t.Error("Watch goes on")
	}
}

// hostile is a process that answers with anything.
func hostile(t *testing.T, names namesOut, addresses addressesOut, reload reloadOut, status statusOut, watch watchOut) *Client {
	return serve(t, varlink.Interface{
		Name:        InterfaceName,
		Description: description(t),
		Methods: []varlink.Method{
			varlink.Handle("Names", func(context.Context, *varlink.Call, namesIn) (namesOut, error) { return names, nil }),
			varlink.Handle("Addresses", func(context.Context, *varlink.Call, addressesIn) (addressesOut, error) { return addresses, nil }),
			varlink.Handle("Reload", func(context.Context, *varlink.Call, struct{}) (reloadOut, error) { return reload, nil }),
			varlink.Handle("Forget", func(context.Context, *varlink.Call, struct{}) (forgetOut, error) {
				return forgetOut{reload.Change.Removed}, nil
			}),
			varlink.Handle("Status", func(context.Context, *varlink.Call, struct{}) (statusOut, error) { return status, nil }),
			varlink.HandleStream("Watch", func(_ context.Context, _ *varlink.Call, _ struct{}, send func(watchOut) error) error {
				return send(watch)
			}),
		},
		Errors: map[string]any{"InvalidAddress": invalidAddress{}, "ReloadFailed": reloadFailed{}, "ForgetFailed": forgetFailed{}},
	})
}

func TestHostileProcess(t *testing.T) {
	many := func(n int) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprintf("198.51.%d.%d", i>>8&255, i&255))
		}
		return list
	}
	for _, bad := range [][]string{{""}, {"203.0.113.1", "x"}, {"203.0.113.0/24"}, {"fe80::1%eth0"}, {"203.0.113.1\n"}, many(maxList + 1)} {
		c := hostile(t, namesOut{}, addressesOut{bad}, reloadOut{Change{Removed: bad}}, statusOut{Status{Upstreams: bad}}, watchOut{Question{Addresses: bad}})
		if got, err := c.Addresses(limited(t), "example.com"); !errors.Is(err, ErrReply) {
			t.Errorf("%d like %q: Addresses: %d, %v", len(bad), bad[0], len(got), err)
		}
		if got, err := c.Reload(limited(t)); !errors.Is(err, ErrReply) {
			t.Errorf("%d like %q: Reload: %d, %v", len(bad), bad[0], len(got.Removed), err)
		}
		if got, err := c.Forget(limited(t)); !errors.Is(err, ErrReply) {
			t.Errorf("%d like %q: Forget: %d, %v", len(bad), bad[0], len(got), err)
		}
		if got, err := c.Status(limited(t)); !errors.Is(err, ErrReply) {
			t.Errorf("%d like %q: Status: %d, %v", len(bad), bad[0], len(got.Upstreams), err)
		}
		if err := c.Watch(limited(t), func(Question) error { return nil }); !errors.Is(err, ErrReply) {
			t.Errorf("%.50v: Watch: %v", bad[0], err)
		}
	}
	for _, bad := range [][]Name{{{Name: "a\x1bb"}}, {{Name: "é"}}, {{Name: strings.Repeat("x", 256)}}, make([]Name, maxList+1)} {
		c := hostile(t, namesOut{bad}, addressesOut{}, reloadOut{}, statusOut{}, watchOut{Question{Name: bad[0].Name}})
		if got, err := c.Names(limited(t), netip.MustParseAddr("203.0.113.1")); !errors.Is(err, ErrReply) {
			t.Errorf("%d like %.50v: %d, %v", len(bad), bad[0], len(got), err)
		}
		if err := c.Watch(limited(t), func(Question) error { return nil }); bad[0].Name != "" && !errors.Is(err, ErrReply) {
			t.Errorf("%.50v: Watch: %v", bad[0], err)
		}
	}
	c := hostile(t, namesOut{}, addressesOut{many(maxList)}, reloadOut{}, statusOut{Status{Tier: "a\nb"}}, watchOut{Question{Time: "\x1b", Type: "é", Verdict: "\n", Reason: "\r"}})
	if got, err := c.Addresses(limited(t), "example.com"); err != nil || len(got) != maxList {
		t.Errorf("%d addresses, %v", len(got), err)
	}
	if got, err := c.Status(limited(t)); err != nil || got.Tier != "a b" {
		t.Errorf("%+v, %v", got, err)
	}
	var got Question
	err := c.Watch(limited(t), func(q Question) error { got = q; return nil })
	if !errors.Is(err, varlink.ErrHungUp) {
		t.Error(err)
	}
	if diff := cmp.Diff(Question{Time: " ", Type: " ", Verdict: " ", Reason: " ", Addresses: []string{}}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What a Service has too much of is cut, so that the rest arrives.
func TestLongLists(t *testing.T) {
	addr := netip.MustParseAddr("203.0.113.1")
	f := &fake{names: map[netip.Addr][]Name{}, addresses: map[string][]netip.Addr{}, questions: make(chan Question, 1), left: make(chan error, 1)}
	long := Name{strings.Repeat(`\`, maxName), false, -1 << 63}
	for range maxNames + 1 {
		f.names[addr] = append(f.names[addr], long)
	}
	for range maxList + 1 {
		f.addresses["example.com"] = append(f.addresses["example.com"], addr)
		f.change.Removed = append(f.change.Removed, "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff")
	}
	c := serve(t, Interface(f, description(t)))
	if got, err := c.Names(limited(t), addr); err != nil || len(got) != maxNames {
		t.Errorf("%d names, %v", len(got), err)
	}
	if got, err := c.Addresses(limited(t), "example.com"); err != nil || len(got) != maxList {
		t.Errorf("%d addresses, %v", len(got), err)
	}
	if got, err := c.Reload(limited(t)); err != nil || len(got.Removed) != maxList {
		t.Errorf("%d removed, %v", len(got.Removed), err)
	}
	f.removed = f.addresses["example.com"]
	if got, err := c.Forget(limited(t)); err != nil || len(got) != maxList {
		t.Errorf("%d forgotten, %v", len(got), err)
	}
	f.questions <- Question{Addresses: f.change.Removed}
	enough := errors.New("enough")
	if err := c.Watch(limited(t), func(Question) error { return enough }); !errors.Is(err, enough) {
		t.Error(err)
	}
}

func TestDialNobody(t *testing.T) {
	if _, err := Dial(limited(t), filepath.Join(t.TempDir(), "s")); err == nil {
		t.Error("connected to nobody")
	}
}

func FuzzClean(f *testing.F) {
	f.Add("example.com", 255)
	f.Add("a\x1b\u202e\xff😀", 3)
	f.Add(strings.Repeat("x", 300), 255)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		limit = 3 + limit&1023
		got := clean(s, limit)
		if len(got) > limit || strings.ContainsFunc(got, unprintable) {
			t.Errorf("clean(%q, %d) = %q", s, limit, got)
		}
		if again := clean(got, limit); again != got {
			t.Errorf("%q became %q", got, again)
		}
		if len(s) <= limit && !strings.ContainsFunc(s, unprintable) && got != s {
			t.Errorf("%q became %q without need", s, got)
		}
	})
}
