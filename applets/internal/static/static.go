// Package static is the tier without a name server of its own: the container
// asks whomever it likes, and meanwhile the names on its lists are looked up
// again and again with the host's name servers, so that their addresses are
// open as they change. An entry stands for the addresses of its own name only:
// what is below it was never asked for.
//
// It must never import an applet, nor read DNS messages itself.
package static

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/learned"
	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/applets/internal/resolve"
	"github.com/terok-ai/terok-box/applets/internal/tier"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/names"
)

// resolvConf names the host's name servers.
const resolvConf = "/etc/resolv.conf"

const (
	perName  = 5 * time.Second // for one lookup
	parallel = 32              // lookups at a time
	ordinary = parallel - 8    // of these, names that nobody waits for
	// firstRound is how long addresses that were open before the process
	// started are left alone, so that lookups can find whose they are.
	firstRound = 10 * time.Second
	// reloadWait is how long a Reload waits for the addresses of new names.
	reloadWait = 2 * time.Second
	// maxFailures is how often in a row the firewall may fail to take
	// addresses.
	maxFailures = 10
	maxLines    = 10 // in the log, a minute
)

// engine implements tier.Engine.
type engine struct {
	log     *slog.Logger
	servers *resolve.Follower
	kernel  learned.Kernel
	cut     func([]netip.Addr) (int, error) // ends connections
	lists   func() (profile, live, denied []string, err error)
	lookup  func(ctx context.Context, name string) (found, error)

	learned *learned.Set
	wake    chan struct{} // has room for one
	done    chan struct{} // everything has ended
	failed  func(error)

	changing sync.Mutex // held while lists are read and put into force

	mu       sync.Mutex
	rules    *policy.Names
	names    map[string]*entry
	schedule schedule
	busy     int // lookups under way
	asked    int64
	unheard  int64 // of these, failed
	failures int   // of the firewall, in a row
	resolver *resolve.Resolver
	logged   time.Time // since when
	lines    int       // about names were written to the log
}

// found is what a lookup found. An error may come with addresses: it concerns
// others.
type found struct {
	addrs []netip.Addr
	ttl   time.Duration
}

// New is the tier's engine. It opens no socket but to ask the host's name
// servers.
func New(r tier.Resources) (tier.Engine, error) {
	e := newEngine(r.Log, r.NFT, r.Track.Cut, func() (profile, live, denied []string, err error) { return readLists(r.Bundle) })
	e.servers = resolve.Follow(resolvConf, 0, r.Log)
	return e, nil
}

func newEngine(log *slog.Logger, kernel learned.Kernel, cut func([]netip.Addr) (int, error), lists func() (profile, live, denied []string, err error)) *engine {
	e := &engine{
		log: log, kernel: kernel, cut: cut, lists: lists, rules: new(policy.Names), names: map[string]*entry{},
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	e.lookup = e.ask
	return e
}

// readLists reads a bundle's lists of names.
func readLists(b *bundle.Bundle) (profile, live, denied []string, err error) {
	if profile, err = b.ProfileDomains(); err != nil {
		return nil, nil, nil, err
	}
	if live, err = b.LiveDomains(); err != nil {
		return nil, nil, nil, err
	}
	denied, err = b.DeniedDomains()
	return profile, live, denied, err
}

// read reads the lists: what they mean, and the names to look up, which are
// those of entries that are not denied.
func (e *engine) read() (*policy.Names, map[string]bool, error) {
	profile, live, denied, err := e.lists()
	if err != nil {
		return nil, nil, err
	}
	rules, warnings, err := policy.NewNames(profile, live, denied)
	if err != nil {
		return nil, nil, err
	}
	if len(warnings) > 0 {
		e.log.Warn("the lists of names have lines that are none", "lines", len(warnings), "first", warnings[0])
	}
	wanted := make(map[string]bool)
	for _, line := range slices.Concat(profile, live) {
		if t, err := policy.ParseTarget(line); err == nil && t.IsName() && rules.Decide(t.Name).Allowed {
			wanted[t.Name] = true
		}
	}
	return rules, wanted, nil
}

// Start implements tier.Engine. It does not wait for lookups: the container
// starts with the addresses that were found when it was prepared.
func (e *engine) Start(ctx context.Context, failed func(error)) (err error) {
	var once sync.Once
	e.failed = func(err error) { once.Do(func() { failed(err) }) }
	rules, wanted, err := e.read()
	if err != nil {
		return err
	}
	if e.learned, err = learned.New(learned.Options{Kernel: e.kernel, Cut: e.cut}); err != nil {
		return err
	}
	first := e.apply(rules, wanted, false, false)
	var all sync.WaitGroup
	all.Go(func() { e.work(ctx) })
	all.Go(func() {
		e.await(ctx, first, firstRound)
		e.closeOthers(ctx)
	})
	go func() {
		all.Wait()
		e.learned.Close()
		close(e.done)
	}()
	return nil
}

// closeOthers closes what was open before the process started and is not
// known to be an address of an allowed name: it may be one of a name that was
// denied while no process was there.
func (e *engine) closeOthers(ctx context.Context) {
	e.changing.Lock()
	defer e.changing.Unlock()
	e.mu.Lock()
	wanted := make(map[string]bool, len(e.names))
	for name := range e.names {
		wanted[name] = true
	}
	e.mu.Unlock()
	removed, err := e.learned.Retain(ctx, func(name string) bool { return wanted[name] })
	switch {
	case ctx.Err() != nil:
	case err != nil:
		e.log.Error("addresses may be open that no name leads to", "err", err)
	case len(removed) > 0:
		e.log.Info("closed what no name leads to any more", "addresses", len(removed))
	}
}

// Reload implements names.Service. New names are looked up at once, and
// waited for no longer than two seconds; what was open is opened again, should
// the firewall have lost it.
func (e *engine) Reload(ctx context.Context) (names.Change, error) {
	e.changing.Lock()
	defer e.changing.Unlock()
	change := names.Change{Removed: []string{}}
	rules, wanted, err := e.read()
	if err != nil {
		return change, err
	}
	if err := ctx.Err(); err != nil {
		return change, err
	}
	removed, err := e.learned.Retain(context.WithoutCancel(ctx), func(name string) bool { return wanted[name] })
	_, learning := e.kernel.Learned()
	change.Enforced = !errors.Is(learning, nft.ErrNotLearning)
	for _, a := range removed {
		change.Removed = append(change.Removed, a.String())
	}
	change.Allowed, change.Denied = rules.Len()
	fresh := e.apply(rules, wanted, true, change.Enforced)
	if change.Enforced {
		ctx, cancel := context.WithTimeout(ctx, reloadWait)
		defer cancel()
		e.restore(ctx)
		e.await(ctx, fresh, reloadWait)
	}
	return change, err
}

// Forget implements names.Service. The names are looked up again at once, and
// waited for no longer than two seconds; in quarantine with the next Reload
// after it.
func (e *engine) Forget(ctx context.Context) ([]netip.Addr, error) {
	e.changing.Lock()
	defer e.changing.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	removed, err := e.learned.Forget(context.WithoutCancel(ctx))
	_, learning := e.kernel.Learned()
	again := e.renounce(errors.Is(learning, nft.ErrNotLearning))
	e.await(ctx, again, reloadWait)
	return removed, err
}

// renounce drops the addresses of all names and has them looked up again, at
// once unless the firewall takes none. It returns channels that are closed when
// each was.
func (e *engine) renounce(refused bool) (again []<-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, n := range e.names {
		n.addrs, n.until, n.refused = nil, time.Time{}, refused
		switch {
		case refused:
		case n.index < 0: // what is found now was asked for before
			n.again = true
			again = append(again, n.wait())
		default:
			n.urgent = true
			e.schedule.fix(n)
			again = append(again, n.wait())
		}
	}
	e.poke()
	return again
}

// apply makes the names those wanted, and returns channels that are closed
// when each of the new ones was looked up, urgently or not; with resume also
// those of names whose addresses the firewall did not take before.
func (e *engine) apply(rules *policy.Names, wanted map[string]bool, urgent, resume bool) (fresh []<-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rules = rules
	for name, n := range e.names {
		switch {
		case !wanted[name]:
			delete(e.names, name)
			e.schedule.remove(n)
			n.settle()
		case !resume:
		case n.index < 0: // whether it is refused is not known yet
			n.again = true
		case n.refused:
			n.urgent = true
			e.schedule.fix(n)
			fresh = append(fresh, n.wait())
		}
	}
	now := time.Now()
	for name := range wanted {
		if e.names[name] == nil {
			n := &entry{name: name, due: now, urgent: urgent, index: -1}
			e.names[name] = n
			e.schedule.put(n)
			fresh = append(fresh, n.wait())
		}
	}
	e.poke()
	return fresh
}

// await waits until all channels are closed, but no longer than a time.
func (e *engine) await(ctx context.Context, all []<-chan struct{}, atMost time.Duration) {
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	for _, c := range all {
		select {
		case <-c:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		case <-e.done:
			return
		}
	}
}

// restore opens the addresses known again that the firewall has lost. It
// costs little if it has not.
func (e *engine) restore(ctx context.Context) {
	type open struct {
		name    string
		answers []learned.Answer
	}
	var all []open
	now, life := time.Now(), e.learned.Life() // it changes with e.changing held
	e.mu.Lock()
	for _, n := range e.names {
		if left := n.until.Sub(now); left > 0 && len(n.addrs) > 0 {
			all = append(all, open{n.name, answers(n.addrs, left)})
		}
	}
	e.mu.Unlock()
	next := make(chan open)
	var wg sync.WaitGroup
	for range min(parallel, len(all)) {
		wg.Go(func() {
			for o := range next {
				if err := e.learned.Learn(ctx, life, o.name, o.answers); err != nil && ctx.Err() == nil {
					e.log.Warn("addresses could not be opened", "name", o.name, "err", err)
				}
			}
		})
	}
	for _, o := range all {
		if ctx.Err() != nil {
			break
		}
		next <- o
	}
	close(next)
	wg.Wait()
}

func answers(addrs []netip.Addr, ttl time.Duration) []learned.Answer {
	list := make([]learned.Answer, len(addrs))
	for i, a := range addrs {
		list[i] = learned.Answer{Addr: a, TTL: ttl}
	}
	return list
}

// poke has the schedule looked at.
func (e *engine) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// work looks names up until ctx ends.
func (e *engine) work(ctx context.Context) {
	var lookups sync.WaitGroup
	defer lookups.Wait()
	for {
		n, pause := e.next(time.Now())
		if n != nil {
			lookups.Go(func() { e.renew(ctx, n) })
			continue
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-e.wake:
			timer.Stop()
		}
	}
}

// next is a name to look up now, or how long to wait for one.
func (e *engine) next(now time.Time) (*entry, time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.schedule) == 0 || e.busy == parallel {
		return nil, maxInterval // until woken
	}
	n := e.schedule[0]
	switch {
	case n.urgent:
	case n.due.After(now):
		return nil, n.due.Sub(now)
	case e.busy >= ordinary:
		return nil, maxInterval
	}
	e.schedule.remove(n)
	e.busy++
	e.asked++
	return n, 0
}

// renew looks a name up, opens its addresses until it is looked up again, and
// says when that is.
func (e *engine) renew(ctx context.Context, n *entry) {
	life := e.learned.Life()
	f, err := e.lookup(ctx, n.name)
	f.addrs = slices.DeleteFunc(f.addrs, func(a netip.Addr) bool { return !ruleset.Learnable(a) })
	pause := jitter(min(max(f.ttl, minInterval), maxInterval))
	open := pause + perName
	var learnErr error
	if len(f.addrs) > 0 && ctx.Err() == nil {
		learnErr = e.learned.Learn(ctx, life, n.name, answers(f.addrs, open))
	}
	if ctx.Err() != nil {
		return
	}
	kernel := learnErr != nil && !errors.Is(learnErr, nft.ErrNotLearning) && !errors.Is(learnErr, learned.ErrNotAllowed) && !errors.Is(learnErr, learned.ErrForgotten)
	// An address that must not be opened will be the same the next time.
	unheard := err != nil && (len(f.addrs) == 0 || !errors.Is(err, resolve.ErrNotPublic))
	now := time.Now()

	e.mu.Lock()
	e.busy--
	e.poke()
	if err != nil && len(f.addrs) == 0 {
		e.unheard++
	}
	switch {
	case kernel:
		e.failures++
	case len(f.addrs) > 0:
		e.failures = 0
	}
	giveUp := e.failures >= maxFailures
	if life != e.learned.Life() { // forgotten, whatever was found; who waits does so for what comes now
		if e.names[n.name] == n {
			n.urgent, n.again, n.due = true, false, now
			e.schedule.put(n)
		}
		e.mu.Unlock()
		return
	}
	n.refused = errors.Is(learnErr, nft.ErrNotLearning)
	if len(f.addrs) > 0 && (learnErr == nil || n.refused) {
		n.addrs, n.until = f.addrs, now.Add(open)
	}
	say := false
	if kernel || unheard {
		n.failures++
		if wait := backoff(n.failures); len(f.addrs) == 0 || wait < pause {
			pause = wait
		}
		say = n.failures == 1 && e.mayLog(now)
	} else {
		n.failures = 0
	}
	if n.refused && n.again {
		pause = 0
	}
	n.again = false
	n.settle()
	if e.names[n.name] == n {
		n.urgent, n.due = false, now.Add(pause)
		e.schedule.put(n)
	}
	e.mu.Unlock()

	if say {
		e.log.Warn("the addresses of a name are not renewed", "name", n.name, "err", errors.Join(err, learnErr))
	}
	if giveUp {
		e.failed(fmt.Errorf("the firewall takes no addresses: %w", learnErr))
	}
}

// mayLog reports whether another name that fails is worth a line: all of them
// do when the network is down. e.mu is held.
func (e *engine) mayLog(now time.Time) bool {
	if now.Sub(e.logged) >= time.Minute {
		e.logged, e.lines = now, 0
	}
	e.lines++
	return e.lines <= maxLines
}

// ask looks a name up with the host's name servers.
func (e *engine) ask(ctx context.Context, name string) (found, error) {
	conf, err := e.servers.Config()
	if err != nil {
		return found{}, err
	}
	e.mu.Lock()
	if e.resolver == nil || !slices.Equal(e.resolver.Servers, conf.Servers) {
		e.resolver = &resolve.Resolver{Servers: conf.Servers, PerName: perName, Total: 2 * perName}
	}
	r := e.resolver
	e.mu.Unlock()
	res := r.Lookup(ctx, []string{name}, nil)
	f := found{res.ByName[name], res.TTL[name]}
	for _, x := range res.Failed {
		err = x.Err
	}
	return f, err
}

// Names implements names.Service. This tier does not see what the container
// asks for: they are the names on its lists that lead to the address.
func (e *engine) Names(addr netip.Addr) []names.Name { return e.learned.Names(addr) }

// Addresses implements names.Service.
func (e *engine) Addresses(name string) []netip.Addr { return e.learned.Addresses(name) }

// Status implements names.Service. Questions are lookups.
func (e *engine) Status() names.Status {
	s := names.Status{Tier: string(bundle.Static), Upstreams: []string{}, Learned: e.learned.Len()}
	if conf, err := e.servers.Config(); err == nil {
		for _, a := range conf.Servers {
			s.Upstreams = append(s.Upstreams, a.String())
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s.Allowed, s.Denied = e.rules.Len()
	s.Questions, s.Failed = e.asked, e.unheard
	return s
}

// Watch implements names.Service. Nothing is ever seen: the container's
// questions do not pass here.
func (e *engine) Watch(ctx context.Context, _ func(names.Question) error) error {
	select {
	case <-ctx.Done():
	case <-e.done:
	}
	return nil
}

// jitter is a time or up to a tenth more, so that what was asked for at once
// is not so again for ever.
func jitter(d time.Duration) time.Duration { return d + rand.N(d/10+1) }
