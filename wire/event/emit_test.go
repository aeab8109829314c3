package event

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/terok-ai/terok-box/wire/varlink"
)

// patience bounds what a test waits for and that has to come.
const patience = time.Minute

// hub takes connections and reads lines.
type hub struct {
	t     *testing.T
	l     *varlink.Listener
	lines chan string // what was read, with its LF
	ended chan string // what came before the end of each connection without one
	mu    sync.Mutex
	conns []net.Conn
	wg    sync.WaitGroup
}

func listen(t *testing.T, path string) *hub {
	t.Helper()
	l, err := varlink.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	h := &hub{t: t, l: l, lines: make(chan string, 1000), ended: make(chan string, 1000)}
	h.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			h.mu.Lock()
			h.conns = append(h.conns, c)
			h.mu.Unlock()
			h.wg.Go(func() {
				in := bufio.NewReader(c)
				for {
					line, err := in.ReadString('\n')
					if err != nil {
						h.ended <- line
						return
					}
					h.lines <- line
				}
			})
		}
	})
	t.Cleanup(h.stop)
	return h
}

// drop closes all connections.
func (h *hub) drop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.conns {
		c.Close()
	}
	h.conns = nil
}

// taken is how many connections there were since drop.
func (h *hub) taken() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.conns)
}

func (h *hub) stop() {
	h.l.Close()
	h.drop()
	h.wg.Wait()
}

func get(t *testing.T, c <-chan string) string {
	t.Helper()
	select {
	case s := <-c:
		return s
	case <-time.After(patience):
		t.Fatal("nothing happens")
		panic("unreachable")
	}
}

// numbered is an event that can be told from others.
func numbered(n int) (Event, string) {
	return Event{Type: ShieldUp, Container: fmt.Sprint(n)}, fmt.Sprintf(`{"type":"shield_up","container":"%d"}`+"\n", n)
}

func TestEmitter(t *testing.T) {
	paths := SocketPaths(t.TempDir(), "0123456789ab")
	e := NewEmitter(paths...)
	defer e.Close()
	n := 0
	send := func(h *hub) {
		t.Helper()
		n++
		ev, want := numbered(n)
		if err := e.Send(ev); err != nil {
			t.Fatal(err)
		}
		if got := get(t, h.lines); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}

	ev, _ := numbered(0)
	err := e.Send(ev)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), paths[0]) || !strings.Contains(err.Error(), paths[1]) {
		t.Errorf("without a hub: %v", err)
	}
	second := listen(t, paths[1])
	send(second)
	// The connection is kept, also when there is a better one.
	first := listen(t, paths[0])
	for range 100 {
		send(second)
	}
	if second.taken() != 1 {
		t.Errorf("%d connections", second.taken())
	}
	// Another one takes its place, and nothing is sent twice.
	second.drop()
	send(first)
	for range 10 {
		first.drop()
		send(first)
	}
	first.stop()
	send(second)
	second.stop()
	if err := e.Send(ev); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a hub again: %v", err)
	}
	first = listen(t, paths[0])
	send(first)

	// What is no event is not sent.
	if err := e.Send(Event{}); err == nil {
		t.Error("sent what is no event")
	}
	for range 2 {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
	if got := get(t, first.ended); got != "" {
		t.Errorf("half a line: %q", got)
	}
	send(first)
	if len(first.lines)+len(second.lines) > 0 {
		t.Error("something was sent twice")
	}
}

func TestEmit(t *testing.T) {
	path := UserSocketPath(t.TempDir())
	ev, want := numbered(1)
	if err := Emit([]string{path}, ev); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := Emit(nil, ev); err == nil {
		t.Error("sent to nobody")
	}
	if err := os.Chmod(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	h := listen(t, path)
	if err := Emit([]string{path}, ev); err != nil {
		t.Fatal(err)
	}
	if got := get(t, h.lines); got != want {
		t.Errorf("%q", got)
	}
	if got := get(t, h.ended); got != "" {
		t.Errorf("half a line: %q", got)
	}
}

// A hub that does not read used to hold up its producers, who look after
// packets. It delays them a little, and rarely.
func TestHubThatNeverReads(t *testing.T) {
	path := SocketPath(t.TempDir(), "0123456789ab")
	l, err := varlink.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e := NewEmitter(path)
	defer e.Close()
	ev := Event{Type: ShieldUp, Dossier: map[string]string{}}
	for i := range MaxDossier {
		ev.Dossier[fmt.Sprint(i)] = strings.Repeat("x", 256)
	}
	sent := 0
	var begin time.Time
	for {
		begin = time.Now()
		if err = e.Send(ev); err != nil {
			break
		}
		sent++
	}
	took := time.Since(begin)
	if !errors.Is(err, ErrBusy) || took > 20*Timeout {
		t.Errorf("after %d events: %v, after %v", sent, err, took)
	}
	begin = time.Now()
	for range 1000 {
		if err = e.Send(ev); !errors.Is(err, ErrBusy) {
			break
		}
	}
	if took := time.Since(begin); err == nil && took < rest/2 || took > patience {
		t.Errorf("again: %v, after %v", err, took)
	}
	time.Sleep(rest)
	if err := e.Send(ev); err != nil {
		t.Errorf("after a rest: %v", err)
	}

	// What was sent whole is still there to be read, and the rest is no line.
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	all, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(all), "\n"); n != sent {
		t.Errorf("%d lines, %d were sent", n, sent)
	}
}

// Neither does one that has too many who want to connect.
func TestHubThatNeverAccepts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	e := NewEmitter(path, path)
	ev, _ := numbered(1)
	begin := time.Now()
	for range 2 {
		if err := e.Send(ev); !errors.Is(err, ErrBusy) {
			t.Error(err)
		}
	}
	if took := time.Since(begin); took > 20*Timeout {
		t.Errorf("after %v", took)
	}
}

// Many may use one Emitter.
func TestEmitterShared(t *testing.T) {
	path := SocketPath(t.TempDir(), "0123456789ab")
	h := listen(t, path)
	e := NewEmitter(path)
	defer e.Close()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 100 {
				ev, _ := numbered(i)
				if err := e.Send(ev); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for range 800 {
		if _, err := Parse([]byte(get(t, h.lines))); err != nil {
			t.Error(err)
		}
	}
}
