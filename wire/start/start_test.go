package start

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

var identity = Identity{Server, "/state/with \n odd <name>", "4:9", "/run/user/1000/terok/net/4-9"}

type spec struct{ Word string }

func (s spec) Check() error {
	if s.Word == "" {
		return errors.New("no word")
	}
	return nil
}

func TestSpec(t *testing.T) {
	var b bytes.Buffer
	if err := WriteSpec(&b, spec{"a\nb"}); err != nil {
		t.Fatal(err)
	}
	told := b.Bytes()
	for name, tt := range map[string]struct{ more, want string }{
		"proceed":       {string(rune(proceed)), ""},
		"starter ended": {"", "has ended"},
		"nonsense":      {"x", "unexpected byte 0x78"},
	} {
		t.Run(name, func(t *testing.T) {
			got, wait, err := ReadSpec[spec](io.MultiReader(bytes.NewReader(told), strings.NewReader(tt.more)))
			if err != nil || got.Word != "a\nb" {
				t.Fatalf("%q, %v", got.Word, err)
			}
			if err := wait(); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	for _, text := range []string{"", "{}", "{}\n", "[]\n", `{"Word":"x"}`, strings.Repeat("x", 2*MaxSpec)} {
		if got, _, err := ReadSpec[spec](strings.NewReader(text)); err == nil || got.Word != "" {
			t.Errorf("accepted %.10q", text)
		}
	}
}

func TestCheck(t *testing.T) {
	if err := identity.Check(7, 8); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Identity){
		"no state dir":    func(i *Identity) { i.StateDir = "" },
		"relative":        func(i *Identity) { i.StateDir = "state" },
		"NUL":             func(i *Identity) { i.StateDir = "/state\x00" },
		"relative roster": func(i *Identity) { i.Roster = "net" },
		"no namespace":    func(i *Identity) { i.NetNS = "" },
	} {
		i := identity
		change(&i)
		if i.Check(7, 8) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if identity.Check(0, 8) == nil || identity.Check(7, 0) == nil {
		t.Error("accepted without a process")
	}
	i := identity
	i.Roster = ""
	if err := i.Check(7, 8); err != nil {
		t.Error(err)
	}
}

func TestArgs(t *testing.T) {
	for _, r := range []Role{Server, Keeper} {
		i := identity
		i.Role = r
		for _, more := range [][]string{{}, {"x"}, {"", ""}} {
			got, rest, ok := ParseArgs("program", i.Args("program", more...))
			if !ok || got != i || !slices.Equal(rest, more) {
				t.Errorf("%v, %q, %t; want %v, %q", got, rest, ok, i, more)
			}
		}
	}
	for _, args := range [][]string{
		nil, {"program"}, {"other", "serve", "/s", "4:9", ""}, {"program", "other", "/s", "4:9", ""}, {"program", "serve", "/s", "4:9"},
	} {
		if i, _, ok := ParseArgs("program", args); ok {
			t.Errorf("%q is %v", args, i)
		}
	}
}
