package nft

import (
	"cmp"
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
	// New says that it is probably not there yet, which saves two thirds of
	// the kernel's work if it is so.
	New bool
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
// them than a transaction holds are several.
func (c *Conn) Learn(all []Learned) error {
	for _, l := range all {
		if l.Timeout < MinLearned || l.Timeout > MaxLearned {
			return fmt.Errorf("learn %s: %v is not from %v to %v", l.Addr, l.Timeout, MinLearned, MaxLearned)
		}
		if _, err := learnable(l.Addr); err != nil {
			return fmt.Errorf("learn: %w", err)
		}
	}
	all = once(all)
	err := c.send(learning(all, false))
	if errors.Is(err, unix.EEXIST) && slices.ContainsFunc(all, isNew) { // it was there
		for i := range all {
			all[i].New = false
		}
		err = c.send(learning(all, false))
	}
	return err
}

// Forget takes addresses out of the learned sets. That some are not there is
// no error.
func (c *Conn) Forget(addrs []netip.Addr) error {
	all := make([]Learned, 0, len(addrs))
	for _, a := range addrs {
		if _, err := learnable(a); err == nil { // else it cannot be there
			all = append(all, Learned{Addr: a, Timeout: MinLearned})
		}
	}
	return c.send(learning(once(all), true))
}

func isNew(l Learned) bool { return l.New }

// once is a copy that has each address once, for the longest time: a message
// must not name one twice.
func once(all []Learned) []Learned {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b Learned) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(b.Timeout, a.Timeout))
	})
	return slices.CompactFunc(all, func(a, b Learned) bool { return a.Addr == b.Addr })
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

// learning are the messages that learn addresses, or forget them; those of a
// group belong into one transaction. What is new is added, and if it is there
// after all the kernel says so. Everything else is added, so that it can be
// deleted whether it is there or not, and then added again unless it is to be
// forgotten: the kernel does not renew what is there.
func learning(all []Learned, forget bool) (groups [][]message) {
	sets := learnedSets()
	for chunk := range slices.Chunk(all, elementsPerMessage) {
		for family := range sets {
			set := &sets[family]
			change := func(typ uint16, flags uint16, keep func(Learned) bool) message {
				return message{
					typ: typ, flags: unix.NLM_F_CREATE | flags, about: "addresses of names in " + set.Name,
					body: learnedElements(set, chunk, typ == unix.NFT_MSG_NEWSETELEM, keep),
				}
			}
			here := func(l Learned) bool { return l.Addr.Is6() == set.V6 }
			added := func(l Learned) bool { return here(l) && l.New && !forget }
			others := func(l Learned) bool { return here(l) && (!l.New || forget) }
			if slices.ContainsFunc(chunk, added) {
				groups = append(groups, []message{change(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_EXCL, added)})
			}
			if slices.ContainsFunc(chunk, others) {
				add := change(unix.NFT_MSG_NEWSETELEM, 0, others)
				group := []message{add, change(unix.NFT_MSG_DELSETELEM, 0, others), add}
				if forget {
					group = group[:2]
				}
				groups = append(groups, group)
			}
		}
	}
	return groups
}

// learnedElements is the body of a message about elements of a learned set, as
// google/nftables makes it; but it makes it of many small pieces, which takes
// longer than the kernel takes to carry it out, for every name that a
// container asks for.
func learnedElements(set *ruleset.Set, all []Learned, timeouts bool, keep func(Learned) bool) []byte {
	size := 4
	if set.V6 {
		size = 16
	}
	item := 2*attrHeader + size // the key in its nest
	if timeouts {
		item += attrHeader + 8
	}
	b := make([]byte, 0, 64+len(all)*(attrHeader+item))
	b = appendString(b, unix.NFTA_SET_ELEM_LIST_SET, set.Name)
	b = binary.BigEndian.AppendUint32(appendAttr(b, unix.NFTA_SET_ELEM_LIST_SET_ID, 4), 0)
	b = appendString(b, unix.NFTA_SET_ELEM_LIST_TABLE, ruleset.TableName)
	list := len(b)
	b = appendAttr(b, unix.NLA_F_NESTED|unix.NFTA_SET_ELEM_LIST_ELEMENTS, 0)
	n := uint16(0)
	for _, l := range all {
		if !keep(l) {
			continue
		}
		n++
		b = appendAttr(b, unix.NLA_F_NESTED|n, item)
		b = appendAttr(b, unix.NLA_F_NESTED|unix.NFTA_SET_ELEM_KEY, attrHeader+size)
		b = appendAttr(b, unix.NFTA_DATA_VALUE, size)
		if key := l.Addr.As16(); set.V6 {
			b = append(b, key[:]...)
		} else {
			b = append(b, key[12:]...)
		}
		if timeouts {
			b = appendAttr(b, unix.NFTA_SET_ELEM_TIMEOUT, 8)
			b = binary.BigEndian.AppendUint64(b, uint64(l.Timeout.Milliseconds()))
		}
	}
	binary.NativeEndian.PutUint16(b[list:], uint16(len(b)-list)) // elementsPerMessage is far below
	return b
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
	return c.send([][]message{msgs})
}

// send has messages carried out, group by group: what belongs together is in
// one transaction.
func (c *Conn) send(groups [][]message) error {
	if len(groups) == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.s == nil {
		return errClosed
	}
	all := slices.Concat(groups...)
	if size(all) > c.s.room(size(all)) {
		for _, g := range groups {
			if err := c.s.persist(g); err != nil {
				return err
			}
		}
		return nil
	}
	return c.s.persist(all)
}

// persist sends a batch until the kernel has carried it out, or says why not.
// Carrying it out twice is as good as once, but for what must not be there yet.
func (s *socket) persist(msgs []message) error {
	for attempt := 1; ; attempt++ {
		if err := s.look(); err != nil {
			return err
		}
		// ENOENT is tried again as well: kernels before 6.8 look at the clock
		// for each message, so an element can expire between its addition and
		// its deletion. Had a set gone, that is found above.
		generation := s.known
		if attempt > 1 { // somebody else is at it, and may be so all the time
			generation = 0
		}
		err := s.batchAt(msgs, generation)
		s.known = 0
		if err == nil {
			if generation != 0 {
				s.known = following(generation)
			}
			return nil
		}
		if errors.Is(err, unix.EEXIST) && slices.ContainsFunc(msgs, func(m message) bool { return m.flags&unix.NLM_F_EXCL != 0 }) {
			return err
		}
		if !again(err) || attempt == learnAttempts {
			return explain(err)
		}
	}
}

// look makes sure that the sets are what addresses may be put into. It need
// not look again as long as nobody else has changed anything, and that the
// kernel sees to: it refuses the batch otherwise.
func (s *socket) look() error {
	if s.known != 0 {
		return nil
	}
	g, err := s.generation() // before the look, so that no change escapes
	if err != nil {
		return err
	}
	for family := range 2 {
		if _, err := s.learnedSet(family); err != nil {
			return err
		}
	}
	if s.guarded(g) {
		s.known = g
	}
	return nil
}

// What is known of the kernel.
const (
	unknown uint8 = iota
	yes
	no
)

// guarded reports whether the kernel refuses a batch that is for another
// generation than the present one; old ones do not.
func (s *socket) guarded(present uint32) bool {
	if s.refuses == unknown {
		s.refuses = no
		if err := s.batchAt(nil, following(present)); errors.Is(err, unix.ERESTART) {
			s.refuses = yes
		}
	}
	return s.refuses == yes
}

// following is the generation after one. It is never 0.
func following(generation uint32) uint32 { return max(generation+1, 1) }

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
	return c.s.generation()
}

func (s *socket) generation() (uint32, error) {
	var g uint32
	err := s.get(&message{typ: unix.NFT_MSG_GETGEN, about: "generation of the ruleset"}, func(_ uint16, f *fields) error {
		v := f.v[unix.NFTA_GEN_ID]
		if len(v) != 4 {
			return fmt.Errorf("generation of %d bytes", len(v))
		}
		g = binary.BigEndian.Uint32(v)
		return nil
	})
	return g, err
}
