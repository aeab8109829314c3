package terminal

import (
	"fmt"
	"strings"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/subscriber"
)

// queued is the style Queued: the oldest prompt asks, the others wait for
// their turn, but can be answered by their numbers.
type queued struct{ asked uint64 } // the prompt that asked last

// QueuedBanner is what stands above the prompts of one container.
func QueuedBanner() []string {
	return []string{"Watching for blocked connections... (Ctrl-C to stop)", ""}
}

func (q *queued) notify(t *Terminal, n subscriber.Notification) {
	if n.Prompt == nil {
		t.print(none, text(n.Summary, n.Body))
		return
	}
	p := *n.Prompt
	switch n.State {
	case subscriber.Answered:
		if strings.HasPrefix(n.Summary, "Allowed") {
			t.print(green, "  ✓ allowed "+p.Label())
		} else {
			t.print(red, "  ✗ denied "+p.Label())
		}
		q.next(t, n.ID)
	case subscriber.Failed:
		about := p.Dest
		if about == "" {
			about = p.Domain
		}
		t.print(red, fmt.Sprintf("  ! verdict failed for %s (retry with a/d)", (subscriber.Prompt{Dest: about}).Label()))
		t.print(red, "    "+p.Failed)
		q.ask(t, p)
	default:
		q.ask(t, p)
	}
}

// ask prints a prompt, which waits unless it is the oldest.
func (q *queued) ask(t *Terminal, p subscriber.Prompt) {
	line := fmt.Sprintf("[%d] [BLOCKED] %s :%d", p.ID, p.Label(), p.Port)
	if p.Count > 1 {
		line += fmt.Sprintf(", %d times since %s", p.Count, p.First.Local().Format(time.TimeOnly))
	}
	if oldest(t.sub) == p.ID {
		q.asked = p.ID
		t.print(yellow, line+" — allow/deny?")
	} else {
		t.print(yellow, line+" (queued)")
	}
}

// next has the oldest prompt ask, now that another one is gone.
func (q *queued) next(t *Terminal, gone uint64) {
	id := oldest(t.sub)
	if n, ok := t.shown[id]; ok && id != gone && id != q.asked {
		q.ask(t, *n.Prompt)
	}
}

// oldest is the number of the oldest prompt; 0 if there is none.
func oldest(s *subscriber.Subscriber) uint64 {
	if all := s.Prompts(); len(all) > 0 {
		return all[0].ID
	}
	return 0
}

func (q *queued) withdrawn(t *Terminal, was subscriber.Notification, reason string) {
	if reason != subscriber.TooMany {
		t.printf("[%d] %s: not asked any more, %s", was.ID, was.Prompt.Label(), reason)
	}
	q.next(t, was.ID)
}

func (q *queued) list(t *Terminal, prompts []subscriber.Prompt) { numbered{}.list(t, prompts) }

func (q *queued) command(t *Terminal, line string) (quit bool) {
	words := strings.Fields(line)
	unknown := func() {
		t.print(none, "  Unknown input. Type 'a' to allow or 'd' to deny.")
		q.repeat(t)
	}
	if len(words) == 0 {
		unknown()
		return false
	}
	action := verb(words[0])
	if action == "" {
		return common(t, q, words, unknown)
	}
	if args := words[1:]; len(args) > 0 {
		t.answer(action, args)
		return false
	}
	// The oldest that is not being answered: whoever types ahead means the
	// next one.
	for _, p := range t.sub.Prompts() {
		if !p.Answering {
			t.act(p.ID, action)
			return false
		}
	}
	t.print(none, "  Nothing is blocked that was not answered.")
	return false
}

// repeat has the oldest prompt ask again.
func (q *queued) repeat(t *Terminal) {
	if n, ok := t.shown[oldest(t.sub)]; ok {
		q.ask(t, *n.Prompt)
	}
}

func (q *queued) tooLong(t *Terminal) { numbered{}.tooLong(t) }
