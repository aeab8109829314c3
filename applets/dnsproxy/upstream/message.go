package upstream

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

const (
	headerLen = 12   // RFC 1035 §4.1.1
	maxName   = 255  // bytes of a name with its length octets, RFC 1035 §3.1
	optLen    = 11   // of an OPT record without options, RFC 6891 §6.1.2
	udpSize   = 1232 // bytes of an answer over UDP that we ask for, DNS flag day 2020: no fragments
	maxUDP    = 4096 // bytes that we read, for servers that take no notice
)

// question is a question as it is sent: with EDNS, its id 0, its name as it
// was given.
type question struct {
	Query
	wire []byte
	end  int // of the question; the OPT record follows
}

func newQuestion(q Query) (*question, error) {
	q.Name = dns.Fqdn(q.Name)
	var name [2 * maxName]byte // the library packs longer names than there are
	n, err := dns.PackDomainName(q.Name, name[:], 0, nil, false)
	if err != nil || n > maxName {
		return nil, fmt.Errorf("%w: %.300q", ErrName, q.Name)
	}
	flags, ttl := uint16(1<<8), uint32(0) // recursion desired
	if q.CD {
		flags |= 1 << 4
	}
	if q.DO {
		ttl |= 1 << 15
	}
	// Header, question and OPT record: RFC 1035 §4.1.1, §4.1.2, RFC 6891 §6.1.2.
	wire := make([]byte, 2, headerLen+n+4+optLen)
	for _, v := range []uint16{flags, 1, 0, 0, 1} {
		wire = binary.BigEndian.AppendUint16(wire, v)
	}
	wire = append(wire, name[:n]...)
	wire = binary.BigEndian.AppendUint16(wire, q.Type)
	wire = binary.BigEndian.AppendUint16(wire, dns.ClassINET)
	end := len(wire)
	wire = binary.BigEndian.AppendUint16(append(wire, 0), dns.TypeOPT)
	wire = binary.BigEndian.AppendUint16(wire, udpSize)
	wire = binary.BigEndian.AppendUint32(wire, ttl)
	return &question{Query: q, wire: append(wire, 0, 0), end: end}, nil
}

// packet is the question with a random id. With mix the letters of the name
// are of random case, which a server repeats, as an answer of somebody else
// would have to.
func (q *question) packet(edns, mix bool) []byte {
	p := bytes.Clone(q.wire)
	if !edns {
		p = p[:q.end]
		binary.BigEndian.PutUint16(p[10:], 0) // additional records
	}
	q.number(p)
	if !mix {
		return p
	}
	var bits [(maxName + 8) / 8]byte
	random := bits[:(q.end-4-headerLen)/8+1]
	rand.Read(random) // cannot fail
	name := p[headerLen : q.end-4]
	for i := 0; i < len(name); i += int(name[i]) + 1 {
		for j := i + 1; j <= i+int(name[i]) && j < len(name); j++ {
			if c := name[j] | 0x20; 'a' <= c && c <= 'z' {
				name[j] = c &^ (random[j/8] >> (j % 8) & 1 << 5)
			}
		}
	}
	return p
}

// number gives a packet another random id.
func (q *question) number(p []byte) { rand.Read(p[:2]) }

// kind is what a packet is to a question.
type kind int

const (
	stray     kind = iota // no answer to it: anybody may have sent it
	otherCase             // one, but for upper and lower case
	cut                   // an answer that did not fit
	noEDNS                // the server did not understand, and does not repeat the question
	answer                // one that can be read
	broken                // one that cannot
)

// check says what a packet is to a question that was sent.
func (q *question) check(sent, b []byte) kind {
	if len(b) < headerLen || b[0] != sent[0] || b[1] != sent[1] || b[2]&0xf8 != 0x80 { // id, response, standard query
		return stray
	}
	switch questions := binary.BigEndian.Uint16(b[4:]); {
	case questions == 0 && len(sent) > q.end && len(b) == headerLen &&
		(b[3]&15 == dns.RcodeFormatError || b[3]&15 == dns.RcodeNotImplemented):
		return noEDNS
	case questions != 1 || len(b) < q.end:
		return stray
	}
	k := answer
	if b[2]&2 != 0 {
		k = cut
	}
	if bytes.Equal(b[headerLen:q.end], sent[headerLen:q.end]) {
		return k
	}
	if sameName(b[headerLen:q.end-4], sent[headerLen:q.end-4]) && bytes.Equal(b[q.end-4:q.end], sent[q.end-4:q.end]) {
		return otherCase
	}
	return stray
}

// sameName compares two names of one length but for the case of letters.
// What differs otherwise, length octets included, differs.
func sameName(a, b []byte) bool {
	for i := range a {
		if a[i] == b[i] {
			continue
		}
		c := a[i] | 0x20
		if c != b[i]|0x20 || c < 'a' || 'z' < c {
			return false
		}
	}
	return true
}

var errBroken = errors.New("its answer cannot be read")

// read is the message in a packet that is an answer. It is of its own memory.
func (q *question) read(b []byte) (*dns.Msg, error) {
	b = bytes.Clone(b)
	// Names in the answer that point here get their case back, too.
	copy(b[headerLen:q.end], q.wire[headerLen:q.end])
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		return nil, errBroken
	}
	// The library is content with less than the header announces.
	if len(m.Question) != 1 || len(m.Answer) != int(binary.BigEndian.Uint16(b[6:])) ||
		len(m.Ns) != int(binary.BigEndian.Uint16(b[8:])) || len(m.Extra) != int(binary.BigEndian.Uint16(b[10:])) {
		return nil, errBroken
	}
	m.Question[0].Name = q.Name
	for _, rr := range m.Answer {
		if h := rr.Header(); strings.EqualFold(h.Name, q.Name) {
			h.Name = q.Name
		}
	}
	return m, nil
}
