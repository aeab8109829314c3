package podman

import (
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
)

func addrs(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestNetwork(t *testing.T) {
	pasta := Network{Mode: Pasta, DNS: netip.MustParseAddr("169.254.1.1"), Hosts: addrs("169.254.1.2"),
		Flags: []string{"--network", "pasta:--map-host-loopback,169.254.1.2", "--add-host", "host.containers.internal:169.254.1.2"}}
	slirp := func(dns, gateway string) Network {
		// Nothing of pasta's 169.254.1.2: it is nobody's under slirp4netns.
		return Network{Mode: Slirp, DNS: netip.MustParseAddr(dns), Hosts: addrs(gateway, "fd00::2"),
			Flags: []string{"--network", "slirp4netns:allow_host_loopback=true", "--add-host", "host.containers.internal:" + gateway}}
	}
	cidr := func(s ...string) Conf { return Conf{NetworkCmdOptions: s} }
	for _, tt := range []struct {
		name string
		info Info
		conf Conf
		want Network
	}{
		{"pasta", Info{Rootless: true, NetworkMode: Pasta}, Conf{}, pasta},
		{"slirp4netns", Info{Rootless: true, NetworkMode: Slirp}, Conf{}, slirp("10.0.2.3", "10.0.2.2")},
		// The systems before left the name server at 10.0.2.3 and so blocked DNS.
		{"a CIDR moves the name server too", Info{Rootless: true, NetworkMode: Slirp}, cidr("mtu=1500", "cidr=10.9.8.0/24", "cidr=10.1.1.0/24"), slirp("10.9.8.3", "10.9.8.2")},
		{"CIDR of the least size", Info{Rootless: true, NetworkMode: Slirp}, cidr("cidr=10.9.8.128/25"), slirp("10.9.8.131", "10.9.8.130")},
		{"host bits", Info{Rootless: true, NetworkMode: Slirp}, cidr("cidr=10.9.8.1/24"), slirp("10.0.2.3", "10.0.2.2")},
		{"too small", Info{Rootless: true, NetworkMode: Slirp}, cidr("cidr=10.9.8.0/26"), slirp("10.0.2.3", "10.0.2.2")},
		{"IPv6", Info{Rootless: true, NetworkMode: Slirp}, cidr("cidr=fd12::/64"), slirp("10.0.2.3", "10.0.2.2")},
		{"malformed", Info{Rootless: true, NetworkMode: Slirp}, cidr("cidr=x", "cidr=10.9.8.0/24"), slirp("10.0.2.3", "10.0.2.2")},
		{"podman 4, pasta configured", Info{Rootless: true, NetworkMode: Slirp, pasta: "/p"}, Conf{NetworkCmd: Pasta}, pasta},
		{"podman 4, pasta configured but missing", Info{Rootless: true, NetworkMode: Slirp}, Conf{NetworkCmd: Pasta}, slirp("10.0.2.3", "10.0.2.2")},
		{"what podman reports wins", Info{Rootless: true, NetworkMode: Slirp, networkCmd: Slirp, pasta: "/p"}, Conf{NetworkCmd: Pasta}, slirp("10.0.2.3", "10.0.2.2")},
		{"rootful, none to be asked", Info{}, Conf{}, Network{Mode: Bridge}},
		{"rootful", Info{NetworkMode: Pasta}, Conf{Nameservers: addrs("192.168.1.1", "9.9.9.9")}, Network{Mode: Bridge, DNS: netip.MustParseAddr("192.168.1.1")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.info.Network(tt.conf)
			if d := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Addr{})); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestRootfulNameservers(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  []netip.Addr
	}{
		{"plain", map[string]string{resolvConf: "search x\nnameserver 192.168.1.1\nnameserver\nnameserver 9.9.9.9 # x\n"}, addrs("192.168.1.1", "9.9.9.9")},
		{"loopback and IPv6 fall out", map[string]string{resolvConf: "nameserver 127.0.0.1\nnameserver ::1\nnameserver 2001:db8::1\nnameserver 10.0.0.1\n"}, addrs("10.0.0.1")},
		{"systemd-resolved", map[string]string{resolvConf: "nameserver 127.0.0.53\n", resolvedServers: "nameserver 10.0.0.9\n"}, addrs("10.0.0.9")},
		{"NetworkManager", map[string]string{resolvConf: "nameserver 127.0.0.1\n", nmServers: "nameserver 10.0.0.8\n"}, addrs("10.0.0.8")},
		{"stub with nothing behind", map[string]string{resolvConf: "nameserver 127.0.0.53\n"}, nil},
		{"no file", nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := system{env: &cmdenv.Env{}, root: t.TempDir()}
			for f, text := range tt.files {
				write(t, filepath.Join(s.root, f), text, 0o644)
			}
			if d := cmp.Diff(tt.want, rootfulNameservers(s), cmpopts.EquateComparable(netip.Addr{})); d != "" {
				t.Error(d)
			}
		})
	}
}
