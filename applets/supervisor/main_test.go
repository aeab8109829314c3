package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/applets/dnsproxy"
	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/pair"
	"github.com/terok-ai/terok-box/applets/nfthook"
	"github.com/terok-ai/terok-box/applets/readerhook"
	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/oci"
	"github.com/terok-ai/terok-box/wire/start"
)

// The main thread keeps the namespaces that /proc/self shows, as in main.go.
func init() { runtime.LockOSThread() }

// testPace makes processes that die again and again come back soon.
var testPace = pair.Pace{First: 5 * time.Millisecond, Longest: 20 * time.Millisecond, Healthy: time.Hour}

// TestMain is also the hooks, the processes that they start, a container's
// process, and another program's reader.
func TestMain(m *testing.M) {
	switch args := os.Args; {
	case args[0] == child.Name && len(args) > 1 && args[1] == Name:
		os.Exit(program{testPace}.run(cmdenv.OS(), args[2:]))
	case args[0] == child.Name && len(args) > 1 && args[1] == dnsproxy.Name:
		os.Exit(dnsproxy.Run(cmdenv.OS(), args[2:]))
	case args[0] == "reader-hook":
		os.Exit(readerhook.Run(cmdenv.OS(), args[1:]))
	case len(args) > 1 && args[1] == "reader-hook": // by a program that cannot set argv[0]
		os.Exit(readerhook.Run(cmdenv.OS(), args[2:]))
	case args[0] == "nft-hook":
		os.Exit(nfthook.Run(cmdenv.OS(), args[1:]))
	case args[0] == "hold" || strings.HasSuffix(args[0], "python3"):
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	// What outlives its parent becomes a child of the test, so that nothing
	// escapes it.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	kerneltest.Main(m)
}

// host is what containers of a test have in common.
type host struct {
	testing.TB
	runtime string // directory
	root    string // of state directories
}

func newHost(t testing.TB) *host {
	h := &host{TB: t, runtime: t.TempDir(), root: t.TempDir()}
	for _, d := range []string{h.runtime, h.root} {
		if err := os.Chmod(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := filepath.Glob(h.root + "/*/*.log")
			for _, l := range logs {
				text, _ := os.ReadFile(l)
				t.Logf("%s:\n%s", l, text)
			}
		}
		defer h.reap()
		defer func() {
			for _, pid := range h.pids(all) { // of a test that failed
				kill(pid)
			}
		}()
		h.none("at the end", all)
	})
	return h
}

// reap waits for those who became children of the test. None may be left
// with a living parent that has not waited for it.
func (h *host) reap() {
	h.Helper()
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if err != nil || pid == 0 {
			break
		}
	}
}

// container is a stand-in: a process in a network namespace, and a bundle.
type container struct {
	*host
	name string
	dir  string
	ns   *netns.NS
	id   string // of ns
	pid  int
	end  func()
	more map[string]string // annotations
}

// container makes one, in the network of another if that is given.
func (h *host) container(name string, in *container) *container {
	h.Helper()
	c := &container{host: h, name: name, dir: filepath.Join(h.root, name)}
	c.live(in)
	c.prepare(bundle.Static)
	return c
}

func (c *container) prepare(t bundle.Tier) {
	c.Helper()
	table, err := ruleset.Build(ruleset.Up, ruleset.Params{})
	if err != nil {
		c.Fatal(err)
	}
	b, err := bundle.Create(c.dir)
	if err != nil {
		c.Fatal(err)
	}
	defer b.Close()
	if err := errors.Join(
		b.SetRuleset(table.String()), b.SetRulesetFormat(ruleset.Format), b.SetTier(t), b.SetLoopbackPorts(nil),
		b.SetProfileAllowed(nil), b.SetNetwork(bundle.Network{Mode: "none"}),
	); err != nil {
		c.Fatal(err)
	}
}

// live starts the container's process.
func (c *container) live(in *container) {
	c.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"hold"}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		c.Fatal(err)
	}
	if in == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		err = cmd.Start()
	} else {
		err = in.ns.Do(cmd.Start)
	}
	if err != nil {
		c.Fatal(err)
	}
	c.pid, c.end = cmd.Process.Pid, func() { stdin.Close(); cmd.Process.Kill(); cmd.Wait() }
	c.Cleanup(c.end)
	if c.ns, err = netns.Open(c.pid); err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { c.ns.Close() })
	id, err := c.ns.ID()
	if err != nil {
		c.Fatal(err)
	}
	c.id = id.String()
	if in == nil {
		kerneltest.Pair(c, c.ns, kerneltest.NewNS(c))
	}
}

func (c *container) fullID() string { return fmt.Sprintf("%012x%052x", c.pid, 0) }
func (c *container) short() string  { return c.fullID()[:12] }

func (c *container) state(stage string) []byte {
	annotations := map[string]string{
		oci.KeyProfiles: "test", oci.KeyName: c.name, oci.KeyStateDir: c.dir, oci.KeyVersion: strconv.Itoa(bundle.Version),
		oci.DossierPrefix + "task": c.name + "'s task",
	}
	maps.Copy(annotations, c.more)
	state := map[string]any{"ociVersion": "1.0.2", "id": c.fullID(), "status": "created", "pid": c.pid, "annotations": annotations}
	if stage == "poststop" {
		state["status"] = "stopped"
		delete(state, "pid")
	}
	data, err := json.Marshal(state)
	if err != nil {
		c.Fatal(err)
	}
	return data
}

// command is a hook with the environment that a runtime gives it. Its output
// goes through pipes, and it has ended only when nobody holds these.
func (c *container) command(hook, stage string) (cmd *exec.Cmd, out *bytes.Buffer) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	c.Cleanup(cancel)
	cmd = exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{hook, stage}
	cmd.Stdin = bytes.NewReader(c.state(stage))
	out = new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = []string{}
	if stage == "createRuntime" {
		cmd.Env = []string{"XDG_RUNTIME_DIR=" + c.runtime}
	}
	return cmd, out
}

// hook runs one, which must succeed and say nothing.
func (c *container) hook(hook, stage string) {
	c.Helper()
	cmd, out := c.command(hook, stage)
	if err := cmd.Run(); err != nil || out.Len() > 0 {
		c.Fatalf("%s %s of %s: %v\n%s", hook, stage, c.name, err, out)
	}
}

// start is what a runtime does at a container's start, stop after its end.
func (c *container) start() {
	c.Helper()
	c.hook("reader-hook", "createRuntime")
	c.hook("nft-hook", "createRuntime")
}

func (c *container) stop() {
	c.Helper()
	c.hook("reader-hook", "poststop")
	c.hook("nft-hook", "poststop")
}

func (c *container) bundle() *bundle.Bundle {
	c.Helper()
	b, err := bundle.Open(c.dir)
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { b.Close() })
	return b
}

func (c *container) record() bundle.Supervisor {
	c.Helper()
	r, err := c.bundle().Supervisor()
	if err != nil {
		c.Fatal(err)
	}
	return r
}

// all matches every process; of matches those of a bundle, with a role if one
// is given.
func all(control.Identity) bool { return true }

func of(c *container, roles ...start.Role) func(control.Identity) bool {
	return func(id control.Identity) bool {
		return id.StateDir == c.dir && (len(roles) == 0 || slices.Contains(roles, id.Role))
	}
}

// pids are the processes that match.
func (h *host) pids(match func(control.Identity) bool) []int {
	h.Helper()
	found, err := child.Find(func(args []string) bool {
		id, ok := control.ParseArgs(args)
		return ok && strings.HasPrefix(id.StateDir, h.root) && match(id)
	})
	if err != nil {
		h.Fatal(err)
	}
	defer child.Release(found)
	var pids []int
	for _, p := range found {
		pids = append(pids, p.PID)
	}
	return pids
}

// within waits for something that must happen soon.
func (h *host) within(d time.Duration, what string, f func() bool) {
	h.Helper()
	for end := time.Now().Add(d); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			h.Fatalf("not within %v: %s", d, what)
		}
	}
}

// endLimit is how long processes may outlive the last container, on a machine
// that does other things as well; scripts/e2e is stricter.
const endLimit = 20 * time.Second

func (h *host) none(when string, match func(control.Identity) bool) {
	h.Helper()
	h.within(endLimit, "no process is left "+when, func() bool { return len(h.pids(match)) == 0 })
}

// two checks that there are no more processes than two. One that is about to
// start another looks like two for a moment.
func (h *host) two(when string) {
	h.Helper()
	h.within(20*time.Second, "two processes "+when, func() bool { return len(h.pids(all)) == 2 })
}

// pair waits until there are a server and a keeper, and returns them.
func (c *container) pair() (server, keeper int) {
	c.Helper()
	c.within(20*time.Second, "a server and a keeper", func() bool {
		servers, keepers := c.pids(of(c, start.Server)), c.pids(of(c, start.Keeper))
		if len(servers) != 1 || len(keepers) != 1 || c.record().PID != servers[0] || c.record().Control == "" {
			return false
		}
		server, keeper = servers[0], keepers[0]
		return true
	})
	return server, keeper
}

func limited(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// control connects to the supervisor.
func (c *container) control() *control.Client {
	c.Helper()
	client, err := control.Dial(limited(c), control.SocketPath(c.runtime, c.short()))
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { client.Close() })
	return client
}

func (c *container) status() control.Status {
	c.Helper()
	client := c.control()
	defer client.Close()
	s, err := client.Status(limited(c))
	if err != nil {
		c.Fatal(err)
	}
	return s
}

// subscriber is somebody who is told of events.
type subscriber struct {
	*container
	mu     sync.Mutex
	events []clearance.Event
	err    error
	done   chan struct{} // the subscription has ended
}

func (c *container) subscribe() *subscriber {
	c.Helper()
	client, err := clearance.Dial(limited(c), clearance.SocketPath(c.runtime, c.short()))
	if err != nil {
		c.Fatal(err)
	}
	s := &subscriber{container: c, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		err := client.Subscribe(context.Background(), func(e clearance.Event) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.events = append(s.events, e)
			return nil
		})
		s.mu.Lock()
		defer s.mu.Unlock()
		s.err = err
	}()
	c.Cleanup(func() {
		client.Close()
		<-s.done
	})
	c.within(20*time.Second, "a subscriber", func() bool { return c.status().Subscribers > 0 })
	return s
}

// sees waits for an event and returns it.
func (s *subscriber) sees(what string, match func(clearance.Event) bool) (found clearance.Event) {
	s.Helper()
	s.within(20*time.Second, what, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		i := slices.IndexFunc(s.events, match)
		if i >= 0 {
			found = s.events[i]
		}
		return i >= 0
	})
	return found
}

func (s *subscriber) asked(target string) clearance.Event {
	s.Helper()
	return s.sees("a question about "+target, func(e clearance.Event) bool {
		return e.Type == "connection_blocked" && e.Target() == target
	})
}

// answer answers a question.
func (c *container) answer(e clearance.Event, action string) error {
	c.Helper()
	client, err := clearance.Dial(limited(c), clearance.SocketPath(c.runtime, c.short()))
	if err != nil {
		c.Fatal(err)
	}
	defer client.Close()
	return client.Verdict(limited(c), clearance.Request{Container: e.Container, RequestID: e.RequestID, Dest: e.Target(), Action: action})
}

// send sends a packet from the container, and reports whether it got out.
func (c *container) send(to string) bool {
	return kerneltest.SendUDP(c.ns, netip.MustParseAddrPort(to)) == nil
}

func kill(pid int) { syscall.Kill(pid, syscall.SIGKILL) }

// freeze stops a process and returns when none of its threads runs any more.
func (h *host) freeze(pid int) {
	h.Helper()
	syscall.Kill(pid, syscall.SIGSTOP)
	h.within(20*time.Second, "the process stands still", func() bool {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		return err == nil && !slices.ContainsFunc(tasks, func(e os.DirEntry) bool {
			stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/stat", pid, e.Name()))
			return !bytes.Contains(stat, []byte(") T "))
		})
	})
}

// clean checks that nothing is left that must not outlive the last container.
func (c *container) clean() {
	c.Helper()
	for _, name := range []string{bundle.FileSupervisor, bundle.FilePending} {
		if _, err := os.Lstat(filepath.Join(c.dir, name)); err == nil {
			c.Errorf("left behind: %s", filepath.Join(c.dir, name))
		}
	}
	for _, kind := range []string{"control", "events", "clearance", "verdict", "net"} {
		entries, _ := os.ReadDir(filepath.Join(c.runtime, "terok", kind))
		for _, e := range entries {
			c.Errorf("left behind: %s/%s", kind, e.Name())
		}
	}
	entries, _ := os.ReadDir(filepath.Join(c.dir, "run"))
	for _, e := range entries {
		c.Errorf("left behind: run/%s", e.Name())
	}
}
