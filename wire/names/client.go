package names

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/terok-ai/terok-box/wire/varlink"
)

// ErrReload says that the process could not read the lists again.
var ErrReload = errors.New("the lists of names could not be read again")

// ErrForget says that the process could not forget what it has learned: all of
// it, or some, may still be there.
var ErrForget = errors.New("what was learned from names could not be forgotten")

// ErrReply says that the process answered with what cannot be.
var ErrReply = errors.New("the process that finds the addresses of names gives an impossible answer")

// Client asks the process of one container. It is safe for concurrent use;
// its calls wait for each other. After an error other than ErrReload, ErrForget
// and a *varlink.Error it is of no more use: connect again.
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

// Close ends the connection, and calls that are under way.
func (c *Client) Close() error { return c.conn.Close() }

// call calls a method of the interface.
func (c *Client) call(ctx context.Context, method string, in, out any) error {
	return c.conn.Call(ctx, InterfaceName+"."+method, in, out)
}

// Names are the names that the container was answered with an address, the
// one that it asked for last first.
func (c *Client) Names(ctx context.Context, addr netip.Addr) ([]Name, error) {
	var out namesOut
	if err := c.call(ctx, "Names", namesIn{addr.String()}, &out); err != nil {
		return nil, err
	}
	if len(out.Names) > maxList {
		return nil, fmt.Errorf("%w: %d names of one address", ErrReply, len(out.Names))
	}
	for _, n := range out.Names {
		if err := checkName(n.Name); err != nil {
			return nil, err
		}
	}
	return out.Names, nil
}

// Addresses are those that the container can reach because of a name.
func (c *Client) Addresses(ctx context.Context, name string) ([]netip.Addr, error) {
	var out addressesOut
	if err := c.call(ctx, "Addresses", addressesIn{name}, &out); err != nil {
		return nil, err
	}
	return parseAddrs(out.Addresses)
}

// Reload has the lists of names read again. When it returns, what was learned
// only for names that are no longer allowed is closed. What the process finds
// wrong with the lists is an ErrReload.
func (c *Client) Reload(ctx context.Context) (Change, error) {
	var out reloadOut
	if err := c.call(ctx, "Reload", nil, &out); err != nil {
		var e *varlink.Error
		var failed reloadFailed
		if errors.As(err, &e) && e.Name == InterfaceName+".ReloadFailed" && e.Decode(&failed) == nil {
			return Change{}, fmt.Errorf("%w: %s", ErrReload, clean(failed.Reason, maxText))
		}
		return Change{}, err
	}
	if _, err := parseAddrs(out.Change.Removed); err != nil {
		return Change{}, err
	}
	return out.Change, nil
}

// Forget has the process forget what names were answered with. When it returns,
// the addresses that it returns are closed, unless they were learned again
// since. What the process finds wrong is an ErrForget.
func (c *Client) Forget(ctx context.Context) ([]netip.Addr, error) {
	var out forgetOut
	if err := c.call(ctx, "Forget", nil, &out); err != nil {
		var e *varlink.Error
		var failed forgetFailed
		if errors.As(err, &e) && e.Name == InterfaceName+".ForgetFailed" && e.Decode(&failed) == nil {
			return nil, fmt.Errorf("%w: %s", ErrForget, clean(failed.Reason, maxText))
		}
		return nil, err
	}
	return parseAddrs(out.Removed)
}

// Status is for people and tests.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var out statusOut
	if err := c.call(ctx, "Status", nil, &out); err != nil {
		return Status{}, err
	}
	s := out.Status
	s.Tier = printable(s.Tier)
	if len(s.Upstreams) > maxList {
		return Status{}, fmt.Errorf("%w: %d upstream servers", ErrReply, len(s.Upstreams))
	}
	for _, u := range s.Upstreams {
		if _, err := netip.ParseAddrPort(u); err != nil {
			return Status{}, fmt.Errorf("%w: upstream server %q", ErrReply, printable(u))
		}
	}
	return s, nil
}

// Watch calls f with every question from now on, until ctx ends, the process
// does, or f fails, and returns why. The connection serves for nothing else
// meanwhile and is closed afterwards.
func (c *Client) Watch(ctx context.Context, f func(Question) error) error {
	for out, err := range varlink.Stream[watchOut](ctx, c.conn, InterfaceName+".Watch", nil) {
		if err != nil {
			return err
		}
		q := out.Question
		if err := checkName(q.Name); err != nil {
			return err
		}
		if _, err := parseAddrs(q.Addresses); err != nil {
			return err
		}
		q.Time, q.Type, q.Verdict, q.Reason = printable(q.Time), printable(q.Type), printable(q.Verdict), printable(q.Reason)
		if err := f(q); err != nil {
			return err
		}
	}
	return nil
}

// checkName refuses a name that could not be shown. The root's is empty, or a
// dot.
func checkName(name string) error {
	if !isPrintable(name) {
		return fmt.Errorf("%w: name %q", ErrReply, printable(name))
	}
	return nil
}

func parseAddrs(list []string) ([]netip.Addr, error) {
	if len(list) > maxList {
		return nil, fmt.Errorf("%w: %d addresses", ErrReply, len(list))
	}
	addrs := make([]netip.Addr, 0, len(list))
	for _, s := range list {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return nil, fmt.Errorf("%w: address %q", ErrReply, printable(s))
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}
