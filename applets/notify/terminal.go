package notify

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
)

// startTime is within which a terminal that cannot start ends.
const startTime = 2 * time.Second

// terminal is a terminal emulator that can run a command.
type terminal struct {
	env  *cmdenv.Env
	path string
	args []string // before the command
}

// findTerminal looks for a terminal emulator: the one that the user has chosen,
// what the desktop or the system has for that, or one of the usual ones.
func findTerminal(env *cmdenv.Env) (terminal, bool) {
	if env.Get("DISPLAY") == "" && env.Get("WAYLAND_DISPLAY") == "" {
		return terminal{}, false
	}
	for _, t := range []struct {
		name string
		args []string
	}{
		{env.Get("TERMINAL"), []string{"-e"}},
		{"xdg-terminal-exec", nil},
		{"x-terminal-emulator", []string{"-e"}},
		{"kgx", []string{"--"}},
		{"gnome-terminal", []string{"--"}},
		{"konsole", []string{"-e"}},
		{"xfce4-terminal", []string{"-x"}},
		{"foot", nil},
		{"kitty", nil},
		{"alacritty", []string{"-e"}},
		{"xterm", []string{"-e"}},
	} {
		if path := find(env, t.name); path != "" {
			return terminal{env, path, t.args}, true
		}
	}
	return terminal{}, false
}

// find is the path of a program; "" if there is none.
func find(env *cmdenv.Env, name string) string {
	if name == "" {
		return ""
	}
	dirs := filepath.SplitList(env.Get("PATH"))
	if filepath.IsAbs(name) {
		dirs = []string{"/"}
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if st, err := os.Stat(path); filepath.IsAbs(path) && err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

// list opens a terminal with all questions. ended is called when its program
// has, which may be as soon as it has asked another one.
func (t terminal) list(ended func()) error {
	self, err := os.Executable() // another process starts it
	if err != nil {
		ended()
		return fmt.Errorf("find this program's own file: %w", err)
	}
	cmd := exec.Command(t.path, append(t.args, self, "clearance-hub", "clearance")...)
	cmd.Env = t.env.Environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		ended()
		return fmt.Errorf("open a terminal: %w", err)
	}
	waited := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		ended()
		waited <- err
	}()
	select {
	case err := <-waited:
		if failed, ok := errors.AsType[*exec.ExitError](err); ok && !failed.Success() {
			return fmt.Errorf("open a terminal: %s: %w", t.path, err)
		}
	case <-time.After(startTime):
	}
	return nil
}
