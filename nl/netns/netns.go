// Package netns reaches the network namespace of a process: it runs functions
// there and, where the caller is not allowed to, starts a program in the user
// namespace that is.
//
// It must never import anything but the standard library and x/sys.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// NS is an open network namespace. It lives at least as long as it is open,
// even if every process in it has ended.
type NS struct {
	f    *os.File
	name string // for error messages
}

// ID tells namespaces apart. It is valid as long as the namespace lives.
type ID struct{ Dev, Ino uint64 }

// String is a short form for files and messages; equal for equal IDs only.
func (id ID) String() string { return fmt.Sprintf("%d:%d", id.Dev, id.Ino) }

// Open opens the network namespace of a process.
func Open(pid int) (*NS, error) {
	if pid <= 0 {
		return nil, fmt.Errorf("no process can have the id %d", pid)
	}
	ns, err := open(fmt.Sprintf("/proc/%d/ns/net", pid), fmt.Sprintf("network namespace of process %d", pid))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
		return nil, fmt.Errorf("process %d has ended: %w", pid, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("process %d belongs to somebody else: run this as its user: %w", pid, err)
	}
	return ns, err
}

// OpenFile opens the network namespace that path refers to, as in /proc or
// where one is bind-mounted.
func OpenFile(path string) (*NS, error) { return open(path, "network namespace "+path) }

// Current opens the network namespace of the calling thread, which is the
// process's unless the caller runs inside Do.
func Current() (*NS, error) {
	return open("/proc/thread-self/ns/net", "own network namespace")
}

func open(path, name string) (*NS, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	kind, err := ioctl(f, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, fmt.Errorf("open %s: %s is not a network namespace", name, path)
	}
	return &NS{f, name}, nil
}

// Close closes the namespace.
func (n *NS) Close() error { return n.f.Close() }

// File is the open namespace itself, owned by n.
func (n *NS) File() *os.File { return n.f }

// ID identifies the namespace.
func (n *NS) ID() (ID, error) { return id(n.f) }

func id(f *os.File) (ID, error) {
	var st unix.Stat_t
	err := control(f, func(fd int) error { return unix.Fstat(fd, &st) })
	if err != nil {
		return ID{}, fmt.Errorf("identify %s: %w", f.Name(), err)
	}
	return ID{uint64(st.Dev), st.Ino}, nil // the type of Dev differs between architectures
}

// Do runs f in the namespace, on a thread of its own that ends with f: neither
// the namespace nor anything else that f does to its thread can leak. Sockets
// that f opens and processes that it starts belong to the namespace and stay
// there. A panic in f goes on in the caller, with f's stack in its text.
func (n *NS) Do(f func() error) error {
	if err := onThread(func() error {
		if err := n.Enter(); err != nil {
			return err
		}
		return f()
	}); err != nil {
		return err
	}
	return nil
}

// Enter moves the calling thread, to which the caller's goroutine must be
// locked for good. It is for programs that have nothing else to do; others use
// Do.
func (n *NS) Enter() error {
	err := control(n.f, func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNET) })
	if errors.Is(err, unix.EPERM) {
		// Entering needs a capability even where nothing changes.
		if n.here() {
			return nil
		}
		return fmt.Errorf("enter %s: CAP_SYS_ADMIN in the user namespace that owns it is needed: %w", n.name, err)
	}
	if err != nil {
		return fmt.Errorf("enter %s: %w", n.name, err)
	}
	return nil
}

// here reports whether the calling thread is certainly in the namespace.
func (n *NS) here() bool {
	own, err := Current()
	if err != nil {
		return false
	}
	defer own.Close()
	ownID, err := own.ID()
	if err != nil {
		return false
	}
	id, err := n.ID()
	return err == nil && id == ownID
}

// onThread runs f on a thread that dies afterwards. It is never the main
// thread: that one cannot die, and /proc/self shows its namespaces.
func onThread(f func() error) error {
	type outcome struct {
		err      error
		panicked string
		returned bool
	}
	done := make(chan outcome, 1)
	var run func()
	run = func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// While this goroutine holds the main thread the next one gets another.
			finished := make(chan struct{})
			go func() {
				defer close(finished)
				run()
			}()
			<-finished
			runtime.UnlockOSThread()
			return
		}
		var o outcome
		defer func() { done <- o }()
		defer func() {
			if p := recover(); p != nil {
				o.panicked = fmt.Sprintf("%v\n\n%s", p, debug.Stack())
			}
		}()
		o.err = f()
		o.returned = true
		// No unlock: the runtime ends the thread with the goroutine.
	}
	go run()
	o := <-done
	switch {
	case o.panicked != "":
		panic(o.panicked)
	case !o.returned: // runtime.Goexit in f, as in a failed test
		runtime.Goexit()
	}
	return o.err
}

// NeedsEnter reports whether this process cannot enter ns by Do, so that a
// program must be started in its UserNS, which can.
func NeedsEnter(ns *NS) bool {
	return errors.Is(ns.Do(func() error { return nil }), unix.EPERM)
}

// UserNS opens the user namespace from which ns can be entered: the one above
// ns, its owner or an ancestor, that lies directly below this process's own.
// Of a rootless container it is its engine's, where the caller is root.
func (n *NS) UserNS() (*os.File, error) {
	fail := func(err error) (*os.File, error) {
		return nil, fmt.Errorf("find the user namespace that owns %s: %w", n.name, err)
	}
	own, err := os.Open("/proc/self/ns/user")
	if err != nil {
		return fail(err)
	}
	defer own.Close()
	ownID, err := id(own)
	if err != nil {
		return fail(err)
	}
	user, err := related(n.f, unix.NS_GET_USERNS)
	if err != nil {
		return fail(outside(err))
	}
	for { // the kernel bounds the depth (32)
		userID, err := id(user)
		if err != nil {
			user.Close()
			return fail(err)
		}
		if userID == ownID {
			user.Close()
			return fail(errors.New("it is this process's own"))
		}
		parent, err := related(user, unix.NS_GET_PARENT)
		if err != nil {
			user.Close()
			return fail(outside(err))
		}
		parentID, err := id(parent)
		if err != nil || parentID == ownID {
			parent.Close()
			if err != nil {
				user.Close()
				return fail(err)
			}
			return user, nil
		}
		user.Close()
		user = parent
	}
}

// outside explains what the kernel says of namespaces that are not below the
// caller's.
func outside(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("it was not created from here: run this where the container was started: %w", err)
	}
	return err
}

// related opens a namespace by an ioctl on another one.
func related(f *os.File, request uint) (*os.File, error) {
	fd, err := ioctl(f, request)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "user namespace"), nil
}

func ioctl(f *os.File, request uint) (value int, err error) {
	err = control(f, func(fd int) (err error) {
		value, err = unix.IoctlRetInt(fd, request)
		return err
	})
	return value, err
}

// control calls f with the descriptor, which stays open meanwhile.
func control(file *os.File, f func(fd int) error) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := conn.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}
