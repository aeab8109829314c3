// Package resolve looks up many domain names at once in the DNS, for
// containers whose firewall is filled before they start. It asks the host's
// resolvers itself: no program is started and no C library consulted. It also
// follows the file that says which these are.
//
// It must never import anything that changes the system, nor of this project
// more than package policy.
package resolve

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/terok-ai/terok-box/applets/internal/policy"
)

// What a Resolver does if it is not told.
const (
	defaultPerName  = 2 * time.Second
	defaultTotal    = 10 * time.Second
	defaultParallel = 32
)

const (
	maxParallel = 256
	maxAddrs    = 64 // kept for a name
)

// Why a name yielded nothing, for errors.Is.
var (
	ErrNoSuchName  = errors.New("no such name")
	ErrNoAddresses = errors.New("the name has no addresses")
	ErrServer      = errors.New("the name server failed")
	ErrTimeout     = errors.New("no answer in time")
	ErrNotPublic   = errors.New("address not opened because of a name; if it is meant, allow the address itself")
)

// Resolver asks name servers.
type Resolver struct {
	Servers  []netip.AddrPort // tried in this order; one that answers is asked first from then on
	PerName  time.Duration    // how long one name may take; 0: 2 s
	Total    time.Duration    // how long all of them may take; 0: 10 s
	Parallel int              // names at a time, up to 256; 0: 32

	best atomic.Int32 // index of the server that answered last
}

// Result is what Lookup found.
type Result struct {
	Addrs  []netip.Addr            // in the order of the names, each once
	ByName map[string][]netip.Addr // by the name as given; only names that have addresses
	Failed []Failure               // in the order of the names

	// TTL is how long the addresses of ByName stay what they are, according
	// to the name server: the least of their records and of the aliases that
	// lead to them.
	TTL map[string]time.Duration
}

// Failure is what went wrong with a name. The name may have addresses
// nevertheless, if only a part went wrong.
type Failure struct {
	Name string // as given
	Err  error
}

// Lookup finds the IPv4 and IPv6 addresses of domain names. A name may have
// the forms that policy.ParseTarget reads; of *.example.com the addresses of
// example.com are found. Addresses that are not public are dropped and
// reported. What fails for a name does not keep the others from being found.
//
// progress, which may be nil, is called after each name, by one goroutine at
// a time.
func (r *Resolver) Lookup(ctx context.Context, names []string, progress func(done, total int)) Result {
	l := lookup{servers: r.Servers, perName: positive(r.PerName, defaultPerName), best: &r.best}
	total := positive(r.Total, defaultTotal)
	ctx, cancel := context.WithTimeoutCause(ctx, total,
		fmt.Errorf("%w: %v for all names have passed", ErrTimeout, total))
	defer cancel()

	names = distinct(names)
	answers := make([]answer, len(names))
	var (
		next atomic.Int64
		wg   sync.WaitGroup
		mu   sync.Mutex // for progress
		done int
	)
	for range min(positive(r.Parallel, defaultParallel), maxParallel, len(names)) {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(names) {
					return
				}
				answers[i] = l.name(ctx, names[i])
				if progress != nil {
					mu.Lock()
					done++
					progress(done, len(names))
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()

	res := Result{ByName: make(map[string][]netip.Addr), TTL: make(map[string]time.Duration)}
	seen := make(map[netip.Addr]bool)
	for i, a := range answers {
		if a.err != nil {
			res.Failed = append(res.Failed, Failure{Name: names[i], Err: a.err})
		}
		if len(a.addrs) > 0 {
			res.ByName[names[i]], res.TTL[names[i]] = a.addrs, a.ttl
		}
		for _, addr := range a.addrs {
			if !seen[addr] {
				seen[addr] = true
				res.Addrs = append(res.Addrs, addr)
			}
		}
	}
	return res
}

func positive[T int | time.Duration](v, otherwise T) T {
	if v > 0 {
		return v
	}
	return otherwise
}

func distinct(names []string) []string {
	seen := make(map[string]bool, len(names))
	var out []string
	for _, n := range names {
		if !seen[n] {
			seen[n] = true
			out = append(out, n)
		}
	}
	return out
}

// answer is what is known of a name; addresses and an error may both be set.
type answer struct {
	addrs []netip.Addr
	ttl   time.Duration // of the addresses
	err   error
}

// lookup is one run of Lookup.
type lookup struct {
	servers []netip.AddrPort
	perName time.Duration
	best    *atomic.Int32
}

// name finds the addresses of one name, IPv4 before IPv6.
func (l *lookup) name(ctx context.Context, name string) answer {
	if ctx.Err() != nil {
		return answer{err: fmt.Errorf("not asked for: %w", context.Cause(ctx))}
	}
	t, err := policy.ParseTarget(name)
	if err != nil {
		return answer{err: err}
	}
	if !t.IsName() {
		return answer{err: errors.New("an address, not a name")}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, l.perName,
		fmt.Errorf("%w: %v have passed", ErrTimeout, l.perName))
	defer cancel()

	var v4, v6 answer
	var wg sync.WaitGroup
	wg.Go(func() { v4 = l.ask(ctx, t.Name, dns.TypeA) })
	wg.Go(func() { v6 = l.ask(ctx, t.Name, dns.TypeAAAA) })
	wg.Wait()
	return public(join(v4, v6))
}

// join is the answer of both families. That one has no addresses is no
// failure if the other has.
func join(v4, v6 answer) answer {
	a := answer{addrs: slices.Concat(v4.addrs, v6.addrs), ttl: v4.ttl}
	if len(v4.addrs) == 0 || len(v6.addrs) > 0 && v6.ttl < v4.ttl {
		a.ttl = v6.ttl
	}
	absent := func(err error) bool {
		return errors.Is(err, ErrNoAddresses) || errors.Is(err, ErrNoSuchName)
	}
	switch {
	case len(a.addrs) > 0:
		if v4.err != nil && !absent(v4.err) {
			a.err = fmt.Errorf("no IPv4 addresses: %w", v4.err)
		}
		if v6.err != nil && !absent(v6.err) {
			a.err = fmt.Errorf("no IPv6 addresses: %w", v6.err)
		}
	case !absent(v4.err):
		a.err = v4.err
	case !absent(v6.err):
		a.err = v6.err
	case errors.Is(v4.err, ErrNoAddresses):
		a.err = v4.err
	default:
		a.err = v6.err
	}
	return a
}

// public drops what must not be opened, doubles, and what is too much.
func public(a answer) answer {
	out := answer{ttl: a.ttl, err: a.err}
	var dropped []string
	tooMany := false
	for _, addr := range a.addrs {
		switch why := policy.NotPublic(addr); {
		case slices.Contains(out.addrs, addr):
		case why != "":
			if len(dropped) < 4 { // enough for a message
				dropped = append(dropped, fmt.Sprintf("%v (%s)", addr, why))
			}
		case len(out.addrs) == maxAddrs:
			tooMany = true
		default:
			out.addrs = append(out.addrs, addr)
		}
	}
	if dropped != nil {
		out.err = also(out.err, fmt.Errorf("%s: %w", strings.Join(dropped, ", "), ErrNotPublic))
	}
	if tooMany {
		out.err = also(out.err, fmt.Errorf("more than %d addresses; the others are left out", maxAddrs))
	}
	return out
}

// also is both errors on one line; either may be nil.
func also(err, more error) error {
	switch {
	case err == nil:
		return more
	case more == nil:
		return err
	}
	return fmt.Errorf("%w; %w", err, more)
}
