package supervisor

import (
	"bufio"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/varlink"
	"github.com/terok-ai/terok-box/wire/verdict"
)

// otherHub is somebody else's: it takes lines.
type otherHub struct {
	l     net.Listener
	mu    sync.Mutex
	lines []string
}

// takeEvents listens where events go. With force it does as those do that
// remove whatever is there.
func takeEvents(t testing.TB, path string, force bool) *otherHub {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if force {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	h := &otherHub{l: l}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for lines := bufio.NewScanner(c); lines.Scan(); {
					h.mu.Lock()
					h.lines = append(h.lines, lines.Text())
					h.mu.Unlock()
				}
			}()
		}
	}()
	return h
}

func (h *otherHub) sees(c *container, all ...string) {
	c.Helper()
	c.within(20*time.Second, strings.Join(all, " and ")+" in its lines", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, line := range h.lines {
			found := true
			for _, s := range all {
				found = found && strings.Contains(line, s)
			}
			if found {
				return true
			}
		}
		return false
	})
}

// Where somebody else is the hub, he gets the events, and commands are served
// all the same. When he is gone, this process takes over, and when he comes
// back it steps back.
func TestOtherHub(t *testing.T) {
	for _, layout := range []string{"%.sock", "%/ingester.sock"} {
		t.Run(layout, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			c := h.container("demo", nil)
			path := filepath.Join(h.runtime, "terok", "events", strings.ReplaceAll(layout, "%", c.short()))
			other := takeEvents(t, path, false)
			c.start()
			server, _ := c.pair()
			other.sees(c, `"container_started"`, c.short())
			c.send("198.51.100.7:9")
			other.sees(c, `"pending"`, `"198.51.100.7"`, `"`+c.short()+`:1"`, "demo's task")
			c.within(20*time.Second, "that it has asked", func() bool { return c.status().Asked == 1 }) // it counts afterwards
			if st := c.status(); st.Hub || st.HubPID != os.Getpid() || st.Trouble != "" {
				t.Errorf("status %+v", st)
			}
			if r := c.record(); r.Clearance != "" || r.Events != "" || r.Verdict != "" || r.Control == "" {
				t.Errorf("recorded %+v", r)
			}
			resp, err := c.control().Perform(limited(t), control.Request{Op: control.OpState, Container: "demo"})
			if err != nil || resp.State != "up" {
				t.Errorf("%+v, %v", resp, err)
			}
			kill(server)
			c.within(20*time.Second, "another server", func() bool {
				now, _ := c.pair()
				return now != server
			})
			c.send("198.51.100.8:9")
			other.sees(c, `"pending"`, `"198.51.100.8"`)
			other.mu.Lock()
			for _, line := range other.lines {
				if strings.Contains(line, "198.51.100.8") && strings.Contains(line, c.short()+`:1"`) {
					t.Errorf("a number stands for two questions: %s", line)
				}
			}
			other.mu.Unlock()

			other.l.Close()
			c.within(2*look+20*time.Second, "a hub of its own", func() bool { return c.status().Hub })
			c.send("198.51.100.9:9")
			s := c.subscribe()
			if err := c.answer(s.asked("198.51.100.9"), clearance.Allow); err != nil || !c.send("198.51.100.9:9") {
				t.Errorf("answer: %v", err)
			}

			other = takeEvents(t, path, layout == "%.sock")
			c.within(2*look+20*time.Second, "the other hub again", func() bool { return !c.status().Hub })
			<-s.done
			c.send("198.51.100.10:9")
			other.sees(c, `"198.51.100.10"`)
			c.end()
			c.stop()
			other.sees(c, `"container_exited"`, c.short())
			other.l.Close()
			if layout != "%.sock" {
				os.Remove(filepath.Dir(path))
			}
			c.clean()
		})
	}
}

// A hub that fails to begin, as where its sockets cannot be, begins when it
// can; commands are served meanwhile.
func TestHubCannotBegin(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", nil)
	dir := filepath.Join(h.runtime, "terok", "clearance")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // not trusted
		t.Fatal(err)
	}
	c.start()
	c.pair()
	c.within(20*time.Second, "it says why", func() bool {
		st := c.status()
		return !st.Hub && strings.Contains(st.Trouble, "open to others")
	})
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	c.within(20*time.Second, "a hub", func() bool { st := c.status(); return st.Hub && st.Trouble == "" })
	c.send("198.51.100.7:9")
	c.subscribe().asked("198.51.100.7")
	c.end()
}

// Somebody else's hub has answers carried out.
func TestVerdict(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", nil)
	c.start()
	c.pair()
	c.within(10*time.Second, "answers of others are taken", func() bool { return c.record().Verdict != "" })
	client, err := verdict.Dial(limited(t), verdict.SocketPath(h.runtime, c.short()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, tt := range []struct {
		container, dest, action string
		ok                      bool
		stderr                  string
	}{
		{c.short(), "198.51.100.7", "allow", true, ""},
		{"demo", "198.51.100.8", "allow", true, ""},
		{c.fullID(), "198.51.100.8", "deny", true, ""},
		{"other", "198.51.100.9", "allow", false, "is not this one"},
		{"demo", "198.51.100.9", "permit", false, `neither "allow" nor "deny"`},
		{"demo", "--help", "allow", false, "--help"},
		{"demo", "", "allow", false, ""},
		{"demo", "a\x1bb", "deny", false, ""},
	} {
		ok, stderr, err := client.Apply(limited(t), tt.container, tt.dest, tt.action)
		if ok != tt.ok || !strings.Contains(stderr, tt.stderr) || err != nil || ok == (stderr != "") {
			t.Errorf("%s %s %s: %t, %q, %v", tt.container, tt.dest, tt.action, ok, stderr, err)
		}
	}
	for to, passes := range map[string]bool{"198.51.100.7:9": true, "198.51.100.8:9": false, "198.51.100.9:9": false} {
		if c.send(to) != passes {
			t.Errorf("to %s: passes %t", to, !passes)
		}
	}
	// What was decided is in the lists, and in the audit log.
	allowed, err := c.bundle().LiveAllowed()
	if err != nil || len(allowed) != 1 || allowed[0].String() != "198.51.100.7/32" {
		t.Errorf("allowed %v, %v", allowed, err)
	}
	log, err := os.ReadFile(filepath.Join(c.dir, bundle.FileAuditLog))
	if err != nil || !strings.Contains(string(log), `"dest":"198.51.100.7"`) {
		t.Errorf("audit log %q, %v", log, err)
	}
	c.end()
}

// Every logged packet is passed on to who watches.
func TestWatchPackets(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", nil)
	c.start()
	c.pair()
	got := make(chan control.Packet, 100)
	ctx, cancel := context.WithCancel(limited(t))
	defer cancel()
	client := c.control()
	go client.Packets(ctx, func(p control.Packet) error { got <- p; return nil })
	for { // until the watcher is there
		c.send("198.51.100.7:9")
		select {
		case p := <-got:
			if p.Prefix != "TEROK_SHIELD_BLOCKED: " || p.Dest.String() != "198.51.100.7" || p.Proto != 17 || p.Port != 9 || time.Since(p.Time) > time.Minute {
				t.Errorf("%+v", p)
			}
		case <-time.After(10 * time.Millisecond):
			continue
		}
		break
	}
	c.end()
}

// Requests that came too late, or to the wrong place, do nothing.
func TestPerform(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", nil)
	c.start()
	c.pair()
	other := h.container("other", nil)
	resp, err := c.control().Perform(limited(t), control.Request{
		Op: control.OpAllow, Container: "demo", StateDir: other.dir, PID: other.pid, NetNS: other.id, Targets: []string{"198.51.100.7"},
	})
	if err != nil || resp.Error != "" || !c.send("198.51.100.7:9") {
		t.Errorf("%+v, %v", resp, err)
	}
	if list, err := other.bundle().LiveAllowed(); err != nil || len(list) > 0 {
		t.Errorf("the other one is allowed %v, %v", list, err)
	}
	unlock, err := c.bundle().Lock(limited(t))
	if err != nil {
		t.Fatal(err)
	}
	resp, err = c.control().Perform(limited(t), control.Request{Op: control.OpDown, Container: "demo", Until: time.Now().Add(100 * time.Millisecond)})
	unlock()
	if err != nil || !strings.Contains(resp.Error, "gave up waiting") {
		t.Errorf("%+v, %v", resp, err)
	}
	resp, err = c.control().Perform(limited(t), control.Request{Op: control.OpVerify, Container: "demo"})
	if err != nil || resp.Error != "" {
		t.Errorf("%+v, %v", resp, err)
	}
	c.end()
}

// What a command decides is not asked any more, and nothing else is withdrawn.
func TestDecidedByCommand(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", nil)
	c.start()
	c.pair()
	s := c.subscribe()
	questions := make(map[string]clearance.Event)
	for _, addr := range []string{"198.51.100.7", "198.51.100.8", "203.0.113.7", "203.0.113.8"} {
		c.send(addr + ":9")
		questions[addr] = s.asked(addr)
	}
	for _, tt := range []struct {
		op      control.Op
		target  string
		settles string
		action  string
	}{
		{control.OpAllow, "198.51.100.7", "198.51.100.7", clearance.Allow},
		{control.OpDeny, "203.0.113.8/30", "203.0.113.8", clearance.Deny},
	} {
		resp, err := c.control().Perform(limited(t), control.Request{Op: tt.op, Container: "demo", Target: tt.target, Targets: []string{tt.target}})
		if err != nil || resp.Error != "" {
			t.Fatalf("%s: %+v, %v", tt.target, resp, err)
		}
		s.sees("that "+tt.settles+" was decided", func(e clearance.Event) bool {
			return e.Type == clearance.VerdictApplied && e.RequestID == questions[tt.settles].RequestID && e.Action == tt.action && e.OK
		})
		if c.answer(questions[tt.settles], clearance.Allow) == nil {
			t.Errorf("%s can still be answered", tt.settles)
		}
	}
	if n := c.status().Pending; n != 2 {
		t.Errorf("%d questions are open", n)
	}
	for _, addr := range []string{"198.51.100.8", "203.0.113.7"} {
		if err := c.answer(questions[addr], clearance.Allow); err != nil {
			t.Errorf("%s: %v", addr, err)
		}
	}
	c.end()
}

// A name that is refused is a question as well.
func TestRefusedName(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", nil)
	c.prepare(bundle.Proxy)
	c.start()
	c.pair()
	ask := func() {
		t.Helper()
		if err := c.ns.Do(func() error {
			conn, err := net.Dial("udp", "127.0.0.1:53")
			if err != nil {
				return err
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			// www.example.com, A
			q := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x03com\x00\x00\x01\x00\x01")
			if _, err := conn.Write(q); err != nil {
				return err
			}
			_, err = conn.Read(make([]byte, 512))
			return err
		}); err != nil {
			t.Error(err)
		}
	}
	s := c.subscribe()
	c.within(20*time.Second, "a question", func() bool {
		ask() // until the reader watches
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, e := range s.events {
			if e.Type == event.Blocked {
				return true
			}
		}
		return false
	})
	e := s.asked("www.example.com")
	if e.Dest != "" || e.Port != 53 || e.Proto != 17 {
		t.Errorf("asked %+v", e)
	}
	if err := c.answer(e, clearance.Allow); err != nil {
		t.Error(err)
	}
	if names, err := c.bundle().LiveDomains(); err != nil || len(names) != 1 || names[0] != "www.example.com" {
		t.Errorf("allowed %q, %v", names, err)
	}
	if err := c.answer(e, clearance.Allow); err == nil {
		t.Error("answered twice")
	}
	c.end()
	c.stop()
	h.none("after poststop", all)
	c.clean()
}

// What a socket belongs to a supervisor is told apart from others.
func TestForeignSocketIsLeftAlone(t *testing.T) {
	h := newHost(t)
	c := h.container("demo", nil)
	c.start()
	server, keeper := c.pair()
	h.freeze(server)
	kill(keeper)
	kill(server)
	h.none("after both were killed", all)
	h.reap()
	// Somebody else serves where they did.
	path := c.record().Events
	other := takeEvents(t, path, true)
	c.end()
	c.stop()
	if conn, _, err := varlink.Connect(limited(t), path); err != nil {
		t.Errorf("it was removed: %v", err)
	} else {
		conn.Close()
	}
	other.l.Close()
	c.clean()
}
