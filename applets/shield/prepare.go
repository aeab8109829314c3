package shield

import (
	"errors"
	"fmt"
	"strings"

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
	Profiles  []string  `placeholder:"A,B" help:"Allowlist profiles (default: default_profiles of config.yml)."`
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
	flags, err := a.prepare(cfg, p, c.Container, c.Profiles)
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
// podman needs to find it.
func (a *app) prepare(cfg config.Config, p *podman.Client, c container, profiles []string) (flags []string, err error) {
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
	network, err := info.Network(conf)
	if err != nil {
		return nil, err
	}
	if len(profiles) == 0 {
		profiles = cfg.DefaultProfiles
	}
	want, err := composed(cfg, profiles)
	if err != nil {
		return nil, err
	}

	dir := a.dirOf(cfg, string(c))
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
	if _, err := a.refresh(b, profiles, want, false); err != nil {
		return nil, err
	}
	if err := a.writeRuleset(b, cfg, network); err != nil {
		return nil, err
	}
	if cfg.Audit {
		e := audit.Entry{Container: string(c), Action: "setup", Detail: "profiles=" + strings.Join(profiles, ",")}
		if err := audit.Append(b, e); err != nil {
			a.warn(err.Error())
		}
	}

	flags = network.Flags
	for _, kv := range [][2]string{
		{oci.KeyProfiles, strings.Join(profiles, ":")},
		{oci.KeyName, string(c)},
		{oci.KeyStateDir, b.Path()},
		{oci.KeyVersion, fmt.Sprint(bundle.Version)},
		{oci.KeyAuditEnabled, fmt.Sprint(cfg.Audit)},
		{oci.KeyUpstreamDNS, addrText(network)},
		{oci.KeyDNSTier, bundle.Static.Word()},
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

// writeRuleset writes the files the hook and later commands read; ruleset.nft
// last, so that a bundle with a ruleset is complete.
func (a *app) writeRuleset(b *bundle.Bundle, cfg config.Config, network podman.Network) error {
	profile, err1 := b.ProfileAllowed()
	live, err2 := b.LiveAllowed()
	deny, err3 := b.DenyList()
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	params := ruleset.Params{DNS: network.DNS, Ports: cfg.LoopbackPorts, Hosts: network.Hosts}
	params.Allow, params.Deny = bundle.Effective(profile, live, deny)
	table, err := ruleset.Build(ruleset.Up, params)
	if err != nil {
		return err
	}
	// A name server of an earlier preparation would not be found any more.
	if err := dnsmasq.Stop(a.ctx, b); err != nil {
		return err
	}
	return errors.Join(
		b.RemoveDnsmasq(),
		b.SetUpstreamDNS(network.DNS),
		b.SetNetwork(bundle.Network{Mode: network.Mode, Hosts: network.Hosts}),
		b.SetTier(bundle.Static),
		b.SetLoopbackPorts(cfg.LoopbackPorts),
		b.SetRulesetFormat(ruleset.Format),
		b.SetRuleset(table.String()),
	)
}

func addrText(n podman.Network) string {
	if !n.DNS.IsValid() {
		return ""
	}
	return n.DNS.String()
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
