package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// The measurement of names: containers with one name server each, all asking
// the same stub.
const (
	dnsRounds   = 3
	attempts    = 4
	dnsSeconds  = 3 // of one run of dnsperf
	outstanding = 50
	repeated    = 1000
	fresh       = 150_000   // more than one run can ask
	sequential  = 2000      // questions one after the other, for the latency
	million     = 1_000_000 // names, for the memory
	zone        = "bench.test"
)

// resolverAddr is the stub's, in the host's namespace.
var resolverAddr = netip.AddrFrom4([4]byte{192, 0, 2, 1})

// dnsHost makes this process's namespaces the host of all containers.
func dnsHost(dir string) (func(), error) {
	if err := netns.LoopbackUp(); err != nil {
		return nil, err
	}
	if err := command("ip", "addr", "add", resolverAddr.String()+"/32", "dev", "lo"); err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver "+resolverAddr.String()+"\n"), 0o644); err != nil {
		return nil, err
	}
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		return nil, err
	}
	if err := unix.Mount(conf, target, "", unix.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("mount a resolv.conf: %w", err)
	}
	return startStub(netip.AddrPortFrom(resolverAddr, 53))
}

// box is a container with a cable to the host.
type box struct {
	held
	dir string
	ns  *netns.NS
}

func newBox(dir string, n int) (*box, error) {
	h, err := hold()
	if err != nil {
		return nil, err
	}
	b := &box{held: h, dir: filepath.Join(dir, fmt.Sprintf("box-%d", n))}
	if b.ns, err = netns.Open(h.pid); err == nil {
		err = os.Mkdir(b.dir, 0o700)
	}
	// Names and addresses differ: the kernel takes its time to end a namespace.
	dev, base := fmt.Sprintf("box%d", n), netip.AddrFrom4([4]byte{198, 51, 100, byte(4 * n)})
	host, inside := base.Next(), base.Next().Next()
	for _, c := range [][]string{
		{"ip", "link", "add", dev, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(h.pid)},
		{"ip", "addr", "add", host.String() + "/30", "dev", dev},
		{"ip", "link", "set", dev, "up"},
		b.in("ip", "link", "set", "lo", "up"),
		b.in("ip", "addr", "add", inside.String()+"/30", "dev", "eth0"),
		b.in("ip", "link", "set", "eth0", "up"),
		b.in("ip", "route", "add", "default", "via", host.String()),
	} {
		if err == nil {
			err = command(c...)
		}
	}
	if err != nil {
		b.end()
		return nil, err
	}
	return b, nil
}

// in is a command line that runs in the box's network namespace.
func (b *box) in(argv ...string) []string {
	return append([]string{"nsenter", "-t", strconv.Itoa(b.pid), "-n"}, argv...)
}

func command(argv ...string) error {
	_, err := output("", argv...)
	return err
}

func output(stdin string, argv ...string) (string, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %.500s", strings.Join(argv, " "), err, out)
	}
	return string(out), nil
}

// contender is a way in which a box's names are answered.
type contender struct {
	name   string
	start  func(*box) (stop func() error, err error)
	set    string // that the addresses of names are in
	learns bool   // there are any
}

// ours is the real hook and what it starts. Where resolve is set the zone is
// on no list: names on none are resolved and open nothing. What is left out is
// more than the calls of nf_tables: no account of learned addresses is kept.
func ours(resolve bool) func(*box) (func() error, error) {
	return func(x *box) (func() error, error) {
		t, err := ruleset.Build(ruleset.Up, ruleset.Params{})
		if err != nil {
			return nil, err
		}
		domains := []string{zone}
		if resolve {
			domains = []string{"listed.test"}
		}
		p := prepared{dir: x.dir}
		b, err := bundle.Create(p.dir)
		if err != nil {
			return nil, err
		}
		defer b.Close()
		for _, err := range []error{
			b.SetRuleset(t.String()), b.SetRulesetFormat(ruleset.Format), b.SetLoopbackPorts(nil),
			b.SetTier(bundle.Proxy), b.SetProfileAllowed(nil), b.SetProfileDomains(domains), b.SetResolveUnlisted(resolve),
		} {
			if err != nil {
				return nil, err
			}
		}
		run := func(stage string) error {
			st, err := p.state(x.pid)
			if err != nil {
				return err
			}
			_, err = timed(x.dir, st, filepath.Join(build, "nft-hook"), stage)
			return err
		}
		if err := run("createRuntime"); err != nil {
			return nil, err
		}
		return func() error { return run("poststop") }, nil
	}
}

// reference is dnsmasq as the existing systems configure it, with sets of the
// given flags. It runs in the box's network and asks through the cable.
func reference(flags string) func(*box) (func() error, error) {
	return func(x *box) (func() error, error) {
		table := fmt.Sprintf(`table inet terok_shield {
	set allow_v4 { type ipv4_addr; flags %[1]s; timeout 30m; }
	set allow_v6 { type ipv6_addr; flags %[1]s; timeout 30m; }
	chain output {
		type filter hook output priority filter; policy drop;
		oifname "lo" accept
		ct state established,related accept
		udp dport 53 ip daddr %[2]s accept
		tcp dport 53 ip daddr %[2]s accept
		ip daddr @allow_v4 log group 100 prefix "TEROK_SHIELD_ALLOWED: " counter accept
		ip6 daddr @allow_v6 log group 100 prefix "TEROK_SHIELD_ALLOWED: " counter accept
		log group 100 prefix "TEROK_SHIELD_BLOCKED: " counter reject with icmpx admin-prohibited
	}
}
`, flags, resolverAddr)
		if _, err := output(table, x.in("nft", "-f", "-")...); err != nil {
			return nil, err
		}
		conf, pidFile := filepath.Join(x.dir, "dnsmasq.conf"), filepath.Join(x.dir, "dnsmasq.pid")
		text := strings.Join([]string{
			"listen-address=127.0.0.1", "port=53", "bind-interfaces", "no-resolv", "no-hosts",
			"server=" + resolverAddr.String(), "pid-file=" + pidFile,
			"log-queries", "log-facility=" + filepath.Join(x.dir, "dnsmasq.log"),
			"nftset=/" + zone + "/4#inet#terok_shield#allow_v4,6#inet#terok_shield#allow_v6", "",
		}, "\n")
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			return nil, err
		}
		// As root it would change to a user that there may not be here.
		if err := command(x.in("dnsmasq", "--conf-file="+conf, "--user=root")...); err != nil {
			return nil, err
		}
		return func() error {
			data, err := os.ReadFile(pidFile)
			if err != nil {
				return err
			}
			pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
			if err != nil {
				return err
			}
			return unix.Kill(pid, unix.SIGKILL)
		}, nil
	}
}

// dnsTimes is what one contender achieved in one round.
type dnsTimes struct {
	repeated, fresh float64       // questions a second
	p50, p99        time.Duration // of a new name, asked alone
}

// fight is one round of one contender. Each measurement has a box of its own:
// an interval set with many addresses is slow, so none begins with another's.
func fight(c contender, open func() (*box, error)) (got dnsTimes, err error) {
	for _, measure := range []func(*box) error{
		func(x *box) error {
			same, err := x.questions("r", repeated)
			if err != nil {
				return err
			}
			if _, err := x.ask(same, "-n", "1"); err != nil { // for the first time
				return err
			}
			got.repeated, err = x.ask(same, "-l", strconv.Itoa(dnsSeconds))
			return err
		},
		func(x *box) error {
			all, err := x.questions("n", fresh)
			if err != nil {
				return err
			}
			got.fresh, err = x.ask(all, "-n", "1", "-l", strconv.Itoa(dnsSeconds))
			return err
		},
		func(x *box) (err error) {
			got.p50, got.p99, err = x.latency(netip.MustParseAddrPort("127.0.0.1:53"))
			return err
		},
	} {
		var err error
		for range attempts { // dnsmasq now and then loses a question
			var x *box
			if x, err = open(); err == nil {
				err = x.with(c, measure)
			}
			if !errors.Is(err, errQuestionsLost) {
				break
			}
		}
		if err != nil {
			return dnsTimes{}, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return got, nil
}

// with runs a measurement of a contender, and ends the box.
func (b *box) with(c contender, measure func(*box) error) (err error) {
	defer b.end()
	stop, err := c.start(b)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if err := measure(b); err != nil {
		return err
	}
	return b.check(c)
}

// check counts what a contender put into its set: a fast one that does not do
// its work has won nothing.
func (b *box) check(c contender) error {
	text, err := output("", b.in("nft", "list", "set", "inet", "terok_shield", c.set)...)
	if err != nil {
		return err
	}
	const least = 100
	if n := strings.Count(text, "expires"); c.learns && n < least || !c.learns && n > 0 {
		return fmt.Errorf("%d addresses in the set %s", n, c.set)
	}
	return nil
}

// questions writes a file for dnsperf: so many names, each once.
func (b *box) questions(prefix string, n int) (string, error) {
	var text []byte
	for i := range n {
		text = fmt.Appendf(text, "%s%d.%s A\n", prefix, i, zone)
	}
	path := filepath.Join(b.dir, "questions-"+prefix)
	return path, os.WriteFile(path, text, 0o600)
}

var (
	perSecond = regexp.MustCompile(`(?m)^ *Queries per second: +([0-9.]+)`)
	lost      = regexp.MustCompile(`(?m)^ *Queries lost: +([0-9]+)`)
	codes     = regexp.MustCompile(`(?m)^ *Response codes: +(.*)$`)
)

// ask runs dnsperf and returns the questions answered a second.
func (b *box) ask(file string, args ...string) (float64, error) {
	out, err := output("", b.in(append([]string{
		"dnsperf", "-s", "127.0.0.1", "-d", file, "-q", strconv.Itoa(outstanding),
	}, args...)...)...)
	if err != nil {
		return 0, err
	}
	return parsePerf(out)
}

// errQuestionsLost makes a rate worthless: dnsperf waits five seconds for each.
var errQuestionsLost = errors.New("questions without an answer")

// parsePerf reads what dnsperf says. A rate of wrong answers is none.
func parsePerf(out string) (float64, error) {
	rate, gone, code := perSecond.FindStringSubmatch(out), lost.FindStringSubmatch(out), codes.FindStringSubmatch(out)
	if rate == nil || gone == nil || code == nil {
		return 0, fmt.Errorf("dnsperf says: %.500s", out)
	}
	if gone[1] != "0" {
		return 0, fmt.Errorf("%s of them: %w", gone[1], errQuestionsLost)
	}
	if !strings.HasPrefix(code[1], "NOERROR ") || strings.Contains(code[1], ",") {
		return 0, fmt.Errorf("dnsperf: answers %s", code[1])
	}
	return strconv.ParseFloat(rate[1], 64)
}

// latency asks new names, one after the other, of a server that the box sees.
func (b *box) latency(server netip.AddrPort) (p50, p99 time.Duration, err error) {
	var conn *net.UDPConn
	if err := b.ns.Do(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
		return err
	}); err != nil {
		return 0, 0, err
	}
	defer conn.Close()
	var all []time.Duration
	buf := make([]byte, 4096)
	for i := range sequential {
		q := question(uint16(i), fmt.Sprintf("l%d.%s", i, zone))
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		start := time.Now()
		if _, err := conn.Write(q); err != nil {
			return 0, 0, err
		}
		n, err := conn.Read(buf)
		if err != nil {
			return 0, 0, err
		}
		all = append(all, time.Since(start))
		if err := checkAnswer(q, buf[:n]); err != nil {
			return 0, 0, err
		}
	}
	slices.Sort(all)
	return all[len(all)/2], all[len(all)*99/100], nil
}

func benchDNS() (rows []row, err error) {
	dir, err := os.MkdirTemp("", "terok-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	runtimeDir := filepath.Join(dir, "run") // of the hook, for its sockets
	if err := os.Mkdir(runtimeDir, 0o700); err != nil {
		return nil, err
	}
	if err := os.Setenv("XDG_RUNTIME_DIR", runtimeDir); err != nil {
		return nil, err
	}
	stop, err := dnsHost(dir)
	if err != nil {
		return nil, err
	}
	defer stop()

	contenders := []contender{
		{name: "ours", start: ours(false), learns: true, set: "learned_v4"},
		{name: "ours without nft", start: ours(true), set: "learned_v4"},
		{name: "dnsmasq, interval sets", start: reference("interval,timeout"), learns: true, set: "allow_v4"},
		{name: "dnsmasq, hash sets", start: reference("timeout"), learns: true, set: "allow_v4"},
	}
	got := make([][]dnsTimes, len(contenders))
	boxes := 0
	next := func() (*box, error) {
		boxes++
		return newBox(dir, boxes)
	}
	for range dnsRounds {
		for i, c := range contenders {
			t, err := fight(c, next)
			if err != nil {
				return nil, err
			}
			got[i] = append(got[i], t)
		}
		direct, err := bare(next)
		if err != nil {
			return nil, err
		}
		for i := range contenders { // what is left is what each adds
			t := &got[i][len(got[i])-1]
			t.p50 -= direct.p50
			t.p99 -= direct.p99
		}
	}
	middle := func(i int, of func(dnsTimes) float64) float64 {
		var all []float64
		for _, t := range got[i] {
			all = append(all, of(t))
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	freshOf := func(i int) float64 { return middle(i, func(t dnsTimes) float64 { return t.fresh }) }
	repeatedOf := func(i int) float64 { return middle(i, func(t dnsTimes) float64 { return t.repeated }) }
	p50 := func(i int) time.Duration {
		return time.Duration(middle(i, func(t dnsTimes) float64 { return float64(t.p50) }))
	}
	p99 := func(i int) time.Duration {
		return time.Duration(middle(i, func(t dnsTimes) float64 { return float64(t.p99) }))
	}
	const without, interval, hash = 1, 2, 3
	rows = []row{
		more("names/s, all new", freshOf(0), contenders[interval].name, freshOf(interval), 20),
		more("names/s, all new", freshOf(0), contenders[hash].name, freshOf(hash), 1),
		more("names/s, 1,000 repeated", repeatedOf(0), contenders[without].name, repeatedOf(without), 0.9),
		more("names/s, 1,000 repeated", repeatedOf(0), contenders[interval].name, repeatedOf(interval), 1),
		more("names/s, 1,000 repeated", repeatedOf(0), contenders[hash].name, repeatedOf(hash), 1),
		more("names/s, all new", freshOf(0), contenders[without].name, freshOf(without), 0),
		faster("added latency of a new name, p50", p50(0), contenders[interval].name, p50(interval), 1),
		faster("added latency of a new name, p99", p99(0), contenders[interval].name, p99(interval), 1),
		faster("added latency of a new name, p50", p50(0), contenders[hash].name, p50(hash), 0).informs(0),
		faster("added latency of a new name, p99", p99(0), contenders[hash].name, p99(hash), 0).informs(0),
	}
	memory, err := crowd(next)
	return append(rows, memory...), err
}

// bare is the stub itself, without anything between.
func bare(open func() (*box, error)) (dnsTimes, error) {
	x, err := open()
	if err != nil {
		return dnsTimes{}, err
	}
	defer x.end()
	var t dnsTimes
	t.p50, t.p99, err = x.latency(netip.AddrPortFrom(resolverAddr, 53))
	return t, err
}

// crowd is the memory of our processes before and after very many names.
func crowd(open func() (*box, error)) (rows []row, err error) {
	x, err := open()
	if err != nil {
		return nil, err
	}
	defer x.end()
	stop, err := ours(false)(x)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	few, err := x.questions("few", 10)
	if err != nil {
		return nil, err
	}
	if _, err := x.ask(few, "-n", "1"); err != nil {
		return nil, err
	}
	const idleGoal, fullGoal = 14e6, 60e6 // the second is what the end-to-end tests allow each
	for _, step := range []struct {
		name  string
		names int
		goal  float64
	}{{"memory of our processes (PSS)", 0, idleGoal}, {fmt.Sprintf("the same after %d names", million), million, fullGoal}} {
		if step.names > 0 {
			all, err := x.questions("m", step.names)
			if err != nil {
				return nil, err
			}
			if _, err := x.ask(all, "-n", "1"); err != nil {
				return nil, err
			}
		}
		pss, processes, err := memoryOf(x.dir)
		if err != nil {
			return nil, err
		}
		r := row{
			Name: fmt.Sprintf("%s, %d of them", step.name, processes), Unit: "MB", Ours: pss / 1e6, Against: "goal",
			Other: step.goal / 1e6, Ratio: step.goal / pss, Goal: fmt.Sprintf("≤ %.0f MB", step.goal/1e6), Met: pss <= step.goal,
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// memoryOf adds up the proportional set sizes of the processes that have the
// state directory among their arguments, in bytes.
func memoryOf(stateDir string) (pss float64, processes int, err error) {
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, 0, err
	}
	for _, p := range all {
		args, err := os.ReadFile(filepath.Join(p, "cmdline"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || !slices.Contains(strings.Split(string(args), "\x00"), stateDir) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(p, "smaps_rollup"))
		if err != nil {
			return 0, 0, err
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
				kb, err := strconv.ParseFloat(f[1], 64)
				if err != nil {
					return 0, 0, err
				}
				pss += kb * 1024
				processes++
			}
		}
	}
	if processes == 0 {
		return 0, 0, errors.New("no process of ours runs")
	}
	return pss, processes, nil
}

// more is a row whose goal is that ours is at least goal times other. A goal
// of zero is none: the row is for information.
func more(name string, ours float64, against string, other, goal float64) row {
	r := row{Name: name, Unit: "/s", Ours: ours, Against: against, Other: other, Ratio: ours / other, Goal: fmt.Sprintf("≥ %.4g×", goal)}
	r.Met = r.Ratio >= goal
	return r.informs(goal)
}

// informs takes the goal from a row that has none.
func (r row) informs(goal float64) row {
	if goal == 0 {
		r.Goal = "–"
	}
	return r
}
