package applets

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// maxSteps is more system calls of one kind of test than any command makes.
const maxSteps = 400

// dangerous are the system calls that change something outside the process
// or mark the way to it. A command is killed on entering each of them.
const dangerous = "write,sendto,sendmsg,openat,renameat,renameat2,unlinkat,fsync,fchmod,flock,setns,close"

// TestKilledAtEveryStep kills commands at every system call that matters and
// looks at what is left: files that can be read, a kernel that opens nothing
// that neither the state before nor the one after does, and after the next
// command files and kernel that agree.
func TestKilledAtEveryStep(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatalf("strace is needed to kill at a system call: %v", err)
	}
	bin := filepath.Join(t.TempDir(), Name)
	build := exec.Command("go", "build", "-o", bin, "..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	listed, other := "203.0.113.1", "203.0.113.9"
	for _, tt := range []struct {
		verb  string
		args  []string
		after []string // commands that come before, if the verb needs them
		ends  []ruleset.State
	}{
		{verb: "allow", args: []string{other}, ends: []ruleset.State{ruleset.Up}},
		{verb: "deny", args: []string{listed}, ends: []ruleset.State{ruleset.Up}},
		{verb: "allow", args: []string{listed}, after: []string{"deny", listed}, ends: []ruleset.State{ruleset.Up}},
		{verb: "down", ends: []ruleset.State{ruleset.Up, ruleset.Down}},
		{verb: "up", after: []string{"down"}, ends: []ruleset.State{ruleset.Up, ruleset.Down}},
		{verb: "quarantine", ends: []ruleset.State{ruleset.Up, ruleset.Quarantine}},
	} {
		t.Run(fmt.Sprint(tt.verb, tt.after), func(t *testing.T) {
			steps := 0
			for n := 1; ; n++ {
				if n > maxSteps {
					t.Fatalf("no end after %d steps", n)
				}
				c := newStandIn(t)
				root := t.TempDir()
				dir := filepath.Join(root, "containers", "demo")
				prepareBundle(t, dir, ruleset.Params{Allow: []netip.Prefix{netip.MustParsePrefix(listed + "/32")}})
				run := func(stdin []byte, argv ...string) {
					t.Helper()
					cmd := exec.Command(bin, argv...)
					cmd.Stdin = bytes.NewReader(stdin)
					if out, err := cmd.CombinedOutput(); err != nil {
						t.Fatalf("step %d: %v: %v\n%s", n, argv, err, out)
					}
				}
				shield := func(verb string, args ...string) []string {
					return append([]string{"terok-shield", "--state-dir", root, verb, "demo"}, args...)
				}
				run(ociState(t, "demo", dir, c.pid), "nft-hook", "createRuntime")
				if tt.after != nil {
					run(nil, shield(tt.after[0], tt.after[1:]...)...)
				}
				before := kernel(t, c.ns)

				cmd := exec.Command(strace, append([]string{"-f", "-qq", "-o", "/dev/null",
					"-e", "trace=" + dangerous, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", dangerous, n), bin},
					shield(tt.verb, tt.args...)...)...)
				out, err := cmd.CombinedOutput()
				done := err == nil
				if x, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok ||
					x.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL && x.ExitCode() != 128+int(syscall.SIGKILL)) {
					t.Fatalf("step %d: %v\n%s", n, err, out)
				}
				half := kernel(t, c.ns)
				checkState(t, n, half, tt.ends)

				run(nil, shield("status")...)
				settled := kernel(t, c.ns)
				checkState(t, n, settled, tt.ends)
				b, err := bundle.Open(dir)
				if err != nil {
					t.Fatal(err)
				}
				profile, err1 := b.ProfileAllowed()
				live, err2 := b.LiveAllowed()
				deny, err3 := b.DenyList()
				half2, err4 := b.Unsettled()
				if err := errors.Join(err1, err2, err3, err4, b.Close()); err != nil {
					t.Fatalf("step %d: %v", n, err)
				}
				if half2 {
					t.Errorf("step %d: still unsettled", n)
				}
				allow, denied := bundle.Effective(profile, live, deny)
				if d := ruleset.Diff(settled, ruleset.WithAddresses(settled, allow, denied)); !d.Empty() {
					t.Errorf("step %d: files and kernel differ: %s", n, d)
				}
				// What was open neither before nor would be after never opens.
				open := func(table *ruleset.Table, a string) bool {
					p := netip.MustParsePrefix(a + "/32")
					in := func(set string) bool {
						for _, s := range table.Sets {
							for _, e := range s.Elements {
								if s.Name == set && e.Contains(p.Addr()) {
									return true
								}
							}
						}
						return false
					}
					return in("allow_v4") && !in("deny_v4")
				}
				if open(half, "198.51.100.1") || tt.verb != "allow" && open(half, other) {
					t.Errorf("step %d: an address opened that nobody allowed", n)
				}
				if tt.verb == "deny" && !done && open(before, listed) && !open(half, listed) && open(settled, listed) {
					t.Errorf("step %d: a deny that was in force is gone", n)
				}
				c.end()
				if done {
					break
				}
				steps++
			}
			if steps < 10 {
				t.Errorf("only %d steps: nothing was killed in time", steps)
			}
			t.Logf("killed at %d steps", steps)
		})
	}
}

func checkState(t *testing.T, step int, table *ruleset.Table, ends []ruleset.State) {
	t.Helper()
	state, err := ruleset.Verify(table, ruleset.Known{})
	if err != nil {
		t.Errorf("step %d: %v", step, err)
	}
	if !slices.Contains(ends, state) {
		t.Errorf("step %d: state is %s", step, state)
	}
}

// kernel is the table in a namespace.
func kernel(t *testing.T, ns *netns.NS) (table *ruleset.Table) {
	t.Helper()
	if err := ns.Do(func() error {
		conn, err := nft.Dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		table, err = conn.List()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return table
}
