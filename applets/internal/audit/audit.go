// Package audit is the record of what was decided about a container: one JSON
// object a line in its state directory, written by commands and by the reader
// of blocked packets, shared with other programs that do so.
//
// It must never import a package of ours but wire/ascii and wire/bundle.
package audit

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/terok-ai/terok-box/wire/ascii"
	"github.com/terok-ai/terok-box/wire/bundle"
)

const (
	// MaxLog is the size, in bytes, at which the log becomes audit.jsonl.1.
	MaxLog = 16 << 20
	// MaxLine bounds one line, in bytes. Longer ones are not written, or if
	// somebody else wrote them, not read.
	MaxLine = 64 << 10
)

// Actions that stand in the log.
const (
	Setup      = "setup"
	Allowed    = "allowed"
	Denied     = "denied"
	Up         = "shield_up"
	Down       = "shield_down"
	Quarantine = "shield_quarantine"
	Reset      = "shield_reset"
	Blocked    = "blocked"
)

// Entry is a line of the log. Empty members are left out, except that an
// entry about a packet, which has a Proto, has Dest and Port in any case.
type Entry struct {
	Time      time.Time // zero: now
	Container string    // as the writer knows it: name or short id
	Action    string
	Dest      string // IP address
	Detail    string
	Port      uint16 // 0 if the protocol has none
	Proto     string // "tcp", "udp" or a decimal IP protocol number
	Domain    string
	Dossier   map[string]string
}

// Append writes an entry to the container's log. An entry that would be too
// long loses its dossier.
func Append(b *bundle.Bundle, e Entry) error {
	line := e.line()
	if len(line) > MaxLine {
		e.Dossier = nil
		line = e.line()
	}
	if len(line) > MaxLine {
		return fmt.Errorf("audit: an entry %q of more than %d bytes was not written", e.Action, MaxLine)
	}
	if err := b.AppendLog(bundle.FileAuditLog, line, MaxLog); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

// line is the entry as compact JSON in ASCII.
func (e Entry) line() string {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	var out []byte
	key := func(name string) {
		sep := byte(',')
		if len(out) == 0 {
			sep = '{'
		}
		out = append(append(out, sep), `"`+name+`":`...)
	}
	member := func(name, value string) {
		key(name)
		out = ascii.AppendString(out, value)
	}
	member("ts", e.Time.UTC().Format("2006-01-02T15:04:05+00:00"))
	member("container", e.Container)
	member("action", e.Action)
	if e.Dest != "" || e.Proto != "" {
		member("dest", e.Dest)
	}
	if e.Detail != "" {
		member("detail", e.Detail)
	}
	if e.Proto != "" {
		key("port")
		out = strconv.AppendUint(out, uint64(e.Port), 10)
		member("proto", e.Proto)
	}
	if e.Domain != "" {
		member("domain", e.Domain)
	}
	if len(e.Dossier) > 0 {
		key("dossier")
		sep := byte('{')
		for _, k := range slices.Sorted(maps.Keys(e.Dossier)) {
			out = ascii.AppendString(append(out, sep), k)
			out = ascii.AppendString(append(out, ':'), e.Dossier[k])
			sep = ','
		}
		out = append(out, '}')
	}
	return string(append(out, '}'))
}

// Record is a line as it stood in a log.
type Record struct {
	Time string // its "ts", which sorts as text; "" if there is none
	raw  []byte // a valid JSON object
}

// String is the record as JSON in ASCII with a space after each comma and
// colon, its members in the order they were written in.
func (r Record) String() string {
	out := make([]byte, 0, len(r.raw)+32)
	in := false // a string
	for i := 0; i < len(r.raw); {
		c := r.raw[i]
		switch {
		case c == '"':
			in = !in
			out = append(out, c)
		case in && c == '\\':
			u, n := unescape(r.raw[i:])
			out = ascii.AppendUnit(out, u)
			i += n
			continue
		case in && c >= utf8.RuneSelf:
			rn, n := utf8.DecodeRune(r.raw[i:])
			quoted := ascii.AppendString(nil, string(rn))
			out = append(out, quoted[1:len(quoted)-1]...)
			i += n
			continue
		case in:
			out = ascii.AppendUnit(out, uint16(c))
		case c == ',' || c == ':':
			out = append(out, c, ' ')
		case c != ' ' && c != '\t' && c != '\r' && c != '\n':
			out = append(out, c)
		}
		i++
	}
	return string(out)
}

// unescape is the code unit of the escape sequence that b, valid JSON, starts
// with, and the sequence's length. Units are kept as they are: other programs
// write half surrogate pairs.
func unescape(b []byte) (unit uint16, n int) {
	if b[1] == 'u' {
		u, _ := strconv.ParseUint(string(b[2:6]), 16, 16)
		return uint16(u), 6
	}
	if i := strings.IndexByte("bfnrt", b[1]); i >= 0 {
		return uint16("\b\f\n\r\t"[i]), 2
	}
	return uint16(b[1]), 2
}

// parse is the record of a line; ok is false if it is not a JSON object.
func parse(line []byte) (r Record, ok bool) {
	line = bytes.TrimSpace(line)
	if len(line) == 0 || line[0] != '{' || !utf8.Valid(line) || !json.Valid(line) {
		return Record{}, false
	}
	var head map[string]json.RawMessage
	if json.Unmarshal(line, &head) != nil {
		return Record{}, false
	}
	r.raw = slices.Clone(line)
	if json.Unmarshal(head["ts"], &r.Time) != nil {
		r.Time = "" // not a string: it sorts first
	}
	return r, true
}

// Read is the last n records of a container, oldest first. Lines that are not
// JSON objects do not count. A container without a log has none.
func Read(b *bundle.Bundle, n int) ([]Record, error) {
	var out []Record // newest first
	var seen fs.FileInfo
	for _, name := range []string{bundle.FileAuditLog, bundle.FileAuditLogRotated} {
		f, err := b.OpenLog(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("audit: %w", err)
		}
		fi, err := f.Stat()
		// Another process may have renamed the one to the other meanwhile.
		if err == nil && len(out) < n && !(seen != nil && os.SameFile(seen, fi)) {
			err = backwards(f, func(line []byte) bool {
				if r, ok := parse(line); ok {
					out = append(out, r)
				}
				return len(out) < n
			})
		}
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("audit: %w", err)
		}
		seen = fi
	}
	slices.Reverse(out)
	return out, nil
}

// backwards calls visit with each line of a file, the last one first, until it
// returns false. It holds no more than a line and a block in memory.
func backwards(f *os.File, visit func(line []byte) bool) error {
	const block = 64 << 10
	at, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	buf := make([]byte, block)
	var tail []byte // of the line that begins before at
	long := false   // that line is too long and being dropped
	for at > 0 {
		part := buf[:min(at, block)]
		at -= int64(len(part))
		if _, err := f.ReadAt(part, at); err != nil {
			return err
		}
		for {
			i := bytes.LastIndexByte(part, '\n')
			if long = long || len(part)-i-1+len(tail) > MaxLine; !long {
				tail = slices.Concat(part[i+1:], tail)
			}
			if i < 0 {
				break
			}
			if !long && !visit(tail) {
				return nil
			}
			tail, long, part = nil, false, part[:i]
		}
	}
	if !long {
		visit(tail)
	}
	return nil
}

// Merge is the last n of the records of several containers, oldest first.
// Those of the same time keep their order.
func Merge(n int, logs ...[]Record) []Record {
	all := slices.Concat(logs...)
	slices.SortStableFunc(all, func(a, b Record) int { return cmp.Compare(a.Time, b.Time) })
	return all[max(0, len(all)-max(0, n)):]
}
