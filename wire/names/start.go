package names

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
)

// Program is the private program that is the process. It is started with its
// Args, by which others recognise it, and with these open files, of which
// those that it gets none of are /dev/null.
const Program = "dns-proxy"

// Open files of the process, by their number.
const (
	FileSpec   = 3 + iota // what WriteSpec and Proceed write
	FileReport            // write end of a pipe: one line, Ready or why it cannot work
	FileNetNS             // the container's network namespace
	FilePeer              // a socket whose other end the other process holds; of the first process none
	FileUDP               // port 53 in the namespace, of the proxy tier; of the first process none
	FileTCP               // likewise
	files
)

// NumFiles is how many there are, without the standard streams.
const NumFiles = files - FileSpec

// Ready is what the process reports when the container's names are found.
const Ready = "ready"

// Role is what a process does.
type Role string

// The server does the work and the keeper starts another server should it
// die; the server starts another keeper.
const (
	Server Role = "serve"
	Keeper Role = "keep"
)

// Identity is what tells a container's processes from others.
type Identity struct {
	Role     Role
	StateDir string
	NetNS    string
	Roster   string
}

// Args are the arguments of a process: the program's name and its identity.
func (s Spec) Args(r Role) []string {
	return []string{Program, string(r), s.StateDir, s.NetNS, s.Roster}
}

// ParseArgs is the inverse of Args.
func ParseArgs(args []string) (Identity, bool) {
	if len(args) != 5 || args[0] != Program {
		return Identity{}, false
	}
	id := Identity{Role: Role(args[1]), StateDir: args[2], NetNS: args[3], Roster: args[4]}
	return id, id.Role == Server || id.Role == Keeper
}

// maxSpec is more than four paths of the greatest length (PATH_MAX 4096) take
// in JSON, in bytes.
const maxSpec = 128 << 10

// proceed follows the Spec on its pipe.
const proceed = 'p'

// WriteSpec tells a process what it is for. It opens all that it needs and
// then waits for Proceed, unless that is there already.
func WriteSpec(w io.Writer, s Spec) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	_, err = w.Write(append(data, '\n'))
	return err
}

// Proceed tells the process that the firewall is there. If the pipe is closed
// instead, it ends.
func Proceed(w io.Writer) error {
	_, err := w.Write([]byte{proceed})
	return err
}

// ReadSpec reads what WriteSpec wrote. wait returns when the process may go on.
func ReadSpec(r io.Reader) (s Spec, wait func() error, err error) {
	in := bufio.NewReader(io.LimitReader(r, maxSpec))
	line, err := in.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &s)
	}
	if err == nil {
		err = s.check()
	}
	if err != nil {
		return Spec{}, nil, fmt.Errorf("read what to do: %w", err)
	}
	return s, func() error {
		switch b, err := in.ReadByte(); {
		case errors.Is(err, io.EOF):
			return errors.New("whoever started this process has ended")
		case err != nil:
			return fmt.Errorf("wait for the firewall: %w", err)
		case b != proceed:
			return fmt.Errorf("wait for the firewall: unexpected byte %#x", b)
		}
		return nil
	}, nil
}

func (s Spec) check() error {
	for _, p := range []string{s.StateDir, s.Socket, s.Roster} {
		if (p != "" || p == s.StateDir) && (!filepath.IsAbs(p) || strings.ContainsRune(p, 0)) {
			return fmt.Errorf("%.100q is not an absolute path", p)
		}
	}
	switch {
	case s.Socket == "":
		return errors.New("no socket")
	case s.NetNS == "":
		return errors.New("no network namespace")
	case s.PID <= 0 || s.Start == 0:
		return errors.New("no process of the container")
	}
	return nil
}
