// Package service is what programs have in common that serve a user until
// they are told to end: their sockets, which a service manager may have made
// for them, their log, and how they end.
//
// It must never import an applet.
package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/wire/varlink"
)

// Log is the log of a service: it goes to standard error.
func Log(env *cmdenv.Env) *slog.Logger { return slog.New(slog.NewTextHandler(env.Stderr, nil)) }

// Run has something served until SIGINT or SIGTERM, of which the first is an
// error with the exit code of its own. A service that confines itself does so
// before: see confined.Program.
func Run(env *cmdenv.Env, serve func(ctx context.Context, log *slog.Logger) error) error {
	ctx, stop := cmdenv.Context()
	defer stop()
	if err := serve(ctx, Log(env)); err != nil {
		return err
	}
	if cmdenv.Interrupted(ctx) {
		return &cmdenv.Exit{Code: cmdenv.ExitInterrupted}
	}
	return nil
}

// Socket is one to be served.
type Socket struct {
	Name string // by which a service manager may pass it
	Path string
}

const (
	// firstPassed is the descriptor of the first socket that a service
	// manager passes (sd_listen_fds(3)), and maxPassed bounds their number.
	firstPassed = 3
	maxPassed   = 64
)

// Listen opens the sockets: the service manager has passed them, known by
// their names or else by that of their file, or they are made as by
// varlink.Listen. Only what was made here is removed when it is closed.
func Listen(env *cmdenv.Env, sockets ...Socket) (_ []net.Listener, err error) {
	out := make([]net.Listener, len(sockets))
	defer func() {
		if err != nil {
			for _, l := range out {
				if l != nil {
					l.Close()
				}
			}
		}
	}()
	all, err := passed(env)
	if err != nil {
		return nil, fmt.Errorf("the sockets of the service manager: %w", err)
	}
	for i, s := range sockets {
		for name, l := range all {
			if name == s.Name || filepath.Base(l.Addr().String()) == filepath.Base(s.Path) {
				out[i] = l
				delete(all, name)
				break
			}
		}
	}
	var strangers []string
	for name, l := range all {
		strangers = append(strangers, fmt.Sprintf("%s (%s)", name, l.Addr()))
		l.Close()
	}
	if len(strangers) > 0 {
		return nil, fmt.Errorf("the service manager has passed sockets that nobody here serves: %s", strings.Join(strangers, ", "))
	}
	for i, s := range sockets {
		if out[i] != nil {
			continue
		}
		l, err := varlink.Listen(s.Path)
		if errors.Is(err, varlink.ErrInUse) {
			return nil, fmt.Errorf("%w; stop it first; who it is: ss -xlp src %s", err, s.Path)
		}
		if err != nil {
			return nil, err
		}
		out[i] = l
	}
	return out, nil
}

// passed are the sockets that a service manager has passed to this process, by
// their names, or where these do not tell them apart by their numbers. They
// are passed once, and not to programs that this one starts.
func passed(env *cmdenv.Env) (all map[string]net.Listener, err error) {
	pid, number, names := env.Get("LISTEN_PID"), env.Get("LISTEN_FDS"), env.Get("LISTEN_FDNAMES")
	for _, v := range []string{"LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		delete(env.Vars, v)
	}
	if n, err := strconv.Atoi(pid); err != nil || n != os.Getpid() {
		return nil, nil // meant for another process
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 0 || n > maxPassed {
		return nil, fmt.Errorf("LISTEN_FDS is %.20q, not a number up to %d", number, maxPassed)
	}
	all = make(map[string]net.Listener)
	defer func() {
		if err != nil {
			for _, l := range all {
				l.Close()
			}
		}
	}()
	named := strings.Split(names, ":")
	for i := range n {
		fd := firstPassed + i
		l, err := listener(fd)
		if err != nil {
			return nil, fmt.Errorf("descriptor %d: %w", fd, err)
		}
		name := fmt.Sprintf("descriptor %d", fd)
		if i < len(named) && named[i] != "" && all[named[i]] == nil {
			name = named[i]
		}
		all[name] = l
	}
	return all, nil
}

// listener takes a descriptor over that is a Unix socket that listens.
func listener(fd int) (net.Listener, error) {
	syscall.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "")
	defer f.Close() // the listener has one of its own
	listens, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt", err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	if _, ok := l.(*net.UnixListener); !ok || listens == 0 {
		l.Close()
		return nil, errors.New("not a Unix socket that listens")
	}
	return l, nil
}
