package verdict

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/terok-ai/terok-box/wire/varlink"
)

// scripted is a server that does with each connection what it is told, and
// counts the calls that it got whole.
type scripted struct {
	l     *varlink.Listener
	wg    sync.WaitGroup
	calls chan string
	over  chan struct{} // gets one for each connection that it hung up
}

// run has each call answered: both the connections and the calls over each of
// them are counted from 0.
func run(t *testing.T, path string, answer func(conn, call int) string) *scripted {
	t.Helper()
	l, err := varlink.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{l: l, calls: make(chan string, 100), over: make(chan struct{}, 100)}
	s.wg.Go(func() {
		for conn := 0; ; conn++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() {
				defer c.Close()
				in := bufio.NewReader(c)
				for call := 0; ; call++ {
					a := answer(conn, call)
					if a == hangUp {
						c.Close()
						s.over <- struct{}{}
						return
					}
					m, err := in.ReadString(0)
					if err != nil {
						return
					}
					s.calls <- m
					if a == nothing {
						return
					}
					if _, err := c.Write([]byte(a + "\x00")); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); s.wg.Wait() })
	return s
}

const (
	yes     = `{"parameters":{"ok":true,"stderr":"x"}}`
	failed  = `{"error":"invalid.asyncvarlink.InternalServerError"}`
	call    = `{"method":"org.terok.ClearanceVerdict1.Apply","parameters":{"container":"a","dest":"b","action":"allow"}}` + "\x00"
	hangUp  = "hang up" // before the call is read
	nothing = ""        // and hang up after it was read
)

// An answer is carried out once or not at all, however the server behaves.
func TestResend(t *testing.T) {
	for _, c := range []struct {
		name    string
		answers [][]string // by connection and call
		ok      []bool     // what each Apply returns
		over    int        // hang-ups after each of the first ones
	}{
		{"one connection", [][]string{{yes, yes, yes}}, []bool{true, true, true}, 0},
		{"it was started again", [][]string{{yes, hangUp}, {yes}}, []bool{true, true}, 1},
		{"and again", [][]string{{yes, hangUp}, {yes, hangUp}, {yes}}, []bool{true, true, true}, 2},
		{"an error reply", [][]string{{failed, yes}}, []bool{false, true}, 0},
		{"no reply", [][]string{{nothing}, {yes}}, []bool{false, true}, 0},
		{"no reply over a kept connection", [][]string{{yes, nothing}, {yes}}, []bool{true, false, true}, 0},
		{"replies that cannot be", [][]string{
			{`{"parameters":{"ok":true}}`}, {`{"parameters":{"ok":true,"stderr":"","x":1}}`}, {`{"parameters":{"ok":1,"stderr":""}}`}, {`garbage`}, {yes},
		}, []bool{false, false, false, false, true}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := SocketPath(t.TempDir(), "a")
			s := run(t, path, func(conn, n int) string {
				if n >= len(c.answers[conn]) {
					return yes
				}
				return c.answers[conn][n]
			})
			client := New(path)
			defer client.Close()
			for i, want := range c.ok {
				ok, _, err := client.Apply(limited(t), "a", "b", "allow")
				if ok != want || (err == nil) != want || errors.Is(err, varlink.ErrNotSent) {
					t.Errorf("call %d: %v, %v", i, ok, err)
				}
				if i < c.over {
					<-s.over
				}
				if got := <-s.calls; got != call {
					t.Errorf("call %d: %q", i, got)
				}
			}
			if len(s.calls) > 0 {
				t.Errorf("and then %q", <-s.calls)
			}
		})
	}
}

// A server that is not there is found when it is.
func TestLazy(t *testing.T) {
	path := SocketPath(t.TempDir(), "a")
	if _, err := Dial(limited(t), path); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	c := New(path)
	defer c.Close()
	for range 2 {
		if ok, _, err := c.Apply(limited(t), "a", "b", "allow"); ok || !errors.Is(err, varlink.ErrNotSent) || !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	for range 3 {
		stop := serve(t, path, service(func(context.Context, string, string, string) (bool, string) { return true, "" }))
		for range 3 {
			if ok, _, err := c.Apply(limited(t), "a", "b", "allow"); err != nil || !ok {
				t.Error(err)
			}
		}
		stop()
	}
}

// Half a call is no call: only one that was sent whole may have been carried
// out.
func TestHalfCall(t *testing.T) {
	path := SocketPath(t.TempDir(), "a")
	l, err := varlink.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Dial(limited(t), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	first, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		first.Read(make([]byte, 100))
		first.Close()
		second, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer second.Close()
		if _, err := bufio.NewReader(second).ReadString(0); err != nil {
			t.Error(err)
		}
		second.Write([]byte(yes + "\x00"))
	})
	if ok, _, err := c.Apply(limited(t), strings.Repeat("x", 1<<20), "b", "allow"); err != nil || !ok {
		t.Error(err)
	}
}

// Who waits, be it for the answer, its turn or a connection, does so until its
// context ends or the client is closed.
func TestEnd(t *testing.T) {
	path := SocketPath(t.TempDir(), "a")
	asked := make(chan struct{}, 10)
	serve(t, path, service(func(ctx context.Context, _, _, _ string) (bool, string) {
		asked <- struct{}{}
		<-ctx.Done()
		return true, ""
	}))
	c := New(path)
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(context.Background())
	failed := make(chan error, 1)
	apply := func(ctx context.Context) {
		_, _, err := c.Apply(ctx, "a", "b", "allow")
		failed <- err
	}
	go apply(ctx)
	<-asked
	short, cancelShort := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancelShort()
	if _, _, err := c.Apply(short, "a", "b", "allow"); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, varlink.ErrNotSent) {
		t.Errorf("in the queue: %v", err)
	}
	cancel(why)
	if err := <-failed; !errors.Is(err, why) || errors.Is(err, varlink.ErrNotSent) {
		t.Error(err)
	}
	go apply(context.Background())
	<-asked
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, net.ErrClosed) || errors.Is(err, varlink.ErrNotSent) {
		t.Error(err)
	}
	if _, _, err := c.Apply(limited(t), "a", "b", "allow"); !errors.Is(err, net.ErrClosed) || !errors.Is(err, varlink.ErrNotSent) {
		t.Errorf("closed: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// Many may use one Client.
func TestShared(t *testing.T) {
	path := SocketPath(t.TempDir(), "a")
	serve(t, path, service(func(_ context.Context, container, dest, _ string) (bool, string) { return true, container + dest }))
	c := New(path)
	defer c.Close()
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b", "c", "d"} {
		wg.Go(func() {
			for range 100 {
				if ok, stderr, err := c.Apply(limited(t), name, "x", "allow"); err != nil || !ok || stderr != name+"x" {
					t.Error(ok, stderr, err)
				}
			}
		})
	}
	wg.Wait()
}
