package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"golang.org/x/sys/unix"
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

// Bounds of how long an address can be learned for.
const (
	MinLearned = time.Second
	MaxLearned = ruleset.MaxLifetime
)

// learnAttempts is how often a change is tried that others keep from being
// carried out.
const learnAttempts = 8

// Learn puts addresses into the learned sets or renews them there, in one
// transaction and without a moment in which one of them is missing. More of
// them than a transaction holds are several, in their order.
func (c *Conn) Learn(all []Learned) error {
	var families [2][]ruleset.Element
	seen := make(map[netip.Addr]int, len(all)) // a message must not name an address twice
	for _, l := range all {
		if l.Timeout < MinLearned || l.Timeout > MaxLearned {
			return fmt.Errorf("learn %s: %v is not from %v to %v", l.Addr, l.Timeout, MinLearned, MaxLearned)
		}
		family, err := learnable(l.Addr)
		if err != nil {
			return fmt.Errorf("learn: %w", err)
		}
		if i, ok := seen[l.Addr]; ok {
			e := &families[family][i]
			e.Timeout = max(e.Timeout, l.Timeout)
			continue
		}
		seen[l.Addr] = len(families[family])
		families[family] = append(families[family], element(l.Addr, l.Timeout))
	}
	return c.alterLearned(families, false)
}

// Forget takes addresses out of the learned sets. That some are not there is
// no error.
func (c *Conn) Forget(addrs []netip.Addr) error {
	var families [2][]ruleset.Element
	seen := make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		family, err := learnable(a)
		if err != nil || seen[a] { // cannot be there
			continue
		}
		seen[a] = true
		families[family] = append(families[family], element(a, MinLearned))
	}
	return c.alterLearned(families, true)
}

func element(a netip.Addr, timeout time.Duration) ruleset.Element {
	return ruleset.Element{Range: ruleset.Range{From: a, To: a}, Timeout: timeout}
}

// learnable is the family of an address, 0 or 1, or why no name may open it.
func learnable(a netip.Addr) (family int, err error) {
	switch {
	case !a.IsValid() || a.Zone() != "" || a.Is4In6():
		return 0, fmt.Errorf("%.60q is not an address of a single host", a)
	case !ruleset.Learnable(a):
		return 0, fmt.Errorf("%s is private or special: no name may lead there", a)
	case a.Is6():
		return 1, nil
	}
	return 0, nil
}

// alterLearned adds and deletes, so that it does not matter what is there, and
// unless they are to go adds again: the kernel does not renew what is there.
func (c *Conn) alterLearned(families [2][]ruleset.Element, remove bool) error {
	sets := learnedSets()
	var r recorder
	for i := range sets {
		for chunk := range slices.Chunk(families[i], elementsPerMessage) {
			s, add, del := &sets[i], libraryElements(&sets[i], chunk, false), libraryElements(&sets[i], chunk, true)
			about := "learn " + chunk[0].From.String()
			if remove {
				about = "forget " + chunk[0].From.String()
			}
			r.add(about, func(c *nftables.Conn) error { return c.SetAddElements(librarySet(s, 0), add) })
			r.add(about, func(c *nftables.Conn) error { return c.SetDeleteElements(librarySet(s, 0), del) })
			if !remove {
				r.add(about, func(c *nftables.Conn) error { return c.SetAddElements(librarySet(s, 0), add) })
			}
		}
	}
	msgs, err := r.take()
	if err != nil {
		return err
	}
	group := 3
	if remove {
		group = 2
	}
	return c.send(msgs, group)
}

func learnedSets() [2]ruleset.Set {
	return [2]ruleset.Set{
		{Name: ruleset.Learned4, Expiring: true},
		{Name: ruleset.Learned6, V6: true, Expiring: true},
	}
}

// ForgetAll empties the learned sets.
func (c *Conn) ForgetAll() error {
	var r recorder
	for _, s := range learnedSets() {
		r.add("empty set "+s.Name, func(c *nftables.Conn) error { c.FlushSet(librarySet(&s, 0)); return nil })
	}
	msgs, err := r.take()
	if err != nil {
		return err
	}
	return c.send(msgs, len(msgs))
}

// send has messages carried out, group by group: what belongs together is in
// one transaction.
func (c *Conn) send(msgs []message, group int) error {
	if len(msgs) == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.s == nil {
		return errClosed
	}
	if size(msgs) > c.s.room(size(msgs)) {
		for part := range slices.Chunk(msgs, group) {
			if err := c.s.persist(part); err != nil {
				return err
			}
		}
		return nil
	}
	return c.s.persist(msgs)
}

// persist sends a batch until the kernel has carried it out, or says why not.
// Carrying it out twice is as good as once.
func (s *socket) persist(msgs []message) error {
	for attempt := 1; ; attempt++ {
		for family := range 2 {
			if _, err := s.learnedSet(family); err != nil {
				return err
			}
		}
		// ENOENT is tried again as well: kernels before 6.8 look at the clock
		// for each message, so an element can expire between its addition and
		// its deletion. Had a set gone, that is found above.
		err := s.batch(msgs)
		switch {
		case err == nil:
			return nil
		case !again(err) || attempt == learnAttempts:
			return explain(err)
		}
	}
}

// learnedSet is one of the sets without its elements. In one that has
// intervals, as only somebody else's table has it, an address would open all
// those above it.
func (s *socket) learnedSet(family int) (set ruleset.Set, err error) {
	set = learnedSets()[family]
	body := request(name(unix.NFTA_SET_TABLE, ruleset.TableName), name(unix.NFTA_SET_NAME, set.Name))
	err = s.get(&message{typ: unix.NFT_MSG_GETSET, body: body, about: "set " + set.Name}, func(_ uint16, f *fields) (err error) {
		set, err = decodeSet(f)
		return err
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return set, ErrNotLearning
	case err != nil:
		return set, explain(err)
	case set.Interval || !set.Expiring || set.V6 != (family == 1):
		return set, foreign("set %s is not of single addresses that expire", set.Name)
	}
	return set, nil
}

// Learned are the addresses in the learned sets. While the kernel enlarges a
// set in the background, moments after thousands were added, some may be left
// out.
func (c *Conn) Learned() ([]Learned, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.s == nil {
		return nil, errClosed
	}
	var all []Learned
	for family := range 2 {
		set, err := c.s.learnedSet(family)
		if err != nil {
			return nil, err
		}
		switch _, err := c.s.listElements(&set); {
		case errors.Is(err, errChanged):
			return nil, ErrNotLearning // it went while it was read
		case err != nil:
			return nil, err
		}
		for _, e := range set.Elements {
			left := e.Expires
			if left == 0 {
				left = set.Lifetime(e)
			}
			all = append(all, Learned{Addr: e.From, Timeout: left})
		}
	}
	return all, nil
}

// Generation is a number that grows by one with every change of the
// namespace's whole ruleset, whoever makes it.
func (c *Conn) Generation() (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.s == nil {
		return 0, errClosed
	}
	var g uint32
	err := c.s.get(&message{typ: unix.NFT_MSG_GETGEN, about: "generation of the ruleset"}, func(_ uint16, f *fields) error {
		v := f.v[unix.NFTA_GEN_ID]
		if len(v) != 4 {
			return fmt.Errorf("generation of %d bytes", len(v))
		}
		g = binary.BigEndian.Uint32(v)
		return nil
	})
	return g, err
}
