// Package probe is the private program shield-probe: what becomes of a packet
// that a container sends. It runs inside the container, from this binary
// mounted into it, and needs nothing else there.
//
// It must never import another applet.
package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/wire/ascii"
)

// Name is the program's name.
const Name = "shield-probe"

const usage = `usage: shield-probe HOST [PORT]

Sends a byte to a UDP port, 443 by default, and prints a JSON object that says
what became of it: "result" is "open" if nothing objects, "timeout" if it was
dropped without a word, or "icmp-error" with what the error said; a firewall
of terok-shield says admin-prohibited. A name is looked up first.

Exit codes: 0 there is a result, 1 there is none.
`

const (
	defaultPort = 443
	wait        = 3 * time.Second        // for an answer
	waitAgain   = 100 * time.Millisecond // for one to the second packet
	lookupTime  = 10 * time.Second
)

// Run is the program.
func Run(env *cmdenv.Env, args []string) int {
	switch {
	case len(args) == 0 || len(args) > 2:
		fmt.Fprint(env.Stderr, usage)
		return cmdenv.ExitFailure
	case args[0] == "-h" || args[0] == "--help":
		fmt.Fprint(env.Stdout, usage)
		return cmdenv.ExitOK
	}
	ctx, stop := cmdenv.Context()
	defer stop()
	r, err := run(ctx, args)
	if err != nil {
		fmt.Fprintf(env.Stdout, "{\"error\": %s}\n", ascii.AppendString(nil, cmdenv.Printable(err.Error())))
		return cmdenv.ExitFailure
	}
	fmt.Fprintf(env.Stdout, "%s\n", r)
	return cmdenv.ExitOK
}

func run(ctx context.Context, args []string) (result, error) {
	host, port := args[0], uint16(defaultPort)
	if len(args) > 1 {
		n, err := strconv.ParseUint(args[1], 10, 16)
		if err != nil || n == 0 {
			return result{}, fmt.Errorf("invalid port: '%s'", args[1])
		}
		port = uint16(n)
	}
	addr, err := lookup(ctx, host)
	if err != nil {
		return result{}, err
	}
	r, err := send(netip.AddrPortFrom(addr, port))
	r.host, r.port = host, port
	return r, err
}

// lookup is an address of the host, of IPv4 if there is one.
func lookup(ctx context.Context, host string) (netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap(), nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range all {
		if a = a.Unmap(); a.Is4() {
			return a, nil
		}
	}
	return all[0], nil // there is one if there is no error
}

// result is what became of a packet.
type result struct {
	host string
	port uint16
	word string // "open", "timeout" or "icmp-error"
	icmp icmpError
}

// icmpError is what the kernel keeps of an error that somebody has sent.
type icmpError struct {
	six        bool // ICMPv6
	kind, code uint8
	errno      uint32
}

// String is the result as a JSON object.
func (r result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, `{"host": %s, "port": %d, "result": "%s"`, ascii.AppendString(nil, r.host), r.port, r.word)
	if r.word == "icmp-error" {
		fmt.Fprintf(&b, `, "icmp_type": %d, "icmp_code": %d, "icmp_code_name": "%s", "errno": %d`, r.icmp.kind, r.icmp.code, r.icmp.name(), r.icmp.errno)
	}
	b.WriteByte('}')
	return b.String()
}

// name is what the code of an error says.
func (e icmpError) name() string {
	names := []string{ // RFC 792, 1122, 1812
		0: "net-unreachable", 1: "host-unreachable", 2: "protocol-unreachable", 3: "port-unreachable", 4: "fragmentation-needed",
		5: "source-route-failed", 6: "net-unknown", 7: "host-unknown", 9: "net-admin-prohibited", 10: "host-admin-prohibited", 13: "admin-prohibited",
	}
	if e.six { // RFC 4443
		names = []string{"no-route", "admin-prohibited", "beyond-scope", "address-unreachable", "port-unreachable", "failed-policy", "reject-route"}
	}
	if int(e.code) < len(names) && names[e.code] != "" {
		return names[e.code]
	}
	return fmt.Sprintf("code-%d", e.code)
}

// send sends a byte to a UDP port, and another one if nothing objects.
func send(to netip.AddrPort) (result, error) {
	s, err := dial(to)
	if err != nil {
		return result{}, fmt.Errorf("%s: %w", to, err)
	}
	defer s.close()
	first := s.send()
	if e, ok, err := s.objection(wait); ok || err != nil {
		return result{word: "icmp-error", icmp: e}, err
	}
	if first != nil && !dropped(first) {
		return result{}, fmt.Errorf("send to %s: %w", to, first)
	}
	second := s.send()
	if e, ok, err := s.objection(waitAgain); ok || err != nil {
		return result{word: "icmp-error", icmp: e}, err
	}
	if second != nil {
		return result{word: "timeout"}, nil
	}
	return result{word: "open"}, nil
}

// dropped reports whether a packet was sent and dropped by a firewall on this
// side, which the kernel tells.
func dropped(err error) bool { return errors.Is(err, unix.EPERM) }

// socket is a connected UDP socket that keeps the errors that it is sent.
type socket struct {
	fd  int
	six bool
}

func dial(to netip.AddrPort) (s socket, err error) {
	family, level, option := unix.AF_INET, unix.IPPROTO_IP, unix.IP_RECVERR
	var dest unix.Sockaddr
	if s.six = !to.Addr().Is4(); s.six {
		family, level, option = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_RECVERR
		dest = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	} else {
		dest = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	if s.fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return s, err
	}
	if err = unix.SetsockoptInt(s.fd, level, option, 1); err == nil {
		err = unix.Connect(s.fd, dest)
	}
	if err != nil {
		s.close()
	}
	return s, err
}

func (s socket) close() { _ = unix.Close(s.fd) }

func (s socket) send() error {
	_, err := unix.Write(s.fd, []byte{0})
	return err
}

// objection waits for an error that somebody has sent; ok is false if none
// came.
func (s socket) objection(wait time.Duration) (e icmpError, ok bool, err error) {
	for end := time.Now().Add(wait); ; {
		fds := []unix.PollFd{{Fd: int32(s.fd)}} // POLLERR comes unasked
		n, err := unix.Poll(fds, int(max(0, time.Until(end).Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return e, false, fmt.Errorf("wait for an answer: %w", err)
		case n == 0:
			return e, false, nil
		}
		e, ok, err := s.queued()
		if ok || err != nil {
			return e, ok, err
		}
		if time.Until(end) <= 0 {
			return e, false, nil
		}
	}
}

// Of struct sock_extended_err, <linux/errqueue.h>.
const (
	originICMP  = 2
	originICMP6 = 3
	minExtended = 16 // bytes
)

// queued takes an error off the socket's queue; ok is false if there is none,
// or one that came from nobody but this host's kernel.
func (s socket) queued() (e icmpError, ok bool, err error) {
	control := make([]byte, 512)
	_, n, _, _, err := unix.Recvmsg(s.fd, make([]byte, 1), control, unix.MSG_ERRQUEUE)
	if errors.Is(err, unix.EAGAIN) { // what was pending is no entry of the queue
		_, err = unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		return e, false, err
	}
	if err != nil {
		return e, false, fmt.Errorf("read the queue of errors: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		return e, false, fmt.Errorf("read the queue of errors: %w", err)
	}
	for _, m := range messages {
		if e, ok := extended(m.Data); ok {
			return e, true, nil
		}
	}
	return e, false, nil
}

// extended reads a sock_extended_err; ok is false if it is none, or not of
// somebody's message.
func extended(data []byte) (e icmpError, ok bool) {
	if len(data) < minExtended || data[4] != originICMP && data[4] != originICMP6 {
		return e, false
	}
	return icmpError{six: data[4] == originICMP6, kind: data[5], code: data[6], errno: binary.NativeEndian.Uint32(data)}, true
}
