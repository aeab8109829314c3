package varlink

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Check compares an interface's description with what its methods and errors
// are made of, so that introspection cannot promise anything else.
func (i Interface) Check() error {
	if err := i.check(); err != nil {
		return fmt.Errorf("interface %s: %w", quote(i.Name), err)
	}
	return nil
}

func (i Interface) check() error {
	d, err := parse(i.Description)
	if err != nil {
		return err
	}
	if d.name != i.Name {
		return fmt.Errorf("its description is that of %s", d.name)
	}
	seen := make(map[string]bool)
	for _, m := range i.Methods {
		want, ok := d.methods[m.name]
		if !ok || seen[m.name] {
			return fmt.Errorf("method %s is not described, or there twice", quote(m.name))
		}
		seen[m.name] = true
		for _, p := range []struct {
			what string
			is   reflect.Type
			want *idlType
		}{{"parameters", m.in, want.in}, {"reply", m.out, want.out}} {
			if err := d.compareStruct(p.want, p.is); err != nil {
				return fmt.Errorf("%s of method %s: %w", p.what, m.name, err)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.methods)) {
		if !seen[name] {
			return fmt.Errorf("method %s is described but not there", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(i.Errors)) {
		want, ok := d.errors[name]
		if !ok {
			return fmt.Errorf("error %s is not described", quote(name))
		}
		if err := d.compareStruct(want, reflect.TypeOf(i.Errors[name])); err != nil {
			return fmt.Errorf("error %s: %w", name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.errors)) {
		if _, ok := i.Errors[name]; !ok {
			return fmt.Errorf("error %s is described but not there", name)
		}
	}
	return nil
}

// declares reports whether the interface has the error, with exactly its
// parameters.
func declares(i Interface, e *Error) bool {
	name, ok := strings.CutPrefix(e.Name, i.Name+".")
	zero, known := i.Errors[name]
	return ok && known && unmarshalParameters(e.Parameters, reflect.New(reflect.TypeOf(zero)).Interface()) == nil
}

// idlType is a type of the interface definition language.
type idlType struct {
	kind   string   // "bool", "int", "string", "[]", "[string]", "?", "struct" or "name"
	elem   *idlType // of "[]", "[string]" and "?"
	name   string   // of "name"
	fields []idlField
}

type idlField struct {
	name string
	typ  *idlType
}

type idl struct {
	name    string
	types   map[string]*idlType
	methods map[string]struct{ in, out *idlType }
	errors  map[string]*idlType
}

// compareStruct says how a Go struct and its description differ.
func (d *idl) compareStruct(want *idlType, is reflect.Type) error {
	if err := checkStruct(is); err != nil {
		return err
	}
	return d.compare(want, is, 0)
}

func (d *idl) compare(want *idlType, is reflect.Type, depth int) error {
	for want.kind == "name" {
		if depth++; depth > maxDepth {
			return fmt.Errorf("type %s contains itself", want.name)
		}
		next, ok := d.types[want.name]
		if !ok {
			return fmt.Errorf("type %s is not described", want.name)
		}
		want = next
	}
	if depth++; depth > maxDepth {
		return errors.New("types are nested too deeply")
	}
	ok := false
	switch is.Kind() {
	case reflect.Bool:
		ok = want.kind == "bool"
	case reflect.String:
		ok = want.kind == "string"
	case reflect.Slice:
		ok = want.kind == "[]"
	case reflect.Map:
		ok = want.kind == "[string]"
	case reflect.Pointer:
		ok = want.kind == "?"
	case reflect.Struct:
		ok = want.kind == "struct" && len(want.fields) == is.NumField()
	default: // checkStruct has seen to it that it is an integer
		ok = want.kind == "int"
	}
	if !ok {
		return fmt.Errorf("%v is not what is described as %s", is, want)
	}
	if want.elem != nil {
		return d.compare(want.elem, is.Elem(), depth)
	}
	for i, f := range want.fields {
		if name, _ := tag(is.Field(i)); name != f.name {
			return fmt.Errorf("field %s where %s is described", name, f.name)
		}
		if err := d.compare(f.typ, is.Field(i).Type, depth); err != nil {
			return fmt.Errorf("field %s: %w", f.name, err)
		}
	}
	return nil
}

func (t *idlType) String() string {
	switch {
	case t.elem != nil:
		return t.kind + t.elem.String()
	case t.kind == "name":
		return t.name
	case t.kind != "struct":
		return t.kind
	}
	var fields []string
	for _, f := range t.fields {
		fields = append(fields, f.name+": "+f.typ.String())
	}
	return "(" + strings.Join(fields, ", ") + ")"
}

// parse reads a description: the interface definition language of varlink,
// without what there is no use for here (float, object, enumerations).
func parse(text string) (*idl, error) {
	p := &parser{text: text, line: 1}
	d, err := p.description()
	if err != nil {
		return nil, fmt.Errorf("line %d of its description: %w", p.line, err)
	}
	return d, nil
}

type parser struct {
	text string
	line int
}

// space passes over white space and comments.
func (p *parser) space() {
	for p.text != "" {
		switch c := p.text[0]; {
		case c == '\n':
			p.line++
			p.text = p.text[1:]
		case c == ' ' || c == '\t' || c == '\r':
			p.text = p.text[1:]
		case c == '#':
			_, rest, ok := strings.Cut(p.text, "\n")
			p.text = rest
			if ok {
				p.line++
			}
		default:
			return
		}
	}
}

// take passes over s if it comes next.
func (p *parser) take(s string) bool {
	p.space()
	rest, ok := strings.CutPrefix(p.text, s)
	if ok {
		p.text = rest
	}
	return ok
}

// word passes over what names and keywords are made of.
func (p *parser) word() string {
	p.space()
	n := 0
	for n < len(p.text) {
		if c := p.text[n]; !isLetter(c) && !isDigit(c) && c != '_' && c != '.' && c != '-' {
			break
		}
		if strings.HasPrefix(p.text[n:], "->") {
			break
		}
		n++
	}
	w := p.text[:n]
	p.text = p.text[n:]
	return w
}

func (p *parser) description() (*idl, error) {
	d := &idl{types: make(map[string]*idlType), methods: make(map[string]struct{ in, out *idlType }), errors: make(map[string]*idlType)}
	if w := p.word(); w != "interface" {
		return nil, fmt.Errorf("%q where interface must be", quote(w))
	}
	if d.name = p.word(); !isInterface(d.name) {
		return nil, fmt.Errorf("%q is not the name of an interface", quote(d.name))
	}
	names := make(map[string]bool)
	for p.space(); p.text != ""; p.space() {
		what, name := p.word(), p.word()
		if !isName(name) || names[name] {
			return nil, fmt.Errorf("%q is not a name, or there twice", quote(name))
		}
		names[name] = true
		t, err := p.structure(0)
		if err != nil {
			return nil, err
		}
		switch what {
		case "type":
			d.types[name] = t
		case "error":
			d.errors[name] = t
		case "method":
			if !p.take("->") {
				return nil, errors.New("-> is missing")
			}
			out, err := p.structure(0)
			if err != nil {
				return nil, err
			}
			d.methods[name] = struct{ in, out *idlType }{t, out}
		default:
			return nil, fmt.Errorf("%q where type, method or error must be", quote(what))
		}
	}
	return d, nil
}

func (p *parser) structure(depth int) (*idlType, error) {
	t := &idlType{kind: "struct"}
	if !p.take("(") {
		return nil, errors.New("( is missing")
	}
	seen := make(map[string]bool)
	for first := true; !p.take(")"); first = false {
		if !first && !p.take(",") {
			return nil, errors.New(", or ) is missing")
		}
		name := p.word()
		if !isField(name) || seen[name] {
			return nil, fmt.Errorf("%q is not the name of a field, or there twice", quote(name))
		}
		seen[name] = true
		if !p.take(":") {
			return nil, errors.New(": is missing")
		}
		f, err := p.typ(depth + 1)
		if err != nil {
			return nil, err
		}
		t.fields = append(t.fields, idlField{name, f})
	}
	return t, nil
}

func (p *parser) typ(depth int) (*idlType, error) {
	if depth > maxDepth {
		return nil, errors.New("types are nested too deeply")
	}
	for _, kind := range []string{"?", "[]", "[string]"} {
		if !p.take(kind) {
			continue
		}
		elem, err := p.typ(depth + 1)
		if err == nil && kind == "?" && elem.kind == "?" {
			err = errors.New("nullable twice")
		}
		return &idlType{kind: kind, elem: elem}, err
	}
	if p.space(); strings.HasPrefix(p.text, "(") {
		return p.structure(depth)
	}
	switch w := p.word(); {
	case w == "bool" || w == "int" || w == "string":
		return &idlType{kind: w}, nil
	case isName(w):
		return &idlType{kind: "name", name: w}, nil
	default:
		return nil, fmt.Errorf("%q is not a type", quote(w))
	}
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }
func isDigit(c byte) bool  { return '0' <= c && c <= '9' }

// isName reports whether s can be called a type, method or error.
func isName(s string) bool {
	for i := range len(s) {
		if !isLetter(s[i]) && (i == 0 || !isDigit(s[i])) {
			return false
		}
	}
	return s != "" && s[0] <= 'Z'
}

// isField reports whether a field can be called s: letters, digits and single
// underscores between them.
func isField(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case isLetter(c):
		case isDigit(c) && i > 0:
		case c == '_' && i > 0 && i < len(s)-1 && s[i-1] != '_':
		default:
			return false
		}
	}
	return s != ""
}

// isInterface reports whether an interface can be called s: a reversed
// domain name.
func isInterface(s string) bool {
	parts := strings.Split(s, ".")
	for i, part := range parts {
		for j := range len(part) {
			switch c := part[j]; {
			case isLetter(c):
			case isDigit(c) && (i > 0 || j > 0):
			case c == '-' && j > 0 && j < len(part)-1:
			default:
				return false
			}
		}
		if part == "" {
			return false
		}
	}
	return len(parts) > 1
}
