package control

import (
	"context"
	"errors"
	"fmt"

	"github.com/terok-ai/terok-box/wire/varlink"
)

// ErrReply says that the process answered with what cannot be.
var ErrReply = errors.New("the container's supervisor gives an impossible answer")

// ErrRequest says that a request is none that a supervisor takes. It was not
// sent.
var ErrRequest = errors.New("not a request for a container's supervisor")

// Client asks the supervisor of one container. It is safe for concurrent use;
// its calls wait for each other. After an error other than ErrRequest and a
// *varlink.Error it is of no more use: connect again.
type Client struct{ conn *varlink.Client }

// Dial connects to the socket at a path. The process must be of our own user.
func Dial(ctx context.Context, path string) (*Client, error) {
	conn, err := varlink.Dial(ctx, path)
	if err != nil {
		return nil, err
	}
	return &Client{conn}, nil
}

// PID is the process, as it was when it began to listen.
func (c *Client) PID() int { return c.conn.Peer().PID }

// Close ends the connection, and calls that are under way, which the process
// carries out all the same.
func (c *Client) Close() error { return c.conn.Close() }

// Perform has a request carried out on the container that the supervisor is
// for; StateDir, PID and NetNS do not matter. An error says that there is no
// response: unless it is ErrRequest, the request may have been carried out.
func (c *Client) Perform(ctx context.Context, req Request) (Response, error) {
	in := performInOf(req)
	if wrong := in.check(); wrong != "" {
		return Response{}, fmt.Errorf("%w: its %s", ErrRequest, wrong)
	}
	var out performOut
	if err := c.conn.Call(ctx, InterfaceName+".Perform", in, &out); err != nil {
		return Response{}, err
	}
	o := out.Outcome
	if len(o.Applied) > maxApplied {
		return Response{}, fmt.Errorf("%w: %d addresses", ErrReply, len(o.Applied))
	}
	for i, a := range o.Applied {
		o.Applied[i] = printable(a)
	}
	if len(o.Applied) == 0 {
		o.Applied = nil
	}
	return Response{text(o.Error), printable(o.State), text(o.Detail), listing(o.Listing), o.Applied, text(o.Warning)}, nil
}

// Packets calls f with every packet that the container's firewall logs from
// now on, until ctx ends, the process does, or f fails, and returns why. The
// connection serves for nothing else meanwhile and is closed afterwards.
func (c *Client) Packets(ctx context.Context, f func(Packet) error) error {
	for out, err := range varlink.Stream[packetsOut](ctx, c.conn, InterfaceName+".Packets", nil) {
		if err != nil {
			return err
		}
		p, err := out.Packet.parse()
		if err != nil {
			return fmt.Errorf("%w: a packet: %s", ErrReply, printable(err.Error()))
		}
		if err := f(p); err != nil {
			return err
		}
	}
	return nil
}

// Status is for people and tests.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var out statusOut
	if err := c.conn.Call(ctx, InterfaceName+".Status", nil, &out); err != nil {
		return Status{}, err
	}
	return out.Status.clean(), nil
}
