package terminal

import (
	"fmt"
	"strings"

	"github.com/terok-ai/terok-box/applets/internal/subscriber"
)

// Banner is what stands above the prompts of all containers.
func Banner() []string {
	return []string{
		"Shield clearance — listening on per-container sockets",
		"Commands: a <N> allow, d <N> deny, l list, q quit",
		"",
	}
}

// help says what can be typed.
func help() []string {
	return []string{
		"  a N   allow: the container may reach the target, on every port",
		"  d N   deny: it may not, and is not asked about again",
		"  l     list what is pending",
		"  q     quit; what is pending stays blocked",
		"Several at a time: a 1 3 5-7. With a single one pending: a",
	}
}

// numbered is the style Numbered: a line for each notification.
type numbered struct{}

// text is a notification on one line.
func text(summary, body string) string {
	if body == "" {
		return summary
	}
	return summary + "  " + body
}

func (numbered) notify(t *Terminal, n subscriber.Notification) {
	line := text(n.Summary, n.Body)
	switch n.State {
	case subscriber.Asking, subscriber.Repeated:
		t.print(yellow, fmt.Sprintf("[%d] BLOCKED  %s", n.ID, line))
	case subscriber.Failed:
		t.print(red, fmt.Sprintf("[%d] FAILED  %s", n.ID, line))
	case subscriber.Answered:
		c := red
		if strings.HasPrefix(n.Summary, "Allowed") {
			c = green
		}
		t.print(c, line)
	default:
		t.print(none, line)
	}
}

func (numbered) withdrawn(t *Terminal, was subscriber.Notification, reason string) {
	if reason != subscriber.TooMany { // of which there is a notice
		t.printf("[%d] WITHDRAWN  %s  (%s)", was.ID, was.Summary, reason)
	}
}

func (numbered) list(t *Terminal, prompts []subscriber.Prompt) {
	for _, p := range prompts {
		summary, body := p.Text()
		line := fmt.Sprintf("  [%d] %s", p.ID, text(summary, body))
		if p.Answering {
			line += "  (being answered)"
		}
		t.print(none, line)
	}
	if len(prompts) == 0 {
		t.print(none, "  (no pending requests)")
	}
}

func (s numbered) command(t *Terminal, line string) (quit bool) {
	words := strings.Fields(line)
	if len(words) == 0 {
		return false
	}
	if action := verb(words[0]); action != "" {
		args := words[1:]
		if len(args) == 0 {
			all := t.sub.Prompts()
			if len(all) != 1 {
				t.printf("Usage: %s <N>", action[:1])
				return false
			}
			t.act(all[0].ID, action)
			return false
		}
		t.answer(action, args)
		return false
	}
	return common(t, s, words, func() {
		t.printf("Unknown command: %s (try 'h' for help)", echo(words[0]))
	})
}

// common carries out the commands that both styles for people have.
func common(t *Terminal, s style, words []string, unknown func()) (quit bool) {
	switch strings.ToLower(words[0]) {
	case "l", "list":
		s.list(t, t.sub.Prompts())
	case "h", "help", "?":
		for _, l := range help() {
			t.print(none, l)
		}
	case "q", "quit", "exit":
		return true
	default:
		unknown()
	}
	return false
}

func (numbered) tooLong(t *Terminal) { t.print(none, "That line is too long.") }
