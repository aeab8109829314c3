package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sizes and flags of netlink and nfnetlink messages (linux/netlink.h,
// linux/netfilter/nfnetlink.h).
const (
	headerSize   = unix.SizeofNlMsghdr
	genHeader    = 4 // struct nfgenmsg: family, version, resource id
	batchMessage = headerSize + genHeader

	// readSize is more than the kernel puts into one answer: it stops at 32 KiB.
	readSize = 64 << 10
)

var (
	// errChanged: the ruleset changed while it was read.
	errChanged = errors.New("the ruleset keeps changing")
	// errLost: the kernel's answer did not fit the receive buffer or never
	// came. What was asked for may have happened.
	errLost = errors.New("the kernel's answer was lost")
)

// message is a request to nf_tables.
type message struct {
	typ   uint16 // NFT_MSG_…
	flags uint16 // NLM_F_…, besides REQUEST
	body  []byte // attributes
	about string // for error messages: "add set x"
}

func (m *message) size() int { return batchMessage + (len(m.body)+3)&^3 }

// socket is a netlink socket. Requests to nfnetlink are carried out within the
// system call that sends them, so answers are there when it returns, and no
// call here ever waits.
type socket struct {
	fd     int
	seq    uint32
	sndbuf int  // bytes of one batch, less some overhead
	fixed  bool // sndbuf is as large as it gets
	buf    []byte
	out    []byte // for the next batch
	stale  bool   // answers may be there that nobody waits for any more

	// known is the generation of the ruleset in which the learned sets were
	// found to be what they should; 0: not looked at. See persist.
	known   uint32
	refuses uint8 // whether the kernel refuses a batch of another generation: unknown, yes, no
}

// sendOverhead is what the kernel wants to stay free of a send buffer
// (netlink_sendmsg).
const sendOverhead = 32

func dial() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	s := &socket{fd: fd, buf: make([]byte, readSize)}
	if s.sndbuf, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	// Errors come back without the message that they are about, so that many
	// of them fit.
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return s, nil
}

// room is how many bytes of messages one batch may have. It tries to make it
// at least want.
func (s *socket) room(want int) int {
	const overhead = 2*batchMessage + sendOverhead
	if want+overhead > s.sndbuf && !s.fixed {
		// The first needs privileges on the host, the second is capped by
		// net.core.wmem_max. Whatever they achieve, the size is read back.
		if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, want+overhead) != nil {
			_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, want+overhead)
		}
		if n, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF); err == nil {
			s.sndbuf = n
		}
	}
	return s.sndbuf - overhead
}

// appendMessage appends m with its headers.
func appendMessage(b []byte, m *message, typ uint16, seq uint32, resource uint16) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(batchMessage+len(m.body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, m.flags|unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0) // port: the kernel fills it in
	family := byte(unix.NFPROTO_INET)
	if typ == unix.NFNL_MSG_BATCH_BEGIN || typ == unix.NFNL_MSG_BATCH_END {
		family = unix.NFPROTO_UNSPEC
	}
	b = append(b, family, unix.NFNETLINK_V0)
	b = binary.BigEndian.AppendUint16(b, resource)
	b = append(b, m.body...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func messageType(typ uint16) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | typ }

// reply is a message from the kernel.
type reply struct {
	typ, flags uint16
	seq        uint32
	body       []byte // valid until the next read
}

// read takes one datagram. more is false if there is none.
func (s *socket) read(f func(reply) error) (more bool, err error) {
	var n int
	for {
		if n, err = receive(s.fd, s.buf); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	switch {
	case errors.Is(err, unix.EAGAIN):
		return false, nil
	case errors.Is(err, unix.ENOBUFS):
		return true, errLost
	case err != nil:
		return false, fmt.Errorf("read from netlink: %w", err)
	case n > len(s.buf):
		return true, fmt.Errorf("netlink answer of %d bytes: %w", n, errLost)
	}
	return true, messages(s.buf[:n], f)
}

// receive reads a datagram that is there, and returns its size, which may be
// more than fits into b. Unlike unix.Recvfrom it allocates nothing, and as it
// never waits the scheduler need not know.
func receive(fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
		unix.MSG_DONTWAIT|unix.MSG_TRUNC, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// messages calls f with each message of a datagram.
func messages(b []byte, f func(reply) error) error {
	for len(b) > 0 {
		if len(b) < headerSize {
			return fmt.Errorf("netlink answer: %d bytes left over", len(b))
		}
		size := int(binary.NativeEndian.Uint32(b))
		if size < headerSize || size > len(b) {
			return fmt.Errorf("netlink answer: message of %d bytes in the space of %d", size, len(b))
		}
		r := reply{
			typ:   binary.NativeEndian.Uint16(b[4:]),
			flags: binary.NativeEndian.Uint16(b[6:]),
			seq:   binary.NativeEndian.Uint32(b[8:]),
			body:  b[headerSize:size],
		}
		if err := f(r); err != nil {
			return err
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}

// errno reads the result that an NLMSG_ERROR or NLMSG_DONE carries.
func (r reply) errno() error {
	if len(r.body) < 4 {
		return nil
	}
	if e := int32(binary.NativeEndian.Uint32(r.body)); e != 0 {
		return unix.Errno(-e)
	}
	return nil
}

// drain throws away answers that nobody waits for any more.
func (s *socket) drain() {
	s.stale = false
	for {
		if more, err := s.read(func(reply) error { return nil }); !more && err == nil {
			return
		} else if err != nil && !errors.Is(err, errLost) {
			return
		}
	}
}

func (s *socket) write(b []byte) error {
	for {
		_, err := unix.Write(s.fd, b)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// get sends one request and calls f with the generation and attributes of
// every object in its answer.
func (s *socket) get(m *message, f func(generation uint16, f *fields) error) error {
	s.seq++
	seq := s.seq
	if err := s.write(appendMessage(nil, m, messageType(m.typ), seq, 0)); err != nil {
		return fmt.Errorf("%s: %w", m.about, err)
	}
	dump := m.flags&unix.NLM_F_DUMP != 0
	finished, changed := false, false
	var failed error
	for !finished {
		more, err := s.read(func(r reply) error {
			switch {
			case r.seq != seq: // of an earlier request that was given up
			case r.typ == unix.NLMSG_ERROR:
				finished = true
				failed = r.errno()
			case r.typ == unix.NLMSG_DONE:
				finished = true
				failed = errors.Join(failed, r.errno())
				changed = changed || r.flags&unix.NLM_F_DUMP_INTR != 0
			case r.typ>>8 == unix.NFNL_SUBSYS_NFTABLES:
				finished = finished || !dump
				changed = changed || r.flags&unix.NLM_F_DUMP_INTR != 0
				if failed != nil { // the rest of a dump must still be read
					return nil
				}
				if len(r.body) < genHeader {
					return fmt.Errorf("netlink answer of %d bytes", len(r.body))
				}
				attrs, err := parseFields(r.body[genHeader:])
				if err == nil {
					err = f(binary.BigEndian.Uint16(r.body[2:]), &attrs)
				}
				failed = err
			}
			return nil
		})
		if err == nil && !more {
			err = errLost
		}
		if err != nil {
			s.drain()
			return fmt.Errorf("%s: %w", m.about, err)
		}
	}
	if changed {
		failed = errChanged // whatever else: it is of no single state
	}
	if failed != nil {
		return fmt.Errorf("%s: %w", m.about, failed)
	}
	return nil
}

// errCommit is what the kernel says to a batch; the batch had no effect.
type errCommit struct {
	about string
	errno error
}

func (e *errCommit) Error() string { return fmt.Sprintf("%s: %v", e.about, e.errno) }
func (e *errCommit) Unwrap() error { return e.errno }

// batch has messages carried out, all or none. After an error that is no
// *errCommit it is not known which.
func (s *socket) batch(msgs []message) error { return s.batchAt(msgs, 0) }

// keepBuffer is the largest buffer of a batch that is kept for the next.
const keepBuffer = 64 << 10

// batchAt is batch that fails with ERESTART if the ruleset's generation is
// another one, unless that is 0.
func (s *socket) batchAt(msgs []message, generation uint32) error {
	if s.stale {
		s.drain()
	}
	size := 2*batchMessage + generationAttr
	for i := range msgs {
		size += msgs[i].size()
	}
	first := s.seq + 1
	b := s.out
	s.out = nil
	if cap(b) < size {
		b = make([]byte, 0, size)
	}
	var begin message
	var attr [generationAttr]byte
	if generation != 0 {
		begin.body = appendGeneration(attr[:0], generation)
	}
	b = appendMessage(b[:0], &begin, unix.NFNL_MSG_BATCH_BEGIN, first, unix.NFNL_SUBSYS_NFTABLES)
	for i := range msgs {
		m := msgs[i]
		// The kernel reports errors unasked. One acknowledgement, of the last
		// message, shows that it got as far; one of each would overflow the
		// receive buffer.
		if i == len(msgs)-1 {
			m.flags |= unix.NLM_F_ACK
		}
		b = appendMessage(b, &m, messageType(m.typ), first+1+uint32(i), 0)
	}
	last := first + uint32(len(msgs))
	b = appendMessage(b, &message{}, unix.NFNL_MSG_BATCH_END, last+1, unix.NFNL_SUBSYS_NFTABLES)
	s.seq = last + 1
	err := s.write(b)
	if cap(b) <= keepBuffer {
		s.out = b
	}
	if err != nil {
		return fmt.Errorf("send %d bytes to netfilter: %w", len(b), err)
	}
	s.stale = true // until all is read
	var failed error
	acknowledged, lost := false, false
	for {
		// The acknowledgement is the last answer: errors come before it.
		if acknowledged && failed == nil && !lost {
			s.stale = false
			return nil
		}
		more, err := s.read(func(r reply) error {
			if r.typ != unix.NLMSG_ERROR || r.seq < first || r.seq > last+1 {
				return nil
			}
			errno := r.errno()
			switch {
			case errno != nil && failed == nil:
				about := "commit"
				if r.seq > first && r.seq <= last {
					about = msgs[r.seq-first-1].about
				}
				failed = &errCommit{about, errno}
			case errno == nil && r.seq == last:
				acknowledged = true
			}
			return nil
		})
		if errors.Is(err, errLost) {
			lost = true
			continue
		}
		if err != nil {
			return err
		}
		if !more {
			break
		}
	}
	s.stale = false
	if failed != nil {
		return failed
	}
	return errLost
}

// generationAttr is the size of the attribute that names a generation.
const generationAttr = attrHeader + 4

func appendGeneration(b []byte, generation uint32) []byte {
	b = appendAttr(b, unix.NFNL_BATCH_GENID, 4)
	return binary.BigEndian.AppendUint32(b, generation)
}
