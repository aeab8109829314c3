// Package confine takes away from a thread, and from every program that it
// starts, what these will not need: files (Landlock), capabilities, and system
// calls (seccomp). Nothing of it can be had back, by no program started later.
//
// Each thread has its own confinement, and Go moves goroutines between
// threads. So a program is confined by whoever starts it: on a thread that
// does nothing else and ends, by Do; or it confines one of its threads, by
// Here, and executes itself again on that. All its threads, and its children,
// are then in one and the same confinement. Only the system calls can be taken
// from all threads at once, by Filter.
//
// A kernel that lacks one of the three leaves the others in force.
//
// It must never import anything but the standard library and x/sys.
package confine

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Rules are what remains allowed. The zero value leaves no file to be opened,
// no capability, no port and no socket.
type Rules struct {
	Paths []Path
	Caps  []int // capabilities to keep, of those that are there: unix.CAP_NET_ADMIN, …
	// Families are the sockets that can be made: unix.AF_UNIX, … For Filter.
	Families []int
	// Connect are the ports that TCP may connect to, Bind those where it may
	// listen.
	Connect, Bind []uint16
	// Abstract lets connect to abstract Unix sockets of others.
	Abstract bool
}

// Path is what may be done with a file or a directory and all below it. One
// that is not there when the rules come into force is left out.
type Path struct {
	Name string
	Access
}

// Access is a set of rights.
type Access uint64

// The rights to a path. What makes no sense for a file that is no directory is
// left out there.
const (
	// Execute is to start programs.
	Execute Access = unix.LANDLOCK_ACCESS_FS_EXECUTE
	// ReadFile is to read files whose names are known.
	ReadFile Access = unix.LANDLOCK_ACCESS_FS_READ_FILE
	// List is to list directories.
	List Access = unix.LANDLOCK_ACCESS_FS_READ_DIR
	// Read is to read files and to list directories.
	Read = ReadFile | List
	// Write is to write into files that are there.
	Write Access = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE
	// Remove is to remove files and sockets.
	Remove Access = unix.LANDLOCK_ACCESS_FS_REMOVE_FILE
	// Sockets is to make sockets, and to list and open the directory for that.
	Sockets Access = unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_READ_DIR
	// Own is to make, write and remove files, sockets and directories.
	Own = Read | Write | Remove | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR |
		unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK
)

// Do calls f on a thread under the rules, which ends with it. What f starts is
// under them for good. An error that is not f's says what could not be put in
// force though the kernel has it; then f was not called.
func (r Rules) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and no unlock: the thread ends with the goroutine
		if unix.Gettid() != unix.Getpid() {
			done <- r.then(f)
			return
		}
		// The main thread cannot end. While this goroutine holds it the next
		// one gets another.
		done <- r.Do(f)
		runtime.UnlockOSThread()
	}()
	return <-done
}

func (r Rules) then(f func() error) error {
	if err := r.Here(); err != nil {
		return err
	}
	return f()
}

// Here puts the rules in force for the calling thread alone, to which the
// caller's goroutine must be locked for good.
func (r Rules) Here() error {
	fd, err := r.landlock()
	if err != nil {
		return fmt.Errorf("confine: landlock: %w", err)
	}
	if fd >= 0 {
		defer unix.Close(fd)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("confine: no new privileges: %w", err)
	}
	if err := r.drop(); err != nil {
		return fmt.Errorf("confine: capabilities: %w", err)
	}
	if fd >= 0 {
		if err := restrict(fd); err != nil {
			return fmt.Errorf("confine: landlock: %w", err)
		}
	}
	return nil
}
