package shield

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/audit"
	"github.com/terok-ai/terok-box/applets/internal/shielded"
	"github.com/terok-ai/terok-box/nl/nflog"
	"github.com/terok-ai/terok-box/wire/ascii"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/names"
)

type watchCmd struct {
	Container container `arg:"" complete:"containers" help:"Container name or id."`
	All       bool      `help:"Every question about a name, not only the refused ones."`
	Pretty    bool      `help:"For people: one line each, instead of JSON."`
}

const (
	watchQueue = 1024 // events between the sources and the terminal
	// How often is looked whether the container still runs, and how long a
	// source that ended waits before it begins again.
	watchPause = 500 * time.Millisecond
)

// Sources of events.
const (
	fromDNS   = "dns"
	fromAudit = "audit"
	fromNFLOG = "nflog"
)

// timeFormat is RFC 3339 with microseconds; used with UTC only.
const timeFormat = "2006-01-02T15:04:05.000000+00:00"

// watchEvent is one line of watch. Empty members are left out but the first four.
type watchEvent struct {
	Time      string
	Source    string
	Action    string
	Container string
	Domain    string
	QueryType string
	Dest      string
	Detail    string
	Port      uint16
	Proto     uint8
	Addresses []string // that a name was answered with
	Missed    int64    // events that were lost before this one
}

// line is the event as compact JSON in ASCII.
func (e watchEvent) line() string {
	var out []byte
	key := func(name string) {
		sep := byte(',')
		if len(out) == 0 {
			sep = '{'
		}
		out = append(append(out, sep), `"`+name+`":`...)
	}
	for i, m := range [...]struct{ name, value string }{
		{"ts", e.Time}, {"source", e.Source}, {"action", e.Action}, {"container", e.Container},
		{"domain", e.Domain}, {"query_type", e.QueryType}, {"dest", e.Dest}, {"detail", e.Detail},
	} {
		if i < 4 || m.value != "" {
			key(m.name)
			out = ascii.AppendString(out, m.value)
		}
	}
	for _, m := range [...]struct {
		name  string
		value uint64
	}{{"port", uint64(e.Port)}, {"proto", uint64(e.Proto)}} {
		if m.value != 0 {
			key(m.name)
			out = strconv.AppendUint(out, m.value, 10)
		}
	}
	if len(e.Addresses) > 0 || e.Missed > 0 {
		key("extra")
		sep := byte('{')
		if len(e.Addresses) > 0 {
			out = append(append(out, sep), `"addresses":[`...)
			for i, a := range e.Addresses {
				if i > 0 {
					out = append(out, ',')
				}
				out = ascii.AppendString(out, a)
			}
			out, sep = append(out, ']'), ','
		}
		if e.Missed > 0 {
			out = strconv.AppendInt(append(append(out, sep), `"missed":`...), e.Missed, 10)
		}
		out = append(out, '}')
	}
	return string(append(out, '}'))
}

func (c watchCmd) Run(a *app) (err error) {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	l, err := a.locate(cfg, c.Container)
	if err != nil {
		return err
	}
	if l.PID == 0 {
		return fmt.Errorf("container %s is not running: start it with podman start %s; terok-shield harvest %s shows what it was refused", l.Name, l.Name, l.Name)
	}
	process, err := bundle.ProcessOf(l.PID, l.NetNS)
	if err != nil {
		return fmt.Errorf("container %s: %w", l.Name, err)
	}
	b, err := bundle.Open(l.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	log, err := audit.Follow(b)
	if err != nil {
		return err
	}
	w := &watch{app: a, cmd: c, c: l, bundle: b, events: make(chan watchEvent, watchQueue)}
	ctx, cancel := context.WithCancel(a.ctx)
	var sources sync.WaitGroup
	defer sources.Wait()
	defer cancel() // first
	for _, source := range []func(context.Context){
		w.questions,
		w.packets,
		func(ctx context.Context) { w.audit(ctx, log) },
	} {
		sources.Go(func() { source(ctx) })
	}
	show := func(e watchEvent) { a.printf("%s\n", e.line()) }
	if c.Pretty {
		color := a.env.Color(a.env.Stdout)
		show = func(e watchEvent) { a.printf("%s\n", e.pretty(color)) }
	}
	alive := time.NewTicker(watchPause)
	defer alive.Stop()
	for {
		select {
		case e := <-w.events:
			show(e)
		case <-ctx.Done():
			return nil
		case <-alive.C:
			if process.Alive() {
				continue
			}
			for { // what came before its end
				select {
				case e := <-w.events:
					show(e)
					continue
				default:
				}
				return nil
			}
		}
	}
}

// watch is a running watch command.
type watch struct {
	app    *app
	cmd    watchCmd
	c      shielded.Container
	bundle *bundle.Bundle
	events chan watchEvent

	mu    sync.Mutex
	namer *names.Client // for the names of addresses; nil if not connected
}

// tell hands an event on. A full queue makes its source wait.
func (w *watch) tell(ctx context.Context, e watchEvent) error {
	e.Container = w.c.Name
	select {
	case w.events <- e:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// again repeats what a source does until ctx ends. What it says when it fails
// for the first time, or in another way than before, goes to stderr.
func (w *watch) again(ctx context.Context, f func(context.Context) error) {
	last := ""
	for {
		err := f(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil && err.Error() != last {
			last = err.Error()
			w.app.warn(last)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchPause):
		}
	}
}

// questions are those that the container asks about names. Where nobody
// answers it, in another way than Podman does, there are none.
func (w *watch) questions(ctx context.Context) {
	w.again(ctx, func(ctx context.Context) error {
		n, err := w.bundle.Namer()
		if err != nil || n.Socket == "" || !n.Alive() {
			return err // it may come back
		}
		c, err := names.Dial(ctx, n.Socket)
		if err != nil {
			return err
		}
		defer c.Close()
		err = c.Watch(ctx, func(q names.Question) error {
			e, ok := w.cmd.question(q)
			if !ok {
				return nil
			}
			return w.tell(ctx, e)
		})
		if !n.Alive() {
			return nil
		}
		return err
	})
}

// question is the event of a question; ok is false if it is not asked for.
func (c watchCmd) question(q names.Question) (e watchEvent, ok bool) {
	action := map[string]string{
		names.Refused: "blocked_query", names.Denied: "blocked_query", names.Allowed: "allowed_query",
		names.Resolved: "resolved_query", names.Failed: "failed_query",
	}[q.Verdict]
	if action == "" {
		action = "query"
	}
	if !c.All && (action != "blocked_query" || q.Type != "A" && q.Type != "AAAA") {
		return watchEvent{}, false
	}
	when, err := time.Parse(time.RFC3339Nano, q.Time)
	if err != nil {
		when = time.Now()
	}
	return watchEvent{
		Time: when.UTC().Format(timeFormat), Source: fromDNS, Action: action, Domain: q.Name, QueryType: q.Type,
		Detail: q.Reason, Addresses: q.Addresses, Missed: q.Missed,
	}, true
}

// audit are the lines that are written to the audit log.
func (w *watch) audit(ctx context.Context, log *audit.Follower) {
	err := log.Run(ctx, func(r audit.Record) error { return w.tell(ctx, logged(r)) })
	if err != nil && ctx.Err() == nil {
		w.app.warn(err.Error())
	}
}

// logged is the event of an audit line.
func logged(r audit.Record) watchEvent {
	e := r.Entry()
	if e.Action == "" {
		e.Action = "unknown"
	}
	return watchEvent{
		Time: r.Time, Source: fromAudit, Action: e.Action, Domain: e.Domain,
		Dest: e.Dest, Detail: e.Detail, Port: e.Port, Proto: protoNumber(e.Proto),
	}
}

func protoNumber(word string) uint8 {
	switch word {
	case "tcp":
		return nflog.TCP
	case "udp":
		return nflog.UDP
	}
	n, err := strconv.ParseUint(word, 10, 8)
	if err != nil {
		return 0
	}
	return uint8(n)
}

func protoWord(n uint8) string {
	switch n {
	case nflog.TCP:
		return "tcp"
	case nflog.UDP:
		return "udp"
	}
	return strconv.Itoa(int(n))
}

// nameOf is the name that the container asked for last and was answered with
// the address; "" if none is known.
func (w *watch) nameOf(ctx context.Context, addr netip.Addr) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, watchPause)
	defer cancel()
	if w.namer == nil {
		n, err := w.bundle.Namer()
		if err != nil || n.Socket == "" || !n.Alive() {
			return ""
		}
		if w.namer, err = names.Dial(ctx, n.Socket); err != nil {
			w.namer = nil
			return ""
		}
	}
	found, err := w.namer.Names(ctx, addr)
	if err != nil {
		w.namer.Close()
		w.namer = nil
		return ""
	}
	if len(found) == 0 {
		return ""
	}
	return found[0].Name
}
