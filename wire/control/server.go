package control

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/terok-ai/terok-box/wire/varlink"
)

// InterfaceName is what the interface is called.
const InterfaceName = "org.terok.ShieldControl1"

// SocketPath is where the interface of a container is served. runtimeDir is
// the user's, such as /run/user/1000; short the first 12 digits of the
// container's id.
func SocketPath(runtimeDir, short string) string {
	return filepath.Join(runtimeDir, "terok", "control", short+".sock")
}

// Bounds on what is sent and accepted.
const (
	maxTargets = 10_000  // of a request: more than a DNS message has room for
	maxApplied = 100_000 // addresses of an outcome
	maxWord    = 256     // characters of a name and of other words
	maxText    = 16 << 10
	// maxListing in bytes: with line breaks and quotation marks escaped it
	// fits into a reply beside the rest.
	maxListing = 7 << 20
	// timeFormat is RFC 3339 with microseconds.
	timeFormat = "2006-01-02T15:04:05.000000Z07:00"
)

// What crosses the wire.
type (
	performIn struct {
		Op        string   `json:"op"`
		Container string   `json:"container"`
		Targets   []string `json:"targets"`
		Names     []string `json:"names"`
		Target    string   `json:"target"`
		Audit     bool     `json:"audit"`
		Until     int64    `json:"until"`
	}
	performOut struct {
		Outcome outcome `json:"outcome"`
	}
	outcome struct {
		Error   string   `json:"error"`
		State   string   `json:"state"`
		Detail  string   `json:"detail"`
		Listing string   `json:"listing"`
		Applied []string `json:"applied"`
		Warning string   `json:"warning"`
	}
	packetsOut struct {
		Packet packet `json:"packet"`
	}
	packet struct {
		Time   string `json:"time"`
		Prefix string `json:"prefix"`
		Dest   string `json:"dest"`
		Proto  uint8  `json:"proto"`
		Port   uint16 `json:"port"`
		Lost   int64  `json:"lost"`
	}
	statusOut struct {
		Status Status `json:"status"`
	}
)

// Interface serves a Service. The description is the interface's, in
// varlink's interface definition language.
func Interface(s Service, description string) varlink.Interface {
	return varlink.Interface{
		Name:        InterfaceName,
		Description: description,
		Methods: []varlink.Method{
			varlink.Handle("Perform", func(ctx context.Context, _ *varlink.Call, in performIn) (performOut, error) {
				if wrong := in.check(); wrong != "" {
					return performOut{}, varlink.Invalid(wrong)
				}
				req := in.request()
				if req.Late() {
					return performOut{}, varlink.NewError(InterfaceName+".TooLate", nil)
				}
				resp := s.Perform(ctx, req)
				if resp.Error != "" && ctx.Err() != nil {
					return performOut{}, context.Cause(ctx) // why we end is not why it failed
				}
				return performOut{outcomeOf(resp)}, nil
			}),
			varlink.HandleStream("Packets", func(ctx context.Context, _ *varlink.Call, _ struct{}, send func(packetsOut) error) error {
				return s.Packets(ctx, func(p Packet) error { return send(packetsOut{packetOf(p)}) })
			}),
			varlink.Handle("Status", func(context.Context, *varlink.Call, struct{}) (statusOut, error) {
				return statusOut{s.Status().clean()}, nil
			}),
		},
		Errors: map[string]any{"TooLate": struct{}{}},
	}
}

// performInOf is a request as it is sent.
func performInOf(r Request) performIn {
	in := performIn{Op: string(r.Op), Container: r.Container, Targets: r.Targets, Names: r.Names, Target: r.Target, Audit: r.Audit}
	if !r.Until.IsZero() {
		in.Until = r.Until.UnixMilli()
	}
	return in
}

func (in performIn) request() Request {
	r := Request{Op: Op(in.Op), Container: in.Container, Targets: in.Targets, Names: in.Names, Target: in.Target, Audit: in.Audit}
	if in.Until != 0 {
		r.Until = time.UnixMilli(in.Until)
	}
	return r
}

// check names the parameter that cannot be; "" if there is none.
func (in performIn) check() string {
	word := func(s string) bool { return s != "" && isPrintable(s) }
	target := func(s string) bool {
		if p, err := netip.ParsePrefix(s); err == nil {
			return p.IsValid()
		}
		a, err := netip.ParseAddr(s)
		return err == nil && a.Zone() == ""
	}
	all := func(list []string, ok func(string) bool) bool {
		return len(list) <= maxTargets && !slices.ContainsFunc(list, func(s string) bool { return !ok(s) })
	}
	switch {
	case !slices.Contains(ops(), Op(in.Op)):
		return "op"
	case !word(in.Container):
		return "container"
	case !all(in.Targets, target):
		return "targets"
	case !all(in.Names, word):
		return "names"
	case !isPrintable(in.Target):
		return "target"
	case in.Until < 0:
		return "until"
	}
	return ""
}

// outcomeOf is a response as it is sent. What does not fit is an error, since
// half of it would say something else.
func outcomeOf(r Response) outcome {
	o := outcome{text(r.Error), printable(r.State), text(r.Detail), listing(r.Listing), r.Applied, text(r.Warning)}
	switch {
	case len(o.Listing) > maxListing:
		o = outcome{Error: "its ruleset is too long to be sent"}
	case len(o.Applied) > maxApplied:
		o.Applied = o.Applied[:maxApplied]
	}
	return o
}

func packetOf(p Packet) packet {
	return packet{p.Time.UTC().Format(timeFormat), printable(p.Prefix), p.Dest.String(), p.Proto, p.Port, p.Lost}
}

func (p packet) parse() (Packet, error) {
	at, err := time.Parse(time.RFC3339, p.Time)
	if err != nil {
		return Packet{}, err
	}
	if at = at.UTC(); at.Year() < 1 || at.Year() > 9999 {
		return Packet{}, fmt.Errorf("year %d", at.Year())
	}
	dest, err := netip.ParseAddr(p.Dest)
	if err != nil {
		return Packet{}, err
	}
	return Packet{at, printable(p.Prefix), dest.WithZone(""), p.Proto, p.Port, p.Lost}, nil
}

// clean makes all of it fit to be shown.
func (s Status) clean() Status {
	s.Container, s.ID, s.NetNS, s.Trouble = printable(s.Container), printable(s.ID), printable(s.NetNS), text(s.Trouble)
	return s
}

// isPrintable reports whether s is short and shows as it is.
func isPrintable(s string) bool { return len(s) <= maxWord && !strings.ContainsFunc(s, unprintable) }

func unprintable(r rune) bool { return r < ' ' || r > '~' }

// printable makes s so: a space of every other character, three dots of the
// end of what is longer.
func printable(s string) string { return clean(s, maxWord, unprintable) }

// text is for people: characters of any language, in lines.
func text(s string) string { return clean(s, maxText, invisible) }

func invisible(r rune) bool {
	return r != '\n' && (!unicode.IsPrint(r) || r == unicode.ReplacementChar)
}

// listing is printable, in lines that may be indented.
func listing(s string) string {
	return clean(s, maxListing+1, func(r rune) bool { return r != '\n' && r != '\t' && unprintable(r) })
}

// clean makes a space of every character that is not wanted, and three dots
// of what is beyond limit bytes.
func clean(s string, limit int, unwanted func(rune) bool) string {
	if len(s) <= limit && !strings.ContainsFunc(s, unwanted) {
		return s
	}
	var b strings.Builder
	end := 0 // of what leaves room for the dots
	for _, r := range s {
		if unwanted(r) {
			r = ' '
		}
		if b.WriteRune(r); b.Len() > limit {
			return b.String()[:end] + "..."
		}
		if b.Len() <= limit-3 {
			end = b.Len()
		}
	}
	return b.String()
}
