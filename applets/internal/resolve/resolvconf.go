package resolve

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"syscall"
)

const (
	maxResolvConf = 64 << 10 // bytes
	maxServers    = 3        // MAXNS of resolv.h: more are never asked
	port          = 53
)

// System is a resolver that asks the name servers of a resolv.conf file,
// with the default times.
func System(path string) (*Resolver, error) {
	// A pipe in that place must not stop us.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("no name servers known: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("no name servers known: %s is not a regular file", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxResolvConf+1))
	if err != nil {
		return nil, fmt.Errorf("no name servers known: %w", err)
	}
	servers, err := ParseResolvConf(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &Resolver{Servers: servers}, nil
}

// ParseResolvConf is the name servers of a resolv.conf file, the first three
// as in the C library, port 53. Without a nameserver line that is the server
// of this machine; lines with something else than an address are passed
// over, unless there are no others.
func ParseResolvConf(text []byte) ([]netip.AddrPort, error) {
	if len(text) > maxResolvConf {
		return nil, fmt.Errorf("larger than %d KiB", maxResolvConf>>10)
	}
	var servers []netip.AddrPort
	lines := 0
	for line := range bytes.Lines(text) {
		f := bytes.Fields(line)
		if len(f) == 0 || string(f[0]) != "nameserver" {
			continue
		}
		lines++
		if len(f) < 2 {
			continue
		}
		a, err := netip.ParseAddr(string(f[1]))
		a = a.Unmap()
		if err != nil || a.IsMulticast() || a.Zone() != "" && !a.IsLinkLocalUnicast() {
			continue
		}
		if a.IsUnspecified() {
			a = loopback(a) // what a connect to it means
		}
		if s := netip.AddrPortFrom(a, port); len(servers) < maxServers {
			servers = append(servers, s)
		}
	}
	if len(servers) == 0 {
		if lines > 0 {
			return nil, errors.New("no nameserver line has a usable address")
		}
		return []netip.AddrPort{netip.AddrPortFrom(loopback(netip.IPv4Unspecified()), port)}, nil
	}
	return servers, nil
}

// loopback is the loopback address of the same family.
func loopback(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}
