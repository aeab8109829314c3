package bundle

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"
	"unicode"
)

const (
	maxErrorLog  = 1 << 20 // bytes
	maxErrorLine = 4 << 10 // bytes
	// How long an append waits for another one, each of which is one write.
	appendTimeout = time.Second
)

// AppendError adds a message as one line to the hooks' error log. Beyond
// 1 MiB the older half is forgotten.
func (b *Bundle) AppendError(msg string) error {
	msg = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.TrimSpace(msg))
	if len(msg) > maxErrorLine {
		msg = strings.ToValidUTF8(msg[:maxErrorLine], "") // no part of a character
	}
	return b.appendLine(FileErrorLog, msg, maxErrorLog, func(f *os.File, size int64) error {
		rest := make([]byte, min(size, maxErrorLog/2))
		n, err := f.ReadAt(rest, size-int64(len(rest)))
		if err != nil && err != io.EOF {
			return err
		}
		_, rest, _ = bytes.Cut(rest[:n], []byte("\n")) // a whole line is the first
		return b.write(FileErrorLog, rest, maxErrorLog, volatile)
	})
}

// AppendLog adds a line to a log. When the log would grow beyond limit bytes
// it is renamed to name+".1", replacing that file, and a new one begun.
func (b *Bundle) AppendLog(name, line string, limit int64) error {
	return b.appendLine(name, line, limit, func(*os.File, int64) error {
		return b.root.Rename(name, name+rotated)
	})
}

// OpenLog opens a log for reading.
func (b *Bundle) OpenLog(name string) (*os.File, error) { return b.openFile(name, syscall.O_RDONLY) }

// appendLine adds a line in one write, so that lines of several writers do
// not mix. shrink makes room by replacing or renaming the file.
func (b *Bundle) appendLine(name, line string, limit int64, shrink func(f *os.File, size int64) error) error {
	fail := func(err error) error { return fmt.Errorf("append to %s: %w", b.name(name), err) }
	if strings.Contains(line, "\n") {
		return fail(fmt.Errorf("%s is more than one line", quote(line)))
	}
	ctx, cancel := context.WithTimeout(context.Background(), appendTimeout)
	defer cancel()
	for {
		f, err := b.openOrCreate(name, syscall.O_RDWR|syscall.O_APPEND)
		if err != nil {
			return fail(err)
		}
		again, err := b.appendTo(ctx, f, name, line, limit, shrink)
		f.Close()
		if err != nil {
			return fail(err)
		}
		if !again {
			return nil
		}
	}
}

// appendTo is one attempt; again tells that the file is not the log any more.
func (b *Bundle) appendTo(ctx context.Context, f *os.File, name, line string, limit int64, shrink func(*os.File, int64) error) (again bool, err error) {
	if err := waitLock(ctx, f); err != nil {
		return false, err
	}
	if current, err := b.isCurrent(f, name); !current || err != nil {
		return true, err
	}
	fi, err := f.Stat()
	if err != nil {
		return false, err
	}
	size := fi.Size()
	if size > 0 && size+int64(len(line))+2 > limit {
		return true, shrink(f, size)
	}
	if fi.Mode().Perm() != 0o600 {
		if err := f.Chmod(0o600); err != nil {
			return false, err
		}
	}
	// A line that a killed writer left unfinished must not swallow this one.
	start := ""
	if last := make([]byte, 1); size > 0 {
		if _, err := f.ReadAt(last, size-1); err != nil {
			return false, err
		}
		if last[0] != '\n' {
			start = "\n"
		}
	}
	n, err := f.WriteString(start + line + "\n")
	if err != nil && n > 0 {
		_ = f.Truncate(size) // the disk is full: no half a line
	}
	return false, err
}
