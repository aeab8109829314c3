// Package nft carries the table of nl/ruleset to the kernel and back, over
// netlink. What it cannot read completely it does not call a table, and what
// it has applied it has read back.
//
// Messages are made by google/nftables and sent over a socket of this package,
// see recorder. What the kernel answers is decoded here: that library skips
// expressions that it does not know, so that a rule would look wider or
// narrower than it is.
//
// It never runs a program, and must never import anything but the standard
// library, x/sys, mdlayher/netlink, google/nftables and nl/ruleset.
package nft

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/terok-ai/terok-box/nl/ruleset"
	"golang.org/x/sys/unix"
)

// ErrForeign says that there is a table of our name that is not of our
// dialect. Apply replaces it.
var ErrForeign = errors.New("the firewall's table has been changed by something else")

// foreign is an ErrForeign that says what was met.
func foreign(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrForeign, fmt.Sprintf(format, args...))
}

// How long or often is tried, with somebody else changing the same ruleset.
const (
	listTime      = time.Second
	listAttempts  = 8 // of one set
	applyAttempts = 3
)

// Conn is a connection to nf_tables of one network namespace. Its methods can
// be called at the same time, and from any thread.
type Conn struct {
	mu    sync.Mutex
	s     *socket // nil: closed
	seen  listing // what was seen last
	keeps bool    // what Apply sees is worth to be remembered
}

var errClosed = errors.New("the connection to nf_tables is closed")

// Dial connects to the network namespace of the calling thread, and stays
// connected to it wherever it is used.
func Dial() (*Conn, error) {
	s, err := dial()
	if err != nil {
		return nil, err
	}
	return &Conn{s: s}, nil
}

// Close disconnects. Closing twice is no error.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.s == nil {
		return nil
	}
	err := unix.Close(c.s.fd)
	c.s = nil
	return err
}

// List is the table as it is now, with counters and remaining times, or nil if
// there is none. A table that is not of the dialect is an ErrForeign. Chains,
// rules and definitions of sets are of one moment, and so are the elements of
// each set, unless it is one that a resolver fills faster than it can be read.
func (c *Conn) List() (*ruleset.Table, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.s == nil {
		return nil, errClosed
	}
	l, err := c.s.list()
	c.seen = l
	return l.table, err
}

// Known is List for who keeps the connection: as long as nobody changes the
// namespace's ruleset, it is what was seen last, by Known or after an Apply,
// and is not read again. Counters and remaining times are of then, and elements
// that have expired since are still in it. It must not be changed.
func (c *Conn) Known() (*ruleset.Table, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.s == nil {
		return nil, errClosed
	}
	c.keeps = true
	if c.seen.generation != 0 {
		if g, err := c.s.generation(); err == nil && g == c.seen.generation {
			return c.seen.table, nil
		}
	}
	l, err := c.s.steady()
	c.seen = l
	return l.table, err
}

// Apply makes the kernel's table want, whatever it was before, and reads it
// back. At no moment is anything open that is neither open before nor after:
// the change is one transaction if it only closes or only opens, else what
// closes comes a moment before what opens. What is open before and after stays
// so, unless a foreign table is replaced, a set is redefined, or more than
// about ten thousand addresses change for a caller without privileges on the
// host; then all is closed for a moment. Elements that expire and that want
// does not have stay where they are, unless the table is replaced. After an
// error the kernel enforces what it enforced before, or less is open.
func (c *Conn) Apply(want *ruleset.Table) error { return c.ApplyOver(nil, want) }

// ApplyOver is Apply for who has just read the table: have is what List or
// Known has returned last, if it was this connection's, and is then not read
// again before the change.
func (c *Conn) ApplyOver(have, want *ruleset.Table) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.s == nil {
		return errClosed
	}
	want, err := normalized(want)
	if err != nil {
		return fmt.Errorf("apply the firewall: %w", err)
	}
	var seen *listing
	if have != nil && have == c.seen.table {
		l := c.seen
		seen = &l
	}
	list := c.s.list
	if c.keeps {
		list = c.s.steady
	}
	if c.seen, err = c.s.apply(seen, want, list); err != nil {
		c.seen = listing{}
		return fmt.Errorf("apply the firewall: %w", err)
	}
	return nil
}

// normalized is a copy of t in the form in which tables compare.
func normalized(t *ruleset.Table) (*ruleset.Table, error) {
	n := *t
	n.Sets = slices.Clone(t.Sets)
	for i := range n.Sets {
		s := &n.Sets[i]
		s.Elements = slices.Clone(s.Elements)
		if err := check(s); err != nil {
			return nil, err
		}
		if err := s.Normalize(); err != nil {
			return nil, err
		}
	}
	return &n, nil
}

// apply returns what there is in the end, as list reads it.
func (s *socket) apply(seen *listing, want *ruleset.Table, list func() (listing, error)) (listing, error) {
	var last error
	for attempt := 0; ; attempt++ {
		var have listing
		if seen != nil {
			have, seen = *seen, nil
		} else {
			var err error
			if have, err = list(); err != nil && !errors.Is(err, ErrForeign) {
				return have, errors.Join(last, err)
			}
		}
		table := have.table
		if have.odd {
			table = nil
		}
		change := ruleset.Diff(table, want)
		if change.Empty() {
			return have, nil
		}
		if attempt == applyAttempts {
			if last == nil {
				last = fmt.Errorf("it is not what was applied, somebody else changes it at the same time: %s", change)
			}
			return have, last
		}
		p := planner{have: table, want: want, change: change, replace: have.exists, room: s.room}
		if last = s.carryOut(&p); last != nil && !again(last) {
			return have, last
		}
	}
}

// carryOut sends what p plans.
func (s *socket) carryOut(p *planner) error {
	batches, err := p.batches()
	if err != nil {
		return err
	}
	for _, b := range batches {
		if err := s.batch(b); err != nil {
			return explain(err)
		}
	}
	return nil
}

// again reports whether err comes from others changing the ruleset meanwhile,
// or leaves open what happened: either way the next step is to look.
func again(err error) bool {
	for _, e := range []error{errLost, errChanged, unix.EEXIST, unix.ENOENT, unix.EBUSY, unix.EAGAIN, unix.EINTR, unix.ERESTART, unix.ENOBUFS} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// explain adds what an operator can do.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("CAP_NET_ADMIN in the user namespace that owns the network namespace is needed: %w", err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		return fmt.Errorf("this kernel's nf_tables lacks something (inet family, log, reject, ct, limit and sets are needed): %w", err)
	}
	return err
}

// listing is what list found.
type listing struct {
	table  *ruleset.Table // nil: none, or a foreign one
	exists bool           // there is one, foreign or not
	odd    bool           // an interval set that cannot be changed element by element

	generation uint32 // of the ruleset all of it is of; 0: unknown
}

// steady is list that finds out the generation as well.
func (s *socket) steady() (listing, error) {
	before, err := s.generation()
	if err != nil {
		return listing{}, err
	}
	l, err := s.list()
	if err != nil {
		return l, err
	}
	if after, err := s.generation(); err == nil && after == before {
		l.generation = before
	}
	return l, nil
}

func (s *socket) list() (listing, error) {
	var l listing
	var err error
	const longest = 4 * time.Millisecond
	started := time.Now()
	for pause := 20 * time.Microsecond; ; pause = min(2*pause, longest) {
		if l, err = s.listOnce(); !errors.Is(err, errChanged) || time.Since(started) > listTime {
			break
		}
		time.Sleep(pause) // somebody else is at it
	}
	if err != nil {
		l.table = nil
		return l, fmt.Errorf("read the firewall: %w", err)
	}
	return l, nil
}

func (s *socket) listOnce() (l listing, err error) {
	// Every answer carries the low bits of the ruleset's generation. With the
	// table the first thing to be read and its chains the last, all is of one
	// generation if these two are, even if there is nothing between them.
	var generation uint16
	var use uint32
	body := request(name(unix.NFTA_TABLE_NAME, ruleset.TableName))
	err = s.get(&message{typ: unix.NFT_MSG_GETTABLE, body: body, about: "table"}, func(g uint16, f *fields) error {
		l.exists, generation = true, g
		use, err = decodeTable(f)
		return err
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return listing{}, nil
	case err != nil:
		return l, explain(err)
	}
	t := &ruleset.Table{}
	rules := map[string][]ruleset.Rule{}
	body = request(name(unix.NFTA_RULE_TABLE, ruleset.TableName))
	err = s.get(&message{typ: unix.NFT_MSG_GETRULE, flags: unix.NLM_F_DUMP, body: body, about: "rules"}, func(_ uint16, f *fields) error {
		if f.str(unix.NFTA_RULE_TABLE) != ruleset.TableName { // kernels before 4.7 do not filter
			return nil
		}
		r, err := decodeRuleMessage(f)
		chain := f.str(unix.NFTA_RULE_CHAIN)
		rules[chain] = append(rules[chain], r)
		if err != nil {
			err = fmt.Errorf("rule %d of chain %s: %w", len(rules[chain]), chain, err)
		}
		return err
	})
	if err != nil {
		return l, err
	}
	body = request(name(unix.NFTA_SET_TABLE, ruleset.TableName))
	err = s.get(&message{typ: unix.NFT_MSG_GETSET, flags: unix.NLM_F_DUMP, body: body, about: "sets"}, func(_ uint16, f *fields) error {
		if f.str(unix.NFTA_SET_TABLE) != ruleset.TableName {
			return nil
		}
		set, err := decodeSet(f)
		t.Sets = append(t.Sets, set)
		return err
	})
	if err != nil {
		return l, err
	}
	chains := map[string]*ruleset.Chain{ruleset.OutputHook: nil, ruleset.InputHook: nil}
	count := 0
	err = s.get(&message{typ: unix.NFT_MSG_GETCHAIN, flags: unix.NLM_F_DUMP, about: "chains"}, func(g uint16, f *fields) error {
		if g != generation {
			return errChanged
		}
		if f.str(unix.NFTA_CHAIN_TABLE) != ruleset.TableName {
			return nil
		}
		name, c, err := decodeChain(f)
		if err != nil {
			return err
		}
		c.Rules = rules[name]
		chains[name] = &c
		count++
		return nil
	})
	if err != nil {
		return l, err
	}
	out, in := chains[ruleset.OutputHook], chains[ruleset.InputHook]
	switch {
	case out == nil || in == nil:
		return l, foreign("it lacks a chain")
	case int(use) != count+len(t.Sets):
		return l, foreign("it has %d things besides chains and sets", int(use)-count-len(t.Sets))
	}
	t.Output, t.Input = *out, *in
	for i := range t.Sets {
		odd, err := s.listElements(&t.Sets[i])
		if err != nil {
			return l, err
		}
		l.odd = l.odd || odd
	}
	l.table = t
	return l, nil
}

// listElements reads the elements of a set.
func (s *socket) listElements(set *ruleset.Set) (odd bool, err error) {
	body := request(name(unix.NFTA_SET_ELEM_LIST_TABLE, ruleset.TableName), name(unix.NFTA_SET_ELEM_LIST_SET, set.Name))
	m := message{typ: unix.NFT_MSG_GETSETELEM, flags: unix.NLM_F_DUMP, body: body, about: "elements of " + set.Name}
	// A set of single addresses that a resolver fills all the time is listed
	// as it was found in the end: Diff leaves it alone.
	attempts, filled := listAttempts, set.Expiring && !set.Interval
	if filled {
		attempts = 2
	}
	var bounds []bound
	for range attempts {
		bounds = bounds[:0]
		err = s.get(&m, func(_ uint16, f *fields) error {
			bounds, err = decodeElements(set, f.v[unix.NFTA_SET_ELEM_LIST_ELEMENTS], bounds)
			return err
		})
		if !errors.Is(err, errChanged) {
			break
		}
	}
	if errors.Is(err, unix.ENOENT) {
		return false, errChanged // the set is gone
	}
	if err != nil && !(filled && errors.Is(err, errChanged)) {
		return false, err
	}
	if set.Elements, odd, err = join(set, bounds); err != nil {
		return false, err
	}
	if filled {
		set.Elements = latest(set.Elements)
	}
	if err := set.Normalize(); err != nil {
		return false, foreign("%v", err)
	}
	return odd, nil
}

// latest are elements without those that were listed twice, because they were
// renewed while the set was read: what is left longer was put there later.
func latest(elements []ruleset.Element) []ruleset.Element {
	slices.SortFunc(elements, func(a, b ruleset.Element) int {
		return cmp.Or(a.From.Compare(b.From), cmp.Compare(b.Expires, a.Expires))
	})
	return slices.CompactFunc(elements, func(a, b ruleset.Element) bool { return a.From == b.From })
}
