package roster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// here is this process as a container, and its namespace.
func here(t *testing.T) (Member, string) {
	t.Helper()
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	id, err := ns.ID()
	if err != nil {
		t.Fatal(err)
	}
	p, err := bundle.ProcessOf(os.Getpid(), id.String())
	if err != nil {
		t.Fatal(err)
	}
	return Member{StateDir: "/sd/one", ID: "0123456789ab", PID: p.PID, Start: p.Start}, id.String()
}

func locked(t *testing.T, path string) *File {
	t.Helper()
	f, err := Lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFile(t *testing.T) {
	m, ns := here(t)
	path := Path(t.TempDir(), ns)
	if r, err := Read(path); err != nil || r.Owner != "" {
		t.Errorf("a missing one is %v, %v", r, err)
	}
	f := locked(t, path)
	want := Roster{Owner: "/sd/one", Members: []Member{m, {StateDir: "/sd/two", PID: m.PID, Start: m.Start + 1}}}
	for range 2 {
		if err := f.Write(want); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if alive := got.Alive(ns); len(alive) != 1 || alive[0] != m {
		t.Errorf("alive are %v", alive)
	}
	if alive := got.Alive("1:2"); len(alive) > 0 {
		t.Errorf("alive in another namespace are %v", alive)
	}
	if err := errors.Join(f.Remove(), f.Remove()); err != nil {
		t.Error(err)
	}
	f.Unlock()
	if left, _ := filepath.Glob(filepath.Dir(path) + "/*"); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

// Nobody changes it at the same time, also if it is removed meanwhile.
func TestLock(t *testing.T) {
	m, ns := here(t)
	path := Path(t.TempDir(), ns)
	var all sync.WaitGroup
	n := 0
	for i := range 8 {
		all.Go(func() {
			for range 20 {
				f, err := Lock(t.Context(), path)
				if err != nil {
					t.Error(err)
					return
				}
				n++ // the race detector and the count tell
				if i%2 == 0 {
					err = f.Remove()
				} else {
					err = f.Write(Roster{Owner: "/sd/one", Members: []Member{m}})
				}
				f.Unlock()
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if n != 160 {
		t.Errorf("locked %d times", n)
	}
	f := locked(t, path)
	defer f.Unlock()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, err := Lock(ctx, path); !errors.Is(err, why) {
		t.Errorf("a second lock: %v", err)
	}
}

func TestBadFile(t *testing.T) {
	many := fmt.Sprintf(`{"owner":"/sd","members":[%s{"state_dir":"/sd","id":"","pid":1,"start":1}]}`,
		strings.Repeat(`{"state_dir":"/sd","id":"","pid":1,"start":1},`, maxMembers))
	for name, content := range map[string]string{
		"empty":         "",
		"no JSON":       "{",
		"no owner":      `{"members":[]}`,
		"relative":      `{"owner":"sd","members":[]}`,
		"relative too":  `{"owner":"/sd","members":[{"state_dir":"one","pid":1,"start":1}]}`,
		"no process":    `{"owner":"/sd","members":[{"state_dir":"/sd","pid":0,"start":1}]}`,
		"no start":      `{"owner":"/sd","members":[{"state_dir":"/sd","pid":1}]}`,
		"too many":      many,
		"far too large": strings.Repeat(" ", maxFile+1),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "4-1")
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if r, err := Read(path); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("%v, %v", r, err)
			}
		})
	}
	t.Run("link", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "4-1")
		if err := os.Symlink("/dev/zero", path); err != nil {
			t.Fatal(err)
		}
		if r, err := Read(path); err == nil {
			t.Errorf("%v", r)
		}
	})
}

func TestBadDirectory(t *testing.T) {
	for name, prepare := range map[string]func(dir string) error{
		"open to others": func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o770)) },
		"link":           func(dir string) error { return os.Symlink(os.TempDir(), dir) },
		"file":           func(dir string) error { return os.WriteFile(dir, nil, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "net")
			if err := prepare(dir); err != nil {
				t.Fatal(err)
			}
			if f, err := Lock(t.Context(), filepath.Join(dir, "4-1")); err == nil {
				f.Unlock()
				t.Error("locked")
			}
		})
	}
}

// What a crash left is removed, and nothing else.
func TestPurge(t *testing.T) {
	m, _ := here(t)
	dead := m
	dead.Start++
	root := t.TempDir()
	write := func(ns string, members ...Member) {
		f := locked(t, Path(root, ns))
		defer f.Unlock()
		if members == nil {
			return // only a lock
		}
		if err := f.Write(Roster{Owner: "/sd", Members: members}); err != nil {
			t.Fatal(err)
		}
	}
	write("4:1", dead)
	write("4:2", dead, m)
	write("4:3", dead)
	write("4:4", dead)
	write("4:5")
	held := locked(t, Path(root, "4:3"))
	defer held.Unlock()
	Purge(Path(root, "4:4"))
	entries, err := os.ReadDir(filepath.Dir(Path(root, "4:1")))
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if d := cmp.Diff([]string{"4-2", "4-2.lock", "4-3", "4-3.lock", "4-4", "4-4.lock"}, left); d != "" {
		t.Error(d)
	}
	Purge(filepath.Join(root, "missing", "4-1"))
}
