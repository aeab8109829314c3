// Package grammar is the command line of a program as a value, from which
// shell completions are written: its verbs, their flags and arguments.
//
// It reads a grammar of kong's, or the text that --help prints of a program
// without one. It must never import what a command does.
package grammar

import (
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// Kind is what stands in a place of a command line.
type Kind string

// Kinds of values. Names of containers and profiles are asked of the program
// itself when they are completed: "terok-shield names KIND".
const (
	Nothing    Kind = ""
	Text       Kind = "text"
	Choices    Kind = "choices"
	Files      Kind = "files"
	Dirs       Kind = "dirs"
	Containers Kind = "containers"
	Profiles   Kind = "profiles"
)

// Program is a command line.
type Program struct {
	Name  string
	Flags []Flag // before and after any verb
	Verbs []Verb // one with an empty name: there are no verbs
}

// Verb is one of the things that a program does.
type Verb struct {
	Name  string
	Help  string // one line
	Flags []Flag
	Args  []Value // by position
	Tail  bool    // another command line may follow after "--"
}

// Flag is a flag with all of its names, dashes included.
type Flag struct {
	Names []string
	Help  string // one line
	Value Value  // of kind Nothing for a switch
	List  bool   // values may be given with commas between
}

// Value is what is typed in a place.
type Value struct {
	Kind    Kind
	Name    string   // as people see it, like DIR
	Choices []string // all there are, of kind Choices
}

// Verb is the verb of that name; ok is false if there is none.
func (p Program) Verb(name string) (v Verb, ok bool) {
	i := slices.IndexFunc(p.Verbs, func(v Verb) bool { return v.Name == name })
	if i < 0 {
		return v, false
	}
	return p.Verbs[i], true
}

// New is a parser of the command line that g, a pointer to a struct, describes
// in kong's way.
func New(g any, name, description string, stdout, stderr io.Writer) (*kong.Kong, error) {
	return kong.New(g,
		kong.Name(name), kong.Description(description),
		kong.Writers(stdout, stderr), kong.Exit(func(code int) { panic(helped(code)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
	)
}

// helped is the panic that ends parsing after help was printed.
type helped int

// Parse parses a command line; nil if it asked for help, which was printed.
func Parse(k *kong.Kong, args []string) (cmd *kong.Context, err error) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(helped); !ok {
				panic(r)
			}
			cmd, err = nil, nil
		}
	}()
	return k.Parse(args)
}

// Of is the grammar that a parser holds, without what is hidden. A tag
// complete:"KIND" says what is completed in a place, tail:"" of a verb's
// field that a command line follows.
func Of(k *kong.Kong) Program {
	p := Program{Name: k.Model.Name, Flags: flags(k.Model.Flags)}
	for _, n := range k.Model.Children {
		if n.Hidden {
			continue
		}
		v := Verb{Name: n.Name, Help: n.Help, Flags: flags(n.Flags), Tail: n.Tag.Has("tail")}
		for _, a := range n.Positional {
			v.Args = append(v.Args, value(a, strings.ToUpper(a.Name)))
		}
		p.Verbs = append(p.Verbs, v)
	}
	return p
}

func flags(in []*kong.Flag) []Flag {
	var out []Flag
	for _, f := range in {
		if f.Hidden {
			continue
		}
		o := Flag{Names: []string{"--" + f.Name}, Help: f.Help}
		if f.Short != 0 {
			o.Names = append([]string{"-" + string(f.Short)}, o.Names...)
		}
		if !f.IsBool() {
			o.Value, o.List = value(f.Value, f.FormatPlaceHolder()), f.IsSlice() && f.Tag.Sep != -1
		}
		out = append(out, o)
	}
	return out
}

func value(v *kong.Value, name string) Value {
	out := Value{Kind: Text, Name: name}
	switch k := Kind(v.Tag.Get("complete")); {
	case k != Nothing:
		out.Kind = k
	case v.Enum != "":
		out.Kind, out.Choices = Choices, v.EnumSlice()
	}
	return out
}

// FromUsage is the grammar that a usage text tells: flags at the beginning of
// a line after two blanks, and words to choose from in brackets, like
// [serve] or [createRuntime|poststop]. --help needs not to be mentioned.
func FromUsage(name, usage string) Program {
	v := Verb{}
	line := regexp.MustCompile(`(?m)^  (-[a-z], )?(--[a-z-]+)(?: ([A-Z:]+)(?:\.\.\.)?)? +(\S.*(?:\n {9,}\S.*)*)$`)
	for _, m := range line.FindAllStringSubmatch(usage, -1) {
		f := Flag{Names: []string{m[2]}, Help: strings.Join(strings.Fields(m[4]), " ")}
		if m[1] != "" {
			f.Names = []string{strings.TrimSuffix(m[1], ", "), m[2]}
		}
		if m[3] != "" {
			f.Value = Value{Kind: Text, Name: m[3]}
		}
		if m[3] == "PATH" {
			f.Value.Kind = Files
		}
		v.Flags = append(v.Flags, f)
	}
	v.Flags = append(v.Flags, Flag{Names: []string{"-h", "--help"}, Help: "Show help."})
	first, _, _ := strings.Cut(usage, "\n")
	if m := regexp.MustCompile(`\[([a-z][A-Za-z|]*)\]`).FindStringSubmatch(first); m != nil {
		v.Args = []Value{{Kind: Choices, Name: m[1], Choices: strings.Split(m[1], "|")}}
	}
	return Program{Name: name, Verbs: []Verb{v}}
}
