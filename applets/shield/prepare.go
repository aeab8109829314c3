package shield

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/audit"
	"github.com/terok-ai/terok-box/applets/internal/config"
	"github.com/terok-ai/terok-box/applets/internal/dnsmasq"
	"github.com/terok-ai/terok-box/applets/internal/podman"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/oci"
)

type prepareCmd struct {
	Container container `arg:"" help:"Name the container will have."`
	Profiles  []string  `complete:"profiles" placeholder:"A,B" help:"Allowlist profiles (default: default_profiles of config.yml)."`
	Runtime   string    `placeholder:"NAME" help:"The OCI runtime that will run it, if not Podman's default: the resolver listens elsewhere under krun."`
	JSON      bool      `name:"json" help:"Print a JSON array instead of a shell-quoted line."`
}

func (c prepareCmd) Run(a *app) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	p, err := a.podman()
	if err != nil {
		return err
	}
	flags, err := a.prepare(cfg, p, c.Container, c.Profiles, c.Runtime)
	if err != nil {
		return err
	}
	flags = append(flags, "--name", string(c.Container))
	if c.JSON {
		return a.printJSON(flags)
	}
	quoted := make([]string, len(flags))
	for i, f := range flags {
		quoted[i] = shellQuote(f)
	}
	a.printf("%s\n", strings.Join(quoted, " "))
	return nil
}

// prepare writes the state a container starts from and returns the flags that
// podman needs to find it. runtime is the OCI runtime it will have; "" is
// Podman's default.
func (a *app) prepare(cfg config.Config, p *podman.Client, c container, profiles []string, runtime string) (flags []string, err error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if err := a.hooked(p); err != nil {
		return nil, err
	}
	info, err := p.Info(a.ctx)
	if err != nil {
		return nil, err
	}
	conf, err := podman.ReadConf(a.env)
	if err != nil {
		return nil, err
	}
	net := network{Network: info.Network(conf), tier: cfg.Tier, listen: listen(runtime, info.Runtime)}
	dir := a.dirOf(cfg, string(c))
	if err := a.usable(net, dir); err != nil {
		return nil, err
	}
	if len(profiles) == 0 {
		profiles = cfg.DefaultProfiles
	}
	want, err := composed(cfg, profiles)
	if err != nil {
		return nil, err
	}

	b, err := bundle.Create(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	unlock, err := b.Lock(a.ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := a.refresh(b, profiles, want, net.ownResolver(), false); err != nil {
		return nil, err
	}
	if err := a.writeBundle(b, cfg, net); err != nil {
		return nil, err
	}
	if cfg.Audit {
		e := audit.Entry{Container: string(c), Action: "setup", Detail: "profiles=" + strings.Join(profiles, ",")}
		if err := audit.Append(b, e); err != nil {
			a.warn(err.Error())
		}
	}

	flags = net.Flags
	if net.ownResolver() {
		flags = append(flags, "--volume", filepath.Join(b.Path(), bundle.FileResolvConf)+":/etc/resolv.conf:ro,Z")
	}
	for _, kv := range [][2]string{
		{oci.KeyProfiles, strings.Join(profiles, ":")},
		{oci.KeyName, string(c)},
		{oci.KeyStateDir, b.Path()},
		{oci.KeyVersion, fmt.Sprint(bundle.Version)},
		{oci.KeyAuditEnabled, fmt.Sprint(cfg.Audit)},
		{oci.KeyUpstreamDNS, addrText(net.DNS)},
		{oci.KeyDNSTier, net.tier.Word()},
	} {
		flags = append(flags, "--annotation", kv[0]+"="+kv[1])
	}
	return append(flags, "--cap-drop", "NET_ADMIN", "--cap-drop", "NET_RAW"), nil
}

// hooked fails unless Podman runs our hook: a container prepared without it
// would run open, so nothing is written then.
func (a *app) hooked(p *podman.Client) error {
	if e := podman.Check(a.ctx, a.env, p); !e.Installed() {
		return fmt.Errorf("podman %s would not run the hook that makes the firewall: %s", e.PodmanVersion, e.Hint())
	}
	return nil
}

// network is how a container will be connected and find addresses.
type network struct {
	podman.Network
	tier   bundle.Tier
	listen netip.Addr // where its name server listens, if it has one of its own
}

// ownResolver reports whether the container asks a name server in its own
// network namespace.
func (n network) ownResolver() bool { return n.tier == bundle.Proxy || n.tier == bundle.Dnsmasq }

// listen is where a container under that OCI runtime looks for its name
// server. A guest under krun does not hear what listens on 127.0.0.1.
func listen(runtime, byDefault string) netip.Addr {
	if runtime == "" {
		runtime = byDefault
	}
	if podman.Krun(runtime) {
		return netip.AddrFrom4([4]byte{169, 254, 1, 3}) // beside pasta's .1 and .2
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// learnedLifetime is how long an address stays open that dnsmasq opened
// because of a name. dnsmasq does not say how long it is good for.
const learnedLifetime = 30 * time.Minute

// usable fails unless a container can be prepared for that network. Another
// tier is never chosen instead.
func (a *app) usable(n network, dir string) error {
	if n.tier != bundle.Proxy && !n.DNS.IsValid() {
		return fmt.Errorf("the host's resolv.conf has no name server that a rootful container could reach, which dns.tier: %s needs: add one that is not a loopback address, or use dns.tier: proxy", n.tier)
	}
	if n.ownResolver() && strings.ContainsAny(dir, ":\n") { // --volume cannot say it
		return fmt.Errorf("the state directory %s has a colon in its path, which podman takes for the end of it: name another with --state-dir", dir)
	}
	if n.tier != bundle.Dnsmasq {
		return nil
	}
	if err := dnsmasq.Detect(a.ctx, dir); err != nil {
		return fmt.Errorf("dns.tier: dnsmasq cannot be used: %w (or use dns.tier: proxy, which needs no dnsmasq)", err)
	}
	return nil
}

// writeBundle writes the files the hook and later commands read; ruleset.nft
// last, so that a bundle with a ruleset is complete.
func (a *app) writeBundle(b *bundle.Bundle, cfg config.Config, n network) error {
	profile, err1 := b.ProfileAllowed()
	live, err2 := b.LiveAllowed()
	deny, err3 := b.DenyList()
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	params := ruleset.Params{DNS: n.DNS, Ports: cfg.LoopbackPorts, Hosts: n.Hosts}
	switch n.tier {
	case bundle.Proxy: // our resolver asks from outside of the container
		params.DNS = netip.Addr{}
	case bundle.Dnsmasq:
		params.Lifetime = learnedLifetime
	}
	params.Allow, params.Deny = bundle.Effective(profile, live, deny)
	table, err := ruleset.Build(ruleset.Up, params)
	if err != nil {
		return err
	}
	// A name server of an earlier preparation would not be found any more.
	if err := dnsmasq.Stop(a.ctx, b); err != nil {
		return err
	}
	questions := cfg.Questions
	if !cfg.Ask {
		questions = 0
	}
	upstream := b.RemoveUpstreamDNS
	if n.DNS.IsValid() {
		upstream = func() error { return b.SetUpstreamDNS(n.DNS) }
	}
	if err := errors.Join(
		b.RemoveDnsmasq(),
		b.SetOpen(false),
		upstream(),
		b.SetNetwork(bundle.Network{Mode: n.Mode, Hosts: n.Hosts}),
		b.SetTier(n.tier),
		b.SetResolveUnlisted(cfg.ResolveUnlisted),
		b.SetListen(n.listen),
		b.SetLoopbackPorts(cfg.LoopbackPorts),
		b.SetQuestions(questions),
	); err != nil {
		return err
	}
	if n.tier == bundle.Dnsmasq {
		conf, err := dnsmasq.Conf(b, n.listen, n.DNS)
		if err != nil {
			return err
		}
		if err := b.SetDnsmasqConf(conf); err != nil {
			return err
		}
	}
	if n.ownResolver() {
		if err := b.SetResolvConf(n.listen); err != nil {
			return err
		}
	}
	return errors.Join(b.SetRulesetFormat(ruleset.Format), b.SetRuleset(table.String()))
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// shellQuote quotes an argument for a POSIX shell where it needs that.
func shellQuote(s string) string {
	safe := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@%+=:,./-_", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !safe(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'"'"'`) + "'"
}
