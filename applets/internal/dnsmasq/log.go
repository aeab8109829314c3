package dnsmasq

import (
	"net/netip"
	"strconv"
	"strings"
)

// kind is what a line of the log says.
type kind byte

const (
	asked    kind = iota + 1 // the container asked
	answered                 // a part of the answer
	opened                   // an address of the answer enters the firewall
	rebound                  // the answer was dropped for a private address
)

// serial tells questions apart. dnsmasq counts them, as do its children, each
// of which answers one client over TCP.
type serial struct{ pid, number int }

// line is a line of dnsmasq's log of questions, with log-queries=extra.
type line struct {
	kind   kind
	serial serial     // not of rebound
	name   string     // lower case, no dot at the end, visible ASCII
	text   string     // asked: the type; answered: what else it says
	local  bool       // answered: by the configuration
	addr   netip.Addr // answered: valid if it says one; opened
}

// Bounds of a line of the log. dnsmasq's own are MAXDNAME (1025) for a name
// and about as much for the rest.
const (
	maxLogLine = 4096
	maxLogName = 253
	maxSerial  = 10 // digits
	stampLen   = len("Jan _2 15:04:05 ")
)

// parseLine reads a line. The names in it are the container's choice, as are
// contents of answers that of whoever owns the names, and may imitate other
// parts of a line: a line that has not exactly the words that its kind has
// does not count.
func parseLine(s string) (l line, ok bool) {
	if len(s) > maxLogLine || len(s) < stampLen {
		return l, false
	}
	head, rest, ok := strings.Cut(s[stampLen:], ": ")
	if !ok {
		return l, false
	}
	pid, ok1 := strings.CutPrefix(head, "dnsmasq[")
	pid, ok2 := strings.CutSuffix(pid, "]")
	if l.serial.pid, ok = number(pid); !ok || !ok1 || !ok2 {
		return l, false
	}
	if name, ok := strings.CutPrefix(rest, "possible DNS-rebind attack detected: "); ok {
		l.kind = rebound
		l.name, ok = logName(name)
		return l, ok
	}
	w := strings.Split(rest, " ")
	if len(w) < 6 {
		return l, false
	}
	if l.serial.number, ok = number(w[0]); !ok || !isClient(w[1]) {
		return l, false
	}
	switch verb := w[2]; {
	case len(w) == 6 && strings.HasPrefix(verb, "query[") && w[4] == "from":
		l.kind = asked
		typ, isType := strings.CutSuffix(verb[len("query["):], "]")
		if l.text, ok = logType(typ); !ok || !isType {
			return l, false
		}
		l.name, ok = logName(w[3])
		_, err := netip.ParseAddr(w[5])
		return l, ok && err == nil
	case (verb == "reply" || verb == "cached" || verb == "config") && w[4] == "is":
		l.kind, l.local = answered, verb == "config"
		l.name, ok = logName(w[3])
		if len(w) == 6 {
			if a, err := netip.ParseAddr(w[5]); err == nil && a.Zone() == "" {
				l.addr = a
			}
		}
		l.text = strings.Join(w[5:], " ")
		return l, ok
	case len(w) == 10 && verb == "nftset" && w[3] == "add":
		l.kind = opened
		l.name, ok = logName(w[9])
		var err error
		l.addr, err = netip.ParseAddr(w[8])
		return l, ok && err == nil && l.addr.Zone() == ""
	}
	return l, false
}

// number is a decimal number as a program writes it.
func number(s string) (int, bool) {
	if s == "" || len(s) > maxSerial || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil
}

// isClient tells "address/port".
func isClient(s string) bool {
	addr, port, ok := strings.Cut(s, "/")
	_, err := netip.ParseAddr(addr)
	_, isPort := number(port)
	return ok && err == nil && isPort
}

// logName is a name of the log in the form of the lists'.
func logName(s string) (string, bool) {
	if s != "." {
		s = strings.TrimSuffix(s, ".")
	}
	visible := !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
	return strings.ToLower(s), visible && s != "" && len(s) <= maxLogName
}

// logType is a type of question as RFC 3597 writes those without a name.
func logType(s string) (string, bool) {
	if n, ok := strings.CutPrefix(s, "type="); ok {
		v, ok := number(n)
		return "TYPE" + strconv.Itoa(v), ok && v <= 0xffff
	}
	return s, s != "" && len(s) <= 16 && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") == ""
}
