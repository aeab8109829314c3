package notify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/hook"
)

// addressVar is the environment variable with the addresses of the session's
// bus, with semicolons between.
const addressVar = "DBUS_SESSION_BUS_ADDRESS"

// errNoBus says that there is no session bus.
var errNoBus = errors.New("there is no session bus")

// sockets are the sockets of the session's bus, best first, as package net names
// them: those that the environment gives, or else the one that is customary.
// Others than Unix sockets are left out.
func sockets(env *cmdenv.Env) ([]string, error) {
	if text := env.Get(addressVar); text != "" && text != "autolaunch:" {
		var found []string
		for address := range strings.SplitSeq(text, ";") {
			if s := socket(address, env); s != "" {
				found = append(found, s)
			}
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("%w: %s names no Unix socket", errNoBus, addressVar)
		}
		return found, nil
	}
	dir, err := hook.RuntimeDir(env)
	if err != nil {
		return nil, fmt.Errorf("%w: %s is not set, and there is no runtime directory: %w", errNoBus, addressVar, err)
	}
	return []string{filepath.Join(dir, "bus")}, nil
}

// socket is that of one address; "" if it is not of a kind that we know.
func socket(address string, env *cmdenv.Env) string {
	rest, ok := strings.CutPrefix(address, "unix:")
	if !ok {
		return ""
	}
	for pair := range strings.SplitSeq(rest, ",") {
		key, value, _ := strings.Cut(pair, "=")
		value, err := url.PathUnescape(value) // an address escapes as a URL does
		if err != nil || value == "" || strings.ContainsRune(value, 0) {
			continue
		}
		switch key {
		case "path":
			if filepath.IsAbs(value) {
				return value
			}
		case "abstract":
			return "@" + value
		case "runtime":
			if dir, err := hook.RuntimeDir(env); err == nil && value == "yes" {
				return filepath.Join(dir, "bus")
			}
		}
	}
	return ""
}

// dial connects to the first of the sockets at which somebody listens.
func dial(ctx context.Context, sockets []string) (net.Conn, error) {
	var errs []error
	for _, s := range sockets {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", s)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("%w: %w", errNoBus, errors.Join(errs...))
}
