// Package terminal shows prompts on a terminal, or whatever else its output
// goes to, and reads the answers, a line each. It never moves the cursor, and
// everything that it prints of others is printable.
//
// It must never import a hub, nor anything of the kernel's side: what it shows
// and answers is a subscriber's.
package terminal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"unicode"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/subscriber"
	"github.com/terok-ai/terok-box/wire/clearance"
)

const (
	maxLine = 4096 // bytes of a command
	maxEcho = 64   // of what was not understood
)

// Style is how prompts look and commands are written.
type Style uint8

// The styles.
const (
	Numbered Style = iota // for people, with all containers
	Queued                // for people, with one container: a and d alone answer the oldest
	JSON                  // for programs: an object a line, both ways
)

// Config is what a Terminal is made of.
type Config struct {
	In     io.Reader
	Out    io.Writer
	Style  Style
	Color  bool // not for JSON
	Banner []string
}

// Terminal is a subscriber's notifier.
type Terminal struct {
	Config
	style style
	began chan struct{} // closed when the banner stands

	mu     sync.Mutex
	sub    *subscriber.Subscriber
	shown  map[uint64]subscriber.Notification // prompts
	failed error                              // of Out
	broken chan struct{}                      // closed then
}

// style prints. Its methods are called with the terminal's lock held.
type style interface {
	notify(t *Terminal, n subscriber.Notification)
	withdrawn(t *Terminal, was subscriber.Notification, reason string)
	list(t *Terminal, prompts []subscriber.Prompt)
	// command carries a line out; quit says that it was the last.
	command(t *Terminal, line string) (quit bool)
	tooLong(t *Terminal)
}

// New makes a terminal. Nothing is read or printed before Run.
func New(c Config) *Terminal {
	t := &Terminal{
		Config: c, began: make(chan struct{}), shown: make(map[uint64]subscriber.Notification), broken: make(chan struct{}),
	}
	switch c.Style {
	case JSON:
		t.style = jsonStyle{}
	case Queued:
		t.style = &queued{}
	default:
		t.style = numbered{}
	}
	return t
}

// Run carries out the commands that it reads, as answers to the subscriber's
// prompts. The end of the input, like the command to quit, ends it when the
// answers under way have been carried out; ctx ends it at once. Its error is
// that of reading or writing.
func (t *Terminal) Run(ctx context.Context, s *subscriber.Subscriber) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t.mu.Lock()
	t.sub = s
	for _, l := range t.Banner {
		t.print(none, l)
	}
	t.mu.Unlock()
	close(t.began)
	lines := make(chan string)
	ended := make(chan error, 1)
	go func() { ended <- read(ctx, t.In, lines) }()
	var err error
	for quit := false; !quit; {
		select {
		case <-ctx.Done():
			return nil
		case <-t.broken:
			return t.failed
		case err = <-ended:
			quit = true
		case line := <-lines:
			t.mu.Lock()
			if len(line) > maxLine {
				t.style.tooLong(t)
			} else {
				quit = t.style.command(t, line)
			}
			t.mu.Unlock()
		}
	}
	if err != nil {
		err = fmt.Errorf("read commands: %w", err)
	}
	drained := make(chan struct{})
	go func() {
		ctx, cancel := context.WithTimeout(ctx, subscriber.VerdictTimeout)
		defer cancel()
		s.Drain(ctx)
		close(drained)
	}()
	select {
	case <-drained:
	case <-t.broken:
		return t.failed
	}
	return err
}

// read sends the lines of r. One that is too long is cut to one byte more
// than allowed.
func read(ctx context.Context, r io.Reader, lines chan<- string) error {
	in := bufio.NewReaderSize(r, maxLine+2)
	for {
		part, err := in.ReadSlice('\n')
		line := strings.TrimSuffix(string(part), "\n")
		long := errors.Is(err, bufio.ErrBufferFull)
		if err == nil || long || len(part) > 0 {
			select {
			case lines <- line[:min(len(line), maxLine+1)]:
			case <-ctx.Done():
				return nil
			}
		}
		for long {
			_, err = in.ReadSlice('\n')
			long = errors.Is(err, bufio.ErrBufferFull)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// Notify prints a notification.
func (t *Terminal) Notify(ctx context.Context, n subscriber.Notification) error {
	select {
	case <-t.began:
	case <-ctx.Done():
		return ctx.Err()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.style.notify(t, n)
	if n.State == subscriber.Notice || n.State == subscriber.Answered {
		delete(t.shown, n.ID)
	} else {
		t.shown[n.ID] = n
	}
	return t.failed
}

// Close prints that a prompt cannot be answered any more.
func (t *Terminal) Close(_ context.Context, id uint64, reason string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if was, ok := t.shown[id]; ok {
		delete(t.shown, id)
		t.style.withdrawn(t, was, reason)
	}
	return t.failed
}

// Colours of ECMA-48.
type color string

const (
	none   color = ""
	red    color = "\x1b[31m"
	green  color = "\x1b[32m"
	yellow color = "\x1b[33m"
	plain        = "\x1b[0m"
)

// print prints a line in which nothing but the colour is not printable.
func (t *Terminal) print(c color, line string) {
	line = cmdenv.Printable(line)
	if t.Color && c != none {
		line = string(c) + line + plain
	}
	t.write([]byte(line + "\n"))
}

func (t *Terminal) printf(format string, args ...any) { t.print(none, fmt.Sprintf(format, args...)) }

func (t *Terminal) write(b []byte) {
	if t.failed != nil {
		return
	}
	if _, err := t.Out.Write(b); err != nil {
		t.failed = fmt.Errorf("write: %w", err)
		close(t.broken)
	}
}

// echo is what somebody typed, as it is repeated to them.
func echo(s string) string {
	r := []rune(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) { // nothing that cannot be seen either
			return '?'
		}
		return r
	}, s))
	if len(r) > maxEcho {
		r = append(r[:maxEcho-3], '.', '.', '.')
	}
	return "'" + string(r) + "'"
}

// verbs are the words for the actions.
func verb(word string) string {
	switch strings.ToLower(word) {
	case "a", clearance.Allow:
		return clearance.Allow
	case "d", clearance.Deny:
		return clearance.Deny
	}
	return ""
}

// answer answers the prompts that the words name: numbers and ranges of them,
// with commas or blanks between.
func (t *Terminal) answer(action string, words []string) {
	for _, w := range words {
		for part := range strings.SplitSeq(w, ",") {
			if part == "" {
				continue
			}
			from, to, ok := numbers(part)
			if !ok {
				t.printf("Invalid request number: %s", echo(part))
				continue
			}
			found := false
			for _, p := range t.sub.Prompts() {
				if p.ID >= from && p.ID <= to {
					found = true
					t.act(p.ID, action)
				}
			}
			if !found {
				t.printf("No pending request [%s]", part)
			}
		}
	}
}

// numbers reads "7" or "3-7".
func numbers(s string) (from, to uint64, ok bool) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	from, err1 := strconv.ParseUint(first, 10, 64)
	to, err2 := strconv.ParseUint(last, 10, 64)
	return from, to, err1 == nil && err2 == nil
}

func (t *Terminal) act(id uint64, action string) {
	switch err := t.sub.Act(id, action); {
	case errors.Is(err, subscriber.ErrNoPrompt):
		t.printf("No pending request [%d]", id)
	case err != nil:
		t.printf("[%d] %v", id, err)
	}
}
