package varlink

import (
	"context"
	"strings"
	"testing"
)

const testDescription = `
# Comment.
interface org.example.Test

type Item (name: string, tags: [string]string) # a comment behind
type Items ( list : []Item )

method Echo(
  text: string, yes: bool, count: int, big: int, port: int, list: []string,
  items: []Item, index: [string]Item, one: (name: string, tags: [string]string), maybe: ?int, some: []?string
) -> (
  text: string, yes: bool, count: int, big: int, port: int, list: []string,
  items: []Item, index: [string]Item, one: Item, maybe: ?int, some: []?string
)
method Ping()->()
method Fail(how: string) -> ()
method Count(to: int) -> (n: int)
error Broken (reason: string)
error Bare()
`

func check(description string, change func(*Interface)) error {
	i := Interface{
		Name:        "org.example.Test",
		Description: description,
		Methods: []Method{
			Handle("Echo", func(context.Context, *Call, everything) (e everything, err error) { return }),
			Handle("Ping", func(context.Context, *Call, struct{}) (e struct{}, err error) { return }),
			Handle("Fail", func(context.Context, *Call, failIn) (e struct{}, err error) { return }),
			HandleStream("Count", func(context.Context, *Call, countIn, func(countOut) error) error { return nil }),
		},
		Errors: map[string]any{"Broken": broken{}, "Bare": struct{}{}},
	}
	if change != nil {
		change(&i)
	}
	return i.Check()
}

type (
	failIn struct {
		How string `json:"how"`
	}
	countIn struct {
		To int `json:"to"`
	}
	countOut struct {
		N int `json:"n"`
	}
	broken struct {
		Reason string `json:"reason"`
	}
)

func TestCheck(t *testing.T) {
	if err := check(testDescription, nil); err != nil {
		t.Error(err)
	}
	for _, c := range []struct{ from, to, want string }{
		{"interface org.example.Test", "interface org.example.Other", "its description is that of org.example.Other"},
		{"method Ping()->()", "", "method Ping is not described"},
		{"method Ping()->()", "method Ping(a: int)->()", "parameters of method Ping: struct {} is not what is described as (a: int)"},
		{"method Ping()->()", "method Ping()->()\nmethod More()->()", "method More is described but not there"},
		{"(how: string)", "(how: int)", "field how: string is not what is described as int"},
		{"(how: string)", "(why: string)", "field how where why is described"},
		{"(how: string)", "(how: ?string)", "field how: string is not what is described as ?string"},
		{"(n: int)", "(n: []int)", "reply of method Count: field n: int is not what is described as []int"},
		{"maybe: ?int", "maybe: int", "field maybe: *int is not what is described as int"},
		{"index: [string]Item", "index: [string]Items", "field index: varlink.item is not what is described as (list: []Item)"},
		{"index: [string]Item", "index: [string]Loop", "type Loop is not described"},
		{"type Items", "type Loop Loop\ntype Items", "( is missing"},
		{"error Bare()", "error Bare(a: int)", "error Bare"},
		{"error Bare()", "", "error Bare is not described"},
		{"error Bare()", "error Bare()\nerror Other()", "error Other is described but not there"},
		{"error Bare()", "error Ping()", `"Ping" is not a name, or there twice`},
		{"error Bare()", "error bare()", `"bare" is not a name`},
		{"error Bare()", "mistake Bare()", `"mistake" where type, method or error must be`},
		{"error Bare()", "error Bare(", `"" is not the name of a field`},
		{"error Bare()", "error Bare(a: int b: int)", ", or ) is missing"},
		{"error Bare()", "error Bare(a: int, a: int)", "is not the name of a field, or there twice"},
		{"error Bare()", "error Bare(a_: int)", "is not the name of a field"},
		{"error Bare()", "error Bare(a int)", ": is missing"},
		{"error Bare()", "error Bare(a: float)", `"float" is not a type`},
		{"error Bare()", "error Bare(a: ??int)", "nullable twice"},
		{"error Bare()", "error Bare(a: " + strings.Repeat("[]", 100) + "int)", "nested too deeply"},
		{"->()", "()", "-> is missing"},
		{"interface org.example.Test", "interface Test", `"Test" is not the name of an interface`},
		{"interface org.example.Test", "", `where interface must be`},
	} {
		text := strings.Replace(testDescription, c.from, c.to, 1)
		if text == testDescription {
			t.Fatalf("%q is not there", c.from)
		}
		if err := check(text, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s instead of %s:\n%v, want\n%s", c.to, c.from, err, c.want)
		}
	}
	for name, change := range map[string]func(*Interface){
		"unknown method":   func(i *Interface) { i.Methods = append(i.Methods, Method{name: "Zero"}) },
		"method twice":     func(i *Interface) { i.Methods = append(i.Methods, i.Methods[0]) },
		"no such method":   func(i *Interface) { i.Methods = i.Methods[1:] },
		"no such error":    func(i *Interface) { delete(i.Errors, "Bare") },
		"unknown error":    func(i *Interface) { i.Errors["Other"] = struct{}{} },
		"error of nothing": func(i *Interface) { i.Errors["Bare"] = nil },
		"other name":       func(i *Interface) { i.Name = "org.example.Test2" },
	} {
		if err := check(testDescription, change); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// A type that contains itself has no end in Go.
	loop := strings.Replace(testDescription, "type Item (name: string, tags: [string]string)", "type Item (name: string, tags: [string]Item)", 1)
	if err := check(loop, nil); err == nil {
		t.Error("a loop of types is accepted")
	}
}

// A description that is read prints as types that are read again the same.
func FuzzDescription(f *testing.F) {
	f.Add(testDescription)
	f.Add(serviceDescription)
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parse(text)
		if err != nil {
			return
		}
		for name, typ := range d.errors {
			again, err := parse("interface a.b\nerror " + name + " " + typ.String())
			if err != nil {
				t.Fatalf("%s: %v", typ, err)
			}
			if got := again.errors[name].String(); got != typ.String() {
				t.Errorf("%s became %s", typ, got)
			}
		}
	})
}
