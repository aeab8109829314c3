package dnsmasq

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// rules are a container's lists of names. They do not change.
type rules struct {
	names   *policy.Names
	listed  []string        // every name with an entry, once, in the order of the lists
	allow   map[string]bool // of these, those with an entry that allows; the others are false
	resolve bool            // names on no list are resolved all the same
	ignored []error         // entries that are not used
}

// readRules reads a bundle's lists.
func readRules(b *bundle.Bundle) (*rules, error) {
	profile, err := b.ProfileDomains()
	if err != nil {
		return nil, err
	}
	live, err := b.LiveDomains()
	if err != nil {
		return nil, err
	}
	denied, err := b.DeniedDomains()
	if err != nil {
		return nil, err
	}
	resolve, err := b.ResolveUnlisted()
	if err != nil {
		return nil, err
	}
	open, err := b.Open()
	if err != nil {
		return nil, err
	}
	return newRules(profile, live, denied, resolve || open)
}

func newRules(profile, live, denied []string, resolve bool) (r *rules, err error) {
	r = &rules{allow: make(map[string]bool), resolve: resolve}
	if r.names, r.ignored, err = policy.NewNames(profile, live, denied); err != nil {
		return nil, err
	}
	add := func(list []string, allow bool) {
		for _, s := range list {
			t, err := policy.ParseTarget(s)
			if err != nil || !t.IsName() {
				continue
			}
			if _, ok := r.allow[t.Name]; !ok {
				r.listed = append(r.listed, t.Name)
			}
			r.allow[t.Name] = r.allow[t.Name] || allow
		}
	}
	add(profile, true)
	add(live, true)
	add(denied, false)
	return r, nil
}

// below is a name that stands for those below another one that have no entry
// of their own: it cannot have one.
func below(name string) string { return "*." + name }

// forwards reports whether dnsmasq is to ask for a name with an entry, and for
// those below it.
//
// An address that it is answered with enters the sets if the name or one above
// it has nftset. That cannot be limited to a name without those below it: so
// below a name that alone is allowed nothing is asked for, not even where
// names on no list are resolved.
func (r *rules) forwards(name string) (self, under bool) {
	inherited := r.inherited(name)
	is := func(d policy.Decision) bool { return d.Allowed || !d.Denied && inherited }
	dSelf, dUnder := r.names.Decide(name), r.names.Decide(below(name))
	return is(dSelf), is(dUnder) && (dUnder.Allowed || !dSelf.Allowed)
}

// inherited reports whether dnsmasq would ask for a name but for its entry.
func (r *rules) inherited(name string) bool {
	for {
		_, parent, ok := strings.Cut(name, ".")
		if !ok {
			return r.resolve
		}
		if _, ok := r.allow[parent]; ok {
			_, under := r.forwards(parent)
			return under
		}
		name = parent
	}
}

// lines are the lines of dnsmasq.conf that carry the rules out, besides the
// default for names on no list. sets is what follows an nftset's name. Where
// several lines fit a name dnsmasq goes by the longest, and "*.name" is longer
// than "name".
func (r *rules) lines(upstream netip.Addr, sets string) []string {
	server := func(name string) string { return "server=/" + name + "/" + upstream.String() }
	var ask, open []string
	for _, name := range r.listed {
		inherited := r.inherited(name)
		self, under := r.forwards(name)
		if self != inherited || under != inherited {
			if self {
				ask = append(ask, server(name))
			} else {
				ask = append(ask, "address=/"+name+"/")
			}
			switch {
			case under && !self:
				ask = append(ask, server("*."+name))
			case self && !under:
				ask = append(ask, "local=/*."+name+"/")
			}
		}
		if r.allow[name] && (r.names.Decide(name).Allowed || r.names.Decide(below(name)).Allowed) {
			open = append(open, "nftset=/"+name+"/"+sets)
		}
	}
	return slices.Concat(ask, open)
}
