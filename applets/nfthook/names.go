package nfthook

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/applets/internal/dnsmasq"
	"github.com/terok-ai/terok-box/applets/internal/reach"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/names"
	"github.com/terok-ai/terok-box/wire/start"
	"github.com/terok-ai/terok-box/wire/varlink"
)

const (
	// readyTimeout is how long the process that finds the addresses of names
	// gets to be ready.
	readyTimeout = 10 * time.Second
	maxReport    = 16 << 10 // bytes of why it is not
)

// tierOf is the tier of the process that a container needs; "" if none.
func tierOf(b *bundle.Bundle) (bundle.Tier, error) {
	t, err := b.Tier()
	if err != nil || t == bundle.Proxy {
		return t, err
	}
	if conf, err := b.DnsmasqConf(); err != nil || conf != nil {
		return bundle.Dnsmasq, err
	}
	// Names of other programs' static bundles were looked up by these.
	if format, err := b.RulesetFormat(); err != nil || format == 0 {
		return "", err
	}
	profile, err1 := b.ProfileDomains()
	live, err2 := b.LiveDomains()
	if err := errors.Join(err1, err2); err != nil || len(profile)+len(live) == 0 {
		return "", err
	}
	return bundle.Static, nil
}

// socketPath is where the process serves org.terok.ShieldDns1.
func socketPath(runtimeDir, short string, b *bundle.Bundle) string {
	if runtimeDir == "" {
		return filepath.Join(b.Path(), "run", "dns.sock")
	}
	return names.SocketPath(runtimeDir, short)
}

// starting is a process on its way.
type starting struct {
	spec   names.Spec
	proc   *os.Process
	tell   *os.File // the pipe of its spec
	report *os.File
}

// launch starts the process, which does what it can before the firewall is
// there. The caller is in the host's network namespace.
func launch(spec names.Spec, ns *netns.NS) (*starting, error) {
	specR, specW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	reportR, reportW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, specR.Close(), specW.Close())
	}
	s := &starting{spec: spec, tell: specW, report: reportR}
	files := [names.NumFiles]int{}
	for i := range files {
		files[i] = child.None
	}
	for n, f := range map[int]*os.File{start.FileSpec: specR, start.FileReport: reportW, start.FileNetNS: ns.File()} {
		fd, dupErr := child.Duplicate(f)
		if dupErr != nil {
			err = errors.Join(err, dupErr)
			continue
		}
		defer unix.Close(fd)
		files[n-start.FileSpec] = fd
	}
	if err == nil {
		rules := reach.Names(spec)
		s.proc, err = child.Start(child.Command{Args: spec.Args(start.Server), Files: files[:], Session: true, Rules: &rules})
	}
	specR.Close()
	reportW.Close()
	if err == nil {
		err = start.WriteSpec(specW, spec)
	}
	if err != nil {
		return nil, errors.Join(err, s.kill())
	}
	return s, nil
}

// ready tells the process that the firewall is there and waits until names
// are found.
func (s *starting) ready(ctx context.Context) error {
	defer s.close()
	fail := func(err error) error {
		return fmt.Errorf("start the process that finds the addresses of names: %w", err)
	}
	// If it has ended, its report says why.
	proceedErr := start.Proceed(s.tell)
	deadline := time.Now().Add(readyTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := s.report.SetReadDeadline(deadline); err != nil {
		return fail(err)
	}
	line, err := bufio.NewReader(io.LimitReader(s.report, maxReport)).ReadString('\n')
	line = strings.TrimSpace(line)
	switch {
	case line == start.Ready && err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fail(fmt.Errorf("it is not ready after %v; see dns.log in the state directory", readyTimeout))
	case line == "":
		return fail(errors.Join(errors.New("it ended without a word; see dns.log in the state directory"), proceedErr))
	}
	return fail(errors.New(line))
}

func (s *starting) close() {
	s.tell.Close()
	s.report.Close()
}

// kill leaves nothing of a process whose container will not start.
func (s *starting) kill() error {
	s.close()
	if s.proc == nil {
		return nil
	}
	s.proc.Kill()
	_, err := s.proc.Wait()
	return errors.Join(err, varlink.RemoveDead(s.spec.Socket))
}

// endProcesses ends the processes that match, removes what they leave behind
// and what is left of the bundle's own.
func endProcesses(ctx context.Context, b *bundle.Bundle, match func(start.Identity) bool) error {
	dirs := map[string]bool{}
	_, err := child.End(ctx, func(args []string) bool {
		id, ok := names.ParseArgs(args)
		if !ok || !match(id) {
			return false
		}
		dirs[id.StateDir] = true
		return true
	})
	errs := []error{err, forget(b)}
	delete(dirs, b.Path())
	for dir := range dirs {
		other, err := bundle.Open(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = errors.Join(dnsmasq.Stop(ctx, other), forget(other), other.Close())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// forget removes the record and the socket of a process that has ended.
func forget(b *bundle.Bundle) error {
	n, err := b.Namer()
	if err != nil { // who can tell what it was
		return b.RemoveNamer()
	}
	if n.PID == 0 || n.Alive() {
		return nil
	}
	if fi, err := os.Lstat(n.Socket); err == nil && fi.Mode().Type() == fs.ModeSocket {
		if err := os.Remove(n.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return b.RemoveNamer()
}
