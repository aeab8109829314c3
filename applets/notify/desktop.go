package notify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/wire/oci"
)

const (
	// connectTimeout is for a bus to take us.
	connectTimeout = 5 * time.Second
	// lookPause is between looks whether there is a bus.
	lookPause = 2 * time.Second
	// pokePause is the least time between them.
	pokePause = 100 * time.Millisecond
	// maxEvents bounds what has happened to popups and was not told yet.
	maxEvents = 1024
)

// ErrRunning says that another program has the name that was to be ours alone.
var ErrRunning = errors.New("another program shows the questions of this session already")

// Config is what a Desktop is made of. All of it may be left out.
type Config struct {
	AppName string // what desktops call the program; "terok" if empty
	// Name is a name on the bus that only one program has at a time; where
	// another one has it, nothing is shown, and Taken is called.
	Name  string
	Taken func()
	Vars  map[string]string // environment variables; nil: the process's own
	Log   *slog.Logger
}

// Desktop is a notifier that shows popups on the desktop of the session, if
// there is one. It speaks with org.freedesktop.Notifications, or where only
// that exists with org.freedesktop.portal.Notification, over the session's bus,
// and follows both as they come and go:
//
//	           bus                 service
//	no bus ◄────────► no service ◄─────────► popups
//	  ▲                                        │ all are gone: Vanished
//	  └────────────────────────────────────────┘
type Desktop struct {
	Config
	env    *cmdenv.Env
	icons  icons
	ctx    context.Context
	cancel context.CancelFunc
	ended  sync.WaitGroup
	tried  chan struct{} // closed when it is known whether there is a bus
	poke   chan struct{}
	events chan func()

	portalIDs atomic.Uint32

	mu        sync.Mutex
	bus       *bus              // nil: there is none
	stale     map[uint32]string // popups of a lost connection, with who shows them
	available func()
}

// New is a notifier for the desktop of the session. It never fails: where there
// is no desktop, Notify returns 0.
func New(c Config) *Desktop {
	env := cmdenv.OS()
	if c.Vars != nil {
		env.Vars = c.Vars
	}
	if c.AppName == "" {
		c.AppName = "terok"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	d := &Desktop{
		Config: c, env: env, icons: icons{env: env},
		tried: make(chan struct{}), poke: make(chan struct{}, 1), events: make(chan func(), maxEvents),
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.ended.Go(d.follow)
	d.ended.Go(d.tell)
	return d
}

// Notify shows a popup. It takes as long as the desktop does, or ctx.
func (d *Desktop) Notify(ctx context.Context, p Popup) (uint32, error) {
	b, err := d.current(ctx)
	if b == nil {
		return 0, err
	}
	return b.notify(ctx, p.bounded())
}

// Close takes a popup away.
func (d *Desktop) Close(ctx context.Context, id uint32) error {
	b, err := d.current(ctx)
	if b == nil {
		return err
	}
	return b.close(id)
}

// OnAvailable has f called when popups can be seen that could not before: there
// is a desktop, or another one. It replaces the function of an earlier call.
func (d *Desktop) OnAvailable(f func()) {
	d.mu.Lock()
	d.available = f
	b := d.bus
	d.mu.Unlock()
	if b != nil {
		b.announce()
	}
}

// Disconnect ends the notifier. No function of a popup is called any more.
func (d *Desktop) Disconnect() {
	d.cancel()
	d.ended.Wait()
}

// current is the connection to the bus; nil if there is none.
func (d *Desktop) current(ctx context.Context) (*bus, error) {
	select {
	case <-d.tried:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-d.ctx.Done():
		return nil, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.bus == nil {
		select {
		case d.poke <- struct{}{}:
		default:
		}
	}
	return d.bus, nil
}

// tell calls the functions of popups, one after the other: they may use the
// notifier, so nobody waits for them.
func (d *Desktop) tell() {
	for {
		select {
		case f := <-d.events:
			if d.ctx.Err() == nil {
				f()
			}
		case <-d.ctx.Done():
			return
		}
	}
}

// post has a function called.
func (d *Desktop) post(f func()) {
	select {
	case d.events <- f:
	default:
		d.Log.Warn("more happens to popups than can be dealt with: left out")
	}
}

// follow keeps a connection to the bus for as long as there is one.
func (d *Desktop) follow() {
	for first := true; d.ctx.Err() == nil; first = false {
		b, err := d.connect()
		switch {
		case err == nil:
			d.mu.Lock()
			d.bus = b
			d.mu.Unlock()
		case errors.Is(err, ErrRunning):
			d.Log.Info("popups are not shown", "err", err)
			if d.Taken != nil {
				d.post(d.Taken)
			}
		default:
			d.Log.Debug("no popups", "err", err)
		}
		if first {
			close(d.tried)
		}
		if b != nil {
			b.tidy()
			b.announce()
			select {
			case <-b.conn.Context().Done():
				d.Log.Info("the session bus is gone")
			case <-d.ctx.Done():
			}
			d.mu.Lock()
			d.bus = nil
			d.mu.Unlock()
			b.end()
		}
		select {
		case <-d.ctx.Done():
			return
		case <-time.After(pokePause):
		}
		select {
		case <-d.ctx.Done():
		case <-time.After(lookPause):
		case <-d.poke:
		}
	}
}

// connect is a connection to the session's bus.
func (d *Desktop) connect() (*bus, error) {
	ctx, cancel := context.WithTimeout(d.ctx, connectTimeout)
	defer cancel()
	at, err := sockets(d.env)
	if err != nil {
		return nil, err
	}
	users, err := claims(d.env.EUID)
	if err != nil {
		return nil, err
	}
	for _, uid := range users {
		var b *bus
		if b, err = d.authenticate(ctx, at, uid); err == nil {
			return b, nil
		}
		if errors.Is(err, ErrRunning) || ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

// claims are the users that we may be to a bus, which sees the user outside of
// the user namespace that we may be in, or inside of it.
func claims(euid int) ([]int, error) {
	const maxMap = 1 << 20 // bytes
	f, err := os.Open("/proc/self/uid_map")
	if err != nil {
		return nil, fmt.Errorf("read the user id map: %w", err)
	}
	defer f.Close()
	uidMap, err := io.ReadAll(io.LimitReader(f, maxMap))
	if err != nil {
		return nil, fmt.Errorf("read the user id map: %w", err)
	}
	if outside := oci.HostUID(string(uidMap), euid); outside != euid {
		return []int{outside, euid}, nil
	}
	return []int{euid}, nil
}

// authenticate is a connection as one user, by the mechanism EXTERNAL.
func (d *Desktop) authenticate(ctx context.Context, sockets []string, uid int) (*bus, error) {
	raw, err := dial(ctx, sockets)
	if err != nil {
		return nil, err
	}
	end, _ := ctx.Deadline()
	_ = raw.SetReadDeadline(end) // fails when it is closed
	b := newBus(d)
	b.conn, err = dbus.NewConn(newStream(raw), dbus.WithContext(d.ctx), dbus.WithHandler(b), dbus.WithSignalHandler(b))
	if err != nil {
		raw.Close()
		return nil, err
	}
	if err = b.conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(uid))}); err == nil {
		err = b.conn.Hello()
	}
	if err == nil {
		err = b.begin(ctx)
	}
	if err != nil {
		b.conn.Close()
		return nil, fmt.Errorf("session bus, as user %d: %w", uid, err)
	}
	_ = raw.SetReadDeadline(time.Time{}) // fails when it is closed
	return b, nil
}
