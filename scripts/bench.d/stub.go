package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The stub is a name server as fast as this machine allows: what is measured
// is what asks it. Messages are those of RFC 1035 §4.1.
const (
	dnsHeader = 12
	typeA     = 1
	classIN   = 1
	stubTTL   = 3600
	response  = 1<<15 | 1<<8 | 1<<7 // QR, RD, RA
)

// startStub answers every A question with one address that belongs to the
// name, and every other with nothing. It takes and sends as many packets at a
// time as there are, in a thread that does nothing else, so that it leaves the
// processors to what is measured.
func startStub(at netip.AddrPort) (stop func(), err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a name server: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make a name server: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		serveStub(fd)
		close(done)
	}()
	return func() {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR) // wakes the thread, whatever it returns
		<-done
		unix.Close(fd)
	}, nil
}

const (
	stubBatch = 64
	stubSize  = 4096
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	size uint32
	_    [4]byte
}

// serveStub answers until fd is shut down.
func serveStub(fd int) {
	var in, out [stubBatch][stubSize]byte
	var from [stubBatch]unix.RawSockaddrInet4
	var inVec, outVec [stubBatch]unix.Iovec
	var got, answers [stubBatch]mmsghdr
	for {
		for i := range got {
			inVec[i] = unix.Iovec{Base: &in[i][0], Len: stubSize}
			got[i] = mmsghdr{Msghdr: unix.Msghdr{
				Name: (*byte)(unsafe.Pointer(&from[i])), Namelen: unix.SizeofSockaddrInet4, Iov: &inVec[i], Iovlen: 1,
			}}
		}
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&got[0])), stubBatch, unix.MSG_WAITFORONE, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 || got[0].size == 0 && got[0].Namelen == 0 { // shut down
			return
		}
		ready := 0
		for i := range int(n) {
			a, ok := stubAnswer(out[ready][:0], in[i][:got[i].size])
			if !ok {
				continue
			}
			outVec[ready] = unix.Iovec{Base: &out[ready][0], Len: uint64(len(a))}
			answers[ready] = mmsghdr{Msghdr: unix.Msghdr{
				Name: (*byte)(unsafe.Pointer(&from[i])), Namelen: unix.SizeofSockaddrInet4, Iov: &outVec[ready], Iovlen: 1,
			}}
			ready++
		}
		for sent := 0; sent < ready; {
			n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&answers[sent])), uintptr(ready-sent), 0, 0, 0)
			sent += max(int(n), 0)
			if errno != 0 { // of that one: whoever asked has gone
				sent++
			}
		}
	}
}

// stubAnswer appends the answer to q.
func stubAnswer(b, q []byte) ([]byte, bool) {
	end, ok := questionEnd(q)
	if !ok {
		return nil, false
	}
	isA := binary.BigEndian.Uint16(q[end-4:]) == typeA
	b = append(b, q[:end]...)
	binary.BigEndian.PutUint16(b[2:], response)
	answers := uint16(0)
	if isA {
		answers = 1
	}
	for i, n := range []uint16{1, answers, 0, 0} {
		binary.BigEndian.PutUint16(b[4+2*i:], n)
	}
	if isA {
		addr := addressOf(q[dnsHeader : end-4])
		b = append(b, 0xc0, dnsHeader, 0, typeA, 0, classIN)
		b = binary.BigEndian.AppendUint32(b, stubTTL)
		b = append(b, 0, 4)
		b = append(b, addr[:]...)
	}
	return b, true
}

// addressOf is a public address that belongs to a name, whatever its case.
func addressOf(name []byte) [4]byte {
	h := fnv.New32a()
	for _, c := range name {
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		h.Write([]byte{c})
	}
	const first, ranges = 20, 64 // 20.0.0.0 to 83.255.255.255: none of them special
	x := h.Sum32() % (ranges << 24)
	return [4]byte{first + byte(x>>24), byte(x >> 16), byte(x >> 8), byte(x)}
}

// questionEnd is where the only question of a message ends.
func questionEnd(q []byte) (int, bool) {
	if len(q) < dnsHeader || binary.BigEndian.Uint16(q[4:]) != 1 || q[2]&0x80 != 0 {
		return 0, false
	}
	i := dnsHeader
	for i < len(q) && q[i] != 0 {
		if q[i] > 63 {
			return 0, false
		}
		i += 1 + int(q[i])
	}
	i += 1 + 4
	return i, i <= len(q)
}

// question is a message that asks for a name's A records.
func question(id uint16, name string) []byte {
	b := binary.BigEndian.AppendUint16(nil, id)
	b = append(b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0) // RD, one question
	for label := range strings.SplitSeq(name, ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0, 0, typeA, 0, classIN)
}

// checkAnswer refuses what does not answer q with an address.
func checkAnswer(q, a []byte) error {
	if len(a) < dnsHeader || binary.BigEndian.Uint16(a) != binary.BigEndian.Uint16(q) {
		return errors.New("a wrong message for an answer")
	}
	if rcode, n := a[3]&0xf, binary.BigEndian.Uint16(a[6:]); rcode != 0 || n == 0 {
		return fmt.Errorf("answer with code %d and %d records", rcode, n)
	}
	return nil
}
