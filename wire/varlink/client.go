package varlink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"syscall"
	"time"
)

// MaxReply bounds a reply, in bytes, by default.
const MaxReply = 16 << 20

// Errors of a Client, besides *Error and those of the context and system.
var (
	ErrForeign  = errors.New("the process at the other end belongs to another user")
	ErrNotSent  = errors.New("the call was not sent, so it was not carried out")
	ErrHungUp   = errors.New("the server has closed the connection")
	ErrProtocol = errors.New("the server does not keep to the protocol")
	ErrUnusable = errors.New("the connection was given up with an earlier call; connect again")
)

// Client is a connection to a server. It is safe for concurrent use; calls
// wait for each other, and a stream is a call until its end.
//
// When a call fails other than with an *Error, what comes next over the
// connection is not known, so it is closed. To connect again is the caller's
// business.
type Client struct {
	conn   net.Conn
	peer   Peer
	in     frames
	turn   chan struct{} // holds one element while a call is under way
	broken bool          // owned by whose turn it is
}

// Dialer says how to connect.
type Dialer struct {
	MaxReply int // bytes of a reply; 0: MaxReply

	peer func(*net.UnixConn) (Peer, error) // nil: ownPeer
}

// Dial connects to the socket at a path, which may be longer than a socket's
// address, with the default settings.
func Dial(ctx context.Context, path string) (*Client, error) { return Dialer{}.Dial(ctx, path) }

// Dial connects to the socket at a path. The server must be of our own user,
// or the error is ErrForeign.
func (d Dialer) Dial(ctx context.Context, path string) (*Client, error) {
	conn, peer, err := d.connect(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", quote(path), err)
	}
	return &Client{
		conn: conn,
		peer: peer,
		in:   frames{conn: conn, limit: cmp.Or(d.MaxReply, MaxReply)},
		turn: make(chan struct{}, 1),
	}, nil
}

// Connect connects to the socket at a path as Dial does, for what is not
// varlink.
func Connect(ctx context.Context, path string) (*net.UnixConn, Peer, error) {
	conn, peer, err := Dialer{}.connect(ctx, path)
	if err != nil {
		return nil, Peer{}, fmt.Errorf("connect to %s: %w", quote(path), err)
	}
	return conn, peer, nil
}

func (d Dialer) connect(ctx context.Context, path string) (*net.UnixConn, Peer, error) {
	conn, err := dial(ctx, path)
	if err != nil {
		return nil, Peer{}, err
	}
	if d.peer == nil {
		d.peer = ownPeer
	}
	peer, err := d.peer(conn)
	if err != nil {
		conn.Close()
		return nil, Peer{}, err
	}
	return conn, peer, nil
}

// Peer is the server.
func (c *Client) Peer() Peer { return c.peer }

// Close closes the connection, which ends calls that are under way.
func (c *Client) Close() error { return c.conn.Close() }

// Call calls a method. in is a struct with its parameters, or nil; out points
// to a struct for those of the reply, which must be exactly its fields, or is
// nil if there are none. An error reply is an *Error. ctx ends the call, and
// the connection with it, at once.
func (c *Client) Call(ctx context.Context, method string, in, out any) error {
	if out == nil {
		out = &struct{}{}
	}
	for err := range c.exchange(ctx, method, in, out, false) {
		if err != nil {
			return err
		}
	}
	return nil
}

// Info is what the server tells about itself, and the names of its interfaces.
func (c *Client) Info(ctx context.Context) (Info, []string, error) {
	var out info
	if err := c.Call(ctx, service+".GetInfo", nil, &out); err != nil {
		return Info{}, nil, err
	}
	return Info{out.Vendor, out.Product, out.Version, out.URL}, out.Interfaces, nil
}

// Stream calls a method that has many replies and yields them as they come.
// An error is the last thing it yields. Whoever stops before the end closes
// the connection.
func Stream[Out any](ctx context.Context, c *Client, method string, in any) iter.Seq2[Out, error] {
	return func(yield func(Out, error) bool) {
		var out Out
		for err := range c.exchange(ctx, method, in, &out, true) {
			result := out
			var none Out
			out = none // the next reply shares nothing with this one
			if err != nil {
				result = none
			}
			if !yield(result, err) {
				return
			}
		}
	}
}

// exchange sends a call and yields an error or nil for each reply, with the
// reply's parameters in what out points to.
func (c *Client) exchange(ctx context.Context, method string, in, out any, more bool) iter.Seq[error] {
	return func(yield func(error) bool) {
		select {
		case c.turn <- struct{}{}:
			defer func() { <-c.turn }()
		case <-ctx.Done():
			yield(fmt.Errorf("%s: %w", quote(method), context.Cause(ctx)))
			return
		}
		if c.broken {
			yield(fmt.Errorf("%s: %w", quote(method), ErrUnusable))
			return
		}
		parameters, err := marshalParameters(in)
		var message []byte
		if err == nil {
			message, err = marshal(request{Method: method, Parameters: parameters, More: more})
		}
		if err != nil {
			yield(fmt.Errorf("%s: %w", quote(method), err))
			return
		}

		// From here on the connection is good again only when the last reply
		// was read.
		c.broken = true
		interrupted := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(interrupted)
			c.conn.SetDeadline(time.Unix(1, 0))
		})
		defer func() {
			if !stop() {
				<-interrupted
				c.conn.SetDeadline(time.Time{})
			}
			if c.broken {
				c.conn.Close()
			}
		}()

		err = c.write(message)
		for err == nil {
			var last bool
			last, err = c.receive(out, more)
			c.broken = !last
			if err == nil && (!yield(nil) || last) {
				return
			}
		}
		if _, ok := errors.AsType[*Error](err); !ok {
			c.broken = true
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
		}
		yield(fmt.Errorf("%s: %w", quote(method), err))
	}
}

func (c *Client) write(message []byte) error {
	if c.in.pending() {
		return fmt.Errorf("%w: it speaks without being asked", ErrProtocol)
	}
	// Whatever part of it was sent, its end was not.
	if _, err := c.conn.Write(append(message, 0)); err != nil {
		return fmt.Errorf("%w: %w", ErrNotSent, closed(err))
	}
	return nil
}

// receive reads one reply; last says that no more belong to the call.
func (c *Client) receive(out any, more bool) (last bool, err error) {
	message, err := c.in.next()
	if errors.Is(err, errTooLong) {
		return false, fmt.Errorf("%w: reply over %d bytes", ErrProtocol, c.in.limit)
	}
	if err != nil {
		return false, closed(err)
	}
	var r reply
	if err := unmarshal(message, &r, false); err != nil {
		return false, fmt.Errorf("%w: reply: %w", ErrProtocol, err)
	}
	switch {
	case r.Continues && (r.Error != "" || !more):
		return false, fmt.Errorf("%w: a reply that cannot continue does", ErrProtocol)
	case r.Error != "":
		e := &Error{Name: r.Error}
		if string(r.Parameters) != "{}" {
			e.Parameters = append(e.Parameters, r.Parameters...)
		}
		return true, e
	}
	if err := unmarshalParameters(r.Parameters, out); err != nil {
		return false, fmt.Errorf("%w: parameters of a reply: %w", ErrProtocol, err)
	}
	return !r.Continues, nil
}

// closed replaces the ways in which the system says that the other end of a
// connection is gone.
func closed(err error) error {
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, e) {
			return ErrHungUp
		}
	}
	return err
}
