package shield

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/config"
	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/applets/internal/resolve"
	"github.com/terok-ai/terok-box/applets/internal/shielded"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
)

// cacheAge is how long looked-up addresses of unchanged profiles are good.
const cacheAge = time.Hour

type resolveCmd struct {
	Container container `arg:"" complete:"containers" help:"Container name or id."`
	Force     bool      `help:"Look up even if the last answer is younger than an hour."`
	Profiles  []string  `complete:"profiles" placeholder:"A,B" help:"Profiles, if not those the container was prepared with."`
	JSON      bool      `name:"json" help:"Print a JSON object."`
}

func (c resolveCmd) Run(a *app) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	r, err := a.resolve(cfg, c.Container, c.Profiles, c.Force)
	if err != nil {
		return err
	}
	if r.later > 0 {
		fmt.Fprintf(a.env.Stderr, "The addresses of %d names are found when the container asks for them.\n", r.later)
	}
	if c.JSON {
		return a.printJSON(outcome{Container: r.container, Addresses: r.addresses})
	}
	forced := ""
	if c.Force {
		forced = " (forced)"
	}
	a.printf("Resolved %d IPs for %s%s\n", len(r.addresses), r.container, forced)
	for _, s := range r.addresses {
		a.printf("  %s\n", s)
	}
	return nil
}

// resolved is what came of a look-up.
type resolved struct {
	container string   // its name
	addresses []string // that are allowed now
	later     int      // names whose addresses are found when they are asked for
}

// resolve looks the names of a container's profiles up again and applies what
// was found.
func (a *app) resolve(cfg config.Config, name container, profiles []string, force bool) (r resolved, err error) {
	l, err := a.locate(cfg, name)
	if err != nil {
		return r, err
	}
	r.container = l.Name
	b, err := bundle.Open(l.Dir)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if len(profiles) == 0 {
		if profiles, err = b.ProfileNames(); err != nil {
			return r, err
		}
	}
	if len(profiles) == 0 {
		profiles = cfg.DefaultProfiles
	}
	want, err := composed(cfg, profiles)
	if err != nil {
		return r, err
	}
	unlock, err := b.Lock(a.ctx)
	if err != nil {
		return r, err
	}
	if l.PID != 0 {
		err = b.SetUnsettled(true) // until the kernel has the addresses, too
	}
	var found []netip.Prefix
	asked := false
	if err == nil {
		asked, err = shielded.NamesAsked(b)
	}
	if err == nil {
		found, err = a.refresh(b, profiles, want, asked, force)
	}
	unlock()
	if err != nil {
		return r, err
	}
	r.addresses = make([]string, len(found))
	for i, p := range found {
		r.addresses[i] = bundle.FormatPrefix(p)
	}
	if asked {
		r.later = len(want.Names)
	}
	if l.PID == 0 {
		return r, nil
	}
	resp, err := a.execute(l, control.Request{Op: control.OpSync})
	if err != nil {
		return r, fmt.Errorf("the addresses are stored, but not in the running container: %w", err)
	}
	for _, s := range resp.Applied { // learned because of names
		if !slices.Contains(r.addresses, s) {
			r.addresses = append(r.addresses, s)
		}
	}
	return r, nil
}

// composed loads and joins profiles.
func composed(cfg config.Config, names []string) (policy.Policy, error) {
	profiles := make([]policy.Profile, 0, len(names))
	for _, n := range names {
		p, err := config.LoadProfile(cfg, n)
		if err != nil {
			return policy.Policy{}, err
		}
		profiles = append(profiles, p)
	}
	return policy.Compose(profiles), nil
}

// refresh makes the bundle's lists what the policy is now: its names, and as
// profile.allowed its addresses, with those of the names unless they are found
// when the container asks. An answer of the last hour for the same policy is
// kept; one in which a name failed is not, so the next command asks again.
func (a *app) refresh(b *bundle.Bundle, profiles []string, pol policy.Policy, asked, force bool) ([]netip.Prefix, error) {
	domains := make([]string, len(pol.Names))
	for i, t := range pol.Names {
		domains[i] = t.String()
	}
	if err := b.SetProfileDomains(domains); err != nil {
		return nil, err
	}
	if asked {
		out := dedup(slices.Clone(pol.Prefixes))
		return out, errors.Join(b.SetProfileCache(""), b.SetProfileNames(profiles), b.SetProfileAllowed(out))
	}
	key := cacheKey(pol)
	if !force {
		age, have, err := b.ProfileCache()
		if err == nil && have == key && age < cacheAge && age >= 0 {
			return b.ProfileAllowed()
		}
	}
	out := slices.Clone(pol.Prefixes)
	names := lookups(pol)
	var failed int
	if len(names) > 0 {
		found, err := a.lookup(names)
		if err != nil {
			return nil, err
		}
		for _, addr := range found.Addrs {
			out = append(out, netip.PrefixFrom(addr, addr.BitLen()))
		}
		for _, f := range found.Failed {
			a.warn(fmt.Sprintf("%s: %v", f.Name, f.Err))
		}
		failed = len(found.Failed)
	}
	out = dedup(out)
	if failed > 0 {
		key = "" // not to be used as a cache
	}
	return out, errors.Join(
		b.SetProfileCache(""), // until the list below is complete
		b.SetProfileNames(profiles),
		b.SetProfileAllowed(out),
		b.SetProfileCache(key),
	)
}

// lookup resolves names with the host's resolvers.
func (a *app) lookup(names []string) (resolve.Result, error) {
	r, err := resolve.System(shielded.ResolvConf)
	if err != nil {
		return resolve.Result{}, err
	}
	return r.Lookup(a.ctx, names, a.progress()), nil
}

// progress shows on a terminal how far a look-up of names has got.
func (a *app) progress() func(done, total int) {
	if a.embedded != nil && a.embedded.look != nil {
		return a.embedded.look
	}
	if !cmdenv.Terminal(a.env.Stderr) {
		return func(int, int) {}
	}
	return func(done, total int) {
		fmt.Fprintf(a.env.Stderr, "\rresolving %d of %d names", done, total)
		if done == total {
			fmt.Fprint(a.env.Stderr, "\r\x1b[K")
		}
	}
}

// cacheKey identifies a policy, so that a changed profile is looked up anew.
func cacheKey(pol policy.Policy) string {
	h := sha256.New()
	for _, p := range pol.Prefixes {
		fmt.Fprintln(h, p)
	}
	for _, n := range lookups(pol) {
		fmt.Fprintln(h, n)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// lookups are the names a policy needs addresses of, each once.
func lookups(pol policy.Policy) []string {
	var out []string
	seen := make(map[string]bool, len(pol.Names))
	for _, t := range pol.Names {
		if !seen[t.Name] {
			seen[t.Name] = true
			out = append(out, t.Name)
		}
	}
	return out
}

func dedup(in []netip.Prefix) []netip.Prefix {
	seen := make(map[netip.Prefix]bool, len(in))
	return slices.DeleteFunc(in, func(p netip.Prefix) bool {
		if seen[p] {
			return true
		}
		seen[p] = true
		return false
	})
}
