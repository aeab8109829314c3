package shielded

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
)

const (
	// answerTimeout is for a supervisor to say that it is there.
	answerTimeout = time.Second
	// grace is how much longer than the supervisor has for a request its
	// answer is waited for.
	grace = time.Second
)

// Errors of Supervisor, besides those of a supervisor that is silent.
var (
	ErrNone = errors.New("the container has no supervisor")
	ErrDead = errors.New("the container's supervisor has ended")
	// ErrOther says that it works on another network namespace, as when the
	// container in charge of this one was started anew.
	ErrOther = errors.New("the container's supervisor works on another network")
)

// Supervisor connects to the process that asks an operator about what the
// container's firewall blocks, and has it say how it is.
func (c Container) Supervisor(ctx context.Context) (*control.Client, control.Status, error) {
	s, err := c.recorded()
	switch {
	case err != nil:
		return nil, control.Status{}, err
	case s.Control == "":
		return nil, control.Status{}, ErrNone
	case !s.Alive():
		return nil, control.Status{}, ErrDead
	}
	netNS, err := c.netNS()
	if err != nil {
		return nil, control.Status{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	client, err := control.Dial(ctx, s.Control)
	if err != nil {
		return nil, control.Status{}, fmt.Errorf("reach the container's supervisor: %w", err)
	}
	status, err := client.Status(ctx)
	switch {
	case err != nil:
		err = fmt.Errorf("the container's supervisor does not answer: %w", err)
	case status.NetNS != netNS:
		err = ErrOther
	}
	if err != nil {
		client.Close()
		return nil, control.Status{}, err
	}
	return client, status, nil
}

// recorded is the supervisor as it stands in the state directory.
func (c Container) recorded() (bundle.Supervisor, error) {
	b, err := bundle.Open(c.Dir)
	if err != nil {
		return bundle.Supervisor{}, err
	}
	s, err := b.Supervisor()
	return s, errors.Join(err, b.Close())
}

// netNS is the container's network namespace.
func (c Container) netNS() (string, error) {
	if c.NetNS != "" {
		return c.NetNS, nil
	}
	ns, err := netns.Open(c.PID)
	if err != nil {
		return "", fmt.Errorf("container %s: %w", c.Name, err)
	}
	id, err := ns.ID()
	return id.String(), errors.Join(err, ns.Close())
}

// ask has the container's supervisor carry out a request. ok is false if there
// is none that answers; then the request is not carried out any more, if it
// was not already.
func (c Container) ask(ctx context.Context, req control.Request) (resp control.Response, ok bool) {
	client, _, err := c.Supervisor(ctx)
	if err != nil {
		return resp, false
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, lockTimeout+grace)
	defer cancel()
	req.Until = time.Now().Add(lockTimeout)
	resp, err = client.Perform(ctx, req)
	return resp, err == nil
}
