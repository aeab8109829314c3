package bundle

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestUnsettled(t *testing.T) {
	b := create(t)
	for _, want := range []bool{false, true, true, false, false} {
		if err := b.SetUnsettled(want); err != nil {
			t.Fatal(err)
		}
		if got, err := b.Unsettled(); got != want || err != nil {
			t.Errorf("%t, %v; want %t", got, err, want)
		}
	}
	// A mark that cannot be read must not look like none.
	if err := os.Symlink("none", filepath.Join(b.Path(), FileUnsettled)); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Unsettled(); err == nil {
		t.Errorf("through a symbolic link: %t", got)
	}
}

func TestProfileCache(t *testing.T) {
	b := create(t)
	names := []string{"base", "dev-standard"}
	if err := b.SetProfileNames(names); err != nil {
		t.Fatal(err)
	}
	if got, err := b.ProfileNames(); !slices.Equal(got, names) || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if err := b.SetProfileCache("key"); err != nil {
		t.Fatal(err)
	}
	if _, key, err := b.ProfileCache(); key != "" || err != nil {
		t.Errorf("a cache without addresses has key %q, %v", key, err)
	}
	if err := b.SetProfileAllowed(prefixes("192.0.2.1")); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(b.Path(), FileProfileAllowed), old, old); err != nil {
		t.Fatal(err)
	}
	if age, key, err := b.ProfileCache(); key != "key" || (age-time.Hour).Abs() > time.Minute || err != nil {
		t.Errorf("%v, %q, %v", age, key, err)
	}
}

func TestDnsmasqFiles(t *testing.T) {
	b := create(t)
	if conf, err := b.DnsmasqConf(); conf != nil || err != nil {
		t.Errorf("without the file: %q, %v", conf, err)
	}
	if pid, err := b.DnsmasqPID(); pid != 0 || err != nil {
		t.Errorf("without the file: %d, %v", pid, err)
	}
	put(t, b, FileDnsmasqConf, "port=53\n")
	if conf, err := b.DnsmasqConf(); string(conf) != "port=53\n" || err != nil {
		t.Errorf("%q, %v", conf, err)
	}
	for text, want := range map[string]int{"42\n": 42, "42": 42, "": 0, "0": 0, "-1\n": 0, "self": 0, "42 43": 0} {
		put(t, b, FileDnsmasqPID, text)
		b.uid++ // dnsmasq writes it as its own user
		pid, err := b.DnsmasqPID()
		b.uid--
		if pid != want || err != nil {
			t.Errorf("%q: %d, %v", text, pid, err)
		}
	}
	put(t, b, FileResolvConf, "nameserver 127.0.0.1\n")
	for range 2 {
		if err := b.RemoveDnsmasq(); err != nil {
			t.Error(err)
		}
		if names := list(t, b); names != nil {
			t.Errorf("left are %q", names)
		}
	}
	path := filepath.Join(b.Path(), FileDnsmasqPID)
	for name, do := range map[string]func() error{
		"symbolic link": func() error { return os.Symlink("/proc/sys/kernel/pid_max", path) },
		"FIFO":          func() error { return syscall.Mkfifo(path, 0o600) },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
		if pid, err := b.DnsmasqPID(); pid != 0 || err == nil {
			t.Errorf("%s: %d, %v", name, pid, err)
		}
		if err := b.RemoveDnsmasqPID(); err != nil {
			t.Fatal(err)
		}
	}
}

// dnsmasq's log is read whoever owns it, but only if it is a file of the
// directory itself.
func TestQueryLog(t *testing.T) {
	b := create(t)
	open := func() (string, error) {
		f, err := b.OpenQueryLog()
		if err != nil {
			return "", err
		}
		defer f.Close()
		data, err := io.ReadAll(f)
		return string(data), err
	}
	if got, err := open(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without the file: %q, %v", got, err)
	}
	put(t, b, FileQueryLog, "text\n")
	b.uid++ // it is another user's
	if got, err := open(); got != "text\n" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	b.uid--
	path := filepath.Join(b.Path(), FileQueryLog)
	for name, do := range map[string]func() error{
		"symbolic link": func() error { return os.Symlink("/proc/sys/kernel/pid_max", path) },
		"FIFO":          func() error { return syscall.Mkfifo(path, 0o600) },
		"directory":     func() error { return os.Mkdir(path, 0o700) },
	} {
		if err := errors.Join(os.Remove(path), do()); err != nil {
			t.Fatal(err)
		}
		if got, err := open(); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// A process id alone names another process once it has been used again.
func TestProcessOf(t *testing.T) {
	// A name that looks like the fields after it.
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(t.TempDir(), "x) Z 1 (")
	if err := os.Symlink(sleep, exe); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "60")
	cmd.Args[0] = "sleep" // for multi-call programs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	p, err := ProcessOf(cmd.Process.Pid, "4:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.check(); err != nil || p.PID != cmd.Process.Pid || p.NetNS != "4:1" {
		t.Errorf("%+v, %v", p, err)
	}
	other := p
	other.Start++
	if !p.Alive() || other.Alive() {
		t.Errorf("alive %t, with another start time %t", p.Alive(), other.Alive())
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); p.Alive(); time.Sleep(time.Millisecond) { // a zombie until Wait
		if time.Since(start) > 10*time.Second {
			t.Fatal("killed, but alive")
		}
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("%v", err)
	}
	if _, err := ProcessOf(p.PID, "4:1"); p.Alive() || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ended: alive %t, %v", p.Alive(), err)
	}
}

func TestRulesetFormat(t *testing.T) {
	b := create(t)
	if n, err := b.RulesetFormat(); n != 0 || err != nil {
		t.Errorf("without the file: %d, %v", n, err)
	}
	if err := b.SetRulesetFormat(7); err != nil {
		t.Fatal(err)
	}
	if n, err := b.RulesetFormat(); n != 7 || err != nil {
		t.Errorf("%d, %v; want 7", n, err)
	}
	for _, bad := range []string{"x\n", "0\n", "-1\n", "1 2\n"} {
		if err := os.WriteFile(filepath.Join(b.Path(), FileRulesetFormat), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if n, err := b.RulesetFormat(); err == nil {
			t.Errorf("%q: %d", bad, n)
		}
	}
}
