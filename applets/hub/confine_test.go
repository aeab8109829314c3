package hub

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/applets/internal/reach"
	"github.com/terok-ai/terok-box/nl/confine"
	"github.com/terok-ai/terok-box/nl/confine/confinetest"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/event"
)

// The service is confined on every thread, does its work, and leaves nothing
// but what is asked behind.
func TestConfined(t *testing.T) {
	confinetest.Need(t)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second one finds what the first has left
		cmd, errs := serving(t, dir, (*exec.Cmd).Start)
		client := dialled(t, dir)
		path := clearance.UserSocketPath(dir)
		asked := make(chan struct{}, 10)
		go client.Subscribe(t.Context(), func(e clearance.Event) error {
			if e.Target() == "203.0.113.9" {
				asked <- struct{}{}
			}
			return nil
		})
		if err := event.Emit([]string{event.UserSocketPath(dir)}, block("c", 1, "203.0.113.9", "")); err != nil {
			t.Fatal(err)
		}
		select {
		case <-asked:
		case <-time.After(patience):
			t.Error("it does not ask")
		}
		client.Close()
		confinetest.Confined(t, cmd.Process.Pid)
		if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid)); err != nil || string(name) != Name+"\n" {
			t.Errorf("it is called %q, %v", name, err)
		}
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil || strings.Contains(errs.String(), "level=WARN") {
			t.Errorf("%v: %s", err, errs.String())
		}
		for _, left := range []string{path, event.UserSocketPath(dir)} {
			if _, err := os.Lstat(left); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left: %v", left, err)
			}
		}
		if _, err := os.Stat(filepath.Join(dir, ownDir, pendingFile)); err != nil {
			t.Error(err)
		}
	}
}

// A signal ends it whenever it comes, also before it is confined.
func TestEndsEarly(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 60 {
		cmd, errs := serving(t, dir, (*exec.Cmd).Start)
		ended := make(chan bool)
		go func() { cmd.Wait(); close(ended) }()
		time.Sleep(time.Duration(i) * time.Millisecond / 2)
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(patience):
			t.Fatalf("it goes on: %s", errs.String())
		}
	}
}

// serving is the service, in a process of its own.
func serving(t *testing.T, dir string, start func(*exec.Cmd) error) (cmd *exec.Cmd, errs *bytes.Buffer) {
	t.Helper()
	errs = new(bytes.Buffer)
	cmd = exec.Command("/proc/self/exe", "serve")
	cmd.Args[0] = Name
	cmd.Env = []string{"XDG_RUNTIME_DIR=" + dir}
	cmd.Stderr = errs
	if err := start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd, errs
}

// dialled is a client of the service, once it serves.
func dialled(t *testing.T, dir string) *clearance.Client {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		client, err := clearance.Dial(t.Context(), clearance.UserSocketPath(dir))
		if err == nil {
			return client
		}
		if time.Now().After(end) {
			t.Fatalf("it does not serve: %v", err)
		}
	}
}

// A service manager that refuses it what it would confine itself with does not
// keep it from its work.
func TestConfinedByOthers(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd, errs := serving(t, dir, func(cmd *exec.Cmd) error {
		return confinetest.Under(cmd.Start, unix.EPERM,
			unix.SYS_SECCOMP, unix.SYS_CAPSET, unix.SYS_LANDLOCK_CREATE_RULESET, unix.SYS_LANDLOCK_ADD_RULE, unix.SYS_LANDLOCK_RESTRICT_SELF)
	})
	dialled(t, dir).Close()
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil || !strings.Contains(errs.String(), "this program may do more than it should") {
		t.Errorf("%v: %s", err, errs.String())
	}
}

// What it may do is its own files, to remove its sockets, and to reach others'.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	own := filepath.Join(dir, ownDir)
	if err := os.MkdirAll(own, 0o700); err != nil {
		t.Fatal(err)
	}
	rules := reach.Hub(dir, own)
	confinetest.Refused(t, rules, filepath.Join(own, "file"))
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := rules.Do(func() error {
		if f, err := os.OpenFile(other, os.O_RDWR, 0); err == nil {
			f.Close()
			t.Error("it can write others' files in the user's directory")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if len(rules.Families) != 1 || len(rules.Caps) > 0 || len(rules.Connect) > 0 || confine.ABI() == 0 {
		t.Errorf("%+v", rules)
	}
}
