// Package shielded is one container as programs need it that work on its
// firewall from outside: found by its name or id, and with a way to have an
// operation done where this process may not do it itself.
//
// It prints nothing, and what it says is for its caller's messages. It must
// never import an applet.
package shielded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/podman"
	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// Container is a container that was found.
type Container struct {
	Name  string // as the operator calls it
	Dir   string // the state directory whose lists govern it
	PID   int    // of its first process, in the host's numbering; 0: it does not run
	NetNS string // device:inode of its network namespace; "" when only Podman told us about it
	Owner string // the container whose network it shares and whose lists govern it; "" if its own do

	finder Finder
}

// Finder knows where containers are.
type Finder struct {
	Env       *cmdenv.Env
	StateRoot string // containers' state is in StateRoot/containers/NAME
	Only      bool   // nowhere else, whatever a container's annotations say

	// Progress is called while names are looked up; it may be nil.
	Progress func(done, total int)
}

// Dir is the state directory that a container of that name gets from us.
func (f Finder) Dir(name string) string { return filepath.Join(f.StateRoot, "containers", name) }

// Started is a container that was started a moment ago.
func (f Finder) Started(name string, pid int) Container {
	return Container{Name: name, Dir: f.Dir(name), PID: pid, finder: f}
}

// Locate finds a container by its name, or by at least 12 digits of its id.
// What the hook left in its state directory answers without asking Podman, as
// long as its process lives; else Podman is asked, whose annotation also knows
// containers that an orchestrator keeps elsewhere.
func (f Finder) Locate(ctx context.Context, name string) (Container, error) {
	if err := policy.ContainerName(name); err != nil {
		return Container{}, err
	}
	c := Container{Name: name, Dir: f.Dir(name), finder: f}
	p, err := process(c.Dir)
	if errors.Is(err, fs.ErrNotExist) && isID(name) {
		if dir := f.byID(name); dir != "" {
			c.Dir = dir
			p, err = process(dir)
		}
	}
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return c, err
	case p.PID != 0:
		c.PID, c.NetNS = p.PID, p.NetNS
		return c.shared()
	}
	engine, err := podman.Find(f.Env)
	if err != nil {
		return c, err
	}
	got, err := engine.Inspect(ctx, name)
	switch {
	case errors.Is(err, podman.ErrNotFound):
		if _, statErr := os.Stat(c.Dir); statErr == nil {
			return c, nil // prepared, not created yet
		}
		return c, fmt.Errorf("no container %s, and nothing prepared for it in %s: see podman ps -a, or give --state-dir", name, c.Dir)
	case err != nil:
		return c, err
	}
	c.PID = got.PID
	if !f.Only {
		if c.Dir, err = got.StateDir(); err != nil {
			return c, fmt.Errorf("%s: %w (it was not started under terok-shield; or give --state-dir)", name, err)
		}
	} else if _, err := os.Stat(c.Dir); err != nil && policy.ContainerName(got.Name) == nil {
		c.Dir = f.Dir(got.Name) // found by its id
	}
	return c.shared()
}

// process is the container's process as the hook recorded it; the zero value
// if it does not live any more.
func process(dir string) (bundle.Process, error) {
	b, err := bundle.Open(dir)
	if err != nil {
		return bundle.Process{}, err
	}
	defer b.Close()
	p, err := b.Process()
	if err != nil || p.PID == 0 || !p.Alive() { // else Podman knows
		return bundle.Process{}, nil
	}
	return p, nil
}

const (
	minID = 12 // digits of an id that name a container, as in events
	maxID = 64

	// maxContainers bounds the state directories that are looked through for
	// an id. To read that many ids takes as long as asking Podman.
	maxContainers = 4096
)

func isID(s string) bool {
	return len(s) >= minID && len(s) <= maxID && strings.Trim(s, "0123456789abcdef") == ""
}

// byID is the state directory of ours of a container with that id that runs;
// "" if there is none, or more than one.
func (f Finder) byID(id string) (found string) {
	root, err := os.Open(filepath.Join(f.StateRoot, "containers"))
	if err != nil {
		return ""
	}
	defer root.Close()
	names, _ := root.Readdirnames(maxContainers)
	for _, name := range names {
		if recorded := readID(root, name); !sameID(recorded, id) {
			continue
		}
		dir := f.Dir(name)
		if p, err := process(dir); err != nil || p.PID == 0 {
			continue // of a container that has ended
		}
		if found != "" {
			return ""
		}
		found = dir
	}
	return found
}

// sameID says that one is the beginning of the other: hooks record the first
// 12 digits.
func sameID(a, b string) bool {
	return isID(a) && isID(b) && (strings.HasPrefix(a, b) || strings.HasPrefix(b, a))
}

// readID is what the hook recorded as the id in a state directory. It is a
// hint, so the directory is not looked at any further.
func readID(root *os.File, name string) string {
	path := name + "/" + bundle.FileContainerID
	fd, err := syscall.Openat(int(root.Fd()), path, syscall.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	var buf [maxID + 2]byte
	n, err := io.ReadFull(file, buf[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return ""
	}
	return strings.TrimSpace(string(buf[:n]))
}

// shared leads to the state directory whose lists govern the network that a
// running container shares with others.
func (c Container) shared() (Container, error) {
	if c.PID == 0 {
		return c, nil
	}
	b, err := bundle.Open(c.Dir)
	if err != nil {
		return c, err
	}
	owner, err := b.Owner()
	if err := errors.Join(err, b.Close()); err != nil || owner == "" || owner == c.Dir {
		return c, err
	}
	c.Dir, c.Owner = owner, filepath.Base(owner)
	return c, nil
}
