package sanitize

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestString(t *testing.T) {
	a := func(n int) string { return strings.Repeat("a", n) }
	for _, c := range []struct {
		in    string
		limit int
		want  string
	}{
		{"", 256, ""},
		{"abc", 256, "abc"},
		{a(256), 256, a(256)},
		{a(257), 256, a(253) + "..."},
		{a(300), 256, a(253) + "..."},
		{"hello", 5, "hello"},
		{"hello!", 5, "he..."},
		{"hello world", 8, "hello..."},
		{"abcd", 4, "abcd"},
		{"abcde", 4, "a..."},
		{"abcd", 3, "..."},
		{"abc", 3, "abc"},
		{"abcd", 2, ".."},
		{"abcd", 1, "."},
		{"abcd", 0, ""},
		{"a\nb", 256, "a b"},
		{"a\r\nb", 256, "a  b"},
		{"\t tab", 256, "  tab"},
		{"\u0000", 256, " "},
		{"a\u0000b", 256, "a b"},
		{"\u007f", 256, " "},
		{"~}|", 256, "~}|"},
		{"   ", 256, "   "},
		{"\u001b[31mred\u001b[0m", 256, " [31mred [0m"},
		{"caf\u00e9", 256, "caf "},
		{"e\u0301", 256, "e "},
		{"\u00a0nbsp", 256, " nbsp"},
		{"\u2026", 256, " "},
		{"\u200bzero", 256, " zero"},
		{"\u202eevil\u202c", 256, " evil "},
		{"x\u2028y", 256, "x y"},
		{"\ufeffbom", 256, " bom"},
		{"\U0001F600!", 256, " !"},
		{"\U0001F468\u200D\U0001F469", 256, "   "},
		{strings.Repeat("\U0001F600", 4), 3, "..."},
		{"\u4e2d\u6587", 3, "  "},
		{strings.Repeat("a\U0001F600", 130), 256, strings.Repeat("a ", 126) + "a..."},
		{`<b>&"'</b>`, 256, `<b>&"'</b>`},
		{"abc\n", 3, "..."},
		{"abc\n", 4, "abc "},

		{"", 0, ""},
		{"", -1, ""},
		{"a", -1, ""},
		{"\n", 0, ""},
		{"\xff\xfe", 256, "  "},
		{"\xe4\xb8", 256, "  "},      // a character that is cut off
		{"\xed\xa0\x80", 256, "   "}, // half of a surrogate pair
		{"é" + a(256), 256, " " + a(252) + "..."},
		{a(256) + "é", 256, a(253) + "..."},
	} {
		if got := String(c.in, c.limit); got != c.want {
			t.Errorf("String(%q, %d) = %q, want %q", c.in, c.limit, got, c.want)
		}
	}
}

// What other programs make of the same text.
func TestVectors(t *testing.T) {
	for _, name := range []string{"testdata/vectors.json", "../../../shared/vectors/sanitize.json"} {
		data, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) && name != "testdata/vectors.json" {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		var vectors []struct {
			In  string `json:"in"`
			Max int    `json:"max"`
			Out string `json:"out"`
		}
		if err := json.Unmarshal(data, &vectors); err != nil || len(vectors) == 0 {
			t.Fatalf("%s: %d vectors, %v", name, len(vectors), err)
		}
		for _, v := range vectors {
			if got := String(v.In, v.Max); got != v.Out {
				t.Errorf("%s: String(%q, %d) = %q, want %q", name, v.In, v.Max, got, v.Out)
			}
		}
	}
}

func TestMapping(t *testing.T) {
	in := map[string]string{"a\n": "x\ny", "long": strings.Repeat("é", Max+1)}
	want := map[string]string{"a\n": "x y", "long": strings.Repeat(" ", Max-3) + "..."}
	if diff := cmp.Diff(want, Mapping(in)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := Mapping(nil); got == nil || len(got) > 0 {
		t.Errorf("of nothing: %v", got)
	}
	if in["a\n"] != "x\ny" {
		t.Error("its argument was changed")
	}
}

// Text that is good, which is nearly all there is, costs no memory.
func TestNoAllocation(t *testing.T) {
	s := strings.Repeat("a", Max)
	if n := testing.AllocsPerRun(100, func() { String(s, Max) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzString(f *testing.F) {
	f.Add("a\x1b\u202e\xff\U0001F600", 3)
	f.Add(strings.Repeat("a", 300), 256)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		limit %= 1024
		got := String(s, limit)
		if len(got) > max(limit, 0) || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("String(%q, %d) = %q", s, limit, got)
		}
		if again := String(got, limit); again != got {
			t.Errorf("%q became %q", got, again)
		}
		if n := len([]rune(s)); n <= limit && len(got) != n {
			t.Errorf("%d code points became %d", n, len(got))
		}
	})
}
