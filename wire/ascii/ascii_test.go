package ascii

import (
	"encoding/json"
	"testing"
)

func TestAppendString(t *testing.T) {
	for in, want := range map[string]string{
		"":                         `""`,
		"abc <&> '~":               `"abc <&> '~"`,
		"\"\\/":                    `"\"\\/"`,
		"\b\f\n\r\t":               `"\b\f\n\r\t"`,
		"\x00\x1b\x7f":             `"\u0000\u001b\u007f"`,
		"é中\u2028":                 `"\u00e9\u4e2d\u2028"`,
		"\U0001F600":               `"\ud83d\ude00"`,
		"\xff\xed\xa0\x80":         `"\ufffd\ufffd\ufffd\ufffd"`,
		"\uffff\U00010000\ufffd\n": `"\uffff\ud800\udc00\ufffd\n"`,
	} {
		if got := string(AppendString(nil, in)); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

// It is JSON that stands for the same text, and shows as it is.
func FuzzAppendString(f *testing.F) {
	f.Add("a\"\\\x00é\U0001F600\xff")
	f.Fuzz(func(t *testing.T, s string) {
		out := AppendString([]byte("x"), s)
		if out[0] != 'x' {
			t.Fatalf("%q", out)
		}
		for _, c := range out {
			if c < ' ' || c > '~' {
				t.Fatalf("%q became %q", s, out)
			}
		}
		var got string
		if err := json.Unmarshal(out[1:], &got); err != nil || got != string([]rune(s)) {
			t.Errorf("%q became %s, which is %q, %v", s, out, got, err)
		}
	})
}
