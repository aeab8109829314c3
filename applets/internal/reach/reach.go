// Package reach is what each program that lives long may reach once it is
// confined: files, capabilities and sockets, and nothing besides. A program
// that starts to need more needs a line here, with its reason.
//
// It opens nothing itself, and must never import a package of an applet, nor
// one that faces people.
package reach

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/nl/confine"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/names"
	"github.com/terok-ai/terok-box/wire/oci"
)

const (
	portDNS    = 53
	resolvConf = "/etc/resolv.conf"
	userDirs   = "/run/user" // where runtime directories are
)

// Supervisor is what a container's supervisor reaches.
func Supervisor(s control.Spec) confine.Rules {
	r := base()
	r.own(s.StateDir, s.Owner, sockets(s.RuntimeDir))
	if path := s.Dossier[oci.DossierMetaPath]; filepath.IsAbs(path) {
		// Its orchestrator replaces the file, and so its inode.
		r.allow(confine.ReadFile, filepath.Dir(path))
	}
	r.network()
	return r.Rules
}

// Names is what the process reaches that finds the addresses of a container's
// names.
func Names(s names.Spec) confine.Rules {
	r := base()
	runtimeDir := ""
	if s.Roster != "" { // RUNTIME/terok/net/NAME
		runtimeDir = filepath.Dir(filepath.Dir(filepath.Dir(s.Roster)))
	}
	r.own(s.StateDir, sockets(runtimeDir))
	r.network()
	r.Caps = append(r.Caps, unix.CAP_NET_BIND_SERVICE) // port 53
	if s.Tier == string(bundle.Dnsmasq) {
		r.dnsmasq()
	}
	return r.Rules
}

// Hub is what the hub of all of a user's containers reaches: its sockets, which
// are in his runtime directory itself, to be removed at the end, and a directory
// of its own. Others' sockets need no right: who has a path can connect.
func Hub(runtimeDir, dir string) confine.Rules {
	r := base()
	r.allow(confine.Remove|confine.Sockets, runtimeDir)
	r.own(dir)
	return r.Rules
}

// Watcher is what the program reaches that asks on a user's desktop: the names
// in his runtime directory, where hubs come and go ("": those are named), and
// the file of our logo ("": there is none). The sockets of hubs and of his bus
// need no right, unless abstract says that the bus's is one without a file.
func Watcher(runtimeDir, logo string, abstract bool) confine.Rules {
	r := base()
	r.allow(confine.List, runtimeDir)
	if filepath.Dir(runtimeDir) == userDirs {
		r.allow(confine.List, userDirs) // his next session's is another one
	}
	r.allow(confine.ReadFile, logo)
	r.Abstract = abstract
	return r.Rules
}

// rules are rules to be.
type rules struct{ confine.Rules }

func (r *rules) allow(a confine.Access, paths ...string) {
	for _, p := range paths {
		if p != "" {
			r.Paths = append(r.Paths, confine.Path{Name: p, Access: a})
		}
	}
}

func (r *rules) own(dirs ...string) { r.allow(confine.Own, dirs...) }

// base is what the Go runtime and every program of ours needs, which is more
// than it seems: the other process of a pair is started by the one that is
// confined, and is confined with it.
func base() *rules {
	r := &rules{}
	program(r, "/proc/self/exe")
	r.allow(confine.Read, "/proc") // of other processes: whether they live, and what they are called
	r.allow(confine.Read|confine.Write, "/dev/null")
	r.allow(confine.ReadFile, "/etc/localtime", "/usr/share/zoneinfo", "/etc/zoneinfo") // for whoever has TZ
	r.allow(confine.ReadFile, "/sys/fs/cgroup", "/sys/kernel/mm/transparent_hugepage")
	r.Families = []int{unix.AF_UNIX}
	return r
}

// sockets is the directory of our sockets and rosters in a user's runtime
// directory; "" if there is none.
func sockets(runtimeDir string) string {
	if runtimeDir == "" {
		return ""
	}
	return filepath.Join(runtimeDir, "terok")
}

// network is what it takes to enter the container's network namespace, to
// change the firewall there, and to ask the host's name servers.
func (r *rules) network() {
	r.Families = append(r.Families, unix.AF_NETLINK, unix.AF_INET, unix.AF_INET6)
	r.Connect = []uint16{portDNS}
	r.Caps = []int{
		unix.CAP_NET_ADMIN, // nf_tables, its log, connection tracking
		unix.CAP_SYS_ADMIN, // setns(2)
	}
	// The file is replaced, and so is what it may link to.
	dir := filepath.Dir(resolvConf)
	r.allow(confine.ReadFile, dir)
	if link, err := os.Readlink(resolvConf); err == nil {
		if !filepath.IsAbs(link) {
			link = filepath.Join(dir, link)
		}
		r.allow(confine.ReadFile, filepath.Dir(link))
	}
}

// program lets a program be started, with the libraries that it is linked to.
func program(r *rules, path string) {
	r.allow(confine.Execute|confine.ReadFile, path)
	if dynamic() {
		r.libraries()
	}
}

// dynamic reports whether this program was linked to libraries, as it is not
// in our own builds.
func dynamic() bool {
	const base = 7 // AT_BASE of getauxval(3): where the loader is
	all, err := unix.Auxv()
	if err != nil {
		return true
	}
	for _, kv := range all {
		if kv[0] == base {
			return kv[1] != 0
		}
	}
	return false
}

// libraries lets programs be started that have them.
func (r *rules) libraries() {
	r.allow(confine.Read, "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec", "/usr/share", "/usr/local/lib", "/lib", "/lib64",
		"/etc/ld.so.cache", "/etc/ld-musl-x86_64.path", "/etc/ld-musl-aarch64.path")
	for _, pattern := range []string{"/lib*/ld-linux*.so.*", "/lib/ld-musl-*.so.1"} {
		if found, err := filepath.Glob(pattern); err == nil {
			r.allow(confine.Execute, found...)
		}
	}
}

// dnsmasq lets dnsmasq do its work, and be looked after: it becomes another
// user, to whom its log and its process belong from then on.
func (r *rules) dnsmasq() {
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		r.allow(confine.Execute|confine.ReadFile, filepath.Join(dir, "dnsmasq"))
	}
	r.libraries()
	r.allow(confine.ReadFile, "/etc", "/dev/urandom")
	r.Bind = []uint16{portDNS}
	r.Caps = append(r.Caps,
		unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_CHOWN, // it becomes another user
		unix.CAP_NET_RAW,                   // which it insists on
		unix.CAP_KILL, unix.CAP_SYS_PTRACE, // to end it, and to see in which network it is
		unix.CAP_DAC_OVERRIDE, // its log
	)
}
