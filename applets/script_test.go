package applets

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/examples"
	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/oci"
)

// commands are the programs of this binary as the scripts run them, by
// argv[0], through the real Main.
func commands() map[string]func() {
	main := func() { os.Exit(Main(os.Args)) }
	all := map[string]func(){
		Name:    main,
		"hold":  func() { io.Copy(io.Discard, os.Stdin) }, // a container's process
		"relay": func() { relay(os.Args[1], os.Args[2]) },
	}
	for _, a := range table() {
		all[a.name] = main
		for _, n := range a.alias {
			all[n] = main
		}
	}
	return all
}

func TestMain(m *testing.M) {
	all := commands()
	if all[filepath.Base(os.Args[0])] != nil {
		testscript.Main(m, all)
	}
	kerneltest.Main(scripted{m, all})
}

// scripted runs the tests with the commands on PATH.
type scripted struct {
	m   *testing.M
	all map[string]func()
}

func (s scripted) Run() int { testscript.Main(s.m, s.all); return 0 }

// relay passes connections to one Unix socket on to another, as ssh -L does.
func relay(from, to string) {
	l, err := net.Listen("unix", from)
	if err != nil {
		panic(err)
	}
	for {
		near, err := l.Accept()
		if err != nil {
			panic(err)
		}
		far, err := net.Dial("unix", to)
		if err != nil {
			near.Close()
			continue
		}
		for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
			go func() {
				io.Copy(way[0], way[1])
				way[0].Close()
			}()
		}
	}
}

// machine is what a script's containers are connected to.
type machine struct {
	t          testing.TB // of the one script
	containers map[string]*standIn
}

// standIn is a process in a network namespace of its own, as a runtime leaves
// it between create and start.
type standIn struct {
	ns  *netns.NS
	pid int
	end func()
}

func newStandIn(t testing.TB) *standIn {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"hold"}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &standIn{pid: cmd.Process.Pid, end: func() { stdin.Close(); cmd.Wait() }}
	t.Cleanup(c.end)
	if c.ns, err = netns.Open(c.pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.ns.Close() })
	return c
}

// prepareBundle writes what terok-shield prepare would.
func prepareBundle(t testing.TB, dir string, p ruleset.Params) {
	t.Helper()
	table, err := ruleset.Build(ruleset.Up, p)
	if err != nil {
		t.Fatal(err)
	}
	b, err := bundle.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ports := p.Ports
	if ports == nil {
		ports = []uint16{}
	}
	errs := []error{
		b.SetRuleset(table.String()), b.SetRulesetFormat(ruleset.Format), b.SetTier(bundle.Static), b.SetLoopbackPorts(ports),
		b.SetProfileAllowed(p.Allow), b.SetNetwork(bundle.Network{Mode: "none", Hosts: p.Hosts}),
	}
	if p.DNS.IsValid() {
		errs = append(errs, b.SetUpstreamDNS(p.DNS))
	}
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// ociState is what a runtime hands to the hook.
func ociState(t testing.TB, name, dir string, pid int) []byte {
	t.Helper()
	state, err := json.Marshal(map[string]any{
		"ociVersion": "1.0.2", "id": fmt.Sprintf("%012x%052x", pid, 0), "pid": pid, "status": "created",
		"annotations": map[string]string{
			oci.KeyProfiles: "test", oci.KeyName: name, oci.KeyStateDir: dir, oci.KeyVersion: strconv.Itoa(bundle.Version),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return state
}

func TestScripts(t *testing.T) {
	p := scripts(t)
	p.Dir = "testdata/script"
	testscript.Run(t, p)
}

// Scripts that install hooks are run one after the other: as root, which they
// take themselves for, they do so for the whole system.
func TestSetupScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/setup/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts, %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			// kerneltest has the tests see a system of their own.
			if err := os.RemoveAll("/etc/containers/containers.conf.d"); err != nil {
				t.Fatal(err)
			}
			p := scripts(t)
			p.Files = []string{file}
			testscript.Run(t, p)
		})
	}
}

// scripts is what scripts can do.
func scripts(t *testing.T) testscript.Params {
	t.Helper()
	rulesets, err := filepath.Abs("../nl/ruleset/testdata") // as the existing systems write them
	if err != nil {
		t.Fatal(err)
	}
	type key struct{}
	of := func(ts *testscript.TestScript) *machine { return ts.Value(key{}).(*machine) }
	return testscript.Params{
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("TEROK_SHIELD_STATE_DIR", filepath.Join(e.WorkDir, "state"))
			e.Setenv("XDG_RUNTIME_DIR", filepath.Join(e.WorkDir, "run"))
			e.Setenv("NO_COLOR", "1")
			e.Setenv("RULESETS", rulesets)
			e.Values[key{}] = &machine{t: e.T().(testing.TB), containers: make(map[string]*standIn)}
			return errors.Join(os.Mkdir(filepath.Join(e.WorkDir, "state"), 0o700), os.Mkdir(filepath.Join(e.WorkDir, "run"), 0o700))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// container NAME [ALLOWED…]: a stand-in connected to an internet
			// that answers, its state prepared, and NAME.json for the hook. With
			// names among the allowed it is of the proxy tier, else static.
			"container": func(ts *testscript.TestScript, _ bool, args []string) {
				m, name := of(ts), args[0]
				c := newStandIn(m.t)
				world := kerneltest.NewNS(m.t)
				ts.Check(c.ns.Do(netns.LoopbackUp))
				kerneltest.Pair(m.t, c.ns, world)
				kerneltest.ListenTCP(m.t, world, netip.MustParseAddrPort("[::]:443")) // IPv4 too
				p := ruleset.Params{}
				var names []string
				for _, a := range args[1:] {
					target, err := policy.ParseTarget(a)
					ts.Check(err)
					if target.IsName() {
						names = append(names, target.String())
					} else {
						p.Allow = append(p.Allow, target.Prefix)
					}
				}
				dir := filepath.Join(ts.Getenv("TEROK_SHIELD_STATE_DIR"), "containers", name)
				prepareBundle(m.t, dir, p)
				if names != nil {
					b, err := bundle.Open(dir)
					ts.Check(err)
					ts.Check(errors.Join(b.SetTier(bundle.Proxy), b.SetProfileDomains(names), b.Close()))
				}
				ts.Check(os.WriteFile(ts.MkAbs(name+".json"), ociState(m.t, name, dir, c.pid), 0o600))
				m.containers[name] = c
			},
			// upstream NAME=ADDRESS[,ADDRESS…]…: the name server that the file
			// resolv.conf names knows these, for one second, and nothing else;
			// it writes what it is asked for into the file asked.
			"upstream": func(ts *testscript.TestScript, _ bool, args []string) {
				at := newUpstream(of(ts).t, ts.MkAbs("asked"), args)
				ts.Check(os.WriteFile(ts.MkAbs("resolv.conf"), []byte("nameserver "+at.String()+"\n"), 0o600))
			},
			// [!] lookup NAME HOST [ADDRESS…]: the container finds the addresses
			// of the host, in any order, or is refused.
			"lookup": func(ts *testscript.TestScript, neg bool, args []string) {
				got, rcode, err := lookup(of(ts).containers[args[0]].ns, args[1])
				ts.Check(err)
				want := slices.Sorted(slices.Values(args[2:]))
				if neg != (rcode == dns.RcodeRefused) || !neg && (rcode != dns.RcodeSuccess || !slices.Equal(got, want)) {
					ts.Fatalf("%s: %s, %q", args[1], dns.RcodeToString[rcode], got)
				}
			},
			// documented: what README and the man pages show of a container
			// called demo does what they show.
			"documented": func(ts *testscript.TestScript, _ bool, _ []string) { documented(of(ts).t, ts) },
			// end NAME: the container's process ends.
			"end": func(ts *testscript.TestScript, _ bool, args []string) { of(ts).containers[args[0]].end() },
			// nft NAME ARG…: the real nft, as somebody who tampers.
			"nft": func(ts *testscript.TestScript, _ bool, args []string) {
				kerneltest.NFT(of(ts).t, of(ts).containers[args[0]].ns, "", args[1:]...)
			},
			// [!] reach NAME ADDRESS…: TCP port 443 there can be connected to.
			"reach": func(ts *testscript.TestScript, neg bool, args []string) {
				for _, a := range args[1:] {
					to := netip.AddrPortFrom(netip.MustParseAddr(a), 443)
					err := kerneltest.DialTCP(of(ts).containers[args[0]].ns, to, 2*time.Second)
					if neg != (err != nil) {
						ts.Fatalf("connect to %s: %v", to, err)
					}
				}
			},
		},
	}
}

// documented runs the examples that need no engine and end by themselves, and
// compares what they print with what is shown, if anything is.
func documented(t testing.TB, ts *testscript.TestScript) {
	alone := strings.Fields("status allow deny down up quarantine reset rules harvest logs profiles preview config completion check-environment")
	ran := 0
	for _, e := range examples.All(t) {
		words := strings.Fields(e.Text)
		if words[0] != "terok-shield" || !slices.Contains(alone, words[1]) {
			continue
		}
		ran++
		if err := ts.Exec("bash", "-c", e.Text); err != nil {
			ts.Fatalf("%s:%d: %s: %v", e.File, e.Line, e.Text, err)
		}
		if got := ts.ReadFile("stdout"); e.Output != "" && got != e.Output {
			ts.Fatalf("%s:%d: %s printed\n%s", e.File, e.Line, e.Text, got)
		}
	}
	if ran < 15 {
		ts.Fatalf("only %d examples", ran)
	}
}

// Every one of the six names is a program, and no private one is shown.
func TestTable(t *testing.T) {
	var names []string
	for _, a := range table() {
		if !a.private {
			names = append(names, a.name)
		}
	}
	want := strings.Fields("nft-hook reader-hook clearance-hub clearance-verdict terok-shield terok-clearance-notify")
	if !slices.Equal(names, want) {
		t.Errorf("programs are %v, not %v", names, want)
	}
	if code := dispatch(&cmdenv.Env{Stdout: io.Discard, Stderr: io.Discard}, "shield-inside", nil); code != 0 {
		t.Errorf("a private program answers to argv[0]: exit %d", code)
	}
}
