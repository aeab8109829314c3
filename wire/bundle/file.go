package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// durability says whether a write waits for the disk.
type durability bool

const (
	durable  durability = true  // survives a power failure
	volatile durability = false // worthless after one, since the container is gone, too
)

// openFile opens an existing regular file of the right owner directly in the
// directory.
func (b *Bundle) openFile(name string, flag int) (*os.File, error) {
	f, err := b.openat(name, flag)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	switch {
	case err != nil:
	case !fi.Mode().IsRegular():
		err = fmt.Errorf("%s is not a regular file; remove it", b.name(name))
	case owner(fi) != b.uid:
		err = fmt.Errorf("%s belongs to uid %d, not to uid %d; remove it", b.name(name), owner(fi), b.uid)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// createFile makes a new file with mode 0600.
func (b *Bundle) createFile(name string, flag int) (*os.File, error) {
	f, err := b.openat(name, flag|syscall.O_CREAT|syscall.O_EXCL)
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(0o600); err != nil { // the umask may have taken from the owner
		f.Close()
		return nil, err
	}
	return f, nil
}

// openOrCreate is openFile, or createFile if there is none.
func (b *Bundle) openOrCreate(name string, flag int) (*os.File, error) {
	for {
		f, err := b.openFile(name, flag)
		if !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
		f, err = b.createFile(name, flag)
		if !errors.Is(err, fs.ErrExist) { // else somebody was faster
			return f, err
		}
	}
}

// openat never follows a symbolic link: os.Root would follow one that stays
// in the directory. O_NONBLOCK keeps it from waiting for the other end of a
// FIFO.
func (b *Bundle) openat(name string, flag int) (*os.File, error) {
	if name != filepath.Base(name) || name == ".." {
		return nil, fmt.Errorf("%q is not the name of a file in a state directory", name)
	}
	flag |= syscall.O_NOFOLLOW | syscall.O_NONBLOCK | syscall.O_CLOEXEC
	for {
		fd, err := syscall.Openat(int(b.dir.Fd()), name, flag, 0o600)
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), b.name(name)), nil
		case syscall.EINTR:
		case syscall.ELOOP:
			return nil, fmt.Errorf("%s is a symbolic link; remove it", b.name(name))
		default:
			return nil, &fs.PathError{Op: "open", Path: b.name(name), Err: err}
		}
	}
}

// read is a file's content. A missing file is an error that is
// fs.ErrNotExist.
func (b *Bundle) read(name string, limit int64) ([]byte, error) {
	f, err := b.openFile(name, syscall.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var buf bytes.Buffer
	if fi, err := f.Stat(); err == nil {
		buf.Grow(int(min(fi.Size(), limit)) + bytes.MinRead)
	}
	n, err := buf.ReadFrom(io.LimitReader(f, limit+1))
	if err == nil && n > limit {
		err = fmt.Errorf("%s is larger than %d bytes; prepare the container again", b.name(name), limit)
	}
	if err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// readOptional is read for a file that may be missing; ok tells.
func (b *Bundle) readOptional(name string, limit int64) (data []byte, ok bool, err error) {
	data, err = b.read(name, limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	return data, err == nil, err
}

// write replaces a file as a whole, with mode 0600. What read would refuse
// for its size is not written.
func (b *Bundle) write(name string, data []byte, limit int64, d durability) (err error) {
	if int64(len(data)) > limit {
		return fmt.Errorf("%s would be larger than %d bytes; use fewer entries", b.name(name), limit)
	}
	f, temp, err := b.tempFile(name)
	if err != nil {
		return fmt.Errorf("write %s: %w", b.name(name), err)
	}
	// Closing gives up the lock that tells a living writer from a dead one,
	// so it comes last.
	defer func() {
		if err != nil {
			b.root.Remove(temp)
			err = fmt.Errorf("write %s: %w", b.name(name), err)
		}
		f.Close()
	}()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if d == durable {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if d == volatile {
		// ext4 starts writing a file out when it replaces another one, which
		// takes longer than all the rest. Nobody minds if it is missing.
		if err := b.remove(name); err != nil {
			return err
		}
	}
	if err := b.root.Rename(temp, name); err != nil {
		return err
	}
	if d == durable {
		return b.dir.Sync()
	}
	return nil
}

// tempFile makes a temporary file for the named one and holds its lock.
func (b *Bundle) tempFile(name string) (*os.File, string, error) {
	for {
		temp := tempPrefix + name + "-" + strconv.FormatUint(rand.Uint64(), 36)
		f, err := b.createFile(temp, syscall.O_WRONLY)
		if err != nil {
			return nil, "", err
		}
		// Between its creation and this lock the file looks abandoned and
		// may be cleaned away; then another one is made.
		ok, err := tryLock(f)
		if ok {
			ok, err = b.isCurrent(f, temp)
		}
		if ok {
			return f, temp, nil
		}
		f.Close()
		if err != nil {
			b.root.Remove(temp)
			return nil, "", err
		}
	}
}
