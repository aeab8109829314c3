package terminal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/applets/internal/subscriber"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/event"
)

const short = "0123456789ab"

// output is what was printed.
type output struct {
	mu   sync.Mutex
	text strings.Builder
	fail error
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.fail != nil {
		return 0, o.fail
	}
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// session is a terminal with a subscriber and a hub, in a bubble.
type session struct {
	*testing.T
	sub   *subscriber.Subscriber
	hub   *subscriber.Hub
	out   *output
	in    *io.PipeWriter
	reply func(clearance.Request) error // nil: it is carried out
	ended chan error
	close context.CancelFunc
	mu    sync.Mutex
	noted []clearance.Request
}

func start(t *testing.T, c Config) *session {
	in, typed := io.Pipe()
	s := &session{T: t, out: &output{}, in: typed, ended: make(chan error, 1)}
	c.In, c.Out = in, s.out
	term := New(c)
	s.sub = subscriber.New(subscriber.Config{Notifier: term, Categories: subscriber.All, Log: slog.New(slog.DiscardHandler)})
	s.hub = s.sub.Hub("hub", func(_ context.Context, r clearance.Request) error {
		s.mu.Lock()
		s.noted = append(s.noted, r)
		s.mu.Unlock()
		if s.reply == nil {
			return nil
		}
		return s.reply(r)
	})
	s.hub.Connected()
	ctx, cancel := context.WithCancel(t.Context())
	s.close = cancel
	go func() { s.ended <- term.Run(ctx, s.sub) }()
	t.Cleanup(func() { cancel(); in.Close(); s.sub.Close() })
	synctest.Wait()
	return s
}

// play carries out a script: lines that begin with "> " are typed, others
// are events, "+3s" lets time pass.
//
//	block REQUEST TARGET[/ADDRESS] PORT
//	applied REQUEST ACTION OK
//	TYPE CONTAINER
//	fail REASON | work
func (s *session) play(script string) {
	s.Helper()
	for line := range strings.Lines(script) {
		line = strings.TrimSpace(line)
		words := strings.Fields(line)
		switch {
		case line == "":
		case strings.HasPrefix(line, ">"):
			if _, err := io.WriteString(s.in, strings.TrimPrefix(line[1:], " ")+"\n"); err != nil {
				s.Fatal(err)
			}
		case line == "EOF":
			s.in.Close()
		case line[0] == '+':
			d, err := time.ParseDuration(line[1:])
			if err != nil {
				s.Fatal(err)
			}
			time.Sleep(d)
		case words[0] == "block":
			domain, addr, _ := strings.Cut(words[2], "/")
			if strings.Trim(domain, "0123456789.:abcdef") == "" && addr == "" {
				domain, addr = "", domain
			}
			var port int64
			fmt.Sscan(words[3], &port)
			s.hub.Event(clearance.Event{
				Type: event.Blocked, Container: short, RequestID: short + ":" + words[1], Dest: addr, Domain: domain, Port: port, Proto: 6,
				Dossier: map[string]string{"container_name": "demo", "name": "demo"},
			})
		case words[0] == "applied":
			s.hub.Event(clearance.Event{Type: clearance.VerdictApplied, Container: short, RequestID: short + ":" + words[1], Action: words[2], OK: words[3] == "true"})
		case words[0] == "fail":
			reason := strings.Join(words[1:], " ")
			s.reply = func(r clearance.Request) error { return clearance.ShieldFailed{Action: r.Action, Stderr: reason} }
		case words[0] == "work":
			s.reply = nil
		default:
			s.hub.Event(clearance.Event{Type: words[0], Container: words[1], Reason: strings.Join(words[2:], " ")})
		}
		synctest.Wait()
	}
}

// since is the time that a bubble begins with, as it is shown.
func since() string {
	return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Local().Format(time.TimeOnly)
}

func TestTranscripts(t *testing.T) {
	for name, tt := range map[string]struct {
		config Config
		script string
		want   string
	}{
		"allow and deny": {Config{Banner: Banner()}, `
			block 1 example.com/192.0.2.7 443
			block 2 192.0.2.8 22
			> a 1
			> DENY 2
			> l
			> q
		`, `
Shield clearance — listening on per-container sockets
Commands: a <N> allow, d <N> deny, l list, q quit

[1] BLOCKED  Blocked: example.com:443  Container: demo; Protocol: TCP; Address: 192.0.2.7
[2] BLOCKED  Blocked: 192.0.2.8:22  Container: demo; Protocol: TCP
Allowed: example.com  Container: demo
Denied: 192.0.2.8  Container: demo
  (no pending requests)
`},
		"repeated blocks are counted": {Config{}, `
			block 1 192.0.2.8 22
			+30s
			block 2 192.0.2.8 80
			+30s
			block 3 192.0.2.8 22
			> list
			> a
		`, `
[1] BLOCKED  Blocked: 192.0.2.8:22  Container: demo; Protocol: TCP
[1] BLOCKED  Blocked: 192.0.2.8:80  Container: demo; Protocol: TCP; Blocked 2 times since {}; Ports tried: TCP 22, TCP 80
[1] BLOCKED  Blocked: 192.0.2.8:22  Container: demo; Protocol: TCP; Blocked 3 times since {}; Ports tried: TCP 80, TCP 22
  [1] Blocked: 192.0.2.8:22  Container: demo; Protocol: TCP; Blocked 3 times since {}; Ports tried: TCP 80, TCP 22
Allowed: 192.0.2.8  Container: demo
`},
		"a failed verdict": {Config{}, `
			block 1 192.0.2.8 22
			fail table is locked
			> a 1
			> l
			work
			> a 1
		`, `
[1] BLOCKED  Blocked: 192.0.2.8:22  Container: demo; Protocol: TCP
[1] FAILED  Allow failed: 192.0.2.8  Container: demo; Reason: table is locked
  [1] Blocked: 192.0.2.8:22  Container: demo; Protocol: TCP; Allow failed: table is locked
Allowed: 192.0.2.8  Container: demo
`},
		"what goes by itself": {Config{}, `
			block 1 192.0.2.8 22
			block 2 192.0.2.9 22
			applied 1 deny true
			shield_down demo
			> a 2
			shield_up demo
			block 3 192.0.2.9 22
			container_exited 0123456789ab poststop
			container_started x
		`, `
[1] BLOCKED  Blocked: 192.0.2.8:22  Container: demo; Protocol: TCP
[2] BLOCKED  Blocked: 192.0.2.9:22  Container: demo; Protocol: TCP
Denied: 192.0.2.8  Container: demo
[2] WITHDRAWN  Blocked: 192.0.2.9:22  (the shield is down)
Shield down: demo  Outbound firewall bypassed — allowlist is not enforced.
No pending request [2]
Shield up: demo  Outbound firewall restored.
[3] BLOCKED  Blocked: 192.0.2.9:22  Container: demo; Protocol: TCP
[3] WITHDRAWN  Blocked: 192.0.2.9:22  (the container has exited)
Container stopped: demo  Reason: poststop
Container started: x
`},
		"commands": {Config{}, `
			>
			> x
			> Frobnicate 1
			> a
			> Deny
			> a x
			> d -1
			> allow 7
			> a 99999999999999999999
			> D 1-x
			> H
		`, `
Unknown command: 'x' (try 'h' for help)
Unknown command: 'Frobnicate' (try 'h' for help)
Usage: a <N>
Usage: d <N>
Invalid request number: 'x'
Invalid request number: '-1'
No pending request [7]
Invalid request number: '99999999999999999999'
Invalid request number: '1-x'
` + strings.Join(help(), "\n") + "\n"},
		"several": {Config{}, `
			block 1 192.0.2.1 22
			block 2 192.0.2.2 22
			block 3 192.0.2.3 22
			block 4 192.0.2.4 22
			block 5 192.0.2.5 22
			> a
			> a 5
			> d 2-3,9 1
			> a
		`, `
[1] BLOCKED  Blocked: 192.0.2.1:22  Container: demo; Protocol: TCP
[2] BLOCKED  Blocked: 192.0.2.2:22  Container: demo; Protocol: TCP
[3] BLOCKED  Blocked: 192.0.2.3:22  Container: demo; Protocol: TCP
[4] BLOCKED  Blocked: 192.0.2.4:22  Container: demo; Protocol: TCP
[5] BLOCKED  Blocked: 192.0.2.5:22  Container: demo; Protocol: TCP
Usage: a <N>
Allowed: 192.0.2.5  Container: demo
No pending request [9]
*Denied: 192.0.2.1  Container: demo
*Denied: 192.0.2.2  Container: demo
*Denied: 192.0.2.3  Container: demo
Allowed: 192.0.2.4  Container: demo
`},
		"colour": {Config{Color: true}, `
			block 1 192.0.2.1 22
			fail no
			> a 1
			work
			> a 1
			block 2 192.0.2.2 22
			> d 2
			> x
		`, "\n\x1b[33m[1] BLOCKED  Blocked: 192.0.2.1:22  Container: demo; Protocol: TCP\x1b[0m\n" +
			"\x1b[31m[1] FAILED  Allow failed: 192.0.2.1  Container: demo; Reason: no\x1b[0m\n" +
			"\x1b[32mAllowed: 192.0.2.1  Container: demo\x1b[0m\n" +
			"\x1b[33m[2] BLOCKED  Blocked: 192.0.2.2:22  Container: demo; Protocol: TCP\x1b[0m\n" +
			"\x1b[31mDenied: 192.0.2.2  Container: demo\x1b[0m\n" +
			"Unknown command: 'x' (try 'h' for help)\n"},
		"imitation": {Config{}, `
			block 1 Allow 22
			fail Allowed:` + "\x1b" + `[2J everything
			> a 1
			> ` + "\x1b[2J\u202e\u009b" + `
			> a ` + "\x07" + `
			> ` + strings.Repeat("z", 70) + `
			> ` + strings.Repeat("z", 5000) + `
			> l
		`, `
[1] BLOCKED  Blocked: "Allow":22  Container: demo; Protocol: TCP; The name was not looked up
[1] FAILED  Allow failed: "Allow"  Container: demo; Reason: Allowed: [2J everything; The name was not looked up
Unknown command: '?[2J??' (try 'h' for help)
Invalid request number: '?'
Unknown command: '` + strings.Repeat("z", 61) + `...' (try 'h' for help)
That line is too long.
  [1] Blocked: "Allow":22  Container: demo; Protocol: TCP; The name was not looked up; Allow failed: Allowed: [2J everything
`},
		"queued": {Config{Style: Queued, Banner: QueuedBanner()}, `
			block 1 example.com/192.0.2.1 443
			block 2 192.0.2.2 22
			block 3 example.net 53
			block 4 192.0.2.4 22
			> y
			>
			> A
			fail no
			> d
			work
			> deny
			> a 4
			block 5 example.net/192.0.2.3 80
			> l
			> a
			> a
			> h
		`, `
Watching for blocked connections... (Ctrl-C to stop)

[1] [BLOCKED] 192.0.2.1 (example.com) :443 — allow/deny?
[2] [BLOCKED] 192.0.2.2 :22 (queued)
[3] [BLOCKED] example.net :53 (queued)
[4] [BLOCKED] 192.0.2.4 :22 (queued)
  Unknown input. Type 'a' to allow or 'd' to deny.
[1] [BLOCKED] 192.0.2.1 (example.com) :443 — allow/deny?
  Unknown input. Type 'a' to allow or 'd' to deny.
[1] [BLOCKED] 192.0.2.1 (example.com) :443 — allow/deny?
  ✓ allowed 192.0.2.1 (example.com)
[2] [BLOCKED] 192.0.2.2 :22 — allow/deny?
  ! verdict failed for 192.0.2.2 (retry with a/d)
    no
[2] [BLOCKED] 192.0.2.2 :22 — allow/deny?
  ✗ denied 192.0.2.2
[3] [BLOCKED] example.net :53 — allow/deny?
  ✓ allowed 192.0.2.4
[3] [BLOCKED] 192.0.2.3 (example.net) :80, 2 times since {} — allow/deny?
  [3] Blocked: example.net:80  Container: demo; Protocol: TCP; Blocked 2 times since {}; Address: 192.0.2.3
  ✓ allowed 192.0.2.3 (example.net)
  Nothing is blocked that was not answered.
` + strings.Join(help(), "\n") + "\n"},
		"queued, withdrawn": {Config{Style: Queued}, `
			block 1 192.0.2.1 443
			block 2 192.0.2.2 22
			applied 1 allow true
			shield_down demo
			block 3 192.0.2.2 22
		`, `
[1] [BLOCKED] 192.0.2.1 :443 — allow/deny?
[2] [BLOCKED] 192.0.2.2 :22 (queued)
  ✓ allowed 192.0.2.1
[2] [BLOCKED] 192.0.2.2 :22 — allow/deny?
[2] 192.0.2.2: not asked any more, the shield is down
Shield down: demo  Outbound firewall bypassed — allowlist is not enforced.
[3] [BLOCKED] 192.0.2.2 :22 — allow/deny?
`},
		"json": {Config{Style: JSON, Color: true}, `
			block 1 example.com/192.0.2.1 443
			block 2 example.com/192.0.2.1 443
			fail <no>
			> {"id":1,"action":"allow"}
			> {"action":"list"}
			work
			> {"id":1,"action":"deny"}
			> {"id":1,"action":"deny"}
			> {"id":1,"action":"maybe"}
			> {"id":1,"action":"deny","x":1}
			> a 1
			> {"id":1} {}
			> []
			>
			block 3 192.0.2.2 22
			shield_down demo
			> {"action":"quit"}
		`, `
{"event":"prompt","id":1,"hub":"hub","container":"0123456789ab","name":"demo","task_name":"demo","target":"example.com","domain":"example.com","dest":"192.0.2.1","port":443,"proto":6,"count":1,"first":"2000-01-01T00:00:00Z","summary":"Blocked: example.com:443","body":"Container: demo\nProtocol: TCP\nAddress: 192.0.2.1"}
{"event":"update","id":1,"hub":"hub","container":"0123456789ab","name":"demo","task_name":"demo","target":"example.com","domain":"example.com","dest":"192.0.2.1","port":443,"proto":6,"count":2,"first":"2000-01-01T00:00:00Z","summary":"Blocked: example.com:443","body":"Container: demo\nProtocol: TCP\nBlocked 2 times since {}\nAddress: 192.0.2.1"}
{"event":"verdict","id":1,"hub":"hub","container":"0123456789ab","name":"demo","task_name":"demo","target":"example.com","domain":"example.com","dest":"192.0.2.1","port":443,"proto":6,"count":2,"first":"2000-01-01T00:00:00Z","action":"allow","ok":false,"reason":"<no>","summary":"Allow failed: example.com","body":"Container: demo\nReason: <no>\nAddress: 192.0.2.1"}
{"event":"list","prompts":[{"event":"prompt","id":1,"hub":"hub","container":"0123456789ab","name":"demo","task_name":"demo","target":"example.com","domain":"example.com","dest":"192.0.2.1","port":443,"proto":6,"count":2,"first":"2000-01-01T00:00:00Z","action":"allow","reason":"<no>","summary":"Blocked: example.com:443","body":"Container: demo\nProtocol: TCP\nBlocked 2 times since {}\nAddress: 192.0.2.1\nAllow failed: <no>"}]}
{"event":"verdict","id":1,"hub":"hub","container":"0123456789ab","name":"demo","task_name":"demo","target":"example.com","domain":"example.com","dest":"192.0.2.1","port":443,"proto":6,"count":2,"first":"2000-01-01T00:00:00Z","action":"deny","ok":true,"summary":"Denied: example.com","body":"Container: demo"}
{"event":"error","id":1,"action":"deny","error":"there is no such question any more"}
{"event":"error","id":1,"error":"an action is allow, deny, list or quit"}
{"event":"error","error":"a command is an object like {\"id\":1,\"action\":\"allow\"}: json: unknown field \"x\""}
{"event":"error","error":"a command is an object like {\"id\":1,\"action\":\"allow\"}: invalid character 'a' looking for beginning of value"}
{"event":"error","error":"a command is an object like {\"id\":1,\"action\":\"allow\"}: more than one object on a line"}
{"event":"error","error":"a command is an object like {\"id\":1,\"action\":\"allow\"}: json: cannot unmarshal array into Go value of type terminal.request"}
{"event":"prompt","id":2,"hub":"hub","container":"0123456789ab","name":"demo","task_name":"demo","target":"192.0.2.2","dest":"192.0.2.2","port":22,"proto":6,"count":1,"first":"2000-01-01T00:00:00Z","summary":"Blocked: 192.0.2.2:22","body":"Container: demo\nProtocol: TCP"}
{"event":"withdrawn","id":2,"target":"192.0.2.2","reason":"the shield is down"}
{"event":"notice","category":"shield_down","container":"demo","summary":"Shield down: demo","body":"Outbound firewall bypassed — allowlist is not enforced."}
`},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := start(t, tt.config)
				s.play(tt.script)
				want := strings.ReplaceAll(strings.TrimPrefix(tt.want, "\n"), "{}\\n", since()+"\\n")
				if tt.config.Style != JSON {
					want = strings.ReplaceAll(want, "{}", since())
				}
				got := s.out.String()
				want, got = sorted(want, strings.Split(got, "\n"))
				if d := cmp.Diff(want, got); d != "" {
					t.Errorf("transcript (-want +got):\n%s", d)
				}
			})
		})
	}
}

// sorted puts the lines of got into order that stand where want has ones that
// begin with "*", since verdicts end in any order.
func sorted(want string, got []string) (string, string) {
	lines := strings.Split(want, "\n")
	for i := range lines {
		for j := i + 1; j < len(lines) && j < len(got) && strings.HasPrefix(lines[i], "*") && strings.HasPrefix(lines[j], "*"); j++ {
			if got[j] < got[i] {
				got[i], got[j] = got[j], got[i]
			}
		}
	}
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "*")
	}
	return strings.Join(lines, "\n"), strings.Join(got, "\n")
}

func TestEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		end  func(*session)
		want string // of the error
		out  string // of the last line
	}{
		"EOF":             {func(s *session) { s.play("> a 1\nEOF") }, "", "Allowed: 192.0.2.1  Container: demo"},
		"EOF in a line":   {func(s *session) { io.WriteString(s.in, "a 1"); s.in.Close() }, "", "Allowed: 192.0.2.1  Container: demo"},
		"quit":            {func(s *session) { s.play("> a 1\n> Quit") }, "", "Allowed: 192.0.2.1  Container: demo"},
		"exit":            {func(s *session) { s.play("> exit") }, "", "[1] BLOCKED  Blocked: 192.0.2.1:22  Container: demo; Protocol: TCP"},
		"signal":          {func(s *session) { s.play("> a 1"); s.close() }, "", "[1] BLOCKED  Blocked: 192.0.2.1:22  Container: demo; Protocol: TCP"},
		"quit and signal": {func(s *session) { s.play("> a 1\n> q"); s.close() }, "", "[1] BLOCKED  Blocked: 192.0.2.1:22  Container: demo; Protocol: TCP"},
		"input fails":     {func(s *session) { s.in.CloseWithError(errors.New("torn")) }, "read commands: torn", "[1] BLOCKED  Blocked: 192.0.2.1:22  Container: demo; Protocol: TCP"},
		"output fails": {func(s *session) {
			s.out.mu.Lock()
			s.out.fail = errors.New("full")
			s.out.mu.Unlock()
			s.play("block 2 192.0.2.1 22")
		}, "write: full", "[1] BLOCKED  Blocked: 192.0.2.1:22  Container: demo; Protocol: TCP"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := start(t, Config{})
				s.reply = func(clearance.Request) error { time.Sleep(time.Second); return nil } // is waited for
				s.play("block 1 192.0.2.1 22")
				tt.end(s)
				err := <-s.ended
				if got := fmt.Sprint(err); err != nil && got != tt.want || err == nil && tt.want != "" {
					t.Errorf("%v, want %q", err, tt.want)
				}
				lines := strings.Split(strings.TrimSuffix(s.out.String(), "\n"), "\n")
				if got := lines[len(lines)-1]; got != tt.out {
					t.Errorf("%q, want %q", got, tt.out)
				}
			})
		})
	}
}

// What is being answered is not answered again, and listed as such.
func TestAnswering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Config{})
		s.reply = func(clearance.Request) error { time.Sleep(time.Second); return nil }
		s.play("block 1 192.0.2.1 22\n> a 1\n> d 1\n> a\n> l\n+1s")
		want := `[1] BLOCKED  Blocked: 192.0.2.1:22  Container: demo; Protocol: TCP
[1] an answer is being carried out already
[1] an answer is being carried out already
  [1] Blocked: 192.0.2.1:22  Container: demo; Protocol: TCP  (being answered)
Allowed: 192.0.2.1  Container: demo
`
		if d := cmp.Diff(want, s.out.String()); d != "" {
			t.Error(d)
		}
		if len(s.noted) != 1 {
			t.Errorf("%+v", s.noted)
		}
	})
}

// Whoever types ahead answers one after the other.
func TestTypedAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Config{Style: Queued})
		s.reply = func(clearance.Request) error { time.Sleep(time.Second); return nil }
		s.play("block 1 192.0.2.1 22\nblock 2 192.0.2.2 22\nblock 3 192.0.2.3 22\n> a\n+100ms\n> d\n+2s")
		var got []string
		for _, r := range s.noted {
			got = append(got, r.Action+" "+r.Dest)
		}
		if d := cmp.Diff([]string{"allow 192.0.2.1", "deny 192.0.2.2"}, got); d != "" {
			t.Error(d)
		}
		if !strings.HasSuffix(s.out.String(), "[3] [BLOCKED] 192.0.2.3 :22 — allow/deny?\n") {
			t.Error(s.out.String())
		}
	})
}
