// Package kerneltest lets tests use the real kernel without privileges: in
// user and network namespaces of their own. What a test needs and cannot have
// fails it; nothing is skipped.
//
// It is for tests only and must never be imported by anything else.
package kerneltest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/nl/netns"
)

// system is where programs that take themselves for root write. The tests have
// one of their own.
const system = "/etc/containers"

// Main is the body of a TestMain: it runs the tests in fresh user, network and
// mount namespaces as uid 0, with lo up, and exits. Called by root or by an
// ordinary user it makes the namespaces and runs this binary again inside; in
// such namespaces already, as by unshare -Urnm, it runs the tests at once.
func Main(m interface{ Run() int }) {
	inside, err := fresh()
	switch {
	case err != nil:
	case !inside:
		os.Exit(again())
	default:
		err = errors.Join(netns.LoopbackUp(), hide(system), probe())
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "kerneltest: %v\n", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// fresh reports whether this process is alone in namespaces like those that
// again makes: one user, who is root and owns the network namespace.
func fresh() (bool, error) {
	uids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false, err
	}
	if f := strings.Fields(string(uids)); len(f) != 3 || f[0] != "0" || f[2] != "1" {
		return false, nil
	}
	for _, kind := range []string{"net", "mnt"} {
		if own, err := owned(kind); err != nil || !own {
			return false, err
		}
	}
	return true, nil
}

// owned reports whether this process's namespace of a kind belongs to its user
// namespace.
func owned(kind string) (bool, error) {
	ns, err := os.Open("/proc/self/ns/" + kind)
	if err != nil {
		return false, err
	}
	defer ns.Close()
	owner, err := unix.IoctlRetInt(int(ns.Fd()), unix.NS_GET_USERNS)
	if errors.Is(err, unix.EPERM) {
		return false, nil // somebody else's
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(owner)
	var a, b unix.Stat_t
	if err := unix.Fstat(owner, &a); err != nil {
		return false, err
	}
	if err := unix.Stat("/proc/self/ns/user", &b); err != nil {
		return false, err
	}
	return a.Dev == b.Dev && a.Ino == b.Ino, nil
}

// hide puts an empty directory in the place of one of the machine's.
func hide(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil // what cannot be made cannot be written to
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("hide %s from the tests: %w", dir, err)
	}
	return nil
}

// again runs this test binary in new namespaces and returns its exit code.
func again() int {
	runtime.LockOSThread() // the child dies with this thread
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = os.Args
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState != nil {
			return max(cmd.ProcessState.ExitCode(), 1)
		}
		fmt.Fprintf(os.Stderr, "kerneltest: make user, network and mount namespaces (are unprivileged ones allowed here?): %v\n", err)
		return 1
	}
	return 0
}

// probe finds out whether there is nf_tables.
func probe() error {
	_, err := nftGeneration()
	return err
}

// nftGeneration asks nf_tables for its generation (NFT_MSG_GETGEN), which is
// the first attribute of the answer.
func nftGeneration() (uint32, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, fmt.Errorf("reach netfilter: %w", err)
	}
	defer unix.Close(fd)
	order := binary.NativeEndian
	msg := make([]byte, unix.SizeofNlMsghdr+4) // and struct nfgenmsg
	order.PutUint32(msg, uint32(len(msg)))
	order.PutUint16(msg[4:], unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN)
	order.PutUint16(msg[6:], unix.NLM_F_REQUEST)
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, fmt.Errorf("ask nf_tables: %w", err)
	}
	reply := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, reply, unix.MSG_DONTWAIT)
	if err != nil {
		return 0, fmt.Errorf("hear from nf_tables: %w", err)
	}
	if n >= unix.SizeofNlMsghdr+4 && order.Uint16(reply[4:]) == unix.NLMSG_ERROR {
		errno := -int32(order.Uint32(reply[unix.SizeofNlMsghdr:]))
		return 0, fmt.Errorf("this kernel has no nf_tables: %w", unix.Errno(errno))
	}
	const generation = unix.SizeofNlMsghdr + 4 + unix.SizeofRtAttr
	if n < generation+4 {
		return 0, fmt.Errorf("nf_tables answers with %d bytes", n)
	}
	return binary.BigEndian.Uint32(reply[generation:]), nil
}

// NewNS is a further network namespace, empty but for lo, which is up. It ends
// with the test.
func NewNS(t testing.TB) *netns.NS {
	t.Helper()
	own, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	var ns *netns.NS
	if err := own.Do(func() (err error) { // on a thread that ends here
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err = netns.LoopbackUp(); err != nil {
			return err
		}
		ns, err = netns.Current()
		return err
	}); err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// Addresses of a Pair, from the ranges for documentation (RFC 5737, RFC 3849).
var (
	A4 = netip.MustParseAddr("192.0.2.1")
	B4 = netip.MustParseAddr("192.0.2.2")
	A6 = netip.MustParseAddr("2001:db8::1")
	B6 = netip.MustParseAddr("2001:db8::2")
)

// Pair connects two namespaces: a is a host with default routes to b, and b is
// the whole internet, answering to every address in 198.51.100.0/24,
// 203.0.113.0/24, 10.0.0.0/8 and 2001:db8:1::/48.
func Pair(t testing.TB, a, b *netns.NS) {
	t.Helper()
	IP(t, a, fmt.Sprintf("link add eth0 type veth peer name eth0 netns /proc/%d/fd/%d", os.Getpid(), b.File().Fd()))
	IP(t, a,
		"addr add 192.0.2.1/24 dev eth0",
		"addr add 2001:db8::1/64 dev eth0 nodad",
		"link set eth0 up")
	IP(t, b,
		"addr add 192.0.2.2/24 dev eth0",
		"addr add 2001:db8::2/64 dev eth0 nodad",
		"link set eth0 up",
		"route add local 198.51.100.0/24 dev lo",
		"route add local 203.0.113.0/24 dev lo",
		"route add local 10.0.0.0/8 dev lo",
		"-6 route add local 2001:db8:1::/48 dev lo")
	IP(t, a,
		"route add default via 192.0.2.2",
		"-6 route add default via 2001:db8::2")
}

// IP runs commands of ip(8) in a namespace, words separated by spaces.
func IP(t testing.TB, ns *netns.NS, commands ...string) {
	t.Helper()
	for _, c := range commands {
		command(t, ns, "", "ip", strings.Fields(c)...)
	}
}

// NFT runs nft(8) in a namespace and returns what it prints. A stdin is given
// to it for -f -.
func NFT(t testing.TB, ns *netns.NS, stdin string, args ...string) string {
	t.Helper()
	return command(t, ns, stdin, "nft", args...)
}

func command(t testing.TB, ns *netns.NS, stdin, name string, args ...string) string {
	t.Helper()
	// Distributions keep these where an ordinary user's PATH does not look.
	for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"} {
		if _, err := os.Stat(dir + name); err == nil {
			name = dir + name
			break
		}
	}
	var out, errs strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := ns.Do(cmd.Run); err != nil { // a child is born into its thread's namespace
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, errs.String())
	}
	return out.String()
}

// ListenUDP opens a socket in a namespace, also at an address that only a
// route makes local.
func ListenUDP(t testing.TB, ns *netns.NS, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c net.PacketConn
	if err := ns.Do(func() (err error) {
		c, err = listenConfig.ListenPacket(context.Background(), "udp", at.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

// ListenTCP is the same for TCP.
func ListenTCP(t testing.TB, ns *netns.NS, at netip.AddrPort) *net.TCPListener {
	t.Helper()
	var l net.Listener
	if err := ns.Do(func() (err error) {
		l, err = listenConfig.Listen(context.Background(), "tcp", at.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// ListenLoopback listens on UDP and TCP at one free port of 127.0.0.1 in the
// network namespace of the tests, as a name server does.
func ListenLoopback(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	const tries = 20 // what is free for the one may not be for the other
	var err error
	for range tries {
		var l net.Listener
		var c net.PacketConn
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			break
		}
		if c, err = net.ListenPacket("udp", l.Addr().String()); err == nil {
			t.Cleanup(func() { l.Close(); c.Close() })
			return c, l
		}
		l.Close()
	}
	t.Fatal(err)
	return nil, nil
}

var listenConfig = net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) (err error) {
	level, option := unix.SOL_IP, unix.IP_FREEBIND
	if strings.HasSuffix(network, "6") {
		level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
	}
	if controlErr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), level, option, 1)
	}); controlErr != nil {
		return controlErr
	}
	return err
}}

// SendUDP sends one datagram from a namespace. Blocked, its error is EPERM.
func SendUDP(ns *netns.NS, to netip.AddrPort) error {
	return ns.Do(func() error {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("x"))
		return err
	})
}

// DialTCP connects from a namespace and closes at once. Rejected, its error is
// EHOSTUNREACH or EACCES; dropped, a timeout.
func DialTCP(ns *netns.NS, to netip.AddrPort, timeout time.Duration) error {
	return ns.Do(func() error {
		c, err := net.DialTimeout("tcp", to.String(), timeout)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// Generation is a number that every transaction of nf_tables in a namespace
// raises by one.
func Generation(t testing.TB, ns *netns.NS) (generation uint32) {
	t.Helper()
	if err := ns.Do(func() (err error) {
		generation, err = nftGeneration()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return generation
}
