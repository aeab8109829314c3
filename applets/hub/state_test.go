package hub

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/event"
)

// disk is what a hub saved last.
type disk struct {
	mu    sync.Mutex
	data  []byte
	saved int
}

func (d *disk) save(data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.data = data
	d.saved++
}

func (d *disk) load() ([]byte, int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.data, d.saved
}

// What a hub that is killed has asked, the next one goes on asking.
func TestRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d disk
		outcomes := make(chan bool)
		h, err := New(Config{Save: d.save, Container: shortened, Verdict: func(ctx context.Context, _, _, _ string) (bool, string) {
			select {
			case ok := <-outcomes:
				return ok, ""
			case <-ctx.Done():
				return false, ""
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		first, second := block(shortened, 7, "203.0.113.9", ""), block(shortened, 8, "203.0.113.10", "example.com")
		second.Dossier = map[string]string{"task": `"quoted"`, "project": "p"}
		again := block(shortened, 9, "203.0.113.9", "")
		ingest(t, h, first, second, again)
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
		data, n := d.load()
		if n != 1 {
			t.Errorf("saved %d times", n)
		}
		// It is killed in the middle of a verdict.
		r := clearance.Request{Container: shortened, RequestID: again.ID, Dest: "203.0.113.9", Action: clearance.Allow}
		go h.Verdict(t.Context(), r)
		synctest.Wait()

		next, err := New(Config{Verdict: yes, Container: shortened, Restore: data, Save: d.save})
		if err != nil {
			t.Fatal(err)
		}
		defer next.Close()
		diff(t, h.Pending(), next.Pending())
		diff(t, []clearance.Event{asked(second), asked(again)}, next.Pending())
		if got := next.LastID(); got != 9 {
			t.Errorf("last id %d", got)
		}
		for _, e := range []event.Event{first, again} { // both can still be answered
			if err := next.Verdict(t.Context(), clearance.Request{Container: shortened, RequestID: e.ID, Dest: "203.0.113.9", Action: clearance.Allow}); err != nil {
				t.Errorf("%s: %v", e.ID, err)
			}
		}
		ingest(t, next, event.Event{Type: event.ContainerExited, Container: shortened})
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
		data, _ = d.load()
		third, err := New(Config{Verdict: yes, Container: shortened, Restore: data})
		if err != nil {
			t.Fatal(err)
		}
		defer third.Close()
		if got := third.Pending(); len(got) != 0 {
			t.Errorf("%+v", got)
		}
		if got := third.LastID(); got != 9 { // ids go on counting
			t.Errorf("last id %d", got)
		}
		// Time goes on while nobody counts it.
		time.Sleep(23 * time.Hour)
		ingest(t, next, block(shortened, 10, "203.0.113.11", ""))
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
		data, _ = d.load()
		for _, want := range []int{1, 0} {
			time.Sleep(23 * time.Hour) // 23, then 46
			late, err := New(Config{Verdict: yes, Container: shortened, Restore: data})
			if err != nil {
				t.Fatal(err)
			}
			if got := len(late.Pending()); got != want {
				t.Errorf("%d questions, want %d", got, want)
			}
			late.Close()
		}
	})
}

// Saved soon, but not for each of many changes, and at the end.
func TestSaveTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d disk
		h, err := New(Config{Save: d.save, Verdict: yes})
		if err != nil {
			t.Fatal(err)
		}
		saved := func(want int) {
			t.Helper()
			synctest.Wait()
			if _, n := d.load(); n != want {
				t.Errorf("saved %d times, want %d", n, want)
			}
		}
		saved(0)
		time.Sleep(time.Hour)
		ingest(t, h, event.Event{Type: event.ShieldUp, Container: "c"}, event.Event{Type: event.ShieldDown, Container: "c"})
		time.Sleep(time.Second)
		saved(0) // nothing has changed
		ingest(t, h, block("c", 1, "203.0.113.9", ""))
		time.Sleep(50*time.Millisecond - 1)
		saved(0)
		time.Sleep(time.Nanosecond)
		saved(1)
		for n := range 1000 {
			ingest(t, h, block("c", n, fmt.Sprintf("2001:db8::%x", n), ""))
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		if _, n := d.load(); n < 20 || n > 22 {
			t.Errorf("saved %d times in a second", n)
		}
		time.Sleep(time.Second)
		_, n := d.load()
		if err := h.Verdict(t.Context(), clearance.Request{Container: "c", RequestID: "c:5", Dest: "2001:db8::5", Action: clearance.Deny}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		saved(n + 1)
		ingest(t, h, block("c", 2000, "203.0.113.9", ""))
		h.Close()
		saved(n + 2)
		data, _ := d.load()
		if !bytes.Contains(data, []byte(`"c:2000"`)) || bytes.Contains(data, []byte(`"c:5"`)) {
			t.Errorf("%s", data)
		}
	})
}

// What it looks like: another version of this program reads it.
func TestStateFormat(t *testing.T) {
	h := &Hub{open: newQuestions()}
	at := time.UnixMilli(1767225600123)
	for _, e := range []event.Event{block("c", 3, "203.0.113.9", ""), block("c", 4, "", "<example>.com"), {Type: event.Blocked, Container: "d", ID: "d:1", Dest: "2001:db8::1"}} {
		out, err := h.translate(e)
		if err != nil {
			t.Fatal(err)
		}
		h.open.add(&question{event: out, at: at})
		h.last = max(h.last, number(e.ID))
	}
	diff(t, `{"version":1,"last":4,"dossiers":[{},{"project":"p"}],"pending":[`+
		`{"id":"c:3","container":"c","dest":"203.0.113.9","port":443,"proto":6,"domain":"","dossier":1,"time":1767225600123},`+
		`{"id":"c:4","container":"c","dest":"","port":443,"proto":6,"domain":"\u003cexample\u003e.com","dossier":1,"time":1767225600123},`+
		`{"id":"d:1","container":"d","dest":"2001:db8::1","port":0,"proto":0,"domain":"","dossier":0,"time":1767225600123}]}`, string(h.state()))
}

// Nonsense is a warning and no question.
func TestRestoreNonsense(t *testing.T) {
	now := time.Now().UnixMilli()
	q := func(id, container string, dossier int) string {
		return fmt.Sprintf(`{"id":"%s","container":"%s","dest":"203.0.113.9","port":443,"proto":6,"domain":"","dossier":%d,"time":%d}`, id, container, dossier, now)
	}
	whole := func(pending ...string) string {
		return `{"version":1,"last":3,"dossiers":[{}],"pending":[` + strings.Join(pending, ",") + `]}`
	}
	many := make([]string, maxQuestions+1)
	for i := range many {
		many[i] = q(fmt.Sprint("c:", i), "c", 0)
	}
	for name, tt := range map[string]struct {
		data string
		ok   bool
	}{
		"good":             {whole(q("c:1", "c", 0), q("c:2", "c", 0)), true},
		"empty":            {whole(), true},
		"as many as can":   {whole(many[1:]...), true},
		"too many":         {whole(many...), false},
		"half":             {whole(q("c:1", "c", 0))[:60], false},
		"more":             {whole() + "{}", false},
		"more brackets":    {whole() + "]", false},
		"null":             {"null", false},
		"an array":         {"[]", false},
		"NUL":              {strings.Repeat("\x00", 100), false},
		"other version":    {strings.Replace(whole(), `"version":1`, `"version":2`, 1), false},
		"no version":       {strings.Replace(whole(), `"version":1,`, ``, 1), false},
		"unknown member":   {strings.Replace(whole(), `"version":1`, `"version":1,"x":1`, 1), false},
		"last negative":    {strings.Replace(whole(), `"last":3`, `"last":-3`, 1), false},
		"last too high":    {strings.Replace(whole(), `"last":3`, `"last":18446744073709551615`, 1), false},
		"no dossier":       {whole(q("c:1", "c", 1)), false},
		"dossier negative": {whole(q("c:1", "c", -1)), false},
		"id twice":         {whole(q("c:1", "c", 0), q("c:1", "c", 0)), false},
		"id twice, almost": {whole(q("c:1\\u0001", "c", 0), q("c:1\\u0002", "c", 0)), false},
		"no id":            {whole(q("", "c", 0)), false},
		"another's":        {whole(q("c:1", "d", 0)), false},
		"port in words":    {strings.Replace(whole(q("c:1", "c", 0)), "443", `"443"`, 1), false},
		"deep":             {`{"version":1,"dossiers":` + strings.Repeat("[", 100000), false},
		"too long":         {whole() + strings.Repeat(" ", MaxState), false},
	} {
		log := new(syncBuffer)
		h, err := New(Config{Verdict: yes, Container: "c", Restore: []byte(tt.data), Log: slog.New(slog.NewTextHandler(log, nil))})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		warned := strings.Contains(log.String(), "are lost")
		if warned == tt.ok || !tt.ok && (len(h.Pending()) > 0 || h.LastID() > 0) {
			t.Errorf("%s: %d questions; log:\n%s", name, len(h.Pending()), log)
		}
		ingest(t, h, block("c", 5000, "203.0.113.9", ""))
		h.Close()
	}
	// What is in it goes no further than what comes in elsewhere.
	h := newHub(t, func(c *Config) {
		c.Restore = []byte(strings.ReplaceAll(whole(q("c:1", "c", 0)), "203.0.113.9", "\\u001b"+strings.Repeat("x", 300)))
	})
	if got := h.Pending()[0].Dest; got != " "+strings.Repeat("x", 252)+"..." {
		t.Errorf("%q", got)
	}
	// A clock that was set back does not make questions last.
	h = newHub(t, func(c *Config) {
		c.Restore = []byte(strings.ReplaceAll(whole(q("c:1", "c", 0)), fmt.Sprint(now), fmt.Sprint(now+int64(1000*time.Hour/time.Millisecond))))
	})
	if q := h.open.ids["c:1"]; q == nil || q.at.After(time.Now()) {
		t.Errorf("%+v", q)
	}
}

// However much there is, what is saved is bounded, can be restored, and has
// the newest.
func TestStateBounded(t *testing.T) {
	var d disk
	h := newHub(t, func(c *Config) { c.Save = d.save })
	for n := range maxQuestions {
		e := block("c", n, strings.Repeat(`"`, 256), fmt.Sprintf("%04d", n)+strings.Repeat(`\`, 252))
		e.Dossier = make(map[string]string)
		for i := range event.MaxDossier {
			e.Dossier[fmt.Sprintf("%064d", i)] = fmt.Sprintf("%06d", n) + strings.Repeat("<", 250)
		}
		ingest(t, h, e)
	}
	want := h.Pending()
	h.Close()
	data, _ := d.load()
	if len(data) > MaxState || len(data) < MaxState/2 {
		t.Errorf("%d bytes", len(data))
	}
	got := newHub(t, func(c *Config) { c.Restore = data }).Pending()
	if len(got) < 10 || !cmp.Equal(got, want[len(want)-len(got):]) {
		t.Errorf("%d questions of %d", len(got), len(want))
	}
}

// Nothing that is read makes a hub fail, and what it then says can be read.
func FuzzRestore(f *testing.F) {
	f.Add([]byte(`{"version":1,"last":4,"dossiers":[{},{"project":"p"}],"pending":[{"id":"c:3","container":"c","dest":"203.0.113.9","port":443,"proto":6,"domain":"","dossier":1,"time":99999999999999}]}`))
	f.Add([]byte(`{"version":1,"last":1,"dossiers":[{"a":"\ud800"}],"pending":[{"id":"x","dossier":0,"time":-9223372036854775808}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := New(Config{Verdict: yes, Restore: data})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		check(t, &h.open)
		out := h.state()
		if !json.Valid(out) || len(out) > MaxState {
			t.Fatalf("%d bytes: %.1000s", len(out), out)
		}
		next, err := New(Config{Verdict: yes, Restore: out})
		if err != nil {
			t.Fatal(err)
		}
		defer next.Close()
		if next.LastID() < h.LastID() || !cmp.Equal(next.Pending(), h.Pending()) && len(out) < MaxState/2 {
			t.Fatalf("%s\nbecame %s", out, next.state())
		}
	})
}

// check finds what must not be with questions.
func check(t *testing.T, s *questions) {
	t.Helper()
	newest := make(map[target]*question)
	n := 0
	var before time.Time
	for q := range s.each {
		n++
		newest[q.target()] = q
		if s.ids[q.event.RequestID] != q {
			t.Fatalf("%s is in the order and not there", q.event.RequestID)
		}
		if q.at.Before(before) {
			t.Fatalf("%s is out of order", q.event.RequestID)
		}
		before = q.at
	}
	if n != len(s.ids) || n > maxQuestions || !maps.Equal(newest, s.newest) {
		t.Fatalf("%d in order, %d there, newest %v instead of %v", n, len(s.ids), s.newest, newest)
	}
}
