// Package dnsmasq is the life of the dnsmasq that a bundle of the dnsmasq
// tier asks for: started in the container's network namespace, recognised by
// its command line, stopped with the container.
//
// It must never import a package that faces people.
package dnsmasq

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/wire/bundle"
)

const (
	startTimeout = 30 * time.Second // as the existing hook gives it
	stopTimeout  = 2 * time.Second  // then SIGKILL
	poll         = 20 * time.Millisecond
	maxOutput    = 4096 // bytes of its output that an error shows
	// path is all that dnsmasq's lookup by name may search: a hook inherits
	// the variable from whoever called Podman.
	path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Start runs the bundle's dnsmasq in ns unless there is no dnsmasq.conf or it
// runs already. It returns when dnsmasq has written its pid file, which it
// does after its sockets are open.
func Start(ctx context.Context, b *bundle.Bundle, ns *netns.NS) error {
	conf, err := b.DnsmasqConf()
	if err != nil || conf == nil {
		return err
	}
	if pid, err := running(b); err != nil || pid != 0 {
		return err
	}
	program, err := find()
	if err != nil {
		return err
	}
	listen, err := listenAddress(conf)
	if err != nil {
		return err
	}
	if err := b.RemoveDnsmasqPID(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, program, confArg(b))
	cmd.Env = []string{"PATH=" + path}
	cmd.Stdout, cmd.Stderr = &out, &out
	err = ns.Do(func() error { // a child is born into its thread's namespace
		if listen.IsValid() && !listen.IsLoopback() {
			if err := netns.AddLoopbackAddr(listen); err != nil {
				return fmt.Errorf("add %s to lo: %w", listen, err)
			}
		}
		return cmd.Run()
	})
	if err != nil {
		text := out.String()
		return fmt.Errorf("start dnsmasq: %w: %s", err, text[:min(len(text), maxOutput)])
	}
	if pid, err := running(b); err != nil {
		return err
	} else if pid == 0 {
		return errors.New("dnsmasq started but its pid file does not name it; see dnsmasq.log in the state directory")
	}
	return nil
}

// Stop ends the bundle's dnsmasq and waits for it. A pid file that does not
// name our dnsmasq is only removed.
func Stop(ctx context.Context, b *bundle.Bundle) error {
	pid, err := running(b)
	if err != nil || pid == 0 {
		return errors.Join(err, b.RemoveDnsmasqPID())
	}
	// A pidfd cannot be handed to another process meanwhile; what it names is
	// looked at again after it was opened.
	proc, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	defer proc.Release()
	if again, err := running(b); err != nil || again != pid {
		return err
	}
	if err := proc.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop dnsmasq (pid %d): %w", pid, err)
	}
	deadline := time.After(stopTimeout)
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for proc.Signal(syscall.Signal(0)) == nil {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for dnsmasq (pid %d) to end: %w", pid, ctx.Err())
		case <-deadline:
			err := proc.Signal(syscall.SIGKILL)
			if err != nil && !errors.Is(err, os.ErrProcessDone) {
				return fmt.Errorf("kill dnsmasq (pid %d): %w", pid, err)
			}
			return b.RemoveDnsmasqPID()
		case <-tick.C:
		}
	}
	return b.RemoveDnsmasqPID()
}

func confArg(b *bundle.Bundle) string {
	return "--conf-file=" + filepath.Join(b.Path(), "dnsmasq.conf")
}

// running is the pid of this bundle's dnsmasq, 0 if it does not run.
func running(b *bundle.Bundle) (int, error) {
	pid, err := b.DnsmasqPID()
	if err != nil || pid == 0 {
		return 0, err
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ESRCH):
		return 0, nil
	case err != nil:
		return 0, err
	case !ours(cmdline, confArg(b)):
		return 0, nil
	}
	return pid, nil
}

// ours tells the bundle's dnsmasq by its arguments.
func ours(cmdline []byte, arg string) bool {
	args := strings.Split(string(cmdline), "\x00")
	if filepath.Base(args[0]) != "dnsmasq" {
		return false
	}
	for _, a := range args[1:] {
		if a == arg {
			return true
		}
	}
	return false
}

// find looks dnsmasq up in the system's directories only.
func find() (string, error) {
	for dir := range strings.SplitSeq(path, ":") {
		p := filepath.Join(dir, "dnsmasq")
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", errors.New("this container was prepared for the dnsmasq tier, and dnsmasq is not installed")
}

// listenAddress is the address dnsmasq binds; invalid if the file names none.
func listenAddress(conf []byte) (netip.Addr, error) {
	for line := range strings.Lines(string(conf)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "listen-address="); ok {
			a, err := netip.ParseAddr(v)
			if err != nil || a.Zone() != "" {
				return netip.Addr{}, fmt.Errorf("dnsmasq.conf: listen-address=%q is no address", v)
			}
			return a, nil
		}
	}
	return netip.Addr{}, nil
}
