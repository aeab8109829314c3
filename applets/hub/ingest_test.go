package hub

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/terok-ai/terok-box/wire/event"
)

const (
	marker      = `{"type":"shield_up","container":"marker"}` + "\n"
	markerReply = `{"continues":true,"parameters":{"event":{"type":"shield_up","container":"marker","request_id":"","dest":"","port":0,"proto":0,"domain":"","action":"","ok":false,"reason":"","dossier":{}}}}`
)

// blocked is the reply for a block of container c with id c:1.
func blocked(dest string, port, proto int, domain, dossier string) string {
	return fmt.Sprintf(`{"continues":true,"parameters":{"event":{"type":"connection_blocked","container":"c","request_id":"c:1","dest":"%s","port":%d,"proto":%d,"domain":"%s","action":"","ok":false,"reason":"","dossier":%s}}}`,
		dest, port, proto, domain, dossier)
}

// What a producer sends, what subscribers get of it, to the byte, and what
// the log says. After every line the connection is as good as before.
func TestIngestLines(t *testing.T) {
	const rest = `"id":"c:1","dest":"203.0.113.9","port":443,"proto":6,"domain":""`
	plain := blocked("203.0.113.9", 443, 6, "", "{}")
	for name, tt := range map[string]struct {
		line string
		want string // "": nothing
		warn string // "": no warning
	}{
		"pending":             {`{"type":"pending","container":"c",` + rest + `,"dossier":{"project":"p"},"ts":"2026-01-01T00:00:00+00:00"}` + "\n", blocked("203.0.113.9", 443, 6, "", `{"project":"p"}`), ""},
		"connection_blocked":  {`{"type":"connection_blocked","container":"c",` + rest + "}\n", plain, ""},
		"with a domain":       {`{"type":"pending","container":"c","id":"c:1","dest":"203.0.113.9","port":443,"proto":6,"domain":"example.com"}` + "\n", blocked("203.0.113.9", 443, 6, "example.com", "{}"), ""},
		"a name alone":        {`{"type":"pending","container":"c","id":"c:1","dest":"","port":53,"proto":17,"domain":"example.com"}` + "\n", blocked("", 53, 17, "example.com", "{}"), ""},
		"CRLF":                {`{"type":"pending","container":"c",` + rest + "}\r\n", plain, ""},
		"blanks around it":    {"  \t" + `{"type":"pending","container":"c",` + rest + "} \t \n", plain, ""},
		"a numeric string":    {`{"type":"pending","container":"c","id":"c:1","dest":"203.0.113.9","port":"443","proto":"6"}` + "\n", plain, ""},
		"floats":              {`{"type":"pending","container":"c","id":"c:1","dest":"203.0.113.9","port":443.9,"proto":6.9}` + "\n", plain, ""},
		"booleans":            {`{"type":"pending","container":"c","id":"c:1","dest":"203.0.113.9","port":true,"proto":false}` + "\n", blocked("203.0.113.9", 1, 0, "", "{}"), ""},
		"out of range":        {`{"type":"pending","container":"c","id":"c:1","dest":"203.0.113.9","port":99999,"proto":-1}` + "\n", blocked("203.0.113.9", 99999, -1, "", "{}"), ""},
		"escape sequences":    {`{"type":"pending","container":"c","id":"c:1","dest":"\u001b[31m","port":443,"proto":6,"domain":"a\nb"}` + "\n", blocked(" [31m", 443, 6, "a b", "{}"), ""},
		"a long domain":       {`{"type":"pending","container":"c","id":"c:1","dest":"203.0.113.9","port":443,"proto":6,"domain":"` + strings.Repeat("a", 300) + `"}` + "\n", blocked("203.0.113.9", 443, 6, strings.Repeat("a", 253)+"...", "{}"), ""},
		"a dossier of arrays": {`{"type":"pending","container":"c",` + rest + `,"dossier":["a"]}` + "\n", plain, ""},
		"null":                {`{"type":"pending","container":"c",` + rest + `,"dossier":{"project":null}}` + "\n", blocked("203.0.113.9", 443, 6, "", `{"project":""}`), ""},
		"like an option":      {`{"type":"pending","container":"c","id":"c:1","dest":"--help","port":443,"proto":6}` + "\n", blocked("--help", 443, 6, "", "{}"), ""},

		"empty":               {"\n", "", ""},
		"blank":               {" \t \r\n", "", ""},
		"a thousand blanks":   {strings.Repeat("\n", 1000), "", ""},
		"not JSON":            {"{nonsense\n", "", "{nonsense"},
		"half":                {`{"type":"pend` + "\n", "", "event dropped"},
		"two":                 {`{"type":"shield_up","container":"a"}{"type":"shield_up","container":"b"}` + "\n", "", "event dropped"},
		"invalid UTF-8":       {"{\"type\":\"shield_up\",\"container\":\"\xff\"}\n", "", "event dropped"},
		"NUL":                 {"\x00\x00\n", "", "event dropped"},
		"deep":                {strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + "\n", "", "event dropped"},
		"deep in the dossier": {`{"type":"shield_up","container":"c","dossier":` + strings.Repeat("[", 30000) + strings.Repeat("]", 30000) + "}\n", "", "event dropped"},
		"an array":            {"[1,2]\n", "", "event dropped"},
		"a string":            {`"pending"` + "\n", "", "event dropped"},
		"a number":            {"17\n", "", "event dropped"},
		"null, alone":         {"null\n", "", "event dropped"},
		"no container":        {`{"type":"shield_up"}` + "\n", "", "event dropped"},
		"no id":               {`{"type":"pending","container":"c","dest":"203.0.113.9","port":443,"proto":6}` + "\n", "", "event dropped"},
		"no dest":             {`{"type":"pending","container":"c","id":"c:1","port":443,"proto":6}` + "\n", "", "event dropped"},
		"no port":             {`{"type":"pending","container":"c","id":"c:1","dest":"203.0.113.9","proto":6}` + "\n", "", "event dropped"},
		"no proto":            {`{"type":"pending","container":"c","id":"c:1","dest":"203.0.113.9","port":443}` + "\n", "", "event dropped"},
		"port in words":       {`{"type":"pending","container":"c","id":"c:1","dest":"203.0.113.9","port":"https","proto":6}` + "\n", "", "event dropped"},
		"port null":           {`{"type":"pending","container":"c","id":"c:1","dest":"203.0.113.9","port":null,"proto":6}` + "\n", "", "event dropped"},
		"port a list":         {`{"type":"pending","container":"c","id":"c:1","dest":"203.0.113.9","port":[443],"proto":6}` + "\n", "", "event dropped"},
		"port infinite":       {`{"type":"pending","container":"c","id":"c:1","dest":"203.0.113.9","port":1e999,"proto":6}` + "\n", "", "event dropped"},
		"type a list":         {`{"type":["pending"],"container":"c"}` + "\n", "", "event dropped"},
		"type an object":      {`{"type":{},"container":"c"}` + "\n", "", "event dropped"},
		"no type":             {`{"container":"c"}` + "\n", "", ""},
		"type null":           {`{"type":null,"container":"c"}` + "\n", "", ""},
		"a forged verdict":    {`{"type":"verdict_applied","container":"c","request_id":"c:1","action":"allow","ok":true}` + "\n", "", ""},
		"of an earlier time":  {`{"type":"shield_down_all","container":"c"}` + "\n", "", ""},
		"unknown":             {`{"type":"unknown","container":"c"}` + "\n", "", ""},
		"as long as can be":   {`{"type":"shield_up","container":"c","x":"` + strings.Repeat("x", event.MaxLine-len(`{"type":"shield_up","container":"c","x":""}`)) + `"}` + "\n", strings.Replace(markerReply, "marker", "c", 1), ""},
		"one byte longer":     {`{"type":"shield_up","container":"c","x":"` + strings.Repeat("x", event.MaxLine+1-len(`{"type":"shield_up","container":"c","x":""}`)) + `"}` + "\n", "", "too long"},
		"much longer":         {strings.Repeat("x", 5<<20) + "\n", "", "too long"},
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, nil)
			sub := f.subscribe()
			p := dial(t, f.ingest)
			p.say(tt.line)
			p.say(marker)
			if tt.want != "" {
				diff(t, tt.want, sub.hear())
			}
			diff(t, markerReply, sub.hear())
			log := f.log.String()
			if warned := strings.Contains(log, "level=WARN"); warned != (tt.warn != "") || !strings.Contains(log, tt.warn) {
				t.Errorf("log, where %q should be:\n%.2000s", tt.warn, log)
			}
			if strings.Contains(log, "level=ERROR") {
				t.Errorf("log:\n%.2000s", log)
			}
		})
	}
}

// The last line needs no line feed.
func TestIngestEOF(t *testing.T) {
	for name, say := range map[string]string{
		"after a line": `{"type":"shield_down","container":"x"}` + "\n" + strings.TrimSuffix(marker, "\n"),
		"alone":        strings.TrimSuffix(marker, "\n"),
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, nil)
			sub := f.subscribe()
			p := dial(t, f.ingest)
			p.say(say)
			if err := p.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if name != "alone" {
				sub.hear()
			}
			diff(t, markerReply, sub.hear())
			p.ended()
		})
	}
}

// Half a line is no line, until it is whole.
func TestIngestPieces(t *testing.T) {
	f := start(t, nil)
	sub := f.subscribe()
	slow, fast := dial(t, f.ingest), dial(t, f.ingest)
	for i := range len(marker) - 1 {
		slow.say(marker[i : i+1])
	}
	fast.say(strings.ReplaceAll(marker, "marker", "other"))
	diff(t, strings.ReplaceAll(markerReply, "marker", "other"), sub.hear())
	slow.say("\n")
	diff(t, markerReply, sub.hear())
	fast.say(`{"type":`)
	fast.Close()
	slow.say(strings.Repeat(marker, 100))
	for range 100 {
		diff(t, markerReply, sub.hear())
	}
}

// A hub's answer to a producer is silence.
func TestIngestSaysNothing(t *testing.T) {
	f := start(t, nil)
	sub := f.subscribe()
	p := dial(t, f.ingest)
	p.say("nonsense\n" + marker)
	sub.hear()
	p.SetDeadline(time.Now().Add(20 * time.Millisecond))
	if b, err := io.ReadAll(p); len(b) > 0 || err == nil {
		t.Errorf("%q, %v", b, err)
	}
}

// One that sends nothing but nonsense does not fill the log.
func TestComplaints(t *testing.T) {
	f := start(t, nil)
	sub := f.subscribe()
	p := dial(t, f.ingest)
	for range 100 {
		p.say("nonsense \x1b[31m" + strings.Repeat("x", 1000) + "\n")
	}
	p.say(marker)
	sub.hear()
	log := f.log.String()
	if n := strings.Count(log, "level=WARN"); n != maxComplaints+1 {
		t.Errorf("%d warnings", n)
	}
	if strings.Contains(log, "\x1b") || strings.Contains(log, strings.Repeat("x", shownLine)) {
		t.Errorf("log:\n%.1000s", log)
	}
}

// Events about other containers cost their lines.
func TestIngestOther(t *testing.T) {
	f := start(t, func(c *Config) { c.Container = shortened })
	sub := f.subscribe()
	p := dial(t, f.ingest)
	p.say(`{"type":"pending","container":"other","id":"other:1","dest":"203.0.113.9","port":443,"proto":6}` + "\n")
	p.say(strings.ReplaceAll(marker, "marker", id))
	diff(t, strings.ReplaceAll(markerReply, "marker", shortened), sub.hear())
	if !strings.Contains(f.log.String(), "another container") {
		t.Errorf("log:\n%s", f.log)
	}
}

// Lines are what a simple reader makes of them, however they arrive.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\n\nb"), uint8(1), 0)
	f.Add([]byte("a\r\nxb\n"), uint8(0), event.MaxLine)
	f.Add([]byte("x\nb\nx"), uint8(2), event.MaxLine+1)
	f.Add([]byte("xx\n"), uint8(2), event.MaxLine/2)
	f.Add([]byte("xx"), uint8(0), event.MaxLine/2+1)
	f.Fuzz(func(t *testing.T, data []byte, how uint8, stretch int) {
		if bytes.Count(data, []byte("x")) > 4 || stretch < 0 || stretch > 3*event.MaxLine {
			return
		}
		data = bytes.ReplaceAll(data, []byte("x"), bytes.Repeat([]byte("x"), stretch))
		want := bytes.Split(data, []byte("\n"))
		if len(want[len(want)-1]) == 0 {
			want = want[:len(want)-1]
		}
		var r io.Reader = bytes.NewReader(data)
		switch how % 4 {
		case 1:
			r = iotest.HalfReader(r)
		case 2:
			r = iotest.DataErrReader(r)
		case 3:
			if len(data) < 10000 {
				r = iotest.OneByteReader(r)
			}
		}
		l := lines{r: r}
		for _, w := range want {
			got, err := l.next()
			switch {
			case len(w) > event.MaxLine:
				if !errors.Is(err, errLongLine) {
					t.Fatalf("a line of %d bytes: %v", len(w), err)
				}
			case err != nil || !slices.Equal(got, w):
				t.Fatalf("%.100q, %v; want %.100q", got, err, w)
			}
			if cap(l.buf) > event.MaxLine+2*minBuffer {
				t.Fatalf("buffer of %d bytes", cap(l.buf))
			}
		}
		for range 2 {
			if got, err := l.next(); !errors.Is(err, io.EOF) {
				t.Fatalf("after the end: %q, %v", got, err)
			}
		}
	})
}
