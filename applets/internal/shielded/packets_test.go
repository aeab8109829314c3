package shielded

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/nflog"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
)

// patience bounds what a test waits for and that has to come.
const patience = 30 * time.Second

// seeing has the packets of a container seen.
type seeing struct {
	t       *testing.T
	packets chan control.Packet
	err     chan error
	stop    context.CancelFunc
}

func (l *live) see(t *testing.T) *seeing {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &seeing{t: t, packets: make(chan control.Packet, 100), err: make(chan error, 1), stop: cancel}
	go func() {
		s.err <- l.Packets(ctx, func(p control.Packet) error {
			select {
			case s.packets <- p:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	t.Cleanup(cancel)
	return s
}

func (s *seeing) next() (p control.Packet) {
	s.t.Helper()
	select {
	case p = <-s.packets:
	case err := <-s.err:
		s.t.Fatalf("it ended: %v", err)
	case <-time.After(patience):
		s.t.Fatal("nothing is seen")
	}
	return p
}

func (s *seeing) ended() error {
	s.t.Helper()
	select {
	case err := <-s.err:
		return err
	case <-time.After(patience):
		s.t.Fatal("it goes on")
		return nil
	}
}

// tell hands a packet to whoever watches the supervisor.
func (s *supervisor) tell(t *testing.T, dest string) {
	t.Helper()
	select {
	case s.packets <- control.Packet{Prefix: string(ruleset.LogBlocked), Dest: netip.MustParseAddr(dest), Proto: nflog.TCP, Port: 443}:
	case <-time.After(patience):
		t.Fatal("nobody watches")
	}
}

// block has the container try to reach an address until stop.
func (l *live) block(t *testing.T, to string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_ = kerneltest.SendUDP(l.ns, netip.MustParseAddrPort(to)) // refused
			time.Sleep(10 * time.Millisecond)
		}
	}()
	return func() { cancel(); <-done }
}

// Packets come from the supervisor, also from one that was killed and is back.
func TestSupervisorsPackets(t *testing.T) {
	t.Parallel()
	l := newLive(t)
	s := l.supervisor()
	end := s.serve(t)
	w := l.see(t)
	s.tell(t, "203.0.113.1")
	if p := w.next(); p.Dest.String() != "203.0.113.1" || p.Port != 443 || p.Proto != nflog.TCP || p.Prefix != string(ruleset.LogBlocked) || p.Time.Location() != time.UTC {
		t.Errorf("%+v", p)
	}
	end()
	if err := w.ended(); !errors.Is(err, errEnded) {
		t.Error(err)
	}
	dead, err := l.b.Supervisor()
	if err != nil {
		t.Fatal(err)
	}
	dead.Start++
	if err := l.b.SetSupervisor(dead); err != nil {
		t.Fatal(err)
	}
	w = l.see(t)
	time.Sleep(3 * returnPause)
	s.serve(t)
	s.tell(t, "203.0.113.2")
	if p := w.next(); p.Dest.String() != "203.0.113.2" {
		t.Errorf("%+v", p)
	}
	w.stop()
	if err := w.ended(); err != nil {
		t.Error(err)
	}
}

// Where there is no supervisor, or none any more, the packets are read in the
// container's namespaces, and left to a supervisor as soon as there is one.
func TestOwnPackets(t *testing.T) {
	for name, record := range map[string]func(t *testing.T, l *live){
		"none": func(*testing.T, *live) {},
		"dead": func(t *testing.T, l *live) {
			if err := l.b.SetSupervisor(bundle.Supervisor{PID: 1, Start: 1, Control: "/nowhere"}); err != nil {
				t.Fatal(err)
			}
		},
		"of another container": func(t *testing.T, l *live) {
			s := l.supervisor()
			s.netns = "4:1"
			s.serve(t)
		},
	} {
		// Not in parallel: a process that another test starts has a copy of the
		// reader's socket until it executes its program.
		t.Run(name, func(t *testing.T) {
			l := newLive(t)
			record(t, l)
			w := l.see(t)
			stop := l.block(t, "203.0.113.9:7")
			if p := w.next(); p.Dest.String() != "203.0.113.9" || p.Port != 7 || p.Proto != nflog.UDP || time.Since(p.Time) > patience {
				t.Errorf("%+v", p)
			}
			stop()
			if err := l.Packets(t.Context(), func(control.Packet) error { return nil }); !errors.Is(err, ErrBusy) {
				t.Errorf("a second reader: %v", err)
			}
			s := l.supervisor()
			s.serve(t)
			if err := w.ended(); err != nil {
				t.Error(err)
			}
			if err := l.ns.Do(func() error {
				c, err := nflog.Open(ruleset.Group)
				if err != nil {
					return err
				}
				return c.Close()
			}); err != nil {
				t.Errorf("the supervisor could not read them: %v", err)
			}
			w = l.see(t)
			s.tell(t, "203.0.113.3")
			if p := w.next(); p.Dest.String() != "203.0.113.3" {
				t.Errorf("%+v", p)
			}
		})
	}
}
