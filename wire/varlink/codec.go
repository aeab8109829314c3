package varlink

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/terok-ai/terok-box/wire/ascii"
)

// object is a JSON object as it is.
type object []byte

// request and reply are the messages, with their keys in order.
type request struct {
	Method     string `json:"method"`
	Parameters object `json:"parameters,omitempty"`
	Oneway     bool   `json:"oneway,omitempty"`
	More       bool   `json:"more,omitempty"`
	Upgrade    bool   `json:"upgrade,omitempty"`
}

type reply struct {
	Continues  bool   `json:"continues,omitempty"`
	Error      string `json:"error,omitempty"`
	Parameters object `json:"parameters,omitempty"`
}

// mismatch says that JSON is not what a Go type stands for.
type mismatch struct {
	path    []string // field in field, outermost first
	problem string
}

func (m *mismatch) Error() string {
	if len(m.path) == 0 {
		return m.problem
	}
	return quote(strings.Join(m.path, ".")) + ": " + m.problem
}

func asMismatch(err error) (m *mismatch, ok bool) {
	ok = errors.As(err, &m)
	return m, ok
}

// in says where the mismatch is.
func (m *mismatch) in(field string) *mismatch {
	return &mismatch{append([]string{field}, m.path...), m.problem}
}

// unmarshal fills what the pointer points to from JSON: all fields of a
// struct, no others (unless unknown ones are to be passed over), none twice,
// each of the right type, null only for a pointer. The errors are those of
// scan, and *mismatch: then the fields that are right are filled.
func unmarshal(data []byte, into any, passOver bool) error {
	if err := scan(data); err != nil {
		return err
	}
	s := scanner{data: data}
	v := reflect.ValueOf(into).Elem()
	v.SetZero()
	var m *mismatch
	if v.Kind() == reflect.Struct {
		m = s.decodeStruct(v, passOver)
	} else {
		m = s.decode(v)
	}
	if m != nil {
		return m
	}
	return nil
}

// unmarshalParameters is unmarshal for an object that may be missing.
func unmarshalParameters(parameters []byte, into any) error {
	if parameters == nil {
		parameters = []byte("{}")
	}
	return unmarshal(parameters, into, false)
}

// decode fills v with what comes next, in JSON that scan has found to be
// good.
func (s *scanner) decode(v reflect.Value) *mismatch {
	c := s.peek()
	if v.Type() == reflect.TypeFor[object]() {
		if c != '{' {
			return &mismatch{problem: "not an object"}
		}
		start := s.pos
		s.skip()
		v.SetBytes(s.data[start:s.pos])
		return nil
	}
	switch v.Kind() {
	case reflect.Pointer:
		if s.word("null") {
			v.SetZero()
			return nil
		}
		v.Set(reflect.New(v.Type().Elem()))
		return s.decode(v.Elem())
	case reflect.Bool:
		is := s.word("true")
		if !is && !s.word("false") {
			return &mismatch{problem: "not a boolean"}
		}
		v.SetBool(is)
	case reflect.String:
		text, ok := s.str()
		if !ok {
			return &mismatch{problem: "not a string"}
		}
		v.SetString(text)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, ok := s.integer()
		if !ok || v.OverflowInt(n) {
			return &mismatch{problem: "not an integer in range"}
		}
		v.SetInt(n)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		n, ok := s.integer()
		if !ok || n < 0 || v.OverflowUint(uint64(n)) {
			return &mismatch{problem: "not an integer in range"}
		}
		v.SetUint(uint64(n))
	case reflect.Slice:
		return s.decodeSlice(v)
	case reflect.Map:
		return s.decodeMap(v)
	case reflect.Struct:
		return s.decodeStruct(v, false)
	default:
		return &mismatch{problem: "of a type that is not supported"}
	}
	return nil
}

// skip passes over a value, in JSON that is good.
func (s *scanner) skip() {
	elements := s.elements
	if s.value(0) != nil {
		s.pos = len(s.data) // cannot be
	}
	s.elements = elements
}

// integer passes over a number without fraction and exponent.
func (s *scanner) integer() (int64, bool) {
	if c := s.peek(); c != '-' && (c < '0' || c > '9') {
		return 0, false
	}
	text, _ := s.number()
	n, err := strconv.ParseInt(string(text), 10, 64)
	return n, err == nil
}

func (s *scanner) decodeSlice(v reflect.Value) *mismatch {
	if !s.take('[') {
		return &mismatch{problem: "not an array"}
	}
	v.Set(reflect.MakeSlice(v.Type(), 0, 0))
	for n := 0; !s.take(']'); n++ {
		if n > 0 {
			s.take(',')
		}
		v.Grow(1)
		v.SetLen(n + 1)
		if m := s.decode(v.Index(n)); m != nil {
			return m.in(strconv.Itoa(n))
		}
	}
	return nil
}

func (s *scanner) decodeMap(v reflect.Value) *mismatch {
	if !s.take('{') {
		return &mismatch{problem: "not an object"}
	}
	t := v.Type()
	v.Set(reflect.MakeMap(t))
	for first := true; !s.take('}'); first = false {
		if !first {
			s.take(',')
		}
		name, _ := s.str()
		s.take(':')
		key := reflect.ValueOf(name).Convert(t.Key())
		if v.MapIndex(key).IsValid() {
			return (&mismatch{problem: "given twice"}).in(name)
		}
		elem := reflect.New(t.Elem()).Elem()
		if m := s.decode(elem); m != nil {
			return m.in(name)
		}
		v.SetMapIndex(key, elem)
	}
	return nil
}

// decodeStruct reports the first field that is wrong or missing, in the
// struct's order, and then the first that does not belong to it.
func (s *scanner) decodeStruct(v reflect.Value, passOver bool) *mismatch {
	if !s.take('{') {
		return &mismatch{problem: "not an object"}
	}
	t := v.Type()
	fields := make([]struct {
		seen  bool
		wrong *mismatch
	}, t.NumField())
	var extra *mismatch
	for first := true; !s.take('}'); first = false {
		if !first {
			s.take(',')
		}
		key, _ := s.str()
		s.take(':')
		i := fieldOf(t, key)
		if i < 0 {
			if extra == nil && !passOver {
				extra = (&mismatch{problem: "unknown"}).in(key)
			}
			s.skip()
			continue
		}
		f := &fields[i]
		start := s.pos
		m := s.decode(v.Field(i))
		if m != nil {
			s.pos = start
			s.skip()
		}
		if f.seen {
			m = &mismatch{problem: "given twice"}
		}
		if m != nil && f.wrong == nil {
			f.wrong = m.in(key)
		}
		f.seen = true
	}
	for i, f := range fields {
		name, optional := tag(t.Field(i))
		if f.wrong != nil {
			return f.wrong
		}
		if !f.seen && !optional && t.Field(i).Type.Kind() != reflect.Pointer {
			return (&mismatch{problem: "missing"}).in(name)
		}
	}
	return extra
}

// fieldOf is the index of the field with that name in JSON, or -1.
func fieldOf(t reflect.Type, name string) int {
	for i := range t.NumField() {
		if n, _ := tag(t.Field(i)); n == name && n != "" {
			return i
		}
	}
	return -1
}

// tag is a field's name in JSON, and whether it may be missing.
func tag(f reflect.StructField) (name string, optional bool) {
	name, option, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name, option == "omitempty"
}

// marshal is a value in JSON: compact, printable ASCII only, structs in their
// order and maps sorted, null only for a nil pointer.
func marshal(v any) ([]byte, error) { return appendValue(nil, reflect.ValueOf(v)) }

// marshalParameters is marshal for a struct or nil; an empty object is nil.
func marshalParameters(v any) ([]byte, error) {
	if v == nil {
		return nil, nil
	}
	b, err := marshal(v)
	switch {
	case err != nil:
		return nil, err
	case string(b) == "{}":
		return nil, nil
	case b[0] != '{':
		return nil, fmt.Errorf("parameters are not a struct but %T", v)
	}
	return b, nil
}

func appendValue(b []byte, v reflect.Value) ([]byte, error) {
	if !v.IsValid() {
		return nil, errors.New("no value to encode")
	}
	if v.Type() == reflect.TypeFor[object]() {
		return append(b, v.Bytes()...), nil
	}
	var err error
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return append(b, "null"...), nil
		}
		return appendValue(b, v.Elem())
	case reflect.Bool:
		return strconv.AppendBool(b, v.Bool()), nil
	case reflect.String:
		return ascii.AppendString(b, v.String()), nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return strconv.AppendInt(b, v.Int(), 10), nil
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		return strconv.AppendUint(b, v.Uint(), 10), nil
	case reflect.Slice:
		b = append(b, '[')
		for i := range v.Len() {
			if i > 0 {
				b = append(b, ',')
			}
			if b, err = appendValue(b, v.Index(i)); err != nil {
				return nil, err
			}
		}
		return append(b, ']'), nil
	case reflect.Map:
		byName := make(map[string]reflect.Value, v.Len())
		for key, elem := range v.Seq2() {
			byName[key.String()] = elem
		}
		b = append(b, '{')
		for i, name := range slices.Sorted(maps.Keys(byName)) {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(ascii.AppendString(b, name), ':')
			if b, err = appendValue(b, byName[name]); err != nil {
				return nil, err
			}
		}
		return append(b, '}'), nil
	case reflect.Struct:
		b = append(b, '{')
		first := true
		for i := range v.NumField() {
			name, optional := tag(v.Type().Field(i))
			if optional && (v.Field(i).IsZero() || v.Field(i).Kind() == reflect.Slice && v.Field(i).Len() == 0) {
				continue
			}
			if !first {
				b = append(b, ',')
			}
			first = false
			b = append(ascii.AppendString(b, name), ':')
			if b, err = appendValue(b, v.Field(i)); err != nil {
				return nil, err
			}
		}
		return append(b, '}'), nil
	default:
		return nil, fmt.Errorf("%v cannot be encoded", v.Type())
	}
}

// checkStruct refuses a type that cannot be the parameters of a call, reply
// or error.
func checkStruct(t reflect.Type) error {
	if t == nil || t.Kind() != reflect.Struct {
		return fmt.Errorf("%v is not a struct", t)
	}
	return checkType(t, 0)
}

func checkType(t reflect.Type, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%v contains itself", t)
	}
	switch t.Kind() {
	case reflect.Bool, reflect.String, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint8, reflect.Uint16, reflect.Uint32:
		return nil
	case reflect.Pointer:
		if t.Elem().Kind() == reflect.Pointer {
			return fmt.Errorf("%v is nullable twice", t)
		}
		return checkType(t.Elem(), depth+1)
	case reflect.Slice:
		return checkType(t.Elem(), depth+1)
	case reflect.Map:
		if t.Key().Kind() != reflect.String {
			return fmt.Errorf("%v has keys that are not strings", t)
		}
		return checkType(t.Elem(), depth+1)
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
			if !f.IsExported() || f.Anonymous || rest != "" || !isField(name) || fieldOf(t, name) != i {
				return fmt.Errorf("field %s of %v is not exported, or has no plain json tag of its own", f.Name, t)
			}
			if err := checkType(f.Type, depth+1); err != nil {
				return err
			}
		}
		return nil
	default:
		return fmt.Errorf("%v is not supported", t)
	}
}
