package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/wire/bundle"
)

func open(t *testing.T) *bundle.Bundle {
	t.Helper()
	b, err := bundle.Create(filepath.Join(t.TempDir(), "sd"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func texts(rs []Record) []string {
	var out []string
	for _, r := range rs {
		out = append(out, r.String())
	}
	return out
}

func read(t *testing.T, b *bundle.Bundle, n int) []string {
	t.Helper()
	rs, err := Read(b, n)
	if err != nil {
		t.Fatal(err)
	}
	return texts(rs)
}

var at = time.Date(2026, 3, 4, 5, 6, 7, 890, time.FixedZone("", 3600))

func TestLine(t *testing.T) {
	for _, tt := range []struct {
		name string
		e    Entry
		want string
	}{
		{"only what is always there", Entry{Time: at, Container: "demo", Action: Up},
			`{"ts":"2026-03-04T04:06:07+00:00","container":"demo","action":"shield_up"}`},
		{"detail", Entry{Time: at, Container: "demo", Action: Allowed, Dest: "192.0.2.1", Detail: "target=example.org"},
			`{"ts":"2026-03-04T04:06:07+00:00","container":"demo","action":"allowed","dest":"192.0.2.1","detail":"target=example.org"}`},
		{"packet", Entry{Time: at, Container: "0123456789ab", Action: Blocked, Dest: "2001:db8::1", Port: 443, Proto: "tcp",
			Domain: "example.org", Dossier: map[string]string{"task": "t", "project": "p"}},
			`{"ts":"2026-03-04T04:06:07+00:00","container":"0123456789ab","action":"blocked","dest":"2001:db8::1","port":443,"proto":"tcp","domain":"example.org","dossier":{"project":"p","task":"t"}}`},
		{"packet without port", Entry{Time: at, Container: "c", Action: Blocked, Dest: "192.0.2.1", Proto: "47"},
			`{"ts":"2026-03-04T04:06:07+00:00","container":"c","action":"blocked","dest":"192.0.2.1","port":0,"proto":"47"}`},
		{"refused name", Entry{Time: at, Container: "c", Action: Blocked, Port: 53, Proto: "udp", Domain: "x.org"},
			`{"ts":"2026-03-04T04:06:07+00:00","container":"c","action":"blocked","dest":"","port":53,"proto":"udp","domain":"x.org"}`},
		{"text is ASCII", Entry{Time: at, Container: "ü€😀", Action: "a\x00\n\x1b[31m\"\\/<\x7f\u2028", Detail: "\xff"},
			`{"ts":"2026-03-04T04:06:07+00:00","container":"\u00fc\u20ac\ud83d\ude00","action":"a\u0000\n\u001b[31m\"\\/<\u007f\u2028","detail":"\ufffd"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.e.line()
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			if !json.Valid([]byte(got)) {
				t.Errorf("not JSON: %s", got)
			}
		})
	}
}

func TestAppendAndRead(t *testing.T) {
	b := open(t)
	if got := read(t, b, 10); got != nil {
		t.Errorf("without a log: %q", got)
	}
	for i := range 3 {
		if err := Append(b, Entry{Time: at, Container: "c", Action: Denied, Dest: fmt.Sprint("192.0.2.", i)}); err != nil {
			t.Fatal(err)
		}
	}
	line := `{"ts": "2026-03-04T04:06:07+00:00", "container": "c", "action": "denied", "dest": "192.0.2.%d"}`
	all := []string{fmt.Sprintf(line, 0), fmt.Sprintf(line, 1), fmt.Sprintf(line, 2)}
	for n, want := range map[int][]string{-1: nil, 0: nil, 1: all[2:], 2: all[1:], 3: all, 4: all} {
		if d := cmp.Diff(want, read(t, b, n)); d != "" {
			t.Errorf("last %d (-want +got)\n%s", n, d)
		}
	}
	if err := Append(b, Entry{Container: "c", Action: Up}); err != nil {
		t.Fatal(err)
	}
	rs, err := Read(b, 1)
	if err != nil {
		t.Fatal(err)
	}
	if ts, err := time.Parse(time.RFC3339, rs[0].Time); err != nil || time.Since(ts) > time.Minute {
		t.Errorf("an entry without a time has %q", rs[0].Time)
	}
}

// Other programs never start a new audit log; ours stays bounded.
func TestRotation(t *testing.T) {
	b := open(t)
	entry := func(i int) Entry {
		return Entry{Time: at, Container: fmt.Sprintf("%06d", i), Action: Blocked, Detail: strings.Repeat("d", MaxLine-200)}
	}
	const lines = 2*MaxLog/(MaxLine-100) + 20 // the second file is full and the third begun
	for i := range lines {
		if err := Append(b, entry(i)); err != nil {
			t.Fatal(err)
		}
	}
	var total int64
	for _, name := range []string{bundle.FileAuditLog, bundle.FileAuditLogRotated} {
		fi, err := os.Stat(filepath.Join(b.Path(), name))
		if err != nil {
			t.Fatal(err)
		}
		if fi.Size() > MaxLog || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %d bytes, mode %v", name, fi.Size(), fi.Mode())
		}
		total += fi.Size()
	}
	if total < MaxLog {
		t.Errorf("only %d bytes are left", total)
	}
	rs, err := Read(b, lines)
	if err != nil {
		t.Fatal(err)
	}
	if len(rs) < MaxLog/MaxLine || len(rs) >= lines {
		t.Fatalf("%d of %d records are left", len(rs), lines)
	}
	for i, r := range rs { // both files, in order, the newest last
		if want := fmt.Sprintf(`"container": "%06d"`, lines-len(rs)+i); !strings.Contains(r.String(), want) {
			t.Fatalf("record %d is not %s", i, want)
		}
	}
}

// Rotation by concurrent writers loses no line of the last two files and
// mixes none.
func TestConcurrentWriters(t *testing.T) {
	b := open(t)
	filler := strings.Repeat("d", 50_000)
	const writers, each = 4, 120 // 24 MB: one rotation
	var wg sync.WaitGroup
	errs := make(chan error, writers*each)
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				errs <- Append(b, Entry{Time: at, Container: fmt.Sprint(w), Action: fmt.Sprint(i), Detail: filler})
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	rs, err := Read(b, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	if len(rs) != writers*each {
		t.Errorf("%d of %d lines", len(rs), writers*each)
	}
	next := map[string]int{}
	for _, r := range rs {
		var e struct{ Container, Action string }
		if err := json.Unmarshal(r.raw, &e); err != nil {
			t.Fatal(err)
		}
		if e.Action != fmt.Sprint(next[e.Container]) {
			t.Fatalf("writer %s: line %s where %d was due", e.Container, e.Action, next[e.Container])
		}
		next[e.Container]++
	}
}

func TestTooLong(t *testing.T) {
	b := open(t)
	big := strings.Repeat("x", MaxLine)
	if err := Append(b, Entry{Time: at, Container: "c", Action: Blocked, Dossier: map[string]string{"k": big}}); err != nil {
		t.Errorf("a large dossier: %v", err)
	}
	if err := Append(b, Entry{Time: at, Container: "c", Action: Blocked, Detail: big}); err == nil {
		t.Error("an entry that Read would skip was written")
	}
	want := []string{`{"ts": "2026-03-04T04:06:07+00:00", "container": "c", "action": "blocked"}`}
	if d := cmp.Diff(want, read(t, b, 10)); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestReadForeignLines(t *testing.T) {
	b := open(t)
	log := strings.Join([]string{
		`{"ts":"1","b":1,"a":[1,2,{"x":null}],"f":1.50,"g":-1E+2}`,
		`not JSON`,
		`[1]`,
		`"text"`,
		`{"ts":"x","bad":"` + "\xff" + `"}`,
		`{"ts":"x","control":"` + "\x01" + `"}`,
		`{"ts":"x"} {}`,
		``,
		`{"long":"` + strings.Repeat("x", MaxLine) + `"}`,
		"{ \"ts\" :\t\"2\" , \"k\" : \"a , b : \\\" \\u0041\\/\\u001b\\ud800 é😀\x7f\" }\r",
		`{"ts":3}`,
		`{}`,
		`{"ts":"unfinished`,
	}, "\n")
	if err := os.WriteFile(filepath.Join(b.Path(), bundle.FileAuditLog), []byte(log), 0o644); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`{"ts": "1", "b": 1, "a": [1, 2, {"x": null}], "f": 1.50, "g": -1E+2}`,
		`{"ts": "2", "k": "a , b : \" A/\u001b\ud800 \u00e9\ud83d\ude00\u007f"}`,
		`{"ts": 3}`,
		`{}`,
	}
	if d := cmp.Diff(want, read(t, b, 100)); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	// The unfinished line does not swallow the next one.
	if err := Append(b, Entry{Time: at, Container: "c", Action: Up}); err != nil {
		t.Fatal(err)
	}
	want = []string{`{}`, `{"ts": "2026-03-04T04:06:07+00:00", "container": "c", "action": "shield_up"}`}
	if d := cmp.Diff(want, read(t, b, 2)); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// Lines around the size of the blocks that are read, and lines too long.
func TestBackwards(t *testing.T) {
	for _, long := range []int{1, 64<<10 - 2, 64<<10 - 1, 64 << 10, 64<<10 + 1, 200 << 10} {
		for _, end := range []string{"", "\n"} {
			lines := []string{"first", strings.Repeat("l", long), "", strings.Repeat("m", 300), "last"}
			path := filepath.Join(t.TempDir(), "f")
			if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+end), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			var got []int
			err = backwards(f, func(line []byte) bool {
				got = append(got, len(line))
				return true
			})
			f.Close()
			if err != nil {
				t.Fatal(err)
			}
			var want []int
			if end != "" {
				want = append(want, 0)
			}
			want = append(want, 4, 300, 0)
			if long <= MaxLine {
				want = append(want, long)
			}
			want = append(want, 5)
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("line of %d bytes, end %q (-want +got)\n%s", long, end, d)
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	b := open(t)
	outside := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(outside, []byte("{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(b.Path(), bundle.FileAuditLog)); err != nil {
		t.Fatal(err)
	}
	if err := Append(b, Entry{Container: "c", Action: Up}); err == nil {
		t.Error("appended through a symbolic link")
	}
	if _, err := Read(b, 1); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read through a symbolic link: %v", err)
	}
	if data, _ := os.ReadFile(outside); !bytes.Equal(data, []byte("{}\n")) {
		t.Errorf("the link's target is now %q", data)
	}
}

// A log that is renamed while it is read is not read twice.
func TestReadDuringRotation(t *testing.T) {
	b := open(t)
	if err := Append(b, Entry{Time: at, Container: "c", Action: Up}); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(b.Path(), bundle.FileAuditLog)
	if err := os.Link(log, filepath.Join(b.Path(), bundle.FileAuditLogRotated)); err != nil {
		t.Fatal(err)
	}
	if got := read(t, b, 10); len(got) != 1 {
		t.Errorf("%q", got)
	}
}

func TestMerge(t *testing.T) {
	rec := func(ts, name string) Record {
		r, ok := parse([]byte(fmt.Sprintf(`{"ts":%q,"n":%q}`, ts, name)))
		if !ok {
			t.Fatal("not a record")
		}
		return r
	}
	a := []Record{rec("1", "a1"), rec("3", "a3"), rec("5", "a5")}
	c := []Record{rec("3", "b3"), rec("4", "b4")}
	names := func(rs []Record) string {
		var out []string
		for _, r := range rs {
			var v struct{ N string }
			if err := json.Unmarshal(r.raw, &v); err != nil {
				t.Fatal(err)
			}
			out = append(out, v.N)
		}
		return strings.Join(out, " ")
	}
	for n, want := range map[int]string{-1: "", 0: "", 1: "a5", 3: "b3 b4 a5", 5: "a1 a3 b3 b4 a5", 50: "a1 a3 b3 b4 a5"} {
		if got := names(Merge(n, a, nil, c)); got != want {
			t.Errorf("last %d: %q, want %q", n, got, want)
		}
	}
}

// Whatever is in a log, what is printed is ASCII on one line and means the
// same.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"ts":"1","a":[1, -2.5e3,true,null,{"b":"\u00e9\n\ud83d\ude00"}]}`))
	f.Add([]byte("{\"k\\\"\" : \"é\x7f\\/\" , \"k\":{} }"))
	f.Add([]byte(`{"\ud800":"\udc00\\"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, ok := parse(data)
		if !ok {
			return
		}
		text := r.String()
		for i := range len(text) {
			if text[i] < 0x20 || text[i] > 0x7e {
				t.Fatalf("byte %#x in %q", text[i], text)
			}
		}
		again, ok := parse([]byte(text))
		if !ok {
			t.Fatalf("%q is not a record", text)
		}
		var v, w any
		if err := json.Unmarshal(r.raw, &v); err != nil {
			return // a number out of range
		}
		if err := json.Unmarshal(again.raw, &w); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(v, w); d != "" || again.Time != r.Time || again.String() != text {
			t.Fatalf("%q became %q (-was +is)\n%s", data, text, d)
		}
	})
}

// An entry is one line of ASCII and JSON gives back what went in.
func FuzzEntry(f *testing.F) {
	f.Add("demo", "192.0.2.1", "detail", "example.org", "key", "value")
	f.Add("\x00", "\n", "\u2028", "\xff", "\"", "😀")
	f.Fuzz(func(t *testing.T, container, dest, detail, domain, key, value string) {
		e := Entry{Time: at, Container: container, Action: Blocked, Dest: dest, Detail: detail, Proto: "tcp", Domain: domain,
			Dossier: map[string]string{key: value}}
		line := e.line()
		for i := range len(line) {
			if line[i] < 0x20 || line[i] > 0x7e {
				t.Fatalf("byte %#x in %q", line[i], line)
			}
		}
		var got struct {
			Container, Dest, Detail, Domain string
			Dossier                         map[string]string
		}
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatal(err)
		}
		valid := func(s string) string { return string([]rune(s)) }
		want := got
		want.Container, want.Dest, want.Detail, want.Domain = valid(container), valid(dest), valid(detail), valid(domain)
		want.Dossier = map[string]string{valid(key): valid(value)}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("(-want +got)\n%s", d)
		}
	})
}
