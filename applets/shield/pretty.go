package shield

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
)

// Colours of ECMA-48, for people.
const (
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	plain  = "\x1b[0m"
)

// pretty is the event for people, on one line, in local time.
func (e watchEvent) pretty(color bool) string {
	when := e.Time
	if t, err := time.Parse(time.RFC3339Nano, e.Time); err == nil {
		when = t.Local().Format(time.TimeOnly)
	}
	parts := []string{word(e.Action)}
	if about := e.about(); about != "" {
		parts = append(parts, about)
	}
	if len(e.Addresses) > 0 {
		parts = append(parts, "-> "+strings.Join(e.Addresses, ", "))
	}
	if e.Detail != "" && e.Source != fromNFLOG { // whose prefix the action is from
		parts = append(parts, "("+e.Detail+")")
	}
	if e.Missed > 0 {
		parts = append(parts, fmt.Sprintf("[%d events before this one were lost]", e.Missed))
	}
	text := cmdenv.Printable(fmt.Sprintf("%-8s %-5s %s", when, e.Source, strings.Join(parts, " ")))
	if !color {
		return text
	}
	for _, c := range []struct{ word, color string }{
		{"block", red}, {"den", red}, {"queued", red}, {"private", red}, {"quarantine", red},
		{"allowed", green}, {"up", green}, {"bypass", yellow}, {"down", yellow}, {"failed", yellow}, {"resolved", yellow},
	} {
		if strings.Contains(e.Action, c.word) {
			return c.color + text + plain
		}
	}
	return text
}

// about is what was asked for or connected to.
func (e watchEvent) about() string {
	name := e.Domain
	if e.QueryType != "" {
		name += " " + e.QueryType
	}
	if e.Dest == "" {
		return name
	}
	to := e.Dest
	if e.Port != 0 {
		to = net.JoinHostPort(e.Dest, strconv.Itoa(int(e.Port)))
	}
	if e.Proto != 0 {
		to += " " + protoWord(e.Proto)
	}
	if name != "" {
		to = name + " at " + to
	}
	return to
}

// word is an action as people would say it.
func word(action string) string { return strings.ReplaceAll(action, "_", " ") }
