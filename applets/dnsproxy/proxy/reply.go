package proxy

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// maxText bounds the text of an Extended DNS Error, in bytes.
const maxText = 200

// reply is what a question is answered with, but for what is the question's
// own.
type reply struct {
	code    int
	records *records // may be nil
	ttl     uint32   // of all records
	ede     *ede     // may be nil
}

// ede is an Extended DNS Error (RFC 8914).
type ede struct {
	code uint16
	text string // printable ASCII
}

// records are resource records as they follow a question of a certain name.
type records struct {
	wire      []byte
	ends      []int // of each record
	ttls      []int // where each has its TTL
	answers   int   // how many are answers; the others are of the authority section
	nameBytes int   // of the question
}

// pack makes records. Names in them point into the question.
func pack(name string, answer, authority []dns.RR) (*records, error) {
	m := dns.Msg{
		Question: []dns.Question{{Name: dns.Fqdn(name), Qtype: dns.TypeA, Qclass: dns.ClassINET}},
		Answer:   answer, Ns: authority, Compress: true,
	}
	wire, err := m.Pack()
	if err != nil {
		return nil, err
	}
	r := &records{answers: len(answer)}
	off := skipName(wire, headerLen) + 4
	r.nameBytes = off - 4 - headerLen
	start := off
	for range len(answer) + len(authority) {
		off = skipName(wire, off)
		if off < 0 || off+10 > len(wire) {
			return nil, errors.New("records that cannot be packed")
		}
		r.ttls = append(r.ttls, off+4-start)
		off += 10 + int(binary.BigEndian.Uint16(wire[off+8:]))
		r.ends = append(r.ends, off-start)
	}
	if off != len(wire) {
		return nil, errors.New("records that cannot be packed")
	}
	r.wire = append([]byte(nil), wire[start:]...)
	return r, nil
}

// skipName is where a name ends that may be compressed; negative if it is
// none.
func skipName(p []byte, off int) int {
	for off >= 0 && off < len(p) {
		switch n := int(p[off]); {
		case n == 0:
			return off + 1
		case n >= 0xc0:
			return off + 2
		default:
			off += n + 1
		}
	}
	return -1
}

// size is about how many bytes of memory records take.
func (r *records) size() int64 {
	if r == nil {
		return 0
	}
	return int64(len(r.wire) + 16*len(r.ends) + 96)
}

// append appends the answer to q as a message of at most so many bytes.
// Records that do not fit are left out and the message says so; some clients
// make do with those that are there.
func (r *reply) append(out []byte, q *query, limit int) []byte {
	base := len(out)
	flags := flagsQR | q.flags&(15<<11|flagsRD) | uint16(r.code&15)
	if q.question != nil { // else there is nothing that we could do
		flags |= flagsRA | q.flags&flagsCD
	}
	var counts [4]uint16 // questions, answers, authority, additional
	opt := 0
	if q.question != nil {
		counts[0] = 1
		if q.edns {
			counts[3] = 1
			opt = optLen
			if r.ede != nil {
				opt += 6 + min(len(r.ede.text), maxText)
			}
		}
	}
	n := 0
	if r.records != nil {
		room := limit - headerLen - len(q.question) - opt
		for n < len(r.records.ends) && r.records.ends[n] <= room {
			n++
		}
		counts[1] = uint16(min(n, r.records.answers))
		counts[2] = uint16(n - min(n, r.records.answers))
		if n < len(r.records.ends) {
			flags |= flagsTC
		}
	}
	out = binary.BigEndian.AppendUint16(out, q.id)
	out = binary.BigEndian.AppendUint16(out, flags)
	for _, c := range counts {
		out = binary.BigEndian.AppendUint16(out, c)
	}
	out = append(out, q.question...)
	if n > 0 {
		start := len(out)
		out = append(out, r.records.wire[:r.records.ends[n-1]]...)
		for _, at := range r.records.ttls[:n] {
			binary.BigEndian.PutUint32(out[start+at:], r.ttl)
		}
	}
	if opt == 0 {
		return out
	}
	out = append(out, 0)
	out = binary.BigEndian.AppendUint16(out, dns.TypeOPT)
	out = binary.BigEndian.AppendUint16(out, maxUDP)
	out = append(out, byte(r.code>>4), 0) // and version 0
	extended := uint16(0)
	if q.do {
		extended = flagDO
	}
	out = binary.BigEndian.AppendUint16(out, extended)
	out = binary.BigEndian.AppendUint16(out, uint16(opt-optLen))
	if r.ede != nil {
		text := r.ede.text[:min(len(r.ede.text), maxText)]
		out = binary.BigEndian.AppendUint16(out, dns.EDNS0EDE)
		out = binary.BigEndian.AppendUint16(out, uint16(2+len(text)))
		out = binary.BigEndian.AppendUint16(out, r.ede.code)
		out = append(out, text...)
	}
	if len(out)-base > limit {
		panic("an answer is longer than its limit") // the question and an OPT record always fit into 512 bytes
	}
	return out
}

// answer is what an allowed name, or one that is resolved all the same, is
// answered with. It does not change.
type answer struct {
	reply
	lists *lists // by which it was made
	born  time.Time
	key   key
	open  []netip.Addr // addresses in it that are to be opened
	shown []netip.Addr // and those that are not
	// denied is set if the name is not to be answered, because of an alias
	// that is denied.
	denied string
	why    string // there are no addresses though there could be
}

// left is the TTL at a time, in seconds, rounded down: nobody keeps an answer
// for longer than its servers allow.
func (a *answer) left(now time.Time) uint32 {
	age := now.Sub(a.born)
	ttl := time.Duration(a.ttl) * time.Second
	if age <= 0 {
		return a.ttl
	}
	return uint32(max(ttl-age, 0) / time.Second)
}

// size is about how many bytes of memory it takes.
func (a *answer) size() int64 {
	return a.records.size() + int64(len(a.key.name)+len(a.why)+24*(len(a.open)+len(a.shown))+400)
}
