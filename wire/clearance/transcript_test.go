package clearance_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/varlink"
	"github.com/terok-ai/terok-box/wire/verdict"
)

const patience = time.Minute

// hub has no questions open, and tells what it reads to one subscriber.
type hub struct{ events chan clearance.Event }

func (h hub) Subscribe(ctx context.Context, f func(clearance.Event) error) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-h.events:
			if err := f(e); err != nil {
				return err
			}
		}
	}
}

func (h hub) Verdict(_ context.Context, r clearance.Request) error {
	switch {
	case r.Action != clearance.Allow && r.Action != clearance.Deny:
		return clearance.InvalidAction{Action: r.Action}
	case r.RequestID == "mismatch":
		return clearance.TupleMismatch{ExpectedContainer: "c", ExpectedDest: "d\n", GotContainer: r.Container, GotDest: r.Dest}
	case r.RequestID == "failed":
		return clearance.ShieldFailed{Action: r.Action, Stderr: strings.Repeat("x", 1000)}
	case r.RequestID == "good":
		h.events <- clearance.Event{Type: clearance.VerdictApplied, RequestID: r.RequestID, OK: true}
		return nil
	}
	return clearance.UnknownRequest{RequestID: r.RequestID}
}

// read takes lines until the connection ends.
func (h hub) read(c net.Conn) {
	defer c.Close()
	for in := bufio.NewScanner(c); in.Scan(); {
		if e, err := event.Parse(in.Bytes()); err == nil {
			h.events <- clearance.Event{
				Type: e.Type, Container: e.Container, RequestID: e.ID, Dest: e.Dest, Port: e.Port, Proto: e.Proto,
				Domain: e.Domain, Reason: e.Reason, Dossier: e.Dossier,
			}
		}
	}
}

// shield never succeeds, and counts how often it was asked.
type shield struct {
	mu sync.Mutex
	n  int
}

func (s *shield) Apply(context.Context, string, string, string) (bool, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	return false, ""
}

func (s *shield) asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// start serves all three sockets of a user in a directory that it returns.
func start(t *testing.T) (dir string, h hub, s *shield) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "run")
	h, s = hub{make(chan clearance.Event, 100)}, new(shield)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	for _, c := range []struct {
		path  string
		info  varlink.Info
		iface varlink.Interface
	}{
		{clearance.UserSocketPath(dir), clearance.Info("0.0.0"), clearance.Interface(h, resources.Varlink(clearance.InterfaceName))},
		{verdict.UserSocketPath(dir), verdict.Info("0.0.0"), verdict.Interface(s, resources.Varlink(verdict.InterfaceName))},
	} {
		server, err := varlink.NewServer(varlink.Config{Info: c.info, Interfaces: []varlink.Interface{c.iface}, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		l, err := varlink.Listen(c.path)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := server.Serve(ctx, l); err != nil {
				t.Error(err)
			}
		})
	}
	ingest, err := varlink.Listen(event.UserSocketPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		log := slog.New(slog.DiscardHandler)
		if err := varlink.Accept(ctx, ingest, 10, log, func(_ context.Context, c *net.UnixConn, _ varlink.Peer) { h.read(c) }); err != nil {
			t.Error(err)
		}
	})
	return dir, h, s
}

// conn is a connection to one of the sockets.
type conn struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

func dial(t *testing.T, path string) conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return conn{t, c, bufio.NewReader(c)}
}

func (c conn) say(s string) {
	c.t.Helper()
	if _, err := c.Write([]byte(s)); err != nil {
		c.t.Fatal(err)
	}
}

// hear is the next message with its NUL.
func (c conn) hear() string {
	c.t.Helper()
	m, err := c.in.ReadString(0)
	if err != nil {
		c.t.Fatalf("%q, %v", m, err)
	}
	return m
}

// What the programs that ours stand in for were seen to answer, to the byte,
// but for the order of a dossier, in which there is no meaning.
func TestTranscript(t *testing.T) {
	dossier := regexp.MustCompile(`"dossier":\{[^}]*\}`)
	sorted := func(reply string) string {
		return dossier.ReplaceAllStringFunc(reply, func(s string) string {
			var d struct{ Dossier map[string]string }
			if err := json.Unmarshal([]byte("{"+s+"}"), &d); err != nil {
				t.Fatal(err)
			}
			out, err := json.Marshal(d.Dossier)
			if err != nil {
				t.Fatal(err)
			}
			return `"dossier":` + string(out)
		})
	}
	for _, name := range []string{"testdata/transcript.json", "../../../shared/vectors/wire/transcript.json"} {
		data, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) && !strings.HasPrefix(name, "testdata") {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		var entries []struct {
			Name, Socket, Send, Recv string
			OnSubscription           string `json:"recv_on_subscription"`
		}
		if err := json.Unmarshal(data, &entries); err != nil || len(entries) == 0 {
			t.Fatalf("%s: %d entries, %v", name, len(entries), err)
		}
		dir, _, _ := start(t)
		subscriber := dial(t, clearance.UserSocketPath(dir))
		subscriber.say(`{"method":"org.terok.Clearance1.Subscribe","more":true}` + "\x00")
		conns := make(map[string]conn)
		for _, e := range entries {
			c, ok := conns[e.Socket]
			if !ok {
				c = dial(t, filepath.Join(dir, e.Socket))
				conns[e.Socket] = c
			}
			c.say(e.Send)
			var got, want string
			switch {
			case e.OnSubscription != "":
				got, want = sorted(subscriber.hear()), sorted(e.OnSubscription)
			case e.Recv != "<silence>":
				got, want = c.hear(), e.Recv
			}
			// After silence, the next reply is that to the next entry.
			if got != want {
				t.Errorf("%s: %s:\n%q, want\n%q", name, e.Name, got, want)
			}
		}
		for socket, c := range conns {
			if c.in.Buffered() > 0 {
				t.Errorf("%s: more than was asked for", socket)
			}
		}
	}
}

// What calls of these interfaces are answered. What is wrong with a message
// as such is wrong for every interface: see the tests of package varlink.
func TestCalls(t *testing.T) {
	dir, h, s := start(t)
	invalid := func(p string) string {
		return `{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"` + p + `"}}`
	}
	const (
		verdictCall = `{"method":"org.terok.Clearance1.Verdict","parameters":{"container":"a","request_id":"good","dest":"c","action":"allow"}}`
		applyCall   = `{"method":"org.terok.ClearanceVerdict1.Apply","parameters":{"container":"a","dest":"c","action":"allow"}}`
		violation   = `{"error":"invalid.asyncvarlink.ProtocolViolation"}`
		done        = `{"parameters":{"ok":true}}`
		failed      = `{"parameters":{"ok":false,"stderr":""}}`
	)
	type row struct{ call, want string }
	for _, c := range []struct {
		path       string
		name       string
		call       string
		reply      string
		parameters []string
		more       []row
	}{
		{clearance.UserSocketPath(dir), clearance.InterfaceName, verdictCall, done, []string{"container", "request_id", "dest", "action"}, []row{
			{strings.Replace(verdictCall, "good", "mismatch", 1), `{"error":"org.terok.Clearance1.VerdictTupleMismatch","parameters":{"expected_container":"c","expected_dest":"d ","got_container":"a","got_dest":"c"}}`},
			{strings.Replace(verdictCall, "good", "failed", 1), `{"error":"org.terok.Clearance1.ShieldCliFailed","parameters":{"action":"allow","stderr":"` + strings.Repeat("x", 509) + `..."}}`},
			{strings.Replace(verdictCall, "good", `\ud800\u0000<`, 1), `{"error":"org.terok.Clearance1.UnknownRequest","parameters":{"request_id":"  <"}}`},
			{strings.Replace(verdictCall, `"allow"`, `"`+strings.Repeat("x", 300)+`"`, 1), `{"error":"org.terok.Clearance1.InvalidAction","parameters":{"action":"` + strings.Repeat("x", 253) + `..."}}`},
			{`{"method":"org.terok.Clearance1.Subscribe"}`, `{"error":"org.varlink.service.ExpectedMore"}`},
			{`{"method":"org.terok.Clearance1.Subscribe","more":false,"parameters":{"x":1}}`, `{"error":"org.varlink.service.ExpectedMore"}`},
			{`{"method":"org.terok.Clearance1.Subscribe","more":true,"parameters":{"x":1}}`, invalid("x")},
			{`{"method":"org.terok.Clearance1.Subscribe","more":true,"oneway":true}`, ""},
			{`{"method":"org.terok.Clearance1.Subscribe","oneway":true}`, ""},
			{`{"method":"org.terok.ClearanceVerdict1.Apply"}`, `{"error":"org.varlink.service.InterfaceNotFound","parameters":{"interface":"org.terok.ClearanceVerdict1"}}`},
		}},
		{verdict.UserSocketPath(dir), verdict.InterfaceName, applyCall, failed, []string{"container", "dest", "action"}, []row{
			// Nothing is checked.
			{strings.Replace(applyCall, "allow", `\u001b--x`, 1), failed},
			{strings.Replace(applyCall, `"c"`, `""`, 1), failed},
			{`{"method":"org.terok.Clearance1.Subscribe","more":true}`, `{"error":"org.varlink.service.InterfaceNotFound","parameters":{"interface":"org.terok.Clearance1"}}`},
		}},
	} {
		rows := append([]row{
			{c.call, c.reply},
			{strings.Replace(c.call, `{"method"`, `{"unknown":[{}],"method"`, 1), c.reply},
			{strings.TrimSuffix(c.call, "}") + `,"more":true}`, c.reply},
			{strings.TrimSuffix(c.call, "}") + `,"oneway":true}`, ""},
			{strings.TrimSuffix(c.call, "}") + `,"more":true,"upgrade":true}`, violation},
			{strings.Replace(c.call, `{"container"`, `{"extra":null,"container"`, 1), invalid("extra")},
			{`{"method":"` + c.name + `.Nope"}`, `{"error":"org.varlink.service.MethodNotFound","parameters":{"method":"Nope"}}`},
			{`{"method":"` + c.name + `"}`, `{"error":"org.varlink.service.InterfaceNotFound","parameters":{"interface":"org.terok"}}`},
			{`{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"org.example"}}`, `{"error":"org.varlink.service.InterfaceNotFound","parameters":{"interface":"org.example"}}`},
		}, c.more...)
		for _, p := range c.parameters {
			was := regexp.MustCompile(`"` + p + `":"[^"]*"`).FindString(c.call)
			for _, is := range []string{"1", "null", `["a"]`, "{}", "true"} {
				rows = append(rows, row{strings.Replace(c.call, was, `"`+p+`":`+is, 1), invalid(p)})
			}
			rows = append(rows,
				row{strings.Replace(c.call, was, was+","+was, 1), invalid(p)},
				row{strings.Replace(c.call, p+`":`, strings.ToUpper(p)+`":`, 1), invalid(p)},
			)
		}
		client := dial(t, c.path)
		for _, r := range rows {
			client.say(r.call + "\x00")
			if r.want == "" {
				client.say(`{"method":"a.B"}` + "\x00")
				r.want = `{"error":"org.varlink.service.InterfaceNotFound","parameters":{"interface":"a"}}`
			}
			if diff := cmp.Diff(r.want+"\x00", client.hear()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", r.call, diff)
			}
		}

		// Introspection says what is in the resources, errors included.
		client.say(`{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"` + c.name + `"}}` + "\x00")
		var reply struct {
			Parameters struct{ Description string }
		}
		text := strings.TrimSuffix(client.hear(), "\x00")
		if err := json.Unmarshal([]byte(text), &reply); err != nil || reply.Parameters.Description != resources.Varlink(c.name) {
			t.Errorf("%s is described as %q, %v", c.name, reply.Parameters.Description, err)
		}
	}
	// What was oneway was carried out, as was what was well asked for.
	if n := len(h.events); n != 4 {
		t.Errorf("%d verdicts, want 4", n)
	}
	if n := s.asked(); n != 6 {
		t.Errorf("asked for %d verdicts to be applied, want 6", n)
	}
}
