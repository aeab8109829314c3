package pair

import (
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/terok-ai/terok-box/wire/bundle"
)

// maxLog is the bytes of a log, from which on another file is begun and this
// one is kept with ".1" after its name.
const maxLog = 1 << 20

// NewLog is a log in the state directory. What the Go runtime says of a crash
// of this process goes there, too.
func NewLog(b *bundle.Bundle, name string) *slog.Logger {
	log := slog.New(slog.NewTextHandler(logFile{b, name}, nil)).With("pid", os.Getpid())
	path := filepath.Join(b.Path(), name)
	const flags = os.O_WRONLY | os.O_CREATE | os.O_APPEND | syscall.O_NOFOLLOW | syscall.O_NONBLOCK
	if f, err := os.OpenFile(path, flags, 0o600); err == nil {
		if fi, err := f.Stat(); err == nil && fi.Mode().IsRegular() {
			_ = debug.SetCrashOutput(f, debug.CrashOptions{}) // which makes a copy
		}
		f.Close()
	}
	return log
}

// logFile is bounded. Each Write is a line.
type logFile struct {
	b    *bundle.Bundle
	name string
}

func (l logFile) Write(p []byte) (int, error) {
	return len(p), l.b.AppendLog(l.name, strings.TrimRight(string(p), "\n"), maxLog)
}
