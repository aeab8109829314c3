package varlink

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func (f *fixture) client() *Client {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := Dial(ctx, f.path)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	return c
}

// limited is a context that ends when a test should have long been over.
func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func TestCall(t *testing.T) {
	f := start(t, nil)
	c := f.client()
	ctx := limited(t)
	in := everything{Text: "é\x00", List: []string{"a"}, Index: map[string]item{"k": {"n", map[string]string{}}}, Some: []*string{nil}}
	var out everything
	if err := c.Call(ctx, "org.example.Test.Echo", in, &out); err != nil {
		t.Fatal(err)
	}
	in.Items, in.One.Tags = []item{}, map[string]string{}
	if diff := cmp.Diff(in, out); diff != "" {
		t.Errorf("(-sent +received):\n%s", diff)
	}
	if err := c.Call(ctx, "org.example.Test.Ping", nil, nil); err != nil {
		t.Error(err)
	}

	// An error reply leaves the connection good.
	err := c.Call(ctx, "org.example.Test.Fail", failIn{"broken"}, nil)
	var e *Error
	if !errors.As(err, &e) || e.Name != "org.example.Test.Broken" {
		t.Fatal(err)
	}
	var b broken
	if err := e.Decode(&b); err != nil || b.Reason != "it is" {
		t.Errorf("%+v, %v", b, err)
	}
	if err := e.Decode(&countIn{}); err == nil {
		t.Error("decoded into something else")
	}
	if want := `org.example.Test.Fail: org.example.Test.Broken {"reason":"it is"}`; err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	err = c.Call(ctx, "org.example.Test.Fail", failIn{"standard"}, nil)
	if !errors.As(err, &e) || e.Name != PermissionDenied || e.Parameters != nil || e.Decode(&struct{}{}) != nil {
		t.Error(err)
	}
	info, interfaces, err := c.Info(ctx)
	if err != nil || info != f.server.Info || !cmp.Equal(interfaces, []string{"org.example.Test", service}) {
		t.Errorf("%+v, %v, %v", info, interfaces, err)
	}
	if err := c.Call(ctx, "org.example.Test.Ping", 1.5, nil); err == nil {
		t.Error("called with what are no parameters")
	}
	if err := c.Call(ctx, "org.example.Test.Ping", nil, nil); err != nil {
		t.Errorf("after a call that was not sent: %v", err)
	}
}

func TestClientStream(t *testing.T) {
	f := start(t, nil)
	ctx := limited(t)
	count := func(c *Client, to int) (got []int, err error) {
		for out, e := range Stream[countOut](ctx, c, "org.example.Test.Count", countIn{to}) {
			if e != nil {
				return got, e
			}
			got = append(got, out.N)
		}
		return got, nil
	}
	c := f.client()
	got, err := count(c, 1)
	var e *Error
	if !errors.As(err, &e) || e.Name != "org.example.Test.Bare" || !cmp.Equal(got, []int{0}) {
		t.Errorf("%v, %v", got, err)
	}
	// The connection is still good, up to a stream that ends with it.
	got, err = count(c, 5)
	if !errors.Is(err, ErrHungUp) || !cmp.Equal(got, []int{0, 1, 2, 3, 4}) {
		t.Errorf("%v, %v", got, err)
	}
	if err := c.Call(ctx, "org.example.Test.Ping", nil, nil); !errors.Is(err, ErrUnusable) {
		t.Error(err)
	}

	// A method with one reply has one.
	c = f.client()
	n := 0
	for _, err := range Stream[struct{}](ctx, c, "org.example.Test.Ping", nil) {
		if n++; err != nil {
			t.Error(err)
		}
	}
	if n != 1 {
		t.Errorf("%d replies", n)
	}

	// Who stops before the end leaves.
	for len(f.counted) > 0 {
		<-f.counted
	}
	f.go_ <- struct{}{}
	for range Stream[countOut](ctx, c, "org.example.Test.Count", countIn{-1}) {
		break
	}
	if err := get(t, f.counted); !errors.Is(err, errHungUp) {
		t.Errorf("the stream ended because %v", err)
	}
	if err := c.Call(ctx, "org.example.Test.Ping", nil, nil); !errors.Is(err, ErrUnusable) {
		t.Error(err)
	}
}

// What a stream yields shares nothing with what it yields next.
func TestStreamReplies(t *testing.T) {
	type out struct {
		M map[string]string `json:"m"`
		P *int              `json:"p"`
	}
	path := scripted(t, `{"continues":true,"parameters":{"m":{"a":"1"},"p":1}}`+"\x00"+`{"parameters":{"m":{"b":"2"}}}`+"\x00")
	c, err := Dial(limited(t), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var got []out
	for o, err := range Stream[out](limited(t), c, "a.B", nil) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, o)
	}
	one := 1
	if diff := cmp.Diff([]out{{map[string]string{"a": "1"}, &one}, {map[string]string{"b": "2"}, nil}}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The context ends a call at once, whatever it waits for.
func TestCallCancelled(t *testing.T) {
	f := start(t, nil)
	why := errors.New("enough")

	// For a reply.
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	c := f.client()
	failed := make(chan error, 1)
	go func() { failed <- c.Call(ctx, "org.example.Test.Fail", failIn{"wait"}, nil) }()
	get(t, f.calls)
	// For its turn.
	second, cancelSecond := context.WithCancel(context.Background())
	cancelSecond()
	if err := c.Call(second, "org.example.Test.Ping", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("in the queue: %v", err)
	}
	cancel(why)
	if err := get(t, failed); !errors.Is(err, why) {
		t.Error(err)
	}
	if err := c.Call(limited(t), "org.example.Test.Ping", nil, nil); !errors.Is(err, ErrUnusable) {
		t.Error(err)
	}

	// For the next of many.
	ctx, cancel = context.WithCancelCause(context.Background())
	defer cancel(nil)
	c = f.client()
	f.go_ <- struct{}{}
	var last error
	for _, err := range Stream[countOut](ctx, c, "org.example.Test.Count", countIn{-1}) {
		last = err
		cancel(why)
	}
	if !errors.Is(last, why) {
		t.Error(last)
	}
	if err := get(t, f.counted); !errors.Is(err, errHungUp) {
		t.Errorf("the stream ended because %v", err)
	}

	// For room to write.
	path := filepath.Join(private(t), "s")
	l, err := Listen(path) // which nobody accepts from
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err = Dial(limited(t), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	deadline, cancelDeadline := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancelDeadline()
	if err := c.Call(deadline, "a.B", failIn{strings.Repeat("x", 8<<20)}, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// Close ends what is under way.
func TestClientClose(t *testing.T) {
	f := start(t, nil)
	c := f.client()
	failed := make(chan error, 1)
	go func() { failed <- c.Call(context.Background(), "org.example.Test.Fail", failIn{"wait"}, nil) }()
	get(t, f.calls)
	c.Close()
	if err := get(t, failed); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// Calls of many take turns, and contexts that end afterwards do no harm.
func TestClientShared(t *testing.T) {
	f := start(t, nil)
	c := f.client()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				text := fmt.Sprintf("%d/%d", i, j)
				var out everything
				err := c.Call(ctx, "org.example.Test.Echo", everything{Text: text}, &out)
				cancel()
				if err != nil || out.Text != text {
					t.Errorf("%s: %s, %v", text, out.Text, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// scripted answers each message with the same bytes, and closes the
// connection when it was told to: by bytes that do not end in a NUL.
func scripted(t *testing.T, answer string) (path string) {
	t.Helper()
	path = filepath.Join(private(t), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				in := frames{conn: c, limit: MaxReply}
				for {
					if _, err := in.next(); err != nil {
						return
					}
					if _, err := c.Write([]byte(answer)); err != nil || !strings.HasSuffix(answer, "\x00") {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return path
}

// A reply must be exactly what was agreed on.
func TestBadReplies(t *testing.T) {
	for _, c := range []struct {
		answer string
		more   bool
		want   error
	}{
		{`{"parameters":{"n":1}}` + "\x00", false, nil},
		{`{"parameters":{"n":1},"continues":false}` + "\x00", false, nil},
		{`{"parameters":{"n":1}}` + "\x00", true, nil},
		{"", false, ErrHungUp},
		{`{"parameters":{"n":1}}`, false, ErrHungUp},
		{`{`, false, ErrHungUp},
		{"\x00", false, ErrProtocol},
		{"hello\x00", false, ErrProtocol},
		{"[]\x00", false, ErrProtocol},
		{"{}\x00", false, ErrProtocol},
		{`{"parameters":{"n":1},"extra":1}` + "\x00", false, ErrProtocol},
		{`{"parameters":{"n":1,"extra":1}}` + "\x00", false, ErrProtocol},
		{`{"parameters":{"n":1,"n":1}}` + "\x00", false, ErrProtocol},
		{`{"parameters":{"n":1},"parameters":{"n":1}}` + "\x00", false, ErrProtocol},
		{`{"parameters":{"n":null}}` + "\x00", false, ErrProtocol},
		{`{"parameters":{"n":1.0}}` + "\x00", false, ErrProtocol},
		{`{"parameters":{"n":"1"}}` + "\x00", false, ErrProtocol},
		{`{"parameters":{}}` + "\x00", false, ErrProtocol},
		{`{"parameters":null}` + "\x00", false, ErrProtocol},
		{`{"parameters":{"n":1},"continues":true}` + "\x00", false, ErrProtocol},
		{`{"parameters":{"n":1},"continues":1}` + "\x00", true, ErrProtocol},
		{`{"error":"a.B","continues":true}` + "\x00", true, ErrProtocol},
		{`{"error":1}` + "\x00", false, ErrProtocol},
		{`{"error":null,"parameters":{"n":1}}` + "\x00", false, ErrProtocol},
		{`{"parameters":{"n":1}}` + "\x00" + `{"parameters":{"n":2}}` + "\x00", false, ErrProtocol}, // at the next call
		{strings.Repeat(" ", 2000) + "\x00", false, ErrProtocol},
		{strings.Repeat(" ", 8<<20) + "\x00", false, ErrProtocol},
	} {
		path := scripted(t, c.answer)
		client, err := Dialer{MaxReply: 1000}.Dial(limited(t), path)
		if err != nil {
			t.Fatal(err)
		}
		call := func() (n int, err error) {
			if !c.more {
				var out countOut
				err = client.Call(limited(t), "a.B", nil, &out)
				return out.N, err
			}
			for out, e := range Stream[countOut](limited(t), client, "a.B", nil) {
				n, err = out.N, e
			}
			return n, err
		}
		n, err := call()
		if err == nil && n == 1 {
			n, err = call()
		}
		if !errors.Is(err, c.want) || err == nil && n != 1 {
			t.Errorf("%.80q: %d, %v, want %v", c.answer, n, err, c.want)
		}
		if err != nil {
			if _, err := call(); !errors.Is(err, ErrUnusable) {
				t.Errorf("%.80q, then: %v", c.answer, err)
			}
		}
		client.Close()
	}
}

// What a server chose is not printed as it is.
func TestErrorText(t *testing.T) {
	e := &Error{Name: "a.\x1b[31mB\n", Parameters: []byte(`{"x":"` + strings.Repeat("é", 1000) + `"}`)}
	got := e.Error()
	if len(got) > 2*maxQuoted+1 || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r > '~' }) {
		t.Errorf("%q", got)
	}
	if want := "a. [31mB  {"; !strings.HasPrefix(got, want) || !strings.HasSuffix(got, "...") {
		t.Errorf("%q", got)
	}
}

// A socket somebody else listens at is not spoken to.
func TestForeignServer(t *testing.T) {
	f := start(t, nil)
	d := Dialer{peer: func(c *net.UnixConn) (Peer, error) {
		p, err := ownPeer(c)
		if err != nil || p.PID == 0 {
			t.Errorf("%+v, %v", p, err)
		}
		return Peer{}, ErrForeign
	}}
	if _, err := d.Dial(limited(t), f.path); !errors.Is(err, ErrForeign) {
		t.Error(err)
	}
}

// A call that the server cannot have heard can be told from one that it may
// have carried out.
func TestNotSent(t *testing.T) {
	path := filepath.Join(private(t), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, heard := range []bool{false, true} {
		c, err := Dial(limited(t), path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if heard {
			go func() {
				in := frames{conn: server, limit: MaxReply}
				in.next()
				server.Close()
			}()
		} else {
			server.Close()
		}
		err = c.Call(limited(t), "a.B", nil, nil)
		if !errors.Is(err, ErrHungUp) || errors.Is(err, ErrNotSent) == heard {
			t.Errorf("heard: %v: %v", heard, err)
		}
	}
}

// What is not varlink can be spoken, too.
func TestConnect(t *testing.T) {
	f := start(t, nil)
	c, peer, err := Connect(limited(t), f.path)
	if err != nil || peer.UID != os.Geteuid() || peer.PID != os.Getpid() {
		t.Fatalf("%+v, %v", peer, err)
	}
	defer c.Close()
	if _, _, err := Connect(limited(t), f.path+"x"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
