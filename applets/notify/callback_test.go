package notify

import (
	"bytes"
	"io"
	"log/slog"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// syncBuffer is a buffer for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestCallback(t *testing.T) {
	var shown []uint32
	c := NewCallback(func(id uint32, p Popup) { shown = append(shown, id) })
	p, what := heard(Popup{Actions: []Action{{Key: "k", Label: "L"}}})
	id := mustShow(t, c, p)
	if other := mustShow(t, c, Popup{}); other == id {
		t.Error(other)
	}
	if c.Invoke(id, "other") || c.Invoke(77, "k") || !c.Invoke(id, "k") || !c.Invoke(id, "k") { // it can fail, and be tried again
		t.Error("wrong actions")
	}
	for range 2 {
		if got := receive(t, "action", what); got != "chosen k" {
			t.Error(got)
		}
	}
	p.Replaces = id
	mustShow(t, c, p)
	if d := cmp.Diff([]uint32{1, 2, 1}, shown); d != "" {
		t.Error(d)
	}
	if !c.Dismiss(id) || c.Dismiss(id) || c.Invoke(id, "k") {
		t.Error("it is there")
	}
	if got := receive(t, "close", what); got != "closed dismissed" {
		t.Error(got)
	}
	p.Replaces = 0
	id = mustShow(t, c, p)
	if err := c.Close(t.Context(), id); err != nil || c.Invoke(id, "k") {
		t.Error("it is there", err)
	}
	c.Disconnect()
	if got, err := c.Notify(t.Context(), p); got != 0 || err != nil {
		t.Error(got, err)
	}
	quiet(t, what)
}

func TestNull(t *testing.T) {
	var n Notifier = Null{}
	id, err := n.Notify(t.Context(), Popup{})
	if id != 0 || err != nil || n.Close(t.Context(), 1) != nil {
		t.Error(id, err)
	}
	n.Disconnect()
}

func textLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
