// Package upstream asks the host's name servers on behalf of a container: the
// best one first, the others when it is slow or fails, as the host's
// resolv.conf says at the moment. It believes an answer only if it fits the
// question in everything that an attacker would have to guess.
//
// It must never cache, filter or judge names, know of containers and
// firewalls, nor import an applet.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"github.com/terok-ai/terok-box/applets/internal/resolve"
)

const (
	total    = 5 * time.Second // for one question, whatever happens
	maxAsked = 256             // questions that servers have at a time
	maxTCP   = 64              // of these: an answer over TCP may have 64 KiB
	rounds   = 3               // how often all servers are asked that fail at once
	pause    = 200 * time.Millisecond
	grace    = 1500 * time.Millisecond // for the other servers, when one has said that it cannot answer

	// When the next server is asked, too: after twice the time that this one
	// usually takes.
	minRace = 50 * time.Millisecond
	maxRace = 500 * time.Millisecond
)

var (
	// ErrTimeout says that no server answered in time.
	ErrTimeout = errors.New("no answer in time")
	// ErrName says that a name cannot be asked for.
	ErrName = errors.New("not a domain name")

	errClosed = errors.New("the program ends")
)

// Query is a question.
type Query struct {
	Name string // in presentation form (RFC 1035 §5.1), with or without the dot at the end
	Type uint16
	DO   bool // DNSSEC records are wanted (RFC 3225)
	CD   bool // DNSSEC is not to be checked (RFC 4035 §3.2.2)
}

// Client asks the name servers of a resolv.conf file. It is safe for
// concurrent use.
type Client struct {
	file     *resolve.Follower
	port     uint16
	asked    chan struct{} // has room for those that servers may have
	tcp      chan struct{}
	buffers  sync.Pool
	log      *slog.Logger
	strays   atomic.Int64  // packets that were passed over: they did not answer the question of their socket
	warned   atomic.Int64  // when that was in the log last, Unix seconds
	turn     atomic.Uint32 // of options rotate
	ctx      context.Context
	cancel   context.CancelFunc
	total    time.Duration
	probeMin time.Duration

	mu      sync.Mutex
	closed  bool
	open    sync.WaitGroup // questions that are asked, and goroutines
	servers []*server      // of the file as it was last, in its order
	ports   map[*port]struct{}
}

// Option changes how a Client works.
type Option func(*Client)

// Port is where the servers listen, for tests: a resolv.conf file cannot say.
func Port(n uint16) Option { return func(c *Client) { c.port = n } }

// New makes a Client of the resolv.conf file at a path. The file need not
// exist yet.
func New(path string, log *slog.Logger, opts ...Option) *Client {
	c := &Client{
		log:      log,
		asked:    make(chan struct{}, maxAsked),
		tcp:      make(chan struct{}, maxTCP),
		total:    total,
		ports:    map[*port]struct{}{},
		probeMin: minProbe,
	}
	c.buffers.New = func() any { return new([maxUDP + 1]byte) }
	c.ctx, c.cancel = context.WithCancel(context.Background())
	for _, o := range opts {
		o(c)
	}
	c.file = resolve.Follow(path, c.port, log)
	return c
}

// Close ends what is being asked and waits for that.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.failPorts(errClosed)
	c.open.Wait()
}

// Servers are those of the file now; none if it cannot be read and never
// could.
func (c *Client) Servers() []netip.AddrPort {
	conf, err := c.file.Config()
	if err != nil {
		return nil
	}
	return slices.Clone(conf.Servers)
}

// reply is what one server said.
type reply struct {
	server *server
	msg    *dns.Msg
	err    error
}

// Ask asks a question and has done called with what comes of it, once, which
// must not take long: others wait for the goroutine. The answer is a server's,
// of whatever code: names that do not exist are an answer, and if no server
// does better, so is a refusal. Its question, and the owners of records that
// are the question's name, are written as the query has them. Its id means
// nothing.
//
// After five seconds it gives up, and soon after the end of ctx. Errors are an
// *Error if servers were asked.
func (c *Client) Ask(ctx context.Context, q Query, done func(*dns.Msg, error)) {
	asked, err := newQuestion(q)
	if err != nil {
		done(nil, err)
		return
	}
	order, conf, err := c.begin(asked)
	if err != nil {
		done(nil, err)
		return
	}
	e := &exchange{c: c, ctx: ctx, q: asked, conf: conf, order: order, done: done}
	if !e.simple() {
		go e.all(nil)
	}
}

// exchange is one question that is asked.
type exchange struct {
	c     *Client
	ctx   context.Context
	q     *question
	conf  resolve.Config
	order []*server // best first
	done  func(*dns.Msg, error)

	mu    sync.Mutex // of what simple has begun
	timer *time.Timer
	first *inquiry // nil: it is not simple any more

	replies chan reply
	sent    int // also says who is next
	open    int
	err     Error
}

// simple is all there is to most questions: the best server is asked over UDP
// and answers soon. That needs no goroutine. If it turns out otherwise, all
// goes on with it. It reports whether it could begin.
func (e *exchange) simple() bool {
	if e.conf.TCP || !e.c.admit(e.ctx, false) {
		return false
	}
	e.mu.Lock() // so that an answer or the timer finds all of this
	defer e.mu.Unlock()
	edns, mix := e.order[0].manners()
	in, err := e.c.inquire(e.order[0], e.q, edns, mix, e.heard)
	if err != nil {
		<-e.c.asked
		return false
	}
	e.first = in
	e.timer = time.AfterFunc(e.race(), func() {
		if in := e.take(); in != nil {
			e.all(in)
		}
	})
	return true
}

// take is the inquiry for who comes first: an answer or the timer.
func (e *exchange) take() *inquiry {
	e.mu.Lock()
	defer e.mu.Unlock()
	in := e.first
	e.first = nil
	return in
}

// heard is called when there is something to hear of the first inquiry.
func (e *exchange) heard() {
	in := e.take()
	if in == nil {
		return // all listens to it
	}
	e.timer.Stop()
	h := in.result()
	if h.err == nil && h.kind == answer {
		if m, k := e.q.understand(h); k == answer && !refuses(m) {
			s := e.order[0]
			s.answered(time.Since(in.start))
			s.judged(false)
			<-e.c.asked
			e.done(m, nil)
			e.c.open.Done()
			return
		}
	}
	go e.all(in)
}

// all asks as many servers as it takes. first is the inquiry at the first one,
// which has its place among those that servers have; nil if there is none.
func (e *exchange) all(first *inquiry) {
	defer e.c.open.Done()
	ctx, cancel := context.WithTimeoutCause(e.ctx, e.c.total-first.since(), ErrTimeout)
	defer cancel() // ends what is still being asked
	defer context.AfterFunc(e.c.ctx, cancel)()
	e.replies = make(chan reply, rounds*len(e.order))
	e.done(e.run(ctx, first))
}

// run asks one server after the other: the next one when the one before is
// slow, or at once when it has failed. first is an inquiry at the first server,
// or nil.
func (e *exchange) run(ctx context.Context, first *inquiry) (*dns.Msg, error) {
	var refusal *dns.Msg // better than nothing
	var patience <-chan time.Time
	if !e.start(ctx, true, first) {
		return nil, e.fail(ctx)
	}
	timer := time.NewTimer(e.race() - first.since())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			if refusal != nil {
				return refusal, nil
			}
			return nil, e.fail(ctx)
		case <-patience:
			return refusal, nil
		case <-timer.C:
			// Without a free place the servers that were asked have to do.
			if e.open > 0 && e.sent%len(e.order) != 0 || e.open == 0 {
				e.start(ctx, e.open == 0, nil)
				timer.Reset(e.race())
			}
		case r := <-e.replies:
			e.open--
			switch {
			case r.err == nil && !refuses(r.msg):
				return r.msg, nil
			case r.err == nil && refusal == nil:
				refusal = r.msg
				patience = time.After(grace)
			case r.err != nil:
				e.err.add(r.server.addr, r.err)
			}
			switch {
			case ctx.Err() != nil: // see above
			case e.sent%len(e.order) != 0:
				e.start(ctx, e.open == 0, nil)
				timer.Reset(e.race())
			case e.open > 0:
			case refusal != nil:
				return refusal, nil
			case e.sent == rounds*len(e.order):
				return nil, e.fail(ctx)
			default: // all have failed, and may be starting
				timer.Reset(pause << (e.sent/len(e.order) - 1))
			}
		}
	}
}

// race is how long the next server waits for the one that was asked last.
func (e *exchange) race() time.Duration {
	last := e.order[max(e.sent-1, 0)%len(e.order)]
	return min(max(minRace, 2*last.usual()), maxRace)
}

// start asks the next server, when there is a place for the question. It
// reports whether there was one; without wait it does not wait for it. first
// is as in run, and has its place.
func (e *exchange) start(ctx context.Context, wait bool, first *inquiry) bool {
	if first == nil && (e.sent == cap(e.replies) || !e.c.admit(ctx, wait)) {
		return false
	}
	s := e.order[e.sent%len(e.order)]
	e.sent, e.open = e.sent+1, e.open+1
	e.c.open.Go(func() { // the question's own keeps it from being zero
		m, err := e.c.ask(ctx, s, e.q, e.conf, first)
		<-e.c.asked
		e.replies <- reply{s, m, err}
	})
	return true
}

// admit waits until a server may have another question.
func (c *Client) admit(ctx context.Context, wait bool) bool {
	select {
	case c.asked <- struct{}{}:
		return true
	default:
	}
	if !wait {
		return false
	}
	select {
	case c.asked <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// refuses says whether another server may know better: this one could not
// answer, or would not (RFC 1035 §4.1.1).
func refuses(m *dns.Msg) bool {
	return m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError
}

// begin is the servers to ask, best first, one of which is also checked on if
// it is time to. c.open has one more until the question is answered.
func (c *Client) begin(q *question) ([]*server, resolve.Config, error) {
	conf, err := c.file.Config()
	if err != nil {
		return nil, conf, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, conf, errClosed
	}
	if !slices.EqualFunc(c.servers, conf.Servers, func(s *server, a netip.AddrPort) bool { return s.addr == a }) {
		var now []*server
		for _, a := range conf.Servers {
			i := slices.IndexFunc(c.servers, func(s *server) bool { return s.addr == a })
			switch {
			case slices.ContainsFunc(now, func(s *server) bool { return s.addr == a }): // twice in the file
			case i >= 0:
				now = append(now, c.servers[i])
			default:
				now = append(now, &server{addr: a})
			}
		}
		c.servers = now
	}
	c.open.Add(1)
	order := rank(c.servers, conf.Rotate, c.turn.Add(1))
	if s := due(c.servers, order[0], time.Now(), c.probeMin); s != nil {
		c.open.Add(1)
		go c.probe(s, q, conf)
	}
	return order, conf, nil
}

// probe asks a server only to see how it is.
func (c *Client) probe(s *server, q *question, conf resolve.Config) {
	defer c.open.Done()
	if !c.admit(c.ctx, false) {
		return
	}
	defer func() { <-c.asked }()
	ctx, cancel := context.WithTimeoutCause(c.ctx, c.total, ErrTimeout)
	defer cancel()
	_, _ = c.ask(ctx, s, q, conf, nil) // notes what comes of it
}

// fail is why there is no answer. Servers that were asked and have not failed
// have not answered.
func (e *exchange) fail(ctx context.Context) error {
	e.err.cause = context.Cause(ctx)
	if e.c.ctx.Err() != nil {
		e.err.cause = errClosed
	}
	for _, s := range e.order[:min(e.sent, len(e.order))] {
		if !slices.ContainsFunc(e.err.Failures, func(f Failure) bool { return f.Server == s.addr }) {
			e.err.add(s.addr, ErrTimeout)
		}
	}
	if e.sent == 0 && errors.Is(e.err.cause, ErrTimeout) {
		return fmt.Errorf("%w: %d questions wait for name servers already", ErrTimeout, maxAsked)
	}
	return &e.err
}

// Error is why there is no answer.
type Error struct {
	Failures []Failure // of the servers that were asked, each once
	cause    error     // why no more were asked; nil: all have failed
}

// Failure is what went wrong with a server.
type Failure struct {
	Server netip.AddrPort
	Err    error
}

// add notes a failure, the last one of a server.
func (e *Error) add(server netip.AddrPort, err error) {
	err = short(err)
	for i := range e.Failures {
		if e.Failures[i].Server == server {
			e.Failures[i].Err = err
			return
		}
	}
	e.Failures = append(e.Failures, Failure{server, err})
}

// short leaves out what is known: addresses and ports.
func short(err error) error {
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return errno
	case errors.Is(err, context.DeadlineExceeded):
		return ErrTimeout
	}
	return err
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("the host's name servers do not answer")
	sep := ": "
	for _, f := range e.Failures {
		fmt.Fprintf(&b, "%s%v: %v", sep, f.Server, f.Err)
		sep = "; "
	}
	if e.cause != nil && !errors.Is(e.cause, ErrTimeout) {
		fmt.Fprintf(&b, "%s%v", sep, e.cause)
	}
	return b.String()
}

// Unwrap is all that has led to it.
func (e *Error) Unwrap() []error {
	var errs []error
	if e.cause != nil {
		errs = append(errs, e.cause)
	}
	for _, f := range e.Failures {
		errs = append(errs, f.Err)
	}
	return errs
}
