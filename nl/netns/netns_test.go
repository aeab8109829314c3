package netns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The roles that this binary has in its own tests. None of them needs
// privileges, and all of them are without any on the host.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if role, ok := roles()[os.Args[1]]; ok {
			os.Exit(role(os.Args[2:]))
		}
	}
	os.Exit(m.Run())
}

func roles() map[string]func(args []string) int {
	return map[string]func([]string) int{
		"role=operator":  operator,
		"role=container": container,
		"role=nested":    nested,
		"role=inside":    inside,
		"role=starter":   starter,
		"role=loopback":  loopback,
		"role=sleeper":   func([]string) int { time.Sleep(time.Hour); return 0 },
		"role=exit":      exitWith,
	}
}

// self runs this binary in a role.
func self(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{"role=" + role}, args...)...)
	cmd.Stderr = os.Stderr
	return cmd
}

// withUser gives cmd a user namespace of its own, where it is uid.
func withUser(cmd *exec.Cmd, uid int, flags uintptr) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | flags,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	return cmd
}

// An ordinary user: uid 1000 in a user namespace, which it entered by an
// exec that took all capabilities away.
func TestOperator(t *testing.T) {
	runtime.LockOSThread() // the helpers die with it
	defer runtime.UnlockOSThread()
	out, err := withUser(self("operator"), 1000, 0).Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if string(out) != "ok\n" {
		t.Errorf("operator says:\n%s", out)
	}
}

// running starts a helper that prints a process id and lives until it is
// ended.
func running(cmd *exec.Cmd) (pid int, end func(), err error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, nil, err
	}
	if err := cmd.Start(); err != nil {
		return 0, nil, err
	}
	end = func() { in.Close(); _ = cmd.Wait() }
	line, err := bufio.NewReader(out).ReadString('\n')
	if err == nil {
		pid, err = strconv.Atoi(strings.TrimSpace(line))
	}
	if err != nil {
		end()
	}
	return pid, end, err
}

// container is what lives in the namespaces of a container.
func container([]string) int {
	fmt.Println(os.Getpid())
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// nested has the container in a further user namespace, which owns its network.
func nested([]string) int {
	runtime.LockOSThread()
	pid, end, err := running(withUser(self("container"), 0, unix.CLONE_NEWNET))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(pid)
	_, _ = io.Copy(io.Discard, os.Stdin)
	end()
	return 0
}

func exitWith(args []string) int {
	n, _ := strconv.Atoi(args[0])
	return n
}

// inside reports where it is and whether it can enter a network namespace.
func inside(args []string) int {
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return 1
	}
	ns, err := Open(pid)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	own, err := Current()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	ownID, _ := own.ID()
	var there ID
	err = ns.Do(func() error {
		n, err := Current()
		if err != nil {
			return err
		}
		there, err = n.ID()
		return errors.Join(err, LoopbackUp())
	})
	text, _ := io.ReadAll(os.Stdin)
	fmt.Println(os.Geteuid(), ownID, there, err, NeedsEnter(ns), os.Getenv("X"), string(text))
	fmt.Fprintln(os.Stderr, "to stderr")
	return 7
}

func operator([]string) int {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	failed := 0
	check := func(ok bool, format string, args ...any) {
		if !ok {
			failed++
			fmt.Printf(format+"\n", args...)
		}
	}
	check(os.Geteuid() == 1000, "uid %d", os.Geteuid())
	for _, c := range []struct {
		name string
		cmd  *exec.Cmd
		runs int
	}{
		{"simple", withUser(self("container"), 0, unix.CLONE_NEWNET), 300},
		{"nested", withUser(self("nested"), 0, 0), 20},
	} {
		pid, end, err := running(c.cmd)
		if err != nil {
			check(false, "%s: %v", c.name, err)
			continue
		}
		operate(c.name, pid, c.runs, check)
		end()
		_, err = Open(pid)
		check(errors.Is(err, os.ErrNotExist) && strings.Contains(err.Error(), "has ended"), "%s: open a process that ended: %v", c.name, err)
	}
	if failed > 0 {
		return 1
	}
	fmt.Println("ok")
	return 0
}

func operate(name string, pid, runs int, check func(bool, string, ...any)) {
	ns, err := Open(pid)
	if err != nil {
		check(false, "%s: %v", name, err)
		return
	}
	defer ns.Close()
	own, err := Current()
	if err != nil {
		check(false, "%s: %v", name, err)
		return
	}
	defer own.Close()
	id, _ := ns.ID()
	ownID, _ := own.ID()
	check(id != ownID, "%s: the container has the network of the host", name)
	err = ns.Do(func() error { check(false, "%s: entered without a capability", name); return nil })
	check(errors.Is(err, unix.EPERM) && strings.Contains(err.Error(), "CAP_SYS_ADMIN"), "%s: do: %v", name, err)
	check(NeedsEnter(ns), "%s: enters by itself", name)
	check(!NeedsEnter(own), "%s: cannot enter where it is", name)
	user, err := ns.UserNS()
	if err != nil {
		check(false, "%s: %v", name, err)
		return
	}
	defer user.Close()
	_, err = own.UserNS()
	check(err != nil, "%s: finds a user namespace below the own one that owns the own network", name)

	// The garbage collector, allocations and preemption while forking.
	stop := make(chan struct{})
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			var keep [][]byte
			for {
				select {
				case <-stop:
					return
				default:
				}
				if keep = append(keep, make([]byte, 10_000)); len(keep) > 100 {
					keep = nil
					runtime.GC()
				}
			}
		})
	}
	want := fmt.Sprintf("0 %s %s <nil> false y some text\n", ownID, id)
	for i := range runs {
		code, out, errs, err := run(context.Background(), &Cmd{
			Path: "/proc/self/exe", Args: []string{"self", "role=inside", strconv.Itoa(pid)},
			Env: []string{"X=y"}, UserNS: user,
		}, "some text")
		check(err == nil && code == 7 && out == want && errs == "to stderr\n",
			"%s, run %d: %d, %v, %q (want %q), %q", name, i, code, err, out, want, errs)
		if err != nil {
			break
		}
	}
	close(stop)
	load.Wait()
}

// run runs a command with its streams connected.
func run(ctx context.Context, c *Cmd, input string) (code int, out, errs string, err error) {
	var files [3][2]*os.File // of each stream the program's and our end
	for i := range files {
		r, w, err := os.Pipe()
		if err != nil {
			return 0, "", "", err
		}
		files[i] = [2]*os.File{r, w}
		if i > 0 {
			files[i] = [2]*os.File{w, r}
		}
		defer files[i][0].Close()
		defer files[i][1].Close()
	}
	c.Stdin, c.Stdout, c.Stderr = files[0][0], files[1][0], files[2][0]
	if err := c.Start(ctx); err != nil {
		return 0, "", "", err
	}
	for i := range files {
		files[i][0].Close()
	}
	if _, err := io.WriteString(files[0][1], input); err != nil {
		return 0, "", "", err
	}
	files[0][1].Close()
	o, err1 := io.ReadAll(files[1][1])
	e, err2 := io.ReadAll(files[2][1])
	code, err = c.Wait()
	return code, string(o), string(e), errors.Join(err, err1, err2)
}

func TestCmd(t *testing.T) {
	cmd := func(args ...string) *Cmd {
		return &Cmd{Path: "/proc/self/exe", Args: append([]string{"self"}, args...)}
	}
	t.Run("exit code", func(t *testing.T) {
		for _, want := range []int{0, 1, 42, 255} {
			c := cmd("role=exit", strconv.Itoa(want))
			if err := c.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if code, err := c.Wait(); code != want || err != nil {
					t.Errorf("exit %d: %d, %v", want, code, err)
				}
			}
			if err := c.Start(t.Context()); err == nil {
				t.Error("started twice")
			}
		}
	})
	t.Run("context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		c := cmd("role=sleeper")
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(20*time.Millisecond, cancel)
		if code, err := c.Wait(); code != 128+int(unix.SIGKILL) || err != nil {
			t.Errorf("killed: %d, %v", code, err)
		}
		if err := cmd("role=sleeper").Start(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("start after the end: %v", err)
		}
	})
	t.Run("not executable", func(t *testing.T) {
		before := descriptors(t)
		for path, want := range map[string]error{
			"/nonexistent":    unix.ENOENT,
			"/etc":            unix.EACCES,
			"/with\x00zero":   unix.EINVAL,
			"/proc/self/stat": unix.EACCES,
		} {
			c := &Cmd{Path: path, Args: []string{"x"}}
			if err := c.Start(t.Context()); !errors.Is(err, want) {
				t.Errorf("%q: %v", path, err)
			}
			if _, err := c.Wait(); err == nil {
				t.Errorf("%q: waited for what was not started", path)
			}
		}
		if after := descriptors(t); after > before {
			t.Errorf("%d descriptors before, %d after", before, after)
		}
	})
	t.Run("user namespace", func(t *testing.T) {
		own, err := os.Open("/proc/self/ns/user")
		if err != nil {
			t.Fatal(err)
		}
		defer own.Close()
		c := cmd("role=exit", "0")
		c.UserNS = own // the kernel refuses to enter the own one
		if err := c.Start(t.Context()); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "enter the user namespace") {
			t.Errorf("own user namespace: %v", err)
		}
	})
	t.Run("signals", func(t *testing.T) {
		// The program must not inherit a blocked mask or caught signals.
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		c := &Cmd{Path: "/bin/cat", Args: []string{"cat", "/proc/self/status"}, Stdout: w}
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.Close()
		status, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Wait(); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"SigBlk:\t0000000000000000\n", "SigCgt:\t0000000000000000\n"} {
			if !strings.Contains(string(status), want) {
				t.Errorf("no %q in %s", want, status)
			}
		}
	})
}

func descriptors(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

// starter starts a sleeper by Cmd and prints its id.
func starter([]string) int {
	c := &Cmd{Path: "/proc/self/exe", Args: []string{"self", "role=sleeper"}}
	if err := c.Start(context.Background()); err != nil {
		return 1
	}
	fmt.Println(c.proc.Pid)
	// Threads come and go: only the end of the process may end the child.
	for range 20 {
		_ = onThread(func() error { return nil })
	}
	runtime.GC()
	time.Sleep(50 * time.Millisecond)
	if err := c.proc.Signal(syscall.Signal(0)); err != nil {
		return 2
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	return 3
}

func TestChildDiesWithParent(t *testing.T) {
	pid, end, err := running(self("starter"))
	if err != nil {
		t.Fatal(err)
	}
	stat := filepath.Join("/proc", strconv.Itoa(pid), "stat")
	if _, err := os.Stat(stat); err != nil {
		t.Fatalf("the child is not there: %v", err)
	}
	end()
	for range 500 {
		// Where nobody reaps orphans it stays as a zombie.
		if b, err := os.ReadFile(stat); err != nil || strings.Contains(string(b), ") Z ") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the child lives on after its parent was killed")
}

func TestDo(t *testing.T) {
	before, err := Current()
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	if err := before.Do(func() error { return os.ErrClosed }); err != os.ErrClosed {
		t.Errorf("error of the function: %v", err)
	}
	func() {
		defer func() {
			if p := recover(); !strings.HasPrefix(fmt.Sprint(p), "boom\n") || !strings.Contains(fmt.Sprint(p), "TestDo") {
				t.Errorf("panic: %v", p)
			}
		}()
		_ = before.Do(func() error { panic("boom") })
	}()
	returned := make(chan bool, 1)
	go func() {
		ok := false
		defer func() { returned <- ok }()
		_ = before.Do(func() error { runtime.Goexit(); return nil })
		ok = true
	}()
	if <-returned {
		t.Error("Do returned although its function called Goexit")
	}
	// Each thread ends and none of them is the main one.
	var seen sync.Map
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			_ = before.Do(func() error {
				if unix.Gettid() == os.Getpid() {
					t.Error("on the main thread")
				}
				seen.Store(unix.Gettid(), true)
				return nil
			})
		})
	}
	wg.Wait()
	gone := func() bool {
		left := 0
		seen.Range(func(tid, _ any) bool {
			if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", tid)); err == nil {
				left++
			}
			return true
		})
		return left == 0
	}
	for i := 0; !gone(); i++ {
		if i == 500 {
			t.Fatal("threads stay")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestOpen(t *testing.T) {
	own, err := Current()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	ownID, err := own.ID()
	if err != nil {
		t.Fatal(err)
	}
	byPid, err := Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer byPid.Close()
	if id, err := byPid.ID(); err != nil || id != ownID || id.String() != ownID.String() {
		t.Errorf("opened by process id it is %s, not %s: %v", id, ownID, err)
	}
	for _, path := range []string{"/proc/self/ns/user", "/dev/null", "/nonexistent"} {
		if ns, err := OpenFile(path); err == nil {
			ns.Close()
			t.Errorf("%s is a network namespace", path)
		}
	}
	for _, pid := range []int{0, -1, 1 << 30} {
		if ns, err := Open(pid); err == nil {
			ns.Close()
			t.Errorf("process %d has a network namespace", pid)
		}
	}
	if err := byPid.Close(); err != nil {
		t.Fatal(err)
	}
	if err := byPid.Do(func() error { return nil }); err == nil {
		t.Error("entered a closed namespace")
	}
}

func TestAddLoopbackAddr(t *testing.T) {
	out, err := withUser(self("loopback"), 0, unix.CLONE_NEWNET).Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func loopback([]string) int {
	if err := LoopbackUp(); err != nil {
		fmt.Println(err)
		return 1
	}
	for _, s := range []string{"169.254.1.3", "fd00::3"} {
		a := netip.MustParseAddr(s)
		for range 2 { // again is no error
			if err := AddLoopbackAddr(a); err != nil {
				fmt.Println(err)
				return 1
			}
		}
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		if err != nil {
			fmt.Println(err)
			return 1
		}
		l.Close()
	}
	for _, a := range []netip.Addr{{}, netip.MustParseAddr("fe80::1%lo")} {
		if err := AddLoopbackAddr(a); err == nil {
			fmt.Println("added", a)
			return 1
		}
	}
	return 0
}

// BenchmarkCmd starts this binary and waits until it has ended, by Cmd and by
// os/exec.
func BenchmarkCmd(b *testing.B) {
	b.Run("Cmd", func(b *testing.B) {
		for b.Loop() {
			c := &Cmd{Path: "/proc/self/exe", Args: []string{"self", "role=exit", "0"}}
			if err := c.Start(b.Context()); err != nil {
				b.Fatal(err)
			}
			if _, err := c.Wait(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("exec", func(b *testing.B) {
		for b.Loop() {
			if err := self("exit", "0").Run(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Do", func(b *testing.B) {
		own, err := Current()
		if err != nil {
			b.Fatal(err)
		}
		defer own.Close()
		for b.Loop() {
			if err := own.Do(func() error { return nil }); err != nil {
				b.Fatal(err)
			}
		}
	})
}
