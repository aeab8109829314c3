// Package dnsmasq is the dnsmasq tier: a dnsmasq in the container's network
// namespace answers for its names and opens the addresses of those that are
// allowed. The package writes its configuration, starts it again when that
// changes or it dies, reads its log, keeps open what it opens only once, and
// stops it with the container. It recognises it by its command line.
//
// dnsmasq gives up root for the user nobody and the group dip (or nobody's),
// so these need ids in its user namespace: in a rootless one without
// subordinate ids dnsmasq ends, and the container does not start.
//
// It must never import a package that faces people.
package dnsmasq

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/wire/bundle"
)

const (
	startTimeout = 30 * time.Second // as the existing hook gives it
	stopTimeout  = 2 * time.Second  // from SIGTERM to SIGKILL
	killTimeout  = 5 * time.Second  // from SIGKILL to giving up
	pipeTimeout  = 2 * time.Second  // for output after the program's end
	poll         = 10 * time.Millisecond
	probeTimeout = 100 * time.Millisecond // for an answer that needs nobody else
	maxOutput    = 2048                   // bytes of its output that an error shows
	// maxCmdline is more than any command line of ours has: a path, a
	// configuration file's path (PATH_MAX 4096 each), and a few options.
	maxCmdline = 3 * 4096
	// path is all that dnsmasq's lookup by name may search: a hook inherits
	// the variable from whoever called Podman.
	path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// hint is what an operator can do about what dnsmasq said.
func hint(output string) string {
	switch {
	case strings.Contains(output, "failed to change"):
		return "; give this user subordinate ids in /etc/subuid and /etc/subgid"
	case strings.Contains(output, "ermission denied"):
		return "; does AppArmor or SELinux keep dnsmasq from the state directory?"
	}
	return ""
}

// Stop ends the bundle's dnsmasq, waits for it and removes its pid file.
// Other processes are left alone, whatever the pid file says.
func Stop(ctx context.Context, b *bundle.Bundle) error {
	conf, confErr := b.DnsmasqConf()
	pid, pidErr := b.DnsmasqPID()
	if conf == nil && pid == 0 && confErr == nil && pidErr == nil {
		return b.RemoveDnsmasqPID() // it may hold something else
	}
	return end(ctx, b)
}

// end stops every dnsmasq of the bundle: the one that answers, those it forked
// for TCP, and what an interrupted start left.
func end(ctx context.Context, b *bundle.Bundle) error {
	for started := time.Now(); ; {
		sig, waited := syscall.SIGTERM, time.Since(started)
		if waited > stopTimeout {
			sig = syscall.SIGKILL
		}
		pids, err := signalAll(b, sig)
		switch {
		case err != nil:
			return err
		case len(pids) == 0:
			return b.RemoveDnsmasqPID()
		case waited > stopTimeout+killTimeout:
			return fmt.Errorf("dnsmasq %v does not end, though killed", pids)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for dnsmasq %v to end: %w", pids, context.Cause(ctx))
		case <-time.After(poll):
		}
	}
}

// signalAll sends all of the bundle's dnsmasq a signal and returns their ids.
func signalAll(b *bundle.Bundle, sig syscall.Signal) (pids []int, err error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for dnsmasq: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("look for dnsmasq: %w", err)
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		p, err := process(pid, confArg(b))
		if err != nil {
			return nil, err
		}
		if p == nil {
			continue
		}
		pids = append(pids, pid)
		err = p.Signal(sig)
		p.Release()
		if err != nil && !errors.Is(err, os.ErrProcessDone) {
			return nil, fmt.Errorf("stop dnsmasq (pid %d): %w", pid, err)
		}
	}
	return pids, nil
}

func confArg(b *bundle.Bundle) string {
	return "--conf-file=" + filepath.Join(b.Path(), bundle.FileDnsmasqConf)
}

// answers reports whether the bundle's dnsmasq runs in ns and is the one that
// the pid file names.
func answers(b *bundle.Bundle, ns *netns.NS) (bool, error) {
	pid, err := b.DnsmasqPID()
	if err != nil || pid == 0 {
		return false, err
	}
	p, err := process(pid, confArg(b))
	if err != nil || p == nil {
		return false, err
	}
	defer p.Release()
	its, err := netns.Open(pid)
	if err != nil {
		return false, fmt.Errorf("dnsmasq: %w", err)
	}
	defer its.Close()
	itsID, err1 := its.ID()
	nsID, err2 := ns.ID()
	// Had it ended meanwhile, the namespace could be another process's.
	return itsID == nsID && p.Signal(syscall.Signal(0)) == nil, errors.Join(err1, err2)
}

// process is the living process if it is a dnsmasq with that argument and the
// caller may signal it, else nil. Somebody else can start one that looks like
// ours, but not one that we may signal. One that has ended and was not waited
// for has no command line.
func process(pid int, arg string) (*os.Process, error) {
	if ok, err := isOurs(pid, arg); err != nil || !ok {
		return nil, err
	}
	// A pidfd cannot come to mean another process; what it means is looked at
	// again after it was opened.
	p, err := os.FindProcess(pid)
	if err != nil {
		return nil, fmt.Errorf("dnsmasq (pid %d): %w", pid, err)
	}
	ok, err := isOurs(pid, arg)
	if err != nil || !ok || p.Signal(syscall.Signal(0)) != nil {
		p.Release()
		return nil, err
	}
	return p, nil
}

func isOurs(pid int, arg string) (bool, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/cmdline", pid))
	var cmdline []byte
	if err == nil {
		defer f.Close()
		cmdline, err = io.ReadAll(io.LimitReader(f, maxCmdline))
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ESRCH), errors.Is(err, fs.ErrPermission):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look for dnsmasq: %w", err)
	}
	return matches(string(cmdline), arg), nil
}

// matches tells the bundle's dnsmasq by its arguments, each of which ends in
// a NUL.
func matches(cmdline, arg string) bool {
	args := strings.Split(cmdline, "\x00")
	return filepath.Base(args[0]) == "dnsmasq" && slices.Contains(args[1:], arg)
}

// find looks dnsmasq up in the system's directories only.
func find() (string, error) {
	for dir := range strings.SplitSeq(path, ":") {
		p := filepath.Join(dir, "dnsmasq")
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", errors.New("this container was prepared for the dnsmasq tier, and dnsmasq is not installed: install it, or prepare the container again")
}

// head keeps the beginning of what is written to it.
type head struct{ strings.Builder }

func (h *head) Write(p []byte) (int, error) {
	h.Builder.Write(p[:min(len(p), maxOutput-h.Len())])
	return len(p), nil
}
