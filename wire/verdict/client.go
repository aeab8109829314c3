package verdict

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
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
	path  string
	ended context.Context // by Close
	end   context.CancelCauseFunc
	turn  chan struct{}   // holds one element while conn is in use
	conn  *varlink.Client // nil: none
}

// New is a client for the socket at a path. It does not connect yet.
func New(path string) *Client {
	c := &Client{path: path, turn: make(chan struct{}, 1)}
	c.ended, c.end = context.WithCancelCause(context.Background())
	return c
}

// Dial is New, and connects.
func Dial(ctx context.Context, path string) (*Client, error) {
	conn, err := varlink.Dial(ctx, path)
	if err != nil {
		return nil, err
	}
	c := New(path)
	c.conn = conn
	return c, nil
}

// Close ends the connection, and calls that are under way. The client is of no
// more use.
func (c *Client) Close() error {
	c.end(net.ErrClosed)
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	if c.conn == nil {
		return nil
	}
	err := c.conn.Close()
	c.conn = nil
	return err
}

// Apply has an answer carried out and returns the outcome. An error says that
// there is none: if it is ErrNotSent of package varlink, the answer was not
// carried out, otherwise that is not known. It is sent again, over a new
// connection, only if the kept one turned out to have ended.
func (c *Client) Apply(ctx context.Context, container, dest, action string) (ok bool, stderr string, err error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	defer context.AfterFunc(c.ended, func() { end(context.Cause(c.ended)) })()
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
	}
	if err := cmp.Or(context.Cause(ctx), context.Cause(c.ended)); err != nil {
		return false, "", fmt.Errorf("%w: %w", varlink.ErrNotSent, err)
	}
	in := applyIn{container, dest, action}
	kept := c.conn != nil
	out, err := c.apply(ctx, in)
	if kept && errors.Is(err, varlink.ErrNotSent) {
		out, err = c.apply(ctx, in)
	}
	if err != nil {
		return false, "", err
	}
	return out.OK, sanitize.String(out.Stderr, MaxStderr), nil
}

// apply is one attempt.
func (c *Client) apply(ctx context.Context, in applyIn) (out applyOut, err error) {
	if c.conn == nil {
		if c.conn, err = varlink.Dial(ctx, c.path); err != nil {
			c.conn = nil
			return out, fmt.Errorf("%w: %w", varlink.ErrNotSent, err)
		}
	}
	err = c.conn.Call(ctx, InterfaceName+".Apply", in, &out)
	if _, answered := errors.AsType[*varlink.Error](err); err != nil && !answered {
		c.conn.Close()
		c.conn = nil
	}
	return out, err
}
