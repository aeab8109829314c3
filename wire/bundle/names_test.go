package bundle

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOpenMark(t *testing.T) {
	b := create(t)
	for _, want := range []bool{false, true, true, false, false} {
		if err := b.SetOpen(want); err != nil {
			t.Fatal(err)
		}
		if got, err := b.Open(); got != want || err != nil {
			t.Errorf("%t, %v; want %t", got, err, want)
		}
	}
	// What is not a file of ours opens nothing.
	if err := os.Symlink("/dev/null", filepath.Join(b.Path(), FileOpen)); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Open(); got || err == nil {
		t.Errorf("through a symbolic link: %t, %v", got, err)
	}
}

// The container's name server is for the container: at no address that
// others could reach.
func TestListenAddress(t *testing.T) {
	b := create(t)
	for addr, ok := range map[string]bool{
		"127.0.0.1": true, "127.0.0.53": true, "::1": true, "169.254.1.3": true, "fe80::1": true,
		"0.0.0.0": false, "::": false, "192.0.2.1": false, "10.0.0.1": false, "2001:db8::1": false, "224.0.0.1": false,
		"fe80::1%eth0": false, "::ffff:127.0.0.1": false,
	} {
		a := netip.MustParseAddr(addr)
		if err := b.SetListen(a); (err == nil) != ok {
			t.Errorf("%s: %v", addr, err)
		}
		if err := b.SetResolvConf(a); (err == nil) != ok {
			t.Errorf("resolv.conf with %s: %v", addr, err)
		}
		if ok && get(t, b, FileResolvConf) != "nameserver "+addr+"\noptions ndots:0\n" {
			t.Errorf("%s: %q", addr, get(t, b, FileResolvConf))
		}
		put(t, b, FileListen, addr+"\n")
		if got, err := b.Listen(); (err == nil) != ok || ok && got != a {
			t.Errorf("%s: read as %v, %v", addr, got, err)
		}
	}
	if err := b.SetListen(netip.Addr{}); err == nil {
		t.Error("wrote no address")
	}
}

func TestBadNames(t *testing.T) {
	b := create(t)
	for _, text := range []string{"yes", "Refuse", "refuse resolve"} {
		put(t, b, FileUnlisted, text)
		if got, err := b.ResolveUnlisted(); got || err == nil {
			t.Errorf("%q: %t, %v", text, got, err)
		}
	}
	for _, text := range []string{"-1", "1001", "no", "1 2", "0x1", "99999999999999999999"} {
		put(t, b, FileQuestions, text)
		if got, err := b.Questions(); got != DefaultQuestions || err == nil {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for _, n := range []int{-1, MaxQuestions + 1} {
		if err := b.SetQuestions(n); err == nil {
			t.Errorf("%d questions", n)
		}
	}
	for _, text := range []string{"x", "{}", `{"pid":0,"start":1,"socket":"/x"}`, `{"pid":-1,"start":1,"socket":"/x"}`, `{"pid":1,"socket":"/x"}`,
		`{"pid":1,"start":1,"socket":"x"}`, `{"pid":1,"start":1,"socket":"/x\u0000y"}`} {
		put(t, b, FileNamer, text)
		if got, err := b.Namer(); err == nil || !strings.Contains(err.Error(), "restart the container") {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, n := range []Namer{{}, {PID: 1, Start: 1}, {PID: 1, Socket: "/x"}, {Start: 1, Socket: "/x"}} {
		if err := b.SetNamer(n); err == nil {
			t.Errorf("wrote %+v", n)
		}
	}
	put(t, b, FileOwner, "relative\n")
	if got, err := b.Owner(); err == nil {
		t.Errorf("%q", got)
	}
	for _, dir := range []string{"relative", "/a\nb", "/a\x00"} {
		if err := b.SetOwner(dir); err == nil {
			t.Errorf("wrote %q", dir)
		}
	}
	if err := b.SetOwner(""); err != nil {
		t.Error(err)
	}
	if got, err := b.Owner(); got != "" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestNamerAlive(t *testing.T) {
	self, err := ProcessOf(os.Getpid(), "0:0")
	if err != nil {
		t.Fatal(err)
	}
	if !(Namer{PID: self.PID, Start: self.Start}).Alive() {
		t.Error("this process is not alive")
	}
	if (Namer{PID: self.PID, Start: self.Start + 1}).Alive() || (Namer{}).Alive() {
		t.Error("another process is taken for it")
	}
}
