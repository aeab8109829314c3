package nft

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
	"github.com/terok-ai/terok-box/nl/ruleset"
)

// recorder collects operations and has google/nftables make messages of them.
//
// WORKAROUND(google/nftables): a Conn sends its batch itself, over a socket of
// its own. It asks for an acknowledgement of every message, more than a
// receive buffer holds, reads each with several handoffs between threads of
// the Go runtime, and does not tell how large the batch is, though only one
// that fits the send buffer is taken. So its messages are taken over where it
// would send them, and sent by socket. To be removed when it can be given a
// connection, or asked for its messages.
type recorder struct {
	about []string
	ops   []func(c *nftables.Conn) error
}

// add adds one operation, which must make exactly one message.
func (r *recorder) add(about string, op func(c *nftables.Conn) error) {
	r.about, r.ops = append(r.about, about), append(r.ops, op)
}

var errTaken = errors.New("taken over")

// take is what was added since it was called last, as messages.
func (r *recorder) take() ([]message, error) {
	about, ops := r.about, r.ops
	r.about, r.ops = nil, nil
	if len(ops) == 0 {
		return nil, nil
	}
	var got []netlink.Message
	c, err := nftables.New(nftables.WithTestDial(func(m []netlink.Message) ([]netlink.Message, error) {
		if got == nil { // else it asks for answers
			got = m
		}
		return nil, errTaken
	}))
	if err != nil {
		return nil, err
	}
	for i, op := range ops {
		if err := op(c); err != nil {
			return nil, fmt.Errorf("%s: %w", about[i], err)
		}
	}
	if err := c.Flush(); err != nil && !errors.Is(err, errTaken) {
		return nil, fmt.Errorf("make netlink messages: %w", err)
	}
	if len(got) != len(ops)+2 { // the batch has a beginning and an end
		return nil, fmt.Errorf("%d operations became %d netlink messages", len(ops), max(len(got)-2, 0))
	}
	msgs := make([]message, len(ops))
	for i := range msgs {
		m := got[i+1]
		// The library lets the 16 bits of an attribute's length wrap. In a
		// message as short as this none can.
		if len(m.Data) < genHeader || len(m.Data) > math.MaxUint16 {
			return nil, fmt.Errorf("%s: netlink message of %d bytes", about[i], len(m.Data))
		}
		const ours = netlink.Request | netlink.Acknowledge | netlink.Echo
		msgs[i] = message{
			typ:   uint16(m.Header.Type) & 0xff,
			flags: uint16(m.Header.Flags &^ ours),
			body:  m.Data[genHeader:],
			about: about[i],
		}
	}
	return msgs, nil
}

func table() *nftables.Table {
	return &nftables.Table{Name: ruleset.TableName, Family: nftables.TableFamilyINet}
}

// addChain adds a chain or changes the policy of the one that is there.
func addChain(c *nftables.Conn, name string, policy ruleset.Verdict) error {
	if policy != ruleset.Accept && policy != ruleset.Drop {
		return fmt.Errorf("verdict %d is no policy", policy)
	}
	code := nftables.ChainPolicy(verdictCode(policy))
	c.AddChain(&nftables.Chain{
		Name: name, Table: table(), Type: chainType, Policy: &code,
		Hooknum: new(nftables.ChainHook(hooks[name])), Priority: nftables.ChainPriorityFilter,
	})
	return nil
}

// addRule adds a rule at the end of a chain.
func addRule(c *nftables.Conn, chain string, r ruleset.Rule) error {
	e, err := exprs(r)
	if err == nil {
		c.AddRule(&nftables.Rule{Table: table(), Chain: &nftables.Chain{Name: chain}, Exprs: e})
	}
	return err
}

// librarySet is a set without its elements; id is unique in a batch that adds
// it, and 0 for one that is there.
func librarySet(set *ruleset.Set, id uint32) *nftables.Set {
	s := &nftables.Set{
		Table: table(), ID: id, Name: set.Name, Interval: set.Interval, HasTimeout: set.Expiring,
		KeyType: nftables.TypeIPAddr, KeyByteOrder: binaryutil.BigEndian,
	}
	if set.V6 {
		s.KeyType = nftables.TypeIP6Addr
	}
	if set.Timeout > 0 {
		s.Timeout = atLeast(set.Timeout)
	}
	return s
}

// elementsPerMessage bounds how many elements one message carries: the list is
// one attribute, whose length has 16 bits.
const elementsPerMessage = 500

// atLeast is a duration that does not become 0 milliseconds, which would be
// for ever.
func atLeast(d time.Duration) time.Duration { return max(d, time.Millisecond) }

// permanent is sent as a timeout of 0, for ever whatever the set's default.
// The library leaves out a timeout that is 0 before it is rounded.
const permanent = time.Nanosecond

// libraryElements are elements as the library has them. Of an interval set
// each is two, its first address and the one after its last; without the
// second one everything above would be in the set.
func libraryElements(s *ruleset.Set, elements []ruleset.Element, remove bool) []nftables.SetElement {
	list := make([]nftables.SetElement, 0, 2*len(elements))
	for _, e := range elements {
		first := nftables.SetElement{Key: e.From.AsSlice()}
		switch {
		case remove || !s.Expiring || e.Timeout == 0:
		case e.Timeout < 0:
			first.Timeout = permanent
		default:
			first.Timeout = atLeast(e.Timeout)
		}
		list = append(list, first)
		if end := e.To.Next(); s.Interval && end.IsValid() { // else up to the last address
			list = append(list, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return list
}

// name is an attribute whose value is a string.
func name(typ uint16, text string) netlink.Attribute {
	return netlink.Attribute{Type: typ, Data: append([]byte(text), 0)}
}

// request is the body of a request for what has these names.
func request(names ...netlink.Attribute) []byte {
	b, err := netlink.MarshalAttributes(names)
	if err != nil { // only for lengths that names do not have
		panic(err)
	}
	return b
}
