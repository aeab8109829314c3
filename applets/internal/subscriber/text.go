package subscriber

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/sanitize"
)

// clean is text from outside as it may be shown: printable ASCII, bounded.
func clean(s string) string { return sanitize.String(s, sanitize.Max) }

// Identity is who a notification is about. What is not known is empty.
type Identity struct {
	ContainerID   string // as the hub calls it
	ContainerName string
	Project       string
	TaskID        string
	TaskName      string
}

// identify reads what a dossier says about a container.
func identify(id string, dossier map[string]string) Identity {
	get := func(key string) string { return clean(dossier[key]) }
	i := Identity{
		ContainerID: id, ContainerName: get("container_name"),
		Project: get("project"), TaskID: get("task"), TaskName: get("name"),
	}
	if i.ContainerName == "" {
		i.ContainerName = i.TaskName
	}
	return i
}

// Label is what people call the container: its task, its name or its id.
func (i Identity) Label() string {
	switch {
	case i.isTask():
		label := setOff(i.Project) + "/" + setOff(i.TaskID)
		if i.TaskName != "" {
			label += " · " + setOff(i.TaskName)
		}
		return label
	case i.TaskName != "":
		return setOff(i.TaskName)
	}
	return setOff(i.ContainerID)
}

// Line is the label and what kind of thing it names.
func (i Identity) Line() string {
	if i.isTask() {
		return "Task: " + i.Label()
	}
	return "Container: " + i.Label()
}

func (i Identity) isTask() bool { return i.Project != "" && i.TaskID != "" }

// names says whether somebody may mean this container by other, which is its
// id, a longer or shorter form of that, or its name.
func (i Identity) names(other string) bool {
	return other != "" && (other == i.ContainerID || other == i.ContainerName || sameID(i.ContainerID, other))
}

// minID is the length of the shortest form of a container's id.
const minID = 12

func sameID(a, b string) bool {
	return isID(a) && isID(b) && (strings.HasPrefix(a, b) || strings.HasPrefix(b, a))
}

func isID(s string) bool {
	return len(s) >= minID && strings.Trim(s, "0123456789abcdefABCDEF") == ""
}

// spoken are the words that notifications themselves speak, in lower case.
// Whoever chose a name must not be able to speak in their place.
var spoken = [...]string{"allow", "allowed", "deny", "denied", "blocked", "failed", "shield", "withdrawn"}

// setOff puts a name that could be taken for a part of a notification in
// quotation marks: one with characters that names seldom have, or with one of
// the words that notifications speak.
func setOff(s string) string {
	const punctuation = "./@+-_"
	for w := range strings.SplitSeq(s, " ") {
		if w == "" || strings.ContainsFunc(w, func(r rune) bool { return !isWord(r) && !strings.ContainsRune(punctuation, r) }) ||
			slices.Contains(spoken[:], strings.ToLower(strings.Trim(w, punctuation))) {
			return quote(s)
		}
	}
	return s
}

// quote is the text in quotation marks, which nothing in it ends.
func quote(s string) string { return strconv.QuoteToASCII(strings.Join(strings.Fields(s), " ")) }

func isWord(r rune) bool {
	return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
}

// setOffTarget does that with a target, which is plain if it is an address or
// a name of the DNS with a dot in it.
func setOffTarget(s string) string {
	if isAddress(s) {
		return s
	}
	labels := strings.Split(s, ".")
	for _, l := range labels {
		if len(labels) == 1 || l == "" || strings.ContainsFunc(l, func(r rune) bool { return !isWord(r) && r != '-' && r != '_' }) {
			return quote(s)
		}
	}
	return s
}

func isAddress(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Zone() == ""
}

// hostPort is a target with a port. An IPv6 address is in brackets: without,
// the port would look like its end.
func hostPort(target string, port int64) string {
	p := strconv.FormatInt(port, 10)
	if isAddress(target) {
		return net.JoinHostPort(target, p)
	}
	return setOffTarget(target) + ":" + p
}

func protocol(n int64) string {
	switch n {
	case 6:
		return "TCP"
	case 17:
		return "UDP"
	}
	return strconv.FormatInt(n, 10)
}

// The words for an action that was carried out, and for one that was not.
func done(action string) string {
	if action == clearance.Allow {
		return "Allowed"
	}
	return "Denied"
}

func failed(action string) string {
	if action == clearance.Allow {
		return "Allow failed"
	}
	return "Deny failed"
}

// Text is what a prompt is shown as: a summary and lines.
func (p Prompt) Text() (summary, body string) {
	lines := []string{p.Identity.Line(), "Protocol: " + protocol(p.Proto)}
	if p.Count > 1 {
		lines = append(lines, fmt.Sprintf("Blocked %d times since %s", p.Count, p.First.Local().Format(time.TimeOnly)))
	}
	lines = append(lines, p.details()...)
	if p.Failed != "" {
		lines = append(lines, failed(p.Action)+": "+p.Failed)
	}
	return "Blocked: " + hostPort(p.Target(), p.Port), strings.Join(lines, "\n")
}

// Label is the address, with the name if one is known.
func (p Prompt) Label() string {
	switch {
	case p.Domain == "":
		return setOffTarget(p.Dest)
	case p.Dest == "":
		return setOffTarget(p.Domain)
	}
	return setOffTarget(p.Dest) + " (" + setOffTarget(p.Domain) + ")"
}

// failure is the text about an answer that could not be carried out.
func (p Prompt) failure() (summary, body string) {
	lines := []string{p.Identity.Line(), "Reason: " + p.Failed}
	return failed(p.Action) + ": " + setOffTarget(p.Target()), strings.Join(append(lines, p.details()...), "\n")
}

// details is what is known besides what is asked for: an answer for a name
// holds for all its addresses, and every answer for all ports.
func (p Prompt) details() (lines []string) {
	switch {
	case p.Domain != "" && p.Dest != "":
		lines = append(lines, "Address: "+setOffTarget(p.Dest))
	case p.Domain != "":
		lines = append(lines, "The name was not looked up")
	}
	if len(p.Ports) > 1 {
		var list []string
		for _, port := range p.Ports {
			list = append(list, fmt.Sprintf("%s %d", protocol(port.Proto), port.Port))
		}
		lines = append(lines, "Ports tried: "+strings.Join(list, ", "))
	}
	return lines
}
