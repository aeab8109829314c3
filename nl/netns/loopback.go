package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// LoopbackUp brings up lo in the namespace of the calling thread.
func LoopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	return nil
}

// AddLoopbackAddr adds an address to lo in the namespace of the calling
// thread. That it is there already is no error.
func AddLoopbackAddr(a netip.Addr) error {
	if err := addLoopbackAddr(a); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add %s to lo: %w", a, err)
	}
	return nil
}

// addLoopbackAddr sends one RTM_NEWADDR (rtnetlink(7)) and reads its answer.
func addLoopbackAddr(a netip.Addr) error {
	if !a.IsValid() || a.Zone() != "" {
		return errors.New("not an address")
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	family := byte(unix.AF_INET)
	if a.Is6() {
		family = unix.AF_INET6
	}
	const loIndex = 1 // LOOPBACK_IFINDEX: the same in every namespace
	order := binary.NativeEndian
	msg := make([]byte, unix.SizeofNlMsghdr)
	order.PutUint16(msg[4:], unix.RTM_NEWADDR)
	order.PutUint16(msg[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	// struct ifaddrmsg; nobody else can have the address, and a socket is to be
	// bound to it at once.
	msg = append(msg, family, byte(a.BitLen()), unix.IFA_F_NODAD, unix.RT_SCOPE_HOST)
	msg = order.AppendUint32(msg, loIndex)
	for _, attr := range []uint16{unix.IFA_LOCAL, unix.IFA_ADDRESS} {
		b := a.AsSlice()
		msg = order.AppendUint16(msg, uint16(unix.SizeofRtAttr+len(b)))
		msg = order.AppendUint16(msg, attr)
		msg = append(msg, b...)
	}
	order.PutUint32(msg, uint32(len(msg)))
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	// The kernel answers before it returns from the send.
	reply := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, reply, unix.MSG_DONTWAIT)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 || order.Uint16(reply[4:]) != unix.NLMSG_ERROR {
		return errors.New("unexpected answer of the kernel")
	}
	if errno := int32(order.Uint32(reply[unix.SizeofNlMsghdr:])); errno != 0 {
		return unix.Errno(-errno)
	}
	return nil
}
