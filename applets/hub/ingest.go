package hub

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"

	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/sanitize"
	"github.com/terok-ai/terok-box/wire/varlink"
)

const (
	// maxProducers bounds the connections of those who send events.
	maxProducers = 256
	// maxComplaints bounds the lines in the log about one connection, and
	// shownLine the bytes of a line that are shown there.
	maxComplaints = 16
	shownLine     = 120
	minBuffer     = 4 << 10 // bytes
	keepBuffer    = 16 << 10
)

// ServeIngest takes events from processes of our own user that connect to the
// listener, until ctx ends, which is not an error, or the listener fails. It
// closes the listener and all connections before it returns.
func (h *Hub) ServeIngest(ctx context.Context, l net.Listener) error {
	return varlink.Accept(ctx, l, maxProducers, h.config.Log, func(_ context.Context, conn *net.UnixConn, peer varlink.Peer) {
		p := producer{hub: h, lines: lines{r: conn}, log: h.config.Log.With("pid", peer.PID)}
		p.serve()
	})
}

// producer is a connection over which events come.
type producer struct {
	hub        *Hub
	lines      lines
	log        *slog.Logger
	complaints int
}

// serve takes events until the connection is at its end. Nothing that a line
// has in it ends it.
func (p *producer) serve() {
	for {
		line, err := p.lines.next()
		switch {
		case errors.Is(err, errLongLine):
			p.complain("line dropped: too long", "limit", event.MaxLine)
		case err != nil:
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				p.log.Debug("producer's connection closed", "err", err)
			}
			return
		default:
			p.line(line)
		}
	}
}

func (p *producer) line(line []byte) {
	line = bytes.TrimSpace(line)
	if len(line) == 0 {
		return
	}
	e, err := event.Parse(line)
	if err == nil {
		err = p.hub.Ingest(e)
	}
	switch {
	case err == nil:
	case errors.Is(err, event.ErrIgnored), errors.Is(err, ErrClosed):
		p.log.Debug("event dropped", "err", err)
	default:
		p.complain("event dropped", "err", err, "line", sanitize.String(string(line[:min(len(line), shownLine)]), shownLine))
	}
}

// complain logs what is wrong with what a producer sends.
func (p *producer) complain(msg string, args ...any) {
	p.complaints++
	if p.complaints > maxComplaints {
		p.log.Debug(msg, args...)
		return
	}
	p.log.Warn(msg, args...)
	if p.complaints == maxComplaints {
		p.log.Warn("no more is logged about this producer's connection")
	}
}

var errLongLine = errors.New("line is too long")

// lines cuts what is read into lines.
type lines struct {
	r     io.Reader
	buf   []byte
	start int  // in buf, of the next line
	seen  int  // bytes from there on without a line feed
	skip  bool // up to the next line feed
	ended error
}

// next is the next line without its line feed, which is valid until the next
// call. What comes after the last line feed is a line as well. After
// errLongLine, which stands for one line, it can be called again.
func (l *lines) next() ([]byte, error) {
	for {
		if n := bytes.IndexByte(l.buf[l.start+l.seen:], '\n'); n >= 0 {
			n += l.seen
			line := l.buf[l.start : l.start+n]
			l.start += n + 1
			l.seen = 0
			switch {
			case l.skip:
				l.skip = false
				continue
			case n > event.MaxLine:
				return nil, errLongLine
			}
			return line, nil
		}
		l.seen = len(l.buf) - l.start
		if l.ended != nil {
			rest := l.buf[l.start:]
			l.start, l.seen = len(l.buf), 0
			switch {
			case len(rest) == 0 || l.skip || !errors.Is(l.ended, io.EOF):
				return nil, l.ended
			case len(rest) > event.MaxLine:
				return nil, errLongLine
			}
			return rest, nil
		}
		if l.skip || l.seen > event.MaxLine {
			l.start, l.seen = len(l.buf), 0
			if !l.skip {
				l.skip = true
				return nil, errLongLine
			}
		}
		l.fill()
	}
}

// fill reads more.
func (l *lines) fill() {
	if l.start > 0 {
		l.buf = l.buf[:copy(l.buf, l.buf[l.start:])]
		l.start = 0
	}
	if len(l.buf) == 0 && cap(l.buf) > keepBuffer {
		l.buf = nil
	}
	if len(l.buf) == cap(l.buf) {
		size := max(minBuffer, min(2*cap(l.buf), event.MaxLine+minBuffer))
		l.buf = append(make([]byte, 0, size), l.buf...)
	}
	n, err := l.r.Read(l.buf[len(l.buf):cap(l.buf)])
	l.buf = l.buf[:len(l.buf)+n]
	if err != nil {
		l.ended = err
	}
}
