package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"time"

	"github.com/terok-ai/terok-box/wire/bundle"
)

// followPause is between two looks at a log.
const followPause = 200 * time.Millisecond

// Entry is what the record says, as far as this package knows it: what has
// another type than it should is left out. Its Time is zero if there is none.
func (r Record) Entry() Entry {
	var raw map[string]json.RawMessage
	if json.Unmarshal(r.raw, &raw) != nil {
		return Entry{}
	}
	text := func(key string) (s string) {
		if json.Unmarshal(raw[key], &s) != nil {
			return ""
		}
		return s
	}
	e := Entry{
		Container: text("container"), Action: text("action"), Dest: text("dest"), Detail: text("detail"),
		Proto: text("proto"), Domain: text("domain"),
	}
	if t, err := time.Parse(time.RFC3339, r.Time); err == nil {
		e.Time = t
	}
	var port json.Number
	if json.Unmarshal(raw["port"], &port) == nil {
		if n, err := strconv.ParseUint(port.String(), 10, 16); err == nil {
			e.Port = uint16(n)
		}
	}
	var dossier map[string]string
	if json.Unmarshal(raw["dossier"], &dossier) == nil {
		e.Dossier = dossier
	}
	return e
}

// Follower reads what is appended to a container's log.
type Follower struct {
	b *bundle.Bundle
	f *follower // nil while there is no log
}

// Follow begins behind the log's last record of now.
func Follow(b *bundle.Bundle) (*Follower, error) {
	f, err := newer(b, nil)
	if err == nil && f != nil {
		err = f.toEnd()
	}
	if err != nil {
		f.close()
		return nil, fmt.Errorf("audit: %w", err)
	}
	return &Follower{b: b, f: f}, nil
}

// Run calls visit with every record until ctx ends, which is no error, or
// visit fails. A log that is renamed to make room for a new one is read to its
// end. It is called once.
func (w *Follower) Run(ctx context.Context, visit func(Record) error) error {
	defer func() { w.f.close() }()
	for {
		next, err := newer(w.b, w.f)
		if err != nil {
			return fmt.Errorf("audit: %w", err)
		}
		// What was written before the rename comes before the new log's.
		if err := w.f.read(visit); err != nil {
			next.close()
			return err
		}
		if next != nil {
			w.f.close()
			w.f = next
			continue // read it at once
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followPause):
		}
	}
}

// newer is the log if it is another one than the one being read, or nil.
func newer(b *bundle.Bundle, have *follower) (*follower, error) {
	f, err := b.OpenLog(bundle.FileAuditLog)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	is, err := f.Stat()
	if err == nil && have != nil {
		var was fs.FileInfo
		if was, err = have.f.Stat(); err == nil && os.SameFile(was, is) {
			return nil, f.Close()
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &follower{f: f}, nil
}

// follower reads a file that grows.
type follower struct {
	f    *os.File
	rest []byte // of the last line, which has no end yet
	skip bool   // the line is too long, or its beginning was not seen
}

func (f *follower) close() {
	if f != nil {
		f.f.Close()
	}
}

// toEnd leaves out what is there already, the rest of an unfinished line too.
func (f *follower) toEnd() error {
	end, err := f.f.Seek(0, io.SeekEnd)
	if err != nil || end == 0 {
		return err
	}
	last := make([]byte, 1)
	if _, err := f.f.ReadAt(last, end-1); err != nil {
		return err
	}
	f.skip = last[0] != '\n'
	return nil
}

// read visits the lines that have been finished since.
func (f *follower) read(visit func(Record) error) error {
	if f == nil {
		return nil
	}
	buf := make([]byte, MaxLine)
	for {
		n, err := f.f.Read(buf)
		for part := buf[:n]; len(part) > 0; {
			line, rest, ended := bytes.Cut(part, []byte("\n"))
			part = rest
			f.skip = f.skip || len(f.rest)+len(line) > MaxLine
			switch {
			case !f.skip && !ended:
				f.rest = append(f.rest, line...)
			case !f.skip:
				if r, ok := parse(append(f.rest, line...)); ok {
					if err := visit(r); err != nil {
						return err
					}
				}
				f.rest = nil
			case ended:
				f.skip, f.rest = false, nil
			}
		}
		if errors.Is(err, io.EOF) || err == nil && n == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("audit: %w", err)
		}
	}
}
