package verdict

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/terok-ai/terok-box/wire/sanitize"
	"github.com/terok-ai/terok-box/wire/varlink"
)

// Timeout bounds one Apply. The server's own bound on carrying an answer out
// is 10 s.
const Timeout = 12 * time.Second

// Client has answers carried out. It keeps its connection, and makes a new one
// when it needs it. It is safe for concurrent use; calls wait for each other.
type Client struct {
	path string
	turn chan struct{} // holds one element while a call is under way

	mu   sync.Mutex // guards conn, for Close
	conn *varlink.Client
}

// New is a client for the socket at a path. It does not connect yet.
func New(path string) *Client { return &Client{path: path, turn: make(chan struct{}, 1)} }

// Dial is New, and connects.
func Dial(ctx context.Context, path string) (*Client, error) {
	c := New(path)
	if _, err := c.connection(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// connection is the one that is kept, or a new one.
func (c *Client) connection(ctx context.Context) (*varlink.Client, error) {
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn != nil {
		return conn, nil
	}
	conn, err := varlink.Dial(ctx, c.path)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = conn
	return conn, nil
}

// Close ends the connection, and the call that is under way. The next call
// makes another one.
func (c *Client) Close() error {
	c.mu.Lock()
	conn := c.conn
	c.conn = nil
	c.mu.Unlock()
	if conn == nil {
		return nil
	}
	return conn.Close()
}

// Apply has an answer carried out and returns the outcome. It is asked for a
// second time, over a new connection, only if the first was certainly not
// heard. With an error the outcome is not known, unless it is ErrNotSent of
// package varlink.
func (c *Client) Apply(ctx context.Context, container, dest, action string) (ok bool, stderr string, err error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return false, "", errors.Join(varlink.ErrNotSent, context.Cause(ctx))
	}
	in := applyIn{container, dest, action}
	out, kept, err := c.apply(ctx, in)
	if kept && errors.Is(err, varlink.ErrNotSent) {
		out, _, err = c.apply(ctx, in)
	}
	return out.OK, sanitize.String(out.Stderr, MaxStderr), err
}

// apply is one attempt; kept says that it used a connection that was there.
func (c *Client) apply(ctx context.Context, in applyIn) (out applyOut, kept bool, err error) {
	c.mu.Lock()
	kept = c.conn != nil
	c.mu.Unlock()
	conn, err := c.connection(ctx)
	if err != nil {
		return applyOut{}, kept, errors.Join(varlink.ErrNotSent, err)
	}
	err = conn.Call(ctx, InterfaceName+".Apply", in, &out)
	if _, answered := errors.AsType[*varlink.Error](err); err != nil && !answered {
		c.Close()
	}
	return out, kept, err
}
