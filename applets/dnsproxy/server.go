package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/dnsmasq"
	"github.com/terok-ai/terok-box/applets/internal/pair"
	"github.com/terok-ai/terok-box/applets/internal/reach"
	"github.com/terok-ai/terok-box/applets/internal/tier"
	"github.com/terok-ai/terok-box/nl/conntrack"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/names"
	"github.com/terok-ai/terok-box/wire/start"
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
	// stopTimeout is how long it may take to leave nothing behind.
	stopTimeout = 5 * time.Second

	logName = "dns.log" // in the state directory
)

// server is one life of the process that does the work.
type server struct {
	engines  map[bundle.Tier]func(tier.Resources) (tier.Engine, error)
	spec     names.Spec
	home     pair.Home
	log      *slog.Logger
	res      tier.Resources
	engine   tier.Engine
	listener *varlink.Listener
}

// Open opens the bundle.
func (s *server) Open() (_ *slog.Logger, err error) {
	if _, ok := s.engines[bundle.Tier(s.spec.Tier)]; !ok {
		return nil, fmt.Errorf("no engine for tier %.20q in this build", s.spec.Tier)
	}
	if s.res.Bundle, err = bundle.Open(s.spec.StateDir); err != nil {
		return nil, err
	}
	s.log = pair.NewLog(s.res.Bundle, logName).With("tier", s.spec.Tier)
	s.res.Spec, s.res.Log = s.spec, s.log
	return s.log, nil
}

// Start opens everything, waits until the firewall is there and starts the
// engine.
func (s *server) Start(ctx context.Context, wait func() error, failed func(error)) (err error) {
	if s.res.NetNS, err = netns.OpenFile(fmt.Sprintf("/proc/self/fd/%d", start.FileNetNS)); err != nil {
		return err
	}
	if id, err := s.res.NetNS.ID(); err != nil || id.String() != s.spec.NetNS {
		return errors.Join(errors.New("given another network namespace than told"), err)
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	if s.listener, err = varlink.Listen(s.spec.Socket); err != nil {
		return err
	}
	// Other programs are to be started confined.
	if s.spec.Tier == string(bundle.Dnsmasq) && s.spec.Restarts == 0 {
		if err := reach.Names(s.spec).Filter(); err != nil {
			s.log.Warn("dnsmasq may do more than it should", "err", err)
		}
	}
	if s.engine, err = s.engines[bundle.Tier(s.spec.Tier)](s.res); err != nil {
		return err
	}
	if err := wait(); err != nil {
		return err
	}
	return s.engine.Start(ctx, func(err error) { failed(fmt.Errorf("the engine failed: %w", err)) })
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

// Publish serves the interface and records the process.
func (s *server) Publish(ctx context.Context, cancel context.CancelCauseFunc) (served <-chan struct{}, err error) {
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

// Files are the sockets of port 53.
func (s *server) Files() ([]int, error) {
	if s.res.UDP == nil {
		return []int{child.None, child.None}, nil
	}
	udp, err := child.Duplicate(s.res.UDP)
	if err != nil {
		return nil, err
	}
	tcp, err := child.Duplicate(s.res.TCP)
	return []int{udp, tcp}, err
}

// Finish leaves nothing behind. What fails is not worth more than a line: the
// hook cleans up once more.
func (s *server) Finish(<-chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
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
	if err := errors.Join(b.RemoveNamer(), s.home.Vacate()); err != nil {
		s.log.Error("forget this process", "err", err)
	}
}

// Close closes what outlives a process.
func (s *server) Close() {
	if s.listener != nil {
		s.listener.Close()
	}
	if s.res.Bundle != nil {
		s.res.Bundle.Close()
	}
	// The process ends: the kernel closes the rest, and nothing waits.
}
