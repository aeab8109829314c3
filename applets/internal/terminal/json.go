package terminal

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/subscriber"
	"github.com/terok-ai/terok-box/wire/clearance"
)

// jsonStyle is the style JSON.
type jsonStyle struct{}

// Values of line.Event.
const (
	eventPrompt    = "prompt"    // a question
	eventUpdate    = "update"    // of it: asked again
	eventVerdict   = "verdict"   // an answer, whoever gave it; with ok false it can be given again
	eventWithdrawn = "withdrawn" // the question is void
	eventNotice    = "notice"    // of the container or its shield
	eventList      = "list"
	eventError     = "error" // in a command
)

// line is what is printed. What is empty is left out.
type line struct {
	Event     string     `json:"event"`
	ID        uint64     `json:"id,omitempty"`
	Category  string     `json:"category,omitempty"` // of a notice
	Hub       string     `json:"hub,omitempty"`
	Container string     `json:"container,omitempty"`
	Name      string     `json:"name,omitempty"`
	Project   string     `json:"project,omitempty"`
	Task      string     `json:"task,omitempty"`
	TaskName  string     `json:"task_name,omitempty"`
	Target    string     `json:"target,omitempty"`
	Domain    string     `json:"domain,omitempty"`
	Dest      string     `json:"dest,omitempty"`
	Port      int64      `json:"port,omitempty"`
	Proto     int64      `json:"proto,omitempty"`
	Count     int        `json:"count,omitempty"`
	First     *time.Time `json:"first,omitempty"`
	Action    string     `json:"action,omitempty"`
	OK        *bool      `json:"ok,omitempty"`
	Reason    string     `json:"reason,omitempty"`
	Summary   string     `json:"summary,omitempty"`
	Body      string     `json:"body,omitempty"`
	Error     string     `json:"error,omitempty"`
	Prompts   *[]line    `json:"prompts,omitempty"`
}

// about is what a prompt's lines have in common.
func about(event string, p subscriber.Prompt) line {
	l := line{
		Event: event, ID: p.ID, Hub: p.Hub, Target: p.Target(), Domain: p.Domain, Dest: p.Dest, Port: p.Port, Proto: p.Proto,
		Count: p.Count,
	}
	first := p.First.UTC()
	l.First = &first
	l.of(p.Identity)
	l.Summary, l.Body = p.Text()
	return l
}

func (l *line) of(i subscriber.Identity) {
	l.Container, l.Name, l.Project, l.Task, l.TaskName = i.ContainerID, i.ContainerName, i.Project, i.TaskID, i.TaskName
}

func (jsonStyle) notify(t *Terminal, n subscriber.Notification) {
	var l line
	switch n.State {
	case subscriber.Asking:
		l = about(eventPrompt, *n.Prompt)
	case subscriber.Repeated:
		l = about(eventUpdate, *n.Prompt)
	case subscriber.Failed, subscriber.Answered:
		l = about(eventVerdict, *n.Prompt)
		ok := n.State == subscriber.Answered
		l.Action, l.OK, l.Reason = n.Prompt.Action, &ok, n.Prompt.Failed
	default:
		l = line{Event: eventNotice, Category: n.Category.String()}
		l.of(n.Identity)
	}
	l.Summary, l.Body = n.Summary, n.Body
	t.encode(l)
}

func (jsonStyle) withdrawn(t *Terminal, was subscriber.Notification, reason string) {
	t.encode(line{Event: eventWithdrawn, ID: was.ID, Target: was.Prompt.Target(), Reason: reason})
}

func (jsonStyle) list(t *Terminal, prompts []subscriber.Prompt) {
	all := make([]line, 0, len(prompts))
	for _, p := range prompts {
		l := about(eventPrompt, p)
		l.Action, l.Reason = p.Action, p.Failed
		all = append(all, l)
	}
	t.encode(line{Event: eventList, Prompts: &all})
}

// request is a command.
type request struct {
	ID     uint64 `json:"id"`
	Action string `json:"action"` // allow, deny, list or quit
}

func (s jsonStyle) command(t *Terminal, text string) (quit bool) {
	if strings.TrimSpace(text) == "" {
		return false
	}
	var r request
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	err := dec.Decode(&r)
	if err == nil {
		if _, more := dec.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("more than one object on a line")
		}
	}
	switch {
	case err != nil:
		t.encode(line{Event: eventError, Error: `a command is an object like {"id":1,"action":"allow"}: ` + err.Error()})
	case r.Action == "quit":
		return true
	case r.Action == "list":
		s.list(t, t.sub.Prompts())
	case r.Action == clearance.Allow, r.Action == clearance.Deny:
		if err := t.sub.Act(r.ID, r.Action); err != nil {
			t.encode(line{Event: eventError, ID: r.ID, Action: r.Action, Error: err.Error()})
		}
	default:
		t.encode(line{Event: eventError, ID: r.ID, Error: "an action is allow, deny, list or quit"})
	}
	return false
}

func (jsonStyle) tooLong(t *Terminal) {
	t.encode(line{Event: eventError, Error: "the line is too long"})
}

// encode prints an object. Its text is sanitised but for what the system said.
func (t *Terminal) encode(l line) {
	l.Error = cmdenv.Printable(l.Error)
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if enc.Encode(l) == nil { // numbers and text cannot fail
		t.write(out.Bytes())
	}
}
