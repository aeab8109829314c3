package notify

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/nl/confine/confinetest"
)

// deadline bounds what a test waits for and that has to come.
const deadline = 30 * time.Second

// The main goroutine keeps the main thread, as in the program itself.
func init() { runtime.LockOSThread() }

// TestMain is also the programs that tests start.
func TestMain(m *testing.M) {
	confinetest.Main()
	switch {
	case filepath.Base(os.Args[0]) == Name:
		os.Exit(Run(cmdenv.OS(), os.Args[1:]))
	case len(os.Args) > 1 && os.Args[1] == OpenerName:
		os.Exit(RunOpener(cmdenv.OS(), nil))
	}
	os.Exit(m.Run())
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not in %v", what, deadline)
		}
	}
}

func receive[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(deadline):
		t.Fatalf("%s: not in %v", what, deadline)
		panic("unreachable")
	}
}

// busDaemon is a session bus of a test's own: a real one.
type busDaemon struct {
	t    testing.TB
	dir  string
	uid  int // 0: ours
	stop func()
}

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path=%s</listen>
  <auth>EXTERNAL</auth>
  <servicedir>%s</servicedir>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
    <allow user="*"/>
  </policy>
</busconfig>
`

// newDaemon has a directory for a bus, which is not started.
func newDaemon(t testing.TB) *busDaemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "bus") // short: it is in socket addresses
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &busDaemon{t: t, dir: dir}
	for name, text := range map[string]string{"bus.conf": fmt.Sprintf(busConfig, b.socket(), dir)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func startBus(t testing.TB) *busDaemon {
	t.Helper()
	b := newDaemon(t)
	b.start()
	return b
}

func (b *busDaemon) socket() string { return filepath.Join(b.dir, "bus") }

func (b *busDaemon) vars() map[string]string {
	return map[string]string{"XDG_RUNTIME_DIR": b.dir, "XDG_DATA_HOME": b.dir, "XDG_DATA_DIRS": b.dir, "PATH": os.Getenv("PATH")}
}

func (b *busDaemon) start() {
	b.t.Helper()
	cmd := exec.Command("dbus-daemon", "--nofork", "--nopidfile", "--print-address", "--config-file="+filepath.Join(b.dir, "bus.conf"))
	cmd.Env = []string{"XDG_RUNTIME_DIR=" + b.dir, "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if b.uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(b.uid), Gid: uint32(b.uid)}
	}
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	started, stopped := make(chan error), make(chan bool)
	go func() {
		runtime.LockOSThread() // with whose end the daemon is killed
		started <- cmd.Start()
		<-stopped
	}()
	if err := <-started; err != nil {
		b.t.Fatalf("%v (scripts/deps installs it)", err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		cmd.Wait()
		b.t.Fatalf("dbus-daemon: %v: %q %s", err, line, errs.String())
	}
	b.stop = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
		close(stopped)
		os.Remove(b.socket())
	})
	b.t.Cleanup(b.stop)
}

// connect is somebody's connection to the bus, by the library alone.
func (b *busDaemon) connect() *dbus.Conn {
	b.t.Helper()
	c, err := dbus.Connect("unix:path=" + b.socket())
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return c
}

// call is a method call that a desktop was sent.
type call struct {
	Member    string
	Signature string
	Body      []any
	sender    string
	serial    uint32
}

// desktop is what shows popups, as a test wants it to.
type desktop struct {
	t    testing.TB
	conn *dbus.Conn

	mu    sync.Mutex
	calls []call
	last  uint32
	reply map[string]func(c call) []any // nil result: no answer
}

// abilities of usual desktops.
var usual = []string{"body", "body-markup", "actions", "persistence"}

// show begins to be the desktop of a bus. Unless that is changed it can do what
// is usual, and counts its popups.
func (b *busDaemon) show(name string, caps ...string) *desktop {
	b.t.Helper()
	d := &desktop{t: b.t, conn: b.connect()}
	d.reply = map[string]func(call) []any{
		"GetCapabilities":    func(call) []any { return []any{caps} },
		"CloseNotification":  func(call) []any { return []any{} },
		"RemoveNotification": func(call) []any { return []any{} },
		"AddNotification":    func(call) []any { return []any{} },
		"Get":                func(call) []any { return []any{dbus.MakeVariant(uint32(2))} },
		"Notify": func(c call) []any {
			if old := c.Body[1].(uint32); old != 0 {
				return []any{old}
			}
			d.last++
			return []any{d.last}
		},
	}
	messages := make(chan *dbus.Message, 4096)
	d.conn.Eavesdrop(messages)
	go func() {
		for m := range messages {
			if m.Type == dbus.TypeMethodCall {
				d.answer(m)
			}
		}
	}()
	d.own(name)
	return d
}

func (d *desktop) own(name string) {
	d.t.Helper()
	// The answer is not seen, as everything is given to the test.
	d.conn.BusObject().Go("org.freedesktop.DBus.RequestName", dbus.FlagNoReplyExpected, nil, name, uint32(0))
}

func (d *desktop) disown(name string) {
	d.conn.BusObject().Go("org.freedesktop.DBus.ReleaseName", dbus.FlagNoReplyExpected, nil, name)
}

func (d *desktop) answer(m *dbus.Message) {
	c := call{Body: m.Body, serial: m.Serial()}
	c.Member, _ = m.Headers[dbus.FieldMember].Value().(string)
	c.sender, _ = m.Headers[dbus.FieldSender].Value().(string)
	if s, ok := m.Headers[dbus.FieldSignature].Value().(dbus.Signature); ok {
		c.Signature = s.String()
	}
	d.mu.Lock()
	d.calls = append(d.calls, c)
	reply := d.reply[c.Member]
	var body []any
	if reply != nil {
		body = reply(c)
	}
	d.mu.Unlock()
	switch {
	case reply == nil: // no introspection, either
		d.fails(c, "org.freedesktop.DBus.Error.UnknownMethod")
	case body != nil && m.Flags&dbus.FlagNoReplyExpected == 0:
		d.replies(c, body...)
	}
}

func (d *desktop) replies(c call, body ...any) {
	m := &dbus.Message{Type: dbus.TypeMethodReply, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldReplySerial: dbus.MakeVariant(c.serial), dbus.FieldDestination: dbus.MakeVariant(c.sender),
	}}
	if len(body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
	}
	d.conn.Send(m, nil)
}

func (d *desktop) fails(c call, name string) {
	d.conn.Send(&dbus.Message{Type: dbus.TypeError, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldReplySerial: dbus.MakeVariant(c.serial), dbus.FieldDestination: dbus.MakeVariant(c.sender), dbus.FieldErrorName: dbus.MakeVariant(name),
	}}, nil)
}

// does sets what is answered to a method; f is called with the lock held.
func (d *desktop) does(member string, f func(c call) []any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reply[member] = f
}

// was are the calls of a method.
func (d *desktop) was(member string) []call {
	d.mu.Lock()
	defer d.mu.Unlock()
	var got []call
	for _, c := range d.calls {
		if c.Member == member {
			got = append(got, c)
		}
	}
	return got
}

func emit(conn *dbus.Conn, member string, body ...any) {
	conn.Emit("/org/freedesktop/Notifications", notificationsName+"."+member, body...)
}

func (d *desktop) choose(id uint32, key string) { emit(d.conn, "ActionInvoked", id, key) }
func (d *desktop) closes(id uint32, reason Reason) {
	emit(d.conn, "NotificationClosed", id, uint32(reason))
}

// open is a notifier for the bus.
func (b *busDaemon) open(c Config) *Desktop {
	if c.Vars == nil {
		c.Vars = b.vars()
	}
	d := New(c)
	b.t.Cleanup(d.Disconnect)
	return d
}

// heard is a popup whose functions tell.
func heard(p Popup) (Popup, <-chan string) {
	c := make(chan string, 100)
	p.Chosen = func(key string) { c <- "chosen " + key }
	p.Closed = func(r Reason) { c <- "closed " + r.String() }
	return p, c
}

func mustShow(t testing.TB, n Notifier, p Popup) uint32 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	id, err := n.Notify(ctx, p)
	if err != nil || id == 0 {
		t.Fatalf("id %d, %v", id, err)
	}
	return id
}

func quiet(t *testing.T, c <-chan string) {
	t.Helper()
	select {
	case s := <-c:
		t.Errorf("unexpected: %s", s)
	case <-time.After(50 * time.Millisecond):
	}
}
