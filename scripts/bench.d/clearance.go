package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/event"
)

// The measurement of questions: containers with everything that the hooks
// start, asked and answered over the real sockets.
const (
	questions = 1000
	// pace keeps below the log lines a second that the ruleset lets through.
	pace        = 12 * time.Millisecond
	flushes     = 5 // of the kernel's own, a second each
	floodTime   = 10 * time.Second
	floodRate   = 100_000 // packets a second
	listeners   = 64      // subscribers, one of which does not read
	crowdEvents = 1000
	containers  = 50
	settle      = 3 * time.Second // until processes have given back what their start took
	patience    = 10 * time.Second
)

// guarded is a box whose hooks have run.
type guarded struct {
	*box
	short   string
	state   []byte
	runtime string // XDG_RUNTIME_DIR
}

// guard makes the box a container that asks, with a name server of its own if
// there are names.
func guard(x *box, runtime string, n int, names ...string) (*guarded, error) {
	t, err := ruleset.Build(ruleset.Up, ruleset.Params{})
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(x.dir, "state", "containers", fmt.Sprintf("box-%d", n))
	b, err := bundle.Create(dir)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	tier := bundle.Static
	if names != nil {
		tier = bundle.Proxy
	}
	for _, err := range []error{
		b.SetRuleset(t.String()), b.SetRulesetFormat(ruleset.Format), b.SetLoopbackPorts(nil),
		b.SetTier(tier), b.SetProfileAllowed(nil), b.SetProfileDomains(names),
	} {
		if err != nil {
			return nil, err
		}
	}
	id := fmt.Sprintf("%012x%052x", n, n)
	g := &guarded{box: x, short: id[:12], runtime: runtime}
	g.state, err = json.Marshal(map[string]any{
		"ociVersion": "1.0.2", "id": id, "pid": x.pid, "status": "created",
		"annotations": map[string]string{
			"terok.shield.profiles": "bench", "terok.shield.name": fmt.Sprintf("box-%d", n),
			"terok.shield.state_dir": dir, "terok.shield.version": fmt.Sprint(bundle.Version),
		},
	})
	if err != nil {
		return nil, err
	}
	for _, hook := range []string{"reader-hook", "nft-hook"} { // in Podman's order
		if _, err := g.hook(hook, "createRuntime"); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// hook runs one of the hooks and says how long that took.
func (g *guarded) hook(name, stage string) (time.Duration, error) {
	return timedIn(g.dir, g.environ(), g.state, filepath.Join(build, name), stage)
}

func (g *guarded) environ() []string {
	return append(os.Environ(), "XDG_RUNTIME_DIR="+g.runtime, "TEROK_SHIELD_STATE_DIR="+filepath.Join(g.dir, "state"))
}

func (g *guarded) close() error {
	var errs []error
	for _, hook := range []string{"reader-hook", "nft-hook"} {
		_, err := g.hook(hook, "poststop")
		errs = append(errs, err)
	}
	g.end()
	return errors.Join(errs...)
}

// desk is somebody who answers one container's questions.
type desk struct {
	answers *clearance.Client
	events  chan arrival
	cancel  context.CancelFunc
}

type arrival struct {
	at time.Time
	clearance.Event
}

func (g *guarded) desk() (*desk, error) {
	ctx, cancel := context.WithCancel(context.Background())
	d := &desk{events: make(chan arrival, 4096), cancel: cancel}
	path := clearance.SocketPath(g.runtime, g.short)
	listen, err := clearance.Dial(ctx, path)
	for end := time.Now().Add(patience); err != nil && time.Now().Before(end); { // the hook does not wait for it
		time.Sleep(time.Millisecond)
		listen, err = clearance.Dial(ctx, path)
	}
	if err == nil {
		d.answers, err = clearance.Dial(ctx, path)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	go func() {
		_ = listen.Subscribe(ctx, func(e clearance.Event) error {
			d.events <- arrival{time.Now(), e}
			return nil
		})
	}()
	time.Sleep(100 * time.Millisecond) // until it listens
	return d, nil
}

// about waits for the question about a destination.
func (d *desk) about(dest string) (arrival, error) {
	for end := time.After(patience); ; {
		select {
		case a := <-d.events:
			if a.Type == event.Blocked && a.Dest == dest {
				return a, nil
			}
		case <-end:
			return arrival{}, fmt.Errorf("nobody was asked about %s", dest)
		}
	}
}

// sender sends from the box to any address; what is blocked fails.
func (b *box) sender() (*net.UDPConn, error) {
	var c *net.UDPConn
	err := b.ns.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", &net.UDPAddr{})
		return err
	})
	return c, err
}

func destination(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18 + byte(i>>16), byte(i >> 8), byte(i)}), 9)
}

// commits tells when something in the box's nf_tables has changed.
type commits struct{ fd int }

func (b *box) commits() (c commits, err error) {
	const nftables = 7 // NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h
	err = b.ns.Do(func() (err error) {
		if c.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER); err != nil {
			return err
		}
		return unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (nftables - 1)})
	})
	return c, err
}

// next waits for a change; what was told before is passed over by drain.
func (c commits) next() (time.Time, error) {
	fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(patience.Milliseconds()))
	at := time.Now()
	if err == nil && n == 0 {
		err = errors.New("nothing changed in nf_tables")
	}
	return at, err
}

func (c commits) drain() {
	buf := make([]byte, 64<<10)
	for {
		if _, _, err := unix.Recvfrom(c.fd, buf, unix.MSG_DONTWAIT); err != nil {
			return
		}
	}
}

// latencies are those of questions, asked and allowed one after the other:
// from the packet to the subscriber, and from the answer to the kernel.
func latencies(g *guarded, n, first int) (asked, answered []time.Duration, err error) {
	d, err := g.desk()
	if err != nil {
		return nil, nil, err
	}
	defer d.cancel()
	from, err := g.sender()
	if err != nil {
		return nil, nil, err
	}
	defer from.Close()
	changes, err := g.commits()
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(changes.fd)
	for i := range n {
		next := time.Now().Add(pace)
		to := destination(first + i)
		start := time.Now()
		if _, err := from.WriteToUDPAddrPort([]byte("x"), to); err == nil {
			return nil, nil, fmt.Errorf("a packet to %s was not blocked", to)
		}
		a, err := d.about(to.Addr().String())
		if err != nil {
			return nil, nil, err
		}
		asked = append(asked, a.at.Sub(start))
		changes.drain()
		start = time.Now()
		done := make(chan error, 1)
		go func() {
			done <- d.answers.Verdict(context.Background(), clearance.Request{
				Container: a.Container, RequestID: a.RequestID, Dest: a.Target(), Action: clearance.Allow,
			})
		}()
		at, err := changes.next()
		if err = errors.Join(err, <-done); err != nil {
			return nil, nil, err
		}
		answered = append(answered, at.Sub(start))
		time.Sleep(time.Until(next))
	}
	return asked, answered, nil
}

// kernelFlush is how long the kernel keeps a logged packet when nobody says
// otherwise, as the existing reader leaves it.
func kernelFlush(x *box) (time.Duration, error) {
	const table = `table inet plain {
	chain output {
		type filter hook output priority filter; policy accept;
		ip daddr 198.18.0.0/15 log group 101 reject
	}
}
`
	if _, err := output(table, x.in("nft", "-f", "-")...); err != nil {
		return 0, err
	}
	var fd int
	err := x.ns.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER); err != nil {
			return err
		}
		// One command: bind group 101 (linux/netfilter/nfnetlink_log.h).
		m := make([]byte, 28)
		binary.NativeEndian.PutUint32(m, 28)
		binary.NativeEndian.PutUint16(m[4:], unix.NFNL_SUBSYS_ULOG<<8|1)
		binary.NativeEndian.PutUint16(m[6:], unix.NLM_F_REQUEST)
		m[16] = unix.AF_INET
		binary.BigEndian.PutUint16(m[18:], 101)
		binary.NativeEndian.PutUint16(m[20:], 8)
		binary.NativeEndian.PutUint16(m[22:], 1)
		m[24] = 1
		return unix.Sendto(fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	from, err := x.sender()
	if err != nil {
		return 0, err
	}
	defer from.Close()
	var all []time.Duration
	buf := make([]byte, 64<<10)
	for i := range flushes {
		start := time.Now()
		_, _ = from.WriteToUDPAddrPort([]byte("x"), destination(i)) // rejected
		if _, _, err := unix.Recvfrom(fd, buf, 0); err != nil {
			return 0, err
		}
		all = append(all, time.Since(start))
	}
	return median(all), nil
}

func quantile(d []time.Duration, q float64) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[min(int(q*float64(len(d))), len(d)-1)]
}

// atMost is a row about a time of ours alone.
func atMost(name string, ours, goal time.Duration) row {
	r := row{Name: name, Unit: "ms", Ours: ms(ours), Against: "goal", Other: ms(goal), Goal: fmt.Sprintf("≤ %v", goal)}
	r.Ratio = r.Other / r.Ours
	r.Met = ours <= goal
	return r
}

// count is a row about numbers that have to be the same, or a limit.
func count(name, unit string, ours float64, against string, other float64, goal string, met bool) row {
	r := row{Name: name, Unit: unit, Ours: ours, Against: against, Other: other, Goal: goal, Met: met}
	if ours != 0 {
		r.Ratio = other / ours
	}
	return r
}

// flood sends packets to ever new destinations and returns how many it sent.
func flood(ctx context.Context, x *box, first int) (*atomic.Int64, *sync.WaitGroup, error) {
	c, err := x.sender()
	if err != nil {
		return nil, nil, err
	}
	sent, wg := new(atomic.Int64), new(sync.WaitGroup)
	wg.Go(func() {
		defer c.Close()
		start := time.Now()
		for i := 0; ctx.Err() == nil; i++ {
			_, _ = c.WriteToUDPAddrPort([]byte("x"), destination(first+i&0xffff)) // rejected
			if n := sent.Add(1); n%100 == 0 {
				if ahead := time.Duration(n)*time.Second/floodRate - time.Since(start); ahead > 0 {
					time.Sleep(ahead)
				}
			}
		}
	})
	return sent, wg, nil
}

// process is what the kernel says of a process of ours.
type process struct {
	pid int
	cpu time.Duration
	pss int // kB
}

// processes are those of ours that name a directory.
func processes(dir string) (all []process, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || !strings.HasPrefix(string(args), "terok-box\x00") || !strings.Contains(string(args), dir) {
			continue
		}
		p := process{pid: pid}
		stat, err1 := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		rollup, err2 := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err1 != nil || err2 != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		f := strings.Fields(rest)
		user, _ := strconv.Atoi(f[11])
		system, _ := strconv.Atoi(f[12])
		p.cpu = time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
		if m := pssLine.FindSubmatch(rollup); m != nil {
			p.pss, _ = strconv.Atoi(string(m[1]))
		}
		all = append(all, p)
	}
	return all, nil
}

var pssLine = regexp.MustCompile(`(?m)^Pss: *(\d+) kB`)

func pss(all []process) (kb int) {
	for _, p := range all {
		kb += p.pss
	}
	return kb
}

func (g *guarded) supervisor() (*control.Client, error) {
	return control.Dial(context.Background(), control.SocketPath(g.runtime, g.short))
}

func benchClearance() (rows []row, err error) {
	dir, err := os.MkdirTemp("", "terok-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	stop, err := dnsHost(dir)
	if err != nil {
		return nil, err
	}
	defer stop()
	runtime := filepath.Join(dir, "run")
	if err := os.Mkdir(runtime, 0o700); err != nil {
		return nil, err
	}
	n := 0
	open := func(names ...string) (*guarded, error) {
		n++
		x, err := newBox(dir, n)
		if err != nil {
			return nil, err
		}
		g, err := guard(x, runtime, n, names...)
		if err != nil {
			x.end()
		}
		return g, err
	}
	for _, part := range []func(func(...string) (*guarded, error), string) ([]row, error){
		benchLatency, benchClick, benchFlood, benchLoss, benchCrowd, benchMemory,
	} {
		got, err := part(open, dir)
		if err != nil {
			return nil, err
		}
		rows = append(rows, got...)
	}
	return rows, nil
}

func benchLatency(open func(...string) (*guarded, error), dir string) (rows []row, err error) {
	g, err := open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	asked, answered, err := latencies(g, questions, 0)
	if err != nil {
		return nil, err
	}
	flush, err := kernelFlush(g.box)
	if err != nil {
		return nil, err
	}
	hello, err := buildHello(dir)
	if err != nil {
		return nil, err
	}
	var hook, greeting []time.Duration
	for range runs {
		other, err := open()
		if err != nil {
			return nil, err
		}
		if _, err := other.hook("reader-hook", "poststop"); err != nil {
			return nil, err
		}
		took, err := other.hook("reader-hook", "createRuntime")
		if err == nil {
			hook = append(hook, took)
			took, err = timed(dir, nil, hello)
			greeting = append(greeting, took)
		}
		if err = errors.Join(err, other.close()); err != nil {
			return nil, err
		}
	}
	return []row{
		faster("packet → subscriber, p50", quantile(asked, .5), "the kernel's own flush", flush, float64(time.Second/time.Millisecond)/2),
		atMost("packet → subscriber, p50", quantile(asked, .5), time.Millisecond),
		atMost("packet → subscriber, p99", quantile(asked, .99), 5*time.Millisecond),
		atMost("answer → kernel, p50", quantile(answered, .5), 2*time.Millisecond),
		atMost("answer → kernel, p99", quantile(answered, .99), 2*time.Millisecond),
		within("reader-hook, exec to exit", median(hook), "static hello world", median(greeting), 4),
	}, nil
}

// benchFlood: a container floods its own firewall and another one's questions
// are asked as fast as before.
func benchFlood(open func(...string) (*guarded, error), _ string) (rows []row, err error) {
	g, err := open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	other, err := open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, other.close()) }()
	const few = 100
	quiet, _, err := latencies(other, few, 0)
	if err != nil {
		return nil, err
	}
	before, err := processes(g.dir)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), floodTime)
	defer cancel()
	start := time.Now()
	sent, done, err := flood(ctx, g.box, 0)
	if err != nil {
		return nil, err
	}
	time.Sleep(time.Second)
	early, err := processes(g.dir)
	if err != nil {
		return nil, err
	}
	loud, _, err := latencies(other, few, few)
	done.Wait()
	if err != nil {
		return nil, err
	}
	took := time.Since(start)
	after, err := processes(g.dir)
	if err != nil {
		return nil, err
	}
	var cpu time.Duration
	for _, p := range after {
		cpu += p.cpu
	}
	for _, p := range before {
		cpu -= p.cpu
	}
	rate := float64(sent.Load()) / took.Seconds()
	const grown = 1 << 10 // kB
	return []row{
		count("blocked packets a second in the flood", "k/s", rate/1000, "goal", floodRate/1000, "100 k/s", rate >= 0.9*floodRate),
		count("CPU of the flooded container's processes", "% of a core", 100*cpu.Seconds()/took.Seconds(), "goal", 10, "≤ 10 %", cpu.Seconds() <= 0.1*took.Seconds()),
		count("their memory (PSS), after the flood", "MB", float64(pss(after))/1e3, "after its first second", float64(pss(early))/1e3, "≤ 1 MB more", pss(after) <= pss(early)+grown),
		faster("another container's packet → subscriber, p99 in the flood", quantile(loud, .99), "without it", quantile(quiet, .99), 0.2),
	}, nil
}

// taken is how far the reader is and how many packets the kernel has logged
// for it, at a moment at which none is under way.
func taken(g *guarded, client *control.Client) (is control.Status, logged int64, err error) {
	counter := regexp.MustCompile(`counter packets (\d+)`)
	for range 20 { // the network has packets of its own, now and then
		before := logged
		listed, err := output("", g.in("nft", "list", "chain", "inet", "terok_shield", "output")...)
		if err != nil {
			return is, 0, err
		}
		m := counter.FindStringSubmatch(listed)
		if m == nil {
			return is, 0, fmt.Errorf("no counter in %.200s", listed)
		}
		if logged, err = strconv.ParseInt(m[1], 10, 64); err != nil {
			return is, 0, err
		}
		if logged == before && is.Container != "" {
			return is, logged, nil
		}
		time.Sleep(300 * time.Millisecond)
		if is, err = client.Status(context.Background()); err != nil {
			return is, 0, err
		}
	}
	return is, 0, errors.New("there are packets all the time")
}

// benchLoss: without the ruleset's own limit, what the reader cannot take is
// counted to the packet.
func benchLoss(open func(...string) (*guarded, error), _ string) (rows []row, err error) {
	g, err := open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	const table = `flush ruleset
table inet terok_shield {
	chain output {
		type filter hook output priority filter; policy drop;
		counter log group 100 prefix "TEROK_SHIELD_BLOCKED: " reject with icmpx admin-prohibited
	}
}
`
	if _, err := output(table, g.in("nft", "-f", "-")...); err != nil {
		return nil, err
	}
	d, err := g.desk() // which waits for it
	if err != nil {
		return nil, err
	}
	d.cancel()
	client, err := g.supervisor()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	was, loggedBefore, err := taken(g, client)
	if err != nil {
		return nil, err
	}
	before, err := processes(g.dir)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), floodTime)
	defer cancel()
	start := time.Now()
	sent, done, err := flood(ctx, g.box, 0)
	if err != nil {
		return nil, err
	}
	done.Wait()
	took := time.Since(start)
	after, err := processes(g.dir)
	if err != nil {
		return nil, err
	}
	time.Sleep(time.Second)
	// The next packet shows what was lost before it.
	c, err := g.sender()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_, _ = c.WriteToUDPAddrPort([]byte("x"), destination(0)) // rejected
	is, loggedAfter, err := taken(g, client)
	if err != nil {
		return nil, err
	}
	logged := float64(loggedAfter - loggedBefore)
	seen, lost := float64(is.Packets-was.Packets), float64(is.Lost-was.Lost)
	var cpu time.Duration
	for _, p := range after {
		cpu += p.cpu
	}
	for _, p := range before {
		cpu -= p.cpu
	}
	rate := float64(sent.Load()) / took.Seconds()
	return []row{
		count("logged packets a second, no limit", "k/s", rate/1000, "goal", floodRate/1000, "100 k/s", rate >= 0.9*floodRate),
		count("packets read + reported lost", "packets", seen+lost, "logged by the kernel", logged, "the same", seen+lost == logged),
		count("of these lost", "packets", lost, "goal", 0, "none", lost == 0),
		count("CPU of the reader", "% of a core", 100*cpu.Seconds()/took.Seconds(), "goal", 60, "≤ 60 %", cpu.Seconds() <= 0.6*took.Seconds()),
	}, nil
}

// benchCrowd: of many subscribers one does not read, and the others miss
// nothing.
func benchCrowd(open func(...string) (*guarded, error), _ string) (rows []row, err error) {
	g, err := open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	d, err := g.desk() // which waits for it
	if err != nil {
		return nil, err
	}
	d.cancel()
	path := clearance.SocketPath(g.runtime, g.short)
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	stalled, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	defer stalled.Close()
	if _, err := stalled.Write([]byte(`{"method":"` + clearance.InterfaceName + `.Subscribe","more":true}` + "\x00")); err != nil {
		return nil, err
	}
	var got atomic.Int64
	var wg sync.WaitGroup
	for range listeners - 1 {
		c, err := clearance.Dial(ctx, path)
		if err != nil {
			return nil, err
		}
		wg.Go(func() {
			defer c.Close()
			seen := 0
			_ = c.Subscribe(ctx, func(e clearance.Event) error {
				if e.Type != event.ShieldUp {
					return nil
				}
				got.Add(1)
				if seen++; seen == crowdEvents {
					return errEnough
				}
				return nil
			})
		})
	}
	time.Sleep(500 * time.Millisecond)
	sender := event.NewEmitter(event.SocketPaths(g.runtime, g.short)...)
	defer sender.Close()
	start := time.Now()
	for i := range crowdEvents {
		if err := sender.Send(event.Event{Type: event.ShieldUp, Container: g.short, Dossier: map[string]string{"n": strconv.Itoa(i)}}); err != nil {
			return nil, err
		}
		time.Sleep(time.Millisecond)
	}
	wg.Wait()
	want := float64((listeners - 1) * crowdEvents)
	return []row{
		count("events that 63 subscribers got while one stalled", "events", float64(got.Load()), "sent to them", want, "all", float64(got.Load()) == want),
		count("time for that", "ms", ms(time.Since(start)), "sending alone", ms(crowdEvents*time.Millisecond), "–", true),
	}, nil
}

var errEnough = errors.New("enough")

func benchMemory(open func(...string) (*guarded, error), dir string) (rows []row, err error) {
	var all []*guarded
	defer func() {
		for _, g := range all {
			err = errors.Join(err, g.close())
		}
	}()
	for len(all) < containers {
		g, err := open(zone)
		if err != nil {
			return nil, err
		}
		all = append(all, g)
		if len(all) > 1 {
			continue
		}
		time.Sleep(settle)
		one, err := processes(dir)
		if err != nil {
			return nil, err
		}
		const goal = 14
		mb := float64(pss(one)) / 1e3
		rows = append(rows, count(fmt.Sprintf("memory (PSS) of all %d processes of one container", len(one)), "MB", mb, "goal", goal, "≤ 14 MB", mb <= goal))
	}
	time.Sleep(settle)
	many, err := processes(dir)
	if err != nil {
		return nil, err
	}
	mb := float64(pss(many)) / 1e3 / containers
	return append(rows, count(fmt.Sprintf("the same for %d containers, each", containers), "MB", mb, "one alone", rows[0].Ours, "less", mb < rows[0].Ours)), nil
}
