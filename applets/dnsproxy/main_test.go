package dnsproxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/pair"
	"github.com/terok-ai/terok-box/applets/internal/roster"
	"github.com/terok-ai/terok-box/applets/internal/tier"
	"github.com/terok-ai/terok-box/applets/nfthook"
	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/names"
	"github.com/terok-ai/terok-box/wire/oci"
	"github.com/terok-ai/terok-box/wire/start"
)

// The main thread keeps the namespaces that /proc/self shows, as in main.go.
func init() { runtime.LockOSThread() }

// testPace makes processes that die again and again come back soon.
var testPace = pair.Pace{First: 5 * time.Millisecond, Longest: 20 * time.Millisecond, Healthy: time.Hour}

// TestMain is also the hook, the process and a container's process.
func TestMain(m *testing.M) {
	switch args := os.Args; {
	case args[0] == child.Name && len(args) > 1 && args[1] == Name:
		p := program{engines: map[bundle.Tier]func(tier.Resources) (tier.Engine, error){
			bundle.Proxy: newEcho, bundle.Dnsmasq: newEcho, bundle.Static: newEcho,
		}, pace: testPace}
		os.Exit(p.run(cmdenv.OS(), args[2:]))
	case args[0] == "nft-hook":
		os.Exit(nfthook.Run(cmdenv.OS(), args[1:]))
	case len(args) > 1 && args[1] == "nft-hook": // by a program that cannot set argv[0]
		os.Exit(nfthook.Run(cmdenv.OS(), args[2:]))
	case args[0] == "hold":
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

// echo is an engine that answers every name but those that are denied.
type echo struct {
	tier.Resources
	denied []string
}

func newEcho(r tier.Resources) (tier.Engine, error) {
	e := &echo{Resources: r}
	_, err := e.Reload(context.Background())
	if r.Spec.Container == "broken" {
		err = errors.New("there is no upstream\n\x1b[31m")
	}
	return e, err
}

func (e *echo) Start(ctx context.Context, failed func(error)) error {
	switch e.Spec.Container {
	case "stuck":
		<-ctx.Done()
		return ctx.Err()
	case "panics":
		panic("a defect")
	case "fails":
		if e.Spec.Restarts == 0 {
			time.AfterFunc(50*time.Millisecond, func() { failed(errors.New("it is over")) })
		}
	}
	if e.UDP != nil {
		go e.udp()
		go e.tcp()
	}
	return nil
}

func (e *echo) answer(b []byte) []byte {
	var m dns.Msg
	if m.Unpack(b) != nil || len(m.Question) != 1 {
		return nil
	}
	m.Response = true
	if slices.Contains(e.denied, strings.TrimSuffix(m.Question[0].Name, ".")) {
		m.Rcode = dns.RcodeRefused
	}
	out, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return out
}

func (e *echo) udp() {
	b := make([]byte, 512)
	for {
		n, from, err := e.UDP.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		if a := e.answer(b[:n]); a != nil {
			e.UDP.WriteToUDPAddrPort(a, from)
		}
	}
}

func (e *echo) tcp() {
	for {
		c, err := e.TCP.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			d := &dns.Conn{Conn: c}
			if m, err := d.ReadMsg(); err == nil {
				m.Response = true
				d.WriteMsg(m)
			}
		}()
	}
}

func (e *echo) Names(netip.Addr) []names.Name { return nil }
func (e *echo) Addresses(string) []netip.Addr { return nil }
func (e *echo) Forget(context.Context) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("203.0.113.1")}, nil
}
func (e *echo) Status() names.Status { return names.Status{Tier: e.Spec.Tier, Upstreams: []string{}} }
func (e *echo) Watch(ctx context.Context, _ func(names.Question) error) error {
	<-ctx.Done()
	return nil
}
func (e *echo) Reload(context.Context) (c names.Change, err error) {
	c.Removed = []string{}
	e.denied, err = e.Bundle.DeniedDomains()
	return c, err
}

// host is what containers of a test have in common.
type host struct {
	testing.TB
	runtime string // directory
	custom  bool   // poststop, too, is told about it
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
			logs, _ := filepath.Glob(h.root + "/*/" + logName)
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
}

// container makes one, in the network of another if that is given.
func (h *host) container(name string, t bundle.Tier, in *container) *container {
	h.Helper()
	return h.containerAt(filepath.Join(h.root, name), name, t, in)
}

func (h *host) containerAt(dir, name string, t bundle.Tier, in *container) *container {
	h.Helper()
	c := &container{host: h, name: name, dir: dir}
	c.live(in)
	table, err := ruleset.Build(ruleset.Up, ruleset.Params{})
	if err != nil {
		h.Fatal(err)
	}
	b, err := bundle.Create(dir)
	if err != nil {
		h.Fatal(err)
	}
	defer b.Close()
	errs := []error{
		b.SetRuleset(table.String()), b.SetRulesetFormat(ruleset.Format), b.SetTier(t), b.SetLoopbackPorts(nil),
		b.SetProfileAllowed(nil), b.SetNetwork(bundle.Network{Mode: "none"}), b.SetProfileDomains([]string{"allowed.test"}),
		b.SetDeniedDomains([]string{"denied.test"}),
	}
	if t == bundle.Dnsmasq {
		errs = append(errs, b.SetDnsmasqConf([]byte("port=53\n")))
	}
	if err := errors.Join(errs...); err != nil {
		h.Fatal(err)
	}
	return c
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
}

func (c *container) state(stage string) []byte {
	state := map[string]any{
		"ociVersion": "1.0.2", "id": fmt.Sprintf("%012x%052x", c.pid, 0), "status": "created", "pid": c.pid,
		"annotations": map[string]string{
			oci.KeyProfiles: "test", oci.KeyName: c.name, oci.KeyStateDir: c.dir, oci.KeyVersion: strconv.Itoa(bundle.Version),
		},
	}
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

// command is the hook with the environment that a runtime gives it. Its
// output goes through pipes, and it has ended only when nobody holds these.
func (c *container) command(stage string) (cmd *exec.Cmd, out *bytes.Buffer) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	c.Cleanup(cancel)
	cmd = exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{"nft-hook", stage}
	cmd.Stdin = bytes.NewReader(c.state(stage))
	out = new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = []string{}
	if stage == "createRuntime" || c.custom {
		cmd.Env = []string{"XDG_RUNTIME_DIR=" + c.runtime}
	}
	return cmd, out
}

func (c *container) hook(stage string) (string, error) {
	cmd, out := c.command(stage)
	err := cmd.Run()
	return out.String(), err
}

func (c *container) start() {
	c.Helper()
	if out, err := c.hook("createRuntime"); err != nil || out != "" {
		c.Fatalf("start %s: %v\n%s", c.name, err, out)
	}
}

// refused is a start that must fail and say that.
func (c *container) refused(want string) {
	c.Helper()
	out, err := c.hook("createRuntime")
	x, ok := errors.AsType[*exec.ExitError](err)
	if !ok || x.ExitCode() != 1 || !strings.Contains(out, want) || strings.Count(out, "\n") != 1 || strings.Contains(out, "\x1b") {
		c.Errorf("start %s: %v, %q; want exit 1 and %q", c.name, err, out, want)
	}
}

func (c *container) stop() {
	c.Helper()
	if out, err := c.hook("poststop"); err != nil || out != "" {
		c.Errorf("stop %s: %v\n%s", c.name, err, out)
	}
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

func (c *container) namer() bundle.Namer {
	c.Helper()
	n, err := c.bundle().Namer()
	if err != nil {
		c.Fatal(err)
	}
	return n
}

// ask asks for a name at port 53 in the container.
func (c *container) ask(network, name string) (*dns.Msg, error) {
	var conn net.Conn
	if err := c.ns.Do(func() (err error) {
		conn, err = net.Dial(network, "127.0.0.1:53")
		return err
	}); err != nil {
		return nil, err
	}
	defer conn.Close()
	return question(conn, name)
}

func question(conn net.Conn, name string) (*dns.Msg, error) {
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	m := new(dns.Msg)
	m.SetQuestion(name+".", dns.TypeA)
	d := &dns.Conn{Conn: conn}
	if err := d.WriteMsg(m); err != nil {
		return nil, err
	}
	return d.ReadMsg()
}

// answers checks that names are answered as they should be.
func (c *container) answers() {
	c.Helper()
	for _, network := range []string{"udp", "tcp"} {
		if _, err := c.ask(network, "allowed.test"); err != nil {
			c.Errorf("%s: %v", network, err)
		}
	}
	if m, err := c.ask("udp", "denied.test"); err != nil || m.Rcode != dns.RcodeRefused {
		c.Errorf("a denied name: %v, %v", m, err)
	}
}

// all matches every process; of matches those of a bundle, with a role if one
// is given.
func all(start.Identity) bool { return true }

func of(c *container, roles ...start.Role) func(start.Identity) bool {
	return func(id start.Identity) bool {
		return id.StateDir == c.dir && (len(roles) == 0 || slices.Contains(roles, id.Role))
	}
}

// pids are the processes that match.
func (h *host) pids(match func(start.Identity) bool) []int {
	h.Helper()
	found, err := child.Find(func(args []string) bool {
		id, ok := names.ParseArgs(args)
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

// two waits until there are two processes: one that is about to execute a
// program is still called like the one it comes from.
func (h *host) two() {
	h.Helper()
	h.within(20*time.Second, "two processes", func() bool { return len(h.pids(all)) == 2 })
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

func (h *host) none(when string, match func(start.Identity) bool) {
	h.Helper()
	h.within(endLimit, "no process is left "+when, func() bool { return len(h.pids(match)) == 0 })
}

// pair waits until there are a server and a keeper, and returns them.
func (c *container) pair() (server, keeper int) {
	c.Helper()
	c.within(20*time.Second, "a server and a keeper", func() bool {
		servers, keepers := c.pids(of(c, start.Server)), c.pids(of(c, start.Keeper))
		if len(servers) != 1 || len(keepers) != 1 || c.namer().PID != servers[0] {
			return false
		}
		server, keeper = servers[0], keepers[0]
		return true
	})
	return server, keeper
}

func (c *container) status() names.Status {
	c.Helper()
	st, err := c.tryStatus()
	if err != nil {
		c.Fatal(err)
	}
	return st
}

func (c *container) tryStatus() (st names.Status, err error) {
	c.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	client, err := names.Dial(ctx, c.namer().Socket)
	if err != nil {
		return st, err
	}
	defer client.Close()
	return client.Status(ctx)
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

// left are files that must not outlive the last container.
func (c *container) clean() {
	c.Helper()
	b := c.bundle()
	if n, err := b.Namer(); err != nil || n != (bundle.Namer{}) {
		c.Errorf("%s: a process is recorded: %v, %v", c.name, n, err)
	}
	for _, dir := range []string{filepath.Join(c.runtime, "terok", "dns"), filepath.Dir(roster.Path(c.runtime, c.id))} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			c.Errorf("left behind: %s", filepath.Join(dir, e.Name()))
		}
	}
}
