package shield

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/applets/internal/audit"
	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// records are lines of a log as a program that means no good writes them.
func records(t testing.TB, entries ...audit.Entry) []audit.Record {
	t.Helper()
	b, err := bundle.Create(filepath.Join(t.TempDir(), "sd"))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, e := range entries {
		if err := audit.Append(b, e); err != nil {
			t.Fatal(err)
		}
	}
	rs, err := audit.Read(b, len(entries))
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

func blocked(minute int, domain, dest string, port uint16, proto string) audit.Entry {
	return audit.Entry{
		Time: noon.Add(time.Duration(minute) * time.Minute), Container: "c", Action: audit.Blocked,
		Domain: domain, Dest: dest, Port: port, Proto: proto,
	}
}

func TestHarvest(t *testing.T) {
	rs := records(t,
		blocked(0, "", "203.0.113.9", 443, "tcp"),
		blocked(1, "api.example.com", "", 53, "udp"), // a refused question
		blocked(2, "API.example.com.", "203.0.113.1", 443, "tcp"),
		blocked(3, "api.example.com", "203.0.113.2", 80, "tcp"),
		audit.Entry{Action: audit.Allowed, Dest: "203.0.113.7", Detail: "target=203.0.113.7"},
		blocked(4, "", "10.0.0.5", 22, "tcp"),
		blocked(5, "", "2001:db8::1", 0, "58"),
		blocked(6, "x\x1b[31m y\u202e", "", 53, "udp"),
		blocked(7, "", "", 0, ""),
	)
	want := []refused{
		{"api.example.com", 3, "2026-03-04T12:01:00Z", "2026-03-04T12:03:00Z", []string{"dns", "80/tcp", "443/tcp"}},
		{"10.0.0.5", 1, "2026-03-04T12:04:00Z", "2026-03-04T12:04:00Z", []string{"22/tcp"}},
		{"2001:db8::1", 1, "2026-03-04T12:05:00Z", "2026-03-04T12:05:00Z", []string{"58"}},
		{"203.0.113.9", 1, "2026-03-04T12:00:00Z", "2026-03-04T12:00:00Z", []string{"443/tcp"}},
		{"x?[31m?y?", 1, "2026-03-04T12:06:00Z", "2026-03-04T12:06:00Z", []string{"dns"}},
	}
	if d := cmp.Diff(want, harvest(rs, time.Time{})); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if got := harvest(rs, noon.Add(4*time.Minute)); len(got) != 3 || got[0].Target != "10.0.0.5" {
		t.Errorf("since then: %+v", got)
	}
	profile := harvestProfile("c", want)
	wantProfile := `# What c was refused, from its audit log. Read it before you use it: a name
# covers everything below it, "=name" does not.

# 3 times, last 2026-03-04T12:03:00Z, dns 80/tcp 443/tcp
api.example.com

# once, last 2026-03-04T12:04:00Z, 22/tcp
# private address: 10.0.0.5

# once, last 2026-03-04T12:05:00Z, 58
2001:db8::1

# once, last 2026-03-04T12:00:00Z, 443/tcp
203.0.113.9

# once, last 2026-03-04T12:06:00Z, dns
# no name or address: x?[31m?y?
`
	if d := cmp.Diff(wantProfile, profile); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

// Whatever a container asked for or another program wrote into the log, the
// profile can be read as one, and allows nothing that was not shown.
func FuzzHarvest(f *testing.F) {
	f.Add("api.example.com", "203.0.113.1", "tcp", uint16(443))
	f.Add("*.example.com\n0.0.0.0/0", "", "udp\n::/0", uint16(53))
	f.Add("", "0.0.0.0/0", "x", uint16(0))
	f.Add("", "fe80::1%eth0", "6", uint16(1))
	f.Fuzz(func(t *testing.T, domain, dest, proto string, port uint16) {
		found := harvest(records(t, blocked(0, domain, dest, port, proto)), time.Time{})
		p, err := policy.ParseProfile("p", []byte(harvestProfile("c", found)))
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Entries) > len(found) || len(found) > 1 {
			t.Fatalf("%d entries of %d", len(p.Entries), len(found))
		}
		for _, e := range p.Entries {
			if e.String() != found[0].Target {
				t.Errorf("allows %s, not %s", e, found[0].Target)
			}
			if !e.IsName() && !e.Prefix.IsSingleIP() {
				t.Errorf("allows the network %s", e)
			}
		}
		if s := fmt.Sprint(found); strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q", s)
		}
	})
}
