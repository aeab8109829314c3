package event

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/wire/sanitize"
)

func TestParse(t *testing.T) {
	none := map[string]string{}
	// A block with its members replaced by others, as text.
	block := func(changes ...string) string {
		all := []string{`"type":"pending"`, `"container":"c"`, `"id":"c:1"`, `"dest":"203.0.113.9"`, `"port":443`, `"proto":6`, `"domain":"example.com"`, `"dossier":{"k":"v"}`, `"ts":"2026-06-01T10:30:45.123456+00:00"`}
		for _, c := range changes {
			name, _, _ := strings.Cut(c, ":")
			i := slices.IndexFunc(all, func(s string) bool { return strings.HasPrefix(s, name+":") })
			if c == name { // without anything: left out
				all = slices.Delete(all, i, i+1)
			} else {
				all[i] = c
			}
		}
		return "{" + strings.Join(all, ",") + "}"
	}
	blocked := func(change func(*Event)) Event {
		e := Event{
			Type: Blocked, Container: "c", ID: "c:1", Dest: "203.0.113.9", Port: 443, Proto: 6, Domain: "example.com",
			Dossier: map[string]string{"k": "v"}, Time: time.Date(2026, 6, 1, 10, 30, 45, 123456000, time.UTC),
		}
		change(&e)
		return e
	}
	port := func(n int64) Event { return blocked(func(e *Event) { e.Port = n }) }
	same := func(*Event) {}
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

	for _, c := range []struct {
		line string
		want Event
	}{
		// Types.
		{`{"type":"container_started","container":"0123456789ab"}`, Event{Type: ContainerStarted, Container: "0123456789ab", Dossier: none}},
		{`{"type":"container_exited","container":"a","reason":"poststop"}`, Event{Type: ContainerExited, Container: "a", Reason: "poststop", Dossier: none}},
		{`{"type":"container_exited","container":"a"}`, Event{Type: ContainerExited, Container: "a", Dossier: none}},
		{`{"type":"shield_up","container":"a","dossier":{"project":"p"}}`, Event{Type: ShieldUp, Container: "a", Dossier: map[string]string{"project": "p"}}},
		{`{"type":"shield_down","container":"a"}`, Event{Type: ShieldDown, Container: "a", Dossier: none}},
		{`{"type":"shield_disengaged","container":"a"}`, Event{Type: ShieldDisengaged, Container: "a", Dossier: none}},
		{block(), blocked(same)},
		{block(`"type":"connection_blocked"`), blocked(same)},

		// What does not belong to the type is not there.
		{
			`{"type":"shield_up","container":"a","id":"1","dest":"d","port":1,"proto":2,"domain":"x","reason":"r","ts":"2026-06-01T10:30:45Z","unknown":[]}`,
			Event{Type: ShieldUp, Container: "a", Dossier: none},
		},
		{strings.Replace(block(), "{", `{"reason":"r",`, 1), blocked(same)},

		// Lines.
		{" \t" + block() + "\r\n", blocked(same)},
		{block() + "\n", blocked(same)},
		{strings.ReplaceAll(block(), `":`, "\" :\t"), blocked(same)},
		{`{"type":"shield_up","container":"first","container":"last"}`, Event{Type: ShieldUp, Container: "last", Dossier: none}},
		{`{"type":"shield_up","type":"shield_down","\u0063ontainer":"a"}`, Event{Type: ShieldDown, Container: "a", Dossier: none}},
		{`{"type":"shield_up","Container":"b","container":"a"}`, Event{Type: ShieldUp, Container: "a", Dossier: none}},
		{`{"type":"shield_up","container":"a","x":` + deep(5000) + `}`, Event{Type: ShieldUp, Container: "a", Dossier: none}},
		{`{"type":"shield_up","container":"a"}` + strings.Repeat(" ", MaxLine), Event{Type: ShieldUp, Container: "a", Dossier: none}},

		// Text.
		{block(`"domain"`), blocked(func(e *Event) { e.Domain = "" })},
		{block(`"domain":null`), blocked(func(e *Event) { e.Domain = "" })},
		{block(`"id":null`), blocked(func(e *Event) { e.ID = "" })},
		{block(`"id":""`), blocked(func(e *Event) { e.ID = "" })},
		{block(`"id":17`), blocked(func(e *Event) { e.ID = "17" })},
		{block(`"container":null`), blocked(func(e *Event) { e.Container = "" })},
		{block(`"container":true`), blocked(func(e *Event) { e.Container = "true" })},
		{block(`"dest":[1, {"a" : "b\n"}]`), blocked(func(e *Event) { e.Dest = `[1,{"a":"b\n"}]` })},
		{block(`"domain":"a\u00e9\n\ud83d\ude00\ud83d\u0000<"`), blocked(func(e *Event) { e.Domain = "a     <" })},
		{block(`"domain":"a` + "\u00e9\U0001F600\u2028" + `"`), blocked(func(e *Event) { e.Domain = "a   " })},
		{block(`"domain":"\ude00\ud83dx"`), blocked(func(e *Event) { e.Domain = "  x" })},
		{block(`"domain":"` + strings.Repeat("x", 1000) + `"`), blocked(func(e *Event) { e.Domain = strings.Repeat("x", 253) + "..." })},

		// Numbers.
		{block(`"port":"443"`), port(443)},
		{block(`"port":" 443\n"`), port(443)},
		{block(`"port":"-1"`), port(-1)},
		{block(`"port":"+7"`), port(7)},
		{block(`"port":6.9`), port(6)},
		{block(`"port":-6.9`), port(-6)},
		{block(`"port":6.0`), port(6)},
		{block(`"port":4.43e2`), port(443)},
		{block(`"port":1E2`), port(100)},
		{block(`"port":true`), port(1)},
		{block(`"port":false`), port(0)},
		{block(`"port":-0`), port(0)},
		{block(`"port":-0.0`), port(0)},
		{block(`"port":99999999999`), port(99999999999)},
		{block(`"port":9223372036854775807`), port(math.MaxInt64)},
		{block(`"port":"-9223372036854775808"`), port(math.MinInt64)},
		{block(`"port":-9223372036854775808.0`), port(math.MinInt64)},

		// Dossiers.
		{block(`"dossier"`), blocked(func(e *Event) { e.Dossier = none })},
		{block(`"dossier":null`), blocked(func(e *Event) { e.Dossier = none })},
		{block(`"dossier":[1]`), blocked(func(e *Event) { e.Dossier = none })},
		{block(`"dossier":"{}"`), blocked(func(e *Event) { e.Dossier = none })},
		{block(`"dossier":{"n":1,"t":true,"z":null,"f":1.50,"o":{"a" : [ ]},"s":"a\nb"}`), blocked(func(e *Event) {
			e.Dossier = map[string]string{"n": "1", "t": "true", "z": "", "f": "1.50", "o": `{"a":[]}`, "s": "a b"}
		})},
		{block(`"dossier":{"k":"1","k":"2"}`), blocked(func(e *Event) { e.Dossier = map[string]string{"k": "2"} })},
		{block(`"dossier":{"":"empty","a\u00e9":"x","b\n":"x","` + strings.Repeat("k", MaxKey) + `":"y","` + strings.Repeat("k", MaxKey+1) + `":"x"}`), blocked(func(e *Event) {
			e.Dossier = map[string]string{"": "empty", strings.Repeat("k", MaxKey): "y"}
		})},

		// The time is for people only.
		{block(`"ts"`), blocked(func(e *Event) { e.Time = time.Time{} })},
		{block(`"ts":5`), blocked(func(e *Event) { e.Time = time.Time{} })},
		{block(`"ts":"yesterday"`), blocked(func(e *Event) { e.Time = time.Time{} })},
		{block(`"ts":"9999-12-31T23:59:59-01:00"`), blocked(func(e *Event) { e.Time = time.Time{} })},
		{block(`"ts":"2026-06-01T12:30:45+02:00"`), blocked(func(e *Event) { e.Time = time.Date(2026, 6, 1, 10, 30, 45, 0, time.UTC) })},
	} {
		got, err := Parse([]byte(c.line))
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Errorf("%.200s: %v (-want +got):\n%s", c.line, err, diff)
		}
	}

	ignored := "ignored"
	for _, c := range []struct{ line, want string }{
		{"", ignored},
		{" \t\r\n", ignored},
		{`{}`, ignored},
		{`{"container":"a"}`, ignored},
		{`{"type":null,"container":"a"}`, ignored},
		{`{"type":"","container":"a"}`, ignored},
		{`{"type":1,"container":"a"}`, ignored},
		{`{"type":true}`, ignored},
		{`{"type":"verdict_applied","container":"a"}`, ignored},
		{`{"type":"shield_down_all","container":"a"}`, ignored},
		{`{"type":"shield_quarantine","container":"a"}`, ignored},
		{`{"type":"PENDING"}`, ignored},
		{`{"type":"pending "}`, ignored},

		{`{"type":["pending"]}`, `"type" is not a string`},
		{`{"type":{}}`, `"type" is not a string`},
		{`hello`, "line is not a JSON object"},
		{`[]`, "line is not a JSON object"},
		{`"pending"`, "line is not a JSON object"},
		{`null`, "line is not a JSON object"},
		{`{`, "line is not a JSON object"},
		{`{"type":"shield_up","container":"a"}}`, "line is not a JSON object"},
		{`{"type":"shield_up","container":"a"}{}`, "line is not a JSON object"},
		{`{"type":"shield_up","container":"a",}`, "line is not a JSON object"},
		{`{"type":"shield_up","container":"a` + "\t" + `"}`, "line is not a JSON object"},
		{`{"type":"shield_up","container":"\x61"}`, "line is not a JSON object"},
		{`{'type':'shield_up'}`, "line is not a JSON object"},
		{"\ufeff" + `{"type":"shield_up","container":"a"}`, "line is not a JSON object"},
		{`{"type":"shield_up","container":"a","x":` + deep(20000) + `}`, "line is not a JSON object"},
		{strings.Repeat(`{"a":`, 13000), "line is not a JSON object"},
		{strings.Repeat(`{"a":`, 20000), fmt.Sprintf("line over %d bytes", MaxLine)},
		{"{\"type\":\"shield_up\",\"container\":\"a\xff\"}", "line is not UTF-8"},
		{"{\"type\":\"shield_up\",\"container\":\"\xed\xa0\x80\"}", "line is not UTF-8"},

		{`{"type":"shield_up"}`, `no "container"`},
		{`{"type":"shield_up","Container":"a"}`, `no "container"`},
		{block(`"container"`), `no "container"`},
		{block(`"id"`), `no "id"`},
		{block(`"dest"`), `no "dest"`},
		{block(`"port"`), `no "port"`},
		{block(`"proto"`), `no "proto"`},
		{block(`"proto":"tcp"`), `"proto" is not an integer`},
		{block(`"port":null`), `"port" is not an integer`},
		{block(`"port":[443]`), `"port" is not an integer`},
		{block(`"port":{}`), `"port" is not an integer`},
		{block(`"port":""`), `"port" is not an integer`},
		{block(`"port":"6.0"`), `"port" is not an integer`},
		{block(`"port":"0x10"`), `"port" is not an integer`},
		{block(`"port":"true"`), `"port" is not an integer`},
		{block(`"port":9223372036854775808`), `"port" is not an integer`},
		{block(`"port":-9223372036854775809`), `"port" is not an integer`},
		{block(`"port":"9223372036854775808"`), `"port" is not an integer`},
		{block(`"port":9223372036854775808.0`), `"port" is not an integer`},
		{block(`"port":1e400`), `"port" is not an integer`},
		{block(`"port":` + strings.Repeat("9", 400)), `"port" is not an integer`},
	} {
		got, err := Parse([]byte(c.line))
		if diff := cmp.Diff(Event{}, got); diff != "" || err == nil {
			t.Errorf("%.200s: %v (-want +got):\n%s", c.line, err, diff)
			continue
		}
		if (c.want == ignored) != errors.Is(err, ErrIgnored) {
			t.Errorf("%.200s: %v", c.line, err)
		}
		what, shown, _ := strings.Cut(err.Error(), ": ")
		if c.want != ignored && (what != c.want || shown != sanitize.String(c.line, maxShown)) {
			t.Errorf("%.200s: %v", c.line, err)
		}
	}
}

// The members of a dossier that is too large are those that come first.
func TestLongDossier(t *testing.T) {
	all := make(map[string]string)
	for i := range 1000 {
		all[fmt.Sprintf("%03d", i)] = strings.Repeat(`"`, 1000)
	}
	e := Event{Type: Blocked, Dossier: all}
	line, err := e.Line()
	if err != nil || len(line) > MaxLine {
		t.Errorf("%d bytes, %v", len(line), err)
	}
	got, err := Parse(line)
	if err != nil {
		t.Fatal(err)
	}
	keys := slices.Sorted(maps.Keys(got.Dossier))
	if len(keys) != MaxDossier || keys[MaxDossier-1] != fmt.Sprintf("%03d", MaxDossier-1) {
		t.Errorf("%v", keys)
	}
}

// The longest line there can be is within the bound.
func TestLongestLine(t *testing.T) {
	long := strings.Repeat(`"`, 1000)
	e := Event{
		Type: Blocked, Container: long, ID: long, Dest: long, Domain: long, Reason: long, Port: math.MinInt64, Proto: math.MinInt64,
		Dossier: map[string]string{},
	}
	for i := range 100 {
		e.Dossier[strings.Repeat(`"`, MaxKey-2)+fmt.Sprintf("%02d", i)] = long
	}
	if line, err := e.Line(); err != nil || len(line) > MaxLine {
		t.Errorf("%d bytes, %v", len(line), err)
	}
}

// sane reports whether an event is what Parse may return.
func sane(e Event) error {
	good := func(s string, limit int) bool { return sanitize.String(s, limit) == s }
	for _, s := range []string{e.Container, e.ID, e.Dest, e.Domain, e.Reason} {
		if !good(s, sanitize.Max) {
			return fmt.Errorf("%q is not sanitised", s)
		}
	}
	if e.Dossier == nil || len(e.Dossier) > MaxDossier {
		return fmt.Errorf("dossier of %d", len(e.Dossier))
	}
	for k, v := range e.Dossier {
		if !good(k, MaxKey) || !good(v, sanitize.Max) {
			return fmt.Errorf("dossier has %q: %q", k, v)
		}
	}
	return nil
}

// Whatever line comes, its event is fit for use, and survives being sent on.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{"type":"container_started","container":"0123456789ab"}`,
		`{"type":"pending","container":"c","id":"c:1","dest":"203.0.113.9","port":443,"proto":6,"domain":"example.com","dossier":{"k":"v"},"ts":"2026-06-01T10:30:45.123456+00:00"}`,
		`{"type":"connection_blocked","container":null,"id":1,"dest":[],"port":"1","proto":1.5e0,"dossier":{"a":{},"b":1e9}}`,
		`{"type":"container_exited","container":"\ud800","reason":true,"dossier":[1]}`,
		`{"type":"shield_up","container":"a","dossier":{"k\u0000":"` + strings.Repeat("é", 300) + `"}}`,
		"{\"type\":\"shield_down\",\"container\":\"\xff\"}", "[[[[", "",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := Parse(line)
		if err != nil {
			if diff := cmp.Diff(Event{}, e); diff != "" {
				t.Errorf("with an error: %s", diff)
			}
			if s := err.Error(); !errors.Is(err, ErrIgnored) && sanitize.String(s, 2*maxShown) != s {
				t.Errorf("error %q", s)
			}
			return
		}
		if err := sane(e); err != nil {
			t.Errorf("%q: %v", line, err)
		}
		if e.Type == Blocked && e.Time.IsZero() {
			e.Time = time.Unix(1, 0).UTC()
		}
		again, err := e.Line()
		if err != nil || len(again) > MaxLine {
			t.Fatalf("%d bytes, %v", len(again), err)
		}
		got, err := Parse(again)
		if diff := cmp.Diff(e, got); diff != "" || err != nil {
			t.Errorf("%q became %q: %v (-before +after):\n%s", line, again, err, diff)
		}
	})
}

// Whatever is sent arrives, sanitised.
func FuzzLine(f *testing.F) {
	f.Add(uint8(0), "0123456789ab", "0123456789ab:1", "203.0.113.9", "example.com", "k", "v", int64(443), int64(6))
	f.Add(uint8(2), "\x00", "é", "\xff", "\"\\", "\n", strings.Repeat("x", 300), int64(-1), int64(math.MaxInt64))
	types := []string{Blocked, ContainerStarted, ContainerExited, ShieldUp, ShieldDown, ShieldDisengaged}
	f.Fuzz(func(t *testing.T, kind uint8, container, id, dest, text, key, value string, port, proto int64) {
		in := Event{Type: types[int(kind)%len(types)], Container: container, Dossier: map[string]string{key: value}}
		want := Event{Type: in.Type, Container: sanitize.String(container, sanitize.Max), Dossier: dossier(in.Dossier)}
		switch in.Type {
		case Blocked:
			in.ID, in.Dest, in.Domain, in.Port, in.Proto, in.Time = id, dest, text, port, proto, when
			want.ID, want.Dest, want.Domain = sanitize.String(id, sanitize.Max), sanitize.String(dest, sanitize.Max), sanitize.String(text, sanitize.Max)
			want.Port, want.Proto, want.Time = port, proto, when.UTC().Truncate(time.Microsecond)
		case ContainerExited:
			in.Reason = text
			want.Reason = sanitize.String(text, sanitize.Max)
		}
		line, err := in.Line()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range line[:len(line)-1] {
			if c < ' ' || c > '~' {
				t.Fatalf("%q", line)
			}
		}
		got, err := Parse(line)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%q: %v (-want +got):\n%s", line, err, diff)
		}
	})
}
