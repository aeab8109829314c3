package varlink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Defaults of a Config.
const (
	MaxRequest     = 1 << 20 // bytes
	MaxConns       = 128
	MessageTimeout = 10 * time.Second
	WriteTimeout   = 10 * time.Second
)

const (
	maxReply   = MaxReply // bytes that a server sends: no more than a client takes
	maxGarbage = 16       // messages of one connection that are not JSON objects, before it is closed
)

// Config is what a Server is made of.
type Config struct {
	Info       Info
	Interfaces []Interface // besides org.varlink.service
	Log        *slog.Logger

	// Zero stands for the default.
	MaxRequest     int           // bytes of one call
	MaxConns       int           // at a time; more are refused
	MessageTimeout time.Duration // from the first byte of a call to its last
	WriteTimeout   time.Duration // for one reply, to a client that does not read
}

// Server serves interfaces to processes of its own user.
type Server struct {
	Config
	interfaces map[string]served
	peer       func(*net.UnixConn) (Peer, error)
}

type served struct {
	Interface
	methods map[string]Method
}

// NewServer checks that each interface's description says what its methods
// do. It starts nothing.
func NewServer(c Config) (*Server, error) {
	c.MaxRequest = cmp.Or(c.MaxRequest, MaxRequest)
	c.MaxConns = cmp.Or(c.MaxConns, MaxConns)
	c.MessageTimeout = cmp.Or(c.MessageTimeout, MessageTimeout)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, WriteTimeout)
	s := &Server{Config: c, interfaces: make(map[string]served), peer: ownPeer}
	for _, i := range append([]Interface{s.service()}, c.Interfaces...) {
		if err := i.Check(); err != nil {
			return nil, err
		}
		if _, ok := s.interfaces[i.Name]; ok {
			return nil, fmt.Errorf("interface %s is there twice", i.Name)
		}
		methods := make(map[string]Method)
		for _, m := range i.Methods {
			methods[m.name] = m
		}
		s.interfaces[i.Name] = served{i, methods}
	}
	return s, nil
}

// Serve answers whoever connects until ctx ends, which is not an error, or
// the listener fails. It closes the listener and all connections, and when it
// returns, all calls have ended. A method that panics is a defect and ends
// the process, as anywhere else.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	a := accepter{limit: s.MaxConns, log: s.Log, peer: s.peer}
	return a.run(ctx, l, func(ctx context.Context, conn *net.UnixConn, peer Peer) {
		h := &connection{Server: s, conn: conn, peer: peer, in: frames{conn: conn, limit: s.MaxRequest, wait: s.MessageTimeout}}
		if err := h.serve(ctx); err != nil && ctx.Err() == nil {
			s.Log.Debug("connection closed", "err", err, "pid", peer.PID)
		}
	})
}

// Accept is for servers that speak something else: it calls serve, each time
// in a goroutine of its own, for every process of our own user that connects,
// up to a number at a time. It does so until ctx ends, which is not an error,
// or the listener fails. It closes the listener and all connections, and when
// it returns, all calls of serve have.
func Accept(ctx context.Context, l net.Listener, limit int, log *slog.Logger, serve func(context.Context, *net.UnixConn, Peer)) error {
	return accepter{limit, log, ownPeer}.run(ctx, l, serve)
}

type accepter struct {
	limit int
	log   *slog.Logger
	peer  func(*net.UnixConn) (Peer, error)
}

func (a accepter) run(ctx context.Context, l net.Listener, serve func(context.Context, *net.UnixConn, Peer)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conns := connections{limit: a.limit, open: make(map[*net.UnixConn]bool)}
	wg.Go(func() {
		<-ctx.Done()
		l.Close()
		conns.close()
	})

	const minPause, maxPause = 5 * time.Millisecond, time.Second
	pause := minPause
	full := false
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case err != nil && passes(err):
			a.log.Warn("cannot accept a connection now", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			pause = min(2*pause, maxPause)
			continue
		case err != nil:
			return fmt.Errorf("accept connections: %w", err)
		}
		pause = minPause
		conn, ok := c.(*net.UnixConn)
		if !ok {
			c.Close()
			return fmt.Errorf("accept connections: %s is not a Unix socket", l.Addr())
		}
		peer, err := a.peer(conn)
		if err != nil {
			a.log.Warn("connection refused", "err", err)
			conn.Close()
			continue
		}
		if !conns.add(conn) {
			if !full {
				a.log.Warn("connection refused: too many", "limit", a.limit, "pid", peer.PID)
			}
			full = true
			conn.Close()
			continue
		}
		full = false
		wg.Go(func() {
			defer conns.remove(conn)
			serve(ctx, conn, peer)
		})
	}
}

// passes reports whether a failed accept is worth another try.
func passes(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// connections are those that are open.
type connections struct {
	limit int

	mu   sync.Mutex
	open map[*net.UnixConn]bool // nil when no more are taken
}

func (c *connections) add(conn *net.UnixConn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil || len(c.open) >= c.limit {
		return false
	}
	c.open[conn] = true
	return true
}

func (c *connections) remove(conn *net.UnixConn) {
	conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, conn)
}

func (c *connections) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		conn.Close()
	}
	c.open = nil
}

// connection is a client's. Its calls are carried out one after the other.
type connection struct {
	*Server
	conn    *net.UnixConn
	peer    Peer
	in      frames
	garbage int
}

var (
	errGarbage = errors.New("too many messages that are not JSON objects")
	errEnd     = errors.New("end of a stream")
	errHungUp  = errors.New("the client has closed its connection")
)

// serve carries out calls until the connection is at its end, and says why.
func (c *connection) serve(ctx context.Context) error {
	for {
		message, err := c.in.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = c.handle(ctx, message)
		}
		if err != nil {
			return err
		}
	}
}

// handle carries out one call. An error ends the connection.
func (c *connection) handle(ctx context.Context, message []byte) error {
	var r request
	if err := unmarshal(message, &r, true); err != nil {
		m, ok := asMismatch(err)
		if !ok || len(m.path) == 0 {
			// There is nobody to tell: it may be no call at all.
			if c.garbage++; c.garbage > maxGarbage {
				return errGarbage
			}
			return nil
		}
		return c.fail(r, &Error{Name: ProtocolViolation})
	}
	dot := strings.LastIndexByte(r.Method, '.')
	if dot < 0 || r.Oneway && r.More || r.Oneway && r.Upgrade || r.More && r.Upgrade {
		return c.fail(r, &Error{Name: ProtocolViolation})
	}
	i, ok := c.interfaces[r.Method[:dot]]
	if !ok {
		return c.fail(r, NewError(InterfaceNotFound, interfaceNotFound{r.Method[:dot]}))
	}
	m, ok := i.methods[r.Method[dot+1:]]
	switch {
	case !ok:
		return c.fail(r, NewError(MethodNotFound, methodNotFound{r.Method[dot+1:]}))
	case m.stream && !r.More:
		return c.fail(r, &Error{Name: ExpectedMore})
	case m.stream:
		return c.stream(ctx, i, m, r)
	default:
		return c.single(ctx, i, m, r)
	}
}

// single carries out a call with one reply.
func (c *connection) single(ctx context.Context, i served, m Method, r request) error {
	var broken error
	err := m.run(ctx, c.call(r), r.Parameters, func(out any) error {
		if r.Oneway {
			return nil
		}
		var err error
		err, broken = c.send(reply{}, out)
		return err
	})
	switch {
	case broken != nil:
		return broken
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return c.fail(r, c.failure(i, r, err))
	}
	return nil
}

// stream carries out a call with many replies, and looks after the client
// meanwhile.
func (c *connection) stream(ctx context.Context, i served, m Method, r request) error {
	ctx, cancel := context.WithCancelCause(ctx)
	watcher := make(chan struct{})
	go func() {
		defer close(watcher)
		if waitHangup(c.conn) == nil {
			cancel(errHungUp)
		}
	}()
	var broken error
	err := m.run(ctx, c.call(r), r.Parameters, func(out any) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if broken != nil {
			return broken
		}
		var err error
		err, broken = c.send(reply{Continues: true}, out)
		return cmp.Or(broken, err)
	})
	// These fail if the connection is closed, which ends the wait as well.
	_ = c.conn.SetReadDeadline(time.Unix(1, 0))
	<-watcher
	_ = c.conn.SetReadDeadline(time.Time{})
	ended := context.Cause(ctx)
	cancel(nil)
	switch {
	case broken != nil:
		return broken
	case ended != nil:
		return ended
	case err == nil:
		return errEnd
	}
	return c.fail(r, c.failure(i, r, err))
}

func (c *connection) call(r request) *Call {
	return &Call{Peer: c.peer, More: r.More, Oneway: r.Oneway}
}

// failure is the error reply for what a method returned. An error reply that
// its interface does not declare is a defect.
func (c *connection) failure(i served, r request, err error) *Error {
	var e *Error
	if errors.As(err, &e) && (declares(c.interfaces[service].Interface, e) || declares(i.Interface, e)) {
		return e
	}
	c.Log.Error("call failed", "method", quote(r.Method), "err", err, "pid", c.peer.PID)
	return &Error{Name: InternalServerError}
}

// fail sends an error reply, if the client takes replies.
func (c *connection) fail(r request, e *Error) error {
	if r.Oneway {
		return nil
	}
	return c.write(reply{Error: e.Name, Parameters: e.Parameters})
}

// send sends a reply with the parameters out. The first error says that they
// cannot be sent, the second that nothing can be sent any more.
func (c *connection) send(r reply, out any) (refused, broken error) {
	if r.Parameters, refused = marshalParameters(out); refused != nil {
		return refused, nil
	}
	if len(r.Parameters) > maxReply-1024 {
		return fmt.Errorf("reply has %d bytes", len(r.Parameters)), nil
	}
	return nil, c.write(r)
}

func (c *connection) write(r reply) error {
	b, err := marshal(r)
	if err != nil {
		return err
	}
	if err := c.conn.SetWriteDeadline(time.Now().Add(c.WriteTimeout)); err != nil {
		return fmt.Errorf("write reply: %w", err)
	}
	_, err = c.conn.Write(append(b, 0))
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return errHungUp
	}
	if err != nil {
		return fmt.Errorf("write reply: %w", err)
	}
	return nil
}

// ownPeer is the process at the other end of a connection. If that is not of
// our own user, the error is ErrForeign. Both uids are those of our user
// namespace.
func ownPeer(conn *net.UnixConn) (Peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *syscall.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, failed = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err := cmp.Or(err, failed); err != nil {
		return Peer{}, fmt.Errorf("who is at the other end of the socket: %w", err)
	}
	if uid := os.Geteuid(); int(cred.Uid) != uid {
		return Peer{}, fmt.Errorf("%w: process %d has uid %d, not %d", ErrForeign, cred.Pid, cred.Uid, uid)
	}
	return Peer{PID: int(cred.Pid), UID: int(cred.Uid), GID: int(cred.Gid)}, nil
}
