package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	clicks = 400
	// reflection is between a popup and the click: its id has to have arrived.
	reflection = 10 * time.Millisecond

	notificationsName = "org.freedesktop.Notifications"
	notificationsPath = "/org/freedesktop/Notifications"
)

// session is a session bus of our own.
func session(dir string) (address string, end func(), err error) {
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		return "", nil, fmt.Errorf("dbus-daemon is not here; scripts/deps installs it: %w", err)
	}
	dir, err = os.MkdirTemp(dir, "bus")
	if err != nil {
		return "", nil, err
	}
	socket, config := filepath.Join(dir, "bus"), filepath.Join(dir, "conf")
	text := `<busconfig><type>session</type><listen>unix:path=` + socket + `</listen><policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/><allow user="*"/></policy></busconfig>`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return "", nil, err
	}
	var said bytes.Buffer
	cmd := exec.Command("dbus-daemon", "--nofork", "--nopidfile", "--config-file="+config)
	cmd.Stderr = &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	end = func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	}
	for until := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return "unix:path=" + socket, end, nil
		}
		if time.Now().After(until) {
			end()
			return "", nil, fmt.Errorf("dbus-daemon does not listen: %s", said.Bytes())
		}
	}
}

// popups shows notifications, to us.
type popups struct {
	conn  *dbus.Conn
	shown chan popup
	last  atomic.Uint32
}

type popup struct {
	id      uint32
	summary string
}

// show begins to be the desktop of a bus.
func show(address string) (*popups, error) {
	ctx, cancel := context.WithCancel(context.Background()) // the connection ends with it
	timer := time.AfterFunc(patience, cancel)
	conn, err := dbus.Connect(address, dbus.WithContext(ctx))
	timer.Stop()
	if err != nil {
		cancel()
		return nil, fmt.Errorf("connect with dbus-daemon: %w", err)
	}
	p := &popups{conn: conn, shown: make(chan popup, 64)}
	err = conn.ExportMethodTable(map[string]any{
		"GetCapabilities":   func() ([]string, *dbus.Error) { return []string{"actions", "body", "body-markup"}, nil },
		"CloseNotification": func(uint32) *dbus.Error { return nil },
		"Notify":            p.notify,
	}, notificationsPath, notificationsName)
	if err == nil {
		_, err = conn.RequestName(notificationsName, dbus.NameFlagDoNotQueue)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return p, nil
}

func (p *popups) notify(_ string, old uint32, _, summary, _ string, _ []string, _ map[string]dbus.Variant, _ int32) (uint32, *dbus.Error) {
	if old == 0 {
		old = p.last.Add(1)
	}
	p.shown <- popup{old, summary}
	return old, nil
}

// says waits for a popup with a summary that begins so.
func (p *popups) says(summary string) (uint32, error) {
	for end := time.After(patience); ; {
		select {
		case s := <-p.shown:
			if strings.HasPrefix(s.summary, summary) {
				return s.id, nil
			}
		case <-end:
			return 0, fmt.Errorf("no popup says %q", summary)
		}
	}
}

// benchClick: from the signal that Allow was chosen, on a real bus, to the
// firewall: terok-clearance-notify --watch, the container's hub, the kernel.
func benchClick(open func(...string) (*guarded, error), dir string) (rows []row, err error) {
	address, end, err := session(dir)
	if err != nil {
		return nil, err
	}
	defer end()
	p, err := show(address)
	if err != nil {
		return nil, err
	}
	defer p.conn.Close()
	g, err := open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	var said bytes.Buffer
	watch := exec.Command(filepath.Join(build, "terok-clearance-notify"), "--watch")
	watch.Env = append(g.environ(), "DBUS_SESSION_BUS_ADDRESS="+address)
	watch.Stderr = &said
	watch.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := watch.Start(); err != nil {
		return nil, err
	}
	defer func() {
		_ = watch.Process.Kill() // it may have ended
		_ = watch.Wait()
		if err != nil && said.Len() > 0 {
			err = fmt.Errorf("%w; terok-clearance-notify: %s", err, said.Bytes())
		}
	}()
	from, err := g.sender()
	if err != nil {
		return nil, err
	}
	defer from.Close()
	changes, err := g.commits()
	if err != nil {
		return nil, err
	}
	defer unix.Close(changes.fd)
	var all []time.Duration
	for i := range clicks {
		to := destination(i)
		if _, err := from.WriteToUDPAddrPort([]byte("x"), to); err == nil {
			return nil, fmt.Errorf("a packet to %s was not blocked", to)
		}
		id, err := p.says("Blocked: " + to.String())
		if err != nil {
			return nil, err
		}
		time.Sleep(reflection)
		changes.drain()
		start := time.Now()
		if err := p.conn.Emit(notificationsPath, notificationsName+".ActionInvoked", id, "allow"); err != nil {
			return nil, err
		}
		at, err := changes.next()
		if err != nil {
			return nil, err
		}
		all = append(all, at.Sub(start))
		if _, err := p.says("Allowed: " + to.Addr().String()); err != nil { // its files are written, too
			return nil, err
		}
		if _, err := from.WriteToUDPAddrPort([]byte("x"), to); err != nil {
			return nil, fmt.Errorf("a packet to %s, which was allowed: %w", to, err)
		}
	}
	return []row{
		atMost("click → kernel, p50", quantile(all, .5), 10*time.Millisecond),
		atMost("click → kernel, p99", quantile(all, .99), 10*time.Millisecond),
	}, nil
}
