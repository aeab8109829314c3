package dnsproxy

import (
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/terok-ai/terok-box/wire/bundle"
)

const (
	logName = "dns.log" // in the state directory
	maxLog  = 1 << 20   // bytes, from which on another file is begun and this one is kept as dns.log.1
)

// newLog is the process's log. What the Go runtime says of a crash goes there,
// too.
func newLog(b *bundle.Bundle) *slog.Logger {
	log := slog.New(slog.NewTextHandler(logFile{b}, nil)).With("pid", os.Getpid())
	path := filepath.Join(b.Path(), logName)
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
type logFile struct{ b *bundle.Bundle }

func (l logFile) Write(p []byte) (int, error) {
	return len(p), l.b.AppendLog(logName, strings.TrimRight(string(p), "\n"), maxLog)
}
