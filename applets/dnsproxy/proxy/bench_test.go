package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// BenchmarkServe is the whole way: a client in the container's namespace with
// questions outstanding, a name server, a firewall.
func BenchmarkServe(b *testing.B) {
	for _, c := range []struct {
		name    string
		names   int // different ones; 0: all
		profile []string
		resolve bool
	}{
		{"repeated", 1000, []string{"*.example.com"}, false},
		{"repeated, unlisted", 1000, nil, true},
		{"new", 0, []string{"*.example.com"}, false},
		{"new, unlisted", 0, nil, true},
		{"refused", 1000, nil, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			w := newWorld(b, lines{profile: c.profile, resolve: c.resolve}, func(q dns.Question, m *dns.Msg) {
				m.Answer = append(m.Answer, &dns.A{
					Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 3600},
					A:   publicAddr(q.Name),
				})
			})
			var conn net.Conn
			if err := w.ns.Do(func() (err error) {
				conn, err = net.Dial("udp", w.addr.String())
				return err
			}); err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			name := func(i int) string {
				if c.names > 0 {
					i %= c.names
				}
				return fmt.Sprintf("n%d.example.com.", i)
			}
			if c.names > 0 {
				flood(b, conn, c.names, name)
			}
			b.ReportAllocs()
			b.ResetTimer()
			flood(b, conn, b.N, name)
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "names/s")
		})
	}
}

// publicAddr is an address that belongs to a name.
func publicAddr(name string) net.IP {
	h := uint32(2166136261)
	for i := range len(name) {
		h = (h ^ uint32(name[i])) * 16777619
	}
	h %= 64 << 24
	a := netip.AddrFrom4([4]byte{20 + byte(h>>24), byte(h >> 16), byte(h >> 8), byte(h)})
	return a.AsSlice()
}

// flood asks n questions, 50 at a time. Packets may be lost: after a second
// without an answer others are sent.
func flood(b *testing.B, conn net.Conn, n int, name func(int) string) {
	const outstanding, patience = 50, time.Second
	buf := make([]byte, 4096)
	for sent, open, done := 0, 0, 0; done < n; {
		for ; open < outstanding && sent < n; open++ {
			m := new(dns.Msg)
			m.SetQuestion(name(sent), dns.TypeA)
			m.Id = uint16(sent)
			p, err := m.Pack()
			if err != nil {
				b.Fatal(err)
			}
			if _, err := conn.Write(p); err != nil {
				b.Fatal(err)
			}
			sent++
		}
		conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := conn.Read(buf); err != nil {
			done, open = done+open, 0 // lost
			continue
		}
		open--
		done++
	}
}
