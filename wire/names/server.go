package names

import (
	"context"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/terok-ai/terok-box/wire/varlink"
)

// InterfaceName is what the interface is called.
const InterfaceName = "org.terok.ShieldDns1"

// SocketPath is where the interface of a container is served. runtimeDir is
// the user's, such as /run/user/1000; short the first 12 digits of the
// container's id.
func SocketPath(runtimeDir, short string) string {
	return filepath.Join(runtimeDir, "terok", "dns", short+".sock")
}

// Bounds on what is sent and accepted.
const (
	maxList = 100_000 // addresses in one reply
	maxName = 255     // characters of a name (RFC 1035, section 2.3.4), and of other words
	maxText = 1024    // characters of why a Reload or Forget failed
	// maxNames is how many names fit into a reply: with every character
	// escaped one takes less than 576 bytes.
	maxNames = varlink.MaxReply / 576
)

// What crosses the wire.
type (
	namesIn struct {
		Address string `json:"address"`
	}
	namesOut struct {
		Names []Name `json:"names"`
	}
	addressesIn struct {
		Name string `json:"name"`
	}
	addressesOut struct {
		Addresses []string `json:"addresses"`
	}
	reloadOut struct {
		Change Change `json:"change"`
	}
	forgetOut struct {
		Removed []string `json:"removed"`
	}
	statusOut struct {
		Status Status `json:"status"`
	}
	watchOut struct {
		Question Question `json:"question"`
	}
	invalidAddress struct {
		Address string `json:"address"`
	}
	reloadFailed struct {
		Reason string `json:"reason"`
	}
	forgetFailed struct {
		Reason string `json:"reason"`
	}
)

// Interface serves a Service. The description is the interface's, in
// varlink's interface definition language.
func Interface(s Service, description string) varlink.Interface {
	return varlink.Interface{
		Name:        InterfaceName,
		Description: description,
		Methods: []varlink.Method{
			varlink.Handle("Names", func(_ context.Context, _ *varlink.Call, in namesIn) (namesOut, error) {
				addr, err := netip.ParseAddr(in.Address)
				if err != nil || addr.Zone() != "" {
					return namesOut{}, varlink.NewError(InterfaceName+".InvalidAddress", invalidAddress{printable(in.Address)})
				}
				found := s.Names(addr.Unmap())
				out := make([]Name, 0, len(found))
				for _, n := range found[:min(len(found), maxNames)] {
					n.Name = printable(n.Name)
					out = append(out, n)
				}
				return namesOut{out}, nil
			}),
			varlink.Handle("Addresses", func(_ context.Context, _ *varlink.Call, in addressesIn) (addressesOut, error) {
				name, ok := canonical(in.Name)
				if !ok {
					return addressesOut{}, varlink.Invalid("name")
				}
				found := s.Addresses(name)
				return addressesOut{formatAddrs(found)}, nil
			}),
			varlink.Handle("Reload", func(ctx context.Context, _ *varlink.Call, _ struct{}) (reloadOut, error) {
				change, err := s.Reload(ctx)
				if err != nil {
					return reloadOut{}, varlink.NewError(InterfaceName+".ReloadFailed", reloadFailed{clean(err.Error(), maxText)})
				}
				change.Removed = change.Removed[:min(len(change.Removed), maxList)]
				return reloadOut{change}, nil
			}),
			varlink.Handle("Forget", func(ctx context.Context, _ *varlink.Call, _ struct{}) (forgetOut, error) {
				removed, err := s.Forget(ctx)
				if err != nil {
					return forgetOut{}, varlink.NewError(InterfaceName+".ForgetFailed", forgetFailed{clean(err.Error(), maxText)})
				}
				return forgetOut{formatAddrs(removed)}, nil
			}),
			varlink.Handle("Status", func(context.Context, *varlink.Call, struct{}) (statusOut, error) {
				return statusOut{s.Status()}, nil
			}),
			varlink.HandleStream("Watch", func(ctx context.Context, _ *varlink.Call, _ struct{}, send func(watchOut) error) error {
				return s.Watch(ctx, func(q Question) error {
					q.Name, q.Type, q.Reason = printable(q.Name), printable(q.Type), printable(q.Reason)
					q.Addresses = q.Addresses[:min(len(q.Addresses), maxList)]
					return send(watchOut{q})
				})
			}),
		},
		Errors: map[string]any{
			"InvalidAddress": invalidAddress{},
			"ReloadFailed":   reloadFailed{},
			"ForgetFailed":   forgetFailed{},
		},
	}
}

// formatAddrs is addresses as they are sent.
func formatAddrs(all []netip.Addr) []string {
	out := make([]string, 0, len(all))
	for _, a := range all[:min(len(all), maxList)] {
		out = append(out, a.String())
	}
	return out
}

// canonical is a name in lower case without a dot at its end.
func canonical(name string) (string, bool) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	return name, name != "" && isPrintable(name)
}

// isPrintable reports whether s is short and shows as it is.
func isPrintable(s string) bool {
	return len(s) <= maxName && !strings.ContainsFunc(s, unprintable)
}

func unprintable(r rune) bool { return r < ' ' || r > '~' }

// printable makes s so.
func printable(s string) string { return clean(s, maxName) }

// clean makes a space of every character that does not show, and three dots
// of the end of what is longer than limit.
func clean(s string, limit int) string {
	var b strings.Builder
	for _, r := range s {
		if b.Len() == limit {
			return b.String()[:limit-3] + "..."
		}
		if unprintable(r) {
			r = ' '
		}
		b.WriteRune(r)
	}
	return b.String()
}
