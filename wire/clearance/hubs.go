package clearance

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	// rescan is how often Hubs looks even if it was told of no change.
	rescan = 2 * time.Second
	// maxHubs bounds how many entries of a directory are looked at.
	maxHubs = 4096
)

// Hub is a socket at which a hub may answer. Those that are equal are the same
// socket: one that was removed and made again is another one.
type Hub struct {
	Path string
	id   identity
}

// identity tells a file from others that had or will have its name.
type identity struct {
	dev, ino uint64
	ctime    syscall.Timespec
}

// Hubs finds the sockets of all hubs of a user until ctx ends, which is not an
// error: those of containers, in both of the layouts that there are, and the
// one for all containers. It calls changed at first and after each change, with
// all that there are, sorted by their paths. runtimeDir is the user's, such as
// /run/user/1000; neither it nor what is in it need exist.
//
// Changes are known at once where the system tells of them (inotify(7)), and
// within two seconds elsewhere. Sockets without a server are found, too.
func Hubs(ctx context.Context, runtimeDir string, changed func([]Hub)) error {
	if !filepath.IsAbs(runtimeDir) {
		return fmt.Errorf("look for hubs: the runtime directory %q is not an absolute path", runtimeDir)
	}
	w := newWatcher(runtimeDir)
	if file := w.file; file != nil {
		defer file.Close()
		defer context.AfterFunc(ctx, func() { file.Close() })()
	}
	var last []Hub
	for first := true; ctx.Err() == nil; first = false {
		hubs := w.scan()
		if first || !slices.Equal(hubs, last) {
			changed(hubs)
			last = hubs
		}
		w.wait(ctx, rescan)
	}
	return nil
}

// watcher looks for hubs, and waits for changes.
type watcher struct {
	root string
	file *os.File         // inotify; nil: the system has no more of it to give
	dirs map[int32]string // by watch descriptor
}

func newWatcher(root string) *watcher {
	w := &watcher{root: filepath.Clean(root)}
	if fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK); err == nil {
		w.file = os.NewFile(uintptr(fd), "inotify")
	}
	return w
}

// scan is what is there now. From then on wait knows of changes.
func (w *watcher) scan() []Hub {
	before := w.dirs
	w.dirs = make(map[int32]string)
	var hubs []Hub
	add := func(path string) {
		fi, err := os.Stat(path)
		if err != nil || fi.Mode().Type() != fs.ModeSocket {
			return
		}
		if s, ok := fi.Sys().(*syscall.Stat_t); ok {
			hubs = append(hubs, Hub{path, identity{uint64(s.Dev), s.Ino, s.Ctim}})
		}
	}
	// Each is watched before it is read, and those above it before that.
	w.watch(w.root)
	add(UserSocketPath(w.root))
	dir := filepath.Join(w.root, "terok")
	w.watch(dir)
	dir = filepath.Join(dir, "clearance")
	w.watch(dir)
	for _, name := range list(dir) {
		path := filepath.Join(dir, name)
		if fi, err := os.Stat(path); err == nil && fi.IsDir() {
			w.watch(path)
			add(filepath.Join(path, "hub.sock"))
		} else if strings.HasSuffix(name, ".sock") {
			add(path)
		}
	}
	for wd := range before {
		if _, ok := w.dirs[wd]; !ok {
			w.control(func(fd int) { _, _ = syscall.InotifyRmWatch(fd, uint32(wd)) }) // the system may have done so
		}
	}
	slices.SortFunc(hubs, func(a, b Hub) int { return cmp.Compare(a.Path, b.Path) })
	return hubs
}

// list is the names in a directory that are not hidden.
func list(dir string) []string {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := f.Readdirnames(maxHubs) // an error after some names ends them
	return slices.DeleteFunc(names, func(n string) bool { return strings.HasPrefix(n, ".") })
}

func (w *watcher) control(f func(fd int)) {
	if w.file == nil {
		return
	}
	if raw, err := w.file.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { f(int(fd)) }) // fails when it is closed
	}
}

// watch has the system tell of changes in a directory, if it can.
func (w *watcher) watch(dir string) {
	const mask = syscall.IN_ONLYDIR | syscall.IN_CREATE | syscall.IN_DELETE | syscall.IN_MOVED_FROM | syscall.IN_MOVED_TO |
		syscall.IN_DELETE_SELF | syscall.IN_MOVE_SELF
	w.control(func(fd int) {
		if wd, err := syscall.InotifyAddWatch(fd, dir, mask); err == nil {
			w.dirs[int32(wd)] = dir
		}
	})
}

// wait returns when something has changed, after some time, or when ctx ends.
func (w *watcher) wait(ctx context.Context, limit time.Duration) {
	if w.file == nil {
		select {
		case <-ctx.Done():
		case <-time.After(limit):
		}
		return
	}
	if w.file.SetReadDeadline(time.Now().Add(limit)) != nil {
		return // it is closed
	}
	buf := make([]byte, 16<<10)
	for {
		n, err := w.file.Read(buf)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
			// Not known to happen. What does is that time passes.
			w.file.Close()
			w.file = nil
			w.wait(ctx, limit)
			return
		}
		if err != nil || w.matters(buf[:n]) {
			return
		}
	}
}

// matters reports whether events can have to do with hubs. Most directories
// have other uses, too.
func (w *watcher) matters(events []byte) bool {
	for len(events) >= syscall.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(events))
		mask := binary.NativeEndian.Uint32(events[4:])
		end := syscall.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(events[12:]))
		if end > len(events) {
			return true
		}
		name, _, _ := bytes.Cut(events[syscall.SizeofInotifyEvent:end], []byte{0})
		events = events[end:]
		if mask&syscall.IN_Q_OVERFLOW != 0 {
			return true
		}
		dir, ok := w.dirs[wd]
		switch {
		case !ok:
		case len(name) == 0: // it is about the directory itself
			return true
		case dir == w.root && string(name) != "terok" && filepath.Join(dir, string(name)) != UserSocketPath(w.root):
		case dir == filepath.Join(w.root, "terok") && string(name) != "clearance":
		default:
			return true
		}
	}
	return false
}
