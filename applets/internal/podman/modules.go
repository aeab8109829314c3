package podman

import (
	"path/filepath"
	"strings"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
)

// Modules is what the security modules of this host do that concerns us.
type Modules struct {
	SELinux bool // it enforces
	// UserNS: AppArmor takes the capabilities from user namespaces of programs
	// that have no profile that says otherwise, as on Ubuntu.
	UserNS bool
	// Dnsmasq: AppArmor has a profile of dnsmasq, which has not our addendum.
	Dnsmasq bool
}

// FindModules looks at the host. What cannot be read is not there.
func FindModules(env *cmdenv.Env) Modules { return modules(systemOf(env)) }

func modules(s system) Modules {
	is := func(file, value string) bool {
		text, err := readProc(s.path(file))
		return err == nil && strings.TrimSpace(text) == value
	}
	const profile = "etc/apparmor.d/usr.sbin.dnsmasq"
	addendum, err := readProc(s.path(filepath.Join("etc/apparmor.d/local", filepath.Base(profile))))
	return Modules{
		SELinux: is("sys/fs/selinux/enforce", "1"),
		UserNS:  is("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
		Dnsmasq: is("sys/module/apparmor/parameters/enabled", "Y") && exists(s.path(profile)) &&
			(err != nil || !strings.Contains(addendum, "/terok/shield/")),
	}
}
