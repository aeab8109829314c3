package verdict

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/firewall"
	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// container is one of this user's: a process in a network namespace, with the
// firewall and state that the hook leaves.
func container(t *testing.T, root, name, id string) *netns.NS {
	t.Helper()
	b, err := bundle.Create(filepath.Join(root, "containers", name))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	table, err := ruleset.Build(ruleset.Up, ruleset.Params{})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cat") // until its input ends
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); cmd.Wait() })
	ns, err := netns.Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	nsID, err := ns.ID()
	if err != nil {
		t.Fatal(err)
	}
	p, err := bundle.ProcessOf(cmd.Process.Pid, nsID.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		b.SetTier(bundle.Static), b.SetNetwork(bundle.Network{Mode: "none"}), b.SetLoopbackPorts(nil), b.SetProfileAllowed(nil),
		b.SetRulesetFormat(ruleset.Format), b.SetRuleset(table.String()), b.SetProcess(p), b.SetContainerID(id),
		ns.Do(func() error {
			f, err := firewall.Here(b)
			if err != nil {
				return err
			}
			return errors.Join(f.Start(table, false), f.Close())
		}),
	); err != nil {
		t.Fatal(err)
	}
	kerneltest.Pair(t, ns, kerneltest.NewNS(t))
	return ns
}

// An answer becomes an element in the kernel, of the container that was meant.
func TestOutside(t *testing.T) {
	root := t.TempDir()
	one, two := container(t, root, "one", "0123456789ab"), container(t, root, "two", "ba9876543210")
	env := &cmdenv.Env{
		Stdin: strings.NewReader(""), Stdout: os.Stdout, Stderr: os.Stderr, EUID: os.Geteuid(),
		Vars: map[string]string{"HOME": t.TempDir(), "TEROK_SHIELD_STATE_DIR": root, "PATH": "/nowhere"},
	}
	o := serveOver(t, Outside(env))
	at := netip.MustParseAddrPort("203.0.113.9:443")
	reaches := func(ns *netns.NS) bool {
		err := kerneltest.DialTCP(ns, at, 100*time.Millisecond)
		// Nobody listens there, and the firewall says something else.
		return errors.Is(err, syscall.ECONNREFUSED)
	}
	check := func(wantOne, wantTwo bool) {
		t.Helper()
		if a, b := reaches(one), reaches(two); a != wantOne || b != wantTwo {
			t.Errorf("reached from one: %v, from two: %v", a, b)
		}
	}
	check(false, false)
	if got := o.apply("one", "203.0.113.9", "allow"); got != reply(true, "") {
		t.Fatal(got)
	}
	check(true, false)
	if got := o.apply("ba9876543210", "203.0.113.9", "allow"); got != reply(true, "") { // as events call it
		t.Fatal(got)
	}
	check(true, true)
	for range 2 { // once more changes nothing
		if got := o.apply("0123456789ab", "203.0.113.9", "deny"); got != reply(true, "") {
			t.Fatal(got)
		}
		check(false, true)
	}
	log, err := os.ReadFile(filepath.Join(root, "containers", "one", "audit.jsonl"))
	if err != nil || strings.Count(string(log), "\n") != 3 || !strings.Contains(string(log), `"action":"denied"`) {
		t.Errorf("audit log: %v\n%s", err, log)
	}
	// What cannot be done is said, with what to do.
	if got := o.apply("three", "203.0.113.9", "allow"); !strings.HasPrefix(got, `{"parameters":{"ok":false,"stderr":"`) || !strings.Contains(got, "podman") {
		t.Error(got)
	}
}
