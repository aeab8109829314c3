package notify

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/applets/hub"
	"github.com/terok-ai/terok-box/applets/internal/reach"
	"github.com/terok-ai/terok-box/nl/confine"
	"github.com/terok-ai/terok-box/nl/confine/confinetest"
	"github.com/terok-ai/terok-box/wire/event"
)

// watching is the program, in a process of its own.
type watching struct {
	*exec.Cmd
	t     *testing.T
	errs  syncBuffer
	ended chan struct{} // closed when it has, and its output with it
}

func watch(t *testing.T, vars map[string]string, start func(*exec.Cmd) error, args ...string) *watching {
	t.Helper()
	w := &watching{Cmd: exec.Command("/proc/self/exe", append([]string{"--watch"}, args...)...), t: t, ended: make(chan struct{})}
	w.Args[0] = Name
	for k, v := range vars {
		w.Env = append(w.Env, k+"="+v)
	}
	w.Stderr = &w.errs
	// What is caught here is not ignored there, as it may be here: under nohup,
	// and in the background of a script.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGHUP, syscall.SIGINT)
	defer signal.Stop(caught)
	if err := start(w.Cmd); err != nil {
		t.Fatal(err)
	}
	go func() { w.Wait(); close(w.ended) }()
	t.Cleanup(func() { w.Process.Kill(); <-w.ended })
	return w
}

// code is its exit code, or minus the signal that has ended it.
func (w *watching) code() int {
	w.t.Helper()
	receive(w.t, "end of the program", w.ended)
	if st := w.ProcessState.Sys().(syscall.WaitStatus); st.Signaled() {
		return -int(st.Signal())
	}
	return w.ProcessState.ExitCode()
}

// opener is the number of the process that opens terminals for it; 0 if there
// is none.
func (w *watching) opener() int { return children(w.t, w.Process.Pid) }

// children is the only child of a process; 0 if there is none.
func children(t *testing.T, pid int) (child int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range all {
		number, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || status(number, "PPid") != strconv.Itoa(pid) {
			continue
		}
		if child != 0 {
			t.Errorf("process %d has several children", pid)
		}
		child = number
	}
	return child
}

// status is a line of /proc/PID/status; "" if the process has ended.
func status(pid int, key string) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(text)) {
		if k, v, _ := strings.Cut(line, ":"); k == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// over says whether a process has ended: whether somebody has waited for it is
// not ours.
func over(pid int) bool {
	state := status(pid, "State")
	return state == "" || state[0] == 'Z' || state[0] == 'X'
}

// session is a desktop with a container and a terminal, which does what a
// script says.
type session struct {
	*busDaemon
	d        *desktop
	h        *hub.Hub
	verdicts <-chan string
	dir      string // of files that the terminal uses
	env      map[string]string
}

func newSession(t *testing.T, script string) *session {
	t.Helper()
	s := &session{busDaemon: startBus(t), dir: t.TempDir()}
	s.d = s.show(notificationsName, usual...)
	s.h, s.verdicts = container(t, s.busDaemon.dir)
	s.env = s.vars()
	s.env["DISPLAY"], s.env["TERMINAL"], s.env["DIR"] = ":1", filepath.Join(s.dir, "terminal"), s.dir
	if err := os.WriteFile(s.env["TERMINAL"], []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *session) block(t *testing.T, n int) {
	t.Helper()
	e := event.Event{Type: event.Blocked, Container: short, ID: short + ":" + strconv.Itoa(n), Dest: "198.51.100." + strconv.Itoa(n), Port: 443, Proto: 6}
	if err := s.h.Ingest(e); err != nil {
		t.Fatal(err)
	}
}

// popup is the newest popup with that summary, and its id; nil if there is none.
func (s *session) popup(summary string) (c *call, id uint32) {
	last := uint32(0)
	for _, shown := range s.d.was("Notify") {
		its := shown.Body[1].(uint32)
		if its == 0 {
			last++
			its = last
		}
		if strings.HasPrefix(shown.Body[3].(string), summary) {
			c, id = &shown, its
		}
	}
	return c, id
}

// summary is the id of the popup that offers the list.
func (s *session) summary(t *testing.T) (id uint32) {
	t.Helper()
	for n := range maxOwn + 1 {
		s.block(t, n+1)
	}
	eventually(t, "summary", func() bool {
		var c *call
		c, id = s.popup("1 more blocked")
		return c != nil && slices.Contains(c.Body[5].([]string), listKey)
	})
	return id
}

// The program is confined on every thread and does all that it did, whatever
// layout its hubs have; the terminal is not, and has nothing of the program.
func TestConfined(t *testing.T) {
	confinetest.Need(t)
	s := newSession(t, `exec >"$DIR/out.new" 2>&1
cat /proc/self/status
echo "args: $@"
echo "where: $(pwd)"
ls -l /proc/$$/fd >"$DIR/files"
sed -n 's/.* -> /file: /p' "$DIR/files"
tr '\0' '\n' <"/proc/$$/environ" | sed 's/^/variable: /'
cat "$DIR/terminal" >/dev/null && echo "own file: read"
mv "$DIR/out.new" "$DIR/out"
exec sleep 1000`)
	s.env["TEROK_CONFINED"], s.env[openerVar] = "1", "0" // of some other program
	work := t.TempDir()
	w := watch(t, s.env, func(cmd *exec.Cmd) error { cmd.Dir = work; return cmd.Start() }, "-v")
	id := s.summary(t)

	confinetest.Confined(t, w.Process.Pid)
	if got, want := status(w.Process.Pid, "Name"), Name[:15]; got != want {
		t.Errorf("it is called %q, not %q", got, want)
	}
	if by := fmt.Sprintf("msg=confined by=\"landlock %d, seccomp, no new privileges\"", confine.ABI()); !strings.Contains(w.errs.String(), by) {
		t.Errorf("it does not say %s: %s", by, w.errs.String())
	}
	if c, _ := s.popup("Blocked"); c == nil || c.Body[2] != "file://"+s.busDaemon.dir+"/terok/terok.svg" {
		t.Errorf("popup %v", c)
	}
	// The terminal.
	s.d.choose(id, listKey)
	var out []byte
	eventually(t, "terminal", func() (ok bool) {
		var err error
		out, err = os.ReadFile(filepath.Join(s.dir, "out"))
		return err == nil
	})
	opener := w.opener()
	if status(opener, "Name") != OpenerName {
		t.Errorf("the child is %q", status(opener, "Name"))
	}
	pid := children(t, opener)
	if got := field(out, "PPid"); pid == 0 || got != strconv.Itoa(pid) {
		t.Fatalf("the opener's child is %d, and the terminal %s", pid, got)
	}
	defer syscall.Kill(-pid, syscall.SIGKILL)
	ours, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"NoNewPrivs", "Seccomp", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Uid", "Gid", "Umask"} {
		if got, want := field(out, key), field(ours, key); got != want {
			t.Errorf("the terminal's %s is %s, not %s", key, got, want)
		}
	}
	if blocked := field(out, "SigBlk"); strings.Trim(blocked, "0") != "" {
		t.Errorf("the terminal's signals: blocked %s", blocked)
	}
	inherited := signals(t, ours) &^ (1<<(syscall.SIGHUP-1) | 1<<(syscall.SIGINT-1) | 1<<(syscall.SIGTERM-1))
	if ignored := signals(t, out); ignored&^inherited != 0 { // make, for one, ignores some that the C library has for itself
		t.Errorf("the terminal ignores the signals %x, and we %x", ignored, signals(t, ours))
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"args": "-e " + self + " clearance-hub clearance", "where": work, "own file": "read"} {
		if got := field(out, key); got != want {
			t.Errorf("the terminal's %s: %q, want %q", key, got, want)
		}
	}
	var vars []string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if v, ok := strings.CutPrefix(line, "variable: "); ok && !ofShell(v) {
			vars = append(vars, v)
		}
		if f, ok := strings.CutPrefix(line, "file: "); ok && !strings.HasPrefix(f, s.dir+"/") && f != os.DevNull {
			t.Errorf("the terminal has the file %s", f)
		}
	}
	delete(s.env, "TEROK_CONFINED")
	delete(s.env, openerVar)
	var own []string
	for k, v := range s.env {
		own = append(own, k+"="+v)
	}
	slices.Sort(vars)
	slices.Sort(own)
	if d := cmp.Diff(own, vars); d != "" {
		t.Errorf("the terminal's environment (-the program's +its own):\n%s", d)
	}

	_, first := s.popup("Blocked: 198.51.100.1:443")
	s.d.choose(first, "allow")
	if v := receive(t, "verdict", s.verdicts); v != "allow 198.51.100.1" {
		t.Error(v)
	}
	eventually(t, "answer", func() bool { c, _ := s.popup("Allowed: 198.51.100.1"); return c != nil })

	// A hub in the older layout, in a directory that was not there before.
	const other = "ba9876543210"
	old, _ := hubAt(t, other, event.SocketPath(s.busDaemon.dir, other), filepath.Join(s.busDaemon.dir, "terok/clearance", other, "hub.sock"))
	if err := old.Ingest(event.Event{Type: event.Blocked, Container: other, ID: other + ":1", Dest: "203.0.113.1", Port: 80, Proto: 6}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "question of another hub", func() bool { c, _ := s.popup("Blocked: 203.0.113.1:80"); return c != nil })

	// What ends with the program, and what stays.
	w.Process.Signal(syscall.SIGTERM)
	if code := w.code(); code != 0 || strings.Contains(w.errs.String(), "level=WARN") {
		t.Errorf("exit %d: %s", code, w.errs.String())
	}
	eventually(t, "end of the opener", func() bool { return over(opener) })
	if over(pid) {
		t.Error("the terminal has ended")
	}
	eventually(t, "questions taken away", func() bool { return len(s.d.was("CloseNotification")) > 0 })
}

// signals are those that a process ignores, by its status.
func signals(t *testing.T, status []byte) uint64 {
	t.Helper()
	set, err := strconv.ParseUint(field(status, "SigIgn"), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// ofShell says whether shells set a variable themselves.
func ofShell(v string) bool {
	name, _, _ := strings.Cut(v, "=")
	return slices.Contains([]string{"PWD", "OLDPWD", "SHLVL", "_"}, name)
}

// field is what follows a key in lines of them.
func field(text []byte, key string) string {
	for line := range strings.Lines(string(text)) {
		if k, v, _ := strings.Cut(line, ":"); k == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// Neither of the two processes outlives the other, and the exit code says what
// has happened.
func TestEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		signal   syscall.Signal
		toOpener bool
		group    bool // both, as a service manager or a terminal sends it
		want     int
		says     string
	}{
		"SIGTERM":         {signal: syscall.SIGTERM},
		"SIGINT":          {signal: syscall.SIGINT, want: 130},
		"SIGHUP":          {signal: syscall.SIGHUP, want: -int(syscall.SIGHUP)},
		"SIGKILL":         {signal: syscall.SIGKILL, want: -int(syscall.SIGKILL)},
		"SIGTERM to both": {signal: syscall.SIGTERM, group: true},
		"SIGINT to both":  {signal: syscall.SIGINT, group: true, want: 130},
		"SIGKILL of the opener": {
			signal: syscall.SIGKILL, toOpener: true, want: exitOpener,
			says: "terok-clearance-notify: the process that opens terminals has ended\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSession(t, "exit 0")
			w := watch(t, s.env, (*exec.Cmd).Start)
			s.summary(t)
			opener := w.opener()
			eventually(t, "opener", func() bool { return status(opener, "Name") == OpenerName })
			if tt.toOpener || tt.group {
				syscall.Kill(opener, tt.signal)
			}
			if !tt.toOpener {
				w.Process.Signal(tt.signal)
			}
			if code := w.code(); code != tt.want || w.errs.String() != tt.says {
				t.Errorf("exit %d: %q", code, w.errs.String())
			}
			eventually(t, "end of the opener", func() bool { return over(opener) })
		})
	}
}

// A signal ends it whenever it comes, also before it is confined.
func TestEndsEarly(t *testing.T) {
	s := newSession(t, "exit 0")
	for i := range 60 {
		w := watch(t, s.env, (*exec.Cmd).Start)
		time.Sleep(time.Duration(i) * time.Millisecond / 2)
		w.Process.Signal(syscall.SIGINT)
		if code := w.code(); code != 130 && code != -int(syscall.SIGINT) {
			t.Errorf("exit %d: %s", code, w.errs.String())
		}
	}
}

// A terminal that does not start is said as before: in the log, and in the
// popup, which says what to do instead.
func TestTerminalFails(t *testing.T) {
	s := newSession(t, "exit 3")
	w := watch(t, s.env, (*exec.Cmd).Start)
	s.d.choose(s.summary(t), listKey)
	eventually(t, "explanation", func() bool {
		c, _ := s.popup("1 more blocked")
		return strings.HasSuffix(c.Body[4].(string), "To answer, run in a terminal: "+TerminalCommand) && len(c.Body[5].([]string)) == 0
	})
	if want := fmt.Sprintf(`msg="the list of questions cannot be shown" err="open a terminal: %s: exit status 3"`, s.env["TERMINAL"]); !strings.Contains(w.errs.String(), want) {
		t.Errorf("%s, want %s", w.errs.String(), want)
	}
}

// Without a screen there is no terminal, and no process that would open one.
func TestNoOpener(t *testing.T) {
	s := newSession(t, "exit 0")
	delete(s.env, "DISPLAY")
	w := watch(t, s.env, (*exec.Cmd).Start)
	s.block(t, 1)
	eventually(t, "popup", func() bool { c, _ := s.popup("Blocked"); return c != nil })
	if pid := w.opener(); pid != 0 {
		t.Errorf("it has a child, %d", pid)
	}
	w.Process.Signal(syscall.SIGINT)
	if code := w.code(); code != 130 || w.errs.String() != "" {
		t.Errorf("exit %d: %s", code, w.errs.String())
	}
}

// The second one of a session says so, and leaves nothing.
func TestSecond(t *testing.T) {
	s := newSession(t, "exit 0")
	watch(t, s.env, (*exec.Cmd).Start)
	s.summary(t)
	second := watch(t, s.env, (*exec.Cmd).Start)
	if code := second.code(); code != 1 || second.errs.String() != "terok-clearance-notify: another program shows the questions of this session already\n" {
		t.Errorf("exit %d: %s", code, second.errs.String())
	}
}

// The bus may come later, and may have a socket without a file.
func TestAbstractBus(t *testing.T) {
	b := newDaemon(t)
	name := "terok-test-" + strconv.Itoa(os.Getpid())
	config := filepath.Join(b.dir, "bus.conf")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	listen := []byte("<listen>unix:path=" + b.socket() + "</listen>")
	both := append(slices.Clone(listen), "<listen>unix:abstract="+name+"</listen>"...)
	if err := os.WriteFile(config, bytes.Replace(text, listen, both, 1), 0o600); err != nil {
		t.Fatal(err)
	}
	h, _ := container(t, b.dir)
	vars := b.vars()
	vars[addressVar] = "unix:abstract=" + name
	watch(t, vars, (*exec.Cmd).Start)
	if err := h.Ingest(event.Event{Type: event.Blocked, Container: short, ID: short + ":1", Dest: "198.51.100.1", Port: 443, Proto: 6}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it goes and comes again
		b.start()
		d := b.show(notificationsName, usual...)
		eventually(t, "popup", func() bool { return len(d.was("Notify")) > 0 })
		b.stop()
	}
}

// A service manager that refuses it what it would confine itself with does not
// keep it from its work.
func TestConfinedByOthers(t *testing.T) {
	s := newSession(t, `touch "$DIR/out"; exit 0`)
	w := watch(t, s.env, func(cmd *exec.Cmd) error {
		return confinetest.Under(cmd.Start, unix.EPERM,
			unix.SYS_SECCOMP, unix.SYS_CAPSET, unix.SYS_LANDLOCK_CREATE_RULESET, unix.SYS_LANDLOCK_ADD_RULE, unix.SYS_LANDLOCK_RESTRICT_SELF)
	})
	s.d.choose(s.summary(t), listKey)
	eventually(t, "terminal", func() bool { _, err := os.Stat(filepath.Join(s.dir, "out")); return err == nil })
	w.Process.Signal(syscall.SIGTERM)
	if code := w.code(); code != 0 || !strings.Contains(w.errs.String(), "this program may do more than it should") {
		t.Errorf("exit %d: %s", code, w.errs.String())
	}
}

// All it may do is to list where hubs are, and to read its logo.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	logo := filepath.Join(dir, "terok/terok.svg")
	foreign := filepath.Join(dir, "terok/foreign")
	for _, path := range []string{logo, foreign} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, abstract := range []bool{false, true} {
		rules := reach.Watcher(dir, logo, abstract)
		confinetest.Refused(t, rules, "<"+logo)
		if err := rules.Do(func() error {
			_, err := os.ReadDir(filepath.Dir(logo))
			for _, path := range []string{logo, foreign, filepath.Join(dir, "new")} {
				if f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600); err == nil {
					f.Close()
					t.Errorf("it can write %s", path)
				}
			}
			if _, err := os.ReadFile(foreign); err == nil {
				t.Error("it can read others' files in the user's directory")
			}
			if err := os.Remove(logo); err == nil {
				t.Error("it can remove a file")
			}
			return err
		}); err != nil {
			t.Error(err)
		}
		if len(rules.Families) != 1 || len(rules.Caps)+len(rules.Connect)+len(rules.Bind) > 0 {
			t.Errorf("%+v", rules)
		}
	}
}

// pair are both ends of an opener's socket.
func pair(t *testing.T) (near, far int) {
	t.Helper()
	p, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return p[0], p[1]
}

// Whoever asks, and with whatever, has one terminal opened after the other.
func TestOpenerBounds(t *testing.T) {
	const pause = 50 * time.Millisecond
	near, far := pair(t)
	ours, err := packets(near)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := packets(far)
	if err != nil {
		t.Fatal(err)
	}
	var times []time.Time
	served := make(chan struct{})
	long := strings.Repeat("é", maxReply)
	go func() {
		defer close(served)
		serveOpener(theirs, func() error {
			times = append(times, time.Now())
			if len(times) == 1 {
				return errors.New(long)
			}
			return nil
		}, pause)
	}()
	o := newOpener(ours)
	if err := o.list(); err == nil || err.Error() != long[:maxReply] {
		t.Errorf("%v", err)
	}
	for range 3 {
		if err := o.list(); err != nil {
			t.Error(err)
		}
	}
	for i := range len(times) - 1 {
		if d := times[i+1].Sub(times[i]); d < pause {
			t.Errorf("%v between two terminals", d)
		}
	}
	if len(times) != 4 {
		t.Errorf("%d terminals", len(times))
	}
	o.part()
	receive(t, "end", served)
	theirs.Close()
	if err := o.list(); err != nil { // at the end there is nobody to be told
		t.Error(err)
	}

	// A flood, with content.
	near, far = pair(t)
	ours, _ = packets(near)
	theirs, _ = packets(far)
	defer theirs.Close()
	asked := make(chan struct{})
	go serveOpener(theirs, func() error { asked <- struct{}{}; return nil }, 0)
	for _, packets := range []int{1, 1000} {
		for range packets {
			if _, err := ours.Write([]byte("any text; touch x")); err != nil {
				t.Fatal(err)
			}
		}
		receive(t, "request", asked)
	}
	ours.Close()
}

// Only so many terminals are open.
func TestBounded(t *testing.T) {
	var ends []func()
	open := bounded(func(ended func()) error { ends = append(ends, ended); return nil })
	for range maxOpen {
		if err := open(); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := open(); !errors.Is(err, errManyOpen) {
			t.Error(err)
		}
		ends[0]()
		ends[0]() // which counts once
		if err := open(); err != nil {
			t.Error(err)
		}
		ends = ends[1:]
	}
}

// The opener is of no use to others.
func TestOpenerAlone(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", OpenerName)
	out, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); err == nil || code != 1 || !strings.HasPrefix(string(out), OpenerName+": file descriptor 3: ") {
		t.Errorf("exit %d: %s", code, out)
	}
}
