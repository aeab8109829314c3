package varlink

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
)

// pieces is a connection on which bytes arrive a few at a time.
type pieces struct {
	net.Conn
	data []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.size)], p.data)
	p.data = p.data[n:]
	return n, nil
}

// FuzzFrames cuts bytes that arrive in pieces into the same messages as
// bytes.Split.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("a\x00bc\x00\x00d"), uint16(3), uint8(1))
	f.Add(bytes.Repeat([]byte("abcdefg\x00"), 2000), uint16(7), uint8(200))
	f.Add(bytes.Repeat([]byte("x"), 9000), uint16(8999), uint8(255))
	f.Fuzz(func(t *testing.T, data []byte, limit uint16, piece uint8) {
		in := frames{conn: &pieces{data: data, size: 1 + int(piece)}, limit: int(limit)}
		want := bytes.Split(data, []byte{0})
		for i, w := range want {
			got, err := in.next()
			last := i == len(want)-1 // what has no NUL
			switch {
			case len(w) > int(limit):
				if !errors.Is(err, errTooLong) {
					t.Fatalf("%d bytes of %d: %v", len(w), limit, err)
				}
				return
			case last && len(w) == 0:
				if err != io.EOF {
					t.Fatalf("at the end: %v", err)
				}
			case last:
				if !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("in a message: %v", err)
				}
			case err != nil || !bytes.Equal(got, w):
				t.Fatalf("%q, %v, want %q", got, err, w)
			}
			if cap(in.buf) > max(2*minBuffer, 2*keepBuffer, in.limit+minBuffer) {
				t.Fatalf("buffer of %d bytes", cap(in.buf))
			}
		}
	})
}

// A long message does not keep its memory.
func TestBufferShrinks(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	go func() {
		defer a.Close()
		a.Write(append(bytes.Repeat([]byte("x"), 1<<20), 0))
		a.Write([]byte("y\x00"))
	}()
	in := frames{conn: b, limit: 1 << 20}
	for range 2 {
		if _, err := in.next(); err != nil {
			t.Fatal(err)
		}
	}
	if cap(in.buf) > keepBuffer {
		t.Errorf("buffer of %d bytes", cap(in.buf))
	}
}
