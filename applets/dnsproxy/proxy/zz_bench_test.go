package proxy

import (
	"fmt"
	"net"
	"testing"

	"github.com/miekg/dns"
)

func BenchmarkServe(b *testing.B) {
	w := newWorld(b, lines{profile: []string{"example.com"}}, func(q dns.Question, m *dns.Msg) {
		rr, _ := dns.NewRR(q.Name + " 3600 IN A 203.0.113.1")
		m.Answer = append(m.Answer, rr)
	})
	for what, format := range map[string]string{"repeated": "n%d.example.com.", "unlisted": "n%d.test."} {
		b.Run(what, func(b *testing.B) {
			var packets [][]byte
			for i := range 1000 {
				q := new(dns.Msg)
				q.SetQuestion(fmt.Sprintf(format, i), dns.TypeA)
				p, _ := q.Pack()
				packets = append(packets, p)
			}
			c := w.dial("udp").(*net.UDPConn)
			buf := make([]byte, 2048)
			run := func(n int) {
				sent := 0
				for ; sent < min(n, 50); sent++ {
					c.Write(packets[sent%1000])
				}
				for range n {
					if _, err := c.Read(buf); err != nil {
						b.Fatal(err)
					}
					if sent < n {
						c.Write(packets[sent%1000])
						sent++
					}
				}
			}
			run(1000)
			b.ResetTimer()
			run(b.N)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "q/s")
		})
	}
}
