package podman

import (
	"bytes"
	"net/netip"
	"strings"
)

// Network is what a container gets from Podman's network, as far as its
// firewall must know it.
type Network struct {
	Mode  string       // pasta, slirp4netns; bridge for a rootful container
	DNS   netip.Addr   // name server it can ask; invalid if there is none
	Hosts []netip.Addr // addresses under which it reaches the host's loopback
	Flags []string     // for podman create, to get exactly this
}

// What pasta and slirp4netns give a container, see pasta(1) and
// slirp4netns(1). Podman tells pasta to forward DNS at pastaDNS.
var (
	pastaDNS  = netip.MustParseAddr("169.254.1.1")
	pastaHost = netip.MustParseAddr("169.254.1.2")
	slirpNet  = netip.MustParsePrefix("10.0.2.0/24")
	slirpHost = netip.MustParseAddr("fd00::2")
)

// Network is the network of a container that Podman makes with the flags in
// it. Under slirp4netns both the gateway (base+2) and the name server
// (base+3) follow a CIDR set in containers.conf, and nothing of pasta's
// 169.254.1.2 is listed. A rootful container stays on Podman's default
// bridge, which has no name server of its own: it is told the host's, if one
// of these can be reached from there.
func (i Info) Network(conf Conf) Network {
	if !i.Rootless {
		n := Network{Mode: Bridge}
		if len(conf.Nameservers) > 0 {
			n.DNS = conf.Nameservers[0]
		}
		return n
	}
	mode := i.NetworkMode
	// Podman before 5 does not report its choice; what the administrator
	// configured beats our guess, where the program exists.
	if i.networkCmd == "" && conf.NetworkCmd == Pasta && i.pasta != "" {
		mode = Pasta
	}
	if mode == Slirp {
		cidr := slirpCIDR(conf.NetworkCmdOptions)
		gateway := addrAt(cidr, 2)
		return Network{
			Mode: Slirp, DNS: addrAt(cidr, 3), Hosts: []netip.Addr{gateway, slirpHost},
			Flags: []string{"--network", "slirp4netns:allow_host_loopback=true", "--add-host", "host.containers.internal:" + gateway.String()},
		}
	}
	return Network{
		Mode: Pasta, DNS: pastaDNS, Hosts: []netip.Addr{pastaHost},
		Flags: []string{"--network", "pasta:--map-host-loopback," + pastaHost.String(), "--add-host", "host.containers.internal:" + pastaHost.String()},
	}
}

// slirpCIDR is the network that the first cidr option sets; the default if
// that is malformed, has host bits or has no room for gateway and name
// server.
func slirpCIDR(options []string) netip.Prefix {
	for _, o := range options {
		if text, ok := strings.CutPrefix(o, "cidr="); ok {
			p, err := netip.ParsePrefix(text)
			if err != nil || !p.Addr().Is4() || p != p.Masked() || p.Bits() > 25 {
				return slirpNet // slirp4netns wants at most 25 bits
			}
			return p
		}
	}
	return slirpNet
}

// addrAt is the n-th address of a network whose last byte is zero.
func addrAt(p netip.Prefix, n byte) netip.Addr {
	a := p.Addr().As4()
	a[3] += n
	return netip.AddrFrom4(a)
}

// Resolver configurations, see resolv.conf(5). The second and third are
// where systemd-resolved and NetworkManager keep the servers behind their
// stub; Podman reads them when the stub is the only server.
const (
	resolvConf        = "etc/resolv.conf"
	resolvedServers   = "run/systemd/resolve/resolv.conf"
	nmServers         = "run/NetworkManager/no-stub-resolv.conf"
	maxResolvConf     = 64 << 10
	systemdStub       = "127.0.0.53"
	networkManagerStb = "127.0.0.1"
)

// rootfulNameservers is what Podman writes into the resolv.conf of a rootful
// container on its default network: the host's name servers without those on
// a loopback address, and without IPv6 ones, since that network has no IPv6.
func rootfulNameservers(s system) []netip.Addr {
	text, err := readFile(s.path(resolvConf), maxResolvConf)
	if err != nil {
		return nil // as if it were empty
	}
	all := nameservers(text)
	if len(all) == 1 {
		behind := map[string]string{systemdStub: resolvedServers, networkManagerStb: nmServers}[all[0].String()]
		if behind != "" {
			if text, err := readFile(s.path(behind), maxResolvConf); err == nil {
				all = nameservers(text)
			}
		}
	}
	var out []netip.Addr
	for _, a := range all {
		if a.Is4() && !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast() {
			out = append(out, a)
		}
	}
	return out
}

func nameservers(text []byte) []netip.Addr {
	var out []netip.Addr
	for line := range bytes.Lines(text) {
		f := bytes.Fields(line)
		if len(f) < 2 || string(f[0]) != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(string(f[1])); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}
