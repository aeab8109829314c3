package dnsmasq

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/wire/bundle"
)

var ask53 = netip.MustParseAddr(upstream)

func mustRules(t *testing.T, profile, live, denied []string, resolve bool) *rules {
	t.Helper()
	r, err := newRules(profile, live, denied, resolve)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The whole configuration of a bundle of ours.
func TestConf(t *testing.T) {
	b, err := bundle.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, err := range []error{
		b.SetProfileDomains([]string{"example.com", "*.wild.test", "=exact.test", "no name"[:2]}),
		b.SetLiveDomains([]string{"Live.test", "example.com", "back.denied.test"}),
		b.SetDeniedDomains([]string{"sub.example.com", "=only.wild.test", "denied.test"}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	body := func(resolve bool) string {
		if err := b.SetResolveUnlisted(resolve); err != nil {
			t.Fatal(err)
		}
		text, err := Conf(b, netip.MustParseAddr("127.0.0.1"), ask53)
		if err != nil {
			t.Fatal(err)
		}
		if a, err := listenAddress(text, b.Path()); err != nil || a.String() != "127.0.0.1" {
			t.Errorf("%v, %v", a, err)
		}
		var out []string
		for line := range strings.Lines(strings.ReplaceAll(string(text), b.Path(), "/sd")) {
			if !strings.HasPrefix(line, "bogus-nxdomain=") && !strings.HasPrefix(line, "#") {
				out = append(out, line)
			}
		}
		return strings.Join(out, "")
	}
	const learnedSets = "/4#inet#terok_shield#learned_v4,6#inet#terok_shield#learned_v6\n"
	head := func(others string) string {
		return "listen-address=127.0.0.1\nport=53\nbind-interfaces\nno-resolv\nno-hosts\n" + others +
			"\npid-file=/sd/dnsmasq.pid\nlog-queries\nlog-facility=/sd/dnsmasq.log\ncache-size=0\nmax-ttl=600\n"
	}
	open := ""
	for _, name := range []string{"example.com", "wild.test", "exact.test", "live.test", "back.denied.test"} {
		open += "nftset=/" + name + learnedSets
	}
	want := head("local=/#/") + `server=/example.com/127.0.0.2
server=/wild.test/127.0.0.2
server=/exact.test/127.0.0.2
local=/*.exact.test/
server=/live.test/127.0.0.2
server=/back.denied.test/127.0.0.2
address=/sub.example.com/
address=/only.wild.test/
server=/*.only.wild.test/127.0.0.2
` + open
	if diff := cmp.Diff(want, body(false)); diff != "" {
		t.Errorf("refuse (-want +got):\n%s", diff)
	}
	want = head("server=127.0.0.2") + `server=/exact.test/127.0.0.2
local=/*.exact.test/
server=/back.denied.test/127.0.0.2
address=/sub.example.com/
address=/only.wild.test/
server=/*.only.wild.test/127.0.0.2
address=/denied.test/
` + open
	if diff := cmp.Diff(want, body(true)); diff != "" {
		t.Errorf("resolve (-want +got):\n%s", diff)
	}
	if _, err := Conf(b, netip.MustParseAddr("127.0.0.1"), netip.Addr{}); err == nil {
		t.Error("without a name server")
	}
	if _, err := Conf(b, netip.Addr{}, ask53); err == nil {
		t.Error("without an address to listen at")
	}
}

// Another program's configuration keeps all but the names.
func TestRewrite(t *testing.T) {
	for name, tt := range map[string]struct{ old, want string }{
		"first generation": {
			conf("/sd", "169.254.1.3"),
			strings.Replace(conf("/sd", "169.254.1.3"), "nftset=/example.com/", "address=/sub.new.test/\nnftset=/new.test/", 1),
		},
		"without a log": {
			strings.ReplaceAll(conf("/sd", "127.0.0.1"), "log-", "#log-"),
			strings.Replace(strings.NewReplacer("log-queries\n", "", "log-facility=/sd/dnsmasq.log\n", "").Replace(conf("/sd", "127.0.0.1")),
				"nftset=/example.com/", "address=/sub.new.test/\nnftset=/new.test/", 1),
		},
		"second generation": {
			"listen-address=127.0.0.1\nport=53\npid-file=/sd/dnsmasq.pid\nserver=127.0.0.9\ncache-size=0\naddress=/gone.test/\naddress=/fixed.test/192.0.2.1\n" +
				"nftset=/old.test/" + setsNamed(setProject) + "\n",
			"# x\nlisten-address=127.0.0.1\nport=53\npid-file=/sd/dnsmasq.pid\nserver=127.0.0.9\ncache-size=0\naddress=/fixed.test/192.0.2.1\n" +
				"address=/sub.new.test/\nnftset=/new.test/" + setsNamed(setProject) + "\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := mustRules(t, []string{"new.test"}, nil, []string{"sub.new.test"}, false)
			next, err := rewrite([]byte(tt.old), "/sd", netip.Addr{}, r)
			if err != nil {
				t.Fatal(err)
			}
			_, got, _ := strings.Cut(string(next), "\n")
			_, want, _ := strings.Cut(tt.want, "\n")
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			again, err := rewrite(next, "/sd", netip.Addr{}, r)
			if err != nil || string(again) != string(next) {
				t.Errorf("again: %v\n%s", err, cmp.Diff(string(next), string(again)))
			}
		})
	}
	if _, err := rewrite([]byte("conf-file=/x\n"), "/sd", ask53, mustRules(t, nil, nil, nil, false)); err == nil {
		t.Error("anything is taken over")
	}
}

// dnsmasqSays is what dnsmasq makes of the lines for a name, by the longest
// that fits: whether it asks, and whether the answer opens something.
func dnsmasqSays(lines []string, name string, others bool) (asks, opens bool) {
	longest := 0
	asks = others
	for _, l := range lines {
		key, value, _ := strings.Cut(l, "=")
		domain, rest, _ := strings.Cut(strings.TrimPrefix(value, "/"), "/")
		suffix, wild := strings.CutPrefix(domain, "*")
		if !wild && name != domain && !strings.HasSuffix(name, "."+domain) || wild && !strings.HasSuffix(name, suffix) {
			continue
		}
		if key == "nftset" {
			opens = true
		} else if len(suffix) > longest {
			longest, asks = len(suffix), rest != ""
		}
	}
	return asks, opens && asks
}

// Whatever the lists are, only allowed names open something, all of them do,
// and what is denied or below a name that alone is allowed is never asked for.
func TestRandomRules(t *testing.T) {
	labels := []string{"a", "b", "c"}
	for seed := range uint64(3000) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		name := func() string {
			n := "test"
			for range 1 + rnd.IntN(3) {
				n = labels[rnd.IntN(3)] + "." + n
			}
			return n
		}
		list := func() (out []string) {
			for range rnd.IntN(4) {
				out = append(out, []string{"", "=", "*."}[rnd.IntN(3)]+name())
			}
			return out
		}
		profile, live, denied, resolve := list(), list(), list(), rnd.IntN(2) == 0
		r := mustRules(t, profile, live, denied, resolve)
		lines := r.lines(ask53, setsNamed(setLearned))
		for range 30 {
			n := name()
			d := r.names.Decide(n)
			asks, opens := dnsmasqSays(lines, n, resolve)
			if opens != d.Allowed || asks && !d.Allowed && (d.Denied || !resolve) {
				t.Fatalf("%v %v without %v, %t: %s is %+v, asked for %t, opened %t by\n%s",
					profile, live, denied, resolve, n, d, asks, opens, strings.Join(lines, "\n"))
			}
		}
	}
}

// The ranges are those of the policy, to the address.
func TestNotPublic(t *testing.T) {
	all := notPublic()
	check := func(a netip.Addr) {
		in := slices.ContainsFunc(all, func(p netip.Prefix) bool { return p.Contains(a) })
		if why := policy.NotPublic(a); in != (why != "") {
			t.Errorf("%s: %q, in a range: %t", a, why, in)
		}
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, p := range all {
		if p != p.Masked() {
			t.Errorf("%s has bits behind its length", p)
		}
		last := p.Addr().AsSlice()
		for i := p.Bits(); i < len(last)*8; i++ {
			last[i/8] |= 0x80 >> (i % 8)
		}
		end, _ := netip.AddrFromSlice(last)
		for _, a := range []netip.Addr{p.Addr(), end, p.Addr().Prev(), end.Next()} {
			if a.IsValid() && !a.Is4In6() {
				check(a)
			}
		}
	}
	for range 100_000 {
		var b [16]byte
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		switch rnd.IntN(4) {
		case 0:
			copy(b[:], []byte{0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0})
		case 1:
			b[0], b[1] = 0x20, 0x02
		case 2:
			check(netip.AddrFrom4([4]byte(b[:4])))
			continue
		}
		check(netip.AddrFrom16(b))
	}
	if len(all) > 200 {
		t.Errorf("%d ranges", len(all))
	}
}

func TestOptionsOnCommandLine(t *testing.T) {
	n := 0
	for _, o := range options(foreignTTL) {
		n += len(o) + 3
	}
	if n > maxCmdline/2 {
		t.Errorf("%d bytes", n)
	}
	if o := fmt.Sprint(options(foreignTTL)); !strings.Contains(o, "max-ttl=60 ") || !strings.Contains(o, "cache-size=0 ") {
		t.Error(o)
	}
}
