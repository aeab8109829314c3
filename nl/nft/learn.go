package nft

import (
	"errors"
	"net/netip"
	"time"
)

// Learned is an address that a container may reach for some time, because it
// belongs to an allowed name.
type Learned struct {
	Addr    netip.Addr
	Timeout time.Duration // from now; of an answer of the kernel, what is left
}

// ErrNotLearning says that the table has no sets for learned addresses, as in
// quarantine, or that there is no table.
var ErrNotLearning = errors.New("the firewall takes no addresses of names now")

// Learn puts addresses into the learned sets or renews them there, in one
// transaction and without a moment in which one of them is missing.
func (c *Conn) Learn(all []Learned) error { return errors.New("not yet") }

// Forget takes addresses out of the learned sets. That some are not there is
// no error.
func (c *Conn) Forget(addrs []netip.Addr) error { return errors.New("not yet") }

// ForgetAll empties the learned sets.
func (c *Conn) ForgetAll() error { return errors.New("not yet") }

// Learned are the addresses in the learned sets.
func (c *Conn) Learned() ([]Learned, error) { return nil, errors.New("not yet") }

// Generation is a number that grows by one with every change of the
// namespace's whole ruleset, whoever makes it.
func (c *Conn) Generation() (uint32, error) { return 0, errors.New("not yet") }
