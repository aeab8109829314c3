package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Ruleset is the text of the firewall to apply. A missing file is an error.
func (b *Bundle) Ruleset() (string, error) {
	data, err := b.read(FileRuleset, maxRuleset)
	if err != nil {
		return "", fmt.Errorf("firewall rules: %w", err)
	}
	return string(data), nil
}

// SetRuleset replaces the text of the firewall.
func (b *Bundle) SetRuleset(text string) error {
	return b.write(FileRuleset, []byte(text), maxRuleset, durable)
}

// UpstreamDNS is the address of the resolver that the container's resolver
// asks; invalid if there is no such file.
func (b *Bundle) UpstreamDNS() (netip.Addr, error) {
	word, err := b.word(FileUpstreamDNS)
	if word == "" || err != nil {
		return netip.Addr{}, err
	}
	addr, err := netip.ParseAddr(word)
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, b.bad(FileUpstreamDNS, 1, word, "an IP address")
	}
	return addr, nil
}

// SetUpstreamDNS replaces the resolver's address.
func (b *Bundle) SetUpstreamDNS(addr netip.Addr) error {
	if !addr.IsValid() || addr.Zone() != "" {
		return fmt.Errorf("write %s: %v is not an IP address without zone", b.name(FileUpstreamDNS), addr)
	}
	return b.write(FileUpstreamDNS, []byte(addr.String()+"\n"), maxSmall, durable)
}

// Tier is how the container's domain names become addresses.
type Tier string

// The tiers. Programs that share the directory have finer words for them.
const (
	Proxy   Tier = "proxy"   // our resolver runs in the container's namespace
	Dnsmasq Tier = "dnsmasq" // dnsmasq does
	Static  Tier = "static"  // nothing does; names were resolved beforehand
)

// Tier is the tier the container was prepared for; "" if there is no such
// file.
func (b *Bundle) Tier() (Tier, error) {
	word, err := b.word(FileTier)
	if err != nil {
		return "", err
	}
	switch word {
	case "":
		return "", nil
	case "proxy":
		return Proxy, nil
	case "dnsmasq", "dnsmasq-live":
		return Dnsmasq, nil
	case "dig", "getent", "lookup", "dnsmasq-static":
		return Static, nil
	}
	return "", b.bad(FileTier, 1, word, "a DNS tier")
}

// SetTier replaces the tier. The static tier is written as "dig", the word
// for it that every program reading the directory knows.
func (b *Bundle) SetTier(t Tier) error {
	switch t {
	case Proxy, Dnsmasq, Static:
		return b.write(FileTier, []byte(t.Word()+"\n"), maxSmall, durable)
	}
	return fmt.Errorf("write %s: %s is not a DNS tier", b.name(FileTier), quote(string(t)))
}

// Word is how the tier is written in files and annotations.
func (t Tier) Word() string {
	if t == Static {
		return "dig"
	}
	return string(t)
}

// LoopbackPorts are the TCP ports of the host that the container may reach,
// without repetitions: nil if there is no such file, empty if it is empty.
func (b *Bundle) LoopbackPorts() ([]uint16, error) {
	data, ok, err := b.readOptional(FileLoopbackPorts, maxList)
	if !ok {
		return nil, err
	}
	ports := []uint16{}
	seen := make(map[uint16]bool)
	for n, line := range lines(data) {
		u, err := strconv.ParseUint(line, 10, 16)
		if err != nil || u == 0 {
			return nil, b.bad(FileLoopbackPorts, n, line, "a TCP port from 1 to 65535")
		}
		if port := uint16(u); !seen[port] {
			seen[port] = true
			ports = append(ports, port)
		}
	}
	return ports, nil
}

// SetLoopbackPorts replaces the ports.
func (b *Bundle) SetLoopbackPorts(ports []uint16) error {
	var out []byte
	for _, p := range ports {
		if p == 0 {
			return fmt.Errorf("write %s: 0 is not a TCP port", b.name(FileLoopbackPorts))
		}
		out = append(strconv.AppendUint(out, uint64(p), 10), '\n')
	}
	return b.write(FileLoopbackPorts, out, maxList, durable)
}

// ProfileAllowed are the networks the profiles allow: those they name, then
// the addresses their domains had when ProfileAllowedTime says.
func (b *Bundle) ProfileAllowed() ([]netip.Prefix, error) { return b.prefixes(FileProfileAllowed) }

// SetProfileAllowed replaces them and their time.
func (b *Bundle) SetProfileAllowed(ps []netip.Prefix) error {
	return b.setPrefixes(FileProfileAllowed, ps)
}

// ProfileAllowedTime is when ProfileAllowed was written; zero if never.
func (b *Bundle) ProfileAllowedTime() (time.Time, error) {
	f, err := b.openFile(FileProfileAllowed, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return time.Time{}, err
	}
	return fi.ModTime(), nil
}

// LiveAllowed are the networks allowed since the container was prepared.
func (b *Bundle) LiveAllowed() ([]netip.Prefix, error) { return b.prefixes(FileLiveAllowed) }

// SetLiveAllowed replaces them.
func (b *Bundle) SetLiveAllowed(ps []netip.Prefix) error { return b.setPrefixes(FileLiveAllowed, ps) }

// DenyList are the networks that are denied whatever else allows them.
func (b *Bundle) DenyList() ([]netip.Prefix, error) { return b.prefixes(FileDenyList) }

// SetDenyList replaces them.
func (b *Bundle) SetDenyList(ps []netip.Prefix) error { return b.setPrefixes(FileDenyList, ps) }

// ProfileDomains are the domain entries of the profiles, in order, as they
// were written there: unchecked.
func (b *Bundle) ProfileDomains() ([]string, error) { return b.strings(FileProfileDomains) }

// SetProfileDomains replaces them.
func (b *Bundle) SetProfileDomains(ds []string) error { return b.setStrings(FileProfileDomains, ds) }

// LiveDomains are the domains allowed since the container was prepared.
func (b *Bundle) LiveDomains() ([]string, error) { return b.strings(FileLiveDomains) }

// SetLiveDomains replaces them.
func (b *Bundle) SetLiveDomains(ds []string) error { return b.setStrings(FileLiveDomains, ds) }

// DeniedDomains are the domains that are denied whatever else allows them.
func (b *Bundle) DeniedDomains() ([]string, error) { return b.strings(FileDeniedDomains) }

// SetDeniedDomains replaces them.
func (b *Bundle) SetDeniedDomains(ds []string) error { return b.setStrings(FileDeniedDomains, ds) }

// ContainerID is the id, mostly shortened to 12 digits, of the container that
// was started last with this directory; "" before.
func (b *Bundle) ContainerID() (string, error) {
	id, err := b.word(FileContainerID)
	if id != "" && err == nil && !hexID(id) {
		return "", b.bad(FileContainerID, 1, id, "a container id")
	}
	return id, err
}

// SetContainerID replaces the id.
func (b *Bundle) SetContainerID(id string) error {
	if !hexID(id) {
		return fmt.Errorf("write %s: %s is not a container id", b.name(FileContainerID), quote(id))
	}
	if have, err := b.ContainerID(); err == nil && have == id { // the same container again
		return nil
	}
	return b.write(FileContainerID, []byte(id+"\n"), maxSmall, volatile)
}

func hexID(s string) bool {
	return len(s) >= 12 && len(s) <= 64 && strings.Trim(s, "0123456789abcdefABCDEF") == ""
}

// MetaPath is the file that holds further dossier pairs; "" if there is none.
func (b *Bundle) MetaPath() (string, error) {
	data, ok, err := b.readOptional(FileMetaPath, maxSmall)
	if !ok {
		return "", err
	}
	path := strings.TrimRight(string(data), "\n")
	if strings.ContainsFunc(path, unicode.IsControl) {
		return "", b.bad(FileMetaPath, 1, path, "a path")
	}
	return path, nil
}

// SetMetaPath replaces the path. The file holds nothing else, not even the
// end of a line.
func (b *Bundle) SetMetaPath(path string) error {
	if path == "" || strings.ContainsFunc(path, unicode.IsControl) {
		return fmt.Errorf("write %s: %s is not a path", b.name(FileMetaPath), quote(path))
	}
	return b.write(FileMetaPath, []byte(path), maxSmall, volatile)
}

// RemoveMetaPath removes the path, if there is one.
func (b *Bundle) RemoveMetaPath() error { return b.remove(FileMetaPath) }

// Process identifies a container's first process beyond the reuse of its id.
type Process struct {
	PID   int    `json:"pid"`   // in the host's numbering
	Start uint64 `json:"start"` // clock ticks after boot: field 22 of /proc/PID/stat
	NetNS string `json:"netns"` // "device:inode" of its network namespace
}

// Process is the container's process as the hook recorded it; the zero value
// if the container has not been started.
func (b *Bundle) Process() (Process, error) {
	data, ok, err := b.readOptional(FileProcess, maxSmall)
	if !ok {
		return Process{}, err
	}
	p, err := parseProcess(data)
	if err != nil {
		return Process{}, fmt.Errorf("%s: %w; restart the container", b.name(FileProcess), err)
	}
	return p, nil
}

func parseProcess(data []byte) (Process, error) {
	var p Process
	if err := json.Unmarshal(data, &p); err != nil {
		return Process{}, err
	}
	return p, p.check()
}

func (p Process) check() error {
	dev, ino, ok := strings.Cut(p.NetNS, ":")
	for _, n := range [...]string{dev, ino} {
		u, err := strconv.ParseUint(n, 10, 64)
		ok = ok && err == nil && n == strconv.FormatUint(u, 10)
	}
	const maxPID = 1 << 22 // PID_MAX_LIMIT of the kernel
	switch {
	case p.PID <= 0 || p.PID > maxPID:
		return fmt.Errorf("%d is not a process id", p.PID)
	case p.Start == 0:
		return errors.New("the start time is missing")
	case !ok:
		return fmt.Errorf("%s is not a device and inode", quote(p.NetNS))
	}
	return nil
}

// SetProcess records the process.
func (b *Bundle) SetProcess(p Process) error {
	err := p.check()
	if err != nil {
		return fmt.Errorf("write %s: %w", b.name(FileProcess), err)
	}
	data, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("write %s: %w", b.name(FileProcess), err)
	}
	return b.write(FileProcess, append(data, '\n'), maxSmall, volatile)
}

// RemoveProcess forgets the process, if one is recorded.
func (b *Bundle) RemoveProcess() error {
	if err := b.root.Remove(FileProcess); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", b.name(FileProcess), err)
	}
	return nil
}

// Network is how the container was connected when it was prepared.
type Network struct {
	Mode  string       // one word, like "pasta", "slirp4netns" or "none"
	Hosts []netip.Addr // addresses under which the container reaches the host
}

// Network is the container's network; the zero value if there is no such
// file, as in directories of other programs.
func (b *Bundle) Network() (Network, error) {
	data, ok, err := b.readOptional(FileNetwork, maxSmall)
	if !ok {
		return Network{}, err
	}
	var net Network
	for n, line := range lines(data) {
		if net.Mode == "" {
			if !networkMode(line) {
				return Network{}, b.bad(FileNetwork, n, line, "a network mode")
			}
			net.Mode = line
			continue
		}
		addr, err := netip.ParseAddr(line)
		if err != nil || addr.Zone() != "" {
			return Network{}, b.bad(FileNetwork, n, line, "an IP address")
		}
		net.Hosts = append(net.Hosts, addr)
	}
	return net, nil
}

// SetNetwork replaces it.
func (b *Bundle) SetNetwork(net Network) error {
	if !networkMode(net.Mode) {
		return fmt.Errorf("write %s: %s is not a network mode", b.name(FileNetwork), quote(net.Mode))
	}
	out := []byte(net.Mode + "\n")
	for _, addr := range net.Hosts {
		if !addr.IsValid() || addr.Zone() != "" {
			return fmt.Errorf("write %s: %v is not an IP address without zone", b.name(FileNetwork), addr)
		}
		out = append(addr.AppendTo(out), '\n')
	}
	return b.write(FileNetwork, out, maxSmall, durable)
}

func networkMode(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_") == ""
}

// word is the content of a file of one word; "" if it is missing or blank.
func (b *Bundle) word(name string) (string, error) {
	data, _, err := b.readOptional(name, maxSmall)
	return strings.TrimSpace(string(data)), err
}

// lines are the lines of a list with their numbers, trimmed, without blank
// ones and comments.
func lines(data []byte) func(yield func(int, string) bool) {
	return func(yield func(int, string) bool) {
		n := 0
		for line := range strings.Lines(string(data)) {
			n++
			line = strings.TrimSpace(line)
			if line != "" && line[0] != '#' && !yield(n, line) {
				return
			}
		}
	}
}

// bad is the error of a line that is not what it should be. A list with one
// is not used at all: a shortened deny list would fail open.
func (b *Bundle) bad(name string, line int, text, want string) error {
	return fmt.Errorf("%s, line %d: %s is not %s; correct or remove it", b.name(name), line, quote(text), want)
}

func (b *Bundle) prefixes(name string) ([]netip.Prefix, error) {
	data, _, err := b.readOptional(name, maxList)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for n, line := range lines(data) {
		p, err := ParsePrefix(line)
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w; correct or remove it", b.name(name), n, err)
		}
		if out == nil {
			out = make([]netip.Prefix, 0, bytes.Count(data, []byte("\n"))+1)
		}
		out = append(out, p)
	}
	return out, nil
}

func (b *Bundle) setPrefixes(name string, ps []netip.Prefix) error {
	var out []byte
	for _, p := range ps {
		if !p.IsValid() {
			return fmt.Errorf("write %s: %v is not a network", b.name(name), p)
		}
		out = append(append(out, FormatPrefix(p.Masked())...), '\n')
	}
	return b.write(name, out, maxList, durable)
}

func (b *Bundle) strings(name string) ([]string, error) {
	data, _, err := b.readOptional(name, maxList)
	if err != nil {
		return nil, err
	}
	var out []string
	for n, line := range lines(data) {
		if !entry(line) {
			return nil, b.bad(name, n, line, "a domain name")
		}
		out = append(out, line)
	}
	return out, nil
}

func (b *Bundle) setStrings(name string, list []string) error {
	for _, s := range list {
		if !entry(s) {
			return fmt.Errorf("write %s: %s is not a domain name", b.name(name), quote(s))
		}
	}
	text := strings.Join(slices.Concat(list, []string{""}), "\n")
	return b.write(name, []byte(text), maxList, durable)
}

// entry reports whether s survives as a line of a list.
func entry(s string) bool {
	return s != "" && s[0] != '#' && utf8.ValidString(s) && len(s) <= 1024 &&
		!strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) })
}
