package notify

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/applets/hub"
	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/varlink"
)

func TestParse(t *testing.T) {
	all := "all"
	for line, tt := range map[string]struct {
		want options
		err  string
	}{
		"TITLE":               {options{title: "TITLE", timeout: -1}, ""},
		"TITLE BODY":          {options{title: "TITLE", body: "BODY", timeout: -1}, ""},
		"-t 1500 T":           {options{title: "T", timeout: 1500 * time.Millisecond}, ""},
		"T --timeout=0":       {options{title: "T"}, ""},
		"T --timeout -1":      {options{title: "T", timeout: -1}, ""},
		"-v T -":              {options{title: "T", body: "-", timeout: -1, verbose: true}, ""},
		"-- -t --wait":        {options{title: "-t", body: "--wait", timeout: -1}, ""},
		"T --help --nonsense": {options{}, `no flag "--nonsense"`},
		"TITLE BODY --actions allow:Allow deny:Deny --wait": {options{
			title: "TITLE", body: "BODY", timeout: -1, wait: true, actions: []Action{{Key: "allow", Label: "Allow"}, {Key: "deny", Label: "Deny"}},
		}, ""},
		"--actions=a:b:c -- T":                        {options{title: "T", timeout: -1, actions: []Action{{Key: "a", Label: "b:c"}}}, ""},
		"T --actions a:A --wait":                      {options{title: "T", timeout: -1, wait: true, actions: []Action{{Key: "a", Label: "A"}}}, ""},
		"--watch":                                     {options{timeout: -1, watch: true}, ""},
		"--watch --events all -v":                     {options{timeout: -1, watch: true, events: &all, verbose: true}, ""},
		"--watch --events=all --hub /a --hub=/b/../c": {options{timeout: -1, watch: true, events: &all, hubs: []string{"/a", "/c"}}, ""},
		"":                    {options{}, "has a title"},
		"a b c":               {options{}, `what is "c"`},
		"-x":                  {options{}, `no flag "-x"`},
		"T -t":                {options{}, "takes a value"},
		"T -t soon":           {options{}, `not "soon"`},
		"T -t -2":             {options{}, `not "-2"`},
		"T -t 99999999999":    {options{}, "milliseconds"},
		"T --actions":         {options{}, "takes KEY:LABEL"},
		"T --actions a":       {options{}, `not "a"`},
		"T --actions :A":      {options{}, `not ":A"`},
		"T --actions= --wait": {options{}, `not ""`},
		"T --events all":      {options{}, "go with --watch"},
		"T --hub /a":          {options{}, "go with --watch"},
		"--watch T":           {options{}, "takes no notification"},
		"--watch --wait":      {options{}, "takes no notification"},
		"--watch --hub=":      {options{}, "takes the path"},
		"--watch --hub":       {options{}, "takes a value"},
		"T --actions a:A b:B c:C d:D e:E f:F g:G h:H i:I": {options{}, "up to 8"},
	} {
		got, err := parse(strings.Fields(line), true)
		if tt.err != "" {
			x, ok := errors.AsType[*cmdenv.Exit](err)
			if !ok || x.Code != cmdenv.ExitUsage || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%q: %v, want %q", line, err, tt.err)
			}
			continue
		}
		if d := cmp.Diff(tt.want, got, cmp.AllowUnexported(options{})); err != nil || d != "" {
			t.Errorf("%q: %v %s", line, err, d)
		}
	}
	if _, err := parse([]string{"--watch"}, false); err == nil {
		t.Error("clearance-hub notify has --watch")
	}
}

// program runs the program with what is printed.
func program(vars map[string]string, run func(*cmdenv.Env, []string) int, args ...string) (code int, out, errs string) {
	var o, e syncBuffer
	env := &cmdenv.Env{Stdout: &o, Stderr: &e, Vars: vars, UID: os.Getuid(), EUID: os.Geteuid()}
	code = run(env, args)
	return code, o.String(), e.String()
}

func TestHeadless(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	empty := startBus(t)
	listens := func(name, says string) string { // to whoever connects, and hangs up
		l, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				r := bufio.NewReader(c)
				for err == nil && says != "" {
					if _, err = r.ReadString('\n'); err == nil {
						_, err = io.WriteString(c, says)
					}
				}
				c.Close()
			}
		}()
		return "unix:path=" + l.Addr().String()
	}
	for name, vars := range map[string]map[string]string{
		"nothing":      {},
		"no bus":       {"XDG_RUNTIME_DIR": dir},
		"no directory": {"XDG_RUNTIME_DIR": "/nonexistent"},
		"bad address":  {addressVar: "unix:path=/nonexistent"},
		"no address":   {addressVar: "nonsense"},
		"TCP":          {addressVar: "tcp:host=localhost,port=1"},
		"no desktop":   empty.vars(),
		"rejected":     {addressVar: listens("r", "REJECTED EXTERNAL\r\n")},
		"hangs up":     {addressVar: listens("h", "")},
		"no D-Bus":     {addressVar: listens("n", "HTTP/1.1 400 Bad Request\r\n")},
	} {
		t.Run(name, func(t *testing.T) {
			for _, run := range []func(*cmdenv.Env, []string) int{Run, RunVerb} {
				began := time.Now()
				code, out, errs := program(vars, run, "TITLE", "BODY", "--actions", "allow:Allow", "deny:Deny", "--wait")
				if code != 0 || out != "0\n" || errs != "" {
					t.Errorf("exit %d, %q, %q", code, out, errs)
				}
				if d := time.Since(began); d > 2*time.Second {
					t.Errorf("it took %v", d)
				}
			}
			if _, out, errs := program(vars, Run, "T", "-v"); out != "0\n" || name != "no desktop" && !strings.Contains(errs, "no popups") {
				t.Errorf("%q, %q", out, errs)
			}
		})
	}
}

func TestShow(t *testing.T) {
	b := startBus(t)
	d := b.show(notificationsName, usual...)
	became := func(f func(id uint32)) {
		d.does("Notify", func(c call) []any {
			d.last++
			d.replies(c, d.last)
			f(d.last)
			return nil
		})
	}
	if code, out, errs := program(b.vars(), Run, "TITLE", "BODY"); code != 0 || out != "1\n" || errs != "" {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	became(func(id uint32) { d.choose(id, "deny"); d.choose(id, "allow"); d.closes(id, Dismissed) })
	args := []string{"TITLE", "BODY", "--actions", "allow:Allow", "deny:Deny", "--wait"}
	if code, out, errs := program(b.vars(), Run, args...); code != 0 || out != "2\ndeny\n" || errs != "" {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	became(func(id uint32) { d.choose(id, "x\x1b[2Jx\nforged") })
	if _, out, _ := program(b.vars(), RunVerb, args...); out != "3\nx?[2Jx; forged\n" {
		t.Errorf("%q", out)
	}
	became(func(id uint32) { d.closes(id, Expired) })
	if code, out, errs := program(b.vars(), Run, args...); code != 0 || out != "4\n" || errs != "" {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	became(func(uint32) { d.disown(notificationsName) })
	if code, out, errs := program(b.vars(), Run, args...); code != 0 || out != "5\n" || errs != "" {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	for _, c := range d.was("Notify") {
		if c.Body[0] != "terok" || c.Body[3] != "TITLE" || c.Body[4] != "BODY" || c.Body[7] != int32(-1) {
			t.Errorf("%v", c.Body)
		}
	}
	b.show(notificationsName, usual...).does("Notify", func(call) []any { return []any{} })
	eventually(t, "the other desktop", func() bool {
		code, out, errs := program(b.vars(), Run, "T")
		return code == 1 && out == "" && strings.HasPrefix(errs, "terok-clearance-notify: show a popup: ")
	})
	if code, _, errs := program(b.vars(), Run, "--nonsense"); code != 2 || errs == "" {
		t.Errorf("exit %d, %q", code, errs)
	}
	if code, out, _ := program(nil, Run, "--help"); code != 0 || out != usage {
		t.Errorf("exit %d, %q", code, out)
	}
}

// container is a hub with its sockets, whose firewall does what it is told.
func container(t *testing.T, dir string) (h *hub.Hub, done <-chan string) {
	t.Helper()
	return hubAt(t, short, event.SocketPath(dir, short), clearance.SocketPath(dir, short))
}

func hubAt(t *testing.T, id string, paths ...string) (h *hub.Hub, done <-chan string) {
	t.Helper()
	verdicts := make(chan string, 100)
	h, err := hub.New(hub.Config{
		Container: id, Log: slog.New(slog.DiscardHandler),
		Verdict: func(_ context.Context, _, dest, action string) (bool, string) {
			verdicts <- action + " " + dest
			return true, ""
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	var l [2]*varlink.Listener
	for i, path := range paths {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if l[i], err = varlink.Listen(path); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Serve(ctx, l[0], l[1]) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		h.Close()
	})
	return h, verdicts
}

func TestFollow(t *testing.T) {
	b := newDaemon(t)
	h, verdicts := container(t, b.dir)
	var errs syncBuffer
	env := &cmdenv.Env{Stderr: &errs, Vars: b.vars(), UID: os.Getuid(), EUID: os.Geteuid()}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- options{watch: true}.follow(ctx, env, nil, textLog(&errs)) }()
	block := func(n int, dest string) {
		t.Helper()
		if err := h.Ingest(event.Event{Type: event.Blocked, Container: short, ID: short + ":" + string(rune('0'+n)), Dest: dest, Domain: "example.com", Port: 443, Proto: 6}); err != nil {
			t.Fatal(err)
		}
	}
	block(1, "198.51.100.1") // before there is a bus
	b.start()
	d := b.show(notificationsName, usual...)
	eventually(t, "popup", func() bool { return len(d.was("Notify")) == 1 })
	got := d.was("Notify")[0].Body
	if got[0] != "terok-clearance" || got[3] != "Blocked: example.com:443" || got[4] != "Container: "+short+"\nProtocol: TCP\nAddress: 198.51.100.1" {
		t.Errorf("%q", got)
	}
	// A second one says that there is one.
	code, out, text := program(b.vars(), Run, "--watch")
	if code != 1 || out != "" || text != "terok-clearance-notify: another program shows the questions of this session already\n" {
		t.Errorf("exit %d, %q, %q", code, out, text)
	}
	d.choose(1, "allow")
	if v := receive(t, "verdict", verdicts); v != "allow example.com" {
		t.Error(v)
	}
	eventually(t, "answer", func() bool { return len(d.was("Notify")) == 2 })
	if got := d.was("Notify")[1].Body; got[1] != uint32(1) || got[3] != "Allowed: example.com" {
		t.Errorf("%q", got)
	}
	block(2, "198.51.100.1")
	eventually(t, "popup", func() bool { return len(d.was("Notify")) == 3 })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	eventually(t, "taken away", func() bool { return len(d.was("CloseNotification")) == 1 })
	if s := errs.String(); strings.Contains(s, "level=WARN") || strings.Contains(s, "level=ERROR") {
		t.Error(s)
	}
}

func TestFollowRefuses(t *testing.T) {
	nonsense := "blocked,nonsense"
	for name, tt := range map[string]struct {
		o    options
		vars map[string]string
		want string
	}{
		"events":       {options{events: &nonsense}, nil, `there is no ["nonsense"]`},
		"no directory": {options{}, map[string]string{"XDG_RUNTIME_DIR": "/nonexistent"}, "--hub"},
	} {
		t.Run(name, func(t *testing.T) {
			env := &cmdenv.Env{Vars: tt.vars, EUID: os.Geteuid()}
			err := tt.o.follow(t.Context(), env, nil, slog.New(slog.DiscardHandler))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Error(err)
			}
		})
	}
}

func TestTerminal(t *testing.T) {
	dir := t.TempDir()
	script := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	env := &cmdenv.Env{Vars: map[string]string{"PATH": "relative:" + dir}}
	script("xterm", `echo "$@" >`+dir+"/args; exec /bin/sleep 3", 0o755)
	if _, ok := findTerminal(env); ok {
		t.Error("a terminal without a screen")
	}
	env.Vars["DISPLAY"] = ":1"
	script("foot", "exit 1", 0o644) // cannot be run
	term, ok := findTerminal(env)
	if !ok || term.path != dir+"/xterm" {
		t.Fatalf("%v %t", term, ok)
	}
	ended := make(chan bool, 3)
	list := func(term terminal) error { return term.list(func() { ended <- true }) }
	if err := list(term); err != nil {
		t.Error(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(dir + "/args"); err != nil || string(got) != "-e "+self+" clearance-hub clearance\n" {
		t.Errorf("%q %v", got, err)
	}
	script("x-terminal-emulator", "exit 3", 0o755)
	if term, _ = findTerminal(env); list(term) == nil {
		t.Error("it ends with an error")
	}
	env.Vars["TERMINAL"] = filepath.Join(dir, "mine")
	script("mine", "exit 0", 0o755) // it asks another process to do so
	if term, _ = findTerminal(env); term.path != dir+"/mine" || list(term) != nil {
		t.Error(term.path)
	}
	for range 3 {
		receive(t, "end of a terminal", ended)
	}
}
