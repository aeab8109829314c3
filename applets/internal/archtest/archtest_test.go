package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/terok-ai/terok-box"

type pkg struct {
	ImportPath   string
	Standard     bool
	Imports      []string
	Deps         []string
	TestImports  []string
	XTestImports []string
	Dir          string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
	Doc          string
}

// list is every package of the project.
func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json", module+"/...")
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, errOut.String())
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		// The test's cached result is good as long as these are as they were.
		for _, f := range slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles) {
			if _, err := os.Stat(filepath.Join(p.Dir, f)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.ReadDir(p.Dir); err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, module+"/")
		for _, l := range [][]string{p.Imports, p.Deps} {
			for i := range l {
				l[i] = strings.TrimPrefix(l[i], module+"/")
			}
		}
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("only %d packages found", len(all))
	}
	return all
}

func under(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

func std(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".") && !slices.Contains([]string{"applets", "nl", "wire", "resources", "scripts"}, first)
}

// only lists what packages under a directory may import besides the standard
// library and themselves.
var only = []struct {
	dir    string
	allow  []string
	reason string
}{
	{"wire", []string{"wire"}, "what crosses a process boundary must be usable by any program, and readable without knowing ours"},
	{"nl/ruleset", nil, "the security boundary is pure: values in, values out"},
	{"nl/netns", []string{"golang.org/x/sys"}, "entering namespaces needs system calls and nothing else"},
	{"nl/confine", []string{"nl/confine", "golang.org/x/sys"}, "what takes rights away needs system calls and nothing else"},
	{"nl", []string{"nl", "golang.org/x/sys", "github.com/mdlayher/netlink", "github.com/google/nftables"}, "the kernel's side knows nothing of files, people and policies"},
	{"applets/internal/policy", []string{"wire/bundle"}, "policy is pure: it can be reasoned about without a system"},
	{"applets/internal/dossier", []string{"wire"}, "the dossier decorates what anybody of ours sends"},
	{"applets/internal/reach", []string{"nl/confine", "wire", "golang.org/x/sys"}, "what programs may reach is said in one place, which does nothing itself"},
	{"applets/internal/confined", []string{"applets/internal/cmdenv", "nl/confine"}, "a program confines itself before it does anything else"},
	{"applets/internal/cmdenv", []string{"golang.org/x/sys"}, "everything uses it, so it uses nothing"},
	{"applets/internal/grammar", []string{"github.com/alecthomas/kong"}, "a command line as a value knows nothing of what commands do"},
	{"applets/internal/subscriber", []string{"wire"}, "who shows prompts, and where, is not its business: a terminal and a desktop use it alike"},
	{"applets/internal/terminal", []string{"applets/internal/cmdenv", "applets/internal/subscriber", "wire"}, "it shows and reads; what happens is the subscriber's business"},
	{"applets/notify", []string{
		"applets/internal/cmdenv", "applets/internal/hook", "applets/internal/subscriber", "resources", "wire", "github.com/godbus/dbus",
		"applets/internal/child", "applets/internal/confined", "applets/internal/reach", // the program confines itself
	}, "popups are of use to other programs, too, and know nothing of containers but what hubs say"},
}

func TestOnly(t *testing.T) {
	for _, p := range list(t) {
		for _, r := range only {
			if !under(p.ImportPath, r.dir) {
				continue
			}
			for _, i := range p.Imports {
				if std(i) || under(i, p.ImportPath) || slices.ContainsFunc(r.allow, func(a string) bool { return under(i, a) }) {
					continue
				}
				t.Errorf("%s imports %s: %s", p.ImportPath, i, r.reason)
			}
		}
	}
}

// never lists what a package must not depend on, however far away.
var never = []struct {
	dir, dep, reason string
}{
	{"applets/nfthook", "github.com/alecthomas/kong", "every container start pays for what the hook links: no command line for people"},
	{"applets/nfthook", "github.com/godbus/dbus", "every container start pays for what the hook links: no D-Bus"},
	{"applets/nfthook", "github.com/miekg/dns", "every container start pays for what the hook links: no DNS library"},
	{"applets/nfthook", "applets/hub", "every container start pays for what the hook links: no hub"},
	{"applets/hub", "applets/internal/firewall", "who passes questions on has no power over a firewall"},
	{"applets/nfthook", "applets/internal/podman", "a hook asks no engine: the runtime told it everything"},
	{"applets/nfthook", "applets/internal/config", "a hook reads the bundle, not the operator's configuration"},
	{"applets/readerhook", "github.com/alecthomas/kong", "every container start pays for what the hook links: no command line for people"},
	{"applets/readerhook", "github.com/godbus/dbus", "every container start pays for what the hook links: no D-Bus"},
	{"applets/readerhook", "github.com/miekg/dns", "every container start pays for what the hook links: no DNS library"},
	{"applets/readerhook", "applets/hub", "every container start pays for what the hook links: the hub is the supervisor's"},
	{"applets/readerhook", "applets/internal/podman", "a hook asks no engine: the runtime told it everything"},
	{"applets/readerhook", "applets/internal/config", "a hook reads the bundle, not the operator's configuration"},
	{"applets/internal/child", "applets/internal/firewall", "how processes are started and ended has nothing to do with what they are for"},
	{"applets/internal/pair", "applets/internal/firewall", "how processes keep each other alive has nothing to do with what they are for"},
	{"applets/internal/roster", "applets/internal/firewall", "who lives in a network is known before anything is done to it"},
	{"applets/internal/shielded", "github.com/alecthomas/kong", "the server of verdicts finds containers, too: no command line for people"},
	{"applets/internal/shielded", "applets/internal/config", "its callers have read the operator's configuration, or have none"},
	{"applets/internal/firewall", "os/exec", "the firewall is changed over netlink, never by a program"},
	{"applets/internal/reader", "applets/internal/podman", "what reads packets asks no engine: who starts it knows the container"},
	{"applets/internal/reader", "applets/internal/firewall", "what reads packets changes nothing in the firewall"},
	{"nl", "wire", "addresses cross as netip values"},
	{"wire", "nl", "addresses cross as netip values"},
}

func TestNever(t *testing.T) {
	for _, p := range list(t) {
		for _, r := range never {
			if !under(p.ImportPath, r.dir) {
				continue
			}
			for _, d := range p.Deps {
				if under(d, r.dep) {
					t.Errorf("%s depends on %s: %s", p.ImportPath, d, r.reason)
				}
			}
		}
	}
}

// users lists the only packages that may import a library.
var users = []struct {
	library string
	by      []string
	reason  string
}{
	{"github.com/alecthomas/kong", []string{"applets/shield", "applets/hub", "applets/internal/grammar"}, "kong is for command lines that people type"},
	{"github.com/miekg/dns", []string{"applets/internal/resolve", "applets/dnsproxy", "scripts/lab.d/dns"}, "DNS messages are read in two places only"},
	{"github.com/godbus/dbus", []string{"applets/notify", "scripts/bench.d"}, "only notifications speak D-Bus, and what measures them"},
	{"github.com/google/nftables", []string{"nl/nft"}, "one package speaks nf_tables"},
	{"github.com/BurntSushi/toml", []string{"applets/internal/podman"}, "containers.conf is Podman's"},
	{"go.yaml.in/yaml", []string{"applets/internal/config", "applets/internal/podman"}, "YAML is for configuration files"},
	{"unsafe", []string{"nl", "applets/internal/cmdenv", "scripts/bench.d"}, "pointers are for system calls"},
}

func TestUsers(t *testing.T) {
	for _, p := range list(t) {
		for _, r := range users {
			if slices.ContainsFunc(r.by, func(by string) bool { return under(p.ImportPath, by) }) {
				continue
			}
			for _, i := range p.Imports {
				if under(i, r.library) {
					t.Errorf("%s imports %s: %s", p.ImportPath, i, r.reason)
				}
			}
		}
	}
}

// Applets do not import each other, and nothing but applets and main.go
// imports the table.
func TestApplets(t *testing.T) {
	applet := func(path string) bool {
		rest, ok := strings.CutPrefix(path, "applets/")
		return ok && !strings.Contains(rest, "/") && rest != "internal"
	}
	for _, p := range list(t) {
		for _, i := range p.Imports {
			switch {
			case applet(p.ImportPath) && applet(i) && p.ImportPath != "applets/supervisor":
				t.Errorf("%s imports %s: applets do not import each other, so that each can be read alone", p.ImportPath, i)
			case i == "applets" && p.ImportPath != module:
				t.Errorf("%s imports the table of applets: only main does", p.ImportPath)
			}
		}
	}
}

// The tests use no assertion library, and every directory says what it is for.
func TestHabits(t *testing.T) {
	for _, p := range list(t) {
		if p.Doc == "" && len(p.GoFiles) > 0 {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
		for _, i := range slices.Concat(p.TestImports, p.XTestImports) {
			if strings.Contains(i, "testify") || strings.Contains(i, "ginkgo") || strings.Contains(i, "gomock") {
				t.Errorf("%s tests with %s", p.ImportPath, i)
			}
		}
	}
}
