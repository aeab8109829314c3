package dnsmasq

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/terok-ai/terok-box/wire/bundle"
)

// Why the tier cannot be used here, by Detect.
var (
	ErrMissing  = errors.New("dnsmasq is not installed; install it (on Debian, dnsmasq-base)")
	ErrNoNftset = errors.New("this dnsmasq was built without nftset; install one of version 2.87 or later that has it")
	ErrConfined = errors.New("dnsmasq is kept from the state directory by AppArmor, SELinux or its permissions; with AppArmor, terok-shield check-environment --apparmor prints what its profile of dnsmasq needs in addition")
)

// detectTimeout is for each of the two programs that Detect runs.
const detectTimeout = 10 * time.Second

// Detect returns nil if dnsmasq can do what the tier needs, with files in dir,
// which need not be there. It runs dnsmasq, without opening port 53.
func Detect(ctx context.Context, dir string) error {
	program, err := find()
	if err != nil {
		return ErrMissing
	}
	return detect(ctx, program, dir)
}

func detect(ctx context.Context, program, dir string) error {
	out, err := output(ctx, program, "--version")
	if err != nil {
		return fmt.Errorf("ask dnsmasq for its version: %w", err)
	}
	if !slices.Contains(strings.Fields(out), "nftset") { // else it is no-nftset
		return ErrNoNftset
	}
	return probe(ctx, program, dir)
}

// output is what a program that ends at once prints.
func output(ctx context.Context, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, detectTimeout)
	defer cancel()
	var out head
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"PATH=" + path}
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = pipeTimeout
	err := cmd.Run()
	return out.String(), err
}

// probe has dnsmasq read a configuration and write its pid file and log where
// a container's would be: a directory below dir, as a state directory is below
// the directory of them all.
func probe(ctx context.Context, program, dir string) (err error) {
	made, err := missing(dir)
	if err != nil {
		return err
	}
	defer func() {
		for _, d := range made { // the innermost first
			os.Remove(d)
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("see whether dnsmasq can be used: %w", err)
	}
	temp, err := os.MkdirTemp(dir, ".dnsmasq-probe-")
	if err != nil {
		return fmt.Errorf("see whether dnsmasq can be used: %w", err)
	}
	defer os.RemoveAll(temp)
	file := func(name string) string { return filepath.Join(temp, name) }
	text := "port=0\npid-file=" + file(bundle.FileDnsmasqPID) + "\nlog-facility=" + file(fileLog) + "\n"
	if err := os.WriteFile(file(bundle.FileDnsmasqConf), []byte(text), 0o600); err != nil {
		return fmt.Errorf("see whether dnsmasq can be used: %w", err)
	}

	ctx, cancel := context.WithTimeout(ctx, detectTimeout)
	defer cancel()
	c := &child{done: make(chan struct{})}
	// As its own user it need not become another one, which the container's
	// may: that needs ids, not permissions for files.
	c.cmd = exec.Command(program, "--conf-file="+file(bundle.FileDnsmasqConf), "--keep-in-foreground", "--user=", "--group=")
	c.cmd.Env = []string{"PATH=" + path}
	c.cmd.Stdout, c.cmd.Stderr = &c.out, &c.out
	c.cmd.WaitDelay = pipeTimeout
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.cmd.Start(); err != nil {
		return fmt.Errorf("start dnsmasq: %w", err)
	}
	go func() {
		defer close(c.done)
		c.err = c.cmd.Wait()
	}()
	for {
		if fi, err := os.Stat(file(bundle.FileDnsmasqPID)); err == nil && fi.Size() > 0 { // its last step
			c.stop()
			return nil
		}
		select {
		case <-c.done:
			if strings.Contains(c.out.String(), "ermission denied") {
				return fmt.Errorf("%w: %s", ErrConfined, strings.Join(strings.Fields(c.out.String()), " "))
			}
			return fmt.Errorf("try dnsmasq: %w", c.failure())
		case <-ctx.Done():
			c.stop()
			return fmt.Errorf("try dnsmasq: %w", context.Cause(ctx))
		case <-time.After(poll):
		}
	}
}

// missing are the directories that would be made for dir, the innermost first.
func missing(dir string) (made []string, err error) {
	for d := filepath.Clean(dir); ; d = filepath.Dir(d) {
		_, err := os.Lstat(d)
		if err == nil {
			return made, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("see whether dnsmasq can be used: %w", err)
		}
		made = append(made, d)
	}
}
