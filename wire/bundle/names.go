package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
)

// Files about the container's names. Only this program writes them.
const (
	FileUnlisted = "dns.unlisted"  // what happens to names on no list: "refuse" or "resolve"
	FileListen   = "dns.listen"    // where the container's name server listens
	FileNamer    = "dns.process"   // the process that finds its addresses
	FileOwner    = "network.owner" // the state directory in charge of a shared network
	FileOpen     = "dns.open"      // there while the container may reach what is on no list

	FileQuestions = "clearance.questions" // how many questions about it are asked at once
)

// defaultListen is where a container looks for its name server.
var defaultListen = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// ResolveUnlisted reports whether names on no list are resolved all the same,
// so that the connection is blocked and asked about, instead of the name.
func (b *Bundle) ResolveUnlisted() (bool, error) {
	switch word, err := b.word(FileUnlisted); {
	case err != nil:
		return false, err
	case word == "" || word == "refuse":
		return false, nil
	case word == "resolve":
		return true, nil
	default:
		return false, b.bad(FileUnlisted, 1, word, `"refuse" or "resolve"`)
	}
}

// SetResolveUnlisted replaces that.
func (b *Bundle) SetResolveUnlisted(yes bool) error {
	word := "refuse\n"
	if yes {
		word = "resolve\n"
	}
	return b.write(FileUnlisted, []byte(word), maxSmall, durable)
}

// Questions that are asked about a container at once, without an answer to
// any.
const (
	DefaultQuestions = 200
	MaxQuestions     = 1000
)

// Questions is how many are asked about the container at once;
// DefaultQuestions if there is no such file, 0 if nobody is to be asked.
func (b *Bundle) Questions() (int, error) {
	word, err := b.word(FileQuestions)
	if word == "" || err != nil {
		return DefaultQuestions, err
	}
	n, err := strconv.ParseUint(word, 10, 16)
	if err != nil || n > MaxQuestions {
		return DefaultQuestions, b.bad(FileQuestions, 1, word, fmt.Sprintf("a number from 0 to %d", MaxQuestions))
	}
	return int(n), nil
}

// SetQuestions replaces that.
func (b *Bundle) SetQuestions(n int) error {
	if n < 0 || n > MaxQuestions {
		return fmt.Errorf("write %s: %d is not a number from 0 to %d", b.name(FileQuestions), n, MaxQuestions)
	}
	return b.write(FileQuestions, []byte(strconv.Itoa(n)+"\n"), maxSmall, durable)
}

// Listen is the address in the container's network where its name server
// listens; 127.0.0.1 if there is no such file.
func (b *Bundle) Listen() (netip.Addr, error) {
	word, err := b.word(FileListen)
	if word == "" || err != nil {
		return defaultListen, err
	}
	addr, err := netip.ParseAddr(word)
	if err != nil || checkListen(addr) != nil {
		return netip.Addr{}, b.bad(FileListen, 1, word, "a loopback or link-local address")
	}
	return addr, nil
}

// SetListen replaces the address.
func (b *Bundle) SetListen(addr netip.Addr) error {
	if err := checkListen(addr); err != nil {
		return fmt.Errorf("write %s: %w", b.name(FileListen), err)
	}
	return b.write(FileListen, []byte(addr.String()+"\n"), maxSmall, durable)
}

// checkListen refuses an address that others than the container could reach.
func checkListen(addr netip.Addr) error {
	if addr.Zone() != "" || addr.Is4In6() || !addr.IsLoopback() && !addr.IsLinkLocalUnicast() {
		return fmt.Errorf("%v is neither a loopback nor a link-local address without zone", addr)
	}
	return nil
}

// Namer is the process that finds the addresses of a container's names.
type Namer struct {
	PID    int    `json:"pid"`
	Start  uint64 `json:"start"`  // as in Process
	Socket string `json:"socket"` // where it serves org.terok.ShieldDns1
}

// Namer is the process as it was recorded; the zero value if there is none.
func (b *Bundle) Namer() (Namer, error) {
	data, ok, err := b.readOptional(FileNamer, maxSmall)
	if !ok {
		return Namer{}, err
	}
	var n Namer
	if err = json.Unmarshal(data, &n); err == nil {
		err = n.check()
	}
	if err != nil {
		return Namer{}, fmt.Errorf("%s: %w; restart the container", b.name(FileNamer), err)
	}
	return n, nil
}

// Alive reports whether the process still runs, and is not another one that
// got its number.
func (n Namer) Alive() bool { return Process{PID: n.PID, Start: n.Start}.Alive() }

func (n Namer) check() error {
	switch {
	case n.PID <= 0:
		return fmt.Errorf("%d is not a process id", n.PID)
	case n.Start == 0:
		return errors.New("the start time is missing")
	case !filepath.IsAbs(n.Socket) || strings.ContainsRune(n.Socket, 0):
		return fmt.Errorf("%s is not a path", quote(n.Socket))
	}
	return nil
}

// SetNamer records the process.
func (b *Bundle) SetNamer(n Namer) error {
	if err := n.check(); err != nil {
		return fmt.Errorf("write %s: %w", b.name(FileNamer), err)
	}
	data, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("write %s: %w", b.name(FileNamer), err)
	}
	return b.write(FileNamer, append(data, '\n'), maxSmall, volatile)
}

// RemoveNamer forgets the process, if one is recorded.
func (b *Bundle) RemoveNamer() error { return b.remove(FileNamer) }

// Open reports whether the container's firewall lets addresses on no list
// pass, because an operator took it down: names on no list must then resolve.
// What cannot be read is closed.
func (b *Bundle) Open() (bool, error) {
	_, ok, err := b.readOptional(FileOpen, maxSmall)
	return ok && err == nil, err
}

// SetOpen sets or removes that mark. It is removed before the firewall closes
// and set after it has opened, and does not outlive the container's network.
func (b *Bundle) SetOpen(yes bool) error {
	if yes {
		return b.write(FileOpen, nil, maxSmall, volatile)
	}
	return b.remove(FileOpen)
}

// Owner is the state directory whose lists govern the network that this
// container shares with others; "" if its own do.
func (b *Bundle) Owner() (string, error) {
	word, err := b.word(FileOwner)
	if word != "" && err == nil && !filepath.IsAbs(word) {
		return "", b.bad(FileOwner, 1, word, "an absolute path")
	}
	return word, err
}

// SetOwner replaces it; "" removes it.
func (b *Bundle) SetOwner(dir string) error {
	if dir == "" {
		return b.remove(FileOwner)
	}
	if !filepath.IsAbs(dir) || strings.ContainsAny(dir, "\n\x00") {
		return fmt.Errorf("write %s: %s is not an absolute path", b.name(FileOwner), quote(dir))
	}
	return b.write(FileOwner, []byte(dir+"\n"), maxSmall, volatile)
}
