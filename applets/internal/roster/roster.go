// Package roster is the list of the containers that live in one network
// namespace, and of who among them is in charge of its firewall and its names:
// a file a namespace, in the user's runtime directory, changed under a lock.
// Containers share a namespace in pods and with --network container:NAME.
//
// A container is on it from its start on, so that a later one can find out
// that it does not come first. What a crash left behind does no harm: only
// those count whose first process still lives in the namespace.
//
// It must never import a package of an applet, nor one that faces people.
package roster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// Roster is who lives in a namespace.
type Roster struct {
	Owner   string   `json:"owner"` // state directory of the one in charge
	Members []Member `json:"members"`
}

// Member is a container.
type Member struct {
	StateDir string `json:"state_dir"`
	ID       string `json:"id"`    // the first 12 digits of its id
	PID      int    `json:"pid"`   // its first process
	Start    uint64 `json:"start"` // of that process, as in bundle.Process
}

const (
	// maxFile is what a roster may have, in bytes: hundreds of members with
	// the longest paths.
	maxFile = 4 << 20
	// maxMembers is more than any pod has.
	maxMembers = 256
	lockSuffix = ".lock"
	tempSuffix = ".new"
)

// Path is the file of a namespace ("device:inode"). runtimeDir is the user's,
// such as /run/user/1000.
func Path(runtimeDir, netns string) string {
	return filepath.Join(runtimeDir, "terok", "net", strings.ReplaceAll(netns, ":", "-"))
}

// Alive are the members whose first process lives, in that namespace
// ("device:inode").
func (r Roster) Alive(ns string) []Member {
	return slices.DeleteFunc(slices.Clone(r.Members), func(m Member) bool { return !m.alive(ns) })
}

func (m Member) alive(ns string) bool {
	if !(bundle.Process{PID: m.PID, Start: m.Start}).Alive() {
		return false
	}
	its, err := netns.Open(m.PID)
	if err != nil {
		return false
	}
	defer its.Close()
	id, err := its.ID()
	return err == nil && id.String() == ns
}

// Read reads a file without its lock. A missing one is an empty roster.
func Read(path string) (Roster, error) {
	r, err := read(path)
	if err != nil {
		return Roster{}, fmt.Errorf("who shares the network: %w", err)
	}
	return r, nil
}

func read(path string) (r Roster, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return Roster{}, nil
	}
	if err != nil {
		return Roster{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return Roster{}, err
	case len(data) > maxFile:
		err = fmt.Errorf("larger than %d bytes", maxFile)
	default:
		if err = json.Unmarshal(data, &r); err == nil {
			err = r.check()
		}
	}
	if err != nil {
		return Roster{}, fmt.Errorf("%s: %w; stop the containers that share this network and remove it", path, err)
	}
	return r, nil
}

func (r Roster) check() error {
	if len(r.Members) > maxMembers {
		return fmt.Errorf("more than %d containers", maxMembers)
	}
	if !filepath.IsAbs(r.Owner) {
		return fmt.Errorf("%.100q is not a state directory", r.Owner)
	}
	for _, m := range r.Members {
		if !filepath.IsAbs(m.StateDir) || m.PID <= 0 || m.Start == 0 {
			return fmt.Errorf("%.100q is not a container", m.StateDir)
		}
	}
	return nil
}

// File is a roster that nobody else changes until Unlock.
type File struct {
	path string
	lock *os.File
}

// Lock waits until no other holder of the file's lock is left, or until ctx is
// done. The file's directory is made if it is missing; it must be closed to
// others. The end of the process unlocks, too.
func Lock(ctx context.Context, path string) (*File, error) {
	f, err := lock(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("lock the list of who shares the network: %w", err)
	}
	return f, nil
}

func lock(ctx context.Context, path string) (*File, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	fi, err := os.Lstat(dir)
	if err != nil {
		return nil, err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || !fi.IsDir() || int(st.Uid) != os.Geteuid() || fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s is not a directory that only its owner, uid %d, can look into; remove it", dir, os.Geteuid())
	}
	for {
		f, err := os.OpenFile(path+lockSuffix, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
		if err != nil {
			return nil, err
		}
		if err := wait(ctx, f); err != nil {
			f.Close()
			return nil, err
		}
		// A lock on a file that Remove has taken away protects nothing.
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if named, err := os.Lstat(path + lockSuffix); err == nil && os.SameFile(mine, named) {
			return &File{path, f}, nil
		}
		f.Close()
	}
}

// wait polls because a blocked flock cannot be interrupted.
func wait(ctx context.Context, f *os.File) error {
	const longest = 20 * time.Millisecond
	for pause := 500 * time.Microsecond; ; pause = min(2*pause, longest) {
		switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
		case err == nil:
			return nil
		case errors.Is(err, syscall.EINTR), errors.Is(err, syscall.EWOULDBLOCK):
		default:
			return os.NewSyscallError("flock", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("gave up waiting for another container that starts or stops in the same network: %w", context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}

// Unlock lets others go on.
func (f *File) Unlock() { f.lock.Close() }

// Read is the roster; an empty one if there is no file.
func (f *File) Read() (Roster, error) { return Read(f.path) }

// Write replaces it as a whole.
func (f *File) Write(r Roster) error {
	if err := f.write(r); err != nil {
		return fmt.Errorf("record who shares the network: %w", err)
	}
	return nil
}

func (f *File) write(r Roster) error {
	if err := r.check(); err != nil {
		return err
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	temp := f.path + tempSuffix
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(temp, append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(temp, f.path)
}

// Remove removes the file, as nobody is left. Unlock must follow.
func (f *File) Remove() error {
	var errs []error
	for _, suffix := range []string{"", tempSuffix, lockSuffix} { // the lock last
		if err := os.Remove(f.path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Purge removes the files beside path whose containers have all ended, as
// after a crash. What somebody holds is left alone.
func Purge(path string) {
	dir := filepath.Dir(path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	now, cancel := context.WithCancel(context.Background())
	cancel() // no waiting
	for _, e := range entries {
		other := filepath.Join(dir, strings.TrimSuffix(e.Name(), lockSuffix))
		if !strings.HasSuffix(e.Name(), lockSuffix) || other == path || vital(other) {
			continue
		}
		f, err := lock(now, other)
		if err != nil {
			continue
		}
		if !vital(other) {
			_ = f.Remove() // the next one will try again
		}
		f.Unlock()
	}
}

// vital reports whether one of the containers may still live.
func vital(path string) bool {
	r, err := read(path)
	return err == nil && slices.ContainsFunc(r.Members, func(m Member) bool {
		return bundle.Process{PID: m.PID, Start: m.Start}.Alive()
	})
}
