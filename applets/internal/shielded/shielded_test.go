package shielded

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// host has state directories and a Podman.
type host struct {
	Finder
	t   *testing.T
	bin string
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, bin: t.TempDir()}
	h.Finder = Finder{StateRoot: t.TempDir(), Env: &cmdenv.Env{EUID: os.Geteuid(), Vars: map[string]string{"PATH": h.bin}}}
	h.podman("Error: no such container", nil)
	return h
}

// podman is what it says about the one container that it knows.
func (h *host) podman(names string, answer map[string]string) {
	h.t.Helper()
	script := "#!/bin/sh\nfor last; do :; done\ncase $last in\n"
	for name, a := range answer {
		script += name + ") echo '" + a + "'; exit;;\n"
	}
	script += "esac\necho '" + names + "' >&2\nexit 125\n"
	if err := os.WriteFile(filepath.Join(h.bin, "podman"), []byte(script), 0o700); err != nil {
		h.t.Fatal(err)
	}
}

// container makes a state directory as the hook leaves it.
func (h *host) container(name, id string, p bundle.Process) *bundle.Bundle {
	h.t.Helper()
	b, err := bundle.Create(h.Dir(name))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { b.Close() })
	if id != "" {
		err = b.SetContainerID(id)
	}
	if p.PID != 0 {
		err = errors.Join(err, b.SetProcess(p))
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

// processes are one that lives and one that does not.
func processes(t *testing.T) (living, dead bundle.Process) {
	t.Helper()
	living, err := bundle.ProcessOf(os.Getpid(), "4:1")
	if err != nil {
		t.Fatal(err)
	}
	dead = living
	dead.Start++
	return living, dead
}

func inspected(name, id, dir string, pid int) string {
	return fmt.Sprintf(`[{"Id":%q,"Name":%q,"State":{"Pid":%d},"Config":{"Annotations":{"terok.shield.state_dir":%q}}}]`, id, name, pid, dir)
}

func TestLocate(t *testing.T) {
	living, dead := processes(t)
	const (
		id    = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
		other = "fedcba987654"
		ended = "aaaaaaaaaaaa"
	)
	h := newHost(t)
	away := t.TempDir() // where an orchestrator keeps its containers' state
	if err := os.Chmod(away, 0o700); err != nil {
		t.Fatal(err)
	}
	h.container("demo", id[:12], living)
	h.container("ended", ended, dead)
	h.container("prepared", "", bundle.Process{})
	h.container("bbbbbbbbbbbb", other, living) // named like an id
	h.container("side", "cccccccccccc", living)
	if err := h.container("side", "cccccccccccc", living).SetOwner(h.Dir("demo")); err != nil {
		t.Fatal(err)
	}
	// Two that claim the same id: neither is believed.
	h.container("twin1", "dddddddddddd", living)
	h.container("twin2", "dddddddddddd", living)
	h.podman("Error: no such container", map[string]string{
		"away": inspected("away", "eeeeeeeeeeee0", away, 7), "eeeeeeeeeeee": inspected("away", "eeeeeeeeeeee0", away, 7),
		"ended": inspected("ended", ended+"0", h.Dir("ended"), 0), ended: inspected("ended", ended+"0", h.Dir("ended"), 0),
		"foreign": inspected("foreign", "ffffffffffff0", "", 8),
	})
	for _, tt := range []struct {
		name string
		only bool
		want Container
		fail string
	}{
		{"demo", false, Container{Dir: h.Dir("demo"), PID: living.PID, NetNS: "4:1"}, ""},
		{id, false, Container{Dir: h.Dir("demo"), PID: living.PID, NetNS: "4:1"}, ""},
		{id[:12], false, Container{Dir: h.Dir("demo"), PID: living.PID, NetNS: "4:1"}, ""},
		{id[:20], true, Container{Dir: h.Dir("demo"), PID: living.PID, NetNS: "4:1"}, ""},
		{id[:11], false, Container{}, "no container 0123456789a"}, // could be any
		{strings.ToUpper(other), false, Container{}, "no container FEDCBA987654"},
		{other, false, Container{Dir: h.Dir("bbbbbbbbbbbb"), PID: living.PID, NetNS: "4:1"}, ""},
		{"bbbbbbbbbbbb", false, Container{Dir: h.Dir("bbbbbbbbbbbb"), PID: living.PID, NetNS: "4:1"}, ""},
		{"ended", false, Container{Dir: h.Dir("ended")}, ""},
		{ended, false, Container{Dir: h.Dir("ended")}, ""},
		{ended, true, Container{Dir: h.Dir("ended")}, ""},
		{"prepared", false, Container{Dir: h.Dir("prepared")}, ""},
		{"side", false, Container{Dir: h.Dir("demo"), PID: living.PID, NetNS: "4:1", Owner: "demo"}, ""},
		{"cccccccccccc", false, Container{Dir: h.Dir("demo"), PID: living.PID, NetNS: "4:1", Owner: "demo"}, ""},
		{"dddddddddddd", false, Container{}, "no container dddddddddddd"},
		{"away", false, Container{Dir: away, PID: 7}, ""},
		{"eeeeeeeeeeee", false, Container{Dir: away, PID: 7}, ""},
		{"away", true, Container{}, "no such file"}, // its state is not there
		{"foreign", false, Container{}, "--state-dir"},
		{"nobody", false, Container{}, "nothing prepared"},
		{"../demo", false, Container{}, "Unsafe container name"},
		{"-demo", false, Container{}, "Unsafe container name"},
		{"", false, Container{}, "Unsafe container name"},
	} {
		f := h.Finder
		f.Only = tt.only
		got, err := f.Locate(t.Context(), tt.name)
		if tt.fail != "" {
			if err == nil || !strings.Contains(err.Error(), tt.fail) {
				t.Errorf("%s: %+v, %v; want %q", tt.name, got, err, tt.fail)
			}
			continue
		}
		tt.want.Name = tt.name
		if d := cmp.Diff(tt.want, got, cmpopts.IgnoreUnexported(Container{})); d != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, d)
		}
	}
}

// What lies in the place of a recorded id harms nobody, and does not hide
// others.
func TestHostileIDs(t *testing.T) {
	living, _ := processes(t)
	h := newHost(t)
	const id = "0123456789ab"
	for name, make := range map[string]func(path string) error{
		"fifo":   func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"link":   func(p string) error { return os.Symlink(filepath.Join(h.Dir("demo"), bundle.FileContainerID), p) },
		"dir":    func(p string) error { return os.Mkdir(p, 0o700) },
		"long":   func(p string) error { return os.WriteFile(p, []byte(strings.Repeat(id, 1000)), 0o600) },
		"empty":  func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"short":  func(p string) error { return os.WriteFile(p, []byte(id[:11]), 0o600) },
		"binary": func(p string) error { return os.WriteFile(p, []byte(id+"\x00\x1b"), 0o600) },
	} {
		h.container(name, "", living)
		if err := make(filepath.Join(h.Dir(name), bundle.FileContainerID)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(h.Dir("file"), []byte(id), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := h.Locate(t.Context(), id); err == nil {
		t.Errorf("found %+v", got)
	}
	h.container("demo", id, living)
	if got, err := h.Locate(t.Context(), id+"cdef"); err != nil || got.Dir != h.Dir("demo") {
		t.Errorf("%+v, %v", got, err)
	}
}
