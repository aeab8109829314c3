// Package bundle is the state directory of one container: what preparing it,
// its hooks, its supervisor and later commands tell each other through files.
// The names and contents are shared with other programs that prepare
// containers or read their logs.
//
// Every file is opened beneath the directory itself, never through a symbolic
// link, must be a regular file of the caller and is read up to a bound. Files
// are replaced as a whole, so that a reader or a crash meets the old content
// or the new one. A change that depends on what was read is made under Lock.
//
// It must never import anything but the standard library.
package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Version is the format of the directory as this program writes it.
const Version = 14

// The files, for messages and documentation. What is in them is described at
// their accessors.
const (
	FileRuleset         = "ruleset.nft"
	FileUpstreamDNS     = "upstream.dns"
	FileTier            = "dns.tier"
	FileLoopbackPorts   = "loopback.ports"
	FileProfileAllowed  = "profile.allowed"
	FileProfileDomains  = "profile.domains"
	FileLiveAllowed     = "live.allowed"
	FileLiveDomains     = "live.domains"
	FileDenyList        = "deny.list"
	FileDeniedDomains   = "denied.domains"
	FileContainerID     = "container.id"
	FileMetaPath        = "meta_path"
	FileProcess         = "container.pid"
	FileNetwork         = "network.mode"
	FileErrorLog        = "hook-error.log"
	FileAuditLog        = "audit.jsonl"
	FileAuditLogRotated = FileAuditLog + rotated

	lockFile   = ".lock"
	tempPrefix = ".tmp-"
	rotated    = ".1"
)

// Bounds of what is read and written, in bytes.
const (
	maxRuleset = 4 << 20
	maxList    = 4 << 20
	maxSmall   = 4 << 10
)

// Bundle is an open state directory. Its methods may be used concurrently.
type Bundle struct {
	path string
	root *os.Root
	dir  *os.File // the same directory, for openat
	uid  int      // who must own everything
}

// Create makes the directory and missing parents, with mode 0700 whatever the
// umask, and opens it. An existing directory of the caller is made 0700 and
// keeps its files.
func Create(dir string) (*Bundle, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	b, err := open(dir, os.Geteuid())
	if err != nil {
		return nil, err
	}
	if err := b.dir.Chmod(0o700); err != nil {
		b.Close()
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	return b, nil
}

// Open opens an existing directory. One of another user, or one that others
// can write, is refused; so is a symbolic link in its place.
func Open(dir string) (*Bundle, error) {
	b, err := open(dir, os.Geteuid())
	if err != nil {
		return nil, err
	}
	fi, err := b.dir.Stat()
	if err != nil {
		b.Close()
		return nil, fmt.Errorf("open state directory: %w", err)
	}
	if perm := fi.Mode().Perm(); perm&0o022 != 0 {
		b.Close()
		return nil, fmt.Errorf("state directory %s can be written by others (mode %04o); run chmod 0700 on it", dir, perm)
	}
	return b, nil
}

func open(dir string, uid int) (*Bundle, error) {
	b := &Bundle{path: filepath.Clean(dir), uid: uid}
	link, err := os.Lstat(b.path)
	if err != nil {
		return nil, fmt.Errorf("open state directory: %w", err)
	}
	switch {
	case link.Mode()&fs.ModeSymlink != 0:
		return nil, fmt.Errorf("state directory %s is a symbolic link; name the directory itself", dir)
	case !link.IsDir():
		return nil, fmt.Errorf("state directory %s is not a directory", dir)
	case owner(link) != b.uid:
		return nil, fmt.Errorf("state directory %s belongs to uid %d, not to uid %d; run this as its owner", dir, owner(link), b.uid)
	}
	if b.root, err = os.OpenRoot(b.path); err != nil {
		return nil, fmt.Errorf("open state directory: %w", err)
	}
	if b.dir, err = b.root.Open("."); err != nil {
		b.root.Close()
		return nil, fmt.Errorf("open state directory: %w", err)
	}
	fi, err := b.dir.Stat()
	if err == nil && !os.SameFile(fi, link) {
		err = fmt.Errorf("%s was replaced meanwhile; try again", dir)
	}
	if err != nil {
		b.Close()
		return nil, fmt.Errorf("open state directory: %w", err)
	}
	return b, nil
}

// Path is the directory as it was named when opened.
func (b *Bundle) Path() string { return b.path }

// Close releases the directory. It does not release a lock.
func (b *Bundle) Close() error {
	return errors.Join(b.dir.Close(), b.root.Close())
}

// Lock waits until no other holder of this directory's lock is left, in this
// or another process, or until ctx is done. unlock must be called once; the
// end of the process unlocks, too. What killed writers left behind is removed.
func (b *Bundle) Lock(ctx context.Context) (unlock func(), err error) {
	fail := func(err error) (func(), error) {
		return nil, fmt.Errorf("lock state directory %s: %w", b.path, err)
	}
	for {
		f, err := b.openOrCreate(lockFile, syscall.O_RDWR)
		if err != nil {
			return fail(err)
		}
		if err := waitLock(ctx, f); err != nil {
			f.Close()
			return fail(err)
		}
		// A lock on a file that Remove has taken away protects nothing.
		current, err := b.isCurrent(f, lockFile)
		if current {
			b.removeLeftovers()
			return func() { f.Close() }, nil
		}
		f.Close()
		if err != nil {
			return fail(err)
		}
	}
}

// waitLock polls because a blocked flock cannot be interrupted.
func waitLock(ctx context.Context, f *os.File) error {
	const longest = 20 * time.Millisecond
	for pause := 500 * time.Microsecond; ; pause = min(2*pause, longest) {
		switch ok, err := tryLock(f); {
		case err != nil:
			return err
		case ok:
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("gave up waiting for another command on the same container: %w", context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}

// tryLock takes the exclusive flock of an open file if it is free.
func tryLock(f *os.File) (bool, error) {
	for {
		switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err {
		case nil:
			return true, nil
		case syscall.EWOULDBLOCK:
			return false, nil
		case syscall.EINTR:
		default:
			return false, os.NewSyscallError("flock", err)
		}
	}
}

// isCurrent reports whether the open file is the one of that name.
func (b *Bundle) isCurrent(f *os.File, name string) (bool, error) {
	mine, err := f.Stat()
	if err != nil {
		return false, err
	}
	named, err := b.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(mine, named), err
}

// removeLeftovers removes temporary files whose writer has died: a living
// one holds the lock of its file. What cannot be removed now can be later.
func (b *Bundle) removeLeftovers() {
	dir, err := b.root.Open(".") // b.dir has a read position of its own
	if err != nil {
		return
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		if !strings.HasPrefix(name, tempPrefix) {
			continue
		}
		f, err := b.openFile(name, syscall.O_RDWR)
		if err != nil {
			continue
		}
		if ok, _ := tryLock(f); ok {
			b.root.Remove(name)
		}
		f.Close()
	}
}

// Remove deletes the files of the bundle, also those that only other programs
// write, and the directory if nothing else is in it. The caller holds the
// lock. It goes on after an error and returns all of them.
func (b *Bundle) Remove() error {
	var errs []error
	for _, name := range []string{
		FileRuleset, FileUpstreamDNS, FileTier, FileLoopbackPorts,
		FileProfileAllowed, FileProfileDomains, FileLiveAllowed, FileLiveDomains, FileDenyList, FileDeniedDomains,
		FileContainerID, FileMetaPath, FileProcess, FileNetwork, FileErrorLog, FileAuditLog, FileAuditLogRotated,
		"dns.log", "dns.log.1", FileUnsettled, FileRulesetFormat, FileProfileNames, FileProfileCache, FileDnsmasqConf, FileDnsmasqPID, FileResolvConf,
		FileUnlisted, FileListen, FileNamer, FileOwner, FileOpen, FileQuestions,
		FileSupervisor, FilePending, "supervisor.log", "supervisor.log.1",
		FileQueryLog, FileReaderPID, "reader.log", ".apparmor-probe.conf",
		"terok-shield-hook", "terok-shield-bridge-hook", "_oci_state.py", "hooks", "run", "__pycache__",
		lockFile,
	} {
		if err := b.root.RemoveAll(name); err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", b.name(name), err))
		}
	}
	err := syscall.Rmdir(b.path)
	if err != nil && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, syscall.EEXIST) && !errors.Is(err, syscall.ENOENT) {
		errs = append(errs, &fs.PathError{Op: "remove", Path: b.path, Err: err})
	}
	return errors.Join(errs...)
}

// name is a file's full path, for messages.
func (b *Bundle) name(file string) string { return filepath.Join(b.path, file) }

func owner(fi fs.FileInfo) int {
	return int(fi.Sys().(*syscall.Stat_t).Uid)
}
