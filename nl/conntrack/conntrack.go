// Package conntrack ends tracked connections of a network namespace, so that
// an address that is no longer allowed is not reached over one that was.
//
// It must never import anything but the standard library, x/sys and
// mdlayher/netlink.
package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Messages and attributes of linux/netfilter/nfnetlink_conntrack.h.
const (
	msgGet    = 1 // IPCTNL_MSG_CT_GET
	msgDelete = 2 // IPCTNL_MSG_CT_DELETE

	attrTupleOrig = 1  // CTA_TUPLE_ORIG
	attrID        = 12 // CTA_ID
	attrZone      = 18 // CTA_ZONE

	tupleIP = 1 // CTA_TUPLE_IP
	ipV4Dst = 2 // CTA_IP_V4_DST
	ipV6Dst = 4 // CTA_IP_V6_DST
	ipV4Src = 1 // CTA_IP_V4_SRC
	ipV6Src = 3 // CTA_IP_V6_SRC
)

const (
	headerSize = unix.SizeofNlMsghdr
	genHeader  = 4 // struct nfgenmsg: family, version, resource id
	attrHeader = unix.SizeofNlAttr
	attrType   = 0x3fff // without NLA_F_NESTED and NLA_F_NET_BYTEORDER

	// readSize is more than the kernel puts into one answer: it stops at 32 KiB.
	readSize = 64 << 10
	// cutTime bounds how long one call ends connections: a container may have
	// as many as the kernel tracks (nf_conntrack_max).
	cutTime = 2 * time.Second
)

// Conn is a connection to the connection tracking of one network namespace.
// Its methods can be called at the same time, and from any thread.
type Conn struct {
	mu sync.Mutex
	// What is listed is ended at once, over another socket, so that nobody has
	// to remember it. nil: closed.
	list, end *socket
}

// socket is a netlink socket.
type socket struct {
	fd  int
	seq uint32
	buf []byte
}

var (
	errClosed = errors.New("the connection to connection tracking is closed")
	errSlow   = errors.New("there are too many, or they are made as fast as they are ended")
)

// Dial connects to the network namespace of the calling thread, and stays
// connected to it wherever it is used.
func Dial() (*Conn, error) {
	list, err := newSocket()
	if err != nil {
		return nil, err
	}
	end, err := newSocket()
	if err != nil {
		list.close()
		return nil, err
	}
	return &Conn{list: list, end: end}, nil
}

func newSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("reach connection tracking: %w", err)
	}
	return &socket{fd: fd, buf: make([]byte, readSize)}, nil
}

func (s *socket) close() error { return unix.Close(s.fd) }

// Close disconnects. Closing twice is no error.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.list == nil {
		return nil
	}
	err := errors.Join(c.list.close(), c.end.close())
	c.list, c.end = nil, nil
	return err
}

// Cut forgets every connection from or to one of the addresses, whoever opened
// it, and returns how many there were. What comes next of such a connection
// meets the rules like the beginning of a new one. It takes two seconds at
// most; if that was not enough, some go on after the error.
func (c *Conn) Cut(to []netip.Addr) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.list == nil {
		return 0, errClosed
	}
	if len(to) == 0 {
		return 0, nil
	}
	want := make(map[netip.Addr]bool, len(to))
	for _, a := range to {
		want[a] = true
	}
	n, deadline := 0, time.Now().Add(cutTime)
	// While entries come and go a dump can miss some: it is read until one
	// shows nothing more.
	for {
		found := false
		for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
			err := c.list.dump(family, func(e entry) error {
				if !want[e.to] && !want[e.from] {
					return nil
				}
				found = true
				switch err := c.end.delete(e); {
				case errors.Is(err, unix.ENOENT): // ended meanwhile
				case err != nil:
					return fmt.Errorf("end the connection to %s: %w", e.to, err)
				default:
					n++
				}
				if time.Now().After(deadline) {
					return errSlow
				}
				return nil
			})
			if err != nil {
				return n, fmt.Errorf("cut connections, after %d of them: %w", n, err)
			}
		}
		if !found {
			return n, nil
		}
	}
}

// entry is a tracked connection. Its slices are valid until the next read.
type entry struct {
	family byte
	from   netip.Addr
	to     netip.Addr
	tuple  []byte // of the original direction, as it came
	id     []byte
	zone   []byte
}

// dump calls f with the connections of a family, up to its first error.
func (s *socket) dump(family byte, f func(entry) error) error {
	if err := s.send(family, msgGet, unix.NLM_F_DUMP, nil); err != nil {
		return err
	}
	var failed error
	for done := false; !done; {
		err := s.read(func(typ uint16, body []byte) error {
			switch {
			case typ == unix.NLMSG_DONE || typ == unix.NLMSG_ERROR:
				done = true
				failed = errors.Join(failed, errno(body))
			// After an error the rest is read, too: no other dump begins before.
			case typ>>8 == unix.NFNL_SUBSYS_CTNETLINK && failed == nil:
				e, err := decode(body)
				if err == nil {
					err = f(e)
				}
				failed = err
			}
			return nil
		})
		if err != nil {
			return errors.Join(failed, err)
		}
	}
	return failed
}

// decode reads one connection.
func decode(body []byte) (entry, error) {
	if len(body) < genHeader {
		return entry{}, fmt.Errorf("connection of %d bytes", len(body))
	}
	e := entry{family: body[0]}
	err := attributes(body[genHeader:], func(typ uint16, v []byte) error {
		switch typ {
		case attrTupleOrig:
			e.tuple = v
		case attrID:
			e.id = v
		case attrZone:
			e.zone = v
		}
		return nil
	})
	if err != nil {
		return entry{}, err
	}
	err = attributes(e.tuple, func(typ uint16, v []byte) error {
		if typ != tupleIP {
			return nil
		}
		return attributes(v, func(typ uint16, v []byte) error {
			addr, ok := netip.AddrFromSlice(v)
			switch typ {
			case ipV4Dst, ipV6Dst:
				e.to = addr
			case ipV4Src, ipV6Src:
				e.from = addr
			default:
				ok = true
			}
			if !ok {
				return fmt.Errorf("address of %d bytes", len(v))
			}
			return nil
		})
	})
	if err == nil && !e.to.IsValid() {
		err = errors.New("connection without addresses")
	}
	return e, err
}

// delete ends one connection.
func (s *socket) delete(e entry) error {
	var attrs []byte
	attrs = appendAttr(attrs, attrTupleOrig|unix.NLA_F_NESTED, e.tuple)
	if e.id != nil { // else another one between the same ends could be meant
		attrs = appendAttr(attrs, attrID, e.id)
	}
	if e.zone != nil {
		attrs = appendAttr(attrs, attrZone, e.zone)
	}
	if err := s.send(e.family, msgDelete, unix.NLM_F_ACK, attrs); err != nil {
		return err
	}
	for acknowledged := false; !acknowledged; {
		err := s.read(func(typ uint16, body []byte) error {
			if typ != unix.NLMSG_ERROR {
				return nil
			}
			acknowledged = true
			return errno(body)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func appendAttr(b []byte, typ uint16, v []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeader+len(v)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, v...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// send sends one request.
func (s *socket) send(family byte, typ, flags uint16, attrs []byte) error {
	s.seq++
	size := headerSize + genHeader + len(attrs)
	b := make([]byte, 0, size)
	b = binary.NativeEndian.AppendUint32(b, uint32(size))
	b = binary.NativeEndian.AppendUint16(b, unix.NFNL_SUBSYS_CTNETLINK<<8|typ)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, s.seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, family, unix.NFNETLINK_V0, 0, 0)
	b = append(b, attrs...)
	for {
		_, err := unix.Write(s.fd, b)
		if err != unix.EINTR {
			return err
		}
	}
}

// read takes one datagram. The kernel answers before it returns from the
// send, so nothing here ever waits.
func (s *socket) read(f func(typ uint16, body []byte) error) error {
	var n int
	var err error
	for {
		n, _, err = unix.Recvfrom(s.fd, s.buf, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		if err != unix.EINTR {
			break
		}
	}
	switch {
	case err == unix.EAGAIN:
		return errors.New("the kernel's answer was lost")
	case err != nil:
		return err
	case n > len(s.buf):
		return fmt.Errorf("answer of %d bytes", n)
	}
	return messages(s.buf[:n], s.seq, f)
}

// messages calls f with each message of a datagram that answers the request
// seq.
func messages(b []byte, seq uint32, f func(typ uint16, body []byte) error) error {
	for len(b) > 0 {
		if len(b) < headerSize {
			return fmt.Errorf("answer: %d bytes left over", len(b))
		}
		size := int(binary.NativeEndian.Uint32(b))
		if size < headerSize || size > len(b) {
			return fmt.Errorf("answer: message of %d bytes in the space of %d", size, len(b))
		}
		if binary.NativeEndian.Uint32(b[8:]) == seq { // else of one that was given up
			if err := f(binary.NativeEndian.Uint16(b[4:]), b[headerSize:size]); err != nil {
				return err
			}
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}

// attributes calls f with each netlink attribute.
func attributes(b []byte, f func(typ uint16, v []byte) error) error {
	for len(b) > 0 {
		if len(b) < attrHeader {
			return fmt.Errorf("attributes: %d bytes left over", len(b))
		}
		size := int(binary.NativeEndian.Uint16(b))
		if size < attrHeader || size > len(b) {
			return fmt.Errorf("attribute of %d bytes in the space of %d", size, len(b))
		}
		if err := f(binary.NativeEndian.Uint16(b[2:])&attrType, b[attrHeader:size]); err != nil {
			return err
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}

// errno is what an NLMSG_ERROR says; nil for an acknowledgement.
func errno(body []byte) error {
	if len(body) < 4 {
		return fmt.Errorf("answer of %d bytes", len(body))
	}
	if e := int32(binary.NativeEndian.Uint32(body)); e != 0 {
		return unix.Errno(-e)
	}
	return nil
}
