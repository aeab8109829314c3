// Package hub stands between those who see blocked packets and those who
// decide about them: it takes events from producers, passes them on to every
// subscriber, remembers which questions are open, and has the answer to one
// of them carried out.
//
// It knows nothing of firewalls and never carries out an answer itself. It
// must never import another applet.
package hub

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/attempt"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/sanitize"
)

const (
	shortID = 12 // digits
	// maxNumber bounds the number in a request id. One that is larger was not
	// counted by a reader, who would run out of numbers after it.
	maxNumber = math.MaxInt64 / 2
)

// ErrClosed says that the hub has ended.
var ErrClosed = errors.New("the hub has ended")

// ErrOther says that an event is about a container that the hub is not for.
var ErrOther = errors.New("the event is about another container")

// Config is what a Hub is made of.
type Config struct {
	// Container is the short id of the only container that the hub is for,
	// and Aliases are what producers may call it instead: its full id, its
	// name. "" stands for every container.
	Container string
	Aliases   []string

	// Verdict carries an answer out. It must end soon after ctx does, which is
	// no later than 10 seconds after the call. That it fails, takes longer or
	// panics leaves the question open.
	Verdict func(ctx context.Context, container, dest, action string) (ok bool, stderr string)

	// Save, if not nil, is given the open questions not later than 50 ms
	// after they have changed, and when the hub is closed: at most MaxState
	// bytes. Its calls do not overlap. Restore is what it was given last.
	Save    func(state []byte)
	Restore []byte

	Log *slog.Logger
}

// Hub is safe for concurrent use.
type Hub struct {
	config Config
	ctx    context.Context // ends with the hub
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // who saves and who waits for an answer; added to while not closed
	dirty  chan struct{}  // holds one element if there is something to be saved

	attempts *attempt.Limits // of verdicts

	mu      sync.Mutex
	closed  bool
	open    questions
	last    uint64            // the highest number in a request id
	dossier map[string]string // of the last event
	subs    map[*subscriber]struct{}
}

// New makes a hub. What cannot be restored is a warning.
func New(c Config) (*Hub, error) {
	switch {
	case c.Verdict == nil:
		return nil, errors.New("a hub needs somebody who carries out verdicts")
	case c.Log == nil:
		c.Log = slog.New(slog.DiscardHandler)
	}
	h := &Hub{
		config: c,
		dirty:  make(chan struct{}, 1),

		attempts: attempt.NewLimits(maxAnswers, verdictTimeout),

		open:    newQuestions(),
		dossier: make(map[string]string),
		subs:    make(map[*subscriber]struct{}),
	}
	h.ctx, h.cancel = context.WithCancelCause(context.Background())
	if len(c.Restore) > 0 {
		if err := h.restore(c.Restore); err != nil {
			h.config.Log.Warn("the questions that were open are lost", "err", err)
		}
		h.config.Restore = nil
	}
	if c.Save != nil {
		h.wg.Go(h.save)
	}
	return h, nil
}

// Close ends the hub: subscriptions end, and so does what is being carried
// out. Questions that are open then are saved. To call it again does nothing.
func (h *Hub) Close() {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return
	}
	h.closed = true
	h.mu.Unlock()
	h.cancel(ErrClosed)
	h.wg.Wait()
	if h.config.Save != nil {
		h.config.Save(h.state())
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open = newQuestions()
}

// Ingest takes an event: what producers send, and the reader that lives in the
// same process. It is not the caller's to be changed any more. The error says
// why it was dropped: ErrOther, ErrClosed, or event.ErrIgnored.
func (h *Hub) Ingest(e event.Event) error {
	out, err := h.translate(e)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return ErrClosed
	}
	h.share(out)
	now := time.Now()
	if h.open.expire(now) {
		h.changed()
	}
	switch out.Type {
	case event.Blocked:
		if out.RequestID != "" {
			h.open.add(&question{event: out, at: now})
			h.last = max(h.last, number(out.RequestID))
			h.changed()
		}
	case event.ShieldDown, event.ShieldDisengaged, event.ContainerExited:
		if h.open.purge(func(q *question) bool { return sameContainer(q.event, out) }) {
			h.changed()
		}
	}
	h.fanOut(out)
	return nil
}

// translate is an event as subscribers see it: every text sanitised, whoever
// sent it, and nothing in it that does not belong to its type.
func (h *Hub) translate(e event.Event) (*clearance.Event, error) {
	out := &clearance.Event{Type: e.Type, Dossier: dossier(e.Dossier)}
	switch e.Type {
	case event.Blocked:
		out.RequestID = clean(e.ID)
		out.Dest, out.Domain = clean(e.Dest), clean(e.Domain)
		out.Port, out.Proto = e.Port, e.Proto
	case event.ContainerExited:
		out.Reason = clean(e.Reason)
	case event.ContainerStarted, event.ShieldUp, event.ShieldDown, event.ShieldDisengaged:
	default:
		return nil, fmt.Errorf("%w: type %q", event.ErrIgnored, clean(e.Type))
	}
	container := clean(e.Container)
	if h.config.Container == "" {
		out.Container = container
		return out, nil
	}
	if container != h.config.Container && !slices.Contains(h.config.Aliases, container) && short(container) != short(h.config.Container) {
		return nil, fmt.Errorf("%w: %q", ErrOther, container)
	}
	out.Container = h.config.Container
	return out, nil
}

// share gives an event the dossier of the one before it if they are equal, as
// most are, so that there is only one.
func (h *Hub) share(e *clearance.Event) {
	if maps.Equal(h.dossier, e.Dossier) {
		e.Dossier = h.dossier
	}
	h.dossier = e.Dossier
}

func clean(s string) string { return sanitize.String(s, sanitize.Max) }

// dossier is what is told about a container, within the bounds of package
// event.
func dossier(m map[string]string) map[string]string {
	out := make(map[string]string, min(len(m), event.MaxDossier))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if len(out) == event.MaxDossier {
			break
		}
		if key == sanitize.String(key, event.MaxKey) {
			out[key] = clean(m[key])
		}
	}
	return out
}

// short is what a container is called here if s is an id, else s.
func short(s string) string {
	const hex = "0123456789abcdefABCDEF"
	if len(s) < shortID || len(s) > 64 || strings.Trim(s, hex) != "" {
		return s
	}
	return s[:shortID]
}

// sameContainer reports whether two events are about the same container.
// Readers call it by its id and commands by its name: then the dossier tells.
func sameContainer(a, b *clearance.Event) bool {
	if short(a.Container) == short(b.Container) {
		return true
	}
	named := func(e *clearance.Event, name string) bool {
		return name != "" && name == cmp.Or(e.Dossier["container_name"], e.Dossier["name"])
	}
	return named(a, b.Container) || named(b, a.Container)
}

// number is what stands after the last colon of a request id; 0 if that is no
// number.
func number(id string) uint64 {
	n, err := strconv.ParseUint(id[strings.LastIndexByte(id, ':')+1:], 10, 64)
	if err != nil || n > maxNumber {
		return 0
	}
	return n
}

// LastID is the highest number of a request id, "container:number", that the
// hub has seen or remembers from before it was started; 0 if there is none.
// Whoever goes on counting from there gives no id twice.
func (h *Hub) LastID() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last
}

// Pending are the questions that can be answered, one for each target: its
// newest. The oldest comes first.
func (h *Hub) Pending() []clearance.Event {
	h.mu.Lock()
	newest := h.pending()
	h.mu.Unlock()
	out := make([]clearance.Event, len(newest))
	for i, e := range newest {
		out[i] = *e
		out[i].Dossier = maps.Clone(e.Dossier)
	}
	return out
}

func (h *Hub) pending() []*clearance.Event {
	if h.open.expire(time.Now()) {
		h.changed()
	}
	return h.open.newestEvents()
}
