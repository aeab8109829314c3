// Package confinetest lets tests show that what rules forbid is refused: a
// process under them tries it.
//
// It is for tests only and must never be imported by anything else.
package confinetest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/nl/confine"
)

// role is the second argument of the process that tries.
const role = "confinetest-try"

// Main is to be called first by a TestMain. In a process that is to try it
// does not return.
func Main() {
	if len(os.Args) > 1 && os.Args[1] == role {
		if len(os.Args) > 4 {
			try(os.Args[2], os.Args[3], os.Args[4], os.Args[5:])
		}
		os.Exit(0)
	}
}

// attempt is something that a confined program must fail to do.
type attempt struct {
	name   string
	abi    int  // of Landlock that refuses it; 0: something else does
	anyway bool // it fails here without rules as well
	f      func(t target) error
}

// target is what attempts are about.
type target struct {
	home     string // a directory outside of the rules, with .ssh/id in it
	abstract string // an abstract socket of the parent's
	tcp      string // its listener
}

func attempts() []attempt {
	open := func(flags int, name string) func(target) error {
		return func(t target) error {
			f, err := os.OpenFile(filepath.Join(t.home, name), flags, 0o600)
			if err == nil {
				f.Close()
			}
			return err
		}
	}
	parent := func(format string) string { return fmt.Sprintf(format, os.Getppid()) }
	fd := func(fd int, err error) error {
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	call := func(number uintptr, args ...uintptr) func(target) error {
		args = append(args, 0, 0, 0, 0)
		return func(target) error {
			if _, _, errno := unix.Syscall6(number, args[0], args[1], args[2], args[3], 0, 0); errno != 0 {
				return errno
			}
			return nil
		}
	}
	return []attempt{
		{name: "read a key", abi: 1, f: open(os.O_RDONLY, ".ssh/id")},
		{name: "list a home directory", abi: 1, f: func(t target) error { _, err := os.ReadDir(t.home); return err }},
		{name: "list the root directory", abi: 1, f: func(target) error { _, err := os.ReadDir("/"); return err }},
		{name: "write a file", abi: 1, f: open(os.O_WRONLY, ".ssh/id")},
		{name: "make a file", abi: 1, f: open(os.O_WRONLY|os.O_CREATE, "new")},
		{name: "make a directory", abi: 1, f: func(t target) error { return os.Mkdir(filepath.Join(t.home, "dir"), 0o700) }},
		{name: "make a link", abi: 1, f: func(t target) error { return os.Symlink("/", filepath.Join(t.home, "link")) }},
		{name: "empty a file", abi: 3, f: func(t target) error { return os.Truncate(filepath.Join(t.home, "full"), 0) }},
		{name: "remove a file", abi: 1, f: func(t target) error { return os.Remove(filepath.Join(t.home, "waste")) }},
		{name: "start a shell", abi: 1, f: func(target) error { return exec.Command("/bin/sh", "-c", "exit").Run() }},
		{name: "trace another process", f: func(target) error {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			err := unix.PtraceSeize(os.Getppid())
			if err == nil {
				_ = unix.PtraceInterrupt(os.Getppid())
				_, _ = unix.Wait4(os.Getppid(), nil, 0, nil)
				_ = unix.PtraceDetach(os.Getppid())
			}
			return err
		}},
		{name: "read another process's environment", abi: 1, f: func(target) error { _, err := os.ReadFile(parent("/proc/%d/environ")); return err }},
		{name: "read another process's memory", abi: 1, f: func(target) error {
			f, err := os.Open(parent("/proc/%d/mem"))
			if err == nil {
				f.Close()
			}
			return err
		}},
		{name: "open another process's network", abi: 1, f: func(target) error { return fd(unix.Open(parent("/proc/%d/ns/net"), unix.O_RDONLY, 0)) }},
		{name: "write to the system's settings", abi: 1, f: func(target) error { return fd(unix.Open("/proc/sys/net/ipv4/ip_forward", unix.O_WRONLY, 0)) }},
		{name: "signal another process", abi: 6, f: func(target) error { return unix.Kill(os.Getppid(), 0) }},
		{name: "reach an abstract socket", abi: 6, f: func(t target) error { return dial("unix", t.abstract) }},
		{name: "connect to any port", abi: 4, f: func(t target) error { return dial("tcp", t.tcp) }},
		{name: "listen at any port", abi: 4, f: func(target) error {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err == nil {
				l.Close()
			}
			return err
		}},
		{name: "send raw packets", f: func(target) error { return fd(unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)) }},
		{name: "encrypt in the kernel", anyway: true, f: func(target) error { return fd(unix.Socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0)) }},
		{name: "have all capabilities", f: func(target) error {
			head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			data := [2]unix.CapUserData{{Effective: 1<<unix.CAP_SYS_CHROOT | 1<<unix.CAP_SYS_TIME, Permitted: 1<<unix.CAP_SYS_CHROOT | 1<<unix.CAP_SYS_TIME}}
			return unix.Capset(&head, &data[0])
		}},
		{name: "make a user namespace", f: func(target) error {
			cmd := exec.Command("/proc/self/exe", role)
			cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}
			err := cmd.Start()
			if err == nil {
				_ = cmd.Wait()
			}
			return err
		}},
		{name: "leave its mounts", f: func(target) error { return onThread(func() error { return unix.Unshare(unix.CLONE_NEWNS) }) }},
		{name: "enter another kind of namespace", anyway: true, f: func(target) error {
			return fd(-1, func() error {
				f, err := os.Open("/proc/self/ns/user")
				if err != nil {
					return err
				}
				defer f.Close()
				return onThread(func() error { return unix.Setns(int(f.Fd()), 0) })
			}())
		}},
		{name: "mount", anyway: true, f: func(target) error { return unix.Mount("none", "/proc", "tmpfs", 0, "") }},
		{name: "load a program into the kernel", anyway: true, f: call(unix.SYS_BPF)},
		{name: "watch all of the machine", anyway: true, f: call(unix.SYS_PERF_EVENT_OPEN)},
		{name: "make an io_uring", anyway: true, f: call(unix.SYS_IO_URING_SETUP, 1)},
		{name: "read the kernel's keys", anyway: true, f: call(unix.SYS_KEYCTL, 0, ^uintptr(1), 0)},
	}
}

func dial(network, address string) error {
	c, err := net.Dial(network, address)
	if err == nil {
		c.Close()
	}
	return err
}

// onThread calls f on a thread that ends afterwards.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		done <- onThread(f) // the main thread does not end
		runtime.UnlockOSThread()
	}()
	return <-done
}

// Under calls f on a thread without capabilities, which ends afterwards, to
// which some system calls are refused, as kernels and service managers do. So
// it is with what f starts.
func Under(f func() error, errno unix.Errno, calls ...int) error {
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}}
	for _, call := range calls {
		filter = append(filter,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(call), Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	return onThread(func() error {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return err
		}
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		if err := unix.Capset(&head, &new([2]unix.CapUserData)[0]); err != nil {
			return err
		}
		prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); errno != 0 {
			return errno
		}
		return f()
	})
}

// try tries everything, and prints a line about each of it. Then it prints how
// all of its threads are confined, and what it may do: a name that begins with
// "<" is read, others are written. It has the system calls refused to it first,
// if there are rules.
func try(home, sockets, rules string, may []string) {
	if rules != "" {
		var r confine.Rules
		err := json.Unmarshal([]byte(rules), &r)
		if err == nil {
			err = r.Filter()
		}
		fmt.Printf("filter\t%s\n", outcome(err))
	}
	abstract, tcp, _ := strings.Cut(sockets, ",")
	t := target{home, abstract, tcp}
	for _, a := range attempts() {
		err := a.f(t)
		fmt.Printf("%s\t%s\n", a.name, outcome(err))
	}
	for _, name := range may {
		var err error
		if file, ok := strings.CutPrefix(name, "<"); ok {
			_, err = os.ReadFile(file)
		} else {
			err = errors.Join(os.WriteFile(name+".new", []byte("x"), 0o600), os.Rename(name+".new", name), os.Remove(name))
		}
		fmt.Printf("may %s\t%s\n", name, outcome(err))
	}
	// Threads that were not there when it was started.
	var all sync.WaitGroup
	hold := make(chan struct{})
	for range 8 {
		all.Add(1)
		go func() {
			runtime.LockOSThread()
			all.Done()
			<-hold
		}()
	}
	all.Wait()
	for line := range slices.Values(Threads(os.Getpid())) {
		fmt.Printf("thread\t%s\n", line)
	}
	close(hold)
}

func outcome(err error) string {
	if err == nil {
		return "done"
	}
	if e, ok := errors.AsType[unix.Errno](err); ok {
		return unix.ErrnoName(e)
	}
	return err.Error()
}

// Threads says of each thread of a process how it is confined: the words of
// /proc/PID/status about that, which are those of its thread of the same
// number in the test of another.
func Threads(pid int) (all []string) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		return nil
	}
	for _, task := range tasks {
		status, err := os.ReadFile(task)
		if err != nil {
			continue // it has ended
		}
		var words []string
		for line := range strings.Lines(string(status)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			switch key {
			case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp":
				words = append(words, key+"="+strings.TrimSpace(value))
			}
		}
		all = append(all, strings.Join(words, " "))
	}
	return all
}

// Want is what Threads says of a thread with those capabilities, started from
// this process: who has no CAP_SETPCAP cannot drop the bounding set.
func Want(caps ...int) string {
	var set uint64
	for _, c := range caps {
		set |= 1 << c
	}
	bound := set
	var own, effective uint64
	if _, err := fmt.Sscanf(Threads(os.Getpid())[0], "CapInh=%x CapPrm=%x CapEff=%x CapBnd=%x", new(uint64), new(uint64), &effective, &own); err != nil {
		panic(err)
	}
	if effective&(1<<unix.CAP_SETPCAP) == 0 {
		bound = own
	}
	return fmt.Sprintf("CapInh=%016x CapPrm=%016x CapEff=%016x CapBnd=%016x CapAmb=%016x NoNewPrivs=1 Seccomp=2", 0, set, set, bound, 0)
}

// Confined checks that every thread of a process is confined, and has those
// capabilities and no others.
func Confined(t testing.TB, pid int, caps ...int) {
	t.Helper()
	threads := Threads(pid)
	if len(threads) == 0 {
		t.Errorf("process %d has no threads", pid)
	}
	for _, got := range threads {
		if got != Want(caps...) {
			t.Errorf("a thread of process %d:\n%s, want\n%s", pid, got, Want(caps...))
		}
	}
}

// readyTimeout is for processes that were started to say so.
const readyTimeout = 20 * time.Second

// Ready checks that the log of a pair of processes tells of at least so many
// that are ready, and says of all that they are confined.
func Ready(t testing.TB, log string, processes int) {
	t.Helper()
	confined := fmt.Sprintf("confined=\"landlock %d, seccomp, no new privileges\"", Need(t))
	var text string
	var ready int
	for end := time.Now().Add(readyTimeout); ready < processes; time.Sleep(10 * time.Millisecond) {
		data, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		text = string(data)
		if ready = strings.Count(text, "msg=ready"); ready < processes && time.Now().After(end) {
			t.Fatalf("%d processes are ready:\n%s", ready, text)
		}
	}
	if n := strings.Count(text, confined); n != ready {
		t.Errorf("%d of %d processes say %s:\n%s", n, ready, confined, text)
	}
}

// Need fails a test where the kernel has no Landlock.
func Need(t testing.TB) (abi int) {
	t.Helper()
	if abi = confine.ABI(); abi == 0 {
		t.Fatal("this kernel has no Landlock, or has it turned off: it needs CONFIG_SECURITY_LANDLOCK, and landlock in CONFIG_LSM or in lsm= on its command line")
	}
	return abi
}

// Refused starts a process under rules, which must fail in everything that
// nobody may, and succeed in what the rules are for: to read files whose name
// begins with "<", and to make, rename and remove others. It must have the
// rules' capabilities on all of its threads.
func Refused(t *testing.T, r confine.Rules, may ...string) {
	t.Helper()
	abi := Need(t)
	rules, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	got := run(t, func(cmd *exec.Cmd) error { return r.Do(cmd.Start) }, string(rules), may)
	if out := got.outcomes["filter"]; out != "done" {
		t.Errorf("have system calls refused: %s", out)
	}
	for _, a := range attempts() {
		out := got.outcomes[a.name]
		if a.abi > abi || a.name == "reach an abstract socket" && r.Abstract {
			continue
		}
		if out != "EACCES" && out != "EPERM" && out != "EAFNOSUPPORT" {
			t.Errorf("it can %s: %s", a.name, out)
		}
	}
	for _, m := range may {
		if out := got.outcomes["may "+m]; out != "done" {
			t.Errorf("it cannot use %s: %s", m, out)
		}
	}
	if len(got.threads) < 8 {
		t.Errorf("only %d threads", len(got.threads))
	}
	for _, thread := range got.threads {
		if want := Want(r.Caps...); thread != want {
			t.Errorf("a thread:\n%s, want\n%s", thread, want)
		}
	}
}

// Possible checks that the same process can do all of it without rules, so
// that it is the rules that Refused shows.
func Possible(t *testing.T) {
	t.Helper()
	got := run(t, (*exec.Cmd).Start, "", nil)
	for _, a := range attempts() {
		if out := got.outcomes[a.name]; out != "done" && !a.anyway {
			t.Errorf("it cannot %s without rules either: %s", a.name, out)
		}
	}
}

type results struct {
	outcomes map[string]string
	threads  []string
}

// run starts the process that tries.
func run(t *testing.T, start func(cmd *exec.Cmd) error, rules string, may []string) results {
	t.Helper()
	home := t.TempDir()
	for _, name := range []string{"full", "waste", ".ssh/id"} {
		path := filepath.Join(home, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("secret"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	abstract, err := net.Listen("unix", "@confinetest-"+strconv.Itoa(os.Getpid())+filepath.Base(home))
	if err != nil {
		t.Fatal(err)
	}
	defer abstract.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	cmd := exec.Command("/proc/self/exe", append([]string{role, home, abstract.Addr().String() + "," + tcp.Addr().String(), rules}, may...)...)
	cmd.Env = []string{}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("the process that tries: %v\n%s%s", err, out.String(), errs.String())
	}
	got := results{outcomes: make(map[string]string)}
	for lines := bufio.NewScanner(&out); lines.Scan(); {
		name, outcome, _ := strings.Cut(lines.Text(), "\t")
		if name == "thread" {
			got.threads = append(got.threads, outcome)
		} else {
			got.outcomes[name] = outcome
		}
	}
	return got
}
