package reader

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/terok-ai/terok-box/wire/bundle"
)

const stamp = "Nov 22 10:28:07 dnsmasq[50]: "

func TestParseAnswer(t *testing.T) {
	for text, want := range map[string]string{
		stamp + "reply a.example.com is 192.0.2.1":                              "192.0.2.1 a.example.com",
		stamp + "cached A.Example.COM. is 2001:db8::1":                          "2001:db8::1 a.example.com",
		"Nov  2 10:28:07 dnsmasq[1234567]: reply a is 192.0.2.1":                "192.0.2.1 a",
		stamp + "17 127.0.0.1/4711 reply a.example.com is 192.0.2.1":            "192.0.2.1 a.example.com",
		stamp + "reply cn.example.com is <CNAME>":                               "",
		stamp + "reply a.example.com is NXDOMAIN":                               "",
		stamp + "reply a.example.com is NODATA-IPv6":                            "",
		stamp + "query[A] a.example.com from 127.0.0.1":                         "",
		stamp + "forwarded a.example.com to 192.0.2.53":                         "",
		stamp + "nftset add 4 inet terok_shield allow_v4 11.0.0.1 example.com":  "",
		stamp + "reply a.example.com is 192.0.2.1 ":                             "",
		stamp + "reply a b is 192.0.2.1":                                        "",
		stamp + "reply evil is 192.0.2.9 is 192.0.2.1":                          "",
		stamp + "x 127.0.0.1/4711 reply a.example.com is 192.0.2.1":             "",
		stamp + "reply a.example.com is fe80::1%eth0":                           "",
		stamp + "reply . is 192.0.2.1":                                          "",
		stamp + "reply caf\u00e9.example.com is 192.0.2.1":                      "",
		stamp + "reply a\x1b[31m is 192.0.2.1":                                  "",
		stamp + "reply " + strings.Repeat("a", 254) + " is 192.0.2.1":           "",
		stamp + "config a.example.com is 192.0.2.1":                             "",
		"Nov 22 10:28:07 other: reply a.example.com is 192.0.2.1":               "",
		"Nov 22 10:28:07 dnsmasq[50] x: reply a.example.com is 192.0.2.1":       "",
		"reply a.example.com is 192.0.2.1":                                      "",
		"":                                                                      "",
		stamp:                                                                   "",
		stamp + "reply a.example.com is 192.0.2.1" + strings.Repeat(" ", 1<<13): "",
	} {
		addr, name, ok := parseAnswer(text)
		got := ""
		if ok {
			got = addr.String() + " " + name
		}
		if got != want {
			t.Errorf("%.100q: %q, want %q", text, got, want)
		}
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add(stamp + "reply a.example.com is 192.0.2.1")
	f.Add(stamp + "17 127.0.0.1/4711 cached a.example.com is 2001:db8::1")
	f.Add(stamp + "reply cn.example.com is <CNAME>")
	f.Fuzz(func(t *testing.T, text string) {
		addr, name, ok := parseAnswer(text)
		if !ok {
			return
		}
		if !addr.IsValid() || addr.Zone() != "" || name == "" || len(name) > maxLogName || strings.ToLower(name) != name ||
			strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Errorf("%q: %v, %q", text, addr, name)
		}
	})
}

func newBundle(t testing.TB) *bundle.Bundle {
	t.Helper()
	b, err := bundle.Create(filepath.Join(t.TempDir(), "sd"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func appendLog(t testing.TB, b *bundle.Bundle, text string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(b.Path(), bundle.FileQueryLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func answer(name, addr string) string { return stamp + "reply " + name + " is " + addr + "\n" }

func TestQueryLog(t *testing.T) {
	b := newBundle(t)
	l := newQueryLog(b)
	defer l.close()
	path := filepath.Join(b.Path(), bundle.FileQueryLog)
	is := func(addr, want string) {
		t.Helper()
		if got, err := l.name(netip.MustParseAddr(addr)); got != want || err != nil {
			t.Errorf("%s: %q, %v; want %q", addr, got, err, want)
		}
	}
	is("192.0.2.1", "")
	appendLog(t, b, answer("a.test", "192.0.2.1")+answer("b.test", "192.0.2.2"))
	is("192.0.2.1", "a.test")
	is("192.0.2.2", "b.test")
	// The last one counts, as soon as its line has an end.
	half := answer("c.test", "192.0.2.1")
	appendLog(t, b, half[:40])
	is("192.0.2.1", "a.test")
	appendLog(t, b, half[40:])
	is("192.0.2.1", "c.test")
	// A line that is too long hides nothing behind it, however it comes.
	appendLog(t, b, stamp+"reply "+strings.Repeat("x", 3000))
	is("192.0.2.3", "")
	appendLog(t, b, strings.Repeat("y", 200_000))
	is("192.0.2.3", "")
	appendLog(t, b, " is 192.0.2.3\n"+answer("d.test", "192.0.2.4"))
	is("192.0.2.3", "")
	is("192.0.2.4", "d.test")
	// Emptied by whoever keeps it small; what was known stays known.
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	appendLog(t, b, answer("e.test", "192.0.2.5"))
	is("192.0.2.5", "e.test")
	is("192.0.2.4", "d.test")
	// Renamed.
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	is("192.0.2.5", "e.test")
	appendLog(t, b, answer("f.test", "192.0.2.6"))
	is("192.0.2.6", "f.test")
	// Not a file any more.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", path); err != nil {
		t.Fatal(err)
	}
	if got, err := l.name(netip.MustParseAddr("192.0.2.6")); got != "f.test" || err == nil {
		t.Errorf("through a symbolic link: %q, %v", got, err)
	}
}

// Of a log of any length only the end is read, and only so much remembered.
func TestQueryLogIsBounded(t *testing.T) {
	b := newBundle(t)
	l := newQueryLog(b)
	defer l.close()
	var text strings.Builder
	for i := range 300_000 { // about 20 MB
		text.WriteString(answer(fmt.Sprintf("name%06d.example.test", i), netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String()))
	}
	if text.Len() < 4*maxLogRead {
		t.Fatal(text.Len())
	}
	for range 2 { // also if it grows that much between two looks
		appendLog(t, b, text.String())
		if got, err := l.name(netip.MustParseAddr("10.4.147.223")); got != "name299999.example.test" || err != nil {
			t.Errorf("the last one: %q, %v", got, err)
		}
	}
	if got, err := l.name(netip.MustParseAddr("10.0.0.1")); got != "" || err != nil {
		t.Errorf("the first one: %q, %v", got, err)
	}
	if n := len(l.young) + len(l.old); n > 2*maxLogAddrs {
		t.Errorf("%d addresses are remembered", n)
	}
	fi, err := l.f.Stat()
	if err != nil || l.offset != fi.Size() {
		t.Errorf("read to %d of %d, %v", l.offset, fi.Size(), err)
	}
}
