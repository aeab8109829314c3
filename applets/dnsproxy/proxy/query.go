package proxy

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

const (
	headerLen = 12  // bytes, RFC 1035 §4.1.1
	optLen    = 11  // of an OPT record without options, RFC 6891 §6.1.2
	maxName   = 255 // bytes of a name on the wire, RFC 1035 §2.3.4
	// maxQuery is how many bytes a question may have: several times what the
	// longest name and the usual EDNS options take.
	maxQuery = 1232
	minUDP   = 512  // bytes of an answer that everybody takes, RFC 1035 §4.2.1
	maxUDP   = 1232 // that we send over UDP, DNS flag day 2020: no fragments

	flagsQR = 1 << 15 // RFC 1035 §4.1.1
	flagsTC = 1 << 9
	flagsRD = 1 << 8
	flagsRA = 1 << 7
	flagsCD = 1 << 4 // RFC 4035 §3.2.2
	flagDO  = 1 << 15
)

// drop instead of a response code says that a packet is not answered.
const drop = -1

// query is a question of the container.
type query struct {
	id       uint16
	flags    uint16
	question []byte // as it stands in the packet; nil if it is not readable
	name     string // in presentation form and lower case, without a dot at its end; "." is the root
	qtype    uint16
	class    uint16
	edns     bool
	do       bool
	size     int // bytes of an answer that its sender takes over UDP
}

// parse reads a packet. A code other than success is the answer. It is
// stricter than the standard asks for: one question, and nothing else but an
// OPT record.
func parse(p []byte, q *query) (code int) {
	*q = query{}
	if len(p) < headerLen {
		return drop
	}
	q.id, q.flags = binary.BigEndian.Uint16(p), binary.BigEndian.Uint16(p[2:])
	switch {
	case q.flags&flagsQR != 0: // two servers that answer each other would not stop
		return drop
	case q.flags>>11&15 != dns.OpcodeQuery:
		return dns.RcodeNotImplemented
	case len(p) > maxQuery || q.flags&flagsTC != 0:
		return dns.RcodeFormatError
	}
	additional := binary.BigEndian.Uint16(p[10:])
	if binary.BigEndian.Uint32(p[4:]) != 1<<16 || binary.BigEndian.Uint16(p[8:]) != 0 || additional > 1 {
		return dns.RcodeFormatError
	}
	name, off := readName(p, headerLen)
	if off < 0 || len(p) < off+4 {
		return dns.RcodeFormatError
	}
	q.qtype, q.class = binary.BigEndian.Uint16(p[off:]), binary.BigEndian.Uint16(p[off+2:])
	off += 4
	rest := p[off:]
	version := byte(0)
	if additional == 1 {
		if len(rest) < optLen || rest[0] != 0 || binary.BigEndian.Uint16(rest[1:]) != dns.TypeOPT {
			return dns.RcodeFormatError
		}
		q.edns, version = true, rest[6]
		q.size = int(binary.BigEndian.Uint16(rest[3:]))
		q.do = binary.BigEndian.Uint16(rest[7:])&flagDO != 0
		options := rest[optLen:]
		if int(binary.BigEndian.Uint16(rest[9:])) != len(options) {
			return dns.RcodeFormatError
		}
		for len(options) > 0 {
			if len(options) < 4 {
				return dns.RcodeFormatError
			}
			n := 4 + int(binary.BigEndian.Uint16(options[2:]))
			if n > len(options) {
				return dns.RcodeFormatError
			}
			options = options[n:]
		}
	} else if len(rest) > 0 {
		return dns.RcodeFormatError
	}
	q.name, q.question = name, p[headerLen:off]
	if version != 0 {
		return dns.RcodeBadVers
	}
	return dns.RcodeSuccess
}

// limit is how many bytes an answer to it may have over UDP.
func (q *query) limit() int { return min(max(q.size, minUDP), maxUDP) }

// readName reads a name that is not compressed, into presentation form. end
// is where it ends; negative if it cannot be read.
func readName(p []byte, off int) (name string, end int) {
	var text [4 * maxName]byte
	out := text[:0]
	for start := off; ; {
		if off >= len(p) || off-start >= maxName {
			return "", -1
		}
		n := int(p[off])
		off++
		if n == 0 {
			break
		}
		if n > 63 || off+n > len(p) {
			return "", -1
		}
		if len(out) > 0 {
			out = append(out, '.')
		}
		for _, c := range p[off : off+n] {
			switch {
			case 'A' <= c && c <= 'Z':
				out = append(out, c+'a'-'A')
			case c < ' ' || c > '~':
				out = append(out, '\\', '0'+c/100, '0'+c/10%10, '0'+c%10)
			case c == '.' || c == ' ' || c == '\'' || c == '@' || c == ';' || c == '(' || c == ')' || c == '"' || c == '\\':
				out = append(out, '\\', c) // as the library does, so that names can be compared
			default:
				out = append(out, c)
			}
		}
		off += n
	}
	if len(out) == 0 {
		return ".", off
	}
	return string(out), off
}
