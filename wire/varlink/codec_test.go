package varlink

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// item and everything have one field of every type there is.
type item struct {
	Name string            `json:"name"`
	Tags map[string]string `json:"tags"`
}

type everything struct {
	Text  string          `json:"text"`
	Yes   bool            `json:"yes"`
	Count int             `json:"count"`
	Big   int64           `json:"big"`
	Port  uint16          `json:"port"`
	List  []string        `json:"list"`
	Items []item          `json:"items"`
	Index map[string]item `json:"index"`
	One   item            `json:"one"`
	Maybe *int            `json:"maybe"`
	Some  []*string       `json:"some"`
}

const full = `{"text":"a","yes":true,"count":-1,"big":9223372036854775807,"port":65535,"list":["x","y"],` +
	`"items":[{"name":"n","tags":{"k":"v"}}],"index":{"i":{"name":"","tags":{}}},"one":{"name":"o","tags":{}},"maybe":3,"some":[null,"s"]}`

func TestScan(t *testing.T) {
	nested := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for _, c := range []struct {
		in   string
		want error
	}{
		{`{}`, nil},
		{" \t\r\n[1, -0, 0.5, 1e9, -1.25E-7, true, false, null, \"\"] ", nil},
		{`"\u00e9\ud83d\ude00\ud800 \"\\\/\b\f\n\r\t"`, nil},
		{full, nil},
		{nested(maxDepth), nil},
		{nested(maxDepth + 1), errDepth},
		{strings.Repeat("[", 1<<20), errDepth},
		{"[0" + strings.Repeat(",0", maxElements-1) + "]", nil},
		{"[0" + strings.Repeat(",0", maxElements) + "]", errElements},
		{``, errSyntax},
		{` `, errSyntax},
		{`{`, errSyntax},
		{`{}{}`, errSyntax},
		{`{"a"}`, errSyntax},
		{`{"a":1,}`, errSyntax},
		{`{a:1}`, errSyntax},
		{`{1:1}`, errSyntax},
		{`[1 2]`, errSyntax},
		{`[,]`, errSyntax},
		{`[1,]`, errSyntax},
		{`[}`, errSyntax},
		{`01`, errSyntax},
		{`+1`, errSyntax},
		{`1.`, errSyntax},
		{`.5`, errSyntax},
		{`1e`, errSyntax},
		{`-`, errSyntax},
		{`- 1`, errSyntax},
		{`NaN`, errSyntax},
		{`Infinity`, errSyntax},
		{`True`, errSyntax},
		{`truee`, errSyntax},
		{`nul`, errSyntax},
		{`'a'`, errSyntax},
		{`"a`, errSyntax},
		{`"\`, errSyntax},
		{`"\x41"`, errSyntax},
		{`"\u12g4"`, errSyntax},
		{`"\u+123"`, errSyntax},
		{`"\u12"`, errSyntax},
		{"\"\n\"", errSyntax},
		{"\"\x00\"", errSyntax},
		{"\"\xff\"", errSyntax},
		{"\"\xed\xa0\x80\"", errSyntax}, // a surrogate in UTF-8
		{"\ufeff{}", errSyntax},
		{`// comment` + "\n{}", errSyntax},
	} {
		if err := scan([]byte(c.in)); !errors.Is(err, c.want) {
			t.Errorf("%.60q: %v, want %v", c.in, err, c.want)
		}
	}
}

func TestStrings(t *testing.T) {
	for in, want := range map[string]string{
		`""`:                   "",
		`"abc"`:                "abc",
		`"\"\\\/\b\f\n\r\t"`:   "\"\\/\b\f\n\r\t",
		`"x\u00E9\u4e2d"`:      "xé中",
		`"\ud83d\ude00!"`:      "😀!",
		`"\ud83d"`:             "\ufffd",
		`"\ud83d\ud83d\ude00"`: "\ufffd😀",
		`"\ude00\ud83d"`:       "\ufffd\ufffd",
		`"\ud83dx\ude00"`:      "\ufffdx\ufffd",
		`"\ud83d\n"`:           "\ufffd\n",
		`"\u0000"`:             "\x00",
	} {
		var got string
		if err := unmarshal([]byte(in), &got, false); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestDecode(t *testing.T) {
	var got everything
	if err := unmarshal([]byte(full), &got, false); err != nil {
		t.Fatal(err)
	}
	n, s := 3, "s"
	want := everything{
		Text: "a", Yes: true, Count: -1, Big: 1<<63 - 1, Port: 65535, List: []string{"x", "y"},
		Items: []item{{"n", map[string]string{"k": "v"}}}, Index: map[string]item{"i": {"", map[string]string{}}},
		One: item{"o", map[string]string{}}, Maybe: &n, Some: []*string{nil, &s},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	back, err := marshal(got)
	if err != nil || string(back) != full {
		t.Errorf("encoded again: %s, %v", back, err)
	}
}

// What is decoded leaves nothing of what was there before.
func TestDecodeOver(t *testing.T) {
	n := 3
	got := struct {
		Maybe *int `json:"maybe"`
	}{&n}
	if err := unmarshal([]byte(`{}`), &got, false); err != nil || got.Maybe != nil {
		t.Errorf("%v, %v", got, err)
	}
}

func TestMismatch(t *testing.T) {
	type in struct {
		A string            `json:"a"`
		N int8              `json:"n"`
		U uint16            `json:"u"`
		M map[string]string `json:"m"`
		S struct {
			L []int `json:"l"`
		} `json:"s"`
		Q *int `json:"q"`
	}
	const rest = `,"n":0,"u":0,"m":{},"s":{"l":[]}}`
	for _, c := range []struct{ in, want string }{
		{`[]`, "not an object"},
		{`null`, "not an object"},
		{`{}`, "a: missing"},
		{`{"a":"x"}`, "n: missing"},
		{`{"a":"x"` + rest, ""},
		{`{"a":"x","q":null` + rest, ""},
		{`{"a":"x","q":1` + rest, ""},
		{`{"a":null` + rest, "a: not a string"},
		{`{"a":1` + rest, "a: not a string"},
		{`{"a":["x"]` + rest, "a: not a string"},
		{`{"A":"x"` + rest, "a: missing"},
		{`{"a":"x","a":"x"` + rest, "a: given twice"},
		{`{"a":"x","\u0061":"x"` + rest, "a: given twice"},
		{`{"a":"x","extra":{"b":[1,2]}` + rest, "extra: unknown"},
		{`{"extra":1,"a":1` + rest, "a: not a string"},
		{`{"a":"x","":1` + rest, ": unknown"},
		{`{"a":"x","q":"1"` + rest, "q: not an integer in range"},
		{`{"a":"x","n":1.0,"u":0,"m":{},"s":{"l":[]}}`, "n: not an integer in range"},
		{`{"a":"x","n":1e1,"u":0,"m":{},"s":{"l":[]}}`, "n: not an integer in range"},
		{`{"a":"x","n":"1","u":0,"m":{},"s":{"l":[]}}`, "n: not an integer in range"},
		{`{"a":"x","n":true,"u":0,"m":{},"s":{"l":[]}}`, "n: not an integer in range"},
		{`{"a":"x","n":128,"u":0,"m":{},"s":{"l":[]}}`, "n: not an integer in range"},
		{`{"a":"x","n":99999999999999999999,"u":0,"m":{},"s":{"l":[]}}`, "n: not an integer in range"},
		{`{"a":"x","n":0,"u":-1,"m":{},"s":{"l":[]}}`, "u: not an integer in range"},
		{`{"a":"x","n":0,"u":65536,"m":{},"s":{"l":[]}}`, "u: not an integer in range"},
		{`{"a":"x","n":0,"u":0,"m":null,"s":{"l":[]}}`, "m: not an object"},
		{`{"a":"x","n":0,"u":0,"m":{"k":null},"s":{"l":[]}}`, "m.k: not a string"},
		{`{"a":"x","n":0,"u":0,"m":{"k":"1","k":"1"},"s":{"l":[]}}`, "m.k: given twice"},
		{`{"a":"x","n":0,"u":0,"m":{},"s":{"l":null}}`, "s.l: not an array"},
		{`{"a":"x","n":0,"u":0,"m":{},"s":{"l":[1,[2]]}}`, "s.l.1: not an integer in range"},
		{`{"a":"x","n":0,"u":0,"m":{},"s":{"l":[],"x":1}}`, "s.x: unknown"},
		{`{"a":"x","n":0,"u":0,"m":{},"s":{}}`, "s.l: missing"},
		{`{"s":{"l":[true]},"m":{"k":[{}]},"u":"","n":{},"a":"x"}`, "n: not an integer in range"}, // in the struct's order
	} {
		var got in
		err := unmarshal([]byte(c.in), &got, false)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.in, err)
			}
			continue
		}
		if m, ok := asMismatch(err); !ok || m.Error() != c.want {
			t.Errorf("%s: %v, want %s", c.in, err, c.want)
		}
	}
}

func TestEncode(t *testing.T) {
	for _, c := range []struct {
		in   any
		want string
	}{
		// Never null, which strict clients refuse for strings, lists and maps.
		{everything{}, `{"text":"","yes":false,"count":0,"big":0,"port":0,"list":[],"items":[],"index":{},"one":{"name":"","tags":{}},"maybe":null,"some":[]}`},
		{"<b>&'\"\\\n\r\t\b\f\x00\x7f~", `"<b>&'\"\\\n\r\t\b\f\u0000\u007f~"`},
		{"é中😀\u2028\xff", `"\u00e9\u4e2d\ud83d\ude00\u2028\ufffd"`},
		{map[string]int{"b": 1, "a": 2}, `{"a":2,"b":1}`},
		{reply{Continues: true, Parameters: object(`{"a":1}`)}, `{"continues":true,"parameters":{"a":1}}`},
		{reply{Error: "org.example.X"}, `{"error":"org.example.X"}`},
		{reply{}, `{}`},
		{request{Method: "a.B", Parameters: object(`{"a":1}`), More: true}, `{"method":"a.B","parameters":{"a":1},"more":true}`},
	} {
		if got, err := marshal(c.in); err != nil || string(got) != c.want {
			t.Errorf("%v:\n%s, %v, want\n%s", c.in, got, err, c.want)
		}
	}
	for _, bad := range []any{1.5, struct{ C chan int }{}, nil, []any{1}} {
		if got, err := marshal(bad); err == nil {
			t.Errorf("%v became %s", bad, got)
		}
	}
}

func TestCheckStruct(t *testing.T) {
	type loop struct {
		Next []loop `json:"next"`
	}
	for _, good := range []any{struct{}{}, item{}, everything{}} {
		if err := checkStruct(reflect.TypeOf(good)); err != nil {
			t.Errorf("%T: %v", good, err)
		}
	}
	for _, bad := range []any{
		nil, "", &item{}, map[string]string{}, loop{},
		struct{ A string }{},
		struct {
			A string `json:"a,omitempty"`
		}{},
		reflect.Zero(reflect.StructOf([]reflect.StructField{
			{Name: "A", Type: reflect.TypeFor[string](), Tag: `json:"a"`},
			{Name: "B", Type: reflect.TypeFor[string](), Tag: `json:"a"`},
		})).Interface(),
		struct{ a string }{},
		struct {
			A float64 `json:"a"`
		}{},
		struct {
			A any `json:"a"`
		}{},
		struct {
			A uint64 `json:"a"`
		}{},
		struct {
			A map[int]string `json:"a"`
		}{},
		struct {
			A **int `json:"a"`
		}{},
		struct {
			A string `json:"no-name"`
		}{},
	} {
		if err := checkStruct(reflect.TypeOf(bad)); err == nil {
			t.Errorf("%T can be parameters", bad)
		}
	}
}

// scan agrees with encoding/json, but for its bounds and invalid UTF-8.
func FuzzScan(f *testing.F) {
	for _, s := range []string{full, `[1,-0.5e+3,"\ud83d\ude00"]`, `{"a":[{}],}`, "\"\xff\"", `{"a":nul}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		err := scan(data)
		if errors.Is(err, errDepth) || errors.Is(err, errElements) {
			return
		}
		if want := json.Valid(data) && utf8.Valid(data); (err == nil) != want {
			t.Errorf("%q: %v, want good: %v", data, err, want)
		}
	})
}

// What is accepted is what encoding/json makes of it, and stays the same when
// encoded and decoded again.
func FuzzParameters(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte(`{"text":"\ud83d\u00e9","yes":false,"count":0,"big":-0,"port":1,"list":[],"items":[],"index":{"":{"name":"\u0000","tags":{"a":"b"}}},"one":{"name":"","tags":{}},"some":[]}`))
	f.Add([]byte(`{"text":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var got everything
		if err := unmarshalParameters(data, &got); err != nil {
			return
		}
		var want everything
		d := json.NewDecoder(bytes.NewReader(data))
		d.DisallowUnknownFields()
		if err := d.Decode(&want); err != nil {
			t.Fatalf("accepted %q: %v", data, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-encoding/json +got):\n%s", data, diff)
		}
		text, err := marshalParameters(got)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range text {
			if c < ' ' || c > '~' {
				t.Fatalf("encoded as %q", text)
			}
		}
		var again everything
		if err := unmarshalParameters(text, &again); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if diff := cmp.Diff(got, again); diff != "" {
			t.Errorf("encoded and decoded again (-before +after):\n%s", diff)
		}
	})
}
