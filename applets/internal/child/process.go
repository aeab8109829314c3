package child

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/wire/bundle"
)

// maxCmdline is more than any command line of ours has, in bytes: a few words
// and three paths (PATH_MAX 4096 each).
const maxCmdline = 4 * 4096

// Process is a running process that stays itself: it can be waited for and
// signalled whoever has its number by then.
type Process struct {
	PID  int
	Args []string // of those that Find finds: after the name; FindOther: with it
	f    *os.File // pidfd
}

// Open is the process with that number and start time (field 22 of
// /proc/PID/stat). The error is fs.ErrNotExist if it has ended.
func Open(pid int, start uint64) (*Process, error) {
	p, err := open(pid)
	if err != nil {
		return nil, err
	}
	if !(bundle.Process{PID: pid, Start: start}).Alive() {
		p.Close()
		return nil, fmt.Errorf("process %d: %w", pid, fs.ErrNotExist)
	}
	return p, nil
}

func open(pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		err = fs.ErrNotExist
	}
	if err == nil {
		if err = unix.SetNonblock(fd, true); err != nil { // so that it is waited for without a thread
			unix.Close(fd)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	return &Process{PID: pid, f: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// Close forgets the process, which goes on.
func (p *Process) Close() error { return p.f.Close() }

// Signal sends a signal. The error is os.ErrProcessDone if there is nobody to
// receive it.
func (p *Process) Signal(sig syscall.Signal) error {
	conn, err := p.f.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := conn.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	if errors.Is(sent, unix.ESRCH) {
		return os.ErrProcessDone
	}
	if sent != nil {
		return fmt.Errorf("signal process %d: %w", p.PID, sent)
	}
	return nil
}

// Wait waits until the process has ended, whoever's child it is, or until ctx
// does.
func (p *Process) Wait(ctx context.Context) error {
	conn, err := p.f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.f.SetReadDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() {
			_ = p.f.SetReadDeadline(time.Time{})
		}
	}()
	var polled error
	err = conn.Read(func(fd uintptr) bool {
		// A pidfd becomes readable when its process ends.
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		var n int
		for {
			if n, polled = unix.Poll(fds, 0); !errors.Is(polled, unix.EINTR) {
				break
			}
		}
		return n > 0 || polled != nil
	})
	if ctx.Err() != nil && polled == nil && err != nil {
		return context.Cause(ctx)
	}
	if err := errors.Join(err, polled); err != nil {
		return fmt.Errorf("wait for process %d: %w", p.PID, err)
	}
	return nil
}

// Find finds the processes that Start started and whose arguments match.
func Find(match func(args []string) bool) ([]*Process, error) { return search(arguments, match) }

// FindOther finds the processes of our own user, whoever started them, whose
// arguments match, the name (argv[0]) included.
func FindOther(match func(args []string) bool) ([]*Process, error) { return search(commandLine, match) }

// search finds processes by their arguments, which a process of a container can
// choose as well: but it cannot be in the pid namespace of the caller.
func search(arguments func(pid int, s *searcher) ([]string, bool), match func(args []string) bool) (found []*Process, err error) {
	defer func() {
		if err != nil {
			Release(found)
			found = nil
		}
	}()
	fail := func(err error) ([]*Process, error) { return found, fmt.Errorf("look for processes: %w", err) }
	dir, err := os.Open("/proc")
	if err != nil {
		return fail(err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fail(err)
	}
	s := &searcher{patience: execTimeout}
	if s.pidNS, err = os.Readlink("/proc/self/ns/pid"); err != nil {
		return fail(err)
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		args, ok := arguments(pid, s)
		if !ok || !match(args) || !s.near(pid) {
			continue
		}
		p, err := open(pid)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fail(err)
		}
		// Now that the number cannot be another's: is it still the same?
		if again, ok := arguments(pid, s); !ok || !slices.Equal(again, args) {
			p.Close()
			continue
		}
		p.Args = args
		found = append(found, p)
	}
	return found, nil
}

// searcher is what a search goes by.
type searcher struct {
	pidNS    string
	patience time.Duration // for processes without arguments, all of them: somebody may have many of these
}

// near reports whether a process is in our pid namespace: others are somebody
// else's, or have ended.
func (s *searcher) near(pid int) bool {
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	return err == nil && ns == s.pidNS
}

// arguments are those of a process that Start started. One that has ended and
// was not waited for has none.
func arguments(pid int, s *searcher) ([]string, bool) {
	args, ok := s.readArguments(pid, func(f *os.File) bool {
		var name [len(Name) + 1]byte
		n, err := f.ReadAt(name[:], 0)
		return n == 0 || err == nil && string(name[:]) == Name+"\x00"
	})
	if !ok || len(args) < 2 || args[0] != Name {
		return nil, false
	}
	return args[1:], true
}

// commandLine is all of the command line of a process of our own user.
func commandLine(pid int, s *searcher) ([]string, bool) {
	return s.readArguments(pid, func(f *os.File) bool {
		fi, err := f.Stat() // it belongs to the process's effective user
		if err != nil {
			return false
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		return ok && int(st.Uid) == os.Geteuid()
	})
}

// readArguments reads the command line of a process, if it is of interest.
// One whose program is just being exchanged has none for a moment.
func (s *searcher) readArguments(pid int, of func(cmdline *os.File) bool) ([]string, bool) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return nil, false
	}
	defer f.Close()
	if !of(f) {
		return nil, false
	}
	text, err := io.ReadAll(io.LimitReader(f, maxCmdline))
	for err == nil && len(text) == 0 {
		// Neither the kernel's own threads nor those that have ended have a program.
		if _, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || s.patience <= 0 || !s.near(pid) {
			return nil, false
		}
		time.Sleep(execPause)
		s.patience -= execPause
		text, err = io.ReadAll(io.LimitReader(f, maxCmdline))
	}
	if err != nil {
		return nil, false
	}
	return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00"), true
}

// Release closes all of them.
func Release(all []*Process) {
	for _, p := range all {
		p.Close()
	}
}

const (
	// grace is what processes get to end by themselves.
	grace = 2 * time.Second
	// killTimeout is how long the kernel may take to end one, which may be in
	// the middle of writing to a slow disk.
	killTimeout = 5 * time.Second
	round       = 100 * time.Millisecond
	// execTimeout is how long a process may be without arguments between
	// those of its old program and those of its new one.
	execTimeout = 100 * time.Millisecond
	execPause   = time.Millisecond
)

// End ends all processes that Start started and whose arguments match, also
// those that they start meanwhile in each other's place: by SignalEnd, and
// after two seconds by SIGKILL. It returns when they have ended, and how many
// they were.
func End(ctx context.Context, match func(args []string) bool) (n int, err error) {
	return endAll(ctx, SignalEnd, func() ([]*Process, error) { return Find(match) })
}

// EndOther ends all processes of our own user whose arguments match, by
// SIGTERM, and after two seconds by SIGKILL. It returns when they have ended,
// and how many they were.
func EndOther(ctx context.Context, match func(args []string) bool) (n int, err error) {
	return endAll(ctx, syscall.SIGTERM, func() ([]*Process, error) { return FindOther(match) })
}

func endAll(ctx context.Context, first syscall.Signal, find func() ([]*Process, error)) (n int, err error) {
	for started := time.Now(); ; {
		found, err := find()
		if err != nil || len(found) == 0 {
			return n, err
		}
		waited := time.Since(started)
		if n == 0 {
			n = len(found)
		}
		sig := first
		if waited > grace {
			sig = syscall.SIGKILL
		}
		err = signalAll(ctx, found, sig)
		if err == nil && waited > grace+killTimeout {
			err = fmt.Errorf("process %d does not end, though killed", found[0].PID)
		}
		Release(found)
		if err != nil {
			return n, err
		}
	}
}

// signalAll sends the signal and waits for a round, or less if they end.
func signalAll(ctx context.Context, all []*Process, sig syscall.Signal) error {
	for _, p := range all {
		if err := p.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
	}
	short, cancel := context.WithTimeout(ctx, round)
	defer cancel()
	for _, p := range all {
		if err := p.Wait(short); err != nil && short.Err() == nil {
			return err
		}
	}
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("wait for process %d to end: %w", all[0].PID, err)
	}
	return nil
}
