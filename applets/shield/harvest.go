package shield

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/audit"
	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/wire/bundle"
)

type harvestCmd struct {
	Container container     `arg:"" complete:"containers" help:"Container name or id."`
	Since     time.Duration `placeholder:"DURATION" help:"Only the last while, like 90m or 24h."`
	JSON      bool          `name:"json" xor:"form" help:"Print a JSON array."`
	Profile   bool          `xor:"form" help:"Print a profile that would allow it, to be read and thinned out."`
}

// maxHarvest is more lines than two logs of the greatest size hold.
const maxHarvest = 1 << 20

// refused is what a container was refused under one name or address.
type refused struct {
	Target string   `json:"target"`
	Count  int      `json:"count"` // lines of the log: what repeats quickly is logged once
	First  string   `json:"first,omitempty"`
	Last   string   `json:"last,omitempty"`
	Ports  []string `json:"ports,omitempty"` // port/protocol; "dns" for a question that was refused
}

func (c harvestCmd) Run(a *app) (err error) {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	l, err := a.locate(cfg, c.Container)
	if err != nil {
		return err
	}
	b, err := bundle.Open(l.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	records, err := audit.Read(b, maxHarvest)
	if err != nil {
		return err
	}
	var since time.Time
	if c.Since > 0 {
		since = time.Now().Add(-c.Since)
	}
	found := harvest(records, since)
	switch {
	case c.JSON:
		return a.printJSON(found)
	case c.Profile:
		a.printf("%s", harvestProfile(l.Name, found))
	case len(found) == 0:
		fmt.Fprintf(a.env.Stderr, "Nothing was blocked, as far as the audit log of %s goes.\n", l.Name)
	default:
		w := tabwriter.NewWriter(a.env.Stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintf(w, "COUNT\tTARGET\tPORTS\tFIRST\tLAST\n")
		for _, r := range found {
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", r.Count, r.Target, strings.Join(r.Ports, ","), r.First, r.Last)
		}
		return w.Flush()
	}
	return nil
}

// harvest sums up what records say was blocked, the most frequent first.
func harvest(records []audit.Record, since time.Time) []refused {
	found := []refused{} // not null in JSON
	at := make(map[string]int)
	for _, r := range records {
		e := r.Entry()
		if e.Action != audit.Blocked || !since.IsZero() && e.Time.Before(since) {
			continue
		}
		target := harvested(e)
		if target == "" {
			continue
		}
		i, ok := at[target]
		if !ok {
			i = len(found)
			at[target] = i
			found = append(found, refused{Target: target})
		}
		f := &found[i]
		f.Count++
		if !e.Time.IsZero() {
			when := e.Time.UTC().Format(time.RFC3339)
			if f.First == "" || when < f.First {
				f.First = when
			}
			f.Last = max(f.Last, when)
		}
		if p := port(e); p != "" && !slices.Contains(f.Ports, p) && len(f.Ports) < maxShownPorts {
			f.Ports = append(f.Ports, p)
		}
	}
	for _, f := range found {
		slices.SortFunc(f.Ports, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
	}
	slices.SortFunc(found, func(a, b refused) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Target, b.Target))
	})
	return found
}

// maxShownPorts of one target; a scan would list thousands.
const maxShownPorts = 16

// harvested is the name that a line of the log is about, else the address.
// Both may be anything that a container or another program wrote: a name that
// is none, as far as it can be shown.
func harvested(e audit.Entry) string {
	if e.Domain != "" {
		if t, err := policy.ParseTarget(e.Domain); err == nil && t.IsName() && !t.Exact && !t.Wildcard {
			return t.Name
		}
		return visible(e.Domain)
	}
	if a, err := netip.ParseAddr(e.Dest); err == nil {
		return a.Unmap().WithZone("").String()
	}
	return visible(e.Dest)
}

// visible is what can be seen of s in lower case: ASCII without blanks, others
// as '?'.
func visible(s string) string {
	s = s[:min(len(s), 253)] // of a name, RFC 1035 §2.3.4
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '?'
		}
		return r
	}, strings.ToLower(s))
}

// port is how a line's port is shown; "" if there is none.
func port(e audit.Entry) string {
	switch {
	case e.Dest == "" && e.Domain != "":
		return "dns"
	case e.Port != 0 && e.Proto != "":
		return strconv.Itoa(int(e.Port)) + "/" + visible(e.Proto)
	}
	return visible(e.Proto)
}

// harvestProfile is a profile that allows what was refused. What should not be
// allowed without a thought stands in comments.
func harvestProfile(container string, found []refused) string {
	var s strings.Builder
	fmt.Fprintf(&s, "# What %s was refused, from its audit log. Read it before you use it: a name\n# covers everything below it, \"=name\" does not.\n", container)
	for _, f := range found {
		t, err := policy.ParseTarget(f.Target)
		why := ""
		switch {
		case err != nil, t.Exact, t.Wildcard, !t.IsName() && !t.Prefix.IsSingleIP():
			why = "no name or address: "
		case !t.IsName():
			if private := policy.NotPublic(t.Prefix.Addr()); private != "" {
				why = private + " address: "
			}
		}
		times := "once"
		if f.Count > 1 {
			times = fmt.Sprintf("%d times", f.Count)
		}
		fmt.Fprintf(&s, "\n# %s", times)
		if f.Last != "" {
			fmt.Fprintf(&s, ", last %s", f.Last)
		}
		if len(f.Ports) > 0 {
			fmt.Fprintf(&s, ", %s", strings.Join(f.Ports, " "))
		}
		s.WriteByte('\n')
		if why != "" {
			s.WriteString("# " + why)
		}
		s.WriteString(f.Target + "\n")
	}
	return s.String()
}
