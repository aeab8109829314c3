package child

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/wire/bundle"
)

// TestMain is also the processes that are started: "test NAME ROLE", with
// a pipe as their only file.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv("CHILD_TEST_HOLD") != "":
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	case os.Args[0] != Name:
		os.Exit(m.Run())
	}
	role := os.Args[len(os.Args)-1]
	if err := CloseOnExec(); err != nil {
		os.Exit(3)
	}
	end := make(chan os.Signal, 1)
	switch role {
	case "stubborn":
		signal.Ignore(SignalEnd)
		time.AfterFunc(time.Hour, func() {})
	case "willing":
		signal.Notify(end, SignalEnd)
	case "renewed": // has another one take its place when it is told to end
		signal.Notify(end, SignalEnd)
		go func() {
			<-end
			_, _ = Start(Command{Args: append(slices.Clone(os.Args[1:len(os.Args)-1]), "willing"), Files: []int{3}})
			os.Exit(0)
		}()
	}
	f, err := Pollable(3)
	if err != nil {
		os.Exit(4)
	}
	f.Write([]byte("x"))
	if role == "told" { // what it was given
		dir, _ := os.Getwd()
		fmt.Fprintf(f, "%s %q", dir, os.Environ())
		os.Exit(0)
	}
	<-end
	os.Exit(0)
}

// start starts a process and returns when it is ready. alive is closed when
// it and all that it has started have ended.
func start(t *testing.T, role string) (p *os.Process, alive *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	fd, err := Duplicate(w)
	if err != nil {
		t.Fatal(err)
	}
	p, err = Start(Command{Args: []string{"test", t.Name(), role}, Files: []int{fd}, Session: true})
	syscall.Close(fd)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Kill(); p.Wait() })
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return p, r
}

// A process has the environment and the directory that it is given, and
// otherwise none.
func TestGiven(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, tt := range []struct {
		c    Command
		want string
	}{
		{Command{}, "x/ []"},
		{Command{Dir: ".", Env: []string{"A=b c", "D="}}, "x" + dir + ` ["A=b c" "D="]`},
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		tt.c.Args, tt.c.Files = []string{"test", t.Name(), "told"}, []int{int(w.Fd())}
		p, err := Start(tt.c)
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || string(got) != tt.want {
			t.Errorf("%s, want %s (%v)", got, tt.want, err)
		}
		p.Wait()
		r.Close()
	}
}

func named(t *testing.T) func([]string) bool {
	return func(args []string) bool { return len(args) == 3 && args[0] == "test" && args[1] == t.Name() }
}

func find(t *testing.T) []*Process {
	t.Helper()
	found, err := Find(named(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Release(found) })
	return found
}

func TestFind(t *testing.T) {
	if found := find(t); len(found) > 0 {
		t.Fatalf("%v is there already", found)
	}
	p, _ := start(t, "willing")
	found := find(t)
	if len(found) != 1 || found[0].PID != p.Pid || !slices.Equal(found[0].Args, []string{"test", t.Name(), "willing"}) {
		t.Fatalf("found %v, want %d", found, p.Pid)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	cancel(stop)
	if err := found[0].Wait(ctx); !errors.Is(err, stop) {
		t.Errorf("wait for one that lives: %v", err)
	}
	if err := found[0].Signal(SignalEnd); err != nil {
		t.Error(err)
	}
	if err := found[0].Wait(t.Context()); err != nil {
		t.Error(err)
	}
	// It has ended, whether it was waited for or not.
	if left := find(t); len(left) > 0 {
		t.Errorf("found %v", left)
	}
	p.Wait()
	if err := found[0].Signal(SignalEnd); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal one that has ended: %v", err)
	}
	if err := found[0].Wait(t.Context()); err != nil {
		t.Errorf("wait again: %v", err)
	}
}

// A process has no arguments for a moment while it is started: it is found
// nevertheless.
func TestFindAtOnce(t *testing.T) {
	for i := range 300 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Args = []string{Name, "test", t.Name()}
		cmd.Env = []string{"CHILD_TEST_HOLD=1"}
		hold, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		found, err := Find(func(args []string) bool { return slices.Equal(args, cmd.Args[1:]) })
		Release(found)
		hold.Close()
		cmd.Wait()
		if err != nil || len(found) != 1 {
			t.Fatalf("the %d. time: found %d, %v", i+1, len(found), err)
		}
	}
}

// A process that looks like ours in another pid namespace is not.
func TestFindImitation(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{Name, "test", t.Name(), "willing"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd.ExtraFiles = []*os.File{w}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if found := find(t); len(found) > 0 {
		t.Errorf("found %v", found)
	}
}

func TestEnd(t *testing.T) {
	for _, tt := range []struct {
		role string
		slow bool
	}{{"willing", false}, {"renewed", false}, {"stubborn", true}} {
		t.Run(tt.role, func(t *testing.T) {
			p, alive := start(t, tt.role)
			go p.Wait()
			started := time.Now()
			n, err := End(t.Context(), named(t))
			if n != 1 || err != nil {
				t.Errorf("ended %d, %v", n, err)
			}
			if d := time.Since(started); (d >= grace) != tt.slow {
				t.Errorf("it took %v", d)
			}
			if _, err := io.ReadAll(alive); err != nil { // ends when nobody has it
				t.Error(err)
			}
			if n, err := End(t.Context(), named(t)); n != 0 || err != nil {
				t.Errorf("again: %d, %v", n, err)
			}
		})
	}
	t.Run("given up", func(t *testing.T) {
		start(t, "stubborn")
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("enough")
		cancel(why)
		if _, err := End(ctx, named(t)); !errors.Is(err, why) {
			t.Errorf("%v", err)
		}
	})
}

// Programs of others are found by all of their command line, and get the
// signal that everybody knows.
func TestEndOther(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"/usr/bin/other", "stays", t.Name()}
	cmd.Env = []string{"CHILD_TEST_HOLD=1"}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waited := make(chan error, 1)
	go func() { waited <- cmd.Wait() }()
	match := func(args []string) bool { return slices.Equal(args, cmd.Args) }
	found, err := FindOther(match)
	if err != nil || len(found) != 1 || found[0].PID != cmd.Process.Pid || !slices.Equal(found[0].Args, cmd.Args) {
		t.Errorf("found %v, %v, want %d", found, err, cmd.Process.Pid)
	}
	Release(found)
	if found, err := Find(match); err != nil || len(found) > 0 {
		t.Errorf("taken for one of ours: %v, %v", found, err)
	}
	if n, err := EndOther(t.Context(), match); n != 1 || err != nil {
		t.Errorf("ended %d, %v", n, err)
	}
	if err := <-waited; err == nil || err.Error() != "signal: terminated" {
		t.Errorf("%v", err)
	}
	if n, err := EndOther(t.Context(), match); n != 0 || err != nil {
		t.Errorf("ended %d, %v", n, err)
	}
}

// A number alone does not make a process.
func TestOpen(t *testing.T) {
	p, _ := start(t, "willing")
	its, err := bundle.ProcessOf(p.Pid, "")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Open(p.Pid, its.Start)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if _, err := Open(p.Pid, its.Start+1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("with another start: %v", err)
	}
	p.Kill()
	if err := got.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := Open(p.Pid, its.Start); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one that has ended and was not waited for: %v", err)
	}
	p.Wait()
	if _, err := Open(p.Pid, its.Start); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one that is gone: %v", err)
	}
}

// What is let go comes back.
func TestTrim(t *testing.T) {
	size := func() (kB int) {
		data, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(data), "RssFile:")
		kB, err = strconv.Atoi(strings.Fields(rest)[0])
		if err != nil {
			t.Fatal(err)
		}
		return kB
	}
	before := size()
	Trim()
	if after := size(); after >= before {
		t.Errorf("%d kB of files before, %d kB after", before, after)
	}
}

func TestClean(t *testing.T) {
	const smaps = `00400000-00800000 r-xp 00000000 fe:00 123                            /opt/a b
Rss:                1000 kB
Anonymous:             0 kB
VmFlags: rd ex mr
00800000-00900000 r--p 00400000 fe:00 123                            /opt/a b
Anonymous:             4 kB
00900000-00a00000 rw-p 00500000 fe:00 123                            /opt/a b
Anonymous:             0 kB
00a00000-00b00000 r--p 00500000 fe:00 124                            /opt/b
Anonymous:             0 kB
00b00000-00c00000 r--p 00500000 fe:00 123                            /opt/a b
Anonymous:             0 kB
c000000000-c000400000 r--p 00000000 00:00 0
Anonymous:             0 kB
`
	want := []mapping{{0x400000, 0x800000}, {0xb00000, 0xc00000}}
	if d := cmp.Diff(want, clean(smaps, "/opt/a b"), cmp.AllowUnexported(mapping{})); d != "" {
		t.Error(d)
	}
}
