package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/varlink"
)

var compareAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// patience bounds what a test waits for and that has to come.
const patience = time.Minute

// fake is a Service that says what it is told to.
type fake struct {
	mu      sync.Mutex
	got     []Request
	resp    Response
	status  Status
	packets chan Packet // that Packets passes on
	left    chan error  // gets why a Packets ended
}

func (f *fake) Perform(_ context.Context, req Request) Response {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.got = append(f.got, req)
	return f.resp
}

func (f *fake) Status() Status { return f.status }

func (f *fake) Packets(ctx context.Context, g func(Packet) error) error {
	for {
		select {
		case <-ctx.Done():
			f.left <- context.Cause(ctx)
			return ctx.Err()
		case p := <-f.packets:
			if err := g(p); err != nil {
				f.left <- err
				return err
			}
		}
	}
}

// socket serves an interface at a path.
func socket(t *testing.T, i varlink.Interface) (path string) {
	t.Helper()
	s, err := varlink.NewServer(varlink.Config{Interfaces: []varlink.Interface{i}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	path = SocketPath(t.TempDir(), "0123456789ab")
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
	t.Cleanup(func() { cancel(); wg.Wait() })
	return path
}

// serve serves an interface and returns a client that is connected.
func serve(t *testing.T, i varlink.Interface) *Client {
	t.Helper()
	c, err := Dial(limited(t), socket(t, i))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
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
	if got, want := SocketPath("/run/user/1000", "0123456789ab"), "/run/user/1000/terok/control/0123456789ab.sock"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// What says which container is meant stays behind: the supervisor knows.
func TestPerform(t *testing.T) {
	f := &fake{}
	c := serve(t, Interface(f, description(t)))
	for _, x := range []struct {
		req       Request
		resp, got Response
	}{
		{req: Request{Op: OpUp, Container: "demo"}},
		{req: Request{Op: OpDown, Container: "demo", Until: time.UnixMilli(time.Now().UnixMilli()).Add(time.Hour)}},
		{
			req: Request{
				Op: OpAllow, Container: "demo", StateDir: "/elsewhere", PID: 7, NetNS: "4:1", Audit: true, Target: "EXAMPLE.com",
				Targets: []string{"203.0.113.1", "203.0.113.0/24", "2001:db8::/32", "::1"}, Names: []string{"=example.com", "*.example.com", "_x.example.com"},
			},
			resp: Response{Applied: []string{"203.0.113.1", "a\nb"}, Warning: "first\nsecond\x1b[31m"},
			got:  Response{Applied: []string{"203.0.113.1", "a b"}, Warning: "first\nsecond [31m"},
		},
		{
			req:  Request{Op: OpRules, Container: "demo"},
			resp: Response{State: "up", Listing: "table inet terok_shield {\n\tchain \"output\" {\n\u202e\r"},
			got:  Response{State: "up", Listing: "table inet terok_shield {\n\tchain \"output\" {\n  "},
		},
		{
			req:  Request{Op: OpDeny, Container: "demo", Names: []string{strings.Repeat("x", maxWord)}},
			resp: Response{Error: "open /home/bücher: \xffno\x00", State: "error\n", Detail: strings.Repeat("é", maxText)},
			got:  Response{Error: "open /home/bücher:  no ", State: "error ", Detail: strings.Repeat("é", maxText/2-2) + "..."},
		},
		{
			req:  Request{Op: OpRules, Container: "demo"},
			resp: Response{State: "up", Listing: strings.Repeat("\n", maxListing)},
			got:  Response{State: "up", Listing: strings.Repeat("\n", maxListing)},
		},
		{
			req:  Request{Op: OpRules, Container: "demo"},
			resp: Response{State: "up", Listing: strings.Repeat("\n", maxListing+1)},
			got:  Response{Error: "its ruleset is too long to be sent"},
		},
	} {
		f.resp, f.got = x.resp, nil
		got, err := c.Perform(limited(t), x.req)
		if diff := cmp.Diff(x.got, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%.1000s", x.req.Op, err, diff)
		}
		want := x.req
		want.StateDir, want.PID, want.NetNS = "", 0, ""
		if want.Targets == nil {
			want.Targets = []string{}
		}
		if want.Names == nil {
			want.Names = []string{}
		}
		if diff := cmp.Diff([]Request{want}, f.got); diff != "" {
			t.Errorf("%s arrived otherwise (-want +got):\n%s", x.req.Op, diff)
		}
	}
}

// hostileRequests are refused by whoever gets to see them first.
func hostileRequests() map[string][]performIn {
	good := performIn{Op: "allow", Container: "demo"}
	with := func(change func(in *performIn)) performIn {
		in := good
		change(&in)
		return in
	}
	var out = map[string][]performIn{
		"op":      {with(func(in *performIn) { in.Op = "" }), with(func(in *performIn) { in.Op = "packets" }), with(func(in *performIn) { in.Op = "Allow" })},
		"targets": {with(func(in *performIn) { in.Targets = make([]string, maxTargets+1) })},
		"until":   {with(func(in *performIn) { in.Until = -1 })},
	}
	for _, bad := range []string{"", "a\x00b", "a\nb", "\x1b[31m", "bücher", strings.Repeat("x", maxWord+1)} {
		out["container"] = append(out["container"], with(func(in *performIn) { in.Container = bad }))
		out["names"] = append(out["names"], with(func(in *performIn) { in.Names = []string{"example.com", bad} }))
		if bad != "" {
			out["target"] = append(out["target"], with(func(in *performIn) { in.Target = bad }))
		}
	}
	for _, bad := range []string{"", "example.com", "203.0.113.0/33", "fe80::1%eth0", "203.0.113.1 ", "1"} {
		out["targets"] = append(out["targets"], with(func(in *performIn) { in.Targets = []string{"203.0.113.1", bad} }))
	}
	return out
}

func TestHostileRequest(t *testing.T) {
	f := &fake{}
	path := socket(t, Interface(f, description(t)))
	raw, err := varlink.Dial(limited(t), path)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	c, err := Dial(limited(t), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for parameter, all := range hostileRequests() {
		for _, in := range all {
			err := raw.Call(limited(t), InterfaceName+".Perform", in, &performOut{})
			var e *varlink.Error
			if !errors.As(err, &e) || e.Name != varlink.InvalidParameter || string(e.Parameters) != `{"parameter":"`+parameter+`"}` {
				t.Errorf("%s %.100q: %v", parameter, fmt.Sprint(in), err)
			}
			if _, err := c.Perform(limited(t), in.request()); !errors.Is(err, ErrRequest) {
				t.Errorf("sent %.100q: %v", fmt.Sprint(in), err)
			}
		}
	}
	// Where it is to be done is not to be said.
	type chosen struct {
		Op        string   `json:"op"`
		Container string   `json:"container"`
		Targets   []string `json:"targets"`
		Names     []string `json:"names"`
		Target    string   `json:"target"`
		Audit     bool     `json:"audit"`
		Until     int64    `json:"until"`
		StateDir  string   `json:"state_dir"`
	}
	err = raw.Call(limited(t), InterfaceName+".Perform", chosen{Op: "up", Container: "demo", StateDir: "/elsewhere"}, &performOut{})
	var e *varlink.Error
	if !errors.As(err, &e) || e.Name != varlink.InvalidParameter || string(e.Parameters) != `{"parameter":"state_dir"}` {
		t.Errorf("state_dir: %v", err)
	}
	if len(f.got) > 0 {
		t.Errorf("carried out: %v", f.got)
	}
}

// A request that was received too late is not carried out.
func TestLate(t *testing.T) {
	f := &fake{}
	c := serve(t, Interface(f, description(t)))
	_, err := c.Perform(limited(t), Request{Op: OpAllow, Container: "demo", Until: time.Now().Add(-time.Second)})
	var e *varlink.Error
	if !errors.As(err, &e) || e.Name != InterfaceName+".TooLate" || len(f.got) > 0 {
		t.Errorf("%v, carried out: %v", err, f.got)
	}
	if (Request{}).Late() || (Request{Until: time.Now().Add(time.Hour)}).Late() {
		t.Error("not too late")
	}
}

func TestPackets(t *testing.T) {
	f := &fake{packets: make(chan Packet, 10), left: make(chan error, 10)}
	c := serve(t, Interface(f, description(t)))
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	in := []Packet{
		{at, "TEROK_SHIELD_BLOCKED: ", netip.MustParseAddr("203.0.113.9"), 6, 443, 0},
		{at.Add(500), "x\ny" + strings.Repeat("z", 300), netip.MustParseAddr("2001:db8::1"), 255, 65535, 1 << 40},
		{at, "", netip.MustParseAddr("fe80::1%eth0"), 58, 0, 0},
	}
	want := []Packet{
		in[0],
		{at, "x y" + strings.Repeat("z", maxWord-6) + "...", in[1].Dest, 255, 65535, 1 << 40},
		{at, "", netip.MustParseAddr("fe80::1"), 58, 0, 0},
	}
	for _, p := range in {
		f.packets <- p
	}
	var got []Packet
	enough := errors.New("enough")
	err := c.Packets(limited(t), func(p Packet) error {
		if got = append(got, p); len(got) == len(want) {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Error(err)
	}
	if diff := cmp.Diff(want, got, compareAddrs); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// The service knows that nobody watches any more.
	select {
	case <-f.left:
	case <-time.After(patience):
		t.Error("Packets goes on")
	}
}

func TestStatus(t *testing.T) {
	want := Status{
		Container: "demo", ID: "0123456789ab", NetNS: "4:1", PID: 1, Uptime: 2, Restarts: 3, Packets: 1 << 40, Lost: 5, Asked: 6, Suppressed: 7,
		Subscribers: 8, Pending: 9, Hub: true, HubPID: 10, Trouble: "one\ntwo",
	}
	f := &fake{status: want}
	c := serve(t, Interface(f, description(t)))
	got, err := c.Status(limited(t))
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if c.PID() == 0 {
		t.Error("the process is not known")
	}
}

// A process that answers with anything harms nobody.
func TestHostileProcess(t *testing.T) {
	answer := func(o outcome, p packet, s Status) *Client {
		return serve(t, varlink.Interface{
			Name:        InterfaceName,
			Description: description(t),
			Errors:      map[string]any{"TooLate": struct{}{}},
			Methods: []varlink.Method{
				varlink.Handle("Perform", func(context.Context, *varlink.Call, performIn) (performOut, error) { return performOut{o}, nil }),
				varlink.HandleStream("Packets", func(_ context.Context, _ *varlink.Call, _ struct{}, send func(packetsOut) error) error {
					return send(packetsOut{p})
				}),
				varlink.Handle("Status", func(context.Context, *varlink.Call, struct{}) (statusOut, error) { return statusOut{s}, nil }),
			},
		})
	}
	req := Request{Op: OpState, Container: "demo"}
	for _, bad := range []packet{
		{}, {Time: "2026-01-02T03:04:05Z"}, {Time: "2026-01-02T03:04:05Z", Dest: "example.com"},
		{Time: "yesterday", Dest: "203.0.113.1"}, {Time: strings.Repeat("\x1b", 1000), Dest: "203.0.113.1"},
	} {
		c := answer(outcome{Applied: make([]string, maxApplied+1)}, bad, Status{})
		if _, err := c.Perform(limited(t), req); !errors.Is(err, ErrReply) {
			t.Errorf("Perform: %v", err)
		}
		err := c.Packets(limited(t), func(Packet) error { return nil })
		if !errors.Is(err, ErrReply) || strings.ContainsFunc(err.Error(), unprintable) || len(err.Error()) > 1000 {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	c := answer(
		outcome{"\x1b", "\x1b", "\u2028", "\x1b", []string{"\x1b"}, "\x1b"},
		packet{Time: "2026-01-02T03:04:05Z", Dest: "203.0.113.1", Prefix: "\x1b"},
		Status{Container: "\x1b", ID: "é", NetNS: "\n", Trouble: "\r"},
	)
	resp, err := c.Perform(limited(t), req)
	if diff := cmp.Diff(Response{" ", " ", " ", " ", []string{" "}, " "}, resp); diff != "" || err != nil {
		t.Errorf("Perform: %v (-want +got):\n%s", err, diff)
	}
	status, err := c.Status(limited(t))
	if diff := cmp.Diff(Status{Container: " ", ID: " ", NetNS: " ", Trouble: " "}, status); diff != "" || err != nil {
		t.Errorf("Status: %v (-want +got):\n%s", err, diff)
	}
	err = c.Packets(limited(t), func(p Packet) error {
		if p.Prefix != " " {
			t.Errorf("prefix %q", p.Prefix)
		}
		return nil
	})
	if !errors.Is(err, varlink.ErrHungUp) {
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
	f.Add("a\x1b\u202e\xff😀\n\t", 3)
	f.Add(strings.Repeat("é", 300), 255)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		limit = 3 + limit&1023
		for _, unwanted := range []func(rune) bool{unprintable, invisible} {
			got := clean(s, limit, unwanted)
			if len(got) > limit || strings.ContainsFunc(got, unwanted) || !utf8.ValidString(got) {
				t.Errorf("clean(%q, %d) = %q", s, limit, got)
			}
			if again := clean(got, limit, unwanted); again != got {
				t.Errorf("%q became %q", got, again)
			}
			if len(s) <= limit && !strings.ContainsFunc(s, unwanted) && got != s {
				t.Errorf("%q became %q without need", s, got)
			}
		}
	})
}

// A request that passes is one that can be shown and parsed.
func FuzzPerform(f *testing.F) {
	for _, op := range ops() {
		f.Add(string(op), "demo", "203.0.113.1", "example.com", "example.com")
	}
	for _, all := range hostileRequests() {
		for _, in := range all {
			f.Add(in.Op, in.Container, strings.Join(in.Targets[:min(2, len(in.Targets))], ","), strings.Join(in.Names, ","), in.Target)
		}
	}
	f.Fuzz(func(t *testing.T, op, container, targets, names, target string) {
		in := performIn{op, container, strings.Split(targets, ","), strings.Split(names, ","), target, true, 0}
		if in.check() != "" {
			return
		}
		for _, s := range append(in.Names, in.Op, in.Container, in.Target) {
			if !isPrintable(s) {
				t.Errorf("passed: %q", s)
			}
		}
		for _, s := range in.Targets {
			_, err1 := netip.ParseAddr(s)
			_, err2 := netip.ParsePrefix(s)
			if err1 != nil && err2 != nil || strings.Contains(s, "%") {
				t.Errorf("passed: %q", s)
			}
		}
	})
}

// What is read as a packet is sent as the same one.
func FuzzPacket(f *testing.F) {
	f.Add("2026-01-02T03:04:05.000006Z", "TEROK_SHIELD_BLOCKED: ", "203.0.113.9", uint8(6), uint16(443), int64(0))
	f.Add("2026-01-02T03:04:05+14:00", "\x1b", "::ffff:203.0.113.9%eth0", uint8(0), uint16(0), int64(-1))
	f.Fuzz(func(t *testing.T, at, prefix, dest string, proto uint8, port uint16, lost int64) {
		p, err := packet{at, prefix, dest, proto, port, lost}.parse()
		if err != nil {
			return
		}
		sent := packetOf(p)
		again, err := sent.parse()
		if err != nil {
			t.Fatalf("%+v: %v", sent, err)
		}
		p.Time = p.Time.Truncate(time.Microsecond)
		if diff := cmp.Diff(p, again, compareAddrs); diff != "" {
			t.Errorf("(-first +again):\n%s", diff)
		}
	})
}
