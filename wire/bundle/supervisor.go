package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// Files about who asks an operator. All but the last only this program writes.
const (
	FileSupervisor = "supervisor.process" // the process that asks
	FilePending    = "pending.json"       // what it has asked and nobody has answered
	FileReaderPID  = "reader.pid"         // the process that asks, if another program's hook started it
)

const (
	maxRecord  = 128 << 10 // more than four paths of the greatest length take in JSON (PATH_MAX 4096)
	maxPending = 8 << 20
)

// Supervisor is the process that asks an operator about a container's blocked
// packets, and the sockets it serves, "" for those it does not.
type Supervisor struct {
	PID       int    `json:"pid"`
	Start     uint64 `json:"start"`     // as in Process
	Control   string `json:"control"`   // org.terok.ShieldControl1
	Events    string `json:"events"`    // takes events of the container
	Clearance string `json:"clearance"` // org.terok.Clearance1
	Verdict   string `json:"verdict"`   // org.terok.ClearanceVerdict1
}

// Supervisor is the process as it was recorded; the zero value if there is
// none.
func (b *Bundle) Supervisor() (Supervisor, error) {
	data, ok, err := b.readOptional(FileSupervisor, maxRecord)
	if !ok {
		return Supervisor{}, err
	}
	var s Supervisor
	if err = json.Unmarshal(data, &s); err == nil {
		err = s.check()
	}
	if err != nil {
		return Supervisor{}, fmt.Errorf("%s: %w; restart the container", b.name(FileSupervisor), err)
	}
	return s, nil
}

// Alive reports whether the process still runs, and is not another one that
// got its number.
func (s Supervisor) Alive() bool { return Process{PID: s.PID, Start: s.Start}.Alive() }

// Sockets are those that it serves.
func (s Supervisor) Sockets() (paths []string) {
	for _, p := range []string{s.Control, s.Events, s.Clearance, s.Verdict} {
		if p != "" {
			paths = append(paths, p)
		}
	}
	return paths
}

func (s Supervisor) check() error {
	switch {
	case s.PID <= 0:
		return fmt.Errorf("%d is not a process id", s.PID)
	case s.Start == 0:
		return errors.New("the start time is missing")
	}
	for _, p := range s.Sockets() {
		if !filepath.IsAbs(p) || strings.ContainsRune(p, 0) {
			return fmt.Errorf("%s is not a path", quote(p))
		}
	}
	return nil
}

// SetSupervisor records the process.
func (b *Bundle) SetSupervisor(s Supervisor) error {
	if err := s.check(); err != nil {
		return fmt.Errorf("write %s: %w", b.name(FileSupervisor), err)
	}
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("write %s: %w", b.name(FileSupervisor), err)
	}
	return b.write(FileSupervisor, append(data, '\n'), maxRecord, volatile)
}

// RemoveSupervisor forgets the process, if one is recorded.
func (b *Bundle) RemoveSupervisor() error { return b.remove(FileSupervisor) }

// Pending is what the process that asks wrote for the one that takes its
// place; nil if there is nothing.
func (b *Bundle) Pending() ([]byte, error) {
	data, _, err := b.readOptional(FilePending, maxPending)
	return data, err
}

// SetPending replaces that.
func (b *Bundle) SetPending(data []byte) error {
	return b.write(FilePending, data, maxPending, volatile)
}

// RemovePending forgets it.
func (b *Bundle) RemovePending() error { return b.remove(FilePending) }

// ReaderPID is the process that another program's hook started to read
// blocked packets; 0 if there is no such file or it holds no process id. It is
// a hint: the caller looks at the process.
func (b *Bundle) ReaderPID() (int, error) {
	data, ok, err := b.readOptional(FileReaderPID, maxSmall)
	if !ok {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 0 {
		return 0, nil
	}
	return pid, nil
}

// RemoveReaderPID removes the file, if there is one.
func (b *Bundle) RemoveReaderPID() error { return b.remove(FileReaderPID) }
