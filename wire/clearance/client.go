package clearance

import (
	"context"
	"errors"
	"fmt"

	"github.com/terok-ai/terok-box/wire/varlink"
)

// ErrReply says that a hub answered with what cannot be.
var ErrReply = errors.New("the hub gives an impossible answer")

// maxReply bounds what a hub sends, in bytes: more than an event takes that had
// a line of package event to come from.
const maxReply = 1 << 20

// Client asks one hub. It is safe for concurrent use; its calls wait for each
// other, and a subscription is a call until its end: verdicts need another
// Client. After an error that is not one of this package's it is of no more
// use: connect again.
type Client struct{ conn *varlink.Client }

// Dial connects to the socket at a path. The hub must be of our own user.
func Dial(ctx context.Context, path string) (*Client, error) {
	conn, err := varlink.Dialer{MaxReply: maxReply}.Dial(ctx, path)
	if err != nil {
		return nil, err
	}
	return &Client{conn}, nil
}

// PID is the hub's process, as it was when it began to listen.
func (c *Client) PID() int { return c.conn.Peer().PID }

// Close ends the connection, and calls that are under way.
func (c *Client) Close() error { return c.conn.Close() }

// Subscribe calls f with every event from now on, until ctx ends, the hub
// does, or f fails, and returns why. The connection serves for nothing else
// meanwhile and is closed afterwards.
func (c *Client) Subscribe(ctx context.Context, f func(Event) error) error {
	for out, err := range varlink.Stream[subscribeOut](ctx, c.conn, InterfaceName+".Subscribe", nil) {
		if err != nil {
			return err
		}
		if err := f(out.Event.clean()); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: the subscription has an end", ErrReply)
}

// Verdict sends an answer. It returns nil if it was carried out, and
// UnknownRequest, TupleMismatch, InvalidAction or ShieldFailed if the hub says
// so.
func (c *Client) Verdict(ctx context.Context, r Request) error {
	var out verdictOut
	if err := c.conn.Call(ctx, InterfaceName+".Verdict", r, &out); err != nil {
		return failure(err)
	}
	if !out.OK {
		return fmt.Errorf("%w: the verdict failed for no reason", ErrReply)
	}
	return nil
}

// failure is what an error reply stands for.
func failure(err error) error {
	e, ok := errors.AsType[*varlink.Error](err)
	if !ok {
		return err
	}
	switch e.Name {
	case InterfaceName + "." + unknownRequest:
		var f UnknownRequest
		if e.Decode(&f) == nil {
			return f.clean()
		}
	case InterfaceName + "." + tupleMismatch:
		var f TupleMismatch
		if e.Decode(&f) == nil {
			return f.clean()
		}
	case InterfaceName + "." + invalidAction:
		var f InvalidAction
		if e.Decode(&f) == nil {
			return f.clean()
		}
	case InterfaceName + "." + shieldFailed:
		var f ShieldFailed
		if e.Decode(&f) == nil {
			return f.clean()
		}
	}
	return err
}
