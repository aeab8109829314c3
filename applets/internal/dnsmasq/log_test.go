package dnsmasq

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const stamp = "Nov  4 10:28:07 dnsmasq[50]: "

func TestParseLine(t *testing.T) {
	s, one := serial{50, 7}, netip.MustParseAddr("11.0.0.1")
	for text, want := range map[string]line{
		"7 127.0.0.1/5353 query[A] A.Example.com from 127.0.0.1":                                     {kind: asked, serial: s, name: "a.example.com", text: "A"},
		"7 ::1/5353 query[AAAA] example.com. from ::1":                                               {kind: asked, serial: s, name: "example.com", text: "AAAA"},
		"7 127.0.0.1/5353 query[type=65280] _x.example.com from 127.0.0.1":                           {kind: asked, serial: s, name: "_x.example.com", text: "TYPE65280"},
		"7 127.0.0.1/5353 query[NS] . from 127.0.0.1":                                                {kind: asked, serial: s, name: ".", text: "NS"},
		"7 127.0.0.1/5353 reply a.example.com is 11.0.0.1":                                           {kind: answered, serial: s, name: "a.example.com", text: "11.0.0.1", addr: one},
		"7 127.0.0.1/5353 cached a.example.com is 11.0.0.1":                                          {kind: answered, serial: s, name: "a.example.com", text: "11.0.0.1", addr: one},
		"7 127.0.0.1/5353 reply a.example.com is <CNAME>":                                            {kind: answered, serial: s, name: "a.example.com", text: "<CNAME>"},
		"7 127.0.0.1/5353 reply a.example.com is fe80::1%eth0":                                       {kind: answered, serial: s, name: "a.example.com", text: "fe80::1%eth0"},
		"7 127.0.0.1/5353 reply a.example.com is 11.0.0.1 is 11.0.0.2":                               {kind: answered, serial: s, name: "a.example.com", text: "11.0.0.1 is 11.0.0.2"},
		"7 127.0.0.1/5353 config a.example.com is NXDOMAIN":                                          {kind: answered, serial: s, name: "a.example.com", text: "NXDOMAIN", local: true},
		"7 127.0.0.1/5353 reply error is SERVFAIL (EDE: network error)":                              {kind: answered, serial: s, name: "error", text: "SERVFAIL (EDE: network error)"},
		"7 127.0.0.1/5353 nftset add 4 inet terok_shield learned_v4 11.0.0.1 example.com":            {kind: opened, serial: s, name: "example.com", addr: one},
		"possible DNS-rebind attack detected: lan.example.com":                                       {kind: rebound, serial: serial{pid: 50}, name: "lan.example.com"},
		"7 127.0.0.1/5353 forwarded a.example.com to 127.0.0.2":                                      {},
		"started, version 2.90 cache disabled":                                                       {},
		"query[A] a.example.com from 127.0.0.1":                                                      {}, // without log-queries=extra
		"7 127.0.0.1/5353 query[A] a b from 127.0.0.1":                                               {}, // a name with a space
		"7 127.0.0.1/5353 query[A] <name unprintable> from 127.0.0.1":                                {},
		"7 127.0.0.1/5353 query[A] a from 127.0.0.1 from 127.0.0.1":                                  {},
		"7 127.0.0.1/5353 query[A from] a from 127.0.0.1":                                            {},
		"7 127.0.0.1/5353 query[a] a from 127.0.0.1":                                                 {},
		"7 127.0.0.1/5353 query[type=65536] a from 127.0.0.1":                                        {},
		"7 127.0.0.1/5353 query[A] a\xff from 127.0.0.1":                                             {},
		"7 127.0.0.1/5353 query[A] a\x1b[m from 127.0.0.1":                                           {},
		"7 127.0.0.1/5353 query[A]  from 127.0.0.1":                                                  {},
		"7 127.0.0.1/5353 query[A] a from nowhere":                                                   {},
		"-7 127.0.0.1/5353 query[A] a from 127.0.0.1":                                                {},
		"77777777777 127.0.0.1/5353 query[A] a from 127.0.0.1":                                       {},
		"7 nobody/5353 query[A] a from 127.0.0.1":                                                    {},
		"7 127.0.0.1/5353 query[A] " + strings.Repeat("a", 254) + " from 127.0.0.1":                  {},
		"7 127.0.0.1/5353 nftset add 4 inet terok_shield learned_v4 11.0.0.1 example.com is 1.1.1.1": {},
		"7 127.0.0.1/5353 nftset add 4 inet terok_shield learned_v4 nowhere example.com":             {},
	} {
		got, ok := parseLine(stamp + text)
		if ok != (want.kind != 0) || ok && got != want {
			t.Errorf("%q:\n%+v, %t", text, got, ok)
		}
	}
	for _, s := range []string{"", "x", stamp, strings.Repeat("x", 5000), strings.Replace(stamp, "[50]", "[x]", 1) + "7 ::1/5 query[A] a from ::1", strings.Replace(stamp, "dnsmasq", "other", 1) + "7 ::1/5 query[A] a from ::1"} {
		if l, ok := parseLine(s); ok {
			t.Errorf("%q: %+v", s, l)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	for _, s := range []string{
		"7 127.0.0.1/5353 query[A] a.example.com from 127.0.0.1", "7 127.0.0.1/5353 query[type=65] a from ::1",
		"7 127.0.0.1/5353 reply a.example.com is 11.0.0.1", "7 ::1/53 config a is NXDOMAIN",
		"7 127.0.0.1/5353 nftset add 4 inet terok_shield learned_v4 11.0.0.1 example.com", "possible DNS-rebind attack detected: a",
	} {
		f.Add(stamp + s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, ok := parseLine(s)
		if !ok {
			return
		}
		invisible := func(s string) bool {
			return strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
		}
		if l.kind == 0 || l.name == "" || len(l.name) > maxLogName || invisible(l.name) || l.name != strings.ToLower(l.name) ||
			l.kind == asked && (l.text == "" || invisible(l.text)) ||
			l.kind == opened && !l.addr.IsValid() || l.addr.Zone() != "" ||
			l.serial.pid < 0 || l.serial.number < 0 || len(s) > maxLogLine {
			t.Errorf("%q: %+v", s, l)
		}
	})
}

// The log is read once, whatever is done to the file.
func TestFollower(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, fileLog)
	l := newFollower(dir)
	defer l.close()
	next := func(want ...string) {
		t.Helper()
		var got []string
		if err := l.poll(func(s string) { got = append(got, s) }); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	add := func(text string) {
		t.Helper()
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if err == nil {
			_, err = f.WriteString(text)
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	next()
	add("one\ntwo\nthr")
	next("one", "two")
	next()
	add("ee\n\n")
	next("three", "")
	add(strings.Repeat("x", maxLogLine+1) + "\nfour\n" + strings.Repeat("y", maxLogLine))
	next("four")
	add("y")
	next()
	add("\nfive\n")
	next("five")
	// Emptied.
	if err := os.Truncate(name, 0); err != nil {
		t.Fatal(err)
	}
	add("six\n")
	next("six")
	// Another file.
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	add("seven\n")
	next("seven")
	// Too large: what is half there when it is emptied is not joined.
	big := strings.Repeat(strings.Repeat("z", 127)+"\n", maxLog/128)
	add(big + "half")
	var n int
	if err := l.poll(func(string) { n++ }); err != nil || n != maxLog/128 {
		t.Errorf("%d lines, %v", n, err)
	}
	if fi, err := os.Stat(name); err != nil || fi.Size() != 0 {
		t.Errorf("%v, %v", fi, err)
	}
	add("eight\n")
	next("eight")
	// Of a large one only the end.
	add(big + big + "nine\n")
	l.close()
	lines := []string{}
	if err := l.poll(func(s string) { lines = append(lines, s) }); err != nil || len(lines) > maxLog/128 || !slices.Contains(lines, "nine") {
		t.Errorf("%d lines, %v", len(lines), err)
	}
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// Other things in its place.
	for what, make := range map[string]func() error{
		"link":      func() error { return os.Symlink("/dev/null", name) },
		"FIFO":      func() error { return syscall.Mkfifo(name, 0o600) },
		"directory": func() error { return os.Mkdir(name, 0o700) },
	} {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		if err := make(); err != nil {
			t.Fatal(err)
		}
		if err := l.poll(func(s string) { t.Errorf("%s: %q", what, s) }); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}
