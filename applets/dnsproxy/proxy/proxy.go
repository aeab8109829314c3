// Package proxy is the name server of one container: it answers for the names
// on the container's lists, and opens their addresses in its firewall before
// it does. For the others it says so, and asks nobody.
//
// Everything that arrives is hostile: questions from the container, answers
// from the network. It must never import an applet or a package that faces
// people.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/terok-ai/terok-box/applets/dnsproxy/upstream"
	"github.com/terok-ai/terok-box/applets/internal/learned"
	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/applets/internal/tier"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/wire/names"
)

// resolvConf names the host's name servers.
const resolvConf = "/etc/resolv.conf"

// maxWarnings is how many unreadable lines of lists are shown.
const maxWarnings = 10

// recheck is how often it is looked whether the firewall takes addresses
// again.
const recheck = 100 * time.Millisecond

// asker asks the host's name servers; an *upstream.Client.
type asker interface {
	Ask(ctx context.Context, q upstream.Query, done func(*dns.Msg, error))
	Servers() []netip.AddrPort
	Close()
}

// Engine is the name server.
type Engine struct {
	r     tier.Resources
	up    asker
	set   *learned.Set
	cache *cache

	lists    atomic.Pointer[lists]
	enforced atomic.Bool
	checked  atomic.Int64 // when enforced was found false last, Unix nanoseconds
	reload   sync.Mutex

	watchers watchers
	audit    *auditor
	slots    chan struct{} // one is taken by each question that upstream is asked for
	ready    chan struct{} // and by each that is in the cache
	explicit explicit

	questions, refused, failed, cached atomic.Int64
}

// lists is what the state directory says about names.
type lists struct {
	names   *policy.Names
	resolve bool // names on no list, too
}

// New makes the name server of tier proxy.
func New(r tier.Resources) (tier.Engine, error) {
	if r.UDP == nil || r.TCP == nil {
		return nil, errors.New("the name server has no sockets to listen on")
	}
	set, err := learned.New(learned.Options{Kernel: r.NFT, Cut: r.Track.Cut})
	if err != nil {
		return nil, err
	}
	return newEngine(r, upstream.New(resolvConf, r.Log), set)
}

func newEngine(r tier.Resources, up asker, set *learned.Set) (*Engine, error) {
	e := &Engine{r: r, up: up, set: set, cache: newCache(), explicit: explicit{bundle: r.Bundle}}
	e.slots, e.ready = make(chan struct{}, maxWaiting), make(chan struct{}, maxReady)
	l, err := e.read()
	if err != nil {
		up.Close()
		return nil, errors.Join(err, set.Close())
	}
	e.lists.Store(l)
	e.enforced.Store(true) // the hook puts the firewall in at this very moment
	return e, nil
}

// read reads the lists.
func (e *Engine) read() (*lists, error) {
	profile, err1 := e.r.Bundle.ProfileDomains()
	live, err2 := e.r.Bundle.LiveDomains()
	denied, err3 := e.r.Bundle.DeniedDomains()
	resolve, err4 := e.r.Bundle.ResolveUnlisted()
	open, err5 := e.r.Bundle.Open()
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return nil, fmt.Errorf("read the lists of names: %w", err)
	}
	decide, warnings, err := policy.NewNames(profile, live, denied)
	if err != nil {
		return nil, err
	}
	for _, err := range warnings[:min(len(warnings), maxWarnings)] {
		e.r.Log.Warn("lists of names", "err", err)
	}
	if more := len(warnings) - maxWarnings; more > 0 {
		e.r.Log.Warn("lists of names", "more", more)
	}
	return &lists{names: decide, resolve: resolve || open}, nil
}

// Start answers questions from now on.
func (e *Engine) Start(ctx context.Context, failed func(error)) error {
	if _, err := e.set.Retain(ctx, e.allowed); err != nil {
		return err
	}
	if e.r.Spec.Audit {
		e.audit = newAuditor(e.r.Bundle, e.r.Spec.Container, e.r.Log)
	}
	var once sync.Once
	fail := func(err error) {
		if ctx.Err() == nil {
			once.Do(func() { failed(err) })
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { fail(e.serveUDP(ctx)) })
	wg.Go(func() { fail(e.serveTCP(ctx)) })
	context.AfterFunc(ctx, func() {
		// The sockets are the process's: only what waits for them is ended.
		_ = e.r.UDP.SetReadDeadline(time.Unix(1, 0)) // fails when it is closed
		_ = e.r.TCP.SetDeadline(time.Unix(1, 0))
		wg.Wait()
		e.audit.close()
		e.up.Close()
		if err := e.set.Close(); err != nil {
			e.r.Log.Warn("end", "err", err)
		}
	})
	return nil
}

// allowed reports whether the lists allow a name now.
func (e *Engine) allowed(name string) bool { return e.lists.Load().names.Decide(name).Allowed }

// Reload reads the lists again.
func (e *Engine) Reload(ctx context.Context) (names.Change, error) {
	e.reload.Lock()
	defer e.reload.Unlock()
	l, err := e.read()
	if err != nil {
		return names.Change{}, err
	}
	e.lists.Store(l)
	removed, err := e.set.Retain(ctx, func(name string) bool { return l.names.Decide(name).Allowed })
	if err != nil {
		return names.Change{}, err
	}
	c := names.Change{Enforced: e.look()}
	c.Allowed, c.Denied = l.names.Len()
	for _, a := range removed {
		c.Removed = append(c.Removed, a.String())
	}
	return c, nil
}

// Forget forgets every answer, closes what they have opened, and has what is
// being asked for asked anew.
func (e *Engine) Forget(ctx context.Context) ([]netip.Addr, error) {
	e.cache.forget() // before the new life, in which it has nothing of the old one
	return e.set.Forget(ctx)
}

// look finds out whether the firewall takes addresses. Where it does not, as
// in quarantine, nothing is asked for either: names can carry data.
func (e *Engine) look() bool {
	_, err := e.r.NFT.Learned()
	ok := !errors.Is(err, nft.ErrNotLearning)
	e.enforced.Store(ok)
	e.checked.Store(time.Now().UnixNano())
	return ok
}

// enforcing is what look found, not long ago.
func (e *Engine) enforcing() bool {
	if e.enforced.Load() {
		return true
	}
	at := e.checked.Load()
	now := time.Now().UnixNano()
	if now-at < int64(recheck) || !e.checked.CompareAndSwap(at, now) {
		return false
	}
	return e.look()
}

// Names are the names the container was answered with the address for.
func (e *Engine) Names(addr netip.Addr) []names.Name { return e.set.Names(addr) }

// Addresses are those that can be reached because of a name.
func (e *Engine) Addresses(name string) []netip.Addr { return e.set.Addresses(fold(name)) }

// Status counts.
func (e *Engine) Status() names.Status {
	s := names.Status{
		Tier: "proxy", Questions: e.questions.Load(), Refused: e.refused.Load(), Failed: e.failed.Load(),
		Cached: e.cached.Load(), Learned: e.set.Len(), Restarts: e.r.Spec.Restarts,
	}
	for _, server := range e.up.Servers() {
		s.Upstreams = append(s.Upstreams, server.String())
	}
	s.Allowed, s.Denied = e.lists.Load().names.Len()
	s.Entries, s.Bytes = e.cache.size()
	return s
}

// Watch passes every question on.
func (e *Engine) Watch(ctx context.Context, f func(names.Question) error) error {
	return e.watchers.watch(ctx, f)
}

// fold is the form in which names compare.
func fold(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
