package reader

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"github.com/terok-ai/terok-box/wire/bundle"
)

const (
	// maxLogRead is how much of the log is read at most, in bytes: what was
	// written before that is too long ago.
	maxLogRead = 4 << 20
	maxLogLine = 4096 // bytes
	maxLogName = 253
	// maxLogAddrs is how many addresses a generation of the log's has; there
	// are two.
	maxLogAddrs = 2048
)

// queryLog is the log of a dnsmasq that another program has started, from
// which the names of addresses come if nobody else knows them. It is read from
// where it was read before; the bounds hold however much is added.
type queryLog struct {
	b      *bundle.Bundle
	f      *os.File // nil: none
	offset int64
	rest   []byte // of a line without its end
	skip   bool   // that line is too long, or its beginning was not seen
	buf    []byte

	// Names by address. What is not seen again while the younger generation
	// fills is forgotten.
	young, old map[netip.Addr]string
}

func newQueryLog(b *bundle.Bundle) *queryLog {
	return &queryLog{b: b, young: map[netip.Addr]string{}}
}

// name is the name that was last answered with an address; "" if none is
// known. An error says why that may not be the last one.
func (l *queryLog) name(addr netip.Addr) (string, error) {
	err := l.poll()
	if name, ok := l.young[addr]; ok {
		return name, err
	}
	return l.old[addr], err
}

// poll reads what was added.
func (l *queryLog) poll() error {
	if err := l.open(); err != nil || l.f == nil {
		return err
	}
	fi, err := l.f.Stat()
	if err != nil {
		return fmt.Errorf("dnsmasq's log: %w", err)
	}
	size := fi.Size()
	switch {
	case size < l.offset: // emptied
		l.offset, l.rest, l.skip = 0, l.rest[:0], false
	case size-l.offset > maxLogRead:
		l.offset, l.rest, l.skip = size-maxLogRead, l.rest[:0], true
	}
	for l.offset < size { // what comes meanwhile is read next time
		n, err := l.f.ReadAt(l.buf[:min(int64(len(l.buf)), size-l.offset)], l.offset)
		l.offset += int64(n)
		l.take(l.buf[:n])
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read dnsmasq's log: %w", err)
		}
	}
	return nil
}

// open opens the log that is there now, or finds that it is the open one.
func (l *queryLog) open() error {
	f, err := l.b.OpenQueryLog()
	if errors.Is(err, fs.ErrNotExist) {
		l.close()
		return nil
	}
	if err != nil {
		return fmt.Errorf("dnsmasq's log: %w", err)
	}
	if l.f != nil {
		was, err1 := l.f.Stat()
		is, err2 := f.Stat()
		if err1 == nil && err2 == nil && os.SameFile(was, is) {
			f.Close()
			return nil
		}
	}
	l.close()
	l.f = f
	if l.buf == nil {
		l.buf = make([]byte, 64<<10)
	}
	return nil
}

func (l *queryLog) close() {
	if l.f != nil {
		l.f.Close()
	}
	l.f, l.offset, l.rest, l.skip = nil, 0, nil, false
}

// take reads the lines that p ends.
func (l *queryLog) take(p []byte) {
	for len(p) > 0 {
		line, rest, ended := bytes.Cut(p, []byte("\n"))
		p = rest
		if len(l.rest)+len(line) > maxLogLine {
			l.skip = true
		}
		switch {
		case !ended && !l.skip:
			l.rest = append(l.rest, line...)
		case !ended:
			l.rest = l.rest[:0]
		case l.skip:
			l.rest, l.skip = l.rest[:0], false
		default:
			if len(l.rest) > 0 {
				line = append(l.rest, line...)
			}
			if addr, name, ok := parseAnswer(string(line)); ok {
				l.add(addr, name)
			}
			l.rest = l.rest[:0]
		}
	}
}

func (l *queryLog) add(addr netip.Addr, name string) {
	if len(l.young) >= maxLogAddrs {
		if _, ok := l.young[addr]; !ok {
			l.young, l.old = make(map[netip.Addr]string), l.young
		}
	}
	l.young[addr] = name
}

// parseAnswer is the address and the name of a line that tells of an answer:
//
//	Nov 22 10:28:07 dnsmasq[50]: reply a.example.com is 192.0.2.1
//
// with "cached" for "reply", or with two more words before it that tell which
// question it is about. Names are the container's choice and may look like
// other words, so a line counts only if it has no more words than that.
func parseAnswer(line string) (addr netip.Addr, name string, ok bool) {
	const stamp = len("Jan _2 15:04:05 ")
	if len(line) > maxLogLine || len(line) < stamp {
		return addr, "", false
	}
	program, rest, ok := strings.Cut(line[stamp:], ": ")
	if !ok || !strings.HasPrefix(program, "dnsmasq[") || strings.ContainsRune(program, ' ') {
		return addr, "", false
	}
	var words [6]string
	n := 0
	for w := range strings.SplitSeq(rest, " ") {
		if n == len(words) {
			return addr, "", false
		}
		words[n] = w
		n++
	}
	w := words[:n]
	if n == 6 {
		if strings.Trim(w[0], "0123456789") != "" {
			return addr, "", false
		}
		w = w[2:]
	}
	if len(w) != 4 || w[0] != "reply" && w[0] != "cached" || w[2] != "is" {
		return addr, "", false
	}
	addr, err := netip.ParseAddr(w[3])
	name = strings.ToLower(strings.TrimSuffix(w[1], "."))
	visible := !strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' })
	if err != nil || addr.Zone() != "" || name == "" || len(name) > maxLogName || !visible {
		return netip.Addr{}, "", false
	}
	return addr, name, true
}
