// Package verdict is the varlink interface org.terok.ClearanceVerdict1: how a
// hub has answers carried out that it found to be authorised.
//
// It must never import anything but the standard library and other packages of
// wire.
package verdict

import (
	"context"
	"path/filepath"

	"github.com/terok-ai/terok-box/wire/sanitize"
	"github.com/terok-ai/terok-box/wire/varlink"
)

// InterfaceName is what the interface is called.
const InterfaceName = "org.terok.ClearanceVerdict1"

// MaxStderr bounds what is told about an outcome, in characters.
const MaxStderr = 512

// Service is what the interface does. Implementations are safe for concurrent
// use.
type Service interface {
	// Apply allows or denies (package clearance: Allow, Deny) a container a
	// destination, which is a name or an IP address. ok says that it was done,
	// stderr why it was not, or what else there is to say.
	Apply(ctx context.Context, container, dest, action string) (ok bool, stderr string)
}

// What crosses the wire.
type (
	applyIn struct {
		Container string `json:"container"`
		Dest      string `json:"dest"`
		Action    string `json:"action"`
	}
	applyOut struct {
		OK     bool   `json:"ok"`
		Stderr string `json:"stderr"`
	}
)

// Interface serves a Service. The description is the interface's, in
// varlink's interface definition language.
func Interface(s Service, description string) varlink.Interface {
	return varlink.Interface{
		Name:        InterfaceName,
		Description: description,
		Methods: []varlink.Method{
			varlink.Handle("Apply", func(ctx context.Context, _ *varlink.Call, in applyIn) (applyOut, error) {
				ok, stderr := s.Apply(ctx, in.Container, in.Dest, in.Action)
				return applyOut{ok, sanitize.String(stderr, MaxStderr)}, nil
			}),
		},
	}
}

// Info is what the server tells about itself: the same as those that it stands
// in for.
func Info(version string) varlink.Info {
	return varlink.Info{Vendor: "terok", Product: "terok-clearance-verdict", Version: version, URL: "https://github.com/terok-ai/terok-clearance"}
}

// SocketPath is where the interface of one container is served. runtimeDir is
// the user's, such as /run/user/1000; short the first 12 digits of the
// container's id.
func SocketPath(runtimeDir, short string) string {
	return filepath.Join(runtimeDir, "terok", "verdict", short+".sock")
}

// UserSocketPath is where it is served for all containers of a user.
func UserSocketPath(runtimeDir string) string {
	return filepath.Join(runtimeDir, "terok-clearance-verdict.sock")
}
