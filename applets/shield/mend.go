package shield

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/terok-ai/terok-box/applets/internal/config"
	"github.com/terok-ai/terok-box/applets/internal/hook"
	"github.com/terok-ai/terok-box/applets/internal/podman"
	"github.com/terok-ai/terok-box/wire/varlink"
)

const (
	// maxEntries bounds what is looked at in each of our directories.
	maxEntries = 4096
	private    = 0o700
)

// neglect is something of ours that is not as it should be, and can be mended
// without harm to anybody.
type neglect struct {
	text string
	mend func() error
}

// neglected looks at the modes of containers' directories, and for sockets of programs
// that have ended.
func (a *app) neglected(cfg config.Config) (found []neglect) {
	root := filepath.Dir(a.dirOf(cfg, "x"))
	for _, dir := range entries(root, fs.ModeDir) {
		found = append(found, openDir(dir)...)
	}
	runtimeDir, err := hook.RuntimeDir(a.env)
	if err != nil {
		return found // then nothing of ours is there
	}
	own := filepath.Join(runtimeDir, "terok")
	for _, dir := range entries(own, fs.ModeDir) {
		open := openDir(dir)
		found = append(found, open...)
		for _, path := range entries(dir, fs.ModeSocket) {
			if len(open) > 0 || !dead(path) { // an open one is mended first
				continue
			}
			found = append(found, neglect{"nobody serves the socket " + path + " any more", func() error { return varlink.RemoveDead(path) }})
		}
	}
	return found
}

// entries are the paths of what is in a directory of that kind.
func entries(dir string, kind fs.FileMode) (paths []string) {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	all, _ := f.ReadDir(maxEntries)
	for _, e := range all {
		if e.Type() == kind {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(paths)
	return paths
}

// openDir finds that a directory of our user is open to others.
func openDir(dir string) []neglect {
	st, err := os.Lstat(dir)
	if err != nil || !st.IsDir() || st.Mode().Perm()&^private == 0 {
		return nil
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || int(sys.Uid) != os.Geteuid() {
		return nil
	}
	return []neglect{{
		fmt.Sprintf("%s is open to others (mode %04o)", dir, st.Mode().Perm()),
		func() error { return chmodDir(dir, st) },
	}}
}

// chmodDir closes the directory that was looked at, and no other that is in
// its place by now.
func chmodDir(dir string, looked fs.FileInfo) error {
	f, err := os.OpenFile(dir, syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(st, looked) {
		return fmt.Errorf("%s was replaced meanwhile", dir)
	}
	return f.Chmod(st.Mode().Perm() & private)
}

// dead reports whether a socket's server has ended.
func dead(path string) bool {
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// mend does what is safe, and returns what was wrong and is not any more. It
// goes on whatever fails.
func (a *app) mend(e environment, all []neglect) (fixed []string, err error) {
	setup := func(i podman.Issue) bool { return i.Fix == podman.SetupFix }
	if slices.ContainsFunc(e.Issues, setup) {
		report, setupErr := podman.Install(a.env, a.env.Self, podman.Firewall, podman.Reader)
		if setupErr != nil {
			err = fmt.Errorf("install the hooks: %w", setupErr)
		} else {
			a.tell(report)
			for _, i := range e.Issues {
				if setup(i) {
					fixed = append(fixed, i.Text)
				}
			}
		}
	}
	for _, n := range all {
		if mendErr := n.mend(); mendErr != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", n.text, mendErr))
			continue
		}
		fixed = append(fixed, n.text)
	}
	return fixed, err
}
