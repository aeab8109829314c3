package ruleset

import (
	"flag"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write "+annotatedFile)

// annotatedFile is the table for people, in nft's language.
const annotatedFile = "../../resources/ruleset.nft"

const annotatedHead = `# The firewall of a container, as terok-shield puts it into the container's own network
# namespace. This file is for reading. It is made by a test from the code that builds every
# container's table, and the test fails when the two differ:
#
#     go test ./nl/ruleset -run TestAnnotated -update
#
# The first table is that of a container that is up: one address and one network are allowed,
# one address is denied, port 8080 of the host is open, a name server may be asked (which is so in
# the tiers dnsmasq and static only). Rules are tried from the top; the first verdict counts.

`

const annotatedQuarantine = `
# The table of a container in quarantine, in which not even running connections go on:
#
`

// setComments say what the sets are for.
func setComments() map[string]string {
	return map[string]string{
		setAllow:   "what profiles and terok-shield allow open; kept over restarts",
		setDeny:    "what terok-shield deny closed, which wins over all else",
		setLearned: "addresses of allowed names, put in before the container hears of them; they expire",
	}
}

// comment says what a rule of a chain is for; "" where nobody has thought of it.
func comment(hook string, r Rule) string {
	if r.Limit.Over {
		if len(r.Match) == 0 && r.Verdict == Reject {
			return "a scan: what comes too fast is rejected without a log line"
		}
		return "the next rule without its log line, when log lines come too fast"
	}
	if len(r.Match) == 0 {
		switch {
		case r.Log == LogBlocked:
			return "everything else: logged, so that somebody is asked, and rejected"
		case r.Log == LogQuarantine:
			return "nothing gets out, and nobody is asked"
		case r.Verdict == Drop && hook == InputHook:
			return "nothing else gets in: nobody outside can begin"
		}
		return ""
	}
	set := func(name string) string { name, _, _ = strings.Cut(name, "_"); return name }
	switch m := r.Match[0].(type) {
	case OIf:
		return "the container may talk to itself; its name server is there in tier proxy"
	case IIf:
		return "the container may talk to itself"
	case CT:
		if m == CTEstablished|CTRelated {
			return "what was accepted when it began goes on, if it has not been denied since"
		}
	case ICMPv6:
		return "neighbour discovery: IPv6 does not work without"
	case DPort:
		if m.Port == 53 {
			return "the name server, in tiers where the container, or dnsmasq in it, asks one"
		}
		return "a port of the host that config.yml opens: loopback_ports"
	case Daddr:
		if r.Log == LogPrivate {
			return "private, link-local and metadata addresses, which are not asked about"
		}
	case DaddrIn:
		switch set(m.Set) {
		case setDeny:
			return "denied: before what is established, so that a deny cuts what runs"
		case setAllow:
			return "allowed, and logged once a connection"
		case setLearned:
			return "an address of an allowed name, learned a moment ago"
		}
	case SaddrIn:
		return "a denied peer of a connection that runs would go on sending"
	}
	return ""
}

// annotated is a table's text with a comment above each of its sets and rules,
// where that changes.
func annotated(t *testing.T, table *Table) string {
	t.Helper()
	var b strings.Builder
	var rules []Rule
	hook, said := "", ""
	say := func(indent, text string) {
		if text != said {
			b.WriteString(indent + "# " + text + "\n")
		}
		said = text
	}
	for line := range strings.Lines(table.String()) {
		words := strings.Fields(line)
		switch {
		case len(words) == 3 && words[0] == "set":
			name, _, _ := strings.Cut(words[1], "_")
			if setComments()[name] == "" {
				t.Errorf("nothing is said of set %s", words[1])
			}
			say("\t", setComments()[name])
		case len(words) == 3 && words[0] == "chain":
			hook, said = words[1], ""
			rules = map[string]Chain{OutputHook: table.Output, InputHook: table.Input}[hook].Rules
		case hook != "" && strings.HasPrefix(line, "\t\t") && words[0] != "type":
			if len(rules) == 0 {
				t.Fatalf("more rules are printed than there are: %s", line)
			}
			text := comment(hook, rules[0])
			if text == "" {
				t.Errorf("nothing is said of the rule %s", line)
			}
			say("\t\t", text)
			rules = rules[1:]
		}
		b.WriteString(line)
	}
	if len(rules) > 0 {
		t.Errorf("%d rules are not printed", len(rules))
	}
	return b.String()
}

// The annotated file is what the code builds, with a reason for each rule.
func TestAnnotated(t *testing.T) {
	up, err := Build(Up, Params{
		DNS: netip.MustParseAddr("169.254.1.1"), Ports: []uint16{8080}, Hosts: []netip.Addr{netip.MustParseAddr("169.254.1.2")},
		Allow: prefixes("203.0.113.0/24", "2001:db8:1::1"), Deny: prefixes("203.0.113.9"), Lifetime: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	quarantine, err := Build(Quarantine, Params{})
	if err != nil {
		t.Fatal(err)
	}
	text := annotatedHead + annotated(t, up) + annotatedQuarantine
	for line := range strings.Lines(annotated(t, quarantine)) {
		text += strings.TrimRight("#     "+line, " \n") + "\n"
	}
	if *update {
		if err := os.WriteFile(annotatedFile, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(annotatedFile)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(text, string(got)); d != "" {
		t.Errorf("%s is not what the code builds; run this test with -update (-want +got):\n%s", annotatedFile, d)
	}
	// It is what it says: without comments it is the table.
	var plain strings.Builder
	for line := range strings.Lines(string(got)) {
		if s := strings.TrimSpace(line); s != "" && s[0] != '#' || s == "" && plain.Len() > 0 {
			plain.WriteString(line)
		}
	}
	if d := cmp.Diff(up.String(), strings.TrimRight(plain.String(), "\n")+"\n"); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	// nft takes it as it is.
	if out, err := nft(t, "nft -c -f -", string(got)); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
