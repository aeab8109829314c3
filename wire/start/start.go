// Package start is what a process that lives as long as a container is told
// and given when it is started, and what tells it from other processes. Two of
// them belong together: a server, which does the work, and a keeper.
//
// It must never import anything but the standard library.
package start

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
)

// Open files of a process, by their number. Those that it gets none of are
// /dev/null.
const (
	FileSpec   = 3 + iota // what WriteSpec and Proceed write
	FileReport            // write end of a pipe: one line, Ready or why it cannot work
	FileNetNS             // the container's network namespace
	FilePeer              // a socket whose other end the other process holds; of the first process none
	FileOwn               // from here on: what the program itself needs
)

// Ready is what a process reports when it does its work.
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
	NetNS    string // device:inode of the container's network namespace
	Roster   string // the file that lists who lives in it; "" if nobody else can
}

// Args are the arguments of a process: the program's name, the identity, and
// what the program adds to that.
func (i Identity) Args(program string, more ...string) []string {
	return append([]string{program, string(i.Role), i.StateDir, i.NetNS, i.Roster}, more...)
}

// ParseArgs is the inverse of Args.
func ParseArgs(program string, args []string) (i Identity, more []string, ok bool) {
	const words = 5
	if len(args) < words || args[0] != program {
		return Identity{}, nil, false
	}
	i = Identity{Role: Role(args[1]), StateDir: args[2], NetNS: args[3], Roster: args[4]}
	return i, args[words:], i.Role == Server || i.Role == Keeper
}

// MaxSpec bounds what a process is told, in bytes: it is more than some paths
// of the greatest length (PATH_MAX 4096) and a few hundred words take in JSON.
const MaxSpec = 256 << 10

// proceed follows the spec on its pipe.
const proceed = 'p'

// WriteSpec tells a process what it is for. It opens all that it needs and
// then waits for Proceed, unless that is there already.
func WriteSpec(w io.Writer, spec any) error {
	data, err := json.Marshal(spec)
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

// ReadSpec reads what WriteSpec wrote, and checks it. wait returns when the
// process may go on.
func ReadSpec[T interface{ Check() error }](r io.Reader) (spec T, wait func() error, err error) {
	in := bufio.NewReader(io.LimitReader(r, MaxSpec))
	line, err := in.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &spec)
	}
	if err == nil {
		err = spec.Check()
	}
	if err != nil {
		var none T
		return none, nil, fmt.Errorf("read what to do: %w", err)
	}
	return spec, func() error {
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

// Check refuses what no process can have been started for. pid and start are
// of the container's first process.
func (i Identity) Check(pid int, start uint64) error {
	if err := CheckPath(i.StateDir); err != nil {
		return err
	}
	if i.Roster != "" {
		if err := CheckPath(i.Roster); err != nil {
			return err
		}
	}
	switch {
	case i.NetNS == "":
		return errors.New("no network namespace")
	case pid <= 0 || start == 0:
		return errors.New("no process of the container")
	}
	return nil
}

// CheckPath refuses what is no absolute path.
func CheckPath(p string) error {
	if !filepath.IsAbs(p) || strings.ContainsRune(p, 0) {
		return fmt.Errorf("%.100q is not an absolute path", p)
	}
	return nil
}
