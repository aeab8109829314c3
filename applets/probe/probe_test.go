package probe

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
)

func TestResult(t *testing.T) {
	for want, r := range map[string]result{
		`{"host": "a.example", "port": 443, "result": "open"}`:    {host: "a.example", port: 443, word: "open"},
		`{"host": "\u001b[2J\"", "port": 1, "result": "timeout"}`: {host: "\x1b[2J\"", port: 1, word: "timeout"},
		`{"host": "203.0.113.9", "port": 443, "result": "icmp-error", "icmp_type": 3, "icmp_code": 13, "icmp_code_name": "admin-prohibited", "errno": 113}`: {
			host: "203.0.113.9", port: 443, word: "icmp-error", icmp: icmpError{kind: 3, code: 13, errno: 113}},
	} {
		if d := cmp.Diff(want, r.String()); d != "" || !json.Valid([]byte(r.String())) {
			t.Errorf("-want +got:\n%s", d)
		}
	}
}

func TestNames(t *testing.T) {
	for code, want := range map[uint8]string{
		0: "net-unreachable", 1: "host-unreachable", 2: "protocol-unreachable", 3: "port-unreachable", 4: "fragmentation-needed",
		5: "source-route-failed", 6: "net-unknown", 7: "host-unknown", 8: "code-8", 9: "net-admin-prohibited", 10: "host-admin-prohibited",
		11: "code-11", 12: "code-12", 13: "admin-prohibited", 14: "code-14", 255: "code-255",
	} {
		if got := (icmpError{kind: 3, code: code}).name(); got != want {
			t.Errorf("%d: %s, want %s", code, got, want)
		}
	}
	if got := (icmpError{six: true, kind: 1, code: 1}).name(); got != "admin-prohibited" {
		t.Errorf("ICMPv6: %s", got)
	}
}

func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args     []string
		code     int
		out, err string
	}{
		{nil, 1, "", usage},
		{[]string{"a", "1", "2"}, 1, "", usage},
		{[]string{"--help"}, 0, usage, ""},
		{[]string{"127.0.0.1", "x"}, 1, "{\"error\": \"invalid port: 'x'\"}\n", ""},
		{[]string{"127.0.0.1", "0"}, 1, "{\"error\": \"invalid port: '0'\"}\n", ""},
		{[]string{"127.0.0.1", "65536"}, 1, "{\"error\": \"invalid port: '65536'\"}\n", ""},
		{[]string{"127.0.0.1", ""}, 1, "{\"error\": \"invalid port: ''\"}\n", ""},
	} {
		var out, errs strings.Builder
		code := Run(&cmdenv.Env{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs}, tt.args)
		if code != tt.code || out.String() != tt.out || errs.String() != tt.err {
			t.Errorf("%q: exit %d, %q, %q", tt.args, code, out.String(), errs.String())
		}
	}
}

// A port where somebody listens is open; where nobody does the kernel says so.
func TestLoopback(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		l, err := net.ListenPacket("udp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Fatal(err)
		}
		port := strconv.Itoa(l.LocalAddr().(*net.UDPAddr).Port)
		want := `{"host": "` + host + `", "port": ` + port + `, "result": `
		for _, tt := range []struct{ close bool }{{false}, {true}} {
			rest := `"open"}`
			if tt.close {
				l.Close()
				rest = map[string]string{
					"127.0.0.1": `"icmp-error", "icmp_type": 3, "icmp_code": 3, "icmp_code_name": "port-unreachable", "errno": 111}`,
					"::1":       `"icmp-error", "icmp_type": 1, "icmp_code": 4, "icmp_code_name": "port-unreachable", "errno": 111}`,
				}[host]
			}
			var out strings.Builder
			if code := Run(&cmdenv.Env{Stdout: &out, Stderr: io.Discard}, []string{host, port}); code != 0 || out.String() != want+rest+"\n" {
				t.Errorf("exit %d, %s want %s", code, out.String(), want+rest)
			}
		}
	}
}

func FuzzExtended(f *testing.F) {
	f.Add([]byte{113, 0, 0, 0, 2, 3, 13, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, data []byte) {
		e, ok := extended(data)
		if ok && (len(data) < minExtended || e.errno != binary.NativeEndian.Uint32(data)) {
			t.Errorf("%v: %+v", data, e)
		}
	})
}
