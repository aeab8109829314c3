package event

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/terok-ai/terok-box/wire/varlink"
)

// Timeout bounds how long connecting to a hub may take, and sending to it.
const Timeout = 500 * time.Millisecond

// rest is how long nothing is sent to a hub that did not read.
const rest = time.Second

// ErrBusy says that a hub takes no more events for now.
var ErrBusy = errors.New("the hub does not read its events")

// Emitter sends events to a hub over one connection, which it makes when it
// needs it. A hub that does not read delays it by Timeout once a second at
// most. It is safe for concurrent use.
type Emitter struct {
	paths []string

	mu   sync.Mutex
	conn *net.UnixConn // nil: none
	busy time.Time     // when the hub did not read
}

// NewEmitter is for the hub at the first of the paths where one answers. It
// does not connect yet.
func NewEmitter(paths ...string) *Emitter { return &Emitter{paths: paths} }

// Send sends an event. If the connection had ended it makes another one, once.
// The hub must be of our own user. Without an error the hub has it, as far as
// anybody can know: a hub does not answer.
func (e *Emitter) Send(ev Event) error {
	line, err := ev.Line()
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.busy.IsZero() && time.Since(e.busy) < rest {
		return ErrBusy
	}
	kept := e.conn != nil
	if err = e.write(line); err != nil && kept && !errors.Is(err, ErrBusy) {
		err = e.write(line)
	}
	return err
}

// write sends a line, over a new connection if there is none. An error ends
// the connection.
func (e *Emitter) write(line []byte) error {
	if e.conn == nil {
		if err := e.connect(); err != nil {
			return err
		}
	}
	err := e.conn.SetWriteDeadline(time.Now().Add(Timeout))
	if err == nil {
		_, err = e.conn.Write(line)
	}
	if err == nil {
		return nil
	}
	path := e.conn.RemoteAddr()
	e.conn.Close()
	e.conn = nil
	if errors.Is(err, os.ErrDeadlineExceeded) {
		e.busy = time.Now()
		return ErrBusy
	}
	return fmt.Errorf("send an event to %s: %w", path, err)
}

func (e *Emitter) connect() error {
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	all := errors.New("no hub takes events")
	for _, path := range e.paths {
		conn, _, err := varlink.Connect(ctx, path)
		if err == nil {
			e.conn = conn
			return nil
		}
		all = fmt.Errorf("%w; %w", all, err)
	}
	if ctx.Err() != nil {
		e.busy = time.Now()
		return ErrBusy
	}
	return all
}

// Close ends the connection. The next Send makes another one.
func (e *Emitter) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conn == nil {
		return nil
	}
	err := e.conn.Close()
	e.conn = nil
	return err
}

// Emit sends one event to the hub at the first of the paths where one answers.
func Emit(paths []string, ev Event) error {
	e := NewEmitter(paths...)
	return errors.Join(e.Send(ev), e.Close())
}
