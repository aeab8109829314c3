// Package child starts this program again as a process that outlives its
// starter, recognises such processes later and ends them.
//
// A process is known by its arguments, and signalled through a file
// descriptor that stays its own (pidfd_open(2)): a number that another
// process got meanwhile does no harm.
//
// It must never import a package of an applet, nor one that faces people.
package child

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/nl/confine"
)

// Name is argv[0] of every process that Start starts.
const Name = "terok-box"

// self executes this program again, even if its file was replaced.
const self = "/proc/self/exe"

// SignalEnd tells a process to end for good, because its container has ended.
// After any other signal another process may take its place.
const SignalEnd = syscall.SIGUSR1

// Command is a process to be started: its standard streams /dev/null, in the
// namespaces of the calling thread and in the control group of the caller.
type Command struct {
	Args    []string       // after the name
	Env     []string       // its environment; nil: an empty one
	Dir     string         // where it works; "": in /
	Files   []int          // become descriptors 3, 4, …; None is /dev/null
	Session bool           // in a session of its own
	Rules   *confine.Rules // it and all that it starts are confined by; nil: as the caller is
}

// None stands for a file that a process does not get.
const None = -1

// Start starts the process. It gets no other open files of this one, so that
// whoever waits for the end of this process's output does not wait for it. It
// must be waited for, or outlive the caller.
func Start(c Command) (*os.Process, error) {
	fail := func(err error) (*os.Process, error) { return nil, fmt.Errorf("start %s: %w", c.Args[0], err) }
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(null)
	files := []uintptr{uintptr(null), uintptr(null), uintptr(null)}
	for _, fd := range c.Files {
		if fd == None {
			fd = null
		}
		files = append(files, uintptr(fd))
	}
	if err := CloseOnExec(); err != nil {
		return fail(err)
	}
	var pid int
	fork := func() (err error) {
		pid, err = syscall.ForkExec(self, append([]string{Name}, c.Args...), &syscall.ProcAttr{
			Dir: cmp.Or(c.Dir, "/"), Env: c.Env, Files: files, Sys: &syscall.SysProcAttr{Setsid: c.Session},
		})
		return err
	}
	if c.Rules != nil {
		err = c.Rules.Do(fork)
	} else {
		err = fork()
	}
	if err != nil {
		return fail(err)
	}
	return os.FindProcess(pid) // which cannot fail: nobody has waited for it
}

// Duplicate is a further descriptor of an open file, which the caller closes.
// Unlike os.File.Fd it does not make the file block, which would hold for
// everybody who has it.
func Duplicate(c syscall.Conn) (fd int, err error) {
	conn, err := c.SyscallConn()
	if err != nil {
		return None, err
	}
	controlErr := conn.Control(func(from uintptr) {
		fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 3)
	})
	if err := errors.Join(controlErr, err); err != nil {
		return None, fmt.Errorf("duplicate a file descriptor: %w", err)
	}
	return fd, nil
}

// CloseOnExec keeps every open file but the standard streams from the
// programs that this process will start, except those given to them.
func CloseOnExec() error {
	err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		return nil
	}
	// Before Linux 5.11.
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("list open files: %w", err)
	}
	for _, e := range dir {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// Hand has the program that this process executes in its own place get an
// open file, too.
func Hand(fd int) error {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
		return fmt.Errorf("file descriptor %d: %w", fd, err)
	}
	return nil
}

// Pollable is an inherited pipe or socket whose reads and writes can be
// interrupted.
func Pollable(fd int) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("file descriptor %d: %w", fd, err)
	}
	return os.NewFile(uintptr(fd), "file descriptor "+strconv.Itoa(fd)), nil
}
