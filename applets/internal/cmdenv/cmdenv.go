// Package cmdenv is the one place where a program of ours meets the process
// around it: standard streams, environment variables, identity, signals, log
// and exit codes, and what a person gets to see of an error. Everything else
// takes an *Env, so commands run in tests without a process of their own.
//
// It must never import another package of this project.
package cmdenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"unicode"
)

// Exit codes, stable for scripts.
const (
	ExitOK          = 0
	ExitFailure     = 1 // the thing asked for did not happen; the firewall is as it was, or closed
	ExitUsage       = 2 // the command line is wrong
	ExitInterrupted = 130
)

// Env is a command's surroundings.
type Env struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Vars   map[string]string // environment variables
	UID    int               // real user id, as this process sees it
	EUID   int
	Self   string // path that executes this program again

	// Again executes this program again in the place of this process, with the
	// same arguments and open files, and Vars. It returns only an error. Nil
	// where the process is not this command's alone, as in a test.
	Again func() error
}

// OS is the environment of this process.
func OS() *Env {
	vars := make(map[string]string)
	for _, kv := range os.Environ() {
		if k, v, ok := strings.Cut(kv, "="); ok {
			vars[k] = v
		}
	}
	env := &Env{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Vars: vars, UID: os.Getuid(), EUID: os.Geteuid(),
		Self: "/proc/self/exe",
	}
	env.Again = func() error { return os.NewSyscallError("execve", syscall.Exec(env.Self, os.Args, env.Environ())) }
	return env
}

// Get is the variable's value; "" if unset.
func (e *Env) Get(name string) string { return e.Vars[name] }

// Home is the user's home directory, from HOME, or an error that says so.
func (e *Env) Home() (string, error) {
	if h := e.Get("HOME"); filepath.IsAbs(h) {
		return h, nil
	}
	return "", errors.New("HOME is not set to an absolute path; set it to your home directory")
}

// XDG is the base directory of that kind ("CONFIG", "STATE" or "DATA"):
// $XDG_<kind>_HOME if it is an absolute path, else fallback below the home
// directory.
func (e *Env) XDG(kind, fallback string) (string, error) {
	if d := e.Get("XDG_" + kind + "_HOME"); filepath.IsAbs(d) {
		return d, nil
	}
	h, err := e.Home()
	if err != nil {
		return "", err
	}
	return filepath.Join(h, fallback), nil
}

// Environ is Vars in the form of os.Environ.
func (e *Env) Environ() []string {
	out := make([]string, 0, len(e.Vars))
	for k, v := range e.Vars {
		out = append(out, k+"="+v)
	}
	return out
}

// Exit is an error that fixes the exit code. A nil Err ends silently.
type Exit struct {
	Code int
	Err  error
}

func (e *Exit) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit %d", e.Code)
	}
	return e.Err.Error()
}

func (e *Exit) Unwrap() error { return e.Err }

// Usagef is a wrong command line: exit 2.
func Usagef(format string, a ...any) error {
	return &Exit{Code: ExitUsage, Err: fmt.Errorf(format, a...)}
}

// Fail prints err the way people see errors, one line with control
// characters made visible, and returns the exit code that belongs to it.
func (e *Env) Fail(prefix string, err error) int {
	if err == nil {
		return ExitOK
	}
	code := ExitFailure
	if x, ok := errors.AsType[*Exit](err); ok {
		code = x.Code
		if x.Err == nil {
			return code
		}
	}
	if errors.Is(err, context.Canceled) {
		code = ExitInterrupted
	}
	fmt.Fprintf(e.Stderr, "%s%s\n", prefix, Printable(err.Error()))
	return code
}

// Printable keeps a text from moving the cursor or imitating other output:
// line breaks become "; " and other control characters '?'. Text that
// reaches a terminal may come from a container.
func Printable(s string) string {
	s = strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "; ")
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r),
			r == 0x2028, r == 0x2029, r == 0xfeff, r == 0x200b: // other ends of lines, nothing to see
			return '?'
		}
		return r
	}, s)
}

// Terminal says whether w is a terminal.
func Terminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0 && isatty(f)
}

// Color says whether w may be coloured: a terminal, no NO_COLOR, not dumb.
func (e *Env) Color(w any) bool {
	return e.Get("NO_COLOR") == "" && e.Get("TERM") != "dumb" && Terminal(w)
}

// Context ends at SIGINT or SIGTERM.
func Context() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
}

// Persist keeps SIGINT, SIGTERM and SIGHUP from ending this process. They are not
// ignored, which programs that it starts would inherit.
func Persist() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
}

// Interrupted says whether it was SIGINT that has ended a Context.
func Interrupted(ctx context.Context) bool {
	return ctx.Err() != nil && context.Cause(ctx).Error() == syscall.SIGINT.String()+" signal received"
}
