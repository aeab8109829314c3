package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/wire/bundle"
)

// follow is Follow of a log in the background, as a channel of details; wait
// ends it.
func follow(t *testing.T, b *bundle.Bundle) (details <-chan string, wait func() error) {
	t.Helper()
	w, err := Follow(b)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	out, done := make(chan string, 1000), make(chan error, 1)
	go func() {
		done <- w.Run(ctx, func(r Record) error { out <- r.Entry().Detail; return nil })
	}()
	return out, func() error { cancel(); return <-done }
}

func next(t *testing.T, details <-chan string) string {
	t.Helper()
	select {
	case s := <-details:
		return s
	case <-time.After(10 * time.Second):
		t.Fatal("nothing more came")
		return ""
	}
}

func appendRaw(t *testing.T, b *bundle.Bundle, text string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(b.Path(), bundle.FileAuditLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.WriteString(text)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func line(detail string) string {
	return Entry{Container: "c", Action: Up, Detail: detail}.line() + "\n"
}

// What is there before is not told; a log that appears later is, from its
// first line.
func TestFollow(t *testing.T) {
	b := open(t)
	details, wait := follow(t, b)
	appendRaw(t, b, line("first"))
	if got := next(t, details); got != "first" {
		t.Fatalf("%q", got)
	}
	// What is no record, and what is too long to be one.
	appendRaw(t, b, "no record\n[]\n"+strings.Repeat("x", 3*MaxLine)+"\n"+line("second")+strings.TrimSuffix(line("third"), "}\n"))
	if got := next(t, details); got != "second" {
		t.Fatalf("%q", got)
	}
	appendRaw(t, b, "}\n"+line("fourth"))
	if a, b := next(t, details), next(t, details); a != "third" || b != "fourth" {
		t.Fatalf("%q, %q", a, b)
	}
	if err := wait(); err != nil || len(details) > 0 {
		t.Errorf("%v, %d more", err, len(details))
	}
	details, wait = follow(t, b)
	appendRaw(t, b, line("fifth"))
	if got := next(t, details); got != "fifth" {
		t.Errorf("%q", got)
	}
	if err := wait(); err != nil || len(details) > 0 {
		t.Errorf("%v, %d more", err, len(details))
	}
}

// No line is lost or told twice when the log is renamed to make room.
func TestFollowRotation(t *testing.T) {
	b := open(t)
	details, wait := follow(t, b)
	appendRaw(t, b, line("begin"))
	next(t, details)
	var want, got []string
	for i := range 200 {
		s := fmt.Sprint(i)
		want = append(want, s)
		if i%50 == 25 { // a burst may rotate once between two looks
			time.Sleep(2 * followPause)
		}
		if err := b.AppendLog(bundle.FileAuditLog, strings.TrimSuffix(line(s), "\n"), 4000); err != nil {
			t.Fatal(err)
		}
	}
	for range want {
		got = append(got, next(t, details))
	}
	if !slices.Equal(got, want) {
		t.Errorf("-want +got\n%s", cmp.Diff(want, got))
	}
	if err := wait(); err != nil || len(details) > 0 {
		t.Errorf("%v, %d more", err, len(details))
	}
}

func TestFollowEnds(t *testing.T) {
	b := open(t)
	w, err := Follow(b)
	if err != nil {
		t.Fatal(err)
	}
	appendRaw(t, b, line("x"))
	stop := errors.New("enough")
	if err := w.Run(t.Context(), func(Record) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
}

// An entry is read back as it was written, and one of another writer as far
// as it can be.
func TestEntry(t *testing.T) {
	e := Entry{
		Time: at.UTC().Truncate(time.Second), Container: "demo", Action: Blocked, Dest: "192.0.2.1", Detail: "d", Port: 443, Proto: "tcp",
		Domain: "a.example.com", Dossier: map[string]string{"task": "t"},
	}
	for text, want := range map[string]Entry{
		e.line(): e,
		`{"ts":1,"container":null,"action":"x","port":65536,"proto":6,"dossier":[1],"domain":{}}`: {Action: "x"},
		`{"ts":"2026-03-04","port":-1,"port":"80","dest":"::1"}`:                                  {Dest: "::1", Port: 80},
		`{}`: {},
	} {
		r, ok := parse([]byte(text))
		if !ok {
			t.Errorf("%s is no record", text)
		}
		if d := cmp.Diff(want, r.Entry()); d != "" {
			t.Errorf("%s (-want +got)\n%s", text, d)
		}
	}
}
