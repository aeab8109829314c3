package resolve

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	maxResolvConf = 64 << 10 // bytes
	maxServers    = 3        // MAXNS of resolv.h: more are never asked
	port          = 53
)

// What options are worth at most, as in the C library (RES_MAXRETRANS and
// RES_MAXRETRY of resolv.h).
const (
	maxTimeout  = 30 // seconds
	maxAttempts = 5
)

// Config is what a resolv.conf file says (resolv.conf(5)).
type Config struct {
	Servers  []netip.AddrPort // at least one, at most three
	Timeout  time.Duration    // options timeout: how long to wait for a server, 1-30 s; 0 if it does not say
	Attempts int              // options attempts: how often to ask each, 1-5; 0 if it does not say
	Rotate   bool             // options rotate: every server gets its share of the questions
	TCP      bool             // options use-vc: no UDP
}

// System is a resolver that asks the name servers of a resolv.conf file,
// with the default times.
func System(path string) (*Resolver, error) {
	text, err := readResolvConf(path)
	if err != nil {
		return nil, fmt.Errorf("no name servers known: %w", err)
	}
	servers, err := ParseResolvConf(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &Resolver{Servers: servers}, nil
}

// readResolvConf reads a regular file, and no more than one byte above the
// limit of it.
func readResolvConf(path string) ([]byte, error) {
	// A pipe in that place must not stop us.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return io.ReadAll(io.LimitReader(f, maxResolvConf+1))
}

// ParseResolvConf is the name servers of a resolv.conf file: see ParseConfig.
func ParseResolvConf(text []byte) ([]netip.AddrPort, error) {
	c, err := ParseConfig(text)
	return c.Servers, err
}

// ParseConfig reads a resolv.conf file: its name servers, the first three
// as in the C library, port 53, and the options that concern them. Without a
// nameserver line that is the server of this machine; lines with something
// else than an address are passed over, unless there are no others.
func ParseConfig(text []byte) (Config, error) {
	c, _, err := parseConfig(text)
	return c, err
}

// parseConfig also says how many nameserver lines there are.
func parseConfig(text []byte) (c Config, lines int, err error) {
	if len(text) > maxResolvConf {
		return Config{}, 0, fmt.Errorf("larger than %d KiB", maxResolvConf>>10)
	}
	for line := range bytes.Lines(text) {
		f := bytes.Fields(line)
		if len(f) == 0 {
			continue
		}
		switch string(f[0]) {
		case "nameserver":
			lines++
			if len(f) < 2 || len(c.Servers) == maxServers {
				continue
			}
			if a, ok := serverAddr(string(f[1])); ok {
				c.Servers = append(c.Servers, netip.AddrPortFrom(a, port))
			}
		case "options":
			for _, o := range f[1:] {
				c.option(string(o))
			}
		}
	}
	if len(c.Servers) == 0 {
		if lines > 0 {
			return Config{}, lines, errors.New("no nameserver line has a usable address")
		}
		c.Servers = []netip.AddrPort{netip.AddrPortFrom(loopback(netip.IPv4Unspecified()), port)}
	}
	return c, lines, nil
}

// serverAddr is the address of a nameserver line.
func serverAddr(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	a = a.Unmap()
	if err != nil || a.IsMulticast() || a.Zone() != "" && !a.IsLinkLocalUnicast() {
		return netip.Addr{}, false
	}
	if a.IsUnspecified() {
		a = loopback(a) // what a connect to it means
	}
	return a, true
}

// option takes in one word of an options line; the last one of a kind counts.
func (c *Config) option(word string) {
	key, value, _ := strings.Cut(word, ":")
	switch key {
	case "rotate":
		c.Rotate = true
	case "use-vc":
		c.TCP = true
	case "timeout":
		if n, err := strconv.ParseUint(value, 10, 16); err == nil {
			c.Timeout = time.Duration(min(max(n, 1), maxTimeout)) * time.Second
		}
	case "attempts":
		if n, err := strconv.ParseUint(value, 10, 16); err == nil {
			c.Attempts = int(min(max(n, 1), maxAttempts))
		}
	}
}

// loopback is the loopback address of the same family.
func loopback(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}
