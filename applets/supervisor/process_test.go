package supervisor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/oci"
	"github.com/terok-ai/terok-box/wire/start"
)

// A packet becomes a question, its answer an element in the kernel.
func TestOnePacket(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", nil)
	c.start()
	server, keeper := c.pair()
	s := c.subscribe()
	if c.send("198.51.100.7:9") {
		t.Fatal("not blocked")
	}
	e := s.asked("198.51.100.7")
	if e.Container != c.short() || e.RequestID != c.short()+":1" || e.Port != 9 || e.Proto != 17 || e.Dossier["task"] != "demo's task" {
		t.Errorf("asked %+v", e)
	}
	if err := c.answer(e, clearance.Allow); err != nil {
		t.Fatal(err)
	}
	if !c.send("198.51.100.7:9") {
		t.Error("still blocked")
	}
	s.sees("the outcome", func(e clearance.Event) bool { return e.Type == clearance.VerdictApplied && e.OK })
	st := c.status()
	if st.Container != "demo" || st.ID != c.short() || st.PID != server || st.NetNS != c.id || st.Asked != 1 || st.Packets == 0 || st.Subscribers != 1 ||
		st.Pending != 0 || !st.Hub || st.HubPID != server || st.Trouble != "" {
		t.Errorf("status %+v", st)
	}
	for _, pid := range []int{server, keeper} {
		session, _, _ := syscall.Syscall(syscall.SYS_GETSID, uintptr(pid), 0, 0)
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		if int(session) != server || cwd != "/" || err != nil {
			t.Errorf("process %d: session %d, in %s, %v", pid, session, cwd, err)
		}
	}
	resp, err := c.control().Perform(limited(t), control.Request{Op: control.OpDeny, Container: "demo", Targets: []string{"198.51.100.7"}, Target: "198.51.100.7"})
	if err != nil || resp.Error != "" {
		t.Errorf("deny: %+v, %v", resp, err)
	}
	if c.send("198.51.100.7:9") {
		t.Error("not blocked")
	}
	// Before the container's end is seen, so that it is known who is faster.
	c.stop()
	c.end()
	if got := s.sees("the end", func(e clearance.Event) bool { return e.Type == "container_exited" }); got.Reason != "poststop" {
		t.Errorf("reason %q", got.Reason)
	}
	h.none("after poststop", all)
	c.clean()
}

// When a hook has returned nobody holds what it was given.
func TestInheritsNothing(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", nil)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd, out := c.command("reader-hook", "createRuntime")
	cmd.ExtraFiles = []*os.File{w, w, w, w, w, w, w, w, w, w, w, w}
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.Close()
	server, keeper := c.pair()
	r.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := r.Read(make([]byte, 1)); n != 0 || os.IsTimeout(err) {
		t.Errorf("somebody still holds it: %d, %v", n, err)
	}
	for _, pid := range []int{server, keeper} {
		for _, fd := range []string{"0", "1", "2"} {
			if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd)); to != "/dev/null" {
				t.Errorf("process %d: descriptor %s is %s, %v", pid, fd, to, err)
			}
		}
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil || len(env) > 0 {
			t.Errorf("process %d: environment %q, %v", pid, env, err)
		}
		own, _ := os.Readlink("/proc/self/ns/net")
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); ns != own {
			t.Errorf("process %d was born in %s, %v", pid, ns, err)
		}
	}
	c.end()
}

// A packet that is blocked as soon as the hooks have returned is asked about,
// however long the supervisor takes to begin.
func TestFirstPacket(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", nil)
	c.start()
	c.send("198.51.100.7:9")
	c.pair()
	c.subscribe().asked("198.51.100.7")
	c.end()
}

// A killed server is replaced. What was asked can be answered as before, and
// what is blocked while there is none is asked afterwards, under a number of
// its own.
func TestServerKilled(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", nil)
	c.start()
	c.pair()
	c.send("198.51.100.7:9")
	first := c.subscribe().asked("198.51.100.7")
	// It is in the file by then.
	c.within(20*time.Second, "it is written down", func() bool {
		data, err := c.bundle().Pending()
		return err == nil && strings.Contains(string(data), first.RequestID)
	})
	const times = 10
	ids := map[string]bool{first.RequestID: true}
	for i := range times {
		server, _ := c.pair()
		h.freeze(server)
		target := fmt.Sprintf("198.51.100.%d", 10+i)
		c.send(target + ":9")
		kill(server)
		c.within(20*time.Second, "another server", func() bool {
			now, _ := c.pair()
			return now != server
		})
		s := c.subscribe()
		e := s.asked(target)
		if ids[e.RequestID] {
			t.Errorf("%s stands for two questions", e.RequestID)
		}
		ids[e.RequestID] = true
		if again := s.asked("198.51.100.7"); again.RequestID != first.RequestID {
			t.Errorf("the first question is %+v now", again)
		}
	}
	if err := c.answer(first, clearance.Allow); err != nil {
		t.Error(err)
	}
	if !c.send("198.51.100.7:9") {
		t.Error("still blocked")
	}
	if st := c.status(); st.Restarts != times || st.Trouble != "" {
		t.Errorf("status %+v", st)
	}
	for _, e := range c.subscribe().events {
		if e.Type == event.ContainerStarted {
			t.Error("the container has started again")
		}
	}
	h.reap()
	c.end()
	c.stop()
	h.none("after poststop", all)
	c.clean()
}

// A killed keeper is replaced, and then still does its work.
func TestKeeperKilled(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", nil)
	c.start()
	for range 3 {
		server, keeper := c.pair()
		kill(keeper)
		c.within(20*time.Second, "another keeper", func() bool {
			k := h.pids(of(c, start.Keeper))
			return len(k) == 1 && k[0] != keeper
		})
		if again, _ := c.pair(); again != server {
			t.Errorf("the server %d was replaced by %d", server, again)
		}
	}
	server, _ := c.pair()
	kill(server)
	c.within(20*time.Second, "another server", func() bool {
		now, _ := c.pair()
		return now != server
	})
	c.send("198.51.100.7:9")
	c.subscribe().asked("198.51.100.7")
	c.end()
}

// Both killed at once is the end. Leftovers do not disturb the next start, and
// poststop removes them.
func TestBothKilled(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", nil)
	c.start()
	for _, again := range []bool{true, false} {
		server, keeper := c.pair()
		h.freeze(server) // neither may see the other's end first
		kill(keeper)
		kill(server)
		h.none("after both were killed", all)
		h.reap()
		c.end()
		if again {
			c.live(nil)
			c.start()
			c.send("198.51.100.7:9")
			c.pair()
			c.subscribe().asked("198.51.100.7")
		}
	}
	c.stop()
	c.clean()
}

// A server that dies at once again and again is started as long as the
// container lives, and no longer.
func TestCrashLoop(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", nil)
	c.start()
	server, keeper := c.pair()
	if err := os.Chmod(c.dir, 0o777); err != nil { // no such directory is trusted
		t.Fatal(err)
	}
	kill(server)
	time.Sleep(200 * time.Millisecond)
	if err := os.Chmod(c.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	now, same := c.pair()
	if now == server || same != keeper {
		t.Errorf("server %d after %d, keeper %d after %d", now, server, same, keeper)
	}
	if err := os.Chmod(c.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	kill(now)
	c.end()
	h.none("after the container's end", all)
	if err := os.Chmod(c.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	c.stop()
	c.clean()
}

// The hooks can run in either order, at the start and after the end.
func TestOrder(t *testing.T) {
	for _, first := range []string{"reader-hook", "nft-hook"} {
		t.Run(first, func(t *testing.T) {
			h := newHost(t)
			c := h.container("demo", nil)
			second := map[string]string{"reader-hook": "nft-hook", "nft-hook": "reader-hook"}[first]
			c.hook(first, "createRuntime")
			c.hook(second, "createRuntime")
			c.pair()
			c.send("198.51.100.7:9")
			c.subscribe().asked("198.51.100.7")
			c.end()
			c.hook(first, "poststop")
			c.hook(second, "poststop")
			h.none("after poststop", all)
			if first == "reader-hook" { // else the other one is told of no directory but the usual
				c.clean()
			}
		})
	}
}

// Without poststop processes end by themselves, and say why.
func TestEndWithoutPoststop(t *testing.T) {
	for name, before := range map[string]func(c *container){
		"at rest":             func(*container) {},
		"server killed":       func(c *container) { s, _ := c.pair(); kill(s) },
		"keeper killed":       func(c *container) { _, k := c.pair(); kill(k) },
		"runtime dir removed": func(c *container) { os.RemoveAll(c.runtime) },
		"state dir removed":   func(c *container) { os.RemoveAll(c.dir) },
		"state dir unwritable": func(c *container) {
			os.RemoveAll(filepath.Join(c.dir, bundle.FileSupervisor))
			os.Mkdir(filepath.Join(c.dir, bundle.FileSupervisor), 0o700)
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			c := h.container("demo", nil)
			c.start()
			c.pair()
			s := c.subscribe()
			before(c)
			c.end()
			h.none("after the container's end", all)
			if name == "at rest" {
				if e := s.sees("the end", func(e clearance.Event) bool { return e.Type == event.ContainerExited }); e.Reason != "eof" {
					t.Errorf("reason %q", e.Reason)
				}
			}
			if !strings.HasPrefix(name, "state dir") {
				c.clean()
			}
		})
	}
}

// Poststop ends it all, also a process that does not react.
func TestPoststop(t *testing.T) {
	for name, stopped := range map[string]start.Role{"": "", "server stopped": start.Server, "keeper stopped": start.Keeper} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			c := h.container("demo", nil)
			c.start()
			server, keeper := c.pair()
			switch stopped {
			case start.Server:
				h.freeze(server)
			case start.Keeper:
				h.freeze(keeper)
			}
			c.stop()
			if got := h.pids(all); len(got) > 0 {
				t.Errorf("processes %v are left", got)
			}
			c.clean()
		})
	}
}

// One late poststop of a container whose state directory another one has.
func TestPoststopOfAnother(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", nil)
	c.start()
	c.pair()
	old := *c
	c.live(nil)
	c.start()
	old.end()
	old.stop()
	c.pair()
	c.send("198.51.100.7:9")
	c.subscribe().asked("198.51.100.7")
	c.end()
}

// A container's restart while processes of its last life are being ended.
func TestRestartAtOnce(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", nil)
	for range 5 {
		c.start()
		c.end()
		c.live(nil)
	}
	c.start()
	c.pair()
	h.two("after the last start")
	c.send("198.51.100.7:9")
	c.subscribe().asked("198.51.100.7")
	c.end() // the end of the first one comes late
	c.stop()
	h.none("after poststop", all)
	c.clean()
}

// The hook again for the same start changes nothing.
func TestHookAgain(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", nil)
	c.start()
	server, keeper := c.pair()
	for range 2 {
		c.hook("reader-hook", "createRuntime")
		if s, k := c.pair(); s != server || k != keeper {
			t.Errorf("server %d after %d, keeper %d after %d", s, server, k, keeper)
		}
	}
	c.end()
}

// Nothing is left of twenty starts and stops.
func TestCycles(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", nil)
	for i := range 20 {
		if i > 0 {
			c.live(nil)
		}
		c.start()
		if i%3 > 0 {
			c.pair()
			c.send("198.51.100.7:9")
		}
		c.end()
		if i%4 > 0 {
			c.stop()
		}
	}
	h.none("at the end", all)
	c.clean()
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".tmp-") {
			t.Errorf("left behind: %s", e.Name())
		}
	}
}

// Without a runtime directory everything is in the state directory, at a path
// too long for a socket's address.
func TestNoRuntimeDir(t *testing.T) {
	h := newHost(t)
	h.runtime = filepath.Join(h.runtime, "missing")
	c := &container{host: h, name: "demo", dir: filepath.Join(h.root, strings.Repeat("long/", 30), "demo")}
	c.live(nil)
	c.prepare(bundle.Static)
	c.start()
	server, _ := c.pair()
	r := c.record()
	in := func(name string) string { return filepath.Join(c.dir, "run", name+".sock") }
	if want := (bundle.Supervisor{PID: r.PID, Start: r.Start, Control: in("control"), Events: in("events"), Clearance: in("clearance"), Verdict: in("verdict")}); r != want {
		t.Errorf("recorded %+v, want %+v", r, want)
	}
	c.send("198.51.100.7:9")
	for range 2 {
		client, err := clearance.Dial(limited(t), r.Clearance)
		if err != nil {
			t.Fatal(err)
		}
		stop := errors.New("enough")
		if err := client.Subscribe(limited(t), func(e clearance.Event) error {
			if e.Target() == "198.51.100.7" {
				return stop
			}
			return nil
		}); !errors.Is(err, stop) {
			t.Error(err)
		}
		client.Close()
		c.within(20*time.Second, "it is written down", func() bool {
			data, err := c.bundle().Pending()
			return err == nil && strings.Contains(string(data), "198.51.100.7")
		})
		kill(server)
		c.within(20*time.Second, "another server", func() bool {
			now, _ := c.pair()
			return now != server
		})
	}
	c.end()
	c.stop()
	h.none("after poststop", all)
	c.clean()
}

// Two containers in one network have one supervisor, until the last one ends.
func TestSharedNetwork(t *testing.T) {
	for _, first := range []string{"owner", "joined"} {
		for _, poststop := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s first, poststop %t", first, poststop), func(t *testing.T) {
				h := newHost(t)
				owner := h.container("owner", nil)
				joined := h.container("joined", owner)
				owner.start()
				server, keeper := owner.pair()
				joined.start()
				h.two("for both")
				// Its requests are carried out by the lists that govern it.
				resp, err := owner.control().Perform(limited(t), control.Request{
					Op: control.OpAllow, Container: "joined", Targets: []string{"198.51.100.99"}, Target: "198.51.100.99",
				})
				if err != nil || resp.Error != "" || !joined.send("198.51.100.99:9") {
					t.Errorf("%+v, %v", resp, err)
				}
				a, b := owner, joined
				if first == "joined" {
					a, b = b, a
				}
				a.end()
				if poststop {
					a.stop()
				}
				time.Sleep(50 * time.Millisecond)
				if s, k := owner.pair(); s != server || k != keeper {
					t.Errorf("server %d after %d, keeper %d after %d", s, server, k, keeper)
				}
				kill(server) // the new one knows whom to wait for
				b.send("198.51.100.7:9")
				owner.within(20*time.Second, "another server", func() bool {
					now, _ := owner.pair()
					return now != server
				})
				e := owner.subscribe().asked("198.51.100.7")
				if err := owner.answer(e, clearance.Allow); err != nil || !b.send("198.51.100.7:9") {
					t.Errorf("answer: %v", err)
				}
				// The one that ended may come back.
				old := owner.short()
				a.live(b)
				a.start()
				h.two("after a restart")
				a.end()
				if poststop {
					a.stop()
				}
				if _, err := control.Dial(limited(t), control.SocketPath(h.runtime, old)); err != nil {
					t.Error(err)
				}
				b.end()
				if poststop {
					b.stop()
				}
				h.none("after the last", all)
				owner.clean()
				joined.clean()
			})
		}
	}
}

// A network in which nobody is left, as in a pod whose containers have all
// been stopped, gets a supervisor of who comes next.
func TestVacantNetwork(t *testing.T) {
	h := newHost(t)
	pod := &container{host: h, name: "pod"}
	pod.live(nil)
	one := h.container("one", pod)
	one.start()
	server, keeper := one.pair()
	// Its end is seen by nobody.
	h.freeze(server)
	h.freeze(keeper)
	one.end()
	two := h.container("two", pod)
	two.start()
	two.pair()
	if got := h.pids(of(one)); len(got) > 0 {
		t.Errorf("processes %v are left", got)
	}
	two.send("198.51.100.7:9")
	two.subscribe().asked("198.51.100.7")
	two.end()
	h.none("after the last", all)
	two.stop()
	one.clean()
	two.clean()
}

// Nobody but the hook and its like starts one.
func TestStartedByHand(t *testing.T) {
	for _, args := range [][]string{nil, {"serve"}, {"serve", "/x", "1:2", ""}, {"keep", "/x", "1:2", "", "0123456789ab", "1:2"}, {"serve", "/x", "1:2", "", "0123456789ab", "1:2"}} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Args = append([]string{child.Name, Name}, args...)
		if out, err := cmd.CombinedOutput(); err == nil {
			t.Errorf("%q: %s", args, out)
		}
	}
}

// A reader that another program's hook started is two processes, of which the
// file names the outer one at most.
func TestOtherReader(t *testing.T) {
	for _, stage := range []string{"createRuntime", "poststop"} {
		t.Run(stage, func(t *testing.T) {
			h := newHost(t)
			c := h.container("demo", nil)
			var ended []chan error
			read := func(argv ...string) int {
				cmd := exec.Command("/proc/self/exe")
				cmd.Args = argv
				stdin, err := cmd.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := c.ns.Do(cmd.Start); err != nil {
					t.Fatal(err)
				}
				end := make(chan error, 1)
				ended = append(ended, end)
				go func() { end <- cmd.Wait() }()
				t.Cleanup(func() { stdin.Close() })
				return cmd.Process.Pid
			}
			if stage == "poststop" {
				c.start()
				c.pair()
			}
			program := "/home/op/.local/share/terok/shield/nflog-reader.py"
			outer := read("/usr/bin/python3", program, c.dir, c.short(), "--emit=socket")
			read("/usr/bin/python3", program, c.dir, c.short(), "--emit=socket", "--annotations={}")
			read("/usr/bin/python3", program, c.dir+"/other", c.short(), "--emit=socket")
			read("/usr/bin/python3", "/x/other.py", c.dir, c.short())
			if err := os.WriteFile(filepath.Join(c.dir, bundle.FileReaderPID), fmt.Appendf(nil, "%d\n", outer), 0o644); err != nil {
				t.Fatal(err)
			}
			c.hook("reader-hook", stage)
			for i, end := range ended {
				select {
				case err := <-end:
					if i > 1 || err == nil || err.Error() != "signal: terminated" {
						t.Errorf("process %d: %v", i, err)
					}
				case <-time.After(100 * time.Millisecond):
					if i < 2 {
						t.Errorf("process %d lives", i)
					}
				}
			}
			if _, err := os.Lstat(filepath.Join(c.dir, bundle.FileReaderPID)); err == nil {
				t.Error("the file is still there")
			}
			c.end()
		})
	}
}

// A hook that is killed at any step leaves nothing that outlives the container
// or disturbs the next start.
func TestHookKilledAtEveryStep(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatalf("strace is needed to kill at a system call: %v", err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const calls = "clone,clone3,vfork,openat,write,sendto,sendmsg,read,renameat,unlinkat,flock,setns,pipe2,close,bind,pwrite64,exit_group"
	h := newHost(t)
	c := h.container("demo", nil)
	killed := 0
	// The steps are many, and neighbours much alike.
	for n := 1; ; n += 1 + n/6 {
		hook, out := c.command("reader-hook", "createRuntime")
		cmd := exec.Command(strace, "-qq", "-o", "/dev/null", "-e", "trace="+calls,
			"-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", calls, n), exe, "reader-hook", "createRuntime")
		cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = hook.Stdin, out, out, hook.Env
		err := cmd.Run()
		if err == nil {
			c.pair()
			c.end()
			break
		}
		killed++
		if x, ok := errors.AsType[*exec.ExitError](err); !ok || x.ExitCode() >= 0 && x.ExitCode() != 128+int(syscall.SIGKILL) {
			t.Fatalf("step %d: %v\n%s", n, err, out)
		}
		c.end()
		c.live(nil)
		c.start()
		c.pair()
		h.within(endLimit, "no process of the first start is left", func() bool { return len(h.pids(all)) == 2 })
		c.end()
		if killed%2 == 0 {
			c.stop()
		}
		h.none(fmt.Sprintf("after a kill at step %d", n), all)
		c.clean()
		c.live(nil)
	}
	h.none("at the end", all)
	c.clean()
	if killed < 10 {
		t.Errorf("killed at %d steps only", killed)
	}
	t.Logf("killed at %d steps", killed)
}

// However much an orchestrator tells about a container, it starts.
func TestLargeDossier(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", nil)
	c.more = make(map[string]string)
	for i := range oci.MaxDossier {
		c.more[fmt.Sprintf("%s%02d%s", oci.DossierPrefix, i, strings.Repeat("k", oci.MaxDossierKey-2))] = strings.Repeat("\x01", oci.MaxDossierValue)
	}
	c.start()
	c.pair()
	c.send("198.51.100.7:9")
	if e := c.subscribe().asked("198.51.100.7"); len(e.Dossier) != oci.MaxDossier {
		t.Errorf("%d pairs", len(e.Dossier))
	}
	c.end()
}
