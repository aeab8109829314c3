package nflogreader

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/applets/internal/audit"
	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nflog"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// TestMain is also the program, a container's process, and an operator
// without privileges.
func TestMain(m *testing.M) {
	switch args := os.Args; {
	case len(args) > 1 && args[1] == Name:
		os.Exit(Run(cmdenv.OS(), args[2:]))
	case args[0] == "hold":
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	case args[0] == "rootless":
		os.Exit(rootless())
	case args[0] == "operator":
		if err := operator(args[1]); err != nil {
			fmt.Println(err)
		}
		os.Exit(0)
	}
	kerneltest.Main(m)
}

const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// container is a stand-in: a process in a network of its own with a firewall,
// and a bundle.
type container struct {
	testing.TB
	dir string
	ns  *netns.NS
	end func() // of its process
}

func newContainer(t testing.TB) *container {
	t.Helper()
	c := &container{TB: t, dir: filepath.Join(t.TempDir(), "sd")}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"hold"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.end = func() { stdin.Close(); cmd.Wait() }
	t.Cleanup(c.end)
	if c.ns, err = netns.Open(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.ns.Close() })
	if err := c.ns.Do(netns.LoopbackUp); err != nil {
		t.Fatal(err)
	}
	kerneltest.Pair(t, c.ns, kerneltest.NewNS(t))
	table, err := ruleset.Build(ruleset.Up, ruleset.Params{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.ns.Do(func() error {
		conn, err := nft.Dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		return conn.Apply(table)
	}); err != nil {
		t.Fatal(err)
	}
	if err := record(c.dir, cmd.Process.Pid, c.ns); err != nil {
		t.Fatal(err)
	}
	return c
}

// record makes a bundle that knows its process.
func record(dir string, pid int, ns *netns.NS) error {
	b, err := bundle.Create(dir)
	if err != nil {
		return err
	}
	defer b.Close()
	nsID, err := ns.ID()
	if err != nil {
		return err
	}
	process, err := bundle.ProcessOf(pid, nsID.String())
	if err != nil {
		return err
	}
	return b.SetProcess(process)
}

// program is one that runs.
type running struct {
	testing.TB
	cmd  *exec.Cmd
	out  *bufio.Reader // what it prints, or what its hub gets
	errs bytes.Buffer
}

func command(dir string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{child.Name, Name, dir, "0123456789ab"}, args...)
	return cmd
}

func (c *container) start(env []string, args ...string) *running {
	c.Helper()
	r := &running{TB: c.TB, cmd: command(c.dir, args...)}
	r.cmd.Stderr, r.cmd.Env = &r.errs, append(os.Environ(), env...)
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		c.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { r.cmd.Process.Kill(); r.cmd.Wait() })
	r.out = bufio.NewReader(out)
	return r
}

// listen is a hub's socket, and next the lines that come to it.
func listen(t testing.TB, path string) *net.UnixListener {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func (r *running) accept(l *net.UnixListener) {
	r.Helper()
	l.SetDeadline(time.Now().Add(5 * time.Second))
	conn, err := l.Accept()
	if err != nil {
		r.Fatalf("%v; it says %s", err, &r.errs)
	}
	r.Cleanup(func() { conn.Close() })
	r.out = bufio.NewReader(conn)
}

// next is the next line, without its time.
func (r *running) next() string {
	r.Helper()
	type result struct {
		line string
		err  error
	}
	got := make(chan result, 1)
	go func() {
		line, err := r.out.ReadString('\n')
		got <- result{line, err}
	}()
	select {
	case g := <-got:
		if g.err != nil {
			r.Fatalf("%v; it says %s", g.err, &r.errs)
		}
		return untimed(g.line)
	case <-time.After(5 * time.Second):
		r.Fatalf("nothing came; it says %s", &r.errs)
	}
	return ""
}

func untimed(line string) string {
	line = strings.TrimSuffix(line, "\n")
	if before, _, ok := strings.Cut(line, `,"ts":`); ok {
		return before + "}"
	}
	return line
}

// exits waits for its end.
func (r *running) exits(code int) {
	r.Helper()
	done := make(chan error)
	go func() { done <- r.cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		r.Fatal("it does not end")
	}
	if got := r.cmd.ProcessState.ExitCode(); got != code {
		r.Errorf("exit code %d, want %d; it says %s", got, code, &r.errs)
	}
}

func (r *running) is(want string) {
	r.Helper()
	if got := r.next(); got != want {
		r.Errorf("%s\nwant %s", got, want)
	}
}

func (c *container) blocked(to string) {
	c.Helper()
	if err := kerneltest.SendUDP(c.ns, netip.MustParseAddrPort(to)); err == nil {
		c.Errorf("a packet to %s got out", to)
	}
}

const (
	started  = `{"type":"container_started","container":"0123456789ab"}`
	poststop = `{"type":"container_exited","container":"0123456789ab","reason":"poststop"}`
	eof      = `{"type":"container_exited","container":"0123456789ab","reason":"eof"}`
)

func pending(n int, dest string, port int, dossier string) string {
	return fmt.Sprintf(`{"type":"pending","container":"0123456789ab","id":"0123456789ab:%d","dest":%q,"port":%d,"proto":17,"domain":"","dossier":%s}`, n, dest, port, dossier)
}

func TestJSON(t *testing.T) {
	c := newContainer(t)
	meta := filepath.Join(t.TempDir(), "meta.json")
	if err := os.WriteFile(meta, []byte(`{"task":"new"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	annotations, err := json.Marshal(map[string]any{"project": "p", "task": "old", "dossier.name": "n", "meta_path": meta, "n": 7})
	if err != nil {
		t.Fatal(err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		r := c.start(nil, "--emit=json", "--annotations", string(annotations))
		r.is(started)
		c.blocked("198.51.100.7:4711")
		r.is(pending(1, "198.51.100.7", 4711, `{"n":"7","name":"n","project":"p","task":"new"}`))
		c.blocked("198.51.100.7:4711")
		c.blocked("198.51.100.8:4712")
		r.is(pending(2, "198.51.100.8", 4712, `{"n":"7","name":"n","project":"p","task":"new"}`))
		if err := r.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		r.is(poststop)
		r.exits(0)
		if r.errs.Len() > 0 {
			t.Errorf("it says %s", &r.errs)
		}
	}
	b, err := bundle.Open(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if lines, err := audit.Read(b, 100); len(lines) != 4 || err != nil {
		t.Errorf("%d lines in the audit log, %v", len(lines), err)
	}
}

func TestContainerEnds(t *testing.T) {
	c := newContainer(t)
	r := c.start(nil, "--emit", "json")
	r.is(started)
	c.end()
	r.is(eof)
	r.exits(0)
}

// The hub is found by id in either place, or at the path that is given.
func TestSockets(t *testing.T) {
	c := newContainer(t)
	runtimeDir := t.TempDir()
	if err := os.Chmod(runtimeDir, 0o700); err != nil {
		t.Fatal(err)
	}
	elsewhere := filepath.Join(t.TempDir(), "h.sock")
	for path, args := range map[string][]string{
		filepath.Join(runtimeDir, "terok/events/0123456789ab.sock"):          {"--container-id=" + id},
		filepath.Join(runtimeDir, "terok/events/0123456789ab/ingester.sock"): {"--container-id", id, "--annotations="},
		filepath.Join(c.dir, "run/events.sock"):                              {"--container-id", id[:12]},
		elsewhere:                                                            {"--hub-socket", elsewhere, "--container-id=" + id},
	} {
		l := listen(t, path)
		r := c.start([]string{"XDG_RUNTIME_DIR=" + runtimeDir}, args...)
		r.accept(l)
		r.is(started)
		c.blocked("198.51.100.7:4711")
		r.is(pending(1, "198.51.100.7", 4711, `{}`))
		r.cmd.Process.Signal(syscall.SIGTERM)
		r.is(poststop)
		r.exits(0)
		l.Close()
		os.Remove(path)
		if warned := strings.Contains(r.errs.String(), "--annotations are not used"); warned != (len(args) > 2) && path != elsewhere {
			t.Errorf("%s: it says %s", args, &r.errs)
		}
	}
}

// A hub that is not there, or goes away, gets what happens later.
func TestHubComesBack(t *testing.T) {
	c := newContainer(t)
	path := filepath.Join(t.TempDir(), "h.sock")
	r := c.start(nil, "--hub-socket", path)
	time.Sleep(300 * time.Millisecond)
	l := listen(t, path)
	r.accept(l)
	r.is(started)
	c.blocked("198.51.100.1:1")
	r.is(pending(1, "198.51.100.1", 1, `{}`))
	l.Close()
	r.cmd.Process.Signal(syscall.SIGTERM)
	r.is(poststop)
	r.exits(0)
	if !strings.Contains(r.errs.String(), "questions reach nobody") {
		t.Errorf("it says %s", &r.errs)
	}
}

// One that cannot read says so, and nothing to anybody else.
func TestUnavailable(t *testing.T) {
	c := newContainer(t)
	var conn *nflog.Conn
	if err := c.ns.Do(func() (err error) { conn, err = nflog.Open(ruleset.Group); return err }); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := c.start(nil, "--emit=json")
	out, err := io.ReadAll(r.out)
	r.exits(0)
	if len(out) > 0 || err != nil || !strings.Contains(r.errs.String(), "warning: blocked packets cannot be read: ") || strings.Count(r.errs.String(), "\n") != 1 {
		t.Errorf("it prints %q and says %s", out, &r.errs)
	}
}

func TestCommandLine(t *testing.T) {
	base := options{stateDir: "/sd", container: "c", emit: "json", annotations: "{}"}
	with := func(f func(*options)) options { o := base; f(&o); return o }
	for _, tt := range []struct {
		args string
		want options
		err  string
	}{
		{"/sd c --emit=json", base, ""},
		{"--emit json /sd c", base, ""},
		{"/sd --emit json -- c", base, ""},
		{"--emit=json -- /sd -c", with(func(o *options) { o.container = "-c" }), ""},
		{"/sd c --emit=json --annotations={\"a\":\"=\"}", with(func(o *options) { o.annotations = `{"a":"="}` }), ""},
		{"/sd c --emit=json --annotations --container-id", with(func(o *options) { o.annotations = "--container-id" }), ""},
		{"/sd c --emit=json --container-id= --hub-socket=", base, ""},
		{"/sd c --hub-socket /h", with(func(o *options) { o.emit, o.hub = "socket", "/h" }), ""},
		{"/sd c --container-id 0123456789AB", with(func(o *options) { o.emit, o.id = "socket", "0123456789AB" }), ""},
		{"/sd c --help", options{help: true}, ""},
		{"/sd c", options{}, "takes --hub-socket or --container-id"},
		{"/sd c --emit=socket", options{}, "takes --hub-socket or --container-id"},
		{"/sd c --emit=dbus", options{}, `"dbus"`},
		{"/sd c --container-id 0123456789a", options{}, "hexadecimal"},
		{"/sd c --container-id ../../../../x", options{}, "hexadecimal"},
		{"/sd c --emit", options{}, "takes a value"},
		{"/sd c --emit=json --pid=1", options{}, `no option "--pid"`},
		{"/sd c --emit=json -x", options{}, `no option "-x"`},
		{"/sd --emit=json", options{}, "a state directory and a container"},
		{"/sd c d --emit=json", options{}, "a state directory and a container"},
		{"", options{}, "a state directory and a container"},
	} {
		got, err := parse(strings.Fields(tt.args))
		if tt.err != "" {
			var x *cmdenv.Exit
			if !errors.As(err, &x) || x.Code != cmdenv.ExitUsage || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%q: %v, want %q", tt.args, err, tt.err)
			}
			continue
		}
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(options{})); diff != "" || err != nil {
			t.Errorf("%q: %v (-want +got)\n%s", tt.args, err, diff)
		}
		if !got.help { // as it is handed on
			if again, err := parse(got.args()); err != nil || again != got {
				t.Errorf("%q: handed on %q: %+v, %v", tt.args, got.args(), again, err)
			}
		}
	}
}

func FuzzCommandLine(f *testing.F) {
	f.Add("/sd\x00c\x00--emit=json")
	f.Add("--emit\x00json\x00--\x00/sd\x00-c")
	f.Add("/sd\x00c\x00--annotations={\"dossier.task\":\"t\",\"meta_path\":\"/x\",\"n\":1}\x00--container-id=0123456789ab")
	f.Fuzz(func(t *testing.T, text string) {
		o, err := parse(strings.Split(text, "\x00"))
		if err != nil || o.help {
			return
		}
		again, err := parse(o.args())
		if err != nil || again != o {
			t.Errorf("%q: %+v, handed on %+v, %v", text, o, again, err)
		}
		pairs, err := annotations(o.annotations)
		if err == nil && !json.Valid([]byte(o.annotations)) {
			t.Errorf("%q is a dossier: %v", o.annotations, pairs)
		}
	})
}

func TestInside(t *testing.T) {
	p := bundle.Process{PID: 4711, Start: 17, NetNS: "4:4026532000"}
	if got, err := parseProcess(format(p)); got != p || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"1", "x", "1 2", "1 2 3 4", " 1 2 4:5", "1 2 4:5\n", "01 2 4:5"} {
		if got, err := parseProcess(bad); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
	c := newContainer(t)
	r := c.start([]string{Inside + "=" + format(p)}, "--emit=json")
	r.exits(1)
	other := bundle.Process{PID: os.Getpid(), Start: 1, NetNS: "4:1"}
	r = c.start([]string{Inside + "=" + format(other)}, "--emit=json")
	r.exits(1)
	if !strings.Contains(r.errs.String(), "is not the container's") {
		t.Errorf("it says %s", &r.errs)
	}
}

// As an ordinary user, who may not enter the container's namespaces.
func TestOperator(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"operator", t.TempDir()}
	if err := os.Chmod(cmd.Args[1], 0o700); err != nil {
		t.Fatal(err)
	}
	own(cmd, 1000, 0)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil || string(out) != "ok\n" {
		t.Errorf("%v; it says %s", err, out)
	}
}

// own gives a command a user namespace of its own, where it is uid.
func own(cmd *exec.Cmd, uid int, flags uintptr) {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | flags,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getegid(), Size: 1}},
	}
}

// rootless is the process of a rootless container, whose firewall blocks
// 198.51.100.0/24. It sends a packet for every line that it reads.
func rootless() int {
	const rules = `table inet t { chain out { type filter hook output priority 0; ip daddr 198.51.100.0/24 log prefix "TEROK_SHIELD_BLOCKED: " group 100 drop; }; }`
	ns, err := netns.Current()
	if err == nil {
		err = netns.LoopbackUp()
	}
	if err == nil {
		err = script("ip route add 198.51.100.0/24 dev lo src 127.0.0.1", "nft "+rules)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		_ = kerneltest.SendUDP(ns, netip.MustParseAddrPort(lines.Text()))
	}
	return 0
}

func script(commands ...string) error {
	for _, c := range commands {
		name, rest, _ := strings.Cut(c, " ")
		args := strings.Fields(rest)
		if name == "nft" {
			args = []string{rest}
		}
		for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"} {
			if _, err := os.Stat(dir + name); err == nil {
				name = dir + name
				break
			}
		}
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", c, err, out)
		}
	}
	return nil
}

// operator is the test as an ordinary user.
func operator(dir string) (err error) {
	contained := exec.Command("/proc/self/exe")
	contained.Args = []string{"rootless"}
	own(contained, 0, unix.CLONE_NEWNET)
	contained.Stderr = os.Stderr
	in, err1 := contained.StdinPipe()
	said, err2 := contained.StdoutPipe()
	if err := errors.Join(err1, err2, contained.Start()); err != nil {
		return err
	}
	defer func() { in.Close(); contained.Wait() }()
	if line, err := bufio.NewReader(said).ReadString('\n'); line != "ready\n" {
		return fmt.Errorf("the container says %q, %w", line, err)
	}
	ns, err := netns.Open(contained.Process.Pid)
	if err != nil {
		return err
	}
	defer ns.Close()
	if !netns.NeedsEnter(ns) {
		return errors.New("the operator can enter by himself")
	}
	sd := filepath.Join(dir, "sd")
	if err := record(sd, contained.Process.Pid, ns); err != nil {
		return err
	}
	run := func(end func(*exec.Cmd), want string) error {
		cmd := command(sd, "--emit=json")
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.StdoutPipe()
		if err := errors.Join(err, cmd.Start()); err != nil {
			return err
		}
		defer cmd.Process.Kill()
		timer := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		defer timer.Stop()
		lines := bufio.NewReader(out)
		next := func(want string) error {
			if got, err := lines.ReadString('\n'); untimed(got) != want {
				return fmt.Errorf("%q, want %q; %w; it says %s", got, want, err, &errs)
			}
			return nil
		}
		if err := next(started); err != nil {
			return err
		}
		fmt.Fprintln(in, "198.51.100.9:9")
		if err := next(pending(1, "198.51.100.9", 9, "{}")); err != nil {
			return err
		}
		end(cmd)
		if err := next(want); err != nil {
			return err
		}
		if rest, err := io.ReadAll(lines); len(rest) > 0 || err != nil {
			return fmt.Errorf("after its end %q, %w", rest, err)
		}
		if err := cmd.Wait(); err != nil || errs.Len() > 0 {
			return fmt.Errorf("%w; it says %s", err, &errs)
		}
		return nil
	}
	if err := run(func(c *exec.Cmd) { c.Process.Signal(syscall.SIGTERM) }, poststop); err != nil {
		return fmt.Errorf("told to end: %w", err)
	}
	if err := run(func(*exec.Cmd) { contained.Process.Kill() }, eof); err != nil {
		return fmt.Errorf("its container ends: %w", err)
	}
	fmt.Println("ok")
	return nil
}
