package varlink

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ErrInUse says that a server answers at a path already.
var ErrInUse = errors.New("another server answers there")

const (
	// maxAddress is what fits into sun_path besides its final NUL (unix(7)).
	maxAddress = 107
	// backlog is how many clients may wait to be accepted, if the system's
	// limit (net.core.somaxconn) is not lower.
	backlog = 4096
	// lockWait and lockPause bound and pace the wait for others who make
	// sockets in the same directory; probeWait bounds the look at a socket
	// that is there already.
	lockWait  = 5 * time.Second
	lockPause = 5 * time.Millisecond
	probeWait = 2 * time.Second
)

// Listener is a Unix socket that has a path. Its Close removes the path, if
// it still leads there.
type Listener struct {
	net.Listener
	path string
	dir  socketDir
	name string
	made fs.FileInfo
	once sync.Once
	err  error
}

// Listen makes a socket with mode 0600 at an absolute path of any length.
// Directories that are missing are made, with mode 0700. The last one must
// belong to us, not be a symbolic link, and be closed to others. The socket of
// a server that has ended is replaced; if one still answers there, the error
// is ErrInUse. Whatever else is at the path is left alone.
func Listen(path string) (*Listener, error) {
	l, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", quote(path), err)
	}
	return l, nil
}

func listen(path string) (*Listener, error) {
	parent, name, err := split(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, fmt.Errorf("make its directory: %w", err)
	}
	dir, err := openOwn(parent)
	if err != nil {
		return nil, err
	}
	l := &Listener{path: path, dir: dir, name: name}
	if err := l.bind(); err != nil {
		dir.close()
		return nil, err
	}
	return l, nil
}

// RemoveDead removes the socket of a server that has ended, if one is at the
// path. What else may be there is left alone.
func RemoveDead(path string) error {
	parent, name, err := split(path)
	if err != nil {
		return fmt.Errorf("remove %s: %w", quote(path), err)
	}
	dir, err := openOwn(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		defer dir.close()
		var unlock func()
		if unlock, err = dir.lock(); err == nil {
			defer unlock()
			err = (&Listener{path: path, dir: dir, name: name}).removeDead()
		}
	}
	if err != nil && !errors.Is(err, ErrInUse) {
		return fmt.Errorf("remove %s: %w", quote(path), err)
	}
	return nil
}

// split refuses what is not a path to a file that a socket can be made at.
func split(path string) (parent, name string, err error) {
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) || strings.HasSuffix(path, "/") {
		return "", "", errors.New("not an absolute path of a file")
	}
	path = filepath.Clean(path)
	parent, name = filepath.Dir(path), filepath.Base(path)
	if name == "/" {
		return "", "", errors.New("not an absolute path of a file")
	}
	return parent, name, nil
}

// bind makes the socket. Others who do the same in this directory wait
// meanwhile, so that nobody removes a socket that was just made, or finds one
// that does not listen yet.
func (l *Listener) bind() (err error) {
	unlock, err := l.dir.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := l.removeDead(); err != nil {
		return err
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("make a socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), l.path)
	defer f.Close()
	// bind gives the file the mode of the socket, less the umask, so that it
	// never has more. The umask itself belongs to all threads.
	if err := syscall.Fchmod(fd, 0o600); err != nil {
		return fmt.Errorf("set the mode of a socket: %w", err)
	}
	address, err := l.dir.address(l.name)
	if err != nil {
		return err
	}
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: address}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	defer func() {
		if err != nil {
			l.dir.root.Remove(l.name)
		}
	}()
	if l.made, err = l.dir.root.Lstat(l.name); err != nil {
		return err
	}
	if l.made.Mode().Perm() != 0o600 { // the umask took from the owner
		if err := os.Chmod(address, 0o600); err != nil {
			return err
		}
		if l.made, err = l.dir.root.Lstat(l.name); err != nil {
			return err
		}
	}
	if l.made.Mode() != fs.ModeSocket|0o600 {
		return fmt.Errorf("it has mode %v, not that of a socket that only its owner may use", l.made.Mode())
	}
	if err := syscall.Listen(fd, backlog); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	l.Listener, err = net.FileListener(f)
	return err
}

// removeDead removes a socket at the path whose server has ended.
func (l *Listener) removeDead() error {
	fi, err := l.dir.root.Lstat(l.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case fi.Mode().Type() != fs.ModeSocket:
		return errors.New("there is something that is not a socket; remove it")
	}
	address, err := l.dir.address(l.name)
	if err != nil {
		return err
	}
	c, err := net.DialTimeout("unix", address, probeWait)
	switch {
	case err == nil:
		c.Close()
		return ErrInUse
	case errors.Is(err, syscall.EAGAIN): // so many wait that no more may
		return ErrInUse
	case errors.Is(err, syscall.ECONNREFUSED):
		err = l.dir.root.Remove(l.name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find out whether a server answers there: %w", err)
	}
	return nil
}

// Addr is the path.
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Current reports whether the path still leads to the socket, and not to that of
// somebody without manners.
func (l *Listener) Current() bool {
	fi, err := l.dir.root.Lstat(l.name)
	return err == nil && os.SameFile(fi, l.made)
}

// Close ends Accept and removes the socket, unless another one is at its path
// by now. To call it again does nothing.
func (l *Listener) Close() error {
	l.once.Do(func() {
		// As long as it listens, nobody of good manners puts another one
		// there, so what is ours here is ours in the next line.
		if fi, err := l.dir.root.Lstat(l.name); err == nil && os.SameFile(fi, l.made) {
			l.err = l.dir.root.Remove(l.name)
		}
		l.err = errors.Join(l.err, l.Listener.Close())
		l.dir.close()
	})
	return l.err
}

// socketDir is an open directory.
type socketDir struct {
	root *os.Root
	file *os.File
}

// openOwn opens a directory that nobody else can look into.
func openOwn(path string) (d socketDir, err error) {
	before, err := os.Lstat(path)
	if err != nil {
		return d, err
	}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.root, err = os.OpenRoot(path); err != nil {
		return d, err
	}
	if d.file, err = d.root.Open("."); err != nil {
		return d, err
	}
	fi, err := d.file.Stat()
	if err != nil {
		return d, err
	}
	stat, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case !ok || !os.SameFile(before, fi):
		err = fmt.Errorf("its directory %s is a symbolic link; name the directory itself", quote(path))
	case int(stat.Uid) != os.Geteuid():
		err = fmt.Errorf("its directory %s belongs to uid %d, not to uid %d; remove it", quote(path), stat.Uid, os.Geteuid())
	case fi.Mode().Perm()&0o077 != 0:
		err = fmt.Errorf("its directory %s is open to others (mode %04o); run chmod 700 on it", quote(path), fi.Mode().Perm())
	}
	return d, err
}

func (d socketDir) close() {
	if d.file != nil {
		d.file.Close()
	}
	if d.root != nil {
		d.root.Close()
	}
}

// lock keeps others of our kind out until unlock is called.
func (d socketDir) lock() (unlock func(), err error) {
	f, err := d.root.Open(".") // locks belong to what was opened
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(lockWait); ; time.Sleep(lockPause) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) || time.Now().After(end) {
			f.Close()
			return nil, fmt.Errorf("lock its directory: %w", err)
		}
	}
}

// address is what a name in the directory is called in a socket's address,
// however long the directory's own path is.
func (d socketDir) address(name string) (string, error) { return descriptorPath(d.file, name) }

func descriptorPath(dir *os.File, name string) (string, error) {
	address := "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + name
	if len(address) > maxAddress {
		return "", fmt.Errorf("the name of the file is longer than %d bytes", maxAddress-len(address)+len(name))
	}
	return address, nil
}

// dial connects to a socket. When many others do the same it waits for its
// turn.
func dial(ctx context.Context, path string) (*net.UnixConn, error) {
	parent, name, err := split(path)
	if err != nil {
		return nil, err
	}
	address := path
	if len(address) > maxAddress {
		dir, err := os.OpenFile(parent, syscall.O_DIRECTORY, 0)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		if address, err = descriptorPath(dir, name); err != nil {
			return nil, err
		}
	}
	for {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", address)
		if err == nil {
			return c.(*net.UnixConn), nil
		}
		if errors.Is(err, context.DeadlineExceeded) {
			<-ctx.Done() // it is about to
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		// The queue of the socket is full.
		if !errors.Is(err, syscall.EAGAIN) {
			return nil, cause(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(lockPause):
		}
	}
}

// cause is the error that the system gave: what package net says about it
// names the address, which the caller knows better.
func cause(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}
