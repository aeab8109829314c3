package varlink

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
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// patience bounds what a test waits for and that has to come.
const patience = time.Minute

// dialEnv makes the test binary a client and nothing else.
const dialEnv = "TEST_VARLINK_DIAL"

func TestMain(m *testing.M) {
	if path := os.Getenv(dialEnv); path != "" {
		os.Exit(dialOnly(path))
	}
	os.Exit(m.Run())
}

// dialOnly connects, calls, and reports whether there was an answer.
func dialOnly(path string) int {
	c, err := net.Dial("unix", path)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	c.Write([]byte(ping))
	c.(*net.UnixConn).CloseWrite()
	if answer, _ := io.ReadAll(c); len(answer) > 0 {
		fmt.Printf("answer: %q\n", answer)
		return 1
	}
	return 0
}

const ping = `{"method":"org.example.Test.Ping"}` + "\x00"

// fixture is a server with the interface that testDescription describes.
type fixture struct {
	t      *testing.T
	path   string
	server *Server
	stop   func() error // ends Serve and returns what it does
	log    *syncBuffer

	counting chan *Call    // gets each Count, when it begins
	counted  chan error    // gets why each Count ended
	go_      chan struct{} // Count(-1) sends one number for each element
	calls    chan string   // what Fail was called with
	bounded  bool          // calls do not last
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func start(t *testing.T, change func(*Config)) *fixture {
	t.Helper()
	f := &fixture{
		t: t, path: filepath.Join(t.TempDir(), "s", "test.sock"), log: new(syncBuffer),
		counting: make(chan *Call, 100), counted: make(chan error, 100), go_: make(chan struct{}, 100), calls: make(chan string, 100),
	}
	c := Config{
		Info: Info{"Example", "Test", "1.0", "https://example.com/"},
		Log:  slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Interfaces: []Interface{{
			Name:        "org.example.Test",
			Description: testDescription,
			Methods: []Method{
				Handle("Echo", func(_ context.Context, _ *Call, in everything) (everything, error) { return in, nil }),
				Handle("Ping", func(context.Context, *Call, struct{}) (struct{}, error) { return struct{}{}, nil }),
				Handle("Fail", f.fail),
				HandleStream("Count", f.count),
			},
			Errors: map[string]any{"Broken": broken{}, "Bare": struct{}{}},
		}},
	}
	if change != nil {
		change(&c)
	}
	var err error
	if f.server, err = NewServer(c); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(f.path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.server.Serve(ctx, l) }()
	f.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(patience):
			buf := make([]byte, 1<<20)
			t.Fatalf("Serve does not end:\n%s", buf[:runtime.Stack(buf, true)])
			return nil
		}
	})
	t.Cleanup(func() {
		if err := f.stop(); err != nil {
			t.Error(err)
		}
		noneLeft(t)
	})
	return f
}

// noneLeft fails if something of a connection still runs.
func noneLeft(t *testing.T) {
	t.Helper()
	buf := make([]byte, 4<<20)
	for end := time.Now().Add(patience); ; runtime.Gosched() {
		stacks := string(buf[:runtime.Stack(buf, true)])
		if !strings.Contains(stacks, "varlink.(*connection)") && !strings.Contains(stacks, "varlink.(*Server)") {
			return
		}
		// What has told that it is at its end may still be there for a moment.
		if time.Now().After(end) {
			t.Fatalf("left:\n%s", stacks)
		}
	}
}

func (f *fixture) fail(ctx context.Context, _ *Call, in failIn) (out struct{}, err error) {
	if f.bounded && in.How == "wait" {
		in.How = "plain"
	}
	select {
	case f.calls <- in.How:
	default:
	}
	switch in.How {
	case "broken":
		err = NewError("org.example.Test.Broken", broken{"it is"})
	case "wrapped":
		err = fmt.Errorf("wrapped: %w", NewError("org.example.Test.Bare", nil))
	case "empty struct":
		err = NewError("org.example.Test.Bare", struct{}{})
	case "standard":
		err = NewError(PermissionDenied, nil)
	case "invalid":
		err = Invalid("how")
	case "undeclared":
		err = NewError("org.example.Test.Other", nil)
	case "other parameters":
		err = NewError("org.example.Test.Broken", countIn{1})
	case "other interface":
		err = NewError("org.example.Other.Bare", nil)
	case "not parameters":
		err = NewError("org.example.Test.Bare", 1.5)
	case "plain":
		err = errors.New("plain")
	case "wait":
		<-ctx.Done()
		err = ctx.Err()
	}
	return out, err
}

func (f *fixture) count(ctx context.Context, c *Call, in countIn, send func(countOut) error) (err error) {
	if f.bounded {
		in.To &= 7
	} else {
		f.counting <- c
		defer func() { f.counted <- err }()
	}
	if in.To < 0 {
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-f.go_:
				if err := send(countOut{n}); err != nil {
					return err
				}
			}
		}
	}
	for n := range in.To {
		if err := send(countOut{n}); err != nil {
			return err
		}
	}
	switch in.To {
	case 1:
		return NewError("org.example.Test.Bare", nil)
	case 2:
		return errors.New("plain")
	}
	return nil
}

// raw is a client that says what it likes.
type raw struct {
	t *testing.T
	*net.UnixConn
	in frames
}

func (f *fixture) dial() *raw {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := dial(ctx, f.path)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &raw{t: f.t, UnixConn: c, in: frames{conn: c, limit: MaxReply}}
}

func (r *raw) say(s string) {
	r.t.Helper()
	if _, err := r.Write([]byte(s)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *raw) hear() string {
	r.t.Helper()
	m, err := r.in.next()
	if err != nil {
		r.t.Fatalf("no message: %v", err)
	}
	return string(m)
}

// ends reads until the connection is closed, which it must be.
func (r *raw) ends() {
	r.t.Helper()
	for {
		_, err := r.in.next()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			r.t.Fatal("the connection is still open")
		}
		if err != nil {
			return
		}
	}
}

func (r *raw) alive() {
	r.t.Helper()
	r.say(ping)
	if got := r.hear(); got != "{}" {
		r.t.Fatalf("Ping: %s", got)
	}
}

func get[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing happens")
		panic("unreachable")
	}
}

// The replies of the servers that ours stand in for, to the byte. A call
// without a reply is followed by one with.
func TestReplies(t *testing.T) {
	f := start(t, nil)
	const (
		violation = `{"error":"invalid.asyncvarlink.ProtocolViolation"}`
		internal  = `{"error":"invalid.asyncvarlink.InternalServerError"}`
		more      = `{"error":"org.varlink.service.ExpectedMore"}`
		none      = ""
		info      = `{"parameters":{"vendor":"Example","product":"Test","version":"1.0","url":"https://example.com/","interfaces":["org.example.Test","org.varlink.service"]}}`
	)
	invalid := func(p string) string {
		return `{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"` + p + `"}}`
	}
	text := func(s string) string {
		b, err := marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, c := range []struct{ name, call, want string }{
		{"GetInfo", `{"method":"org.varlink.service.GetInfo"}`, info},
		{"empty parameters", `{"method":"org.varlink.service.GetInfo","parameters":{}}`, info},
		{"unknown keys", `{"method":"org.varlink.service.GetInfo","unknown":[{"a":1,"a":2}],"x":null}`, info},
		{"white space", " {\n\"method\" :\t\"org.varlink.service.GetInfo\" } ", info},
		{"escaped key", `{"m\u0065thod":"org.varlink.service.GetInfo"}`, info},
		{"false flags", `{"method":"org.varlink.service.GetInfo","oneway":false,"more":false,"upgrade":false}`, info},
		{"more where there is one", `{"method":"org.varlink.service.GetInfo","more":true}`, info},
		{"upgrade", `{"method":"org.varlink.service.GetInfo","upgrade":true}`, info},
		{"description", `{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"org.example.Test"}}`, `{"parameters":{"description":` + text(testDescription) + `}}`},
		{"own description", `{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"org.varlink.service"}}`, `{"parameters":{"description":` + text(serviceDescription) + `}}`},
		{"no such description", `{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"foo.bar"}}`, `{"error":"org.varlink.service.InterfaceNotFound","parameters":{"interface":"foo.bar"}}`},
		{"extra parameter of GetInfo", `{"method":"org.varlink.service.GetInfo","parameters":{"extra":1}}`, invalid("extra")},

		{"unknown interface", `{"method":"foo.bar.Nope"}`, `{"error":"org.varlink.service.InterfaceNotFound","parameters":{"interface":"foo.bar"}}`},
		{"unknown interface, beyond ASCII", `{"method":"é<.Nope"}`, `{"error":"org.varlink.service.InterfaceNotFound","parameters":{"interface":"\u00e9<"}}`},
		{"no interface", `{"method":".Nope"}`, `{"error":"org.varlink.service.InterfaceNotFound","parameters":{"interface":""}}`},
		{"unknown method", `{"method":"org.example.Test.Nope"}`, `{"error":"org.varlink.service.MethodNotFound","parameters":{"method":"Nope"}}`},
		{"unknown method with parameters", `{"method":"org.example.Test.Nope","parameters":{"a":1}}`, `{"error":"org.varlink.service.MethodNotFound","parameters":{"method":"Nope"}}`},
		{"method of another interface", `{"method":"org.example.Test.GetInfo"}`, `{"error":"org.varlink.service.MethodNotFound","parameters":{"method":"GetInfo"}}`},

		{"missing parameter", `{"method":"org.example.Test.Fail"}`, invalid("how")},
		{"extra parameter", `{"method":"org.example.Test.Fail","parameters":{"how":"","x":1}}`, invalid("x")},
		{"wrong type", `{"method":"org.example.Test.Fail","parameters":{"how":1}}`, invalid("how")},
		{"null", `{"method":"org.example.Test.Fail","parameters":{"how":null}}`, invalid("how")},
		{"twice", `{"method":"org.example.Test.Fail","parameters":{"how":"a","how":"b"}}`, invalid("how")},
		{"other case", `{"method":"org.example.Test.Fail","parameters":{"How":"a"}}`, invalid("how")},
		{"wrong inside", `{"method":"org.example.Test.Echo","parameters":` + strings.Replace(full, `"k":"v"`, `"k":0`, 1) + `}`, invalid("items")},
		{"everything", `{"method":"org.example.Test.Echo","parameters":` + full + `}`, `{"parameters":` + full + `}`},
		{"empty reply", `{"method":"org.example.Test.Ping"}`, `{}`},

		{"expected more", `{"method":"org.example.Test.Count","parameters":{"to":3}}`, more},
		{"expected more before parameters", `{"method":"org.example.Test.Count","parameters":{"x":3}}`, more},
		{"parameters of a stream", `{"method":"org.example.Test.Count","parameters":{"to":"3"},"more":true}`, invalid("to")},

		{"oneway", `{"method":"org.example.Test.Ping","oneway":true}`, none},
		{"oneway error", `{"method":"org.example.Test.Fail","parameters":{"how":"broken"},"oneway":true}`, none},
		{"oneway defect", `{"method":"org.example.Test.Fail","parameters":{"how":"plain"},"oneway":true}`, none},
		{"oneway unknown", `{"method":"foo.bar.Nope","oneway":true}`, none},
		{"oneway stream", `{"method":"org.example.Test.Count","parameters":{"to":3},"oneway":true}`, none},
		{"oneway violation", `{"method":1,"oneway":true}`, none},
		{"oneway and more", `{"method":"org.example.Test.Ping","oneway":true,"more":true}`, none},
		{"more and upgrade", `{"method":"org.example.Test.Ping","more":true,"upgrade":true}`, violation},

		{"no method", `{}`, violation},
		{"method not a string", `{"method":1}`, violation},
		{"method null", `{"method":null}`, violation},
		{"method without dot", `{"method":"Ping"}`, violation},
		{"empty method", `{"method":""}`, violation},
		{"flag not a boolean", `{"method":"org.example.Test.Ping","more":1}`, violation},
		{"parameters not an object", `{"method":"org.example.Test.Ping","parameters":[]}`, violation},
		{"parameters null", `{"method":"org.example.Test.Ping","parameters":null}`, violation},
		{"method twice", `{"method":"org.example.Test.Ping","method":"org.example.Test.Ping"}`, violation},

		{"error with parameters", `{"method":"org.example.Test.Fail","parameters":{"how":"broken"}}`, `{"error":"org.example.Test.Broken","parameters":{"reason":"it is"}}`},
		{"error without", `{"method":"org.example.Test.Fail","parameters":{"how":"wrapped"}}`, `{"error":"org.example.Test.Bare"}`},
		{"error with an empty struct", `{"method":"org.example.Test.Fail","parameters":{"how":"empty struct"}}`, `{"error":"org.example.Test.Bare"}`},
		{"standard error", `{"method":"org.example.Test.Fail","parameters":{"how":"standard"}}`, `{"error":"org.varlink.service.PermissionDenied"}`},
		{"parameter refused by the method", `{"method":"org.example.Test.Fail","parameters":{"how":"invalid"}}`, invalid("how")},
		{"unhandled error", `{"method":"org.example.Test.Fail","parameters":{"how":"plain"}}`, internal},
		{"undeclared error", `{"method":"org.example.Test.Fail","parameters":{"how":"undeclared"}}`, internal},
		{"error with other parameters", `{"method":"org.example.Test.Fail","parameters":{"how":"other parameters"}}`, internal},
		{"error of another interface", `{"method":"org.example.Test.Fail","parameters":{"how":"other interface"}}`, internal},
		{"error that cannot be encoded", `{"method":"org.example.Test.Fail","parameters":{"how":"not parameters"}}`, internal},

		{"nothing", ``, none},
		{"not JSON", `hello`, none},
		{"half an object", `{"method":`, none},
		{"not UTF-8", "{\"method\":\"org.example.Test.Ping\xff\"}", none},
		{"not an object", `[1]`, none},
		{"a word", `null`, none},
		{"too deep", `{"method":"org.example.Test.Ping","x":` + strings.Repeat("[", 10000) + strings.Repeat("]", 10000) + `}`, none},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := f.dial()
			r.t = t
			r.say(c.call + "\x00")
			if c.want != none {
				if diff := cmp.Diff(c.want, r.hear()); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
			r.alive()
		})
	}
	// Those that were oneway were carried out.
	var calls []string
	for len(f.calls) > 0 {
		calls = append(calls, <-f.calls)
	}
	want := []string{"broken", "plain", "broken", "wrapped", "empty struct", "standard", "invalid", "plain", "undeclared", "other parameters", "other interface", "not parameters"}
	if diff := cmp.Diff(want, calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

func TestStream(t *testing.T) {
	f := start(t, nil)
	const count = `{"method":"org.example.Test.Count","parameters":{"to":%d},"more":true}` + "\x00"
	for _, c := range []struct {
		to   int
		last string // after the numbers; "" for the end of the connection
	}{
		{1, `{"error":"org.example.Test.Bare"}`},
		{2, `{"error":"invalid.asyncvarlink.InternalServerError"}`},
		{3, ""},
		{0, ""},
	} {
		r := f.dial()
		r.say(fmt.Sprintf(count, c.to))
		for n := range c.to {
			if got, want := r.hear(), fmt.Sprintf(`{"continues":true,"parameters":{"n":%d}}`, n); got != want {
				t.Errorf("Count(%d): %s, want %s", c.to, got, want)
			}
		}
		if c.last == "" {
			r.ends()
		} else {
			if got := r.hear(); got != c.last {
				t.Errorf("Count(%d): %s, want %s", c.to, got, c.last)
			}
			r.alive()
		}
		call := get(t, f.counting)
		if want := (Call{Peer: Peer{os.Getpid(), os.Geteuid(), os.Getegid()}, More: true}); *call != want {
			t.Errorf("called with %+v, want %+v", *call, want)
		}
		get(t, f.counted)
	}
}

// Calls that are sent in advance are answered in their order, also those
// behind the end of what the client sends, and pieces make no difference.
func TestOrder(t *testing.T) {
	f := start(t, nil)
	r := f.dial()
	var calls, want strings.Builder
	for i := range 200 {
		fmt.Fprintf(&calls, "{\"method\":\"x.%d.Y\"}\x00", i)
		fmt.Fprintf(&want, "{\"error\":\"org.varlink.service.InterfaceNotFound\",\"parameters\":{\"interface\":\"x.%d\"}}\x00", i)
	}
	rest := calls.String()
	for len(rest) > 0 {
		n := min(len(rest), 1+len(rest)%97)
		r.say(rest[:n])
		rest = rest[n:]
	}
	r.CloseWrite()
	got, err := io.ReadAll(r)
	if err != nil || string(got) != want.String() {
		t.Errorf("%v, got\n%.300s", err, got)
	}
}

// A subscriber that leaves is noticed without anything to send to it, whatever
// else it sent before; one that only has no more to say is not gone.
func TestDepartedSubscriber(t *testing.T) {
	f := start(t, nil)
	const count = `{"method":"org.example.Test.Count","parameters":{"to":-1},"more":true}` + "\x00"
	for name, before := range map[string]func(*raw){
		"at once":            func(*raw) {},
		"calls in advance":   func(r *raw) { r.say(strings.Repeat(ping, 1000)) },
		"half a message":     func(r *raw) { r.say("{") },
		"no more to say":     func(r *raw) { r.CloseWrite() },
		"replies not read":   func(r *raw) { f.go_ <- struct{}{}; f.go_ <- struct{}{} },
		"replies and calls":  func(r *raw) { f.go_ <- struct{}{}; r.say(ping) },
		"one reply was read": func(r *raw) { f.go_ <- struct{}{}; r.hear() },
	} {
		t.Run(name, func(t *testing.T) {
			r := f.dial()
			r.say(count)
			get(t, f.counting)
			before(r)
			// It is still served.
			f.go_ <- struct{}{}
			r.hear()
			select {
			case err := <-f.counted:
				t.Fatalf("ended: %v", err)
			default:
			}
			r.Close()
			if err := get(t, f.counted); !errors.Is(err, errHungUp) {
				t.Errorf("ended because %v", err)
			}
			for len(f.go_) > 0 {
				<-f.go_
			}
		})
	}
}

// Calls behind a stream wait for its end, and are then carried out.
func TestCallsBehindStream(t *testing.T) {
	f := start(t, nil)
	r := f.dial()
	r.say(`{"method":"org.example.Test.Count","parameters":{"to":1},"more":true}` + "\x00" + ping)
	want := []string{`{"continues":true,"parameters":{"n":0}}`, `{"error":"org.example.Test.Bare"}`, `{}`}
	for _, w := range want {
		if got := r.hear(); got != w {
			t.Errorf("%s, want %s", got, w)
		}
	}
}

// A client that leaves does not keep its call from being carried out.
func TestDepartedCaller(t *testing.T) {
	f := start(t, nil)
	r := f.dial()
	r.say(`{"method":"org.example.Test.Fail","parameters":{"how":"wait"}}` + "\x00")
	get(t, f.calls)
	r.Close()
	f.dial().alive()
	if err := f.stop(); err != nil { // which ends it
		t.Error(err)
	}
}

func TestServerEnds(t *testing.T) {
	f := start(t, nil)
	idle, half, waits, streams := f.dial(), f.dial(), f.dial(), f.dial()
	idle.alive()
	half.say("{")
	waits.say(`{"method":"org.example.Test.Fail","parameters":{"how":"wait"}}` + "\x00")
	streams.say(`{"method":"org.example.Test.Count","parameters":{"to":-1},"more":true}` + "\x00")
	get(t, f.calls)
	get(t, f.counting)
	if err := f.stop(); err != nil {
		t.Error(err)
	}
	for _, r := range []*raw{idle, half, waits, streams} {
		r.ends()
	}
	if err := get(t, f.counted); !errors.Is(err, context.Canceled) {
		t.Errorf("stream ended because %v", err)
	}
	if _, err := os.Lstat(f.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// Without these limits garbage was ignored for ever, into a buffer without
// end.
func TestGarbage(t *testing.T) {
	f := start(t, nil)
	r := f.dial()
	for range maxGarbage {
		r.say("garbage\x00")
	}
	r.alive()
	r.say("[]\x00")
	r.ends()
	f.dial().alive()
}

func TestLongMessage(t *testing.T) {
	const limit = 8 << 10
	f := start(t, func(c *Config) { c.MaxRequest = limit })
	message := func(n int) string {
		return ping[:len(ping)-1] + strings.Repeat(" ", n-len(ping)+1) + "\x00"
	}
	r := f.dial()
	r.say(message(limit))
	if got := r.hear(); got != "{}" {
		t.Error(got)
	}
	r.alive()
	r.say(message(limit + 1))
	r.ends()

	r = f.dial()
	block := bytes.Repeat([]byte(" "), 64<<10)
	sent := 0
	for sent < 1<<30 {
		n, err := r.Write(block)
		sent += n
		if err != nil {
			break
		}
	}
	if sent > 8<<20 {
		t.Errorf("%d bytes without an end were taken", sent)
	}
	r.ends()
	f.dial().alive()
}

func TestHalfMessage(t *testing.T) {
	f := start(t, func(c *Config) { c.MessageTimeout = 50 * time.Millisecond })
	idle := f.dial()
	idle.alive()
	subscriber := f.dial()
	subscriber.say(`{"method":"org.example.Test.Count","parameters":{"to":-1},"more":true}` + "\x00" + "half")
	get(t, f.counting)
	slow := f.dial()
	slow.say(ping + `{"method":`)
	if got := slow.hear(); got != "{}" {
		t.Error(got)
	}
	slow.ends()
	// Who is silent between messages, or listens, is left alone.
	idle.alive()
	f.go_ <- struct{}{}
	subscriber.hear()
}

func TestClientThatNeverReads(t *testing.T) {
	f := start(t, func(c *Config) { c.WriteTimeout = 50 * time.Millisecond })
	r := f.dial()
	r.say(`{"method":"org.example.Test.Count","parameters":{"to":1000000000},"more":true}` + "\x00")
	get(t, f.counting)
	if err := get(t, f.counted); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("ended because %v", err)
	}
	// The same without a stream: its own calls wait until it reads.
	r = f.dial()
	long := `{"method":"org.example.Test.Fail","parameters":{"` + strings.Repeat("x", 64<<10) + `":1}}` + "\x00"
	for {
		if _, err := r.Write([]byte(long)); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the connection is still open")
		} else if err != nil {
			break
		}
	}
	f.dial().alive()
}

// A reply over the size that clients take is not sent.
func TestLongReply(t *testing.T) {
	f := start(t, func(c *Config) { c.MaxRequest = MaxReply })
	r := f.dial()
	in := strings.Replace(full, `"text":"a"`, `"text":"`+strings.Repeat("é", 3<<20)+`"`, 1)
	r.say(`{"method":"org.example.Test.Echo","parameters":` + in + "}\x00")
	if got := r.hear(); got != `{"error":"invalid.asyncvarlink.InternalServerError"}` {
		t.Errorf("%.100s", got)
	}
	r.alive()
}

func TestThousandConnections(t *testing.T) {
	f := start(t, nil)
	var served []*raw
	for range MaxConns {
		r := f.dial()
		r.alive()
		served = append(served, r)
	}
	for range 1000 - MaxConns {
		r := f.dial()
		r.ends()
		r.Close()
	}
	for _, r := range served {
		r.alive()
	}
	if n := strings.Count(f.log.String(), "too many"); n != 1 {
		t.Errorf("%d lines about it in the log", n)
	}
	// When one leaves there is room for another. That it left becomes known a
	// little later.
	served[0].Close()
	for {
		r := f.dial()
		r.Write([]byte(ping))
		if m, err := r.in.next(); err == nil && string(m) == "{}" {
			break
		}
	}
}

// Sockets without this check served whoever could reach them.
func TestForeignUID(t *testing.T) {
	f := start(t, nil)
	f.stop()
	f.server.peer = func(c *net.UnixConn) (Peer, error) {
		p, err := ownPeer(c)
		if err != nil {
			t.Error(err)
		}
		return p, ErrForeign
	}
	l, err := Listen(f.path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- f.server.Serve(ctx, l) }()
	defer func() { cancel(); <-done }()
	r := f.dial()
	r.Write([]byte(`{"method":"org.example.Test.Fail","parameters":{"how":"plain"}}` + "\x00"))
	if b, _ := io.ReadAll(r); len(b) > 0 {
		t.Errorf("was answered %q", b)
	}
	if len(f.calls) > 0 {
		t.Error("was served")
	}
}

// The same with a process of another user, where this user may start one:
// elsewhere there is none to be afraid of in a test.
func TestForeignProcess(t *testing.T) {
	const nobody = 65534
	f := start(t, nil)
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 || !mapped(string(ids), nobody) {
		f.dial().alive()
		return
	}
	// Everything but the check lets it in: it gets the directory and the
	// binary open, wherever they are.
	dir := filepath.Dir(f.path)
	if err := errors.Join(os.Chmod(dir, 0o711), os.Chmod(f.path, 0o666)); err != nil {
		t.Fatal(err)
	}
	opened, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	cmd := exec.Command("/proc/self/fd/4")
	cmd.ExtraFiles = []*os.File{opened, exe} // 3 and 4
	cmd.Env = []string{dialEnv + "=/proc/self/fd/3/" + filepath.Base(f.path)}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if !strings.Contains(f.log.String(), "belongs to another user") {
		t.Errorf("log:\n%s", f.log)
	}
	f.dial().alive()
}

// mapped reports whether a user id exists in a user namespace.
func mapped(uidMap string, uid int) bool {
	for line := range strings.Lines(uidMap) {
		var inside, outside, n int
		if _, err := fmt.Sscan(line, &inside, &outside, &n); err == nil && inside <= uid && uid-inside < n {
			return true
		}
	}
	return false
}

// other is a listener that is not a Unix socket.
type other struct {
	conn   net.Conn
	closed chan struct{}
}

func (o other) Accept() (net.Conn, error) { return o.conn, nil }
func (o other) Addr() net.Addr            { return &net.TCPAddr{} }
func (o other) Close() error              { close(o.closed); return nil }

// A listener that is not a Unix socket does not know who connects.
func TestServeOther(t *testing.T) {
	s, err := NewServer(Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	l := other{b, make(chan struct{})}
	if err := s.Serve(context.Background(), l); err == nil {
		t.Error("served")
	}
	<-l.closed
	if _, err := a.Write([]byte(ping)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the connection is open: %v", err)
	}
}

// failing accepts nothing, for lack of descriptors at first.
type failing struct {
	net.Listener
	errs chan error
}

func (l failing) Accept() (net.Conn, error) {
	if err, ok := <-l.errs; ok {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
	}
	return l.Listener.Accept()
}

func TestAcceptFails(t *testing.T) {
	f := start(t, nil)
	f.stop()
	for _, c := range []struct {
		errs []error
		ok   bool
	}{
		{[]error{syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED}, true},
		{[]error{syscall.EMFILE, syscall.EINVAL}, false},
	} {
		l, err := Listen(f.path)
		if err != nil {
			t.Fatal(err)
		}
		errs := make(chan error, len(c.errs))
		for _, e := range c.errs {
			errs <- e
		}
		close(errs)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- f.server.Serve(ctx, failing{l, errs}) }()
		if c.ok {
			f.dial().alive()
			cancel()
		}
		if err := get(t, done); (err == nil) != c.ok {
			t.Errorf("%v: %v", c.errs, err)
		}
		cancel()
	}
}

func TestNewServer(t *testing.T) {
	good := Interface{Name: "org.example.A", Description: "interface org.example.A"}
	for name, list := range map[string][]Interface{
		"twice":           {good, good},
		"the service":     {{Name: service, Description: "interface " + service}},
		"other interface": {{Name: "org.example.B", Description: "interface org.example.A"}},
		"no description":  {{Name: "org.example.A"}},
	} {
		if _, err := NewServer(Config{Interfaces: list}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := NewServer(Config{Interfaces: []Interface{good}}); err != nil {
		t.Error(err)
	}
}

// No bytes of a client bring the server down, make it say what is not a
// message, or keep it from serving others.
func FuzzConnection(f *testing.F) {
	for _, s := range []string{
		ping, ping + ping, "\x00\x00{}\x00[", strings.Repeat("x\x00", 20),
		`{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"org.example.Test"}}` + "\x00",
		`{"method":"org.example.Test.Echo","parameters":` + full + "}\x00",
		`{"method":"org.example.Test.Count","parameters":{"to":3},"more":true}` + "\x00" + ping,
		`{"method":"org.example.Test.Ping","oneway":true}` + "\x00{\"method\":1}\x00",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		server := start(t, func(c *Config) { c.MaxRequest = 4096 })
		server.bounded = true
		r := server.dial()
		go func() {
			r.Write(data)
			r.CloseWrite()
		}()
		for {
			m, err := r.in.next()
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the connection stays open")
			}
			if err != nil {
				break
			}
			var got reply
			if err := unmarshal(m, &got, false); err != nil {
				t.Errorf("%q: %v", m, err)
			}
			again, err := marshal(got)
			if err != nil || !bytes.Equal(again, m) {
				t.Errorf("%q is not as it should be: %q", m, again)
			}
		}
		server.dial().alive()
	})
}
