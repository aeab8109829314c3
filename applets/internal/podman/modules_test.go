package podman

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
)

func TestModules(t *testing.T) {
	for name, tt := range map[string]struct {
		files map[string]string
		want  Modules
	}{
		"nothing":                 {nil, Modules{}},
		"SELinux":                 {map[string]string{"sys/fs/selinux/enforce": "1"}, Modules{SELinux: true}},
		"SELinux, permissive":     {map[string]string{"sys/fs/selinux/enforce": "0"}, Modules{}},
		"Ubuntu":                  {map[string]string{"proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"}, Modules{UserNS: true}},
		"Ubuntu, as it was":       {map[string]string{"proc/sys/kernel/apparmor_restrict_unprivileged_userns": "0\n"}, Modules{}},
		"a profile and no module": {map[string]string{"etc/apparmor.d/usr.sbin.dnsmasq": "x"}, Modules{}},
		"a profile": {map[string]string{
			"etc/apparmor.d/usr.sbin.dnsmasq": "x", "sys/module/apparmor/parameters/enabled": "Y\n", "etc/apparmor.d/local/usr.sbin.dnsmasq": "# empty\n",
		}, Modules{Dnsmasq: true}},
		"a profile with our addendum": {map[string]string{
			"etc/apparmor.d/usr.sbin.dnsmasq": "x", "sys/module/apparmor/parameters/enabled": "Y\n",
			"etc/apparmor.d/local/usr.sbin.dnsmasq": "owner @{HOME}/.local/state/terok/shield/**/dnsmasq.conf r,\n",
		}, Modules{}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for file, text := range tt.files {
				path := filepath.Join(root, file)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if d := cmp.Diff(tt.want, modules(system{env: &cmdenv.Env{}, root: root})); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}
