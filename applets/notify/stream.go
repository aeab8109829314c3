package notify

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"
)

const (
	// maxMessage bounds a message that is read, in bytes; what is of interest
	// to us takes hundreds. One that is larger is skipped.
	maxMessage = 64 << 10
	// maxProtocol bounds those that a bus may send at all.
	maxProtocol = 1 << 27
	// writeTimeout is how long a bus may not read.
	writeTimeout = 5 * time.Second
)

var errNotDBus = errors.New("what the bus sends is not D-Bus")

// stream is a connection to a bus for a D-Bus library that would read whatever
// it is sent into memory, and would write for as long as it takes.
type stream struct {
	net.Conn
	in    *bufio.Reader
	begun atomic.Bool // authenticated: from here on there are messages
	head  [16]byte    // of the message that is read
	ahead int         // bytes of it that were not handed on
	left  int         // bytes of the message after it
}

func newStream(conn net.Conn) *stream { return &stream{Conn: conn, in: bufio.NewReader(conn)} }

// Write writes all of b in time, or ends the connection: nothing makes sense
// after a part of a message.
func (s *stream) Write(b []byte) (int, error) {
	if !s.begun.Load() && string(b) == "BEGIN\r\n" {
		s.begun.Store(true)
	}
	_ = s.SetWriteDeadline(time.Now().Add(writeTimeout)) // fails when it is closed
	n, err := s.Conn.Write(b)
	if err != nil {
		s.Close()
	}
	return n, err
}

func (s *stream) Read(b []byte) (int, error) {
	if !s.begun.Load() {
		return s.in.Read(b)
	}
	for s.ahead == 0 && s.left == 0 {
		if err := s.next(); err != nil {
			return 0, err
		}
	}
	if s.ahead > 0 {
		n := copy(b, s.head[len(s.head)-s.ahead:])
		s.ahead -= n
		return n, nil
	}
	n, err := s.in.Read(b[:min(len(b), s.left)])
	s.left -= n
	return n, err
}

// next begins the next message that is not too large.
func (s *stream) next() error {
	for {
		if _, err := io.ReadFull(s.in, s.head[:]); err != nil {
			return err
		}
		var order binary.ByteOrder = binary.LittleEndian
		switch s.head[0] {
		case 'l':
		case 'B':
			order = binary.BigEndian
		default:
			return errNotDBus
		}
		// The fixed part ends with the length of the fields, which are padded to 8 bytes.
		size := int64(order.Uint32(s.head[4:])) + (int64(order.Uint32(s.head[12:]))+7)/8*8
		if size > maxProtocol {
			return errNotDBus
		}
		if size <= maxMessage {
			s.ahead, s.left = len(s.head), int(size)
			return nil
		}
		if _, err := io.CopyN(io.Discard, s.in, size); err != nil {
			return err
		}
	}
}
