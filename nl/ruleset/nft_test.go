package ruleset

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// nft runs a shell script with text on its standard input, as root of a new
// user namespace with a network of its own.
func nft(t *testing.T, script, text string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", script)
	cmd.Env = []string{"PATH=/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL=C"}
	cmd.Stdin = strings.NewReader(text)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.Output()
	if stderr.Len() > 0 {
		t.Logf("nft: %.2000s", stderr.String())
	}
	return string(out), err
}

// What nft makes of our text lists as our text, and reads back as our value.
func TestNft(t *testing.T) {
	version, err := nft(t, "nft --version", "")
	if err != nil {
		t.Fatalf("nft is needed for this test: %v", err)
	}
	// Later versions break the lines of some lists elsewhere.
	verbatim := strings.HasPrefix(version, "nftables v1.0.")

	tables := map[string]*Table{}
	for _, s := range []State{Up, Down, Disengaged, Quarantine} {
		tables[s.String()] = build(t, s, full)
		tables[s.String()+" bare"] = build(t, s, Params{})
	}
	learned := build(t, Up, full)
	learn(learned, "203.0.113.80", "203.0.113.81", "203.0.113.79", "2001:db8:3::1", "2001:db8:3::")
	tables["learned"] = learned
	lasting := build(t, Up, Params{Lifetime: 30 * time.Minute})
	learn(lasting, "203.0.113.80", "2001:db8:3::1")
	for set, a := range map[string]string{Learned4: "203.0.113.81", Learned6: "2001:db8:3::2"} {
		s := lasting.Set(set)
		s.Elements = append(s.Elements, Element{Range: Range{addr(a), addr(a)}})
	}
	tables["learned by default"] = lasting
	odd := build(t, Up, Params{
		Allow: prefixes("0.0.0.0/0", "::1", "::2:1", "::1.2.3.4", "::ffff:1.2.3.4", "::ffff:0:0:1", "fe80::/10", "ff00::/8", "2001:db8:0:0:1::", "::"),
		Deny:  prefixes("::/0", "1.2.3.0/31", "1.2.3.2", "1.2.3.3", "1.2.3.4/30", "255.255.255.255", "0.0.0.0", "224.0.0.0/4"),
	})
	for _, r := range []Range{{addr("5.0.0.1"), addr("5.0.0.9")}, {addr("5.0.0.10"), addr("5.0.0.11")}} {
		odd.Set("deny_v4").Elements = append(odd.Set("deny_v4").Elements, Element{Range: r})
	}
	if err := odd.Set("deny_v4").Normalize(); err != nil {
		t.Fatal(err)
	}
	tables["odd addresses"] = odd
	tables["2000 addresses"] = build(t, Up, largest(2000, true))
	for _, name := range samples(t) {
		// nft 1.0.6 itself lets permanent elements expire.
		if text := sample(t, name); strings.HasSuffix(name, ".nft") && !strings.Contains(text, "timeout 0s") {
			tables[name] = parse(t, text)
		}
	}

	for name, want := range tables {
		t.Run(name, func(t *testing.T) {
			out, err := nft(t, "nft -f - && nft list table inet terok_shield && echo ---- && nft --stateless list table inet terok_shield", want.String())
			if err != nil {
				t.Fatalf("nft refuses our text: %v", err)
			}
			listing, text, _ := strings.Cut(out, "----\n")
			have, err := Parse(listing)
			if err != nil {
				t.Fatalf("%v\n%s", err, listing)
			}
			if c := Diff(have, want); !c.Empty() {
				t.Errorf("listed and wanted: %s", c)
			}
			if diff := cmp.Diff(want, have, stateless); diff != "" {
				t.Errorf("listed (-want +got):\n%s", diff)
			}
			if !verbatim {
				return
			}
			if diff := cmp.Diff(listing, have.Listing()); diff != "" {
				t.Errorf("Listing (-nft +ours):\n%s", diff)
			}
			if diff := cmp.Diff(text, want.String()); diff != "" {
				t.Errorf("String (-nft +ours):\n%s", diff)
			}
		})
	}
}

// What Parse joins is what nft refuses to load.
func TestNftRefusesOverlaps(t *testing.T) {
	text := minimal("", "", "add element inet terok_shield s6 { 2001:db8::/32, 2001:db8::1 }\n")
	if out, err := nft(t, "nft -f -", text); err == nil {
		t.Errorf("nft takes overlapping elements: %s", out)
	}
	if out, err := nft(t, "nft -f -", parse(t, text).String()); err != nil {
		t.Errorf("nft refuses them joined: %v %s", err, out)
	}
}
