package clearance

import (
	"context"
	"errors"

	"github.com/terok-ai/terok-box/wire/varlink"
)

// What crosses the wire.
type (
	subscribeOut struct {
		Event Event `json:"event"`
	}
	verdictOut struct {
		OK bool `json:"ok"`
	}
)

// Names of the interface's errors.
const (
	unknownRequest = "UnknownRequest"
	tupleMismatch  = "VerdictTupleMismatch"
	invalidAction  = "InvalidAction"
	shieldFailed   = "ShieldCliFailed"
)

// Interface serves a Service. The description is the interface's, in
// varlink's interface definition language.
func Interface(s Service, description string) varlink.Interface {
	return varlink.Interface{
		Name:        InterfaceName,
		Description: description,
		Methods: []varlink.Method{
			varlink.HandleStream("Subscribe", func(ctx context.Context, _ *varlink.Call, _ struct{}, send func(subscribeOut) error) error {
				return s.Subscribe(ctx, func(e Event) error { return send(subscribeOut{e.clean()}) })
			}),
			varlink.Handle("Verdict", func(ctx context.Context, _ *varlink.Call, in Request) (verdictOut, error) {
				if err := s.Verdict(ctx, in); err != nil {
					return verdictOut{}, reply(err)
				}
				return verdictOut{true}, nil
			}),
		},
		Errors: map[string]any{
			unknownRequest: UnknownRequest{},
			tupleMismatch:  TupleMismatch{},
			invalidAction:  InvalidAction{},
			shieldFailed:   ShieldFailed{},
		},
	}
}

// reply is the error reply for what a Service returned.
func reply(err error) error {
	if e, ok := errors.AsType[UnknownRequest](err); ok {
		return varlink.NewError(InterfaceName+"."+unknownRequest, e.clean())
	}
	if e, ok := errors.AsType[TupleMismatch](err); ok {
		return varlink.NewError(InterfaceName+"."+tupleMismatch, e.clean())
	}
	if e, ok := errors.AsType[InvalidAction](err); ok {
		return varlink.NewError(InterfaceName+"."+invalidAction, e.clean())
	}
	if e, ok := errors.AsType[ShieldFailed](err); ok {
		return varlink.NewError(InterfaceName+"."+shieldFailed, e.clean())
	}
	return err
}
