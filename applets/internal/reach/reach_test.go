package reach

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/nl/confine"
	"github.com/terok-ai/terok-box/nl/confine/confinetest"
	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/names"
	"github.com/terok-ai/terok-box/wire/oci"
)

func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	confinetest.Main()
	kerneltest.Main(m)
}

// place is where a user's files are.
type place struct {
	state, other, runtime, meta string
	roster                      string
}

func newPlace(t *testing.T) place {
	t.Helper()
	root := t.TempDir()
	p := place{
		state: filepath.Join(root, "containers/demo"), other: filepath.Join(root, "containers/other"),
		runtime: filepath.Join(root, "run"), meta: filepath.Join(root, "meta/demo.json"),
	}
	p.roster = filepath.Join(p.runtime, "terok/net/4-1")
	for _, dir := range []string{p.state, p.other, filepath.Join(p.runtime, "terok/net"), filepath.Dir(p.meta)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(p.meta, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// What each program needs it can do, and what none needs is refused.
func TestRefused(t *testing.T) {
	p := newPlace(t)
	state, roster, socket := filepath.Join(p.state, "file"), filepath.Join(p.runtime, "terok/net/4-2"), filepath.Join(p.runtime, "terok/file")
	for name, tt := range map[string]struct {
		rules confine.Rules
		may   []string
	}{
		"supervisor": {
			Supervisor(control.Spec{StateDir: p.state, RuntimeDir: p.runtime, Roster: p.roster, Dossier: map[string]string{oci.DossierMetaPath: p.meta}}),
			[]string{state, roster, socket, "<" + p.meta, "</etc/resolv.conf", "</proc/self/smaps", "</proc/1/stat", "</proc/1/cmdline"},
		},
		"supervisor of a shared network": {Supervisor(control.Spec{StateDir: p.state, Owner: p.other}), []string{state, filepath.Join(p.other, "file")}},
		"proxy":                          {Names(names.Spec{StateDir: p.state, Roster: p.roster, Tier: "proxy"}), []string{state, roster, socket, "</etc/resolv.conf"}},
		"static":                         {Names(names.Spec{StateDir: p.state, Tier: "static"}), []string{state, "</etc/resolv.conf"}},
		"dnsmasq":                        {Names(names.Spec{StateDir: p.state, Tier: "dnsmasq"}), []string{state, "</etc/passwd"}},
	} {
		t.Run(name, func(t *testing.T) { confinetest.Refused(t, tt.rules, tt.may...) })
	}
}

// What is another container's, or another program's, is nobody's business.
func TestOthers(t *testing.T) {
	p := newPlace(t)
	for name, rules := range map[string]confine.Rules{
		"supervisor": Supervisor(control.Spec{StateDir: p.state, RuntimeDir: p.runtime}),
		"names":      Names(names.Spec{StateDir: p.state, Roster: p.roster, Tier: "dnsmasq"}),
	} {
		if err := rules.Do(func() error {
			for _, path := range []string{filepath.Join(p.other, "file"), filepath.Join(p.runtime, "file"), filepath.Join(filepath.Dir(p.state), "file"), p.meta} {
				if f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); err == nil {
					f.Close()
					t.Errorf("%s: %s can be written", name, path)
				}
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
}

// Nobody keeps a capability without need.
func TestCapabilities(t *testing.T) {
	for name, tt := range map[string]struct {
		rules confine.Rules
		want  int
	}{
		"supervisor": {Supervisor(control.Spec{}), 2},
		"proxy":      {Names(names.Spec{Tier: "proxy"}), 3},
		"dnsmasq":    {Names(names.Spec{Tier: "dnsmasq"}), 10},
	} {
		if len(tt.rules.Caps) != tt.want {
			t.Errorf("%s keeps %d capabilities, not %d: %v", name, len(tt.rules.Caps), tt.want, tt.rules.Caps)
		}
		for _, c := range tt.rules.Caps {
			if c == unix.CAP_SYS_MODULE || c == unix.CAP_SETPCAP || c == unix.CAP_SYS_RAWIO {
				t.Errorf("%s keeps capability %d", name, c)
			}
		}
	}
}
