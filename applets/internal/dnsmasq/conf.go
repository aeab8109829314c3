package dnsmasq

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
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
			ok = err == nil && a.Zone() == "" || isAnswer(value) || isAnswerBelow(value)
		case "port":
			ok = value == "53"
			port = true
		case "pid-file":
			ok = value == filepath.Join(dir, bundle.FileDnsmasqPID)
			pidFile = true // else it would be the host's own dnsmasq's
		case "log-facility":
			ok = value == filepath.Join(dir, fileLog)
		case "nftset":
			ok = isNftset(value)
		case "address":
			ok = isAnswer(value)
		case "local":
			ok = value == everyName || isAnswer(value) || isAnswerBelow(value)
		case "bogus-nxdomain":
			p, err := netip.ParsePrefix(value)
			ok = err == nil && p == p.Masked()
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

// everyName is what dnsmasq takes as every name.
const everyName = "/#/"

// setsNamed is both sets of that name as nftset takes them.
func setsNamed(name string) string {
	return "4#inet#terok_shield#" + name + "_v4,6#inet#terok_shield#" + name + "_v6"
}

// The names of the sets that dnsmasq fills: in our tables, and in the others'
// of either generation with a dnsmasq tier.
const (
	setLearned = "learned"
	setAllow   = "allow"
	setProject = "t40_project_allow"
)

// isNftset tells "/name/" and the sets that a ruleset opens.
func isNftset(value string) bool {
	rest, ok := cutDomain(value)
	return ok && (rest == setsNamed(setLearned) || rest == setsNamed(setAllow) || rest == setsNamed(setProject))
}

// isAnswerBelow is isAnswer of "/*.name/": only what is below the name.
func isAnswerBelow(value string) bool {
	rest, ok := strings.CutPrefix(value, "/*.")
	return ok && isAnswer("/"+rest)
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

// Conf is the configuration for a bundle of ours: of a name server at listen
// that asks upstream. A name is asked for, and its addresses enter the learned
// sets, as the lists in the bundle say.
func Conf(b *bundle.Bundle, listen, upstream netip.Addr) ([]byte, error) {
	r, err := readRules(b)
	if err != nil {
		return nil, err
	}
	return generate(b.Path(), listen, upstream, r)
}

func generate(dir string, listen, upstream netip.Addr, r *rules) ([]byte, error) {
	if !upstream.IsValid() || upstream.Zone() != "" {
		return nil, errors.New("dnsmasq needs the address of a name server that the container can reach; choose another network, or another tier")
	}
	others := "local=" + everyName
	if r.resolve {
		others = "server=" + upstream.String()
	}
	var out bytes.Buffer
	header(&out)
	for _, line := range []string{
		"listen-address=" + listen.String(),
		"port=53",
		"bind-interfaces",
		"no-resolv",
		"no-hosts",
		others,
		"pid-file=" + filepath.Join(dir, bundle.FileDnsmasqPID),
		"log-queries",
		"log-facility=" + filepath.Join(dir, fileLog),
	} {
		fmt.Fprintln(&out, line)
	}
	for _, line := range options(maxTTL) {
		fmt.Fprintln(&out, line)
	}
	for _, line := range r.lines(upstream, setsNamed(setLearned)) {
		fmt.Fprintln(&out, line)
	}
	if _, err := listenAddress(out.Bytes(), dir); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func header(out *bytes.Buffer) {
	fmt.Fprintf(out, "# Generated by terok-shield (pid %d)\n", os.Getpid())
}

// Rewrite has the configuration of a bundle that another program prepared
// follow the lists in it. Everything else stays as that program wrote it.
func Rewrite(b *bundle.Bundle) error {
	old, err := b.DnsmasqConf()
	if err != nil {
		return err
	}
	r, err := readRules(b)
	if err != nil {
		return err
	}
	upstream, err := b.UpstreamDNS()
	if err != nil {
		return err
	}
	next, err := rewrite(old, b.Path(), upstream, r)
	if err != nil {
		return err
	}
	return b.SetDnsmasqConf(next)
}

func rewrite(old []byte, dir string, upstream netip.Addr, r *rules) ([]byte, error) {
	if _, err := listenAddress(old, dir); err != nil {
		return nil, err
	}
	withDefault := *r // the other program's name servers answer every name
	withDefault.resolve = true
	set := setAllow
	var kept bytes.Buffer
	header(&kept)
	for line := range strings.Lines(string(old)) {
		line = strings.TrimSuffix(line, "\n")
		key, value, _ := strings.Cut(line, "=")
		rest, ofName := cutDomain(value)
		switch {
		case strings.HasPrefix(line, "#"):
			continue
		case key == "nftset":
			if rest == setsNamed(setProject) {
				set = setProject
			}
			continue
		case key == "address" && rest == "", (key == "server" || key == "local") && (ofName || isAnswerBelow(value)):
			continue // how names are denied
		case key == "server":
			if a, err := netip.ParseAddr(value); err == nil && !upstream.IsValid() {
				upstream = a
			}
		}
		fmt.Fprintln(&kept, line)
	}
	if !upstream.IsValid() {
		return nil, errors.New("dnsmasq.conf names no server, and upstream.dns is missing; prepare the container again")
	}
	for _, line := range withDefault.lines(upstream, setsNamed(set)) {
		fmt.Fprintln(&kept, line)
	}
	if _, err := listenAddress(kept.Bytes(), dir); err != nil {
		return nil, err
	}
	return kept.Bytes(), nil
}
