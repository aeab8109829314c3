package clearance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// look runs Hubs and returns what it tells.
func look(t *testing.T, dir string) <-chan []Hub {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	found := make(chan []Hub, 10_000)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := Hubs(ctx, dir, func(h []Hub) { found <- h }); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return found
}

// paths are those of hubs below a directory.
func paths(dir string, hubs []Hub) []string {
	out := []string{}
	for _, h := range hubs {
		out = append(out, strings.TrimPrefix(h.Path, dir+"/"))
	}
	return out
}

// socket makes one without a server, as a server does that is killed.
func socket(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

// do does something to files, which has to succeed.
func do(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestHubs(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "run")
	do(t, os.Mkdir(dir, 0o700))
	hubs := filepath.Join(dir, "terok", "clearance")
	found := look(t, dir)
	var last []Hub
	wants := func(want ...string) {
		t.Helper()
		begin := time.Now()
		// Several changes may be told of one by one.
		for {
			last = get(t, found)
			if cmp.Equal(append([]string{}, want...), paths(dir, last)) {
				break
			}
			if time.Since(begin) > patience {
				t.Fatalf("%v, want %v", paths(dir, last), want)
			}
		}
		if took := time.Since(begin); took > rescan/2 {
			t.Errorf("%v was found after %v", want, took)
		}
	}
	silent := func() {
		t.Helper()
		if len(found) > 0 {
			t.Errorf("told of %v", paths(dir, <-found))
		}
	}

	wants()
	socket(t, filepath.Join(hubs, "b.sock")) // with two directories that are new
	wants("terok/clearance/b.sock")
	socket(t, UserSocketPath(dir))
	wants("terok-clearance.sock", "terok/clearance/b.sock")
	socket(t, filepath.Join(hubs, "c", "hub.sock"))
	socket(t, filepath.Join(hubs, "a.sock"))
	wants("terok-clearance.sock", "terok/clearance/a.sock", "terok/clearance/b.sock", "terok/clearance/c/hub.sock")

	// What is none.
	do(t,
		os.WriteFile(filepath.Join(hubs, "file.sock"), nil, 0o600),
		os.Mkdir(filepath.Join(hubs, "dir.sock"), 0o700),
		os.Symlink("nowhere", filepath.Join(hubs, "dangling.sock")),
	)
	socket(t, filepath.Join(hubs, ".hidden.sock"))
	socket(t, filepath.Join(hubs, "other"))
	socket(t, filepath.Join(hubs, "c", "other.sock"))
	socket(t, filepath.Join(hubs, "c", "deeper", "hub.sock"))
	socket(t, filepath.Join(dir, "terok", "a.sock"))
	socket(t, filepath.Join(dir, "other.sock"))
	// A link is as good as what it leads to.
	do(t, os.Symlink("../a.sock", filepath.Join(hubs, "link.sock")))
	wants("terok-clearance.sock", "terok/clearance/a.sock", "terok/clearance/b.sock", "terok/clearance/c/hub.sock", "terok/clearance/link.sock")
	do(t, os.Remove(filepath.Join(hubs, "link.sock")))
	wants("terok-clearance.sock", "terok/clearance/a.sock", "terok/clearance/b.sock", "terok/clearance/c/hub.sock")
	silent()

	// One that was made again is another one, and the others are the same.
	before := last
	do(t, os.Remove(filepath.Join(hubs, "b.sock")))
	socket(t, filepath.Join(hubs, "b.sock"))
	wants("terok-clearance.sock", "terok/clearance/a.sock", "terok/clearance/b.sock", "terok/clearance/c/hub.sock")
	for i := range last {
		if same, want := last[i] == before[i], i != 2; same != want {
			t.Errorf("%s is the same: %v", last[i].Path, same)
		}
	}
	before = last
	socket(t, filepath.Join(root, "new"))
	do(t, os.Rename(filepath.Join(root, "new"), filepath.Join(hubs, "a.sock")))
	wants("terok-clearance.sock", "terok/clearance/a.sock", "terok/clearance/b.sock", "terok/clearance/c/hub.sock")
	if last[1] == before[1] {
		t.Error("one that was replaced is the same")
	}

	// Directories go and come.
	do(t, os.RemoveAll(filepath.Join(hubs, "c")))
	wants("terok-clearance.sock", "terok/clearance/a.sock", "terok/clearance/b.sock")
	do(t, os.Rename(hubs, filepath.Join(root, "away")))
	wants("terok-clearance.sock")
	socket(t, filepath.Join(root, "away", "d.sock"))
	socket(t, filepath.Join(hubs, "e.sock"))
	wants("terok-clearance.sock", "terok/clearance/e.sock")
	do(t, os.RemoveAll(filepath.Join(dir, "terok")))
	wants("terok-clearance.sock")
	do(t, os.Rename(filepath.Join(root, "away"), filepath.Join(root, "terok")), os.Mkdir(filepath.Join(root, "terok", "clearance"), 0o700))
	do(t, os.Rename(filepath.Join(root, "terok", "a.sock"), filepath.Join(root, "terok", "clearance", "a.sock")))
	do(t, os.Rename(filepath.Join(root, "terok"), filepath.Join(dir, "terok")))
	wants("terok-clearance.sock", "terok/clearance/a.sock")
	silent()
}

// How long it takes from a socket's making to the news of it.
func TestHubsLatency(t *testing.T) {
	dir := t.TempDir()
	found := look(t, dir)
	get(t, found)
	socket(t, filepath.Join(dir, "terok", "clearance", "x", "hub.sock"))
	for range 3 { // until the directories are known
		if len(get(t, found)) == 1 {
			break
		}
	}
	var worst, sum time.Duration
	const n = 200
	for i := range n {
		begin := time.Now()
		socket(t, SocketPath(dir, fmt.Sprint(i)))
		for len(get(t, found)) != i+2 {
		}
		took := time.Since(begin)
		sum += took
		worst = max(worst, took)
	}
	t.Logf("mean %v, worst %v", sum/n, worst)
	if sum/n > 50*time.Millisecond {
		t.Errorf("%v in the mean", sum/n)
	}
}

// Without the system's help it takes up to two seconds.
func TestHubsPolling(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run") // which is not there yet
	found := look(t, dir)
	if got := get(t, found); len(got) > 0 {
		t.Error(got)
	}
	socket(t, SocketPath(dir, "a"))
	if got := paths(dir, get(t, found)); !cmp.Equal(got, []string{"terok/clearance/a.sock"}) {
		t.Error(got)
	}

	w := &watcher{root: dir}
	if got := paths(dir, w.scan()); !cmp.Equal(got, []string{"terok/clearance/a.sock"}) {
		t.Errorf("without inotify: %v", got)
	}
	begin := time.Now()
	w.wait(context.Background(), 20*time.Millisecond)
	if took := time.Since(begin); took < 20*time.Millisecond {
		t.Errorf("waited for %v", took)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w.wait(ctx, patience)
}

// When so much happened that the system lost count, all is looked at again.
func TestHubsOverflow(t *testing.T) {
	dir := t.TempDir()
	limit, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscan(string(limit), &n); err != nil {
		t.Fatal(err)
	}
	n = min(n, 1<<16) // where more fit, no event is lost
	ctx, cancel := context.WithCancel(context.Background())
	first, goOn := make(chan struct{}), make(chan struct{})
	found := make(chan []Hub, 100)
	var wg sync.WaitGroup
	wg.Go(func() {
		begin := sync.OnceFunc(func() { close(first); <-goOn })
		if err := Hubs(ctx, dir, func(h []Hub) { begin(); found <- h }); err != nil {
			t.Error(err)
		}
	})
	defer func() { cancel(); wg.Wait() }()
	<-first
	for range n/2 + 10 { // two events each, of which none matters
		name := filepath.Join(dir, "other")
		do(t, os.WriteFile(name, nil, 0o600), os.Remove(name))
	}
	socket(t, SocketPath(dir, "a"))
	begin := time.Now()
	close(goOn)
	for len(get(t, found)) != 1 {
	}
	if took := time.Since(begin); took > rescan {
		t.Errorf("found after %v", took)
	}
}

// Whatever the system tells, it is read without fault.
func FuzzMatters(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00terok\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("\xff\xff\xff\xff\x00\x40\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	w := &watcher{root: "/run", dirs: map[int32]string{1: "/run", 2: "/run/terok", 3: "/run/terok/clearance"}}
	f.Fuzz(func(_ *testing.T, events []byte) { w.matters(events) })
}

func TestMatters(t *testing.T) {
	w := &watcher{root: "/run", dirs: map[int32]string{1: "/run", 2: "/run/terok", 3: "/run/terok/clearance"}}
	event := func(wd byte, mask uint16, name string) string {
		padded := name + strings.Repeat("\x00", (16-len(name)%16)%16)
		return string([]byte{wd, 0, 0, 0, byte(mask), byte(mask >> 8), 0, 0, 0, 0, 0, 0, byte(len(padded)), 0, 0, 0}) + padded
	}
	other := event(1, syscall.IN_CREATE, "other")
	for _, c := range []struct {
		events string
		want   bool
	}{
		{"", false},
		{other, false},
		{event(1, syscall.IN_CREATE, "terok"), true},
		{event(1, syscall.IN_CREATE, "terok-clearance.sock"), true},
		{event(1, syscall.IN_CREATE, "terok-shield-events.sock"), false},
		{event(2, syscall.IN_CREATE, "events"), false},
		{event(2, syscall.IN_CREATE, "clearance"), true},
		{event(3, syscall.IN_DELETE, "a.sock"), true},
		{event(3, syscall.IN_DELETE_SELF, ""), true},
		{event(9, syscall.IN_CREATE, "a.sock"), false},
		{other + other + event(3, syscall.IN_MOVED_TO, "a.sock"), true},
		{other + event(255, syscall.IN_Q_OVERFLOW, ""), true},
	} {
		if got := w.matters([]byte(c.events)); got != c.want {
			t.Errorf("%q: %v", c.events, got)
		}
	}
}

// Nothing stays open.
func TestHubsEnds(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	dir := t.TempDir()
	socket(t, SocketPath(dir, "a"))
	before := count()
	for range 20 {
		ctx, cancel := context.WithCancel(context.Background())
		if err := Hubs(ctx, dir, func([]Hub) { cancel() }); err != nil {
			t.Error(err)
		}
		cancel()
	}
	if after := count(); after > before {
		t.Errorf("%d open files, %d before", after, before)
	}
	if err := Hubs(context.Background(), "relative", nil); err == nil {
		t.Error("looked for hubs in a relative directory")
	}
}
