package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/terok-ai/terok-box/wire/sanitize"
)

// maxShown bounds what an error shows of a line, in characters.
const maxShown = 120

// Parse reads a line as a hub does, with or without its LF: values sanitised,
// the dossier within the bounds, "" and 0 for what does not belong to the type.
// ErrIgnored says that there is nothing to report; any other error says what
// is wrong with the line.
//
// What should be text and is not becomes the JSON that stands there, and null
// becomes "". Of a member that is there twice the last one counts. Numbers may
// be written as text or with a fraction, which is cut off.
func Parse(line []byte) (Event, error) {
	e, err := parse(line)
	if err != nil && !errors.Is(err, ErrIgnored) {
		return Event{}, fmt.Errorf("%w: %s", err, sanitize.String(string(line[:min(len(line), 4*maxShown)]), maxShown))
	}
	return e, err
}

func parse(line []byte) (Event, error) {
	if line = bytes.TrimSpace(line); len(line) == 0 {
		return Event{}, ErrIgnored
	}
	switch {
	case len(line) > MaxLine:
		return Event{}, fmt.Errorf("line over %d bytes", MaxLine)
	case !utf8.Valid(line):
		return Event{}, errors.New("line is not UTF-8")
	case line[0] != '{':
		return Event{}, errors.New("line is not a JSON object")
	}
	var m members
	if err := json.Unmarshal(line, &m); err != nil {
		return Event{}, errors.New("line is not a JSON object")
	}
	var e Event
	switch m.first("type") {
	case '{', '[':
		return Event{}, errors.New(`"type" is not a string`)
	case '"':
		e.Type = m.text("type")
	}
	switch e.Type {
	case pending:
		e.Type = Blocked
	case Blocked, ContainerStarted, ContainerExited, ShieldUp, ShieldDown, ShieldDisengaged:
	default:
		return Event{}, ErrIgnored
	}
	required := []string{"container"}
	if e.Type == Blocked {
		required = []string{"container", "id", "dest", "port", "proto"}
	}
	for _, name := range required {
		if _, ok := m[name]; !ok {
			return Event{}, fmt.Errorf("no %q", name)
		}
	}
	e.Container = m.clean("container")
	e.Dossier = m.dossier("dossier")
	switch e.Type {
	case ContainerExited:
		e.Reason = m.clean("reason")
	case Blocked:
		e.ID, e.Dest, e.Domain = m.clean("id"), m.clean("dest"), m.clean("domain")
		var ok bool
		if e.Port, ok = m.integer("port"); !ok {
			return Event{}, errors.New(`"port" is not an integer`)
		}
		if e.Proto, ok = m.integer("proto"); !ok {
			return Event{}, errors.New(`"proto" is not an integer`)
		}
		e.Time = m.time("ts")
	}
	return e, nil
}

// members are those of a JSON object, as they stand there.
type members map[string]json.RawMessage

// first is the byte that a member begins with; 0 if it is not there.
func (m members) first(name string) byte {
	if raw := m[name]; len(raw) > 0 {
		return raw[0]
	}
	return 0
}

// text is a member as text.
func (m members) text(name string) string {
	switch m.first(name) {
	case 0, 'n':
		return ""
	case '"':
		var s string
		if json.Unmarshal(m[name], &s) != nil {
			return ""
		}
		return s
	}
	var b bytes.Buffer
	if json.Compact(&b, m[name]) != nil {
		return ""
	}
	return b.String()
}

func (m members) clean(name string) string { return sanitize.String(m.text(name), sanitize.Max) }

// time is a member as a time; zero if it is none.
func (m members) time(name string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, m.text(name))
	t = t.UTC().Truncate(time.Microsecond)
	if err != nil || t.Year() < 1 || t.Year() > 9999 { // which have four digits
		return time.Time{}
	}
	return t
}

// dossier is a member that is an object; of any other it is empty.
func (m members) dossier(name string) map[string]string {
	all := make(map[string]string)
	var inner members
	if m.first(name) == '{' && json.Unmarshal(m[name], &inner) == nil {
		for k := range inner {
			all[k] = inner.text(k)
		}
	}
	return dossier(all)
}

// integer is a member as a number.
func (m members) integer(name string) (int64, bool) {
	text := m.text(name)
	switch m.first(name) {
	case 't':
		return 1, true
	case 'f':
		return 0, true
	case '"':
		n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		return n, err == nil
	case '{', '[', 'n', 0:
		return 0, false
	}
	if !strings.ContainsAny(text, ".eE") {
		n, err := strconv.ParseInt(text, 10, 64)
		return n, err == nil
	}
	f, err := strconv.ParseFloat(text, 64)
	f = math.Trunc(f)
	if err != nil || f < math.MinInt64 || f >= -math.MinInt64 {
		return 0, false
	}
	return int64(f), true
}
