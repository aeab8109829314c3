package learned

import (
	"net/netip"
	"testing"
	"time"

	"github.com/terok-ai/terok-box/nl/conntrack"
	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/nl/ruleset"
)

func TestMain(m *testing.M) { kerneltest.Main(m) }

// With the real firewall: quarantine closes what was learned, and after up the
// next answer, though nothing has expired, opens it again.
func TestQuarantineAndUpAgain(t *testing.T) {
	ns := kerneltest.NewNS(t)
	var fw, operator *nft.Conn
	var ct *conntrack.Conn
	if err := ns.Do(func() (err error) {
		if fw, err = nft.Dial(); err == nil {
			operator, err = nft.Dial()
		}
		if err == nil {
			ct, err = conntrack.Dial()
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	apply := func(state ruleset.State) {
		t.Helper()
		table, err := ruleset.Build(state, ruleset.Params{})
		if err == nil {
			err = operator.Apply(table)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	apply(ruleset.Up)
	s, err := New(Options{Kernel: fw, Cut: ct.Cut})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ask := func() error {
		return s.Learn(t.Context(), s.Life(), "example.com", []Answer{{netip.MustParseAddr("203.0.113.1"), time.Minute}})
	}
	open := func() int {
		t.Helper()
		all, err := operator.Learned()
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	if err := ask(); err != nil || open() != 1 {
		t.Fatalf("%d open, %v", open(), err)
	}
	before := kerneltest.Generation(t, ns)
	for range 100 {
		if err := ask(); err != nil {
			t.Fatal(err)
		}
	}
	if after := kerneltest.Generation(t, ns); after != before {
		t.Errorf("%d transactions for what is there", after-before)
	}
	apply(ruleset.Down)
	apply(ruleset.Quarantine)
	time.Sleep(2 * checkEvery)
	if err := ask(); err == nil {
		t.Error("learned in quarantine")
	}
	apply(ruleset.Up)
	time.Sleep(2 * checkEvery)
	if err := ask(); err != nil || open() != 1 {
		t.Errorf("%d open, %v", open(), err)
	}
	removed, err := s.Retain(t.Context(), func(string) bool { return false })
	if err != nil || len(removed) != 1 || open() != 0 {
		t.Errorf("removed %v, %v; %d open", removed, err, open())
	}
}

func BenchmarkLearn(b *testing.B) {
	for what, pool := range map[string]int{"same": 1, "new": 1 << 14} {
		b.Run(what, func(b *testing.B) {
			var fw *nft.Conn
			if err := kerneltest.NewNS(b).Do(func() (err error) {
				fw, err = nft.Dial()
				return err
			}); err != nil {
				b.Fatal(err)
			}
			table, err := ruleset.Build(ruleset.Up, ruleset.Params{})
			if err == nil {
				err = fw.Apply(table)
			}
			if err != nil {
				b.Fatal(err)
			}
			s, err := New(Options{Kernel: fw})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			b.SetParallelism(25)
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					a := netip.AddrFrom4([4]byte{203, 0, byte(i % pool >> 8), byte(i % pool)})
					if err := s.Learn(b.Context(), s.Life(), "example.com", []Answer{{a, time.Second}}); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
