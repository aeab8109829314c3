// Package nflog reads the packets that a firewall logs to a group of
// nfnetlink_log, and says where each was to go.
//
// The bytes of a packet are the container's, so nothing in them is trusted. It
// must never import anything but the standard library and x/sys.
package nflog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Messages and attributes of nfnetlink_log (linux/netfilter/nfnetlink_log.h).
const (
	msgPacket = 0
	msgConfig = 1

	cfgCmd    = 1 // u8
	cfgMode   = 2 // struct nfulnl_msg_config_mode: be32 range, u8 mode, u8 padding
	cfgQThres = 5 // be32
	cfgFlags  = 6 // be16

	cmdBind     = 1
	modePacket  = 2
	flagSeq     = 1
	attrPayload = 9
	attrPrefix  = 10
	attrSeq     = 12

	attrType = 0x3fff // the rest are flags (NLA_TYPE_MASK)
)

const (
	headerSize = unix.SizeofNlMsghdr
	genHeader  = 4 // struct nfgenmsg: family, version, be16 group

	// CopyRange is how many bytes of a packet there are at most: enough for
	// the headers of what anybody sends.
	CopyRange = 128
	// maxPrefix is NF_LOG_PREFIXLEN, in bytes, with the final NUL.
	maxPrefix = 128

	// receiveBuffer lets 4 MiB of messages wait. It loses nothing at some
	// 380,000 packets a second.
	receiveBuffer = 4 << 20
	// datagramSize holds what the kernel says of a packet, which is the bytes
	// copied, a prefix and some numbers.
	datagramSize = 4 << 10
	// batch is how many datagrams are read at once.
	batch = 16
	// maxDrain is how many batches one Receive takes.
	maxDrain = 64
)

// ErrBusy says that another process reads the group in this namespace: the
// kernel gives packets to one only.
var ErrBusy = errors.New("another process reads the packets that this network's firewall logs")

// Packet is a logged packet.
type Packet struct {
	Prefix  string // what the rule says, printable ASCII, at most 127 bytes
	Payload []byte // from the IP header on, at most CopyRange bytes; valid during the call
	Seq     uint32 // counts all packets of the group, also lost ones
}

// Conn reads one group. Receive and Rest are for one goroutine at a time, the
// others for any.
type Conn struct {
	file   *os.File
	raw    syscall.RawConn
	lost   atomic.Uint64
	next   uint32 // sequence number of the next packet, if known
	known  bool
	prefix string // of the last packet

	buf  []byte // of a batch of datagrams
	iovs [batch]unix.Iovec
	msgs [batch]mmsghdr

	// What try is to do and what came of it. It is made once: what is made
	// for every packet would be a lot of garbage.
	try  func(fd uintptr) (done bool)
	wait bool
	n    int
	err  error
}

// mmsghdr is the struct of that name in recvmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	len uint32
}

// Open starts to read a group in the network namespace of the calling thread.
// From then on nothing is missed. If somebody else reads it, the error is
// ErrBusy.
func Open(group uint16) (*Conn, error) { return open(group, receiveBuffer) }

func open(group uint16, buffer int) (_ *Conn, err error) {
	fail := func(what string, err error) (*Conn, error) {
		return nil, fmt.Errorf("read log group %d: %s: %w", group, what, err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return fail("open a netlink socket", err)
	}
	c, err := newConn(fd)
	if err != nil {
		return fail("wait for packets", err)
	}
	c.known = true
	defer func() {
		if err != nil {
			c.file.Close()
		}
	}()
	// Connected to the kernel, the socket takes messages from nobody else.
	if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fail("connect to the kernel", err)
	}
	// The first needs privileges on the host, the second is capped by
	// net.core.rmem_max.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer); err != nil {
			return fail("set its buffer", err)
		}
	}
	switch err := request(fd, c.buf, bind(group)); {
	case errors.Is(err, unix.EPERM) && request(fd, c.buf, generation()) == nil:
		return nil, fmt.Errorf("log group %d: %w", group, ErrBusy)
	case err != nil:
		return fail("bind", err)
	}
	return c, nil
}

// Adopt goes on with what another process began, of whose socket fd is a
// duplicate: what has come meanwhile is still in it. What was lost before the
// first packet does not count. The Conn owns fd.
func Adopt(fd int) (*Conn, error) {
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil || protocol != unix.NETLINK_NETFILTER {
		unix.Close(fd)
		return nil, errors.Join(fmt.Errorf("file descriptor %d gets no logged packets", fd), err)
	}
	c, err := newConn(fd)
	if err != nil {
		return nil, fmt.Errorf("wait for packets: %w", err)
	}
	return c, nil
}

// newConn is a Conn with a socket, which it owns.
func newConn(fd int) (_ *Conn, err error) {
	c := &Conn{file: os.NewFile(uintptr(fd), "nflog"), buf: make([]byte, batch*datagramSize)}
	if c.raw, err = c.file.SyscallConn(); err != nil {
		c.file.Close()
		return nil, err
	}
	for i := range batch {
		c.iovs[i].Base = &c.buf[i*datagramSize]
		c.iovs[i].SetLen(datagramSize)
		c.msgs[i].Iov = &c.iovs[i]
		c.msgs[i].SetIovlen(1)
	}
	c.try = func(fd uintptr) bool {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&c.msgs[0])), batch, unix.MSG_DONTWAIT, 0, 0)
		c.n, c.err = int(n), nil
		if errno != 0 {
			c.n, c.err = 0, errno
		}
		return errno != unix.EAGAIN || !c.wait
	}
	return c, nil
}

// SyscallConn is the socket, for a duplicate that Adopt can go on with. As long
// as there is one, nobody else can read the group.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.file.SyscallConn() }

// request sends a message and reads what the kernel says to it. Requests to
// nfnetlink are carried out within the system call that sends them, so the
// answer is there when it returns. Packets before it count as lost.
func request(fd int, buf, msg []byte) error {
	seq := binary.NativeEndian.Uint32(msg[8:])
	for {
		_, err := unix.Write(fd, msg)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			return err
		}
	}
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case err == unix.EINTR || err == unix.ENOBUFS:
			continue
		case err == unix.EAGAIN:
			return errors.New("the kernel's answer was lost: try again")
		case err != nil:
			return err
		}
		answer := errUnanswered
		malformed := messages(buf[:n], func(typ uint16, got uint32, body []byte) {
			if typ == unix.NLMSG_ERROR && got == seq && len(body) >= 4 {
				answer = nil
				if e := int32(binary.NativeEndian.Uint32(body)); e != 0 {
					answer = unix.Errno(-e)
				}
			}
		})
		if malformed != nil {
			return malformed
		}
		if answer != errUnanswered { //nolint:errorlint // it is this very value
			return answer
		}
	}
}

var errUnanswered = errors.New("no answer")

// header is what a request begins with, to be completed by sized.
func header(typ uint16, seq uint32, group uint16) []byte {
	b := binary.NativeEndian.AppendUint32(nil, 0)
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0) // port: the kernel fills it in
	b = append(b, unix.AF_UNSPEC, unix.NFNETLINK_V0)
	return binary.BigEndian.AppendUint16(b, group)
}

func sized(b []byte) []byte {
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

func appendAttr(b []byte, typ uint16, value ...byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// bind makes this socket the group's reader and says what it wants, all in one
// message: the start of each packet at once, instead of all of it after a
// second, with a number by which a loss shows.
func bind(group uint16) []byte {
	b := header(unix.NFNL_SUBSYS_ULOG<<8|msgConfig, 1, group)
	b = appendAttr(b, cfgCmd, cmdBind)
	b = appendAttr(b, cfgMode, 0, 0, 0, CopyRange, modePacket, 0)
	b = appendAttr(b, cfgQThres, 0, 0, 0, 1)
	b = appendAttr(b, cfgFlags, 0, flagSeq)
	return sized(b)
}

// generation asks what anybody may know who may use netfilter at all.
func generation() []byte {
	return sized(header(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 2, 0))
}

// ErrInterrupted says that Interrupt was called.
var ErrInterrupted = errors.New("interrupted")

// Receive waits until there is a packet and calls f with it and with those
// that have come by then. After Close its error is os.ErrClosed, after
// Interrupt ErrInterrupted.
func (c *Conn) Receive(f func(Packet)) error { return c.receive(f, true) }

// Interrupt ends a waiting Receive, and those to come; what is there can still
// be had with Rest.
func (c *Conn) Interrupt() error { return c.deadline(time.Unix(1, 0)) }

// Rest calls f with the packets that are there after Interrupt, as many as one
// Receive takes, and waits for none.
func (c *Conn) Rest(f func(Packet)) error {
	if err := c.deadline(time.Time{}); err != nil {
		return err
	}
	return c.receive(f, false)
}

// deadline sets when waiting ends; it fails only once c is closed.
func (c *Conn) deadline(t time.Time) error {
	if c.file.SetReadDeadline(t) != nil {
		return os.ErrClosed
	}
	return nil
}

func (c *Conn) receive(f func(Packet), wait bool) error {
	packets := 0
	for range maxDrain {
		n, err := c.read(wait && packets == 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOBUFS): // what was lost shows in the next number
			continue
		case err != nil:
			return fmt.Errorf("read logged packets: %w", err)
		}
		for i := range n {
			packets += c.take(c.datagram(i), f)
		}
		if n < batch && packets > 0 { // there are no more
			return nil
		}
	}
	return nil
}

// take calls f with the packets of a datagram and returns how many there were.
// What is not understood is lost, which shows in the next number.
func (c *Conn) take(b []byte, f func(Packet)) (packets int) {
	_ = messages(b, func(typ uint16, _ uint32, body []byte) {
		if typ != unix.NFNL_SUBSYS_ULOG<<8|msgPacket {
			return
		}
		p, numbered, err := c.packet(body)
		if err != nil {
			return
		}
		if numbered {
			if !c.known {
				c.next, c.known = p.Seq, true
			}
			c.lost.Add(uint64(p.Seq - c.next)) // modulo 2³²
			c.next = p.Seq + 1
		}
		packets++
		f(p)
	})
	return packets
}

// read takes a batch of datagrams and returns how many there are. If there is
// none, it waits for one or fails with EAGAIN.
func (c *Conn) read(wait bool) (n int, err error) {
	c.wait = wait
	switch err := c.raw.Read(c.try); {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, ErrInterrupted
	case err != nil:
		return 0, os.ErrClosed
	}
	return c.n, c.err
}

// datagram is one of the batch, cut if it was too long.
func (c *Conn) datagram(i int) []byte {
	return c.buf[i*datagramSize:][:min(c.msgs[i].len, datagramSize)]
}

// Lost is how many packets of the group, before the last one received, did not
// fit the buffer.
func (c *Conn) Lost() uint64 { return c.lost.Load() }

// Close ends a waiting Receive, and lets others read the group.
func (c *Conn) Close() error { return c.file.Close() }

// messages calls f with each message of a datagram. NLMSG_DONE, which ends
// some, is one of them.
func messages(b []byte, f func(typ uint16, seq uint32, body []byte)) error {
	for len(b) > 0 {
		if len(b) < headerSize {
			return fmt.Errorf("netlink message: %d bytes left over", len(b))
		}
		size := binary.NativeEndian.Uint32(b)
		if size < headerSize || uint64(size) > uint64(len(b)) {
			return fmt.Errorf("netlink message of %d bytes in the space of %d", size, len(b))
		}
		f(binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:]), b[headerSize:size])
		b = b[min((int(size)+3)&^3, len(b)):]
	}
	return nil
}

// packet reads a message about a packet; numbered is false if it has no
// sequence number.
func (c *Conn) packet(b []byte) (p Packet, numbered bool, err error) {
	if len(b) < genHeader {
		return Packet{}, false, fmt.Errorf("logged packet of %d bytes", len(b))
	}
	for b = b[genHeader:]; len(b) > 0; {
		if len(b) < unix.SizeofRtAttr {
			return Packet{}, false, fmt.Errorf("attribute of a logged packet: %d bytes left over", len(b))
		}
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return Packet{}, false, fmt.Errorf("attribute of %d bytes in the space of %d", size, len(b))
		}
		value := b[unix.SizeofRtAttr:size]
		switch binary.NativeEndian.Uint16(b[2:]) & attrType {
		case attrPayload:
			p.Payload = value[:min(len(value), CopyRange)]
		case attrPrefix:
			p.Prefix = c.printable(value)
		case attrSeq:
			if len(value) != 4 {
				return Packet{}, false, fmt.Errorf("sequence number of %d bytes", len(value))
			}
			p.Seq, numbered = binary.BigEndian.Uint32(value), true
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return p, numbered, nil
}

// printable is a prefix up to its NUL, with a dot for what cannot be shown.
func (c *Conn) printable(b []byte) string {
	b = b[:min(len(b), maxPrefix-1)]
	for i, x := range b {
		if x == 0 {
			b = b[:i]
			break
		}
		if x < ' ' || x > '~' {
			b[i] = '.'
		}
	}
	if string(b) != c.prefix { // most are as the one before: no copy
		c.prefix = string(b)
	}
	return c.prefix
}
