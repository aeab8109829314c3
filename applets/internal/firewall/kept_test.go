package firewall

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
)

// What is kept from one request to the next never stands for what there is:
// others change the firewall in between.
func TestKept(t *testing.T) {
	const out, table = "output", "inet " + ruleset.TableName
	for _, tt := range []struct {
		name    string
		between func(*shielded, *testing.T)
		err     string // of an allow after it
	}{
		{"nothing", func(*shielded, *testing.T) {}, ""},
		{"another program's addresses", func(s *shielded, t *testing.T) {
			kerneltest.NFT(t, s.ns, "", "add", "element", "inet", ruleset.TableName, "allow_v4", "{ 198.51.100.0/24 }")
		}, ""},
		{"a hole", func(s *shielded, t *testing.T) {
			kerneltest.NFT(t, s.ns, "insert rule "+table+" "+out+" accept", "-f", "-")
		}, "in no known state"},
		{"quarantine", func(s *shielded, t *testing.T) {
			if resp := Execute(t.Context(), s.request(control.OpQuarantine)); resp.Error != "" {
				t.Fatal(resp.Error)
			}
		}, "it is in quarantine"},
		{"no table", func(s *shielded, t *testing.T) {
			kerneltest.NFT(t, s.ns, "delete table "+table, "-f", "-")
		}, "it has no firewall"},
		{"no table for a moment", func(s *shielded, t *testing.T) {
			kerneltest.NFT(t, s.ns, "delete table "+table, "-f", "-")
			if resp := Execute(t.Context(), s.request(control.OpUp)); resp.Error != "" {
				t.Fatal(resp.Error)
			}
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newShielded(t)
			k := Keep(s.ns)
			defer k.Close()
			execute := func(op control.Op, target string) control.Response {
				req := s.request(op)
				req.Targets, req.Target = []string{target}, target
				return k.Execute(t.Context(), req)
			}
			if resp := execute(control.OpAllow, "203.0.113.1"); resp.Error != "" {
				t.Fatal(resp.Error)
			}
			tt.between(s, t)
			resp := execute(control.OpAllow, "203.0.113.2")
			if !strings.Contains(resp.Error, tt.err) || (resp.Error == "") != (tt.err == "") {
				t.Fatalf("%q, want %q", resp.Error, tt.err)
			}
			if tt.err != "" {
				if resp := execute(control.OpUp, ""); resp.Error != "" { // and after an error it goes on
					t.Fatal(resp.Error)
				}
			}
			if resp := execute(control.OpDeny, "203.0.113.1"); resp.Error != "" {
				t.Fatal(resp.Error)
			}
			if resp := execute(control.OpVerify, ""); resp.Error != "" {
				t.Error(resp.Error)
			}
		})
	}
}

// The host's own network is not touched, by no request.
func TestKeptHost(t *testing.T) {
	s := newShielded(t)
	own, err := netns.Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	k := Keep(own)
	defer k.Close()
	for range 2 {
		if resp := k.Execute(t.Context(), s.request(control.OpUp)); !strings.Contains(resp.Error, "shares the host's network") {
			t.Errorf("%+v", resp)
		}
	}
	conn, err := nft.Dial()
	if err != nil {
		t.Fatal(err)
	}
	if table, err := conn.List(); table != nil || errors.Join(err, conn.Close()) != nil {
		t.Errorf("%v, %v", table, err)
	}
}

// A request that fails does not take the connection from another one, not even
// where their locks are different ones: of containers that share a network.
func TestKeptByMany(t *testing.T) {
	s := newShielded(t)
	other, err := bundle.Create(filepath.Join(t.TempDir(), "other"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	k := Keep(s.ns)
	defer k.Close()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 60 {
				req := s.request("nonsense")
				req.StateDir = other.Path()
				if i%2 == 0 {
					req = s.request(control.OpAllow)
					req.Target = fmt.Sprintf("203.0.%d.%d", 1+i, 1+n)
					req.Targets = []string{req.Target}
				}
				if resp := k.Execute(t.Context(), req); (resp.Error == "") != (i%2 == 0) {
					t.Errorf("%s %s: %q", req.Op, req.Target, resp.Error)
				}
			}
		})
	}
	wg.Wait()
}
