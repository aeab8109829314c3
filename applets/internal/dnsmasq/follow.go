package dnsmasq

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

const (
	// fileLog is dnsmasq's log of questions, in the state directory.
	fileLog = "dnsmasq.log"
	// maxLog is the size in bytes beyond which it is begun anew, and what of
	// an older one is read.
	maxLog = 4 << 20
)

// follower reads what is added to the log, once.
type follower struct {
	path   string
	f      *os.File
	offset int64
	rest   []byte // a line without its end yet
	skip   bool   // that line is too long
	buf    []byte
}

// poll calls f with the lines that were added since. A log that has grown too
// large is emptied: dnsmasq goes on at its start, since it only appends.
func (l *follower) poll(f func(line string)) error {
	if err := l.open(); err != nil || l.f == nil {
		return err
	}
	for read := 0; read < 2*maxLog; { // it may grow as fast as it is read
		n, err := l.f.ReadAt(l.buf, l.offset)
		l.offset += int64(n)
		read += n
		l.take(l.buf[:n], f)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read dnsmasq's log: %w", err)
		}
	}
	if l.offset <= maxLog {
		return nil
	}
	if err := l.f.Truncate(0); err != nil {
		return fmt.Errorf("begin dnsmasq's log anew: %w", err)
	}
	l.offset, l.rest, l.skip = 0, nil, false
	return nil
}

// open opens the log that is there now, or finds that it is the open one.
func (l *follower) open() error {
	named, err := os.Lstat(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		l.close()
		return nil
	}
	if err != nil {
		return fmt.Errorf("dnsmasq's log: %w", err)
	}
	if l.f != nil && os.SameFile(l.info(), named) {
		if named.Size() < l.offset { // somebody else has emptied it
			l.offset, l.rest, l.skip = 0, nil, false
		}
		return nil
	}
	l.close()
	// It belongs to the user that dnsmasq runs as.
	f, err := os.OpenFile(l.path, os.O_RDWR|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("dnsmasq's log: %w", err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file; remove it", l.path)
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("dnsmasq's log: %w", err)
	}
	if l.buf == nil {
		l.buf = make([]byte, 64<<10)
	}
	l.f = f
	if l.offset = max(0, fi.Size()-maxLog); l.offset > 0 {
		l.skip = true // the rest of a line
	}
	return nil
}

// info is the open file's, which cannot fail.
func (l *follower) info() fs.FileInfo {
	fi, err := l.f.Stat()
	if err != nil {
		return nil
	}
	return fi
}

// take calls f with every line that p ends.
func (l *follower) take(p []byte, f func(line string)) {
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			if len(l.rest)+len(p) > maxLogLine {
				l.rest, l.skip = l.rest[:0], true
			}
			if !l.skip {
				l.rest = append(l.rest, p...)
			}
			return
		}
		if whole := append(l.rest, p[:i]...); !l.skip && len(whole) <= maxLogLine {
			f(string(whole))
		}
		l.rest, l.skip = l.rest[:0], false
		p = p[i+1:]
	}
}

func (l *follower) close() {
	if l.f != nil {
		l.f.Close()
	}
	l.f, l.offset, l.rest, l.skip = nil, 0, nil, false
}

func newFollower(dir string) *follower { return &follower{path: filepath.Join(dir, fileLog)} }
