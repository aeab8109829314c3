package dnsproxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/applets/internal/roster"
	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/start"
)

// When the hook returns, names are answered, and nobody holds its output.
func TestReadyBeforeHookReturns(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", bundle.Proxy, nil)
	c.start()
	c.answers()
	st := c.status()
	if st.Tier != "proxy" || st.Restarts != 0 {
		t.Errorf("status %+v", st)
	}
	server, keeper := c.pair()
	for _, pid := range []int{server, keeper} {
		session, _, _ := syscall.Syscall(syscall.SYS_GETSID, uintptr(pid), 0, 0)
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		if int(session) != server || cwd != "/" || err != nil {
			t.Errorf("process %d: session %d, in %s, %v", pid, session, cwd, err)
		}
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
	c.stop()
	h.none("after poststop", all)
	c.clean()
}

// An open file that the runtime gave the hook without meaning to does not
// get into a process that outlives it.
func TestInheritsNothing(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", bundle.Proxy, nil)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd, out := c.command("createRuntime")
	cmd.ExtraFiles = []*os.File{w, w, w, w, w, w, w, w, w, w, w, w}
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.Close()
	c.pair()
	r.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := r.Read(make([]byte, 1)); n != 0 || os.IsTimeout(err) {
		t.Errorf("somebody still holds it: %d, %v", n, err)
	}
	c.end()
}

func TestNotReady(t *testing.T) {
	for name, want := range map[string]string{
		"broken": "there is no upstream",
		"panics": "dns.log",
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			c := h.container(name, bundle.Proxy, nil)
			c.refused(want)
			if got := h.pids(all); len(got) > 0 {
				t.Errorf("processes %v are left", got)
			}
			c.clean()
			if name == "panics" {
				log, err := os.ReadFile(filepath.Join(c.dir, logName))
				if err != nil || !strings.Contains(string(log), "a defect") {
					t.Errorf("log %q, %v", log, err)
				}
			}
		})
	}
	t.Run("port taken", func(t *testing.T) {
		h := newHost(t)
		c := h.container("demo", bundle.Proxy, nil)
		kerneltest.ListenUDP(t, c.ns, addrPort("127.0.0.1:53"))
		c.refused("127.0.0.1:53")
		if got := h.pids(all); len(got) > 0 {
			t.Errorf("processes %v are left", got)
		}
	})
	t.Run("ruleset", func(t *testing.T) {
		h := newHost(t)
		c := h.container("demo", bundle.Proxy, nil)
		if err := c.bundle().SetRuleset("table inet terok_shield {\n}\n"); err != nil {
			t.Fatal(err)
		}
		c.refused("ruleset.nft")
		if got := h.pids(all); len(got) > 0 {
			t.Errorf("processes %v are left", got)
		}
		c.clean()
	})
}

func TestNotReadyInTime(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	c := h.container("stuck", bundle.Proxy, nil)
	c.refused("not ready after 10s")
	if got := h.pids(all); len(got) > 0 {
		t.Errorf("processes %v are left", got)
	}
}

func TestTiers(t *testing.T) {
	for _, tt := range []struct {
		name    string
		tier    bundle.Tier
		change  func(b *bundle.Bundle) error
		engine  string // "": no process
		listens bool
	}{
		{name: "proxy", tier: bundle.Proxy, engine: "proxy", listens: true},
		{name: "dnsmasq", tier: bundle.Dnsmasq, engine: "dnsmasq"},
		{name: "static with names", tier: bundle.Static, engine: "static"},
		{name: "static without", tier: bundle.Static, change: func(b *bundle.Bundle) error { return b.SetProfileDomains(nil) }},
		{name: "static of another program", tier: bundle.Static, change: func(b *bundle.Bundle) error {
			return os.Remove(filepath.Join(b.Path(), bundle.FileRulesetFormat))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			h.custom = tt.engine == "" // else the process tells
			c := h.container("demo", tt.tier, nil)
			if tt.change != nil {
				if err := tt.change(c.bundle()); err != nil {
					t.Fatal(err)
				}
			}
			c.start()
			if tt.engine == "" {
				if got := h.pids(all); len(got) > 0 {
					t.Errorf("processes %v", got)
				}
			} else {
				c.pair()
				if st := c.status(); st.Tier != tt.engine {
					t.Errorf("tier %q", st.Tier)
				}
			}
			if _, err := c.ask("udp", "allowed.test"); (err == nil) != tt.listens {
				t.Errorf("an answer: %v", err)
			}
			c.end()
			c.stop()
			h.none("after poststop", all)
			c.clean()
		})
	}
}

// A guest with a loopback of its own asks at a link-local address.
func TestListenLinkLocal(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", bundle.Proxy, nil)
	if err := c.bundle().SetListen(addrPort("169.254.1.3:53").Addr()); err != nil {
		t.Fatal(err)
	}
	c.start()
	if err := c.ns.Do(func() error {
		conn, err := net.Dial("udp", "169.254.1.3:53")
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = question(conn, "allowed.test")
		return err
	}); err != nil {
		t.Error(err)
	}
	c.end()
}

// A killed server is replaced. Questions that it had not read, and those that
// come while there is none, are answered.
func TestServerKilled(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", bundle.Proxy, nil)
	c.start()
	const times = 20
	for i := range times {
		server, _ := c.pair()
		queued := make(chan error, 1)
		h.freeze(server)
		var conn net.Conn
		if err := c.ns.Do(func() (err error) {
			conn, err = net.Dial("udp", "127.0.0.1:53")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		sent := make(chan bool)
		go func() {
			m := new(dns.Msg)
			m.SetQuestion("allowed.test.", dns.TypeA)
			d := &dns.Conn{Conn: conn}
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			err := d.WriteMsg(m)
			close(sent)
			if err == nil {
				_, err = d.ReadMsg()
			}
			queued <- err
		}()
		<-sent
		kill(server)
		c.answers()
		if err := <-queued; err != nil {
			t.Errorf("kill %d: a question that was queued: %v", i, err)
		}
	}
	c.pair()
	if st := c.status(); st.Restarts != times {
		t.Errorf("%d restarts, want %d", st.Restarts, times)
	}
	h.reap()
	if z := h.zombies(); len(z) > 0 {
		t.Errorf("nobody waited for %v", z)
	}
	c.end()
	c.stop()
	h.none("after poststop", all)
	c.clean()
}

// A killed keeper is replaced, and then still does its work.
func TestKeeperKilled(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", bundle.Proxy, nil)
	c.start()
	for range 5 {
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
	c.answers()
	h.reap()
	if z := h.zombies(); len(z) > 0 {
		t.Errorf("nobody waited for %v", z)
	}
	c.end()
}

// SIGTERM to one of them is as good as its death.
func TestTerminated(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", bundle.Proxy, nil)
	c.start()
	for range 3 {
		server, keeper := c.pair()
		for _, pid := range []int{server, keeper} {
			syscall.Kill(pid, syscall.SIGTERM)
			c.within(20*time.Second, "its end", func() bool { return !slices.Contains(h.pids(all), pid) })
			c.pair()
			c.answers()
		}
	}
	c.end()
}

// Both killed at once is the end: closed, and nothing else changes.
func TestBothKilled(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", bundle.Proxy, nil)
	c.start()
	server, keeper := c.pair()
	// Neither may see the other's end first.
	h.freeze(server)
	kill(keeper)
	kill(server)
	h.none("after both were killed", all)
	// A process without memory may still have files for a moment.
	c.within(20*time.Second, "port 53 is closed", func() bool {
		_, err := c.ask("tcp", "allowed.test")
		return err != nil
	})
	c.within(20*time.Second, "not alive", func() bool { return !c.namer().Alive() })
	// Leftovers do not disturb the next start.
	c.end()
	c.live(nil)
	c.start()
	c.answers()
	c.end()
	c.stop()
	h.none("after poststop", all)
	c.clean()
}

// An engine that cannot go on is started anew.
func TestEngineFails(t *testing.T) {
	h := newHost(t)
	c := h.container("fails", bundle.Proxy, nil)
	c.start()
	c.within(20*time.Second, "a restart", func() bool {
		st, err := c.tryStatus()
		return err == nil && st.Restarts == 1
	})
	c.answers()
	c.end()
}

// A server that dies at once again and again is started as long as the
// container lives, and no longer.
func TestCrashLoop(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", bundle.Proxy, nil)
	c.start()
	server, keeper := c.pair()
	deny := filepath.Join(c.dir, bundle.FileDeniedDomains)
	good, err := os.ReadFile(deny)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(deny, []byte("not a name\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	kill(server)
	c.within(20*time.Second, "five failures", func() bool {
		log, err := os.ReadFile(filepath.Join(c.dir, logName))
		return err == nil && strings.Count(string(log), "cannot start") >= 5
	})
	if err := os.WriteFile(deny, good, 0o600); err != nil {
		t.Fatal(err)
	}
	c.answers()
	if _, same := c.pair(); same != keeper {
		t.Errorf("another keeper: %d", same)
	}
	if err := os.WriteFile(deny, []byte("not a name\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	server, _ = c.pair()
	kill(server)
	c.end()
	h.none("after the container's end", all)
	c.clean()
}

// Without poststop processes end by themselves, whatever they are doing.
func TestEndWithoutPoststop(t *testing.T) {
	for name, before := range map[string]func(c *container){
		"at rest":              func(*container) {},
		"server killed":        func(c *container) { s, _ := c.pair(); kill(s) },
		"keeper killed":        func(c *container) { _, k := c.pair(); kill(k) },
		"runtime dir removed":  func(c *container) { os.RemoveAll(c.runtime) },
		"state dir unwritable": func(c *container) { os.RemoveAll(c.dir + "/dns.process"); os.Mkdir(c.dir+"/dns.process", 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			c := h.container("demo", bundle.Proxy, nil)
			c.start()
			c.pair()
			before(c)
			c.end()
			h.none("after the container's end", all)
			if name != "state dir unwritable" {
				c.clean()
			}
		})
	}
}

// A container's restart while processes of its last life are being ended.
func TestRestartAtOnce(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", bundle.Proxy, nil)
	for range 5 {
		c.start()
		c.end()
		c.live(nil)
	}
	c.start()
	c.pair()
	h.two()
	c.answers()
	// The end of the first one comes late.
	c.end()
	c.stop()
	h.none("after poststop", all)
	c.clean()
}

// The hook again in the same namespace.
func TestHookAgain(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", bundle.Proxy, nil)
	c.start()
	c.pair()
	c.start()
	c.pair()
	h.two()
	c.answers()
	c.end()
}

// Poststop while the container's process still lives, as that of a killed
// runtime, ends it all, also a process that does not react.
func TestPoststop(t *testing.T) {
	for name, stopped := range map[string]start.Role{"": "", "server stopped": start.Server, "keeper stopped": start.Keeper} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			c := h.container("demo", bundle.Proxy, nil)
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
	c := h.container("demo", bundle.Proxy, nil)
	c.start()
	old := *c
	c.live(nil)
	c.start()
	old.end()
	old.stop()
	c.pair()
	c.answers()
	c.end()
}

// Without a runtime directory everything is in the state directory, at a path
// too long for a socket's address.
func TestNoRuntimeDir(t *testing.T) {
	h := newHost(t)
	h.runtime = filepath.Join(h.runtime, "missing")
	dir := filepath.Join(h.root, strings.Repeat("long/", 30), "demo")
	c := h.containerAt(dir, "demo", bundle.Proxy, nil)
	c.start()
	if got, want := c.namer().Socket, filepath.Join(dir, "run", "dns.sock"); got != want || len(got) < 108 {
		t.Errorf("socket %s", got)
	}
	c.answers()
	c.status()
	server, _ := c.pair()
	kill(server)
	c.answers()
	c.pair()
	c.status()
	// Who shares a network cannot be known here.
	other := h.container("other", bundle.Proxy, c)
	if err := other.bundle().SetLiveAllowed(prefixes("203.0.113.9/32")); err != nil {
		t.Fatal(err)
	}
	other.refused("holds another firewall already")
	c.answers()
	other.end()
	c.end()
	h.none("after the container's end", all)
	c.clean()
}

func TestRuntimeDirOfOthers(t *testing.T) {
	h := newHost(t)
	if err := os.Chmod(h.runtime, 0o777); err != nil {
		t.Fatal(err)
	}
	c := h.container("demo", bundle.Proxy, nil)
	c.start()
	if got := c.namer().Socket; !strings.HasPrefix(got, c.dir) {
		t.Errorf("socket %s", got)
	}
	c.end()
}

// Two containers in one network: one firewall, one process, until the last
// one ends.
func TestSharedNetwork(t *testing.T) {
	for _, first := range []string{"owner", "joined"} {
		for _, poststop := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s first, poststop %t", first, poststop), func(t *testing.T) {
				h := newHost(t)
				owner := h.container("owner", bundle.Proxy, nil)
				joined := h.container("joined", bundle.Proxy, owner)
				if err := joined.bundle().SetDeniedDomains(nil); err != nil {
					t.Fatal(err)
				}
				owner.start()
				generation := kerneltest.Generation(t, owner.ns)
				joined.start()
				if g := kerneltest.Generation(t, owner.ns); g != generation {
					t.Error("the second container changed the firewall")
				}
				server, keeper := owner.pair()
				h.two()
				joined.answers() // by the owner's lists
				if got, err := joined.bundle().Owner(); got != owner.dir || err != nil {
					t.Errorf("the owner is %q, %v", got, err)
				}
				if p, err := joined.bundle().Process(); p.PID != joined.pid || err != nil {
					t.Errorf("its process is %v, %v", p, err)
				}

				a, b := owner, joined
				if first == "joined" {
					a, b = b, a
				}
				a.end()
				if poststop {
					a.stop()
				}
				b.answers()
				kill(server) // the new one knows whom to wait for
				b.answers()
				if _, same := owner.pair(); same != keeper {
					t.Errorf("another keeper: %d", same)
				}
				if a == joined && poststop {
					if got, err := a.bundle().Owner(); got != "" || err != nil {
						t.Errorf("the owner of a container that has ended is %q, %v", got, err)
					}
				}

				// The one that ended may come back.
				a.live(b)
				a.start()
				h.two()
				a.answers()
				a.end()
				if poststop {
					a.stop()
				}
				b.answers()
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
// been stopped, gets the firewall of who comes next.
func TestVacantNetwork(t *testing.T) {
	h := newHost(t)
	pod := &container{host: h, name: "pod"}
	pod.live(nil)
	one := h.container("one", bundle.Proxy, pod)
	one.start()
	server, keeper := one.pair()
	// Its end is seen by nobody.
	h.freeze(server)
	h.freeze(keeper)
	one.end()
	two := h.container("two", bundle.Proxy, pod)
	if err := two.bundle().SetLiveAllowed(prefixes("203.0.113.9/32")); err != nil {
		t.Fatal(err)
	}
	two.start()
	two.pair()
	two.answers()
	if got := h.pids(of(one)); len(got) > 0 {
		t.Errorf("processes %v are left", got)
	}
	if out := kerneltest.NFT(t, pod.ns, "", "list", "ruleset"); !strings.Contains(out, "203.0.113.9") {
		t.Errorf("not its firewall:\n%s", out)
	}
	two.end()
	h.none("after the last", all)
}

func TestJoinRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		tier   bundle.Tier // of the owner
		before func(owner *container)
		want   string
	}{
		"down": {bundle.Proxy, func(o *container) {
			kerneltest.NFT(o, o.ns, "", "insert", "rule", "inet", "terok_shield", "output", "accept")
		}, "no known state"},
		"no table": {bundle.Proxy, func(o *container) {
			kerneltest.NFT(o, o.ns, "", "delete", "table", "inet", "terok_shield")
		}, "offline"},
		"nobody answers": {bundle.Static, func(*container) {}, "same DNS tier"},
		"no bundle":      {bundle.Proxy, func(o *container) { os.Rename(o.dir, o.dir+".away") }, "state directory is gone"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			owner := h.container("owner", tt.tier, nil)
			joined := h.container("joined", bundle.Proxy, owner)
			owner.start()
			tt.before(owner)
			joined.refused(tt.want)
			if r, err := roster.Read(roster.Path(h.runtime, owner.id)); err != nil || len(r.Members) != 1 {
				t.Errorf("roster %v, %v", r, err)
			}
			owner.end()
			joined.end()
		})
	}
}

func TestJoinWithoutProcess(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	owner := h.container("owner", bundle.Proxy, nil)
	joined := h.container("joined", bundle.Proxy, owner)
	owner.start()
	server, keeper := owner.pair()
	h.freeze(server)
	kill(keeper)
	kill(server)
	h.none("after both were killed", all)
	h.within(20*time.Second, "not alive", func() bool { return !owner.namer().Alive() })
	joined.refused("has ended; restart that container")
	owner.end()
	owner.stop()
	owner.clean()
}

// A hook that is killed at any step leaves nothing that outlives the container,
// which its runtime ends then, or that disturbs the next start.
func TestHookKilledAtEveryStep(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatalf("strace is needed to kill at a system call: %v", err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const calls = "clone,clone3,vfork,openat,write,sendto,sendmsg,read,renameat,unlinkat,flock,setns,pipe2,close,bind,exit_group"
	h := newHost(t)
	killed := 0
	// The steps are many, and neighbours much alike.
	for n := 1; ; n += 1 + n/8 {
		c := h.container("demo", bundle.Proxy, nil)
		hook, out := c.command("createRuntime")
		cmd := exec.Command(strace, "-qq", "-o", "/dev/null", "-e", "trace="+calls,
			"-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", calls, n), exe, "nft-hook", "createRuntime")
		cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = hook.Stdin, out, out, hook.Env
		err := cmd.Run()
		if err == nil {
			c.answers()
			c.end()
			h.none("at the end", all)
			break
		}
		killed++
		if x, ok := errors.AsType[*exec.ExitError](err); !ok || x.ExitCode() >= 0 && x.ExitCode() != 128+int(syscall.SIGKILL) {
			t.Fatalf("step %d: %v\n%s", n, err, out)
		}
		c.end()
		h.none(fmt.Sprintf("after a kill at step %d", n), all)
		c.live(nil)
		c.start()
		c.answers()
		c.end()
		c.stop()
		h.none("after poststop", all)
	}
	if killed < 15 {
		t.Errorf("killed at %d steps only", killed)
	}
	t.Logf("killed at %d steps", killed)
}

// Nobody but the hook and its like starts one.
func TestStartedByHand(t *testing.T) {
	for _, args := range [][]string{nil, {"serve"}, {"serve", "/x", "1:2", ""}, {"keep", "/x", "1:2", ""}, {"eat", "/x", "1:2", ""}} {
		cmd := self(Name, args...)
		if out, err := cmd.CombinedOutput(); err == nil {
			t.Errorf("%q: %s", args, out)
		}
	}
}

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func self(arg string, more ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{child.Name, arg}, more...)
	return cmd
}
