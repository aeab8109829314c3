package conntrack

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/nl/ruleset"
)

func TestMain(m *testing.M) { kerneltest.Main(m) }

// container is a namespace with the firewall, and the internet beside it.
func container(t *testing.T) (inside, outside *netns.NS, fw *nft.Conn, ct *Conn) {
	t.Helper()
	inside, outside = kerneltest.NewNS(t), kerneltest.NewNS(t)
	kerneltest.Pair(t, inside, outside)
	if err := inside.Do(func() (err error) {
		if fw, err = nft.Dial(); err != nil {
			return err
		}
		ct, err = Dial()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fw.Close(); ct.Close() })
	table, err := ruleset.Build(ruleset.Up, ruleset.Params{})
	if err != nil {
		t.Fatal(err)
	}
	if err := fw.Apply(table); err != nil {
		t.Fatal(err)
	}
	return inside, outside, fw, ct
}

func dial(t *testing.T, ns *netns.NS, network string, to netip.AddrPort) net.Conn {
	t.Helper()
	var c net.Conn
	if err := ns.Do(func() (err error) {
		c, err = net.DialTimeout(network, to.String(), 5*time.Second)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// silent reports whether nothing arrives any more: a second passes without.
func silent(t *testing.T, c net.Conn) bool {
	t.Helper()
	buf := make([]byte, 64<<10)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(buf); errors.Is(err, os.ErrDeadlineExceeded) {
			return true
		} else if err != nil {
			return true // ended altogether
		}
	}
	return false
}

// In a download the container sends nothing but acknowledgements.
func TestCutStopsADownload(t *testing.T) {
	for _, address := range []string{"203.0.113.7", "2001:db8:1::7"} {
		t.Run(address, func(t *testing.T) {
			addr := netip.MustParseAddr(address)
			inside, outside, fw, ct := container(t)
			at := netip.AddrPortFrom(addr, 7001)
			l := kerneltest.ListenTCP(t, outside, at)
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				for {
					if _, err := c.Write([]byte("tick\n")); err != nil {
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
			}()
			if err := fw.Learn([]nft.Learned{{Addr: addr, Timeout: time.Minute}}); err != nil {
				t.Fatal(err)
			}
			c := dial(t, inside, "tcp", at)
			buf := make([]byte, 5)
			if _, err := c.Read(buf); err != nil {
				t.Fatal(err)
			}
			// Of another address: stays.
			if n, err := ct.Cut([]netip.Addr{netip.MustParseAddr("203.0.113.8")}); n != 0 || err != nil {
				t.Fatalf("cut %d: %v", n, err)
			}
			// What is only forgotten goes on.
			if err := fw.Forget([]netip.Addr{addr}); err != nil {
				t.Fatal(err)
			}
			if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			for range 50 {
				if _, err := c.Read(buf); err != nil {
					t.Fatalf("after Forget alone: %v", err)
				}
			}
			if n, err := ct.Cut([]netip.Addr{addr}); n != 1 || err != nil {
				t.Fatalf("cut %d: %v; want 1", n, err)
			}
			if !silent(t, c) {
				t.Error("the download goes on")
			}
			if err := kerneltest.DialTCP(inside, at, 2*time.Second); err == nil {
				t.Error("and can be begun anew")
			}
		})
	}
}

func TestCutUDP(t *testing.T) {
	addr := netip.MustParseAddr("203.0.113.7")
	inside, outside, fw, ct := container(t)
	at := netip.AddrPortFrom(addr, 5300)
	peer := kerneltest.ListenUDP(t, outside, at)
	if err := fw.Learn([]nft.Learned{{Addr: addr, Timeout: time.Minute}}); err != nil {
		t.Fatal(err)
	}
	c := dial(t, inside, "udp", at)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	_, back, err := peer.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := peer.WriteToUDPAddrPort([]byte("y"), back); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(buf); err != nil {
		t.Fatal(err)
	}
	if err := fw.Forget([]netip.Addr{addr}); err != nil {
		t.Fatal(err)
	}
	if n, err := ct.Cut([]netip.Addr{addr}); n != 1 || err != nil {
		t.Fatalf("cut %d: %v; want 1", n, err)
	}
	if _, err := peer.WriteToUDPAddrPort([]byte("z"), back); err != nil {
		t.Fatal(err)
	}
	if !silent(t, c) {
		t.Error("datagrams still arrive")
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("datagrams still leave")
	}
}

func TestCutNothing(t *testing.T) {
	ns := kerneltest.NewNS(t) // nothing tracks connections here
	var ct *Conn
	if err := ns.Do(func() (err error) {
		ct, err = Dial()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if n, err := ct.Cut([]netip.Addr{netip.MustParseAddr("203.0.113.7")}); n != 0 || err != nil {
		t.Errorf("cut %d: %v", n, err)
	}
	if err := errors.Join(ct.Close(), ct.Close()); err != nil {
		t.Error(err)
	}
	if _, err := ct.Cut(nil); err == nil {
		t.Error("cut over a closed connection")
	}
}

// Whatever stands in an answer, reading it ends without a panic.
func FuzzMessages(f *testing.F) {
	f.Add(appendAttr(nil, attrTupleOrig, appendAttr(nil, tupleIP, appendAttr(nil, ipV4Dst, []byte{203, 0, 113, 7}))))
	f.Add([]byte{1, 0, 0, 0})
	f.Fuzz(func(_ *testing.T, b []byte) {
		_ = messages(b, 0, func(_ uint16, body []byte) error {
			_, err := decode(body)
			return err
		})
		if e, err := decode(append([]byte{2, 0, 0, 0}, b...)); err == nil && !e.to.IsValid() {
			panic("connection to nowhere")
		}
	})
}
