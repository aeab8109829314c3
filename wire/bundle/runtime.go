package bundle

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Files that only this program writes or that live as long as a container.
const (
	FileUnsettled     = "unsettled"      // a change of the firewall is under way, or was when its command died
	FileProfileNames  = "profile.names"  // profiles the container was prepared with, one a line
	FileProfileCache  = "profile.cache"  // what profile.allowed was looked up for
	FileRulesetFormat = "ruleset.format" // which shape of table ruleset.nft has; only of ours
	FileDnsmasqConf   = "dnsmasq.conf"
	FileDnsmasqPID    = "dnsmasq.pid"
	FileResolvConf    = "resolv.conf"
	FileQueryLog      = "dnsmasq.log" // what dnsmasq was asked and has answered
)

// Unsettled reports whether kernel and files may differ because a command
// died between changing one and the other.
func (b *Bundle) Unsettled() (bool, error) {
	_, ok, err := b.readOptional(FileUnsettled, maxSmall)
	return ok, err
}

// SetUnsettled sets or removes that mark. It need not survive a power
// failure: the container does not either.
func (b *Bundle) SetUnsettled(yes bool) error {
	if yes {
		return b.write(FileUnsettled, nil, maxSmall, volatile)
	}
	return b.remove(FileUnsettled)
}

// RulesetFormat is the number of the shape that ruleset.nft has; 0 if another
// program wrote it.
func (b *Bundle) RulesetFormat() (int, error) {
	word, err := b.word(FileRulesetFormat)
	if word == "" || err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(word)
	if err != nil || n <= 0 {
		return 0, b.bad(FileRulesetFormat, 1, word, "a number")
	}
	return n, nil
}

// SetRulesetFormat replaces the number.
func (b *Bundle) SetRulesetFormat(n int) error {
	return b.write(FileRulesetFormat, []byte(strconv.Itoa(n)+"\n"), maxSmall, durable)
}

// ProfileNames are the profiles the container was prepared with.
func (b *Bundle) ProfileNames() ([]string, error) { return b.strings(FileProfileNames) }

// SetProfileNames replaces them.
func (b *Bundle) SetProfileNames(names []string) error { return b.setStrings(FileProfileNames, names) }

// ProfileCache is how long ago profile.allowed was written and the key it was
// written for; "" if it must not be used again.
func (b *Bundle) ProfileCache() (age time.Duration, key string, err error) {
	if key, err = b.word(FileProfileCache); err != nil || key == "" {
		return 0, "", err
	}
	when, err := b.ProfileAllowedTime()
	if err != nil || when.IsZero() {
		return 0, "", err
	}
	return time.Since(when), key, nil
}

// SetProfileCache replaces the key.
func (b *Bundle) SetProfileCache(key string) error {
	return b.write(FileProfileCache, []byte(key+"\n"), maxSmall, volatile)
}

// DnsmasqConf is the configuration of the dnsmasq the container needs; nil if
// it needs none.
func (b *Bundle) DnsmasqConf() ([]byte, error) {
	data, _, err := b.readOptional(FileDnsmasqConf, maxList)
	return data, err
}

// SetDnsmasqConf replaces the configuration.
func (b *Bundle) SetDnsmasqConf(conf []byte) error {
	return b.write(FileDnsmasqConf, conf, maxList, durable)
}

// SetResolvConf replaces the resolv.conf that is mounted into the container,
// which looks for its name server at that address. Its names are asked for as
// they are: a search list would send the host's domains out.
func (b *Bundle) SetResolvConf(listen netip.Addr) error {
	if err := checkListen(listen); err != nil {
		return fmt.Errorf("write %s: %w", b.name(FileResolvConf), err)
	}
	return b.write(FileResolvConf, []byte("nameserver "+listen.String()+"\noptions ndots:0\n"), maxSmall, durable)
}

// DnsmasqPID is what dnsmasq wrote; 0 if there is no such file or it holds no
// process id. The file may belong to the user dnsmasq runs as, so its content
// is a hint: the caller looks at the process.
func (b *Bundle) DnsmasqPID() (int, error) {
	f, err := b.openForeign(FileDnsmasqPID)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSmall))
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 0 {
		return 0, nil
	}
	return pid, nil
}

// OpenQueryLog opens dnsmasq's log for reading. It may belong to the user
// dnsmasq runs as, and much in it is the container's choice.
func (b *Bundle) OpenQueryLog() (*os.File, error) { return b.openForeign(FileQueryLog) }

// openForeign opens a regular file, whoever owns it, for reading.
func (b *Bundle) openForeign(name string) (*os.File, error) {
	f, err := b.openat(name, syscall.O_RDONLY)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s is not a regular file; remove it", b.name(name)))
	}
	return f, nil
}

// RemoveDnsmasqPID removes the pid file, if there is one.
func (b *Bundle) RemoveDnsmasqPID() error { return b.remove(FileDnsmasqPID) }

// RemoveDnsmasq removes what tells the hook to start dnsmasq.
func (b *Bundle) RemoveDnsmasq() error {
	return errors.Join(b.remove(FileDnsmasqConf), b.remove(FileDnsmasqPID), b.remove(FileResolvConf))
}

// RemoveUpstreamDNS removes the resolver's address, where none is known.
func (b *Bundle) RemoveUpstreamDNS() error { return b.remove(FileUpstreamDNS) }

func (b *Bundle) remove(name string) error {
	if err := b.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", b.name(name), err)
	}
	return nil
}

// ProcessOf describes a running process.
func ProcessOf(pid int, netns string) (Process, error) {
	start, err := startTime(pid)
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, Start: start, NetNS: netns}, nil
}

// Alive reports whether the process still runs, and is not another one that
// got its number.
func (p Process) Alive() bool {
	start, err := startTime(p.PID)
	return err == nil && start == p.Start
}

// startTime is field 22 of /proc/PID/stat. The second field, the program's
// name, is in parentheses and may hold anything. A process that has ended and
// was not waited for does not count.
func startTime(pid int) (uint64, error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	_, rest, _ := cutLast(string(data), ")")
	fields := strings.Fields(rest) // from field 3 on
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return 0, fmt.Errorf("process %d: %w", pid, fs.ErrNotExist)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
