package varlink

import (
	"bytes"
	"errors"
	"io"
	"net"
	"syscall"
	"time"
)

// Sizes of receive buffers, in bytes: of the first one, and of the largest
// that is kept for the next message.
const (
	minBuffer  = 4 << 10
	keepBuffer = 64 << 10
)

var errTooLong = errors.New("message is too long")

// frames cuts what a connection sends into messages.
type frames struct {
	conn  net.Conn
	limit int           // bytes of a message
	wait  time.Duration // for the rest of a message that has begun; 0: for ever
	buf   []byte
	start int // in buf, of the next message
	seen  int // bytes from there on without a NUL
}

// next is the next message, which is valid until the next call. At the end
// between two messages the error is io.EOF.
func (f *frames) next() ([]byte, error) {
	timed := false
	for {
		if n := bytes.IndexByte(f.buf[f.start+f.seen:], 0); n >= 0 {
			n += f.seen
			message := f.buf[f.start : f.start+n]
			f.start += n + 1
			f.seen = 0
			if n > f.limit {
				return nil, errTooLong
			}
			if timed {
				if err := f.conn.SetReadDeadline(time.Time{}); err != nil {
					return nil, err
				}
			}
			return message, nil
		}
		f.seen = len(f.buf) - f.start
		if f.seen > f.limit {
			return nil, errTooLong
		}
		if f.seen > 0 && f.wait > 0 && !timed {
			if err := f.conn.SetReadDeadline(time.Now().Add(f.wait)); err != nil {
				return nil, err
			}
			timed = true
		}
		if err := f.fill(); err != nil {
			if errors.Is(err, io.EOF) && f.seen > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// fill reads more.
func (f *frames) fill() error {
	if f.start > 0 {
		n := copy(f.buf, f.buf[f.start:])
		f.buf = f.buf[:n]
		f.start = 0
	}
	if len(f.buf) == 0 && cap(f.buf) > keepBuffer {
		f.buf = nil
	}
	if len(f.buf) == cap(f.buf) {
		size := max(minBuffer, min(2*cap(f.buf), f.limit+minBuffer))
		f.buf = append(make([]byte, 0, size), f.buf...)
	}
	n, err := f.conn.Read(f.buf[len(f.buf):cap(f.buf)])
	f.buf = f.buf[:len(f.buf)+n]
	if n > 0 {
		return nil
	}
	return err
}

// pending reports whether something came that next has not returned.
func (f *frames) pending() bool { return f.start < len(f.buf) }

// waitHangup returns nil as soon as the peer has closed its end. It reads
// nothing, so that calls sent in advance stay where they are and slow their
// sender down. A read deadline ends it with an error.
//
// A peer that only says that it has sent everything (shutdown) has not hung
// up. What tells the two apart is whether one could still send to it.
func waitHangup(conn syscall.Conn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	// The kernel wakes us when something arrives or the other end changes.
	return raw.Read(func(fd uintptr) bool {
		_, err := syscall.SendmsgN(int(fd), nil, nil, nil, syscall.MSG_NOSIGNAL|syscall.MSG_DONTWAIT)
		return err != nil && !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EINTR)
	})
}
