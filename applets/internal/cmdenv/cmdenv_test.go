package cmdenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"":                           "",
		"plain, äöü, 日本, 👍, e\u0301": "plain, äöü, 日本, 👍, e\u0301",
		"end\n\n":                    "end",
		"one\ntwo\n":                 "one; two",
		"\nend":                      "; end",
		"a\tb":                       "a b",
		"a\r\nb":                     "a?; b",
		"\x1b[2J\x07\x00\x7f":        "?[2J???",
		"\u009b2J\u0080":             "?2J?",
		"\x9b2J\xff":                 "\ufffd2J\ufffd", // not UTF-8, but a control sequence to some terminals
		"a\u2028b\u2029c":            "a?b?c",
		"\u202eevil\u202c\u2066x\u2069\u200e\u200f\u061c": "?evil??x????",
		"\ufeffa\u200bb": "?a?b",
	} {
		if got := Printable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("one\ntwo\x1b[0m\u202e\n")
	f.Fuzz(func(t *testing.T, s string) {
		got := Printable(s)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, unicode.IsControl) || strings.ContainsFunc(got, func(r rune) bool {
			return unicode.Is(unicode.Bidi_Control, r) || unicode.In(r, unicode.Zl, unicode.Zp)
		}) {
			t.Errorf("%q: %q", s, got)
		}
		if Printable(got) != got {
			t.Errorf("%q: not stable", got)
		}
	})
}

func TestFail(t *testing.T) {
	plain := errors.New("it is so")
	for name, tt := range map[string]struct {
		err  error
		code int
		text string
	}{
		"nothing":           {nil, 0, ""},
		"plain":             {plain, 1, "p: it is so\n"},
		"usage":             {Usagef("%d too many", 2), 2, "p: 2 too many\n"},
		"wrapped usage":     {fmt.Errorf("verb: %w", Usagef("no")), 2, "p: verb: no\n"},
		"fixed code":        {&Exit{Code: 126, Err: plain}, 126, "p: it is so\n"},
		"silent":            {&Exit{Code: 3}, 3, ""},
		"interrupted":       {fmt.Errorf("wait: %w", context.Canceled), 130, "p: wait: context canceled\n"},
		"deadline":          {context.DeadlineExceeded, 1, "p: context deadline exceeded\n"},
		"joined":            {errors.Join(plain, Usagef("b")), 2, "p: it is so; b\n"},
		"control sequences": {errors.New("name \x1b[31mred\nError: forged\n"), 1, "p: name ?[31mred; Error: forged\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			env := &Env{Stdout: &out, Stderr: &errs}
			if code := env.Fail("p: ", tt.err); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if d := cmp.Diff(tt.text, errs.String()); d != "" || out.Len() != 0 {
				t.Errorf("stdout %q, stderr (-want +got):\n%s", out.String(), d)
			}
		})
	}
}

func TestExit(t *testing.T) {
	cause := errors.New("cause")
	if err := error(&Exit{Code: 4, Err: cause}); !errors.Is(err, cause) || err.Error() != "cause" {
		t.Errorf("%v", err)
	}
	if err := error(&Exit{Code: 4}); err.Error() != "exit 4" || errors.Unwrap(err) != nil {
		t.Errorf("%v", err)
	}
}

func TestXDG(t *testing.T) {
	for name, tt := range map[string]struct {
		vars map[string]string
		want string // "" for an error
	}{
		"fallback":             {map[string]string{"HOME": "/home/me"}, "/home/me/.local/state"},
		"set":                  {map[string]string{"HOME": "/home/me", "XDG_STATE_HOME": "/s"}, "/s"},
		"set, without a home":  {map[string]string{"XDG_STATE_HOME": "/s"}, "/s"},
		"another kind":         {map[string]string{"HOME": "/home/me", "XDG_CONFIG_HOME": "/c"}, "/home/me/.local/state"},
		"empty":                {map[string]string{"HOME": "/home/me", "XDG_STATE_HOME": ""}, "/home/me/.local/state"},
		"relative is not used": {map[string]string{"HOME": "/home/me", "XDG_STATE_HOME": "s"}, "/home/me/.local/state"},
		"relative home":        {map[string]string{"HOME": "me"}, ""},
		"empty home":           {map[string]string{"HOME": ""}, ""},
		"nothing":              {nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			env := &Env{Vars: tt.vars}
			got, err := env.XDG("STATE", ".local/state")
			if got != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("%q, %v; want %q", got, err, tt.want)
			}
			if err != nil && !strings.Contains(err.Error(), "HOME") {
				t.Errorf("%v does not help", err)
			}
		})
	}
}

func TestOS(t *testing.T) {
	t.Setenv("TEROK_TEST_CMDENV", "a=b=c")
	env := OS()
	if got := env.Get("TEROK_TEST_CMDENV"); got != "a=b=c" {
		t.Errorf("%q", got)
	}
	if env.UID != os.Getuid() || env.EUID != os.Geteuid() {
		t.Errorf("uid %d, euid %d", env.UID, env.EUID)
	}
	back := make(map[string]string)
	for _, kv := range env.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		back[k] = v
	}
	if d := cmp.Diff(env.Vars, back); d != "" {
		t.Errorf("Environ (-Vars +Environ):\n%s", d)
	}
	if self, err := os.Stat(env.Self); err != nil {
		t.Error(err)
	} else if own, err := os.Executable(); err != nil {
		t.Error(err)
	} else if st, err := os.Stat(own); err != nil || !os.SameFile(self, st) {
		t.Errorf("%s is not %s: %v", env.Self, own, err)
	}
	if Version() == "" {
		t.Error("no version")
	}
}

func TestColor(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	closed, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for name, tt := range map[string]struct {
		w    any
		vars map[string]string
		want bool
	}{
		"terminal":           {terminal, map[string]string{"TERM": "xterm"}, true},
		"terminal, no TERM":  {terminal, nil, true},
		"dumb":               {terminal, map[string]string{"TERM": "dumb"}, false},
		"NO_COLOR":           {terminal, map[string]string{"TERM": "xterm", "NO_COLOR": "1"}, false},
		"NO_COLOR=0":         {terminal, map[string]string{"NO_COLOR": "0"}, false}, // any value counts
		"NO_COLOR is empty":  {terminal, map[string]string{"NO_COLOR": ""}, true},   // but an empty one
		"null device":        {null, nil, false},
		"buffer":             {new(bytes.Buffer), nil, false},
		"nothing":            {nil, nil, false},
		"closed":             {closed, nil, false},
		"no file, but typed": {(*os.File)(nil), nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := (&Env{Vars: tt.vars}).Color(tt.w); got != tt.want {
				t.Errorf("%t", got)
			}
		})
	}
}

func TestContext(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		ctx, cancel := Context()
		defer cancel()
		if err := syscall.Kill(os.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Second):
			t.Fatalf("%v did not end it", sig)
		}
		if !errors.Is(ctx.Err(), context.Canceled) {
			t.Error(ctx.Err())
		}
		if Interrupted(ctx) != (sig == syscall.SIGINT) {
			t.Errorf("%v: %v", sig, context.Cause(ctx))
		}
	}
}
