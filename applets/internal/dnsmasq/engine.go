package dnsmasq

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/learned"
	"github.com/terok-ai/terok-box/applets/internal/tier"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/names"
)

const (
	// followEvery is how often it is looked what dnsmasq has logged. Who asks
	// for names or addresses has it looked at once.
	followEvery = 200 * time.Millisecond
	// confEvery is how often it is looked whether another program has
	// replaced dnsmasq.conf.
	confEvery = time.Second
	// The pause before dnsmasq is started again grows while it does not live
	// longer than settled.
	minBackoff = 100 * time.Millisecond
	maxBackoff = 10 * time.Second
	settled    = 10 * time.Second
)

// engine runs a container's dnsmasq.
//
//	            started                     died
//	launching ───────────► answering ─────────────────► launching
//	    │  ▲                   │ lists or file changed      ▲
//	    └──┘ failed: pause     └── ended, then ─────────────┘
type engine struct {
	tier.Resources
	program string
	ours    bool // the bundle is of this program: its dnsmasq.conf and sets, too
	learned *learned.Set
	journal *journal
	watch   watchers
	again   chan restart  // asks the goroutine that runs dnsmasq to start it again
	done    chan struct{} // everything has ended

	changing sync.Mutex // held while lists are read and put into force

	mu       sync.Mutex
	rules    *rules
	conf     confID // of dnsmasq.conf as it was when dnsmasq was started last
	restarts int
}

// restart is a request to start dnsmasq again.
type restart struct {
	between func() error // done while none runs; nil: nothing
	reply   chan error
}

// confID tells whether a file was replaced or changed.
type confID struct {
	info fs.FileInfo
}

func (a confID) same(b confID) bool {
	if a.info == nil || b.info == nil {
		return a.info == b.info
	}
	return os.SameFile(a.info, b.info) && a.info.Size() == b.info.Size() && a.info.ModTime().Equal(b.info.ModTime())
}

// New is the tier's engine. It opens no socket of its own: dnsmasq listens.
func New(r tier.Resources) (tier.Engine, error) { return newEngine(r) }

func newEngine(r tier.Resources) (*engine, error) {
	program, err := find()
	if err != nil {
		return nil, err
	}
	format, err := r.Bundle.RulesetFormat()
	if err != nil {
		return nil, err
	}
	rules, err := readRules(r.Bundle)
	if err != nil {
		return nil, err
	}
	e := &engine{
		Resources: r, program: program, ours: format > 0, rules: rules,
		again: make(chan restart), done: make(chan struct{}),
	}
	e.journal = newJournal(r.Bundle.Path(), e)
	return e, nil
}

// Start implements tier.Engine.
func (e *engine) Start(ctx context.Context, _ func(error)) (err error) {
	if e.learned, err = learned.New(learned.Options{Kernel: &kernel{Conn: e.NFT}, Cut: e.Track.Cut}); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			e.learned.Close()
		}
	}()
	if err := e.writeConf(); err != nil {
		return err
	}
	// One that serves a former life of the container or of this process.
	if err := end(ctx, e.Bundle); err != nil {
		return err
	}
	if err := e.journal.replay(); err != nil {
		e.Log.Warn("what dnsmasq has logged before is not known", "err", err)
	}
	c, err := e.launch(ctx)
	if err != nil {
		return errors.Join(err, end(context.WithoutCancel(ctx), e.Bundle))
	}
	e.Log.Info("dnsmasq answers", "pid", c.cmd.Process.Pid)
	var all sync.WaitGroup
	all.Go(func() { e.supervise(ctx, c) })
	all.Go(func() { e.follow(ctx) })
	go func() {
		all.Wait()
		e.journal.close()
		e.learned.Close()
		close(e.done)
	}()
	return nil
}

// supervise keeps dnsmasq running until ctx ends.
func (e *engine) supervise(ctx context.Context, c *child) {
	pause := time.Duration(0)
	retry := time.NewTimer(0)
	retry.Stop()
	dead := false
	launch := func() (err error) {
		if c, err = e.launch(ctx); err != nil {
			pause = min(max(2*pause, minBackoff), maxBackoff)
			retry.Reset(pause)
			dead = true
			return err
		}
		if dead {
			dead = false
			e.mu.Lock()
			e.restarts++
			e.mu.Unlock()
		}
		return nil
	}
	for {
		var died <-chan struct{}
		if c != nil {
			died = c.done
		}
		select {
		case <-ctx.Done():
			if c != nil {
				c.stop()
			}
			cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout+2*killTimeout)
			defer cancel()
			if err := end(cleanup, e.Bundle); err != nil {
				e.Log.Error("stop dnsmasq", "err", err)
			}
			return
		case <-died:
			e.Log.Warn("dnsmasq has died; it is started again", "err", c.failure())
			if time.Since(c.born) > settled {
				pause = 0
			}
			c, dead = nil, true
			if pause == 0 {
				g := e.openGap(ctx)
				pause = minBackoff // should it die soon
				if err := launch(); err != nil {
					e.silent(ctx, err)
					g.drop()
				} else {
					g.relay(ctx)
				}
				continue
			}
			retry.Reset(pause)
			pause = min(2*pause, maxBackoff)
		case <-retry.C:
			// Whatever was in the way may be one that nobody knows any more.
			err := end(ctx, e.Bundle)
			if err == nil {
				err = launch()
			} else {
				retry.Reset(maxBackoff)
			}
			if err != nil {
				e.silent(ctx, err)
			}
		case r := <-e.again:
			retry.Stop()
			g := e.openGap(ctx)
			if c != nil {
				if g.conn != nil {
					time.Sleep(lastAnswers)
				}
				c.stop()
			}
			var betweenErr error
			if r.between != nil {
				betweenErr = r.between()
			}
			err := launch()
			if err != nil {
				g.drop()
			} else {
				g.relay(ctx)
			}
			r.reply <- errors.Join(betweenErr, err)
		}
	}
}

// silent says that dnsmasq does not run.
func (e *engine) silent(ctx context.Context, err error) {
	if ctx.Err() == nil {
		e.Log.Error("names are not answered", "err", err)
	}
}

// restart starts dnsmasq again with the configuration that is there now, and
// has something done while none runs, unless that is nil.
func (e *engine) restart(ctx context.Context, between func() error) error {
	reply := make(chan error, 1)
	select {
	case e.again <- restart{between, reply}:
	case <-e.done:
		return errors.New("dnsmasq: the engine has ended")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-reply:
		return err
	case <-e.done:
		return errors.New("dnsmasq: the engine has ended")
	}
}

// launch starts dnsmasq with the configuration in the bundle.
func (e *engine) launch(ctx context.Context) (*child, error) {
	id := e.confID() // before reading: what is replaced meanwhile is noticed
	conf, err := e.Bundle.DnsmasqConf()
	if err != nil {
		return nil, err
	}
	if conf == nil {
		return nil, fmt.Errorf("%s is missing; prepare the container again", filepath.Join(e.Bundle.Path(), bundle.FileDnsmasqConf))
	}
	e.setConf(id)
	args := []string{"--log-queries=extra"} // so that its lines tell which question they are about
	if !e.ours {
		for _, o := range options(foreignTTL) {
			args = append(args, "--"+o)
		}
	}
	return spawn(ctx, e.Bundle, e.NetNS, e.program, conf, args)
}

func (e *engine) confID() confID {
	fi, err := os.Lstat(filepath.Join(e.Bundle.Path(), bundle.FileDnsmasqConf))
	if err != nil {
		return confID{}
	}
	return confID{fi}
}

func (e *engine) setConf(id confID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.conf = id
}

// started reports whether dnsmasq was started with that file.
func (e *engine) started(id confID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.conf.same(id)
}

// writeConf has dnsmasq.conf follow the lists.
func (e *engine) writeConf() error {
	r, err := readRules(e.Bundle)
	if err != nil {
		return err
	}
	for _, err := range r.ignored {
		e.Log.Warn("an entry of the lists is not used", "err", err)
	}
	if e.ours {
		listen, err := e.Bundle.Listen()
		if err != nil {
			return err
		}
		upstream, err := e.Bundle.UpstreamDNS()
		if err != nil {
			return err
		}
		conf, err := generate(e.Bundle.Path(), listen, upstream, r)
		if err != nil {
			return err
		}
		if err := e.Bundle.SetDnsmasqConf(conf); err != nil {
			return err
		}
	} else if err := Rewrite(e.Bundle); err != nil {
		return err
	}
	e.mu.Lock()
	e.rules = r
	e.mu.Unlock()
	return nil
}

func (e *engine) current() *rules {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.rules
}

func (e *engine) allows(name string) bool { return e.current().names.Decide(name).Allowed }

// Reload implements names.Service.
func (e *engine) Reload(ctx context.Context) (change names.Change, err error) {
	e.changing.Lock()
	defer e.changing.Unlock()
	if err := e.writeConf(); err != nil {
		return change, err
	}
	r := e.current()
	change.Allowed, change.Denied = r.names.Len()
	// SIGHUP does not make dnsmasq read its configuration again. If it does
	// not start, what is no longer allowed must be closed all the same.
	restartErr := e.restart(ctx, nil)
	removed, err := e.closeOthers(ctx)
	for _, a := range removed {
		change.Removed = append(change.Removed, a.String())
	}
	_, kernelErr := e.NFT.Learned()
	change.Enforced = !errors.Is(kernelErr, nft.ErrNotLearning) || !e.ours
	return change, errors.Join(restartErr, err)
}

// Forget implements names.Service. dnsmasq is started again, without what it
// has remembered: between the two nobody answers, so that what is closed then is
// not what an answer that leaves later relies on.
func (e *engine) Forget(ctx context.Context) (removed []netip.Addr, err error) {
	e.changing.Lock()
	defer e.changing.Unlock()
	err = e.restart(ctx, func() (err error) {
		ctx := context.WithoutCancel(ctx) // not half of it
		endErr := end(ctx, e.Bundle)      // those it has forked for TCP answer, too
		e.journal.catchUp(ctx)            // or what they have opened would be taken for new
		removed, err = e.learned.Forget(ctx)
		return errors.Join(endErr, err)
	})
	return removed, err
}

// closeOthers closes every learned address that no allowed name is known to
// have led to.
func (e *engine) closeOthers(ctx context.Context) ([]netip.Addr, error) {
	if !e.ours {
		return nil, nil
	}
	// dnsmasq logs an address before it opens it: what is open now is in the
	// log by now.
	there, err := e.NFT.Learned()
	if err != nil && !errors.Is(err, nft.ErrNotLearning) {
		return nil, err
	}
	e.journal.catchUp(ctx)
	removed, err := e.learned.Retain(ctx, e.allows)
	if err != nil {
		return removed, err
	}
	var stray []netip.Addr
	for _, l := range there {
		if !slices.Contains(removed, l.Addr) && !e.owned(l.Addr) {
			stray = append(stray, l.Addr)
		}
	}
	if err := e.shut(stray); err != nil {
		return removed, err
	}
	removed = append(removed, stray...)
	slices.SortFunc(removed, netip.Addr.Compare)
	return removed, nil
}

// owned reports whether an allowed name led to the address.
func (e *engine) owned(addr netip.Addr) bool {
	return slices.ContainsFunc(e.learned.Names(addr), func(n names.Name) bool { return n.Allowed && e.allows(n.Name) })
}

// shut closes addresses that only dnsmasq has opened.
func (e *engine) shut(addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	if err := e.NFT.Forget(addrs); err != nil && !errors.Is(err, nft.ErrNotLearning) {
		return fmt.Errorf("close what names had opened: %w", err)
	}
	if _, err := e.Track.Cut(addrs); err != nil {
		return fmt.Errorf("end the connections to %d addresses: %w", len(addrs), err)
	}
	return nil
}

// follow reads the log, and notices a configuration that another program has
// put there.
func (e *engine) follow(ctx context.Context) {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	looked := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		e.journal.tick(ctx)
		if time.Since(looked) < confEvery {
			continue
		}
		looked = time.Now()
		if !e.changing.TryLock() { // it is being changed
			continue
		}
		if now := e.confID(); !e.started(now) {
			e.adopt(ctx)
		}
		e.changing.Unlock()
	}
}

// adopt puts a changed configuration into force: ours is written again from
// the lists, another program's is as it meant it.
func (e *engine) adopt(ctx context.Context) {
	e.setConf(e.confID()) // once, should it fail
	var err error
	if e.ours {
		err = e.writeConf()
	} else if r, rulesErr := readRules(e.Bundle); rulesErr != nil {
		err = rulesErr
	} else {
		e.mu.Lock()
		e.rules = r
		e.mu.Unlock()
	}
	if err == nil {
		err = e.restart(ctx, nil)
	}
	if err == nil {
		_, err = e.closeOthers(ctx)
	}
	if err != nil && ctx.Err() == nil {
		e.Log.Error("dnsmasq.conf has changed", "err", err)
		return
	}
	e.Log.Info("dnsmasq.conf has changed; dnsmasq was started again")
}

// Names implements names.Service.
func (e *engine) Names(addr netip.Addr) []names.Name {
	e.journal.catchUp(context.Background())
	out := e.learned.Names(addr)
	for i := range out {
		out[i].Allowed = e.allows(out[i].Name)
	}
	return out
}

// Addresses implements names.Service.
func (e *engine) Addresses(name string) []netip.Addr {
	e.journal.catchUp(context.Background())
	return e.learned.Addresses(name)
}

// Status implements names.Service.
func (e *engine) Status() names.Status {
	s := names.Status{Tier: string(bundle.Dnsmasq), Upstreams: []string{}, Learned: e.learned.Len()}
	if a, err := e.Bundle.UpstreamDNS(); err == nil && a.IsValid() {
		s.Upstreams = append(s.Upstreams, net.JoinHostPort(a.String(), strconv.Itoa(dnsPort)))
	}
	e.mu.Lock()
	s.Allowed, s.Denied = e.rules.names.Len()
	s.Restarts = e.Spec.Restarts + e.restarts
	e.mu.Unlock()
	s.Questions, s.Refused, s.Failed = e.journal.counts()
	return s
}

// Watch implements names.Service.
func (e *engine) Watch(ctx context.Context, f func(names.Question) error) error {
	return e.watch.watch(ctx, f)
}

// kernel is the firewall as learned.Set sees it. dnsmasq changes it with every
// answer, so that the kernel's count of changes says nothing about what was
// learned: only the Set's own changes count.
type kernel struct {
	*nft.Conn
	mu      sync.Mutex
	changes uint32
}

// Learn counts.
func (k *kernel) Learn(all []nft.Learned) error { return k.count(k.Conn.Learn(all)) }

// Forget counts.
func (k *kernel) Forget(addrs []netip.Addr) error { return k.count(k.Conn.Forget(addrs)) }

// ForgetAll counts.
func (k *kernel) ForgetAll() error { return k.count(k.Conn.ForgetAll()) }

func (k *kernel) count(err error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.changes++
	return err
}

// Generation is how often the Set has changed the firewall.
func (k *kernel) Generation() (uint32, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.changes, nil
}
