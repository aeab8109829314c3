package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// The demo's internet, from the ranges for documentation (RFC 5737).
const (
	worldAddr     = "203.0.113.9"
	listedAddr    = "198.51.100.1"
	containerAddr = "203.0.113.2"
	port          = "443"
)

// namespaceDemo runs as root of its own user namespace. This process is the
// internet; a child in another network namespace is the container.
func namespaceDemo() error {
	c, err := newContainer()
	if err != nil {
		return err
	}
	defer c.end()
	if err := netns.LoopbackUp(); err != nil {
		return err
	}
	if err := connectPair(c.ns); err != nil {
		return fmt.Errorf("connect the two namespaces: %w", err)
	}
	for _, a := range []string{worldAddr, listedAddr} {
		l, err := serve(a + ":" + port)
		if err != nil {
			return err
		}
		defer l.Close()
	}
	s := &stage{container: "demo", args: []string{"--state-dir", c.dir}, reach: func(to string) error {
		return c.ns.Do(func() error { return connect(to) })
	}}
	fmt.Println("\nBefore the hook, everything is open:")
	s.expect(true, worldAddr+":"+port)
	fmt.Printf("\nThe hook puts the firewall in; %s is on the list:\n", listedAddr)
	if err := c.hook(); err != nil {
		return err
	}
	s.expect(true, listedAddr+":"+port)
	s.expect(false, worldAddr+":"+port)
	return s.tour(worldAddr, port)
}

// hookDemo shows what the hook adds to the start of a container.
func hookDemo() error {
	c, err := newContainer()
	if err != nil {
		return err
	}
	defer c.end()
	fmt.Println("\nWhat the hook adds to a container's start:")
	return c.hook()
}

// container is a process in a network namespace of its own, with a state
// directory.
type container struct {
	ns  *netns.NS
	pid int
	dir string // state root
	end func()
}

func newContainer() (*container, error) {
	workload := exec.Command("/proc/self/exe", wordHold)
	stdin, err := workload.StdinPipe()
	if err != nil {
		return nil, err
	}
	workload.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := workload.Start(); err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	c := &container{pid: workload.Process.Pid, end: func() { stdin.Close(); workload.Wait() }}
	if c.ns, err = netns.Open(c.pid); err != nil {
		c.end()
		return nil, err
	}
	if c.dir, err = os.MkdirTemp("", "terok-demo-"); err != nil {
		c.end()
		return nil, err
	}
	end := c.end
	c.end = func() { end(); c.ns.Close(); os.RemoveAll(c.dir) }
	return c, nil
}

// hook runs the real hook as an OCI runtime would, and shows how long it took.
func (c *container) hook() error {
	state, err := prepareBundle(filepath.Join(c.dir, "containers", "demo"), c.pid)
	if err != nil {
		return err
	}
	fmt.Println("$ nft-hook createRuntime < oci-state.json")
	hook := exec.Command(program("nft-hook"), "createRuntime")
	hook.Stdin, hook.Stdout, hook.Stderr = bytes.NewReader(state), os.Stdout, os.Stderr
	start := time.Now()
	if err := hook.Run(); err != nil {
		return fmt.Errorf("nft-hook: %w", err)
	}
	fmt.Printf("  (%.1f ms from exec to exit)\n", float64(time.Since(start).Microseconds())/1000)
	return nil
}

// tour is what both demos show once the firewall is in.
func (s *stage) tour(addr, port string) error {
	to := addr + ":" + port
	for _, step := range []struct {
		verb string
		args []string
		open bool
	}{
		{"allow", []string{addr}, true},
		{"deny", []string{addr}, false},
		{"allow", []string{addr}, true},
		{"quarantine", nil, false},
		{"up", nil, true},
		{"deny", []string{addr}, false},
		{"status", nil, false},
	} {
		if err := s.shield(step.verb, step.args...); err != nil {
			return fmt.Errorf("terok-shield %s: %w", step.verb, err)
		}
		s.expect(step.open, to)
	}
	return s.result()
}

// prepareBundle writes what terok-shield prepare would, without Podman, and
// returns the OCI state that a runtime would hand to the hook.
func prepareBundle(dir string, pid int) ([]byte, error) {
	allow := []netip.Prefix{netip.MustParsePrefix(listedAddr + "/32")}
	t, err := ruleset.Build(ruleset.Up, ruleset.Params{Allow: allow})
	if err != nil {
		return nil, err
	}
	b, err := bundle.Create(dir)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if err := errors.Join(b.SetProfileAllowed(allow), b.SetLoopbackPorts(nil), b.SetTier(bundle.Static), b.SetRuleset(t.String())); err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{
		"ociVersion": "1.0.2", "id": strings.Repeat("de", 32), "pid": pid, "status": "created",
		"annotations": map[string]string{
			"terok.shield.profiles": "demo", "terok.shield.name": "demo",
			"terok.shield.state_dir": dir, "terok.shield.version": fmt.Sprint(bundle.Version),
		},
	})
}
