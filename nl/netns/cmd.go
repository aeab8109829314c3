package netns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Cmd is a program to be run in another user namespace, with this process's
// other namespaces. A process with several threads, as every Go program is,
// cannot change its user namespace, and os/exec offers no way between fork
// and exec: hence a fork of our own.
//
// The program is killed if this process dies.
type Cmd struct {
	Path   string   // not looked up in PATH
	Args   []string // including argv[0]
	Env    []string
	Stdin  *os.File // nil: /dev/null; the same for the other two
	Stdout *os.File
	Stderr *os.File
	UserNS *os.File // from NS.UserNS; nil: stay in this one

	proc *os.Process
	done chan exit
	stop func() bool
}

type exit struct {
	code int
	err  error
}

// step is where the child failed before it became the program.
type step uint32

const (
	stepParent step = iota + 1
	stepStdio
	stepUser
	stepDeath
	stepSignals
	stepExec
)

func (s step) String() string {
	switch s {
	case stepParent:
		return "its parent ended"
	case stepStdio:
		return "connect standard streams"
	case stepUser:
		return "enter the user namespace"
	case stepDeath:
		return "tie its life to the parent's"
	case stepSignals:
		return "reset signals"
	case stepExec:
		return "execute"
	default:
		return fmt.Sprintf("step %d", uint32(s))
	}
}

// Start starts the program and returns once it runs, or with the reason why it
// does not. It is killed when ctx ends.
func (c *Cmd) Start(ctx context.Context) error {
	if c.done != nil {
		return errors.New("start: a command runs only once")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	p, cleanup, err := c.plan()
	if err != nil {
		return fmt.Errorf("start %s: %w", c.Path, err)
	}
	c.done = make(chan exit, 1)
	started := make(chan error)
	// The kernel kills the child when the thread ends that forked it, so one
	// thread holds still until the child is gone.
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		proc, err := p.start()
		cleanup()
		c.proc = proc
		started <- err
		if err != nil {
			return
		}
		state, err := proc.Wait()
		if err != nil {
			c.done <- exit{-1, err}
			return
		}
		code := state.ExitCode()
		if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			code = 128 + int(status.Signal()) // as shells have it
		}
		c.done <- exit{code, nil}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", c.Path, err)
	}
	c.stop = context.AfterFunc(ctx, func() { c.proc.Kill() })
	return nil
}

// Wait waits until the program has ended and returns its exit code, or 128
// plus the number of the signal that ended it.
func (c *Cmd) Wait() (code int, err error) {
	if c.proc == nil {
		return -1, errors.New("wait: the command was not started")
	}
	e := <-c.done
	c.done <- e // for whoever asks again
	c.stop()
	if e.err != nil {
		return -1, fmt.Errorf("wait for %s: %w", c.Path, e.err)
	}
	return e.code, nil
}

// plan is all that the child needs, ready for the system calls: it cannot
// allocate. The pointers keep their targets alive.
type plan struct {
	path   *byte
	argv   **byte
	envv   **byte
	stdio  [3]int
	userNS int // -1: none
	report int // pipe to the parent, for errno and step; -1: closed
	parent int
	mask   uint64 // signal mask of the program

	reportR *os.File
}

func (c *Cmd) plan() (_ *plan, cleanup func(), err error) {
	p := &plan{userNS: -1, report: -1, parent: os.Getpid()}
	var fds []int
	closeAll := func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
		p.closeReport()
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	if p.path, err = syscall.BytePtrFromString(c.Path); err != nil {
		return nil, nil, err
	}
	argv, err := syscall.SlicePtrFromStrings(c.Args)
	if err != nil {
		return nil, nil, fmt.Errorf("argument: %w", err)
	}
	envv, err := syscall.SlicePtrFromStrings(c.Env)
	if err != nil {
		return nil, nil, fmt.Errorf("environment: %w", err)
	}
	p.argv, p.envv = &argv[0], &envv[0]
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	defer null.Close()
	// Copies above the standard streams: the child must not overwrite what it
	// still needs.
	dup := func(f *os.File) (int, error) {
		// Fd makes a pipe block, which is what programs expect of theirs.
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		runtime.KeepAlive(f)
		return fd, err
	}
	for i, f := range []*os.File{c.Stdin, c.Stdout, c.Stderr} {
		if f == nil {
			f = null
		}
		if p.stdio[i], err = dup(f); err != nil {
			return nil, nil, fmt.Errorf("standard stream %d: %w", i, err)
		}
		fds = append(fds, p.stdio[i])
	}
	if c.UserNS != nil {
		if p.userNS, err = dup(c.UserNS); err != nil {
			return nil, nil, fmt.Errorf("user namespace: %w", err)
		}
		fds = append(fds, p.userNS)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	p.reportR = r
	p.report, err = dup(w)
	w.Close()
	if err != nil {
		r.Close()
		return nil, nil, err
	}
	return p, closeAll, nil
}

// start forks on the calling, locked thread and waits until the child has
// become the program.
func (p *plan) start() (*os.Process, error) {
	defer p.reportR.Close()
	// No descriptor that is being opened without its close-on-exec flag may
	// get into the child.
	syscall.ForkLock.Lock()
	pid, errno := p.fork()
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(p)
	if errno != 0 {
		return nil, fmt.Errorf("fork: %w", errno)
	}
	proc, err := os.FindProcess(pid)
	if err != nil {
		return nil, err // cannot happen: the child has not been waited for
	}
	// With the only other copy of the writing end gone, the child's success is
	// the end of the pipe.
	p.closeReport()
	var report [8]byte
	if _, err := io.ReadFull(p.reportR, report[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return proc, nil
		}
		err = fmt.Errorf("hear from the child: %w", err)
		return nil, errors.Join(err, proc.Kill(), reap(proc))
	}
	failed := step(binary.NativeEndian.Uint32(report[4:]))
	err = fmt.Errorf("%s: %w", failed, syscall.Errno(binary.NativeEndian.Uint32(report[:])))
	return nil, errors.Join(err, reap(proc))
}

func (p *plan) closeReport() {
	if p.report >= 0 {
		unix.Close(p.report)
		p.report = -1
	}
}

func reap(proc *os.Process) error {
	_, err := proc.Wait()
	return err
}

// fork clones the calling thread into a process of its own, which becomes the
// program. All signals are blocked across the clone, so that no handler of the
// Go runtime runs in the child, which has no runtime: until it executes the
// program it may only make raw system calls, on a stack that cannot grow,
// without allocating or moving pointers.
//
//go:norace
//go:nocheckptr
//go:nosplit
//go:noinline
func (p *plan) fork() (pid int, errno syscall.Errno) {
	all := ^uint64(0)
	_, _, errno = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK,
		uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&p.mask)), unsafe.Sizeof(all), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	r, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || r != 0 {
		syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK,
			uintptr(unsafe.Pointer(&p.mask)), 0, unsafe.Sizeof(p.mask), 0, 0)
		return int(r), errno
	}
	p.child()
	return 0, 0
}

// child runs in the forked child, see fork. It does not return.
//
//go:norace
//go:nocheckptr
//go:nosplit
//go:noinline
func (p *plan) child() {
	var e syscall.Errno
	var at step
	var action [4]uint64 // struct sigaction of the kernel; the handler is first; 0: SIG_DFL

	at = stepStdio
	for i := 0; i < len(p.stdio) && e == 0; i++ {
		_, _, e = syscall.RawSyscall6(unix.SYS_DUP3, uintptr(p.stdio[i]), uintptr(i), 0, 0, 0, 0)
	}
	if e == 0 && p.userNS >= 0 {
		at = stepUser
		_, _, e = syscall.RawSyscall6(unix.SYS_SETNS, uintptr(p.userNS), unix.CLONE_NEWUSER, 0, 0, 0, 0)
	}
	// After the change of credentials, which resets it.
	if e == 0 {
		at = stepDeath
		_, _, e = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0, 0)
	}
	if e == 0 {
		if ppid, _, _ := syscall.RawSyscall6(unix.SYS_GETPPID, 0, 0, 0, 0, 0, 0); int(ppid) != p.parent {
			at, e = stepParent, syscall.ESRCH
		}
	}
	// The program starts with the default handlers anyway, but the mask must be
	// lifted before, and a signal that is pending would then find Go's. Ignored
	// signals stay ignored.
	for sig := uintptr(1); sig <= 64 && e == 0; sig++ {
		if sig == uintptr(unix.SIGKILL) || sig == uintptr(unix.SIGSTOP) {
			continue
		}
		at = stepSignals
		_, _, e = syscall.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&action)), 8, 0, 0)
		if e == 0 && action[0] > 1 { // neither SIG_DFL nor SIG_IGN
			action[0], action[1], action[2], action[3] = 0, 0, 0, 0
			_, _, e = syscall.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
		}
	}
	if e == 0 {
		_, _, e = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK,
			uintptr(unsafe.Pointer(&p.mask)), 0, unsafe.Sizeof(p.mask), 0, 0)
	}
	if e == 0 {
		at = stepExec
		_, _, e = syscall.RawSyscall6(unix.SYS_EXECVE, uintptr(unsafe.Pointer(p.path)),
			uintptr(unsafe.Pointer(p.argv)), uintptr(unsafe.Pointer(p.envv)), 0, 0, 0)
	}
	report := [2]uint32{uint32(e), uint32(at)}
	syscall.RawSyscall6(unix.SYS_WRITE, uintptr(p.report), uintptr(unsafe.Pointer(&report)), unsafe.Sizeof(report), 0, 0, 0)
	for {
		syscall.RawSyscall6(unix.SYS_EXIT_GROUP, 127, 0, 0, 0, 0, 0)
	}
}
