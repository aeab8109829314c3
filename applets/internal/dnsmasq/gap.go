package dnsmasq

import (
	"context"
	"net"
	"net/netip"
	"syscall"
	"time"
)

const (
	dnsPort = 53
	// What of the questions that came while no dnsmasq ran is still asked.
	maxRelayed   = 64
	maxQuestion  = 4096            // bytes
	relayTimeout = 5 * time.Second // as long as the usual client waits
	// lastAnswers is for the answers that the old dnsmasq still waits for.
	lastAnswers = 20 * time.Millisecond
)

// gap takes the questions that come while dnsmasq is started again. Without it
// the kernel would refuse them, and clients would give up instead of waiting.
//
// Of several sockets with the same address and SO_REUSEADDR, which dnsmasq
// sets, too, the one that was bound last gets what comes.
type gap struct {
	e    *engine
	conn *net.UDPConn // nil: it is to be had without
	at   netip.AddrPort
}

func (e *engine) openGap(ctx context.Context) *gap {
	g := &gap{e: e}
	conf, err := e.Bundle.DnsmasqConf()
	if err != nil {
		return g
	}
	addr, err := listenAddress(conf, e.Bundle.Path())
	if err != nil {
		return g
	}
	g.at = netip.AddrPortFrom(addr, dnsPort)
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if controlErr := c.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
		}); controlErr != nil {
			return controlErr
		}
		return err
	}}
	if err := e.NetNS.Do(func() error {
		c, err := config.ListenPacket(ctx, "udp", g.at.String())
		if err == nil {
			g.conn = c.(*net.UDPConn)
		}
		return err
	}); err != nil {
		e.Log.Debug("questions are refused while dnsmasq is started again", "err", err)
	}
	return g
}

// drop gives up.
func (g *gap) drop() {
	if g.conn != nil {
		g.conn.Close()
	}
}

// relay asks the new dnsmasq what came meanwhile, in the background.
func (g *gap) relay(ctx context.Context) {
	if g.conn == nil {
		return
	}
	type question struct {
		from netip.AddrPort
		text []byte
	}
	var all []question
	buf := make([]byte, maxQuestion)
	_ = g.conn.SetReadDeadline(time.Now().Add(time.Millisecond)) // what is there already
	for len(all) < maxRelayed {
		n, from, err := g.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			break
		}
		all = append(all, question{from, append([]byte(nil), buf[:n]...)})
	}
	if len(all) == 0 {
		g.conn.Close()
		return
	}
	go func() {
		defer g.conn.Close()
		done := make(chan struct{})
		for _, q := range all {
			go func() {
				defer func() { done <- struct{}{} }()
				if answer := g.ask(ctx, q.text); answer != nil {
					g.conn.WriteToUDPAddrPort(answer, q.from) //nolint:errcheck // the client asks again
				}
			}()
		}
		for range all {
			<-done
		}
	}()
}

// ask returns nil if there is no answer.
func (g *gap) ask(ctx context.Context, question []byte) []byte {
	c, err := dial(ctx, g.e.NetNS, g.at)
	if err != nil {
		return nil
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	c.SetDeadline(time.Now().Add(relayTimeout))
	if _, err := c.Write(question); err != nil {
		return nil
	}
	answer := make([]byte, 64<<10)
	n, err := c.Read(answer)
	if err != nil {
		return nil
	}
	return answer[:n]
}
