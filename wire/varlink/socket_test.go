package varlink

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// open is how many files this process has open.
func open(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// private is a new directory as sockets are made in.
func private(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "private")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// answers reports whether somebody listens at the path.
func answers(t *testing.T, path string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := dial(ctx, path)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

func TestListen(t *testing.T) {
	root := t.TempDir()
	before := open(t)
	path := filepath.Join(root, "a", "b", "c.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{
		filepath.Join(root, "a"):      fs.ModeDir | 0o700,
		filepath.Join(root, "a", "b"): fs.ModeDir | 0o700,
		path:                          fs.ModeSocket | 0o600,
	} {
		if fi, err := os.Lstat(path); err != nil || fi.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", path, fi.Mode(), err, want)
		}
	}
	if got := l.Addr().String(); got != path {
		t.Errorf("address %s", got)
	}
	if !answers(t, path) {
		t.Error("nobody answers")
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
	if after := open(t); after != before {
		t.Errorf("%d open files, %d before", after, before)
	}
}

// The umask, which belongs to all threads, neither matters nor changes.
func TestListenUmask(t *testing.T) {
	dir := private(t)
	for _, mask := range []int{0, 0o022, 0o077, 0o177, 0o277, 0o777} {
		func() {
			defer syscall.Umask(syscall.Umask(mask))
			l, err := Listen(filepath.Join(dir, "s"))
			if err != nil {
				t.Errorf("umask %03o: %v", mask, err)
				return
			}
			defer l.Close()
			if mode := l.made.Mode(); mode != fs.ModeSocket|0o600 {
				t.Errorf("umask %03o: %v", mask, mode)
			}
			if now := syscall.Umask(mask); now != mask {
				t.Errorf("umask %03o became %03o", mask, now)
			}
			if !answers(t, l.path) {
				t.Errorf("umask %03o: nobody answers", mask)
			}
		}()
	}
}

func TestListenRefuses(t *testing.T) {
	root := t.TempDir()
	mkdir := func(name string, mode fs.FileMode) string {
		dir := filepath.Join(root, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	good := mkdir("good", 0o700)
	link := filepath.Join(root, "link")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(good, "file")
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	dangling := filepath.Join(good, "dangling")
	if err := os.Symlink(filepath.Join(good, "target"), dangling); err != nil {
		t.Fatal(err)
	}
	datagrams := filepath.Join(good, "datagrams")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: datagrams, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	foreign := "/" // belongs to root, or is nobody's in a user namespace
	if os.Geteuid() == 0 {
		foreign = mkdir("foreign", 0o700)
		if err := os.Chown(foreign, 65534, -1); err != nil {
			foreign = "/"
		}
	}
	before := open(t)
	for _, c := range []struct{ path, want string }{
		{"", "not an absolute path"},
		{"relative/x.sock", "not an absolute path"},
		{"@abstract", "not an absolute path"},
		{"/", "not an absolute path"},
		{good + "/", "not an absolute path"},
		{good + "/x\x00y", "not an absolute path"},
		{mkdir("group", 0o750) + "/x.sock", "is open to others (mode 0750)"},
		{mkdir("world", 0o701) + "/x.sock", "is open to others (mode 0701)"},
		{link + "/x.sock", "is a symbolic link"},
		{foreign + "/x.sock", ""},
		{file, "something that is not a socket"},
		{file + "/x.sock", "not a directory"},
		{dangling, "something that is not a socket"},
		{good, "is open to others"}, // of its parent
		{datagrams, "find out whether a server answers there"},
		{good + "/" + strings.Repeat("x", 200), "the name of the file is longer than"},
	} {
		l, err := Listen(c.path)
		if err == nil {
			l.Close()
			t.Errorf("%q: done", c.path)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %s", c.path, err, c.want)
		}
	}
	if after := open(t); after != before {
		t.Errorf("%d open files, %d before", after, before)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "text" {
		t.Errorf("the file is now %q, %v", data, err)
	}
	if _, err := os.Lstat(datagrams); err != nil {
		t.Error(err)
	}
}

// A second start used to steal the address from a server that lived.
func TestListenInUse(t *testing.T) {
	path := filepath.Join(private(t), "s")
	first, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if l, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Fatalf("%v, %v", l, err)
	}
	// It need not accept.
	if !answers(t, path) {
		t.Error("the first does not answer")
	}
}

// One whose queue is full lives, too, and clients wait for their turn.
func TestListenFull(t *testing.T) {
	path := filepath.Join(private(t), "s")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	waiting, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	time.AfterFunc(20*time.Millisecond, func() { cancel(errors.New("enough")) })
	if _, err := Dial(ctx, path); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Error(err)
	}
	connected := make(chan error)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c, err := Dial(ctx, path)
		if err == nil {
			c.Close()
		}
		connected <- err
	}()
	for accepted := 0; ; accepted++ {
		select {
		case err := <-connected:
			if err != nil {
				t.Error(err)
			}
			return
		default:
		}
		if n, _, err := syscall.Accept4(fd, syscall.SOCK_NONBLOCK); err == nil {
			syscall.Close(n)
		}
		if accepted == 0 {
			syscall.SetNonblock(fd, true)
		}
	}
}

// stale leaves a socket behind as a server does that is killed.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestListenStale(t *testing.T) {
	path := filepath.Join(private(t), "s")
	stale(t, path)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if !answers(t, path) {
		t.Error("nobody answers")
	}
}

// Of many that start at the same time over a dead socket one gets it, and
// keeps it.
func TestListenTogether(t *testing.T) {
	path := filepath.Join(private(t), "s")
	for range 20 {
		stale(t, path)
		var wg sync.WaitGroup
		var mu sync.Mutex
		var won []*Listener
		for range 16 {
			wg.Go(func() {
				l, err := Listen(path)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won = append(won, l)
				} else if !errors.Is(err, ErrInUse) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 || !answers(t, path) {
			t.Fatalf("%d listen, one answers: %v", len(won), answers(t, path))
		}
		won[0].Close()
	}
}

// Who comes when another one has already taken the path leaves it alone.
func TestCloseRemovesOnlyItsOwn(t *testing.T) {
	path := filepath.Join(private(t), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil { // as servers without manners do
		t.Fatal(err)
	}
	other, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if !answers(t, path) {
		t.Error("the other does not answer any more")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Errorf("with nothing there: %v", err)
	}
}

// A path may be longer than a socket's address, for both sides.
func TestLongPath(t *testing.T) {
	root := private(t)
	for _, length := range []int{maxAddress - 1, maxAddress, maxAddress + 1, 300, 1000} {
		dir := root
		for length-len(dir)-len("/s.sock") > 100 {
			dir = filepath.Join(dir, strings.Repeat("d", 60))
		}
		if n := length - len(dir) - len("/s.sock") - 1; n > 0 {
			dir = filepath.Join(dir, strings.Repeat("e", n))
		}
		path := filepath.Join(dir, "s.sock")
		if len(path) != length {
			t.Fatalf("%s has %d bytes, not %d", path, len(path), length)
		}
		before := open(t)
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		if !answers(t, path) {
			t.Errorf("%d bytes: nobody answers", length)
		}
		if _, err := Listen(path); !errors.Is(err, ErrInUse) {
			t.Errorf("%d bytes: %v", length, err)
		}
		l.Close()
		if after := open(t); after != before {
			t.Errorf("%d open files, %d before", after, before)
		}
	}
}

func TestDialErrors(t *testing.T) {
	dir := private(t)
	stale(t, filepath.Join(dir, "stale"))
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for _, c := range []struct {
		ctx  context.Context
		path string
		want error
	}{
		{context.Background(), filepath.Join(dir, "none"), fs.ErrNotExist},
		{context.Background(), filepath.Join(dir, "none", "none"), fs.ErrNotExist},
		{context.Background(), filepath.Join(dir, strings.Repeat("d", 100), "none"), fs.ErrNotExist},
		{context.Background(), filepath.Join(dir, "stale"), syscall.ECONNREFUSED},
		{ended, filepath.Join(dir, "stale"), context.Canceled},
	} {
		if _, err := Dial(c.ctx, c.path); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.path, err, c.want)
		}
	}
	for _, path := range []string{"", "relative", "@abstract", "/", "/a\x00b"} {
		if _, err := Dial(context.Background(), path); err == nil {
			t.Errorf("connected to %q", path)
		}
	}
}

func TestRemoveDead(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	living, err := Listen(at("living"))
	if err != nil {
		t.Fatal(err)
	}
	defer living.Close()
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: at("dead")})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if err := os.WriteFile(at("file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path      string
		ok, stays bool
	}{
		{at("living"), true, true}, {at("dead"), true, false}, {at("dead"), true, false}, {at("none/x"), true, false},
		{at("file"), false, true}, {"relative", false, false},
	} {
		if err := RemoveDead(tt.path); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.path, err)
		}
		if _, err := os.Lstat(tt.path); (err == nil) != tt.stays {
			t.Errorf("%s afterwards: %v", tt.path, err)
		}
	}
}
