package ruleset

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sample is a text in testdata: rulesets as the existing systems write them
// (.nft) and as two versions of nft list them (.list-VERSION).
func sample(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func samples(t testing.TB) []string {
	t.Helper()
	names, err := filepath.Glob("testdata/r*")
	if err != nil || len(names) < 20 {
		t.Fatalf("testdata: %v, %v", names, err)
	}
	for i := range names {
		names[i] = filepath.Base(names[i])
	}
	return names
}

// Samples mean what they say: the state is that of their name, and printing
// and reading them again changes nothing.
func TestParseSamples(t *testing.T) {
	for _, name := range samples(t) {
		t.Run(name, func(t *testing.T) {
			table := parse(t, sample(t, name))
			if diff := cmp.Diff(table, parse(t, table.String()), stateless); diff != "" {
				t.Errorf("print and parse (-before +after):\n%s", diff)
			}
			if diff := cmp.Diff(table, parse(t, table.Listing()), exact); diff != "" {
				t.Errorf("list and parse (-before +after):\n%s", diff)
			}
			word := strings.FieldsFunc(name, func(r rune) bool { return r == '-' || r == '.' })[1]
			want, err := ParseState(word)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := Verify(table, Known{}); got != want || err != nil {
				t.Errorf("state %s, want %s: %v", got, want, err)
			}
			if strings.HasSuffix(name, ".list-1.0.6") {
				if diff := cmp.Diff(sample(t, name), table.Listing()); diff != "" {
					t.Errorf("listing (-nft +ours):\n%s", diff)
				}
			}
		})
	}
}

// What nft lists is what it was given, but for permanent elements in a set with
// a default timeout, which nft 1.0.6 lets expire.
func TestParseListingsOfSamples(t *testing.T) {
	for _, name := range samples(t) {
		base, version, ok := strings.Cut(name, ".list-")
		if !ok {
			continue
		}
		want := parse(t, sample(t, base+".nft"))
		got := parse(t, sample(t, name))
		for i := range want.Sets {
			for j := range want.Sets[i].Elements {
				if e := &want.Sets[i].Elements[j]; e.Timeout == Permanent {
					e.Timeout = 0
				}
			}
		}
		if diff := cmp.Diff(want, got, stateless); diff != "" {
			t.Errorf("%s as nft %s lists it (-want +got):\n%s", base, version, diff)
		}
		if c := Diff(got, want); !c.Empty() {
			t.Errorf("%s as nft %s lists it: %s", base, version, c)
		}
	}
}

func TestParsePrinted(t *testing.T) {
	for seed := range uint64(1000) {
		table := newRandom(seed).table(t)
		got, err := Parse(table.String())
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, table)
		}
		if diff := cmp.Diff(table, got, exact); diff != "" {
			t.Fatalf("seed %d (-want +got):\n%s", seed, diff)
		}
	}
}

// minimal is a text with room for something in a set, in output and at the end.
func minimal(set, rule, after string) string {
	return "table inet terok_shield {\n" +
		"\tset s { type ipv4_addr; flags interval,timeout; timeout 30m\n" + set + "\n}\n" +
		"\tset s6 { type ipv6_addr; flags interval; }\n" +
		"\tchain output {\n\t\ttype filter hook output priority filter; policy drop;\n" + rule + "\n}\n" +
		"\tchain input {\n\t\ttype filter hook input priority filter; policy drop;\n}\n}\n" + after
}

func TestParseElements(t *testing.T) {
	host := func(s string) Range { return Range{addr(s), addr(s)} }
	for name, tt := range map[string]struct {
		set, after string
		want       []Element
	}{
		"one":          {set: "elements = { 192.0.2.1 }", want: []Element{{Range: host("192.0.2.1")}}},
		"prefix":       {set: "elements = { 10.0.0.0/8 }", want: []Element{{Range: Range{addr("10.0.0.0"), addr("10.255.255.255")}}}},
		"range":        {set: "elements = { 10.0.0.1-10.0.0.3 }", want: []Element{{Range: Range{addr("10.0.0.1"), addr("10.0.0.3")}}}},
		"sorted":       {set: "elements={192.0.2.2,\n192.0.2.1\n}", want: []Element{{Range: host("192.0.2.1")}, {Range: host("192.0.2.2")}}},
		"timeout":      {set: "elements = { 192.0.2.1 timeout 1h2m expires 5s20ms }", want: []Element{{host("192.0.2.1"), 62 * time.Minute, 5020 * time.Millisecond}}},
		"default":      {set: "elements = { 192.0.2.1 timeout 1800s }", want: []Element{{Range: host("192.0.2.1")}}},
		"zero":         {set: "elements = { 192.0.2.1 timeout 0s }", want: []Element{{host("192.0.2.1"), Permanent, 0}}},
		"never":        {set: "elements = { 192.0.2.1 timeout never }", want: []Element{{host("192.0.2.1"), Permanent, 0}}},
		"command":      {after: "add element inet terok_shield s { 192.0.2.1, 192.0.2.2 }", want: []Element{{Range: host("192.0.2.1")}, {Range: host("192.0.2.2")}}},
		"both":         {set: "elements = { 192.0.2.1 }", after: "add element inet terok_shield s { 192.0.2.2 };\n", want: []Element{{Range: host("192.0.2.1")}, {Range: host("192.0.2.2")}}},
		"contained":    {set: "elements = { 8.8.8.8 timeout 0s, 8.8.8.0/24 timeout 0s }", want: []Element{{Range{addr("8.8.8.0"), addr("8.8.8.255")}, Permanent, 0}}},
		"overlap":      {set: "elements = { 8.8.8.0-8.8.8.9 timeout 0s, 8.8.8.7-8.8.9.1 timeout 0s }", want: []Element{{Range{addr("8.8.8.0"), addr("8.8.9.1")}, Permanent, 0}}},
		"bridge":       {set: "elements = { 8.8.8.0/24 timeout 0s, 8.8.8.7 timeout 0s, 8.8.8.9-8.8.9.9 timeout 0s }", want: []Element{{Range{addr("8.8.8.0"), addr("8.8.9.9")}, Permanent, 0}}},
		"adjacent":     {set: "elements = { 8.8.8.0/31, 8.8.8.2/31 }", want: []Element{{Range: Range{addr("8.8.8.0"), addr("8.8.8.1")}}, {Range: Range{addr("8.8.8.2"), addr("8.8.8.3")}}}},
		"twice":        {set: "elements = { 8.8.8.8, 8.8.8.8 }", want: []Element{{Range: host("8.8.8.8")}}},
		"twice leased": {set: "elements = { 8.8.8.8 timeout 5m expires 1m, 8.8.8.8 timeout 5m expires 2m }", want: []Element{{host("8.8.8.8"), 5 * time.Minute, 2 * time.Minute}}},
		"comment":      {set: "elements = { # none of }, é\n\t8.8.8.8, # }\n 8.8.4.4 }#", want: []Element{{Range: host("8.8.4.4")}, {Range: host("8.8.8.8")}}},
	} {
		t.Run(name, func(t *testing.T) {
			got := parse(t, minimal(tt.set, "", tt.after)).Set("s").Elements
			if diff := cmp.Diff(tt.want, got, exact); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseRules(t *testing.T) {
	for text, want := range map[string]Rule{
		`oifname "lo" accept`:                           accept(OIf("lo")),
		`iifname "eth0.1:2" drop`:                       {Match: []Match{IIf("eth0.1:2")}, Verdict: Drop},
		`ct state related , established accept`:         accept(CTEstablished | CTRelated),
		`ct state new,invalid drop # comment`:           {Match: []Match{CTNew | CTInvalid}, Verdict: Drop},
		"\tudp  dport\t53   ip daddr 192.0.2.53 accept": accept(DPort{UDP, 53}, host(addr("192.0.2.53"))),
		`ip daddr 192.0.2.53/32 tcp dport 65535 accept`: accept(host(addr("192.0.2.53")), DPort{TCP, 65535}),
		`ip6 daddr 2001:DB8:0::/32 accept`:              accept(Daddr(prefixes("2001:db8::/32")[0])),
		`ip6 daddr @s6 counter`:                         {Match: []Match{DaddrIn{"s6", true}}, Counted: true},
		`ip saddr @s drop`:                              {Match: []Match{SaddrIn{"s", false}}, Verdict: Drop},
		`icmpv6 type nd-router-advert accept`:           accept(NDRouterAdvert),
		`icmpv6 type 128 accept`:                        accept(ICMPv6(128)),
		`limit rate 7/second burst 1 packets accept`:    {Limit: Limit{Rate: 7, Burst: 1}, Verdict: Accept},
		`log group 100 prefix "TEROK_SHIELD_DOWN: "`:    {Log: LogDown},
		`ip daddr @s limit rate over 100/second burst 200 packets log prefix "TEROK_SHIELD_DENIED: " group 100 counter packets 7 bytes 18446744073709551615 reject with icmpx admin-prohibited`: {
			Match: []Match{DaddrIn{"s", false}}, Limit: over, Log: LogDenied, Counted: true, Packets: 7, Bytes: 1<<64 - 1, Verdict: Reject},
	} {
		table := parse(t, minimal("", text, ""))
		if diff := cmp.Diff([]Rule{want}, table.Output.Rules, exact); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
	}
}

// Every refusal says in one line what is wrong and where.
func TestParseRefuses(t *testing.T) {
	const head = "table inet terok_shield {\n"
	chains := strings.TrimPrefix(minimal("", "", ""), head)
	for name, tt := range map[string]struct{ text, want string }{
		// The outermost.
		"empty":             {"", "line 1: want a table first, not the end of the text"},
		"comment only":      {"# nothing\n", "line 2: want a table first, not the end of the text"},
		"delete":            {"delete table inet terok_shield\n" + minimal("", "", ""), `line 1: want a table first, not "delete"`},
		"add table":         {"add " + minimal("", "", ""), `line 1: want a table first, not "add"`},
		"destroy":           {"destroy table inet terok_shield\n", `line 1: want a table first, not "destroy"`},
		"flush ruleset":     {minimal("", "", "flush ruleset\n"), `line 14: want "add", not "flush"`},
		"include":           {minimal("", "", "include \"/etc/passwd\"\n"), `line 14: want "add", not "include"`},
		"define":            {"define X = 1\n" + minimal("", "", ""), `line 1: want a table first, not "define"`},
		"other family":      {"table ip terok_shield { }\n", `line 1: want "inet", not "ip"`},
		"other table":       {"table inet filter { }\n", `line 1: want "terok_shield", not "filter"`},
		"second table":      {minimal("", "", minimal("", "", "")), "line 14: a second table"},
		"second, foreign":   {minimal("", "", "table ip nat { }"), "line 14: a second table"},
		"not closed":        {"table inet terok_shield {\n", "line 2: want a set or a chain, not the end of the text"},
		"closed twice":      {minimal("", "", "}"), `line 14: want "add", not "}"`},
		"no chains":         {"table inet terok_shield { }", "line 1: output chain missing"},
		"no input":          {head + "chain output { type filter hook output priority 0; policy drop; }\n}", "line 3: input chain missing"},
		"same line":         {head + "set a { type ipv4_addr; } set b { type ipv4_addr; }\n}", `line 2: unexpected "set" after a complete statement`},
		"rule in table":     {head + "accept\n}", `line 2: want a set or a chain, not "accept"`},
		"map":               {head + "map m { }\n}", `line 2: want a set or a chain, not "map"`},
		"flowtable":         {head + "flowtable f { }\n}", `line 2: want a set or a chain, not "flowtable"`},
		"variable":          {head + "$x\n}", `line 2: want a set or a chain, not "$x"`},
		"command elsewhere": {minimal("", "", "add element ip terok_shield s { 1.2.3.4 }"), `line 14: want "inet", not "ip"`},
		"add rule":          {minimal("", "", "add rule inet terok_shield output accept"), `line 14: want "element", not "rule"`},
		"undeclared":        {minimal("", "", "add element inet terok_shield t { 1.2.3.4 }"), `line 14: set "t" is not declared`},
		"two commands":      {minimal("", "", "add element inet terok_shield s { 1.2.3.4 } add element inet terok_shield s { 1.2.3.5 }"), `line 14: unexpected "add" after a complete statement`},
		// Characters.
		"nul":                 {"table inet \x00terok_shield { }", `line 1: character '\x00' has no place in a ruleset`},
		"carriage return":     {"table inet terok_shield {\r\n}", `line 1: character '\r' has no place in a ruleset`},
		"escape in comment":   {"# \x1b[2J\n" + minimal("", "", ""), `line 1: control character '\x1b' in a comment`},
		"not ascii":           {"table inet terok_shield { é }", `line 1: character 'Ã' has no place in a ruleset`},
		"string not closed":   {minimal("", `oifname "lo`, ""), "line 8: a string without its closing quote"},
		"string at the end":   {minimal("", "", `"`), "line 14: a string without its closing quote"},
		"newline in string":   {minimal("", "oifname \"l\no\" accept", ""), `line 8: character '\n' in a string`},
		"continued line":      {minimal("", "oifname \\\n\"lo\" accept", ""), `line 8: character '\\' has no place in a ruleset`},
		"single quotes":       {minimal("", "oifname 'lo' accept", ""), `line 8: character '\'' has no place in a ruleset`},
		"too long":            {strings.Repeat(" ", maxText+1), "ruleset of 4194305 bytes, at most 4194304 are read"},
		"control in a string": {minimal("", "oifname \"l\x1bo\" accept", ""), `line 8: character '\x1b' in a string`},
		// Sets.
		"set twice":         {head + "set a { type ipv4_addr; }\nset a { type ipv4_addr; }\n}", "line 3: set a is declared twice"},
		"set name":          {head + "set a-b { type ipv4_addr; }\n}", `line 2: "a-b" cannot be the name of a set`},
		"set name digit":    {head + "set 1a { type ipv4_addr; }\n}", `line 2: "1a" cannot be the name of a set`},
		"set name long":     {head + "set " + strings.Repeat("a", 128) + " { type ipv4_addr; }\n}", `line 2: "` + strings.Repeat("a", 40) + `" cannot be the name of a set`},
		"no type":           {head + "set a { flags interval; }\n}", "line 2: set a has no type"},
		"unknown type":      {head + "set a { type ether_addr; }\n}", `line 2: set a: unknown type "ether_addr"`},
		"concatenated type": {head + "set a { type ipv4_addr . inet_service; }\n}", `line 2: unexpected "." after a complete statement`},
		"typeof":            {head + "set a { typeof ip daddr; }\n}", `line 2: set a: unknown property "typeof"`},
		"type twice":        {head + "set a { type ipv4_addr; type ipv6_addr; }\n}", `line 2: set a: a second "type"`},
		"unknown flag":      {head + "set a { type ipv4_addr; flags interval, dynamic; }\n}", `line 2: set a: unknown flag "dynamic"`},
		"flag twice":        {head + "set a { type ipv4_addr; flags interval, interval; }\n}", "line 2: set a: flag interval twice"},
		"policy":            {head + "set a { type ipv4_addr; policy memory; }\n}", `line 2: set a: unknown property "policy"`},
		"auto-merge":        {head + "set a { type ipv4_addr; flags interval; auto-merge; }\n}", `line 2: set a: unknown property "auto-merge"`},
		"string in set":     {head + "set a { \"type\" }\n}", `line 2: set a: unexpected the string "type"`},
		"bad timeout":       {head + "set a { type ipv4_addr; timeout 30; }\n}", `line 2: "30" is not a time up to 366 days`},
		"long timeout":      {head + "set a { type ipv4_addr; timeout 367d; }\n}", `line 2: "367d" is not a time up to 366 days`},
		"sum too long":      {head + "set a { type ipv4_addr; timeout 366d1ms; }\n}", `line 2: "366d1ms" is not a time up to 366 days`},
		"overflow":          {head + "set a { type ipv4_addr; timeout 18446744073709551616s; }\n}", `line 2: "18446744073709551616s" is not a time up to 366 days`},
		"units repeated":    {head + "set a { type ipv4_addr; timeout 1m1m; }\n}", `line 2: "1m1m" is not a time up to 366 days`},
		"units reversed":    {head + "set a { type ipv4_addr; timeout 1s1m; }\n}", `line 2: "1s1m" is not a time up to 366 days`},
		"no default":        {head + "set a { type ipv4_addr; timeout 0s; }\n}", "line 2: set a: a default timeout of nothing"},
		// Elements.
		"elements first":    {head + "set a { elements = { 1.2.3.4 }; type ipv4_addr; }\n}", "line 2: set a: elements before their type"},
		"no elements":       {minimal("elements = { }", "", ""), `line 3: want an address, not "}"`},
		"trailing comma":    {minimal("elements = { 1.2.3.4, }", "", ""), `line 3: want an address, not "}"`},
		"no comma":          {minimal("elements = { 1.2.3.4 1.2.3.5 }", "", ""), `line 3: want "," or "}" after an element, not "1.2.3.5"`},
		"no braces":         {minimal("elements = 1.2.3.4", "", ""), `line 3: want "{", not "1.2.3.4"`},
		"not closed list":   {minimal("elements = { 1.2.3.4", "", ""), `line 5: set s: unknown property "set"`},
		"zone":              {minimal("elements = { fe80::1%eth0 }", "", ""), `line 3: set s: address "fe80::1%eth0" has a zone`},
		"zone injection":    {minimal("", "", "add element inet terok_shield s6 { fe80::1%a } ; b }"), `line 14: set s6: address "fe80::1%a" has a zone`},
		"zone in a range":   {minimal("elements = { fe80::1%a-fe80::2%a }", "", ""), `line 3: set s: address "fe80::1%a-fe80::2%a" has a zone`},
		"leading zero":      {minimal("elements = { 01.2.3.4 }", "", ""), `line 3: set s: "01.2.3.4" is not an address`},
		"short address":     {minimal("elements = { 127.1 }", "", ""), `line 3: set s: "127.1" is not an address`},
		"hexadecimal":       {minimal("elements = { 0x7f.0.0.1 }", "", ""), `line 3: set s: "0x7f.0.0.1" is not an address`},
		"decimal":           {minimal("elements = { 2130706433 }", "", ""), `line 3: set s: "2130706433" is not an address`},
		"host name":         {minimal("elements = { example.com }", "", ""), `line 3: set s: "example.com" is not an address`},
		"host bits":         {minimal("elements = { 1.2.3.4/24 }", "", ""), `line 3: set s: prefix "1.2.3.4/24" has host bits set`},
		"long prefix":       {minimal("elements = { 1.2.3.4/33 }", "", ""), `line 3: set s: "1.2.3.4/33" is not a prefix`},
		"empty prefix":      {minimal("elements = { 1.2.3.4/ }", "", ""), `line 3: set s: "1.2.3.4/" is not a prefix`},
		"mask":              {minimal("elements = { 10.0.0.0/255.0.0.0 }", "", ""), `line 3: set s: "10.0.0.0/255.0.0.0" is not a prefix`},
		"reversed":          {minimal("elements = { 1.2.3.5-1.2.3.4 }", "", ""), `line 3: set s: range "1.2.3.5-1.2.3.4" is reversed`},
		"mixed range":       {minimal("elements = { 1.2.3.5-::1 }", "", ""), `line 3: set s: range "1.2.3.5-::1" mixes address families`},
		"half a range":      {minimal("elements = { 1.2.3.5- }", "", ""), `line 3: set s: "1.2.3.5-" is not a range of addresses`},
		"range of prefixes": {minimal("elements = { 1.2.3.0/24-1.2.4.0/24 }", "", ""), `line 3: set s: "1.2.3.0/24-1.2.4.0/24" is not a range of addresses`},
		"other family's":    {minimal("elements = { ::1 }", "", ""), "line 3: set s of ipv4_addr cannot hold ::1"},
		"mapped":            {minimal("elements = { ::ffff:1.2.3.4 }", "", ""), "line 3: set s of ipv4_addr cannot hold ::ffff:1.2.3.4"},
		"element counter":   {minimal("elements = { 1.2.3.4 counter packets 1 bytes 2 }", "", ""), `line 3: want "," or "}" after an element, not "counter"`},
		"element comment":   {minimal("elements = { 1.2.3.4 comment \"x\" }", "", ""), `line 3: want "," or "}" after an element, not "comment"`},
		"timeout twice":     {minimal("elements = { 1.2.3.4 timeout 1s timeout 2s }", "", ""), `line 3: want "," or "}" after an element, not "timeout"`},
		"timeout where":     {minimal("", "", "add element inet terok_shield s6 { ::1 timeout 0s }"), "line 5: set s6: ::1 has a timeout and the set has none"},
		"interval where":    {strings.Replace(minimal("", "", "add element inet terok_shield s6 { ::/64 }"), "flags interval; }", "}", 1), "line 5: set s6: ::/64 is not a single address and the set has no intervals"},
		"leases overlap":    {minimal("elements = { 8.8.8.0/24 timeout 0s, 8.8.8.8 timeout 5m }", "", ""), "line 2: set s: 8.8.8.0/24 and 8.8.8.8 overlap and expire at different times: give one of them"},
		"many elements":     {minimal("elements = { 1.2.3.4"+strings.Repeat(", 1.2.3.4", maxElements)+" }", "", ""), "line 3: more than 100000 elements"},
		// Chains.
		"other chain":      {head + "chain forward { }\n}", `line 2: chain "forward": only output and input are known`},
		"chain twice":      {head + "chain output { type filter hook output priority 0; policy drop; }\nchain output { type filter hook output priority 0; policy drop; }\n}", "line 3: chain output is declared twice"},
		"no hook":          {head + "chain output { }\n}", "line 2: chain output is not attached to its hook"},
		"rule first":       {head + "chain output { accept }\n}", `line 2: want "type", not "accept"`},
		"other hook":       {head + "chain output { type filter hook input priority 0; policy drop; }\n}", `line 2: want "output", not "input"`},
		"other type":       {head + "chain output { type nat hook output priority 0; policy drop; }\n}", `line 2: want "filter", not "nat"`},
		"other priority":   {head + "chain output { type filter hook output priority 10; policy drop; }\n}", `line 2: chain output: want priority filter or 0, not "10"`},
		"filter + 1":       {head + "chain output { type filter hook output priority filter + 1; policy drop; }\n}", `line 2: want ";" and the policy, not "+"`},
		"no policy":        {head + "chain output { type filter hook output priority 0; accept; }\n}", `line 2: want "policy", not "accept"`},
		"no policy at all": {head + "chain output { type filter hook output priority 0 }\n}", `line 2: want ";" and the policy, not "}"`},
		"unknown policy":   {head + "chain output { type filter hook output priority 0; policy reject; }\n}", `line 2: chain output: unknown policy "reject"`},
		"second policy":    {minimal("", "policy accept;", ""), `line 8: chain output: a second "policy"`},
		"second hook":      {minimal("", "type filter hook output priority 0; policy accept;", ""), `line 8: chain output: a second "type"`},
		"device":           {head + "chain output { type filter hook output device \"eth0\" priority 0; policy drop; }\n}", `line 2: want "priority", not "device"`},
		// Rules.
		"jump":              {minimal("", "jump other", ""), `line 8: unknown statement "jump"`},
		"goto":              {minimal("", "oifname \"lo\" goto other", ""), `line 8: unknown statement "goto"`},
		"return":            {minimal("", "return", ""), `line 8: unknown statement "return"`},
		"continue":          {minimal("", "continue", ""), `line 8: unknown statement "continue"`},
		"queue":             {minimal("", "queue num 0", ""), `line 8: unknown statement "queue"`},
		"masquerade":        {minimal("", "masquerade", ""), `line 8: unknown statement "masquerade"`},
		"meta":              {minimal("", "meta skuid 0 accept", ""), `line 8: unknown statement "meta"`},
		"mark":              {minimal("", "ct mark 1 accept", ""), `line 8: want "state", not "mark"`},
		"source":            {minimal("", "udp sport 53 accept", ""), `line 8: want "dport", not "sport"`},
		"source address":    {minimal("", "ip saddr 10.0.0.1 accept", ""), `line 8: a source is only looked up in a set, not compared with "10.0.0.1"`},
		"negation":          {minimal("", "ip daddr != 10.0.0.1 accept", ""), `line 8: "!" is not an address`},
		"anonymous set":     {minimal("", "tcp dport { 80, 443 } accept", ""), `line 8: want a number, not "{"`},
		"anonymous ct":      {minimal("", "ct state { established, related } accept", ""), `line 8: want a connection state, not "{"`},
		"map lookup":        {minimal("", "ip daddr vmap @m", ""), `line 8: "vmap" is not an address`},
		"port range":        {minimal("", "tcp dport 80-90 accept", ""), `line 8: "80-90" is not a number up to 65535`},
		"port name":         {minimal("", "tcp dport https accept", ""), `line 8: "https" is not a number up to 65535`},
		"port 0":            {minimal("", "tcp dport 0 accept", ""), "line 8: port 0"},
		"port 65536":        {minimal("", "tcp dport 65536 accept", ""), `line 8: "65536" is not a number up to 65535`},
		"port 080":          {minimal("", "tcp dport 080 accept", ""), `line 8: "080" is not a number up to 65535`},
		"port +80":          {minimal("", "tcp dport +80 accept", ""), `line 8: "+80" is not a number up to 65535`},
		"daddr range":       {minimal("", "ip daddr 10.0.0.1-10.0.0.9 accept", ""), `line 8: "10.0.0.1-10.0.0.9" is not an address`},
		"daddr family":      {minimal("", "ip daddr ::1 accept", ""), "line 8: ip cannot be compared with ::1/128"},
		"daddr mapped":      {minimal("", "ip daddr ::ffff:10.0.0.1 accept", ""), "line 8: ip cannot be compared with ::ffff:10.0.0.1/128"},
		"daddr zone":        {minimal("", "ip6 daddr fe80::1%eth0 accept", ""), `line 8: address "fe80::1%eth0" has a zone`},
		"daddr host bits":   {minimal("", "ip daddr 10.0.0.1/8 accept", ""), `line 8: prefix "10.0.0.1/8" has host bits set`},
		"daddr twice":       {minimal("", "ip daddr 10.0.0.1 ip daddr @s accept", ""), "line 8: a second match of the same kind: ip daddr @s"},
		"set undeclared":    {minimal("", "ip daddr @allow_v4 accept", ""), `line 8: set "allow_v4" is not declared`},
		"set family":        {minimal("", "ip daddr @s6 accept", ""), "line 8: set s6 holds ipv6_addr"},
		"interface bare":    {minimal("", "oifname lo accept", ""), `line 8: want an interface's name in quotes, not "lo"`},
		"interface any":     {minimal("", `oifname "*" accept`, ""), `line 8: "*" is not the name of one interface`},
		"interface many":    {minimal("", `oifname "l*" accept`, ""), `line 8: "l*" is not the name of one interface`},
		"interface empty":   {minimal("", `oifname "" accept`, ""), `line 8: "" is not the name of one interface`},
		"interface long":    {minimal("", `oifname "0123456789abcdef" accept`, ""), `line 8: "0123456789abcdef" is not the name of one interface`},
		"interface index":   {minimal("", `oif "lo" accept`, ""), `line 8: unknown statement "oif"`},
		"ct unknown":        {minimal("", "ct state untracked accept", ""), `line 8: unknown or repeated connection state "untracked"`},
		"ct repeated":       {minimal("", "ct state new,new accept", ""), `line 8: unknown or repeated connection state "new"`},
		"icmpv6 unknown":    {minimal("", "icmpv6 type nd-redirect accept", ""), `line 8: "nd-redirect" is not a number up to 255`},
		"after verdict":     {minimal("", "accept drop", ""), `line 8: "drop" cannot follow what stands before it`},
		"counter after":     {minimal("", "accept counter", ""), `line 8: "counter" cannot follow what stands before it`},
		"counter twice":     {minimal("", "counter counter accept", ""), `line 8: "counter" cannot follow what stands before it`},
		"match after log":   {minimal("", `log prefix "TEROK_SHIELD_BLOCKED: " group 100 ip daddr 10.0.0.1 drop`, ""), `line 8: "ip" cannot follow what stands before it`},
		"log text":          {minimal("", `log prefix "hello" group 100`, ""), `line 8: unknown log prefix "hello"`},
		"log twice":         {minimal("", `log prefix "TEROK_SHIELD_DOWN: " group 100 group 100`, ""), `line 8: unknown statement "group"`},
		"log group":         {minimal("", `log prefix "TEROK_SHIELD_DOWN: " group 5`, ""), "line 8: log group 5, want 100"},
		"log no group":      {minimal("", `log prefix "TEROK_SHIELD_DOWN: "`, ""), "line 8: a log statement needs one prefix and one group, not the end of the line"},
		"log level":         {minimal("", `log level debug`, ""), `line 8: a log statement needs one prefix and one group, not "level"`},
		"log snaplen":       {minimal("", `log prefix "TEROK_SHIELD_DOWN: " group 100 snaplen 5`, ""), `line 8: unknown statement "snaplen"`},
		"limit minute":      {minimal("", "limit rate 100/minute burst 200 packets accept", ""), `line 8: "100/minute" is not a rate of packets per second`},
		"limit bytes":       {minimal("", "limit rate 100 kbytes/second accept", ""), `line 8: "100" is not a rate of packets per second`},
		"limit 0":           {minimal("", "limit rate 0/second burst 200 packets accept", ""), `line 8: "0/second" is not a rate of packets per second`},
		"limit no burst":    {minimal("", "limit rate 100/second accept", ""), `line 8: want "burst", not "accept"`},
		"limit name":        {minimal("", "limit name \"x\" accept", ""), `line 8: want "rate", not "name"`},
		"plain reject":      {minimal("", "reject", ""), `line 8: want "with", not the end of the line`},
		"tcp reset":         {minimal("", "reject with tcp reset", ""), `line 8: want "icmpx", not "tcp"`},
		"other code":        {minimal("", "reject with icmpx port-unreachable", ""), `line 8: want "admin-prohibited", not "port-unreachable"`},
		"counter name":      {minimal("", `counter name "x"`, ""), `line 8: unknown statement "name"`},
		"counter half":      {minimal("", "counter packets 5 accept", ""), `line 8: want "bytes", not "accept"`},
		"counter overflow":  {minimal("", "counter packets 18446744073709551616 bytes 0", ""), `line 8: "18446744073709551616" is not a number up to 18446744073709551615`},
		"string statement":  {minimal("", `"accept"`, ""), `line 8: want a statement, not the string "accept"`},
		"rule comment":      {minimal("", `accept comment "x"`, ""), `line 8: unknown statement "comment"`},
		"many rules":        {minimal("", strings.Repeat("accept\n", maxRules+1), ""), "line 1008: more than 1000 rules"},
		"semicolon for end": {head + chains + "add element inet terok_shield s { 1.2.3.4; 1.2.3.5 }", `line 14: want "," or "}" after an element, not ";"`},
	} {
		t.Run(name, func(t *testing.T) {
			table, err := Parse(tt.text)
			if err == nil {
				t.Fatalf("read as:\n%.2000s", table)
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
				t.Errorf("more than a line of text: %q", err)
			}
		})
	}
}

// An error never repeats more than a glimpse of a hostile text.
func TestParseErrorsAreShort(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for _, text := range []string{
		long, "table inet " + long, minimal("elements = { "+long+" }", "", ""), minimal("elements = { "+long+"-"+long+" }", "", ""),
		minimal("", long, ""), minimal("", `oifname "`+long+`"`, ""), minimal("", "tcp dport "+long, ""),
		minimal("", "ip daddr "+long, ""), minimal("", "ip daddr @"+long, ""), minimal("", "ip daddr "+long+"%", ""),
		minimal("", `log prefix "`+long+`"`, ""), minimal("", "limit rate "+long, ""), minimal("", "ct state "+long, ""),
		minimal("", "icmpv6 type "+long, ""), minimal("", "counter packets "+long, ""), minimal("timeout "+long, "", ""),
		minimal(long, "", ""), minimal("elements = { 1.2.3.4 timeout "+long+" }", "", ""), minimal("", "", "add element inet terok_shield "+long),
		"table inet terok_shield { chain " + long, "table inet terok_shield { set " + long,
		"table inet terok_shield { set a { type " + long, "table inet terok_shield { set a { flags " + long,
	} {
		if _, err := Parse(text); err == nil || len(err.Error()) > 250 {
			t.Errorf("%.60q…: %.500v", text, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range samples(f) {
		f.Add(sample(f, name))
	}
	for _, s := range []State{Up, Down, Disengaged, Quarantine} {
		f.Add(build(f, s, full).String())
	}
	f.Add(minimal("elements = { 1.2.3.4-1.2.3.9 timeout 1h expires 3s, 10.0.0.0/8 timeout 0s }", "limit rate 1/second burst 2 packets", "add element inet terok_shield s6 { ::1 };"))
	f.Fuzz(func(t *testing.T, text string) {
		table, err := Parse(text)
		if err != nil {
			if table != nil || err.Error() == "" || len(err.Error()) > 1000 {
				t.Fatalf("%v, %v", table, err)
			}
			return
		}
		again, err := Parse(table.String())
		if err != nil {
			t.Fatalf("%v\n%s", err, table)
		}
		if diff := cmp.Diff(table, again, stateless); diff != "" {
			t.Fatalf("print and parse (-before +after):\n%s", diff)
		}
		if again, err = Parse(table.Listing()); err != nil {
			t.Fatalf("%v\n%s", err, table.Listing())
		}
		if diff := cmp.Diff(table, again, exact); diff != "" {
			t.Fatalf("list and parse (-before +after):\n%s", diff)
		}
		if c := Diff(table, again); !c.Empty() {
			t.Fatal(c)
		}
		state, err := Verify(table, Known{})
		if (state == Error) != (err != nil) {
			t.Fatalf("%s, %v", state, err)
		}
		if state != Up && state != Quarantine {
			return
		}
		for _, p := range packets() {
			listed := slices.ContainsFunc(table.Sets, func(s Set) bool { return p.matches(table, DaddrIn{s.Name, s.V6}) })
			known := p.oif == "lo" || p.ct != CTNew || p.proto == protoICMPv6 || p.port == 53 || isPrivate(p.daddr)
			if !listed && !known && table.accepted(p) {
				t.Fatalf("%s lets %s out:\n%s", state, p, table)
			}
		}
	})
}
