package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/dnsmasq"
	"github.com/terok-ai/terok-box/applets/internal/roster"
	"github.com/terok-ai/terok-box/applets/internal/tier"
	"github.com/terok-ai/terok-box/nl/conntrack"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/names"
	"github.com/terok-ai/terok-box/wire/varlink"
)

const (
	port = 53
	// handover is how long the sockets of a process that is ending may keep
	// this one from its own.
	handover      = 2 * time.Second
	handoverPause = 10 * time.Millisecond
	// gcPercent is how much the heap grows between collections: there is a
	// process per container, most of which have little to do.
	gcPercent = 50
	// endTimeout is how long the end of a part is waited for.
	endTimeout = time.Second
)

// errLeave is the reason to end so that another server takes over.
var errLeave = errors.New("told to end")

// server is one life of the process that does the work.
type server struct {
	program
	spec     names.Spec
	log      *slog.Logger
	res      tier.Resources
	engine   tier.Engine
	listener *varlink.Listener
	peer     *peer // nil: to be started
}

// serve is the server.
func (p program) serve(spec names.Spec, pipe *os.File, wait func() error) (err error) {
	debug.SetGCPercent(gcPercent)
	report, err := child.Pollable(names.FileReport)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, child.SignalEnd, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	go func() {
		if <-signals == child.SignalEnd {
			cancel(errEnd)
		} else {
			cancel(errLeave)
		}
	}()
	stop := context.AfterFunc(ctx, func() { pipe.Close() })
	defer stop()

	s := &server{program: p, spec: spec, log: slog.New(slog.DiscardHandler)}
	defer s.close()
	failed := make(chan error, 1)
	if err := s.start(ctx, wait, func(err error) { failed <- err }); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if errors.Is(err, errEnd) {
			s.finish()
			return nil
		}
		s.log.Error("cannot start", "err", err)
		s.close()
		fmt.Fprintln(report, cmdenv.Printable(err.Error()))
		return err
	}
	stop()
	pipe.Close()
	served, err := s.publish(ctx, cancel)
	if err == nil {
		_, err = fmt.Fprintln(report, names.Ready)
		report.Close()
	}
	if err != nil { // also if whoever waits for this has died
		s.log.Error("cannot start", "err", err)
		cancel(err)
		<-served
		if s.peer == nil { // else another server will be started
			s.finish()
		}
		fmt.Fprintln(report, cmdenv.Printable(err.Error()))
		return err
	}
	guarded := make(chan struct{})
	go func() {
		defer close(guarded)
		cancel(s.guard(ctx))
	}()
	go func() {
		outlive(ctx, spec, s.log)
		cancel(errEnd)
	}()
	entitle(Name)
	s.log.Info("ready", "tier", spec.Tier, "restarts", spec.Restarts)
	if spec.Roster != "" {
		roster.Purge(spec.Roster)
	}
	child.Trim()
	select {
	case <-ctx.Done():
	case err := <-failed:
		cancel(fmt.Errorf("the engine failed: %w", err))
	}
	err = context.Cause(ctx)
	s.log.Info("end", "why", err)
	<-guarded
	select {
	case <-served:
	case <-time.After(endTimeout):
	}
	if errors.Is(err, errEnd) {
		s.finish()
		return nil
	}
	return err
}

// start opens everything, waits until the firewall is there and starts the
// engine.
func (s *server) start(ctx context.Context, wait func() error, failed func(error)) (err error) {
	construct, ok := s.engines[bundle.Tier(s.spec.Tier)]
	if !ok {
		return fmt.Errorf("no engine for tier %.20q in this build", s.spec.Tier)
	}
	if s.res.Bundle, err = bundle.Open(s.spec.StateDir); err != nil {
		return err
	}
	s.log = newLog(s.res.Bundle)
	s.res.Spec, s.res.Log = s.spec, s.log
	if s.res.NetNS, err = netns.OpenFile(fmt.Sprintf("/proc/self/fd/%d", names.FileNetNS)); err != nil {
		return err
	}
	if id, err := s.res.NetNS.ID(); err != nil || id.String() != s.spec.NetNS {
		return errors.Join(errors.New("given another network namespace than told"), err)
	}
	if s.spec.Restarts > 0 {
		f, err := child.Pollable(names.FilePeer)
		if err != nil {
			return err
		}
		s.peer = &peer{f, time.Now()}
		if len(living(s.spec, nil)) == 0 && vacant(ctx, s.spec, s.log) {
			return errEnd
		}
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	if s.listener, err = varlink.Listen(s.spec.Socket); err != nil {
		return err
	}
	if s.engine, err = construct(s.res); err != nil {
		return err
	}
	if err := wait(); err != nil {
		return err
	}
	return s.engine.Start(ctx, failed)
}

// open opens what belongs to the container's namespace. Port 53 may still be
// another process's that is about to end.
func (s *server) open(ctx context.Context) error {
	var at netip.AddrPort // invalid: nothing to open
	switch {
	case s.spec.Tier != string(bundle.Proxy):
	case s.spec.Restarts > 0:
		if err := s.inherit(); err != nil {
			return err
		}
	default:
		addr, err := s.res.Bundle.Listen()
		if err != nil {
			return err
		}
		at = netip.AddrPortFrom(addr, port)
	}
	for started := time.Now(); ; {
		err := s.res.NetNS.Do(func() error { return s.openHere(at) })
		if !errors.Is(err, syscall.EADDRINUSE) || time.Since(started) > handover {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(handoverPause):
		}
	}
}

// openHere opens it in the namespace of the calling thread.
func (s *server) openHere(at netip.AddrPort) (err error) {
	if at.IsValid() {
		if err := s.listen(at); err != nil {
			return fmt.Errorf("listen at %s in the container's network namespace: %w", at, err)
		}
	}
	if s.res.NFT, err = nft.Dial(); err != nil {
		return fmt.Errorf("reach nf_tables in the container's network namespace: %w", err)
	}
	if s.res.Track, err = conntrack.Dial(); err != nil {
		return fmt.Errorf("reach connection tracking in the container's network namespace: %w", err)
	}
	return nil
}

func (s *server) listen(at netip.AddrPort) (err error) {
	// The runtime brings it up only later.
	if err := netns.LoopbackUp(); err != nil {
		return err
	}
	if !at.Addr().IsLoopback() {
		if err := netns.AddLoopbackAddr(at.Addr()); err != nil {
			return err
		}
	}
	if s.res.UDP, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); err != nil {
		return err
	}
	if s.res.TCP, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)); err != nil {
		s.res.UDP.Close()
	}
	return err
}

// inherit takes the sockets over from the server before.
func (s *server) inherit() error {
	udp, tcp := os.NewFile(names.FileUDP, "port 53, UDP"), os.NewFile(names.FileTCP, "port 53, TCP")
	defer udp.Close()
	defer tcp.Close()
	packets, err1 := net.FilePacketConn(udp)
	listener, err2 := net.FileListener(tcp)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("take over the sockets of the process before: %w", err)
	}
	var ok1, ok2 bool
	s.res.UDP, ok1 = packets.(*net.UDPConn)
	s.res.TCP, ok2 = listener.(*net.TCPListener)
	if !ok1 || !ok2 {
		return errors.New("take over the sockets of the process before: they are of another kind")
	}
	return nil
}

// service is the engine, and knows how often it was started.
type service struct {
	tier.Engine
	restarts int
}

func (s service) Status() names.Status {
	st := s.Engine.Status()
	st.Restarts = s.restarts
	return st
}

// publish serves the interface until ctx ends, or cancels it if that fails, and
// records the process. served is closed when nobody is served any more.
func (s *server) publish(ctx context.Context, cancel context.CancelCauseFunc) (served <-chan struct{}, err error) {
	done := make(chan struct{})
	srv, err := varlink.NewServer(varlink.Config{
		Info:       varlink.Info{Vendor: "terok-ai", Product: child.Name, Version: cmdenv.Version(), URL: "https://github.com/terok-ai/terok-box"},
		Interfaces: []varlink.Interface{names.Interface(service{s.engine, s.spec.Restarts}, resources.Varlink(names.InterfaceName))},
		Log:        s.log,
	})
	if err != nil {
		close(done)
		return done, err
	}
	go func() {
		defer close(done)
		err := srv.Serve(ctx, s.listener)
		cancel(fmt.Errorf("serve %s: %w", names.InterfaceName, err))
	}()
	self, err := bundle.ProcessOf(os.Getpid(), s.spec.NetNS)
	if err != nil {
		return done, err
	}
	return done, s.res.Bundle.SetNamer(bundle.Namer{PID: self.PID, Start: self.Start, Socket: s.spec.Socket})
}

// guard keeps a keeper running until ctx ends, and returns its cause, or errEnd
// if the keeper was told to end.
func (s *server) guard(ctx context.Context) error {
	wait := backoff{pace: s.pace}
	for {
		if s.peer == nil {
			var err error
			if s.peer, err = s.startKeeper(); err != nil {
				s.log.Error("cannot start a keeper: nobody starts this process again should it die", "err", err)
				s.peer = nil
			}
		}
		born := time.Now()
		if s.peer != nil {
			born = s.peer.born
			err := s.peer.wait(ctx)
			if errors.Is(err, errEnd) { // who said so?
				s.peer.end()
			}
			s.peer.close()
			s.peer = nil
			if err != nil {
				return err
			}
			s.log.Warn("the keeper has died")
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait.after(time.Since(born))):
		}
	}
}

func (s *server) startKeeper() (_ *peer, err error) {
	udp, tcp := child.None, child.None
	if s.res.UDP != nil {
		if udp, err = child.Duplicate(s.res.UDP); err != nil {
			return nil, err
		}
		defer syscall.Close(udp)
		if tcp, err = child.Duplicate(s.res.TCP); err != nil {
			return nil, err
		}
		defer syscall.Close(tcp)
	}
	return start(names.Keeper, s.spec, names.FileNetNS, udp, tcp)
}

// finish leaves nothing behind. What fails is not worth more than a line: the
// hook cleans up once more.
func (s *server) finish() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*endTimeout)
	defer cancel()
	if s.peer != nil {
		s.peer.end()
	}
	if s.listener != nil {
		s.listener.Close()
	}
	b := s.res.Bundle
	if b == nil {
		return
	}
	if s.spec.Tier == string(bundle.Dnsmasq) {
		if err := dnsmasq.Stop(ctx, b); err != nil {
			s.log.Error("stop dnsmasq", "err", err)
		}
	}
	n, err := b.Namer()
	if err != nil || n.Alive() && n.PID != os.Getpid() {
		return // it is another process's
	}
	if s.listener == nil && n.Socket == s.spec.Socket { // that of the server before
		_ = os.Remove(s.spec.Socket)
	}
	if err := errors.Join(b.RemoveNamer(), vacate(s.spec)); err != nil {
		s.log.Error("forget this process", "err", err)
	}
}

func (s *server) close() {
	if s.listener != nil {
		s.listener.Close()
	}
	if s.res.Bundle != nil {
		s.res.Bundle.Close()
	}
	// The process ends: the kernel closes the rest, and nothing waits.
}
