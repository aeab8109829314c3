package subscriber

import (
	"strings"
	"unicode"
)

// EventsVar is the environment variable that says what is shown.
const EventsVar = "TEROK_CLEARANCE_NOTIFY_EVENTS"

// Chosen is what the environment variables say is to be shown: Questions
// unless EventsVar is set, be it to nothing. unknown are the words there that
// are no categories.
func Chosen(vars map[string]string) (c Category, unknown []string) {
	text, ok := vars[EventsVar]
	if !ok {
		return Questions, nil
	}
	return ParseCategories(text)
}

// Category is a kind of event that can be shown or not; several of them
// together are their sum.
type Category uint8

// The categories.
const (
	Blocked          Category = 1 << iota // questions
	Verdict                               // answers, whoever gave them
	ShieldUp                              //
	ShieldDown                            // down and disengaged
	ContainerStarted                      //
	ContainerExited                       //

	// Questions is what is shown where nobody asked for anything else.
	Questions = Blocked | Verdict
	// All is everything.
	All = Blocked | Verdict | ShieldUp | ShieldDown | ContainerStarted | ContainerExited
)

// categoryNames lists the names in the order of the bits.
var categoryNames = [...]string{"blocked", "verdict", "shield_up", "shield_down", "container_started", "container_exited"}

// Has says whether c contains one of what.
func (c Category) Has(what Category) bool { return c&what != 0 }

// String is the names, with commas between them.
func (c Category) String() string {
	var names []string
	for i, n := range categoryNames {
		if c&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return strings.Join(names, ",")
}

// ParseCategories reads names with commas or white space between them; "all"
// alone, in any case, is every category. What is no name of a category is
// left out and handed back to be warned about.
func ParseCategories(text string) (c Category, unknown []string) {
	if strings.EqualFold(strings.TrimSpace(text), "all") {
		return All, nil
	}
next:
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || unicode.IsSpace(r) }) {
		for i, n := range categoryNames {
			if word == n {
				c |= 1 << i
				continue next
			}
		}
		unknown = append(unknown, clean(word))
	}
	return c, unknown
}
