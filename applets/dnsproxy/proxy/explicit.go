package proxy

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/terok-ai/terok-box/wire/bundle"
)

// explicitFor is how long it is believed which addresses are allowed: nobody
// says when they change.
const explicitFor = time.Second

// explicit knows which addresses an operator has allowed by themselves. A name
// may be answered with those, though it opens none that is not public.
type explicit struct {
	bundle *bundle.Bundle

	mu      sync.Mutex
	read    time.Time
	allowed []netip.Prefix
	denied  []netip.Prefix
}

// has reports whether an address is one. What cannot be read allows nothing.
func (e *explicit) has(a netip.Addr) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now := time.Now(); e.read.IsZero() || now.Sub(e.read) >= explicitFor {
		e.read = now
		if e.load() != nil {
			e.allowed = nil
		}
	}
	in := func(p netip.Prefix) bool { return p.Contains(a) }
	return slices.ContainsFunc(e.allowed, in) && !slices.ContainsFunc(e.denied, in)
}

func (e *explicit) load() error {
	profile, err := e.bundle.ProfileAllowed()
	if err != nil {
		return err
	}
	live, err := e.bundle.LiveAllowed()
	if err != nil {
		return err
	}
	e.denied, err = e.bundle.DenyList()
	e.allowed = slices.Concat(profile, live)
	return err
}

// sortOut is which of the hidden records may be shown, and the address of one
// that may not.
func (e *Engine) sortOut(res *result) (show []hidden, private netip.Addr) {
	for _, h := range res.hidden {
		if e.explicit.has(h.addr) {
			show = append(show, h)
		} else {
			private = h.addr
		}
	}
	return show, private
}
