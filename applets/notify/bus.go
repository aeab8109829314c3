package notify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	busName      = "org.freedesktop.DBus"
	busPath      = "/org/freedesktop/DBus"
	busInterface = "org.freedesktop.DBus"

	// maxCalls bounds the calls that wait for an answer, also those that
	// nobody is interested in any more.
	maxCalls = 32
	// lateTimeout is how long an answer may take to be of any use.
	lateTimeout = time.Minute
	// warnPause is the least time between two warnings of a kind.
	warnPause = time.Minute
)

// errSilent says that the bus or a service does not answer.
var errSilent = errors.New("the desktop does not answer")

// bus is a connection to the session's bus. What the library reads it hands to
// DeliverSignal, in order; that and the answers to calls are put in order by
// their sequence numbers.
type bus struct {
	desktop *Desktop
	conn    *dbus.Conn
	calls   chan struct{} // holds one element for each call

	mu       sync.Mutex
	services []*service
	deaf     bool // no signals come
	in       bool // the notifier uses it
	warned   map[string]time.Time
}

func newBus(d *Desktop) *bus {
	b := &bus{desktop: d, calls: make(chan struct{}, maxCalls), warned: make(map[string]time.Time)}
	b.services = []*service{newService(b, notifications{}), newService(b, portal{})}
	return b
}

// LookupObject is for the library: we have no objects for others to call.
func (b *bus) LookupObject(dbus.ObjectPath) (dbus.ServerObject, bool) { return nil, false }

// begin asks for what we want to hear of, and for who has the services' names.
// From here on it is known who speaks for them.
func (b *bus) begin(ctx context.Context) error {
	if name := b.desktop.Name; name != "" {
		const doNotQueue, primary, already = 4, 1, 4
		var got uint32
		if err := b.call(ctx, busName, busPath, busInterface+".RequestName", name, uint32(doNotQueue)).Store(&got); err != nil {
			return fmt.Errorf("own the name %s: %w", name, err)
		}
		if got != primary && got != already {
			return ErrRunning
		}
	}
	for _, s := range b.services {
		// Values are in quotation marks: dbus-broker insists. The sender is not
		// in the rule, but looked at: see heard.
		rules := []string{
			rule("sender", busName, "interface", busInterface, "member", "NameOwnerChanged", "path", busPath, "arg0", s.name()),
			rule("interface", s.face(), "path", s.path()),
		}
		for _, r := range rules {
			if err := b.call(ctx, busName, busPath, busInterface+".AddMatch", r).Err; err != nil {
				if ctx.Err() != nil || b.conn.Context().Err() != nil {
					return err
				}
				b.warn("the bus does not let us hear what is chosen: popups have no buttons", "err", err)
				b.mu.Lock()
				b.deaf = true
				b.mu.Unlock()
			}
		}
		var owner string
		call := b.call(ctx, busName, busPath, busInterface+".GetNameOwner", s.name())
		switch err := call.Store(&owner); {
		case err == nil, absent(err):
			b.mu.Lock()
			s.owned(owner, call.ResponseSequence)
			b.mu.Unlock()
		case ctx.Err() != nil || b.conn.Context().Err() != nil:
			return err
		}
	}
	return nil
}

// rule is a match rule for signals, of keys and values in turn.
func rule(pairs ...string) string {
	var r strings.Builder
	r.WriteString("type='signal'")
	for i := 0; i < len(pairs); i += 2 {
		r.WriteString("," + pairs[i] + "='" + pairs[i+1] + "'")
	}
	return r.String()
}

// serviceUnknown is the error that nobody has a name, nor can be started.
const serviceUnknown = busInterface + ".Error.ServiceUnknown"

// absent says that nobody has a name, and that the bus cannot start anybody
// who would, or does not let us speak with them.
func absent(err error) bool {
	e, ok := errors.AsType[dbus.Error](err)
	if !ok {
		return false
	}
	kind, ok := strings.CutPrefix(e.Name, busInterface+".Error.")
	return ok && (strings.HasPrefix(kind, "Spawn.") ||
		slices.Contains([]string{"ServiceUnknown", "NameHasNoOwner", "TimedOut", "AccessDenied"}, kind))
}

// ignorant says that a service does not know a method, or not of that form.
func ignorant(err error) bool {
	e, ok := errors.AsType[dbus.Error](err)
	if !ok {
		return false
	}
	kind, ok := strings.CutPrefix(e.Name, busInterface+".Error.")
	return ok && (strings.HasPrefix(kind, "Unknown") || slices.Contains([]string{"NoSuchObject", "InvalidArgs", "NotSupported"}, kind))
}

// call calls a method and waits for the answer, or for ctx. There is always a
// result, whose Err says what went wrong.
func (b *bus) call(ctx context.Context, name, path, method string, args ...any) *dbus.Call {
	done, err := b.start(ctx, name, path, method, args...)
	if err != nil {
		return &dbus.Call{Err: err}
	}
	select {
	case c := <-done:
		return c
	case <-ctx.Done():
		return &dbus.Call{Err: fmt.Errorf("%w: %w", errSilent, ctx.Err())}
	}
}

// start calls a method; the answer comes some time, or an error.
func (b *bus) start(ctx context.Context, name, path, method string, args ...any) (<-chan *dbus.Call, error) {
	select {
	case b.calls <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", errSilent, ctx.Err())
	case <-b.conn.Context().Done():
		return nil, dbus.ErrClosed
	}
	ctx, cancel := context.WithTimeout(b.conn.Context(), lateTimeout)
	answered, done := make(chan *dbus.Call, 1), make(chan *dbus.Call, 1)
	b.conn.Object(name, dbus.ObjectPath(path)).GoWithContext(ctx, method, 0, answered, args...)
	go func() {
		c := <-answered
		cancel()
		<-b.calls
		done <- c
	}()
	return done, nil
}

// send calls a method whose answer is of no interest.
func (b *bus) send(name, path, method string, args ...any) error {
	return b.conn.Object(name, dbus.ObjectPath(path)).Go(method, dbus.FlagNoReplyExpected|dbus.FlagNoAutoStart, nil, args...).Err
}

// notify shows a popup with the first service that there is.
func (b *bus) notify(ctx context.Context, p Popup) (uint32, error) {
	for _, s := range b.services {
		switch ready, err := s.ready(ctx); {
		case err != nil:
			return 0, err
		case ready:
			return s.notify(ctx, p)
		}
	}
	return 0, nil
}

// close takes a popup away.
func (b *bus) close(id uint32) error {
	b.mu.Lock()
	var of *service
	for _, s := range b.services {
		if _, ok := s.popups[id]; ok {
			delete(s.popups, id)
			of = s
		}
	}
	b.mu.Unlock()
	if of == nil {
		return nil
	}
	return of.close(id)
}

// DeliverSignal takes a signal from the library.
func (b *bus) DeliverSignal(face, member string, sig *dbus.Signal) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if face == busInterface && sig.Sender == busName { // the bus lets nobody else use that
		if member != "NameOwnerChanged" || len(sig.Body) != 3 {
			return
		}
		name, _ := sig.Body[0].(string)
		owner, _ := sig.Body[2].(string)
		for _, s := range b.services {
			if s.name() == name {
				s.owned(owner, sig.Sequence)
			}
		}
		return
	}
	for _, s := range b.services {
		if face == s.face() && string(sig.Path) == s.path() {
			s.heard(member, sig)
		}
	}
}

// announce says that popups can be seen as soon as somebody shows them.
func (b *bus) announce() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.in = true
	for _, s := range b.services {
		if s.owner != "" {
			b.available()
			return
		}
	}
}

func (b *bus) available() {
	d := b.desktop
	d.mu.Lock()
	f := d.available
	d.mu.Unlock()
	if b.in && f != nil {
		d.post(f)
	}
}

// tidy takes away what an earlier connection has left with a service that is
// still the same: nobody would hear what is chosen there.
func (b *bus) tidy() {
	d := b.desktop
	d.mu.Lock()
	stale := d.stale
	d.stale = nil
	d.mu.Unlock()
	for id, owner := range stale {
		for _, s := range b.services {
			b.mu.Lock()
			same := s.owner == owner
			b.mu.Unlock()
			if same {
				_ = s.close(id) // an error ends the connection, which is noticed
			}
		}
	}
}

// end tells that all popups are gone.
func (b *bus) end() {
	b.conn.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	stale := make(map[uint32]string)
	for _, s := range b.services {
		for id := range s.popups {
			stale[id] = s.owner
		}
		s.vanish()
	}
	b.desktop.mu.Lock()
	b.desktop.stale = stale
	b.desktop.mu.Unlock()
}

// warn logs what others can cause as often as they like.
func (b *bus) warn(what string, args ...any) {
	if now := time.Now(); now.Sub(b.warned[what]) >= warnPause {
		b.warned[what] = now
		b.desktop.Log.Warn(what, args...)
	}
}
