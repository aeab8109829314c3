package dnsmasq

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/terok-ai/terok-box/wire/bundle"
)

// maxLine is the longest line, in bytes without its end, that dnsmasq reads as
// one, end included (MAXDNAME, 1025, in its sources is a buffer's size): the
// rest of a longer one is a line of its own to it, even after a comment sign.
const maxLine = 1023

// listenAddress checks a configuration and returns the address that dnsmasq
// is to bind. dnsmasq would also run programs, read other files and serve
// them if its configuration said so; only what preparing a container writes
// is accepted. dir is the state directory.
func listenAddress(conf []byte, dir string) (netip.Addr, error) {
	fail := func(line int, format string, a ...any) (netip.Addr, error) {
		return netip.Addr{}, fmt.Errorf("dnsmasq.conf line %d: %w; prepare the container again", line, fmt.Errorf(format, a...))
	}
	// Inside its lines dnsmasq knows quotes, escapes and comments.
	if strings.ContainsAny(dir, `"\`) || strings.Contains(dir, " #") {
		return netip.Addr{}, fmt.Errorf("dnsmasq cannot write files in %q: it does not take such a name; use another state directory", dir)
	}
	var listen netip.Addr
	var port, pidFile bool
	n := 0
	for line := range strings.Lines(string(conf)) {
		n++
		line = strings.TrimSuffix(line, "\n")
		if len(line) > maxLine {
			return fail(n, "longer than %d bytes", maxLine)
		}
		if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return fail(n, "control character")
		}
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, hasValue := strings.Cut(line, "=")
		var ok bool
		switch key {
		case "listen-address":
			a, err := netip.ParseAddr(value)
			switch {
			case err != nil || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsMulticast():
				return fail(n, "listen-address=%.80q is not an address to listen at", value)
			case listen.IsValid():
				return fail(n, "a second listen-address")
			}
			listen, ok = a, true
		case "server":
			a, err := netip.ParseAddr(value)
			ok = err == nil && a.Zone() == "" || isAnswer(value)
		case "port":
			ok = value == "53"
			port = true
		case "pid-file":
			ok = value == filepath.Join(dir, bundle.FileDnsmasqPID)
			pidFile = true // else it would be the host's own dnsmasq's
		case "log-facility":
			ok = value == filepath.Join(dir, "dnsmasq.log")
		case "nftset":
			ok = isNftset(value)
		case "address", "local":
			ok = isAnswer(value)
		case "bind-interfaces", "no-resolv", "no-hosts", "no-poll", "no-negcache", "log-queries", "stop-dns-rebind", "filter-AAAA":
			ok = !hasValue
		case "cache-size", "neg-ttl", "max-ttl", "local-ttl", "max-cache-ttl", "dns-forward-max":
			ok = len(value) < 10 && value != "" && strings.Trim(value, "0123456789") == ""
		}
		if !ok {
			return fail(n, "%.80q is nothing that preparing a container writes", line)
		}
	}
	if !listen.IsValid() || !port || !pidFile {
		return netip.Addr{}, errors.New("dnsmasq.conf lacks listen-address, port or pid-file; prepare the container again")
	}
	return listen, nil
}

// isNftset tells "/name/" and the sets that a ruleset opens, of either
// generation of rulesets with a dnsmasq tier.
func isNftset(value string) bool {
	rest, ok := cutDomain(value)
	for _, set := range []string{"allow", "t40_project_allow"} {
		if ok && rest == "4#inet#terok_shield#"+set+"_v4,6#inet#terok_shield#"+set+"_v6" {
			return true
		}
	}
	return false
}

// isAnswer tells "/name/" and what is answered or asked instead: an address,
// nothing, or "#" (a null address, or the usual server).
func isAnswer(value string) bool {
	rest, ok := cutDomain(value)
	if !ok || rest == "" || rest == "#" {
		return ok
	}
	a, err := netip.ParseAddr(rest)
	return err == nil && a.Zone() == ""
}

// cutDomain is what follows "/name/".
func cutDomain(value string) (rest string, ok bool) {
	value, ok = strings.CutPrefix(value, "/")
	name, rest, found := strings.Cut(value, "/")
	return rest, ok && found && name != "" && len(name) <= 253 && !strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_')
	})
}
