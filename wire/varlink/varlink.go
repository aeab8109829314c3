// Package varlink speaks the varlink protocol over Unix sockets: calls and
// replies as JSON objects, each ended by a NUL byte. A Server serves
// interfaces to processes of its own user, a Client calls them, Listen makes
// the socket between them. Everything received is bounded and decoded
// strictly.
//
// It must never import anything but the standard library and wire/ascii, and
// knows no interface besides org.varlink.service.
package varlink

import (
	"context"
	"fmt"
	"reflect"
	"strings"
)

// Errors of the protocol itself. Those of org.varlink.service are part of
// varlink. For what it does not provide for there is no common word: the last
// two are what the servers that ours stand in for say.
const (
	InterfaceNotFound    = service + ".InterfaceNotFound"
	MethodNotFound       = service + ".MethodNotFound"
	MethodNotImplemented = service + ".MethodNotImplemented"
	InvalidParameter     = service + ".InvalidParameter"
	PermissionDenied     = service + ".PermissionDenied"
	ExpectedMore         = service + ".ExpectedMore"
	ProtocolViolation    = "invalid.asyncvarlink.ProtocolViolation"
	InternalServerError  = "invalid.asyncvarlink.InternalServerError"
)

// Error is an error reply. A method returns one to send it; a client gets
// one, to be found with errors.As, if the server sent it.
type Error struct {
	Name       string // interface.Name
	Parameters []byte // a JSON object; nil if empty
}

// NewError is an error reply whose parameters are a struct, or nil for none.
func NewError(name string, parameters any) *Error {
	b, err := marshalParameters(parameters)
	if err != nil {
		return &Error{Name: InternalServerError}
	}
	return &Error{Name: name, Parameters: b}
}

// Invalid is the error reply for a parameter that cannot be used.
func Invalid(parameter string) *Error {
	return NewError(InvalidParameter, invalidParameter{parameter})
}

// Error is for people: printable, and not longer than a line.
func (e *Error) Error() string {
	s := quote(e.Name)
	if len(e.Parameters) > 0 {
		s += " " + quote(string(e.Parameters))
	}
	return s
}

// Decode fills the struct that the pointer points to with the parameters.
// They must be exactly its fields.
func (e *Error) Decode(into any) error {
	if err := unmarshalParameters(e.Parameters, into); err != nil {
		return fmt.Errorf("parameters of %s: %w", quote(e.Name), err)
	}
	return nil
}

// Peer is the process at the other end of a connection, as of when it
// connected (a client) or began to listen (a server).
type Peer struct {
	PID int // 0 if it has none in our pid namespace
	UID int // as our user namespace calls it
	GID int
}

// Call is what a method is called with, besides its parameters.
type Call struct {
	Peer   Peer
	More   bool // the client takes more than one reply
	Oneway bool // the client takes none
}

// Interface is a set of methods to serve.
type Interface struct {
	Name        string
	Description string // in varlink's interface definition language
	Methods     []Method
	Errors      map[string]any // by name without interface: the zero struct of its parameters
}

// Method is one method of an interface. Handle and HandleStream make them.
type Method struct {
	name    string
	in, out reflect.Type
	stream  bool
	run     func(ctx context.Context, c *Call, parameters []byte, send func(any) error) error
}

// Handle is a method with one reply. Its parameters are the fields of In, its
// reply's those of Out: structs whose fields have json tags with nothing but
// a name, of types bool, int (and other integers), string, slices, maps from
// string, structs, and pointers for what is nullable.
//
// An *Error becomes an error reply, any other error is logged and the client
// told InternalServerError. The context ends with the server; a client that
// leaves does not keep its call from being carried out.
func Handle[In, Out any](name string, f func(ctx context.Context, c *Call, in In) (Out, error)) Method {
	return Method{
		name: name,
		in:   reflect.TypeFor[In](),
		out:  reflect.TypeFor[Out](),
		run: func(ctx context.Context, c *Call, parameters []byte, send func(any) error) error {
			var in In
			if err := decodeIn(parameters, &in); err != nil {
				return err
			}
			out, err := f(ctx, c, in)
			if err != nil {
				return err
			}
			return send(out)
		},
	}
}

// HandleStream is a method with any number of replies, which the client must ask
// for with more. Each is sent as soon as f calls send, which fails if the
// client is gone or does not read; f must not call it after it returned.
//
// The context ends with the server, and at once when the client closes its
// connection. An *Error that f returns becomes an error reply, any other
// error InternalServerError. If it returns nil the stream is at its end, which
// is told by closing the connection: there is no reply without content.
func HandleStream[In, Out any](name string, f func(ctx context.Context, c *Call, in In, send func(Out) error) error) Method {
	return Method{
		name:   name,
		in:     reflect.TypeFor[In](),
		out:    reflect.TypeFor[Out](),
		stream: true,
		run: func(ctx context.Context, c *Call, parameters []byte, send func(any) error) error {
			var in In
			if err := decodeIn(parameters, &in); err != nil {
				return err
			}
			return f(ctx, c, in, func(out Out) error { return send(out) })
		},
	}
}

// decodeIn fills a method's parameters or says which one is wrong.
func decodeIn(parameters []byte, into any) error {
	err := unmarshalParameters(parameters, into)
	if m, ok := asMismatch(err); ok && len(m.path) > 0 {
		return Invalid(m.path[0])
	}
	return err
}

// maxQuoted bounds what is shown of bytes that somebody else chose, in
// characters.
const maxQuoted = 256

// quote makes text printable and bounds it, for messages to people.
func quote(s string) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n == maxQuoted-3 && len(s) > maxQuoted {
			b.WriteString("...")
			break
		}
		if r < ' ' || r > '~' {
			r = ' '
		}
		b.WriteRune(r)
		n++
	}
	return b.String()
}
