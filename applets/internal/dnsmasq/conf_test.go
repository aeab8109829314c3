package dnsmasq

import (
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/terok-ai/terok-box/nl/kerneltest"
)

func TestListenAddress(t *testing.T) {
	base := conf("/sd", "127.0.0.1")
	for name, tt := range map[string]struct{ conf, want string }{
		"generated":       {base, "127.0.0.1"},
		"krun":            {conf("/sd", "169.254.1.3"), "169.254.1.3"},
		"IPv6":            {conf("/sd", "::1"), "::1"},
		"no final LF":     {strings.TrimSuffix(base, "\n"), "127.0.0.1"},
		"more of them":    {base + everything, "127.0.0.1"},
		"blank lines":     {"\n\n" + base + "\n", "127.0.0.1"},
		"longest line":    {"#" + strings.Repeat("x", maxLine-1) + "\n" + base, "127.0.0.1"},
		"one too long":    {"#" + strings.Repeat("x", maxLine) + "\n" + base, "line 1: longer than 1023 bytes"},
		"empty":           {"", "lacks listen-address"},
		"no address":      {strings.Replace(base, "listen-address=127.0.0.1\n", "", 1), "lacks"},
		"no port":         {strings.Replace(base, "port=53\n", "", 1), "lacks"},
		"no pid file":     {strings.Replace(base, "pid-file=/sd/dnsmasq.pid\n", "", 1), "lacks"},
		"two addresses":   {base + "listen-address=127.0.0.2\n", "a second listen-address"},
		"a script":        {base + "dhcp-script=/bin/sh\n", `line 12: "dhcp-script=/bin/sh" is nothing that`},
		"a program":       {base + "conf-script=/bin/sh\n", "is nothing that"},
		"another file":    {base + "conf-file=/etc/passwd\n", "is nothing that"},
		"a directory":     {base + "conf-dir=/tmp\n", "is nothing that"},
		"hosts":           {base + "addn-hosts=/etc/shadow\n", "is nothing that"},
		"user":            {base + "user=root\n", "is nothing that"},
		"TFTP":            {base + "enable-tftp\n", "is nothing that"},
		"log elsewhere":   {base + "log-facility=/etc/x\n", "is nothing that"},
		"pid elsewhere":   {base + "pid-file=/sd/../x\n", "is nothing that"},
		"port elsewhere":  {base + "port=0\n", "is nothing that"},
		"another set":     {base + "nftset=/a.test/4#inet#terok_shield#deny_v4,6#inet#terok_shield#allow_v6\n", "is nothing that"},
		"another table":   {base + "nftset=/a.test/4#ip#nat#allow_v4,6#inet#terok_shield#allow_v6\n", "is nothing that"},
		"wild address":    {base + "address=/*.a.test/\n", "is nothing that"},
		"every address":   {base + "address=/#/192.0.2.1\n", "is nothing that"},
		"two stars":       {base + "local=/*.*.test/\n", "is nothing that"},
		"half a star":     {base + "local=/*a.test/\n", "is nothing that"},
		"host bits":       {base + "bogus-nxdomain=10.0.0.1/8\n", "is nothing that"},
		"mixed sets":      {base + "nftset=/a.test/4#inet#terok_shield#learned_v4,6#inet#terok_shield#allow_v6\n", "is nothing that"},
		"every name":      {base + "nftset=/#/4#inet#terok_shield#allow_v4,6#inet#terok_shield#allow_v6\n", "is nothing that"},
		"empty name":      {base + "nftset=//4#inet#terok_shield#allow_v4,6#inet#terok_shield#allow_v6\n", "is nothing that"},
		"long name":       {base + "local=/" + strings.Repeat("x", 254) + "/\n", "is nothing that"},
		"server's port":   {base + "server=127.0.0.1#5353\n", "is nothing that"},
		"server's zone":   {base + "server=fe80::1%eth0\n", "is nothing that"},
		"flag, value":     {base + "no-hosts=\n", "is nothing that"},
		"no number":       {base + "cache-size=\n", "is nothing that"},
		"minus":           {base + "cache-size=-1\n", "is nothing that"},
		"blanks":          {base + " no-hosts\n", "is nothing that"},
		"quotes":          {base + "\"no-hosts\"\n", "is nothing that"},
		"carriage return": {base + "#\rno-hosts\n", "control character"},
		"NUL":             {base + "#\x00\n", "control character"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := listenAddress([]byte(tt.conf), "/sd")
			if want, e := netip.ParseAddr(tt.want); e == nil {
				if err != nil || got != want {
					t.Errorf("%v, %v; want %v", got, err, want)
				}
				return
			}
			if err == nil || got.IsValid() || !strings.Contains(err.Error(), tt.want) || strings.ContainsAny(err.Error(), "\x00\r\n") {
				t.Errorf("%v, %v; want %s", got, err, tt.want)
			}
		})
	}
	for _, listen := range []string{
		"", " 127.0.0.1", "localhost", "127.0.0.1,127.0.0.2", "127.0.0.1/8", "0.0.0.0", "::", "224.0.0.1", "ff02::1",
		"::ffff:127.0.0.1", "fe80::1%lo", "300.0.0.1", "lo",
	} {
		if a, err := listenAddress([]byte(conf("/sd", listen)), "/sd"); err == nil || !strings.Contains(err.Error(), "line 2: listen-address=") {
			t.Errorf("%q: %v, %v", listen, a, err)
		}
	}
	for _, dir := range []string{`/a"b`, `/a\b`, "/a #b"} {
		if a, err := listenAddress([]byte(conf(dir, "127.0.0.1")), dir); err == nil || !strings.Contains(err.Error(), "another state directory") {
			t.Errorf("%q: %v, %v", dir, a, err)
		}
	}
}

// everything is one line of each further form.
const everything = `no-poll
no-negcache
stop-dns-rebind
filter-AAAA
cache-size=0
neg-ttl=60
max-ttl=60
local-ttl=60
max-cache-ttl=60
dns-forward-max=150
server=/a.test/192.0.2.1
server=/b.test/
server=/c.test/#
server=2001:db8::1
address=/d.test/
address=/e.test/#
address=/f.test/192.0.2.1
address=/_g.test/::1
local=/h.test/
local=/*.h.test/
local=/#/
server=/*.h.test/192.0.2.1
bogus-nxdomain=10.0.0.0/8
bogus-nxdomain=4000::/2
nftset=/a.test/4#inet#terok_shield#learned_v4,6#inet#terok_shield#learned_v6
nftset=/a.test/4#inet#terok_shield#t40_project_allow_v4,6#inet#terok_shield#t40_project_allow_v6
`

// What is accepted is what dnsmasq knows, also in directories with unusual
// names; and dnsmasq really reads the rest of an over-long comment.
func TestRealSyntax(t *testing.T) {
	program, err := find()
	if err != nil {
		t.Fatal(err)
	}
	b := prepared(t, "127.0.0.1")
	check := func(text string) (string, error) {
		put(t, b, "test.conf", text)
		out, err := exec.Command(program, "--test", "--conf-file="+filepath.Join(b.Path(), "test.conf")).CombinedOutput()
		return string(out), err
	}
	for _, dir := range []string{"/sd", "/sd/ö 'x' $y#z ,;"} {
		text := conf(dir, "127.0.0.1") + strings.ReplaceAll(everything, "cache-size=0\n", "")
		if _, err := listenAddress([]byte(text), dir); err != nil {
			t.Error(err)
		}
		if out, err := check(text); err != nil {
			t.Errorf("%v: %s\n%s", err, out, text)
		}
	}
	for length, ok := range map[int]bool{maxLine: true, maxLine + 2: false} {
		text := "#" + strings.Repeat("x", maxLine-1) + strings.Repeat("y", length-maxLine) + "\n"
		if out, err := check(text); (err == nil) != ok {
			t.Errorf("%d bytes: %v, %s", length, err, out)
		}
	}
}

// A state directory whose name needs quoting anywhere else.
func TestUnusualDirectory(t *testing.T) {
	b, ns := preparedIn(t, filepath.Join(t.TempDir(), "ö 'x' $y#z ,;"), "127.0.0.1"), kerneltest.NewNS(t)
	if err := begin(t.Context(), b, ns); err != nil {
		t.Error(err)
	}
}

func FuzzListenAddress(f *testing.F) {
	f.Add(conf("/sd", "127.0.0.1"))
	f.Add(conf("/sd", "169.254.1.3") + everything)
	f.Add(conf("/sd", "::1") + "conf-file=x\n")
	known := regexp.MustCompile(`^(|#[^\x00-\x1f]*|listen-address=[0-9a-f:.]+|port=53|bind-interfaces|no-[a-z]+|log-queries|stop-dns-rebind|filter-AAAA` +
		`|(server|address|local)=(/[\w.-]+/)?[0-9a-fA-F:.#]*|(server|local)=/\*\.[\w.-]+/[0-9a-fA-F:.#]*|local=/#/|bogus-nxdomain=[0-9a-fA-F:.]+/\d+|[a-z-]+-(ttl|size|max)=\d+|pid-file=/sd/dnsmasq\.pid|log-facility=/sd/dnsmasq\.log` +
		`|nftset=/[\w.-]+/4#inet#terok_shield#\w+_v4,6#inet#terok_shield#\w+_v6)$`)
	f.Fuzz(func(t *testing.T, text string) {
		a, err := listenAddress([]byte(text), "/sd")
		if (err == nil) != a.IsValid() {
			t.Fatalf("%v, %v", a, err)
		}
		if err != nil {
			if len(err.Error()) > 600 {
				t.Fatalf("message of %d bytes", len(err.Error()))
			}
			return
		}
		for line := range strings.SplitSeq(text, "\n") {
			if len(line) > maxLine || !known.MatchString(line) {
				t.Fatalf("accepted %q", line)
			}
		}
	})
}
