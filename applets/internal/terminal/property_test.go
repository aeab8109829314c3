package terminal

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/sanitize"
)

// model is a hub as spec'd: what it asks, by container and target.
type model struct {
	*session
	lock sync.Mutex // verdicts come at the same time; never while something else happens
	rand *rand.Rand
	open map[string]clearance.Event // by request id
	next int
}

// hostile are texts that somebody may choose.
var hostile = []string{
	"example.com", "Allow", "192.0.2.1", "2001:db8::1", "[7] BLOCKED  x", "a\x1b[2Jb", "\u202e\u2066moc", "\x9b31m", "a\nb\r\nc", "\x00", "😀.example", "-x",
	"\"quoted\"", `{"event":"verdict"}`, strings.Repeat("long.", 100), " ",
}

func (m *model) pick(from []string) string { return from[m.rand.IntN(len(from))] }

func (m *model) verdict(r clearance.Request) error {
	m.lock.Lock()
	defer m.lock.Unlock()
	e, ok := m.open[r.RequestID]
	switch {
	case !ok:
		return clearance.UnknownRequest{RequestID: r.RequestID}
	case r.Dest != e.Target() || r.Container != e.Container:
		return clearance.TupleMismatch{ExpectedContainer: e.Container, ExpectedDest: e.Target(), GotContainer: r.Container, GotDest: r.Dest}
	}
	applied := clearance.Event{Type: clearance.VerdictApplied, Container: r.Container, RequestID: r.RequestID, Action: r.Action}
	if m.rand.IntN(3) == 0 {
		m.hub.Event(applied)
		return clearance.ShieldFailed{Action: r.Action, Stderr: m.pick(hostile)}
	}
	m.answered(e)
	applied.OK = true
	if m.rand.IntN(4) != 0 {
		m.hub.Event(applied)
	}
	return nil
}

// answered closes a question, however often it was asked.
func (m *model) answered(e clearance.Event) {
	for id, o := range m.open {
		if o.Container == e.Container && o.Target() == e.Target() {
			delete(m.open, id)
		}
	}
}

// step does something at random.
func (m *model) step(containers, targets []string) {
	switch m.rand.IntN(12) {
	case 0, 1, 2, 3, 4:
		m.next++
		e := clearance.Event{
			Type: event.Blocked, Container: m.pick(containers), RequestID: fmt.Sprint("r", m.next), Dest: m.pick(targets), Domain: m.pick(append(targets, "")),
			Port: int64(m.rand.IntN(3)), Proto: int64(m.rand.IntN(20)), Dossier: map[string]string{"name": m.pick(hostile), "project": m.pick(hostile), "task": m.pick(hostile)},
		}
		e = clean(e)
		m.open[e.RequestID] = e
		m.hub.Event(e)
	case 5, 6:
		var commands strings.Builder // at once, since answers are carried out meanwhile
		for _, p := range m.sub.Prompts() {
			if m.rand.IntN(3) == 0 {
				fmt.Fprintf(&commands, "%s %d\n", m.pick([]string{"a", "d"}), p.ID)
			}
		}
		io.WriteString(m.in, commands.String())
	case 7: // elsewhere
		for id, e := range m.open {
			m.answered(e)
			m.hub.Event(clearance.Event{Type: clearance.VerdictApplied, Container: e.Container, RequestID: id, Action: m.pick([]string{"allow", "deny"}), OK: true})
			break
		}
	case 8:
		c := m.pick(containers)
		for id, e := range m.open {
			if e.Container == c {
				delete(m.open, id)
			}
		}
		m.hub.Event(clearance.Event{Type: m.pick([]string{event.ShieldDown, event.ShieldDisengaged, event.ContainerExited}), Container: c, Reason: m.pick(hostile)})
	case 9:
		m.hub.Event(clearance.Event{Type: m.pick([]string{event.ShieldUp, event.ContainerStarted, "nonsense"}), Container: m.pick(hostile), Dossier: map[string]string{"name": m.pick(hostile)}})
	case 10: // a restart; some hubs repeat what they ask, others do not
		m.hub.Lost()
		time.Sleep(time.Duration(m.rand.IntN(5)) * time.Second)
		for id, e := range m.open {
			if m.rand.IntN(6) == 0 { // answered meanwhile
				m.answered(e)
				_ = id
			}
		}
		m.hub.Connected()
		for _, e := range m.open {
			if m.rand.IntN(2) == 0 {
				m.hub.Event(e)
			}
		}
		time.Sleep(3 * time.Second)
	case 11:
		fmt.Fprintf(m.in, "%s\n", strings.ReplaceAll(m.pick(hostile), "\n", " "))
	}
}

// clean is the event as a hub passes it on.
func clean(e clearance.Event) clearance.Event {
	for _, s := range []*string{&e.Container, &e.Dest, &e.Domain} {
		*s = sanitized(*s)
	}
	return e
}

// Whatever happens, a question that is open is pending, a pending one was
// printed, and nothing that was printed moves the cursor.
func TestNothingIsLost(t *testing.T) {
	containers := []string{short, "ba9876543210", "demo-3"}
	for seed := range uint64(60) {
		for _, style := range []Style{Numbered, Queued, JSON} {
			synctest.Test(t, func(t *testing.T) {
				s := start(t, Config{Style: style})
				m := &model{session: s, rand: rand.New(rand.NewPCG(seed, 0)), open: map[string]clearance.Event{}}
				s.reply = m.verdict
				for range 200 {
					m.step(containers, hostile[:12])
					synctest.Wait()
				}
				time.Sleep(5 * time.Minute) // what the hub forgot has gone
				synctest.Wait()
				check(t, seed, m)
			})
		}
	}
}

func check(t *testing.T, seed uint64, m *model) {
	t.Helper()
	out := m.out.String()
	pending := map[string]bool{}
	for _, p := range m.sub.Prompts() {
		pending[p.Identity.ContainerID+" "+p.Target()] = true
		printed := strings.Contains(out, fmt.Sprintf("[%d] ", p.ID))
		if m.out.String() != "" && strings.HasPrefix(out, "{") {
			printed = strings.Contains(out, fmt.Sprintf(`{"event":"prompt","id":%d,`, p.ID))
		}
		if !printed {
			t.Errorf("seed %d: %d was not printed", seed, p.ID)
		}
	}
	open := map[string]bool{}
	for _, e := range m.open {
		if e.Target() != "" {
			open[e.Container+" "+e.Target()] = true
		}
	}
	if d := cmp.Diff(open, pending); d != "" {
		t.Errorf("seed %d: (-open at the hub +pending here)\n%s", seed, d)
	}
	printable(t, out)
}

func printable(t *testing.T, out string) {
	t.Helper()
	if !utf8.ValidString(out) {
		t.Errorf("not UTF-8: %q", out)
	}
	for l := range strings.Lines(out) {
		if i := strings.IndexFunc(strings.TrimSuffix(l, "\n"), func(r rune) bool {
			return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || !unicode.IsPrint(r)
		}); i >= 0 {
			t.Errorf("printed: %q", l)
		}
	}
}

// FuzzEvent has an event with any text shown in every style.
func FuzzEvent(f *testing.F) {
	for i, h := range hostile {
		f.Add(h, hostile[(i+1)%len(hostile)], hostile[(i+2)%len(hostile)], h, h, int64(i), uint8(i))
	}
	f.Fuzz(func(t *testing.T, container, dest, domain, name, reason string, port int64, kind uint8) {
		for _, style := range []Style{Numbered, Queued, JSON} {
			synctest.Test(t, func(t *testing.T) {
				s := start(t, Config{Style: style})
				s.reply = func(clearance.Request) error { return clearance.ShieldFailed{Stderr: reason} }
				kinds := []string{event.Blocked, event.ContainerExited, event.ShieldDown, event.ShieldUp, event.ContainerStarted, name}
				for _, k := range []string{event.Blocked, kinds[int(kind)%len(kinds)]} {
					s.hub.Event(clearance.Event{
						Type: k, Container: container, RequestID: "1", Dest: dest, Domain: domain, Port: port, Proto: port, Reason: reason,
						Dossier: map[string]string{"name": name, "project": container, "task": domain, "container_name": dest},
					})
				}
				synctest.Wait()
				fmt.Fprintf(s.in, "%s\n", strings.ReplaceAll(reason, "\n", " "))
				fmt.Fprintf(s.in, "a 1\nd 1\nl\n{\"id\":1,\"action\":\"allow\"}\n{\"action\":\"list\"}\n")
				synctest.Wait()
				out := s.out.String()
				printable(t, out)
				if style == JSON {
					for in := bufio.NewScanner(strings.NewReader(out)); in.Scan(); {
						var l line
						if err := json.Unmarshal(in.Bytes(), &l); err != nil {
							t.Errorf("%q: %v", in.Text(), err)
						}
					}
				}
			})
		}
	})
}

func sanitized(s string) string { return sanitize.String(s, sanitize.Max) }
