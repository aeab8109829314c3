package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var netipCmp = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func create(t *testing.T) *Bundle {
	t.Helper()
	b, err := Create(filepath.Join(t.TempDir(), "sd"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func put(t *testing.T, b *Bundle, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(b.Path(), name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, b *Bundle, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(b.Path(), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		p, err := ParsePrefix(s)
		if err != nil {
			panic(err)
		}
		out = append(out, p)
	}
	return out
}

func addrs(ss ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range ss {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// accessor is one file as a value: how to set it, and a reader and writer in
// the shape that all of them share.
type accessor struct {
	file   string
	absent any // what reading a missing file gives; nil: an error
	get    func(*Bundle) (any, error)
	// set writes value, which then stands as text in the file.
	set   func(*Bundle) error
	value any
	text  string
	limit int
}

func reader[T any](get func(*Bundle) (T, error)) func(*Bundle) (any, error) {
	return func(b *Bundle) (any, error) { return get(b) }
}

func writer[T any](set func(*Bundle, T) error, v T) func(*Bundle) error {
	return func(b *Bundle) error { return set(b, v) }
}

func accessors() []accessor {
	ruleset := "table inet terok_shield {\n}\n"
	dns := netip.MustParseAddr("169.254.1.1")
	ports := []uint16{1, 8080, 65535}
	ps := prefixes("192.0.2.0/24", "192.0.2.1", "2001:db8::/32", "2001:db8::1", "0.0.0.0/0", "::ffff:1.2.3.4")
	psText := "192.0.2.0/24\n192.0.2.1\n2001:db8::/32\n2001:db8::1\n0.0.0.0/0\n::ffff:102:304\n"
	ds := []string{"b.example.org", "*.a.example.org", "Mixed.Example.ORG"}
	dsText := "b.example.org\n*.a.example.org\nMixed.Example.ORG\n"
	proc := Process{PID: 4194304, Start: 1 << 60, NetNS: "4:4026531840"}
	netw := Network{Mode: "slirp4netns", Hosts: addrs("10.0.2.2", "fd00::2")}
	krun := netip.MustParseAddr("169.254.1.3")
	namer := Namer{PID: 42, Start: 7, Socket: "/run/user/1000/terok/dns/x.sock"}
	asker := Supervisor{42, 7, "/a", "/b", "/c", ""}
	return []accessor{
		{FileRuleset, nil, reader((*Bundle).Ruleset), writer((*Bundle).SetRuleset, ruleset), ruleset, ruleset, maxRuleset},
		{FileUpstreamDNS, netip.Addr{}, reader((*Bundle).UpstreamDNS), writer((*Bundle).SetUpstreamDNS, dns), dns, "169.254.1.1\n", maxSmall},
		{FileTier, Tier(""), reader((*Bundle).Tier), writer((*Bundle).SetTier, Static), Static, "dig\n", maxSmall},
		{FileLoopbackPorts, []uint16(nil), reader((*Bundle).LoopbackPorts), writer((*Bundle).SetLoopbackPorts, ports), ports, "1\n8080\n65535\n", maxList},
		{FileProfileAllowed, []netip.Prefix(nil), reader((*Bundle).ProfileAllowed), writer((*Bundle).SetProfileAllowed, ps), ps, psText, maxList},
		{FileLiveAllowed, []netip.Prefix(nil), reader((*Bundle).LiveAllowed), writer((*Bundle).SetLiveAllowed, ps), ps, psText, maxList},
		{FileDenyList, []netip.Prefix(nil), reader((*Bundle).DenyList), writer((*Bundle).SetDenyList, ps), ps, psText, maxList},
		{FileProfileDomains, []string(nil), reader((*Bundle).ProfileDomains), writer((*Bundle).SetProfileDomains, ds), ds, dsText, maxList},
		{FileLiveDomains, []string(nil), reader((*Bundle).LiveDomains), writer((*Bundle).SetLiveDomains, ds), ds, dsText, maxList},
		{FileDeniedDomains, []string(nil), reader((*Bundle).DeniedDomains), writer((*Bundle).SetDeniedDomains, ds), ds, dsText, maxList},
		{FileContainerID, "", reader((*Bundle).ContainerID), writer((*Bundle).SetContainerID, "0123456789ab"), "0123456789ab", "0123456789ab\n", maxSmall},
		{FileMetaPath, "", reader((*Bundle).MetaPath), writer((*Bundle).SetMetaPath, "/home/op/m e.json"), "/home/op/m e.json", "/home/op/m e.json", maxSmall},
		{FileProcess, Process{}, reader((*Bundle).Process), writer((*Bundle).SetProcess, proc), proc, `{"pid":4194304,"start":1152921504606846976,"netns":"4:4026531840"}` + "\n", maxSmall},
		{FileNetwork, Network{}, reader((*Bundle).Network), writer((*Bundle).SetNetwork, netw), netw, "slirp4netns\n10.0.2.2\nfd00::2\n", maxSmall},
		{FileUnlisted, false, reader((*Bundle).ResolveUnlisted), writer((*Bundle).SetResolveUnlisted, true), true, "resolve\n", maxSmall},
		{FileQuestions, DefaultQuestions, reader((*Bundle).Questions), writer((*Bundle).SetQuestions, 0), 0, "0\n", maxSmall},
		{FileListen, defaultListen, reader((*Bundle).Listen), writer((*Bundle).SetListen, krun), krun, "169.254.1.3\n", maxSmall},
		{FileNamer, Namer{}, reader((*Bundle).Namer), writer((*Bundle).SetNamer, namer), namer, `{"pid":42,"start":7,"socket":"/run/user/1000/terok/dns/x.sock"}` + "\n", maxSmall},
		{FileSupervisor, Supervisor{}, reader((*Bundle).Supervisor), writer((*Bundle).SetSupervisor, asker), asker, `{"pid":42,"start":7,"control":"/a","events":"/b","clearance":"/c","verdict":""}` + "\n", maxRecord},
		{FilePending, []byte(nil), reader((*Bundle).Pending), writer((*Bundle).SetPending, []byte("{}\n")), []byte("{}\n"), "{}\n", maxPending},
		{FileOwner, "", reader((*Bundle).Owner), writer((*Bundle).SetOwner, "/a b"), "/a b", "/a b\n", maxSmall},
		{FileDnsmasqConf, []byte(nil), reader((*Bundle).DnsmasqConf), writer((*Bundle).SetDnsmasqConf, []byte("port=53\n")), []byte("port=53\n"), "port=53\n", maxList},
	}
}

func TestRoundTrip(t *testing.T) {
	for _, a := range accessors() {
		t.Run(a.file, func(t *testing.T) {
			b := create(t)
			got, err := a.get(b)
			if a.absent == nil {
				if !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("without the file: %v", err)
				}
			} else if d := cmp.Diff(a.absent, got, netipCmp); d != "" || err != nil {
				t.Errorf("without the file: %v (-want +got)\n%s", err, d)
			}
			for range 2 { // the second one replaces
				if err := a.set(b); err != nil {
					t.Fatal(err)
				}
			}
			got, err = a.get(b)
			if d := cmp.Diff(a.value, got, netipCmp); d != "" || err != nil {
				t.Errorf("%v (-want +got)\n%s", err, d)
			}
			if d := cmp.Diff(a.text, get(t, b, a.file)); d != "" {
				t.Errorf("file (-want +got)\n%s", d)
			}
			if names := list(t, b); !slices.Equal(names, []string{a.file}) {
				t.Errorf("the directory holds %q", names)
			}
		})
	}
}

func list(t *testing.T, b *Bundle) []string {
	t.Helper()
	entries, err := os.ReadDir(b.Path())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// Other programs follow symbolic links in most files of the directory.
func TestFileRefusals(t *testing.T) {
	place := map[string]func(t *testing.T, path string) error{
		"symbolic link to outside": func(t *testing.T, path string) error {
			target := filepath.Join(t.TempDir(), "x")
			if err := os.WriteFile(target, nil, 0o600); err != nil {
				return err
			}
			return os.Symlink(target, path)
		},
		"symbolic link within": func(t *testing.T, path string) error { // os.Root alone would follow it
			if err := os.WriteFile(path+".target", []byte("1\n"), 0o600); err != nil {
				return err
			}
			return os.Symlink(filepath.Base(path)+".target", path)
		},
		"dangling symbolic link": func(t *testing.T, path string) error { return os.Symlink("none", path) },
		"FIFO":                   func(t *testing.T, path string) error { return syscall.Mkfifo(path, 0o600) },
		"directory":              func(t *testing.T, path string) error { return os.Mkdir(path, 0o700) },
		"socket": func(t *testing.T, path string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		},
	}
	for _, a := range accessors() {
		for name, do := range place {
			t.Run(a.file+"/"+name, func(t *testing.T) {
				b := create(t)
				if err := do(t, filepath.Join(b.Path(), a.file)); err != nil {
					t.Fatal(err)
				}
				if got, err := a.get(b); err == nil || errors.Is(err, fs.ErrNotExist) {
					t.Errorf("read %v, %v", got, err)
				} else if !strings.Contains(err.Error(), a.file) {
					t.Errorf("message %q does not name the file", err)
				}
			})
		}
		t.Run(a.file+"/other owner", func(t *testing.T) {
			b := create(t)
			if err := a.set(b); err != nil {
				t.Fatal(err)
			}
			b.uid++ // as if everything belonged to somebody else
			if got, err := a.get(b); err == nil || !strings.Contains(err.Error(), "belongs to uid") {
				t.Errorf("read %v, %v", got, err)
			}
		})
		t.Run(a.file+"/too large", func(t *testing.T) {
			b := create(t)
			put(t, b, a.file, "")
			if err := os.Truncate(filepath.Join(b.Path(), a.file), int64(a.limit)+1); err != nil {
				t.Fatal(err)
			}
			if got, err := a.get(b); err == nil || !strings.Contains(err.Error(), "larger than") {
				t.Errorf("read %v, %v", got, err)
			}
		})
	}
}

// A write replaces whatever is there instead of writing through it.
func TestWriteReplacesLinks(t *testing.T) {
	b := create(t)
	target := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(target, []byte("victim"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{FileDenyList, FileMetaPath} {
		if err := os.Symlink(target, filepath.Join(b.Path(), name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(target, filepath.Join(b.Path(), FileTier)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.SetDenyList(prefixes("192.0.2.1")), b.SetMetaPath("/m"), b.SetTier(Proxy)); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(target); err != nil || string(data) != "victim" {
		t.Errorf("the target is now %q, %v", data, err)
	}
	if got, err := b.DenyList(); len(got) != 1 || err != nil {
		t.Errorf("deny list %v, %v", got, err)
	}
}

func TestWriteTooLarge(t *testing.T) {
	b := create(t)
	if err := b.SetDenyList(prefixes("192.0.2.1")); err != nil {
		t.Fatal(err)
	}
	if err := b.SetDenyList(slices.Repeat(prefixes("2001:db8:1111:2222:3333:4444:5555:6666"), maxList/39+1)); err == nil {
		t.Error("a list was written that cannot be read")
	}
	if err := b.SetRuleset(strings.Repeat("x", maxRuleset+1)); err == nil {
		t.Error("a ruleset was written that cannot be read")
	}
	if got := get(t, b, FileDenyList); got != "192.0.2.1\n" {
		t.Errorf("the old list became %.100q", got)
	}
}

func TestSetInvalid(t *testing.T) {
	b := create(t)
	zone := netip.MustParseAddr("fe80::1%eth0")
	good := Process{PID: 1, Start: 1, NetNS: "1:2"}
	with := func(f func(*Process)) Process { p := good; f(&p); return p }
	for name, err := range map[string]error{
		"no DNS":             b.SetUpstreamDNS(netip.Addr{}),
		"DNS zone":           b.SetUpstreamDNS(zone),
		"tier":               b.SetTier("dig"),
		"no tier":            b.SetTier(""),
		"port 0":             b.SetLoopbackPorts([]uint16{80, 0}),
		"invalid prefix":     b.SetDenyList([]netip.Prefix{{}}),
		"two domains in one": b.SetLiveDomains([]string{"a.org\nb.org"}),
		"empty domain":       b.SetDeniedDomains([]string{""}),
		"domain is comment":  b.SetDeniedDomains([]string{"#a.org"}),
		"domain with space":  b.SetProfileDomains([]string{" a.org"}),
		"domain with ESC":    b.SetProfileDomains([]string{"a\x1b.org"}),
		"domain not UTF-8":   b.SetProfileDomains([]string{"a\xff.org"}),
		"id too short":       b.SetContainerID("0123"),
		"id path":            b.SetContainerID("../../../../../x"),
		"no meta path":       b.SetMetaPath(""),
		"meta path, 2 lines": b.SetMetaPath("/a\n/b"),
		"meta path, long":    b.SetMetaPath("/" + strings.Repeat("x", maxSmall)),
		"pid 0":              b.SetProcess(with(func(p *Process) { p.PID = 0 })),
		"pid large":          b.SetProcess(with(func(p *Process) { p.PID = 1<<22 + 1 })),
		"no start":           b.SetProcess(with(func(p *Process) { p.Start = 0 })),
		"no netns":           b.SetProcess(with(func(p *Process) { p.NetNS = "" })),
		"netns":              b.SetProcess(with(func(p *Process) { p.NetNS = "net:[4026531840]" })),
		"netns sign":         b.SetProcess(with(func(p *Process) { p.NetNS = "+1:2" })),
		"no mode":            b.SetNetwork(Network{}),
		"mode, two words":    b.SetNetwork(Network{Mode: "a b"}),
		"host zone":          b.SetNetwork(Network{Mode: "pasta", Hosts: []netip.Addr{zone}}),
		"no host":            b.SetNetwork(Network{Mode: "pasta", Hosts: []netip.Addr{{}}}),
		"two lines":          b.AppendLog(FileAuditLog, "a\nb", 100),
		"log in a directory": b.AppendLog("../x", "a", 100),
		"log is the parent":  b.AppendLog("..", "a", 100),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if names := list(t, b); names != nil {
		t.Errorf("the directory holds %q", names)
	}
}

func TestTierWords(t *testing.T) {
	b := create(t)
	for word, want := range map[string]Tier{
		"proxy": Proxy, "dnsmasq": Dnsmasq, "dnsmasq-live": Dnsmasq,
		"dig": Static, "getent": Static, "lookup": Static, "dnsmasq-static": Static,
		" dnsmasq \r\n\n": Dnsmasq, "": "", "\n": "",
	} {
		put(t, b, FileTier, word)
		if got, err := b.Tier(); got != want || err != nil {
			t.Errorf("%q is %q, %v; want %q", word, got, err, want)
		}
	}
	for _, word := range []string{"static", "DIG", "dig dig", "dnsmasq\nproxy", strings.Repeat("x", 1000), "\x1b[2J"} {
		put(t, b, FileTier, word)
		got, err := b.Tier()
		if got != "" || err == nil {
			t.Errorf("%.20q is %q, %v", word, got, err)
		} else if len(err.Error()) > 400 || strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Errorf("message is not fit for one line: %.500q", err)
		}
	}
	for tier, word := range map[Tier]string{Proxy: "proxy\n", Dnsmasq: "dnsmasq\n", Static: "dig\n"} {
		if err := b.SetTier(tier); err != nil {
			t.Fatal(err)
		}
		if got := get(t, b, FileTier); got != word {
			t.Errorf("%s is written %q", tier, got)
		}
	}
}

// A line that is no port made the commands of other programs crash.
func TestLoopbackPorts(t *testing.T) {
	b := create(t)
	for text, want := range map[string][]uint16{
		"":                         {},
		"\n":                       {},
		"80":                       {80},
		"80\r\n 443 \n\n80\n# x\n": {80, 443},
		"65535\n1\n":               {65535, 1},
	} {
		put(t, b, FileLoopbackPorts, text)
		got, err := b.LoopbackPorts()
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Errorf("%q: %v (-want +got)\n%s", text, err, d)
		}
	}
	for _, bad := range []string{"0", "65536", "-1", "+1", "8 0", "http", "80,443", "1e3", "0x50", "80/tcp", "٨٠", "True"} {
		put(t, b, FileLoopbackPorts, "22\n\n"+bad+"\n")
		got, err := b.LoopbackPorts()
		if got != nil || err == nil || !strings.Contains(err.Error(), "loopback.ports, line 3: ") {
			t.Errorf("%q: %v, %v", bad, got, err)
		}
	}
}

// A deny list of which a line is not understood is not a shorter deny list.
func TestPrefixListFailsClosed(t *testing.T) {
	b := create(t)
	lists := map[string]func() ([]netip.Prefix, error){
		FileDenyList: b.DenyList, FileLiveAllowed: b.LiveAllowed, FileProfileAllowed: b.ProfileAllowed,
	}
	for name, get := range lists {
		put(t, b, name, "# kept by hand\n 192.0.2.7/24\r\n\n2001:DB8::1/128\n10.0.0.0/255.0.0.0")
		got, err := get()
		if d := cmp.Diff(prefixes("192.0.2.0/24", "2001:db8::1", "10.0.0.0/8"), got, netipCmp); d != "" || err != nil {
			t.Errorf("%s: %v (-want +got)\n%s", name, err, d)
		}
		for _, bad := range []string{"192.0.2", "example.org", "192.0.2.1 192.0.2.2", "192.0.2.1 # x", "192.0.2.1\x00", "fe80::1%a } ; b", "fe80::1%eth0"} {
			put(t, b, name, "192.0.2.1\n"+bad+"\n192.0.2.2\n")
			got, err := get()
			if got != nil || err == nil || !strings.Contains(err.Error(), name+", line 2: ") {
				t.Errorf("%s with %q: %v, %v", name, bad, got, err)
			}
		}
	}
}

func TestDomainLists(t *testing.T) {
	b := create(t)
	put(t, b, FileProfileDomains, "\n# comment\n  a.example.org \r\n*.b.example.org\nnot_valid\n")
	got, err := b.ProfileDomains()
	if d := cmp.Diff([]string{"a.example.org", "*.b.example.org", "not_valid"}, got); d != "" || err != nil {
		t.Errorf("%v (-want +got)\n%s", err, d)
	}
	for _, bad := range []string{"a b", "a\x1b[2J", "a\xff", strings.Repeat("a", 2000)} {
		put(t, b, FileDeniedDomains, "a.org\n"+bad+"\n")
		if got, err := b.DeniedDomains(); err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%.20q: %q, %v", bad, got, err)
		}
	}
	if err := b.SetLiveDomains(nil); err != nil {
		t.Fatal(err)
	}
	if text := get(t, b, FileLiveDomains); text != "" {
		t.Errorf("an empty list is %q", text)
	}
}

func TestSmallFiles(t *testing.T) {
	b := create(t)
	for _, bad := range []string{"169.254.1.1 x", "fe80::1%eth0", "169.254.1.1\n169.254.1.2", "dns.example.org", "169.254.1.1/32"} {
		put(t, b, FileUpstreamDNS, bad)
		if got, err := b.UpstreamDNS(); got.IsValid() || err == nil {
			t.Errorf("upstream %q: %v, %v", bad, got, err)
		}
	}
	for _, bad := range []string{"abc", "0123456789ag", "0123456789ab/..", strings.Repeat("a", 65)} {
		put(t, b, FileContainerID, bad)
		if got, err := b.ContainerID(); got != "" || err == nil {
			t.Errorf("id %q: %q, %v", bad, got, err)
		}
	}
	for text, want := range map[string]string{"/m\n": "/m", "/m": "/m", "": "", "/m ": "/m "} {
		put(t, b, FileMetaPath, text)
		if got, err := b.MetaPath(); got != want || err != nil {
			t.Errorf("meta_path %q: %q, %v", text, got, err)
		}
	}
	put(t, b, FileMetaPath, "/m\n/n\n")
	if got, err := b.MetaPath(); err == nil {
		t.Errorf("two paths are %q", got)
	}
	for text, want := range map[string]Network{
		"pasta": {Mode: "pasta"}, "pasta\n": {Mode: "pasta"}, "": {}, "none\n169.254.1.2\n": {Mode: "none", Hosts: addrs("169.254.1.2")},
	} {
		put(t, b, FileNetwork, text)
		if got, err := b.Network(); err != nil || !cmp.Equal(want, got, netipCmp) {
			t.Errorf("network %q: %+v, %v", text, got, err)
		}
	}
	for _, bad := range []string{"a b", "pasta\nx", "pasta\nfe80::1%e\n", "PASTA", "pasta\n1.2.3.4/32"} {
		put(t, b, FileNetwork, bad)
		if got, err := b.Network(); err == nil {
			t.Errorf("network %q: %+v", bad, got)
		}
	}
	for _, bad := range []string{"", "12\n", "{}", `{"pid":-5,"start":1,"netns":"1:2"}`, `{"pid":1,"start":-1,"netns":"1:2"}`,
		`{"pid":"1","start":1,"netns":"1:2"}`, `{"pid":1,"start":1,"netns":"1:2"} x`, `{"pid":1,"start":1,"netns":"01:2"}`, `[]`, `null`} {
		put(t, b, FileProcess, bad)
		if got, err := b.Process(); got != (Process{}) || err == nil {
			t.Errorf("process %q: %+v, %v", bad, got, err)
		}
	}
	for range 2 {
		if err := b.RemoveProcess(); err != nil {
			t.Error(err)
		}
		if got, err := b.Process(); got != (Process{}) || err != nil {
			t.Errorf("removed process: %+v, %v", got, err)
		}
	}
}

func TestProfileAllowedTime(t *testing.T) {
	b := create(t)
	if got, err := b.ProfileAllowedTime(); !got.IsZero() || err != nil {
		t.Errorf("never written: %v, %v", got, err)
	}
	old := time.Now().Add(-2 * time.Hour).Truncate(time.Second)
	put(t, b, FileProfileAllowed, "")
	if err := os.Chtimes(filepath.Join(b.Path(), FileProfileAllowed), old, old); err != nil {
		t.Fatal(err)
	}
	if got, err := b.ProfileAllowedTime(); !got.Equal(old) || err != nil {
		t.Errorf("%v, %v; want %v", got, err, old)
	}
	if err := b.SetProfileAllowed(nil); err != nil {
		t.Fatal(err)
	}
	if got, err := b.ProfileAllowedTime(); time.Since(got).Abs() > time.Minute || err != nil {
		t.Errorf("just written: %v, %v", got, err)
	}
}

func TestCreateAndOpen(t *testing.T) {
	top := t.TempDir()
	sd := filepath.Join(top, "a", "b", "sd")
	if _, err := Open(sd); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of a missing directory: %v", err)
	}
	b, err := Create(sd)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()

	// Whatever its mode was, preparing closes it; the files stay.
	if err := os.WriteFile(filepath.Join(sd, FileTier), []byte("proxy\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []fs.FileMode{0o777, 0o720, 0o702, 0o770, 0o777 | fs.ModeSticky} {
		if err := os.Chmod(sd, mode); err != nil {
			t.Fatal(err)
		}
		if b, err := Open(sd); err == nil || !strings.Contains(err.Error(), "chmod 0700") {
			t.Errorf("Open with mode %v: %v, %v", mode, b, err)
		}
	}
	if b, err = Create(sd + "/"); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if fi, err := os.Stat(sd); err != nil || fi.Mode() != fs.ModeDir|0o700 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	for _, mode := range []fs.FileMode{0o700, 0o755, 0o750} {
		if err := os.Chmod(sd, mode); err != nil {
			t.Fatal(err)
		}
		b, err := Open(sd)
		if err != nil {
			t.Fatal(err)
		}
		if tier, err := b.Tier(); tier != Proxy || err != nil {
			t.Errorf("tier %q, %v", tier, err)
		}
		if b.Path() != sd {
			t.Errorf("path %q", b.Path())
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}

	link, file := filepath.Join(top, "link"), filepath.Join(top, "file")
	if err := errors.Join(os.Symlink(sd, link), os.WriteFile(file, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, link + "/", file} {
		if _, err := Open(path); err == nil {
			t.Errorf("opened %s", path)
		}
		if _, err := Create(path); err == nil {
			t.Errorf("created %s", path)
		}
	}

	if _, err := open(sd, os.Geteuid()+1); err == nil || !strings.Contains(err.Error(), "belongs to uid") {
		t.Errorf("opened a directory of somebody else: %v", err)
	}
}

// Other programs' files follow the umask.
func TestUmask(t *testing.T) {
	for _, mask := range []int{0o000, 0o022, 0o077, 0o777} {
		t.Run(fmt.Sprintf("%03o", mask), func(t *testing.T) {
			top := t.TempDir()
			old := syscall.Umask(mask)
			defer syscall.Umask(old)
			if mask == 0o777 { // only the last directory survives such a umask
				if err := os.Mkdir(filepath.Join(top, "sd"), 0); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(filepath.Join(top, "sd"), 0o500); err != nil {
					t.Fatal(err)
				}
			}
			b, err := Create(filepath.Join(top, "sd"))
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			for _, a := range accessors() {
				if err := a.set(b); err != nil {
					t.Fatal(err)
				}
			}
			unlock, err := b.Lock(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			unlock()
			put(t, b, FileAuditLog, "") // as another program made it
			if err := os.Chmod(filepath.Join(b.Path(), FileAuditLog), 0o666); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(b.AppendError("x"), b.AppendLog(FileAuditLog, "x", 100)); err != nil {
				t.Fatal(err)
			}
			err = filepath.WalkDir(b.Path(), func(path string, d fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				fi, err := d.Info()
				want := fs.FileMode(0o600)
				if d.IsDir() {
					want = fs.ModeDir | 0o700
				}
				if fi.Mode() != want {
					t.Errorf("%s has mode %v", path, fi.Mode())
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if n := len(list(t, b)); n != len(accessors())+3 {
				t.Errorf("%d files", n)
			}
		})
	}
}

func TestLock(t *testing.T) {
	b := create(t)
	other, err := Open(b.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	unlock, err := b.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Bundle{b, other} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, err := c.Lock(ctx)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "waiting for another command") || !strings.Contains(err.Error(), b.Path()) {
			t.Errorf("locked twice: %v", err)
		}
	}
	done := make(chan error)
	go func() {
		unlock, err := other.Lock(context.Background())
		if err == nil {
			unlock()
		}
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("did not wait: %v", err)
	case <-time.After(30 * time.Millisecond):
	}
	unlock()
	if err := <-done; err != nil {
		t.Error(err)
	}

	// A lock whose file was removed meanwhile excludes nobody: take another.
	unlock, err = b.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan struct{})
	go func() {
		close(waiting)
		unlock, err := other.Lock(context.Background())
		if err == nil {
			defer unlock()
			if ok, e := other.isCurrentLock(); !ok || e != nil {
				err = fmt.Errorf("holds the lock of a removed file: %w", e)
			}
		}
		done <- err
	}()
	<-waiting
	time.Sleep(10 * time.Millisecond)
	if err := os.Remove(filepath.Join(b.Path(), lockFile)); err != nil {
		t.Fatal(err)
	}
	unlock()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(b.Path(), lockFile)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", filepath.Join(b.Path(), lockFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Lock(t.Context()); err == nil {
		t.Error("locked through a symbolic link")
	}
}

// isCurrentLock reports whether somebody holds the lock of the named file.
func (b *Bundle) isCurrentLock() (bool, error) {
	f, err := b.openFile(lockFile, syscall.O_RDWR)
	if err != nil {
		return false, err
	}
	defer f.Close()
	free, err := tryLock(f)
	return !free, err
}

// Concurrent changes of other programs lose entries: there is no lock.
func TestTwoWriters(t *testing.T) {
	path := create(t).Path()
	const writers, each = 4, 25
	var wg sync.WaitGroup
	errs := make(chan error, writers*each)
	for w := range writers {
		wg.Go(func() {
			b, err := Open(path)
			if err != nil {
				errs <- err
				return
			}
			defer b.Close()
			for i := range each {
				errs <- func() error {
					unlock, err := b.Lock(context.Background())
					if err != nil {
						return err
					}
					defer unlock()
					list, err := b.DenyList()
					if err != nil {
						return err
					}
					p := netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, byte(w), byte(i)}), 32)
					return b.SetDenyList(append(list, p))
				}()
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	b, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if list, err := b.DenyList(); len(list) != writers*each || err != nil {
		t.Errorf("%d of %d entries, %v", len(list), writers*each, err)
	}
}

// Cleaning up after killed writers never takes a living writer's file.
func TestCleaningSparesWriters(t *testing.T) {
	b := create(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				b.removeLeftovers()
			}
		}
	})
	for i := range 500 {
		if err := b.SetContainerID(fmt.Sprintf("%012x", i)); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	wg.Wait()
	if id, err := b.ContainerID(); id != fmt.Sprintf("%012x", 499) || err != nil {
		t.Errorf("%q, %v", id, err)
	}
}

// TestKilledWriter is also the writer: it replaces a list as fast as it can
// until it is killed.
func TestKilledWriter(t *testing.T) {
	const name = "TEROK_TEST_WRITE"
	before := slices.Repeat(prefixes("192.0.2.1"), 20_000)
	after := slices.Repeat(prefixes("198.51.100.0/24"), 30_000)
	if path := os.Getenv(name); path != "" {
		b, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for {
			if err := errors.Join(b.SetDenyList(after), b.SetDenyList(before)); err != nil {
				t.Fatal(err)
			}
		}
	}

	// An emptied or shortened deny list, as a crash of other programs leaves
	// it, would fail open.
	b := create(t)
	if err := b.SetDenyList(before); err != nil {
		t.Fatal(err)
	}
	seen, leftovers := map[int]int{}, 0
	for i := range 40 {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestKilledWriter$")
		cmd.Env = append(os.Environ(), name+"="+b.Path())
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		check := func() {
			list, err := b.DenyList()
			if err != nil || !(slices.Equal(list, before) || slices.Equal(list, after)) {
				t.Fatalf("%d entries, %v", len(list), err)
			}
			seen[len(list)]++
		}
		// Wait for it to begin, then kill it in the middle of something.
		for start := time.Now(); len(list(t, b)) < 2 && time.Since(start) < 5*time.Second; {
			check()
		}
		time.Sleep(time.Duration(i) * 331 * time.Microsecond)
		check()
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("the writer ended by itself: %v", err)
		}
		check()
		for _, name := range list(t, b) {
			if strings.HasPrefix(name, tempPrefix) {
				leftovers++
			}
		}
		unlock, err := b.Lock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		unlock()
		if names := list(t, b); !slices.Equal(names, []string{lockFile, FileDenyList}) {
			t.Fatalf("after the next lock there are %q", names)
		}
		// The list may be either again.
		if err := os.Remove(filepath.Join(b.Path(), lockFile)); err != nil {
			t.Fatal(err)
		}
	}
	if leftovers == 0 {
		t.Errorf("no writer was killed in the middle of a write: %v", seen)
	}
}

func TestAppendError(t *testing.T) {
	b := create(t)
	for _, msg := range []string{"plain", "two\nlines\r\n", "\x1b[31mred\x00\u202e\u2028 ünï", "", strings.Repeat("ü", maxErrorLine)} {
		if err := b.AppendError(msg); err != nil {
			t.Fatal(err)
		}
	}
	want := "plain\ntwo lines\n [31mred    ünï\n\n" + strings.Repeat("ü", maxErrorLine/2) + "\n"
	if d := cmp.Diff(want, get(t, b, FileErrorLog)); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}

	// It stays below its bound, with the newest lines.
	const lines = 3 * maxErrorLog / 1000
	for i := range lines {
		if err := b.AppendError(fmt.Sprintf("%06d %s", i, strings.Repeat("x", 992))); err != nil {
			t.Fatal(err)
		}
	}
	text := get(t, b, FileErrorLog)
	if len(text) > maxErrorLog || len(text) < maxErrorLog/2-maxErrorLine {
		t.Errorf("%d bytes", len(text))
	}
	got := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, line := range got {
		if want := fmt.Sprintf("%06d x", lines-len(got)+i); !strings.HasPrefix(line, want) {
			t.Fatalf("line %d is %.20q, want %q", i, line, want)
		}
	}
	if names := list(t, b); !slices.Equal(names, []string{FileErrorLog}) {
		t.Errorf("the directory holds %q", names)
	}

	if err := os.Remove(filepath.Join(b.Path(), FileErrorLog)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(t.TempDir(), "victim"), filepath.Join(b.Path(), FileErrorLog)); err != nil {
		t.Fatal(err)
	}
	if err := b.AppendError("x"); err == nil {
		t.Error("appended through a symbolic link")
	}
}

func TestAppendLog(t *testing.T) {
	b := create(t)
	put(t, b, FileAuditLog, "unfinished")
	for _, line := range []string{"a", "b"} {
		if err := b.AppendLog(FileAuditLog, line, 100); err != nil {
			t.Fatal(err)
		}
	}
	if got := get(t, b, FileAuditLog); got != "unfinished\na\nb\n" {
		t.Errorf("%q", got)
	}
	if err := b.AppendLog(FileAuditLog, "c", 16); err != nil {
		t.Fatal(err)
	}
	if got := get(t, b, FileAuditLog) + "|" + get(t, b, FileAuditLogRotated); got != "c\n|unfinished\na\nb\n" {
		t.Errorf("%q", got)
	}
	if _, err := b.OpenLog("none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// An append waits for another one, so that only one of them starts a new log.
func TestAppendWaits(t *testing.T) {
	b := create(t)
	put(t, b, FileAuditLog, "a\n")
	f, err := b.openFile(FileAuditLog, syscall.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if ok, err := tryLock(f); !ok || err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- b.AppendLog(FileAuditLog, "b", 3) }()
	select {
	case err := <-done:
		t.Fatalf("did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	// Meanwhile the log was renamed: the line belongs in the new one.
	if err := os.Rename(f.Name(), filepath.Join(b.Path(), FileAuditLogRotated)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := get(t, b, FileAuditLog) + "|" + get(t, b, FileAuditLogRotated); got != "b\n|a\n" {
		t.Errorf("%q", got)
	}
}

func TestRemove(t *testing.T) {
	b := create(t)
	for _, a := range accessors() {
		if err := a.set(b); err != nil {
			t.Fatal(err)
		}
	}
	unlock, err := b.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "victim"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		os.MkdirAll(filepath.Join(b.Path(), "hooks", "x"), 0o700),
		os.Symlink(outside, filepath.Join(b.Path(), "run")),
		b.AppendError("x"), b.AppendLog(FileAuditLog, "x", 100), b.AppendLog(FileAuditLog, "x", 1),
		b.SetOpen(true), b.SetResolvConf(defaultListen), b.SetUnsettled(true), b.SetProfileNames([]string{"base"}), b.SetProfileCache("k"),
	); err != nil {
		t.Fatal(err)
	}
	put(t, b, "foreign", "x")
	if err := b.Remove(); err != nil {
		t.Fatal(err)
	}
	if names := list(t, b); !slices.Equal(names, []string{"foreign"}) {
		t.Errorf("left are %q", names)
	}
	if _, err := os.Stat(filepath.Join(outside, "victim")); err != nil {
		t.Errorf("the target of a link: %v", err)
	}
	if err := os.Remove(filepath.Join(b.Path(), "foreign")); err != nil {
		t.Fatal(err)
	}
	if err := b.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(b.Path()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	if err := b.Remove(); err != nil {
		t.Errorf("removing nothing: %v", err)
	}
	if _, err := b.Lock(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("locked a removed directory: %v", err)
	}
	if err := b.SetTier(Proxy); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("wrote into a removed directory: %v", err)
	}
}

// Whatever is in a list, it is refused or means the same after it was
// written.
func FuzzLists(f *testing.F) {
	f.Add("192.0.2.1\n\n# x\n2001:db8::/32 \r\n")
	f.Add("example.org\n*.x.org\nfe80::1%a } ; b\n")
	f.Add("80\n443\n0\n")
	f.Add("pasta\n169.254.1.2\n")
	f.Add(`{"pid":1,"start":2,"netns":"3:4"}`)
	top := f.TempDir()
	b, err := Create(filepath.Join(top, "sd"))
	if err != nil {
		f.Fatal(err)
	}
	defer b.Close()
	f.Fuzz(func(t *testing.T, text string) {
		for _, name := range []string{FileDenyList, FileLiveDomains, FileLoopbackPorts, FileNetwork, FileProcess} {
			put(t, b, name, text)
		}
		if list, err := b.DenyList(); err == nil {
			again(t, list, b.SetDenyList(list), b.DenyList)
		}
		if list, err := b.LiveDomains(); err == nil {
			again(t, list, b.SetLiveDomains(list), b.LiveDomains)
		}
		if list, err := b.LoopbackPorts(); err == nil {
			again(t, list, b.SetLoopbackPorts(list), b.LoopbackPorts)
		}
		if net, err := b.Network(); err == nil && net.Mode != "" {
			again(t, net, b.SetNetwork(net), b.Network)
		}
		if p, err := b.Process(); err == nil {
			again(t, p, b.SetProcess(p), b.Process)
			if _, err := json.Marshal(p); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func again[T any](t *testing.T, was T, err error, get func() (T, error)) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	is, err := get()
	if d := cmp.Diff(was, is, netipCmp); d != "" || err != nil {
		t.Fatalf("%v (-was +is)\n%s", err, d)
	}
}

func BenchmarkBundle(b *testing.B) {
	d, err := Create(filepath.Join(b.TempDir(), "sd"))
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	list := slices.Repeat(prefixes("192.0.2.1"), 100)
	for name, do := range map[string]func() error{
		"lock": func() error {
			unlock, err := d.Lock(b.Context())
			if err == nil {
				unlock()
			}
			return err
		},
		"durable":  func() error { return d.SetDenyList(list) },
		"volatile": func() error { return d.SetContainerID("0123456789ab") },
		"append":   func() error { return d.AppendLog(FileAuditLog, "{}", 1<<30) },
		"read":     func() error { _, err := d.DenyList(); return err },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := do(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
