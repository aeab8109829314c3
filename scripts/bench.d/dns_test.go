package main

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestStub(t *testing.T) {
	q := question(7, "a.bench.test")
	a, ok := stubAnswer(nil, q)
	if !ok {
		t.Fatal("no answer")
	}
	if err := checkAnswer(q, a); err != nil {
		t.Error(err)
	}
	if err := checkAnswer(question(8, "a.bench.test"), a); err == nil {
		t.Error("the answer to another question is taken")
	}
	other := question(7, "a.bench.test")
	other[len(other)-3] = 28 // AAAA
	if a, ok = stubAnswer(nil, other); !ok || checkAnswer(other, a) == nil {
		t.Error("an address of the other family")
	}
	if addressOf([]byte("Name")) != addressOf([]byte("nAME")) {
		t.Error("the address depends on the case")
	}
	for cut := range q {
		if _, ok := stubAnswer(nil, q[:cut]); ok {
			t.Errorf("answers the first %d bytes of a question", cut)
		}
	}
}

func TestParsePerf(t *testing.T) {
	const out = `Statistics:

  Queries sent:         30000
  Queries completed:    30000 (100.00%)
  Queries lost:         LOST (0.00%)

  Response codes:       CODES
  Average packet size:  request 32, response 48
  Run time (s):         1.000000
  Queries per second:   30000.500000
`
	for _, tt := range []struct {
		lost, codes string
		want        float64
	}{
		{"0", "NOERROR 30000 (100.00%)", 30000.5},
		{"3", "NOERROR 29997 (100.00%)", 0},
		{"0", "NOERROR 29000 (96.67%), SERVFAIL 1000 (3.33%)", 0},
		{"0", "REFUSED 30000 (100.00%)", 0},
	} {
		got, err := parsePerf(strings.NewReplacer("LOST", tt.lost, "CODES", tt.codes).Replace(out))
		if got != tt.want || (err != nil) != (tt.want == 0) {
			t.Errorf("%s lost, %s: %v, %v", tt.lost, tt.codes, got, err)
		}
	}
	if _, err := parsePerf(""); err == nil {
		t.Error("nothing is taken for a result")
	}
}

func TestStubServes(t *testing.T) {
	at := netip.MustParseAddrPort("127.0.0.1:0")
	probe, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	at = probe.LocalAddr().(*net.UDPAddr).AddrPort()
	probe.Close()
	stop, err := startStub(at)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	const n = 3 * stubBatch / 2
	for i := range n {
		q := question(uint16(i), "a.bench.test")
		if i%4 == 3 {
			q = q[:5] // is left out
		}
		if _, err := conn.Write(q); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[uint16]bool{}
	buf := make([]byte, stubSize)
	for range n * 3 / 4 {
		got, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		id := binary.BigEndian.Uint16(buf)
		if err := checkAnswer(question(id, "a.bench.test"), buf[:got]); err != nil {
			t.Error(err)
		}
		seen[id] = true
	}
	if len(seen) != n*3/4 {
		t.Errorf("%d answers", len(seen))
	}
	stop() // returns
}
