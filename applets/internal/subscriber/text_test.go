package subscriber

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestIdentity(t *testing.T) {
	for name, tt := range map[string]struct {
		dossier map[string]string
		want    string
		id      Identity
	}{
		"nothing":   {nil, "Container: c0ffee", Identity{ContainerID: "c0ffee"}},
		"name":      {map[string]string{"name": "demo"}, "Container: demo", Identity{ContainerID: "c0ffee", ContainerName: "demo", TaskName: "demo"}},
		"task":      {map[string]string{"project": "p", "task": "7"}, "Task: p/7", Identity{ContainerID: "c0ffee", Project: "p", TaskID: "7"}},
		"half":      {map[string]string{"project": "p"}, "Container: c0ffee", Identity{ContainerID: "c0ffee", Project: "p"}},
		"container": {map[string]string{"container_name": "x"}, "Container: c0ffee", Identity{ContainerID: "c0ffee", ContainerName: "x"}},
		"all": {
			map[string]string{"project": "p", "task": "7", "name": "fix the tests", "container_name": "x", "other": "y"}, "Task: p/7 · fix the tests",
			Identity{ContainerID: "c0ffee", ContainerName: "x", Project: "p", TaskID: "7", TaskName: "fix the tests"},
		},
		"imitating": {
			map[string]string{"project": "Allow", "task": "[Deny]", "name": "x\nProtocol: TCP"}, `Task: "Allow"/"[Deny]" · "x Protocol: TCP"`,
			Identity{ContainerID: "c0ffee", ContainerName: "x Protocol: TCP", Project: "Allow", TaskID: "[Deny]", TaskName: "x Protocol: TCP"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := identify("c0ffee", tt.dossier)
			if d := cmp.Diff(tt.id, got); d != "" {
				t.Error(d)
			}
			if got.Line() != tt.want {
				t.Errorf("%q, want %q", got.Line(), tt.want)
			}
		})
	}
}

func TestSetOff(t *testing.T) {
	for in, want := range map[string]string{
		"demo": "demo", "my-task_2": "my-task_2", "fix the tests": "fix the tests", "me@host": "me@host", "shield-test": "shield-test", "allow-list": "allow-list",
		"":                     `""`,
		"Allow":                `"Allow"`,
		"please allow it":      `"please allow it"`,
		"-DENIED-":             `"-DENIED-"`,
		"x  y":                 `"x y"`,
		" x":                   `"x"`,
		`a"b`:                  `"a\"b"`,
		"[2] BLOCKED":          `"[2] BLOCKED"`,
		"x: y":                 `"x: y"`,
		"<b>x</b>":             `"<b>x</b>"`,
		strings.Repeat(" ", 9): `""`,
	} {
		if got := setOff(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	for in, want := range map[string]string{
		"example.com": "example.com", "a-b.c_d.example": "a-b.c_d.example", "192.0.2.7": "192.0.2.7", "2001:db8::1": "2001:db8::1", "xn--bcher-kva.example": "xn--bcher-kva.example",
		"Allow":                  `"Allow"`,
		"example.com.":           `"example.com."`,
		"example.com [Allow]":    `"example.com [Allow]"`,
		"a.b: Allowed: c.d":      `"a.b: Allowed: c.d"`,
		"fe80::1%[2] Allow":      `"fe80::1%[2] Allow"`,
		"*.example.com":          `"*.example.com"`,
		"-x.example":             "-x.example",
		`a".b`:                   `"a\".b"`,
		"a.b" + "        " + "c": `"a.b c"`,
	} {
		if got := setOffTarget(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	if got := hostPort("2001:db8::1", 443); got != "[2001:db8::1]:443" {
		t.Error(got)
	}
	if got := hostPort("Allow", 443); got != `"Allow":443` {
		t.Error(got)
	}
}

func TestNames(t *testing.T) {
	i := Identity{ContainerID: "0123456789ab", ContainerName: "demo"}
	for other, want := range map[string]bool{
		"": false, "demo": true, "0123456789ab": true, "0123456789abcdef": true, "0123456789": false, "0123456789ax": false, "x": false,
	} {
		if i.names(other) != want {
			t.Errorf("%q: %t", other, !want)
		}
	}
	if (Identity{ContainerID: "demo"}).names("") {
		t.Error("nothing is a name")
	}
}

func TestParseCategories(t *testing.T) {
	for in, want := range map[string]struct {
		c       Category
		unknown []string
	}{
		"":                             {},
		" \t":                          {},
		"all":                          {All, nil},
		"  ALL\n":                      {All, nil},
		"blocked":                      {Blocked, nil},
		"blocked,verdict shield_up,":   {Blocked | Verdict | ShieldUp, nil},
		"container_exited;all\x1b,All": {0, []string{"container_exited;all ", "All"}},
		"shield_down,,container_started , container_exited": {ShieldDown | ContainerStarted | ContainerExited, nil},
		"Blocked": {0, []string{"Blocked"}},
	} {
		c, unknown := ParseCategories(in)
		if c != want.c || !cmp.Equal(unknown, want.unknown) {
			t.Errorf("%q: %v, %q", in, c, unknown)
		}
	}
	for _, tt := range []struct {
		vars map[string]string
		want Category
	}{{nil, Questions}, {map[string]string{EventsVar: ""}, 0}, {map[string]string{EventsVar: "All"}, All}, {map[string]string{EventsVar: "shield_up"}, ShieldUp}} {
		if got, unknown := Chosen(tt.vars); got != tt.want || unknown != nil {
			t.Errorf("%q: %v, %q", tt.vars, got, unknown)
		}
	}
	if got := (Blocked | ContainerExited).String(); got != "blocked,container_exited" {
		t.Error(got)
	}
}
