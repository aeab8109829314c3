package bundle

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestBadSupervisor(t *testing.T) {
	b := create(t)
	for _, text := range []string{
		"x", "{}", `{"pid":0,"start":1}`, `{"pid":-1,"start":1}`, `{"pid":1}`, `{"pid":1,"start":1,"control":"x"}`,
		`{"pid":1,"start":1,"events":"x"}`, `{"pid":1,"start":1,"clearance":"./x"}`, `{"pid":1,"start":1,"verdict":"/x\u0000y"}`,
	} {
		put(t, b, FileSupervisor, text)
		if got, err := b.Supervisor(); err == nil || !strings.Contains(err.Error(), "restart the container") {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, s := range []Supervisor{{}, {PID: 1}, {Start: 1}, {PID: 1, Start: 1, Control: "x"}, {PID: 1, Start: 1, Verdict: "x"}} {
		if err := b.SetSupervisor(s); err == nil {
			t.Errorf("wrote %+v", s)
		}
	}
}

func TestSupervisor(t *testing.T) {
	self, err := ProcessOf(os.Getpid(), "0:0")
	if err != nil {
		t.Fatal(err)
	}
	s := Supervisor{PID: self.PID, Start: self.Start}
	if !s.Alive() || s.Sockets() != nil {
		t.Errorf("alive %t, sockets %q", s.Alive(), s.Sockets())
	}
	s.Start++
	s.Control, s.Verdict = "/a", "/b"
	if s.Alive() || !slices.Equal(s.Sockets(), []string{"/a", "/b"}) {
		t.Errorf("another process is taken for it: %t; sockets %q", s.Alive(), s.Sockets())
	}
	// However deep the directories are.
	b := create(t)
	long := "/" + strings.Repeat(`"`, 4095)
	s = Supervisor{1, 1, long, long, long, long}
	if err := b.SetSupervisor(s); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Supervisor(); got != s || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	for range 2 {
		if err := b.RemoveSupervisor(); err != nil {
			t.Error(err)
		}
	}
}

func TestReaderPID(t *testing.T) {
	b := create(t)
	for text, want := range map[string]int{"42\n": 42, "42": 42, "": 0, "0": 0, "-1\n": 0, "self": 0, "42 43": 0} {
		put(t, b, FileReaderPID, text)
		if pid, err := b.ReaderPID(); pid != want || err != nil {
			t.Errorf("%q: %d, %v", text, pid, err)
		}
	}
	for range 2 {
		if err := b.RemoveReaderPID(); err != nil {
			t.Error(err)
		}
	}
	if err := os.Symlink("/proc/sys/kernel/pid_max", filepath.Join(b.Path(), FileReaderPID)); err != nil {
		t.Fatal(err)
	}
	if pid, err := b.ReaderPID(); pid != 0 || err == nil {
		t.Errorf("through a symbolic link: %d, %v", pid, err)
	}
}
