package hub

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/terok-ai/terok-box/wire/event"
)

const (
	// MaxState bounds what is given to Save, in bytes. The oldest questions
	// do not go into it when there is more.
	MaxState = 1 << 20
	// saveDelay is how long a change may stay unsaved.
	saveDelay    = 50 * time.Millisecond
	stateVersion = 1
)

// state is what outlives the hub.
type state struct {
	Version  int                 `json:"version"`
	Last     uint64              `json:"last"`
	Dossiers []map[string]string `json:"dossiers"`
	Pending  []savedQuestion     `json:"pending"` // the oldest first
}

type savedQuestion struct {
	ID        string `json:"id"`
	Container string `json:"container"`
	Dest      string `json:"dest"`
	Port      int64  `json:"port"`
	Proto     int64  `json:"proto"`
	Domain    string `json:"domain"`
	Dossier   int    `json:"dossier"` // in Dossiers
	Time      int64  `json:"time"`    // when it was asked: milliseconds since 1970
}

// changed has the questions saved soon.
func (h *Hub) changed() { signal(h.dirty) }

// save saves what changed until the hub ends, and leaves the last time to
// Close.
func (h *Hub) save() {
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-h.dirty:
		}
		select { // there is more to come
		case <-h.ctx.Done():
			return
		case <-time.After(saveDelay):
		}
		h.config.Save(h.state())
	}
}

// state is what is to be saved.
func (h *Hub) state() []byte {
	h.mu.Lock()
	// What comes now is in what is about to be saved.
	select {
	case <-h.dirty:
	default:
	}
	s := state{Version: stateVersion, Last: h.last, Dossiers: []map[string]string{}, Pending: []savedQuestion{}}
	var open []*question
	for q := range h.open.each {
		open = append(open, q)
	}
	h.mu.Unlock()

	const frame = 256 // bytes of state without its lists
	room := MaxState - frame
	for _, q := range slices.Backward(open) { // the newest matter most
		e := q.event
		saved := savedQuestion{
			ID: e.RequestID, Container: e.Container, Dest: e.Dest, Port: e.Port, Proto: e.Proto, Domain: e.Domain,
			Dossier: len(s.Dossiers) - 1, Time: q.at.UnixMilli(),
		}
		if saved.Dossier < 0 || !maps.Equal(s.Dossiers[saved.Dossier], e.Dossier) { // most neighbours have the same
			saved.Dossier++
			if room -= size(e.Dossier); room < 0 {
				break
			}
			s.Dossiers = append(s.Dossiers, e.Dossier)
		}
		if room -= size(saved); room < 0 {
			break
		}
		s.Pending = append(s.Pending, saved)
	}
	slices.Reverse(s.Pending)
	return encode(s)
}

// size is what a value takes in a list.
func size(v any) int { return len(encode(v)) + len(",") }

// encode is JSON of what can be encoded.
func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		return nil // cannot be: there are only strings and integers
	}
	return data
}

// restore takes the questions of an earlier hub back. After an error there are
// none.
func (h *Hub) restore(data []byte) error {
	open, last, err := h.parse(data)
	if err != nil {
		return fmt.Errorf("what was saved cannot be used: %w", err)
	}
	h.open, h.last = open, last
	return nil
}

func (h *Hub) parse(data []byte) (open questions, last uint64, err error) {
	open = newQuestions()
	if len(data) > MaxState {
		return open, 0, fmt.Errorf("it has more than %d bytes", MaxState)
	}
	var s state
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return open, 0, err
	}
	_, err = d.Token()
	switch {
	case !errors.Is(err, io.EOF):
		return open, 0, errors.New("there is more after it")
	case s.Version != stateVersion:
		return open, 0, fmt.Errorf("it has version %d, not %d", s.Version, stateVersion)
	case len(s.Pending) > maxQuestions:
		return open, 0, fmt.Errorf("it has more than %d questions", maxQuestions)
	case s.Last > maxNumber:
		return open, 0, errors.New("it has a request number that is too high")
	}
	last = s.Last
	now := time.Now()
	before := time.Time{}
	for _, saved := range s.Pending {
		if saved.ID == "" || open.ids[clean(saved.ID)] != nil {
			return newQuestions(), 0, errors.New("it has a question without an id of its own")
		}
		if saved.Dossier < 0 || saved.Dossier >= len(s.Dossiers) {
			return newQuestions(), 0, errors.New("it has a question about nobody knows what")
		}
		e, err := h.translate(event.Event{
			Type: event.Blocked, Container: saved.Container, ID: saved.ID, Dest: saved.Dest, Domain: saved.Domain,
			Port: saved.Port, Proto: saved.Proto, Dossier: s.Dossiers[saved.Dossier],
		})
		if err != nil {
			return newQuestions(), 0, err
		}
		at := time.UnixMilli(saved.Time)
		if at.After(now) { // the clock was set back
			at = now
		}
		if at.Before(before) {
			at = before
		}
		before = at
		if now.Sub(at) < lifetime {
			h.share(e)
			open.add(&question{event: e, at: at})
		}
		last = max(last, number(e.RequestID))
	}
	return open, last, nil
}
