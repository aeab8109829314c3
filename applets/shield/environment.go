package shield

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/config"
	"github.com/terok-ai/terok-box/applets/internal/dnsmasq"
	"github.com/terok-ai/terok-box/applets/internal/podman"
	"github.com/terok-ai/terok-box/applets/internal/shielded"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
)

type environmentCmd struct {
	JSON     bool `name:"json" help:"Print a JSON object."`
	AppArmor bool `name:"apparmor" help:"Print what AppArmor's profile of dnsmasq needs in addition for dns.tier: dnsmasq, and how to install it."`
}

// environment is what this host offers; its JSON is that of check-environment.
type environment struct {
	podman.Environment
	DNSTier    string `json:"dns_tier"`
	Good       bool   `json:"ok"`
	NeedsSetup bool   `json:"needs_setup"`
	SetupHint  string `json:"setup_hint,omitempty"`
}

func (c environmentCmd) Run(a *app) error {
	if c.AppArmor {
		a.printf("%s", resources.AppArmorDnsmasq())
		return nil
	}
	cfg, err := a.config()
	if err != nil {
		return err
	}
	e := a.environment(cfg)
	if c.JSON {
		return a.printJSON(e)
	}
	a.printf("podman_version=%s\nhooks=%s\nhealth=%s\ndns_tier=%s\n", e.PodmanVersion, e.Hooks, e.Health, e.DNSTier)
	e.print(a)
	return nil
}

func (a *app) environment(cfg config.Config) environment {
	e := environment{DNSTier: string(cfg.Tier)}
	p, err := a.podman()
	if err != nil {
		p = nil // Check says so
	}
	e.Environment = podman.Check(a.ctx, a.env, p, podman.Firewall, podman.Reader)
	if err := a.kernel(); err != nil {
		e.Issues = append(e.Issues, podman.Issue{
			Text: fmt.Sprintf("nf_tables cannot be used in a namespace of your own: %v", err),
			Fix:  "allow unprivileged user namespaces, and load the module nf_tables (modprobe nf_tables nft_log nft_reject_inet nft_ct nft_limit) or use a kernel that has it",
		})
	}
	if cfg.Tier == bundle.Dnsmasq {
		if err := dnsmasq.Detect(a.ctx, a.dirOf(cfg, "")); err != nil {
			e.Issues = append(e.Issues, podman.Issue{
				Text: fmt.Sprintf("dns.tier: dnsmasq cannot be used: %v", err),
				Fix:  "do as it says, or write dns.tier: proxy into " + cfg.Path + ": it needs no dnsmasq",
			})
		}
	}
	e.Good = len(e.Issues) == 0
	if !e.Installed() {
		e.NeedsSetup, e.SetupHint = true, e.Hint()
	}
	return e
}

// print lists what is wrong and what to do about it.
func (e environment) print(a *app) {
	if len(e.Issues) > 0 {
		a.printf("\n")
		for _, i := range e.Issues {
			a.printf("  %s\n", i.Text)
			if i.Fix != "" {
				a.printf("    → %s\n", i.Fix)
			}
		}
	}
	if e.SetupHint != "" {
		a.printf("\n%s\n", e.SetupHint)
	}
}

// opProbe has RunInside put every state's table into its own, new namespace.
const opProbe control.Op = "probe"

const probeTimeout = 10 * time.Second

// kernel tries in new user and network namespaces whether this kernel takes
// our rulesets.
func (a *app) kernel() error {
	ctx, cancel := context.WithTimeout(a.ctx, probeTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, a.env.Self, shielded.InsideName)
	cmd.Args[0] = "terok-box"
	cmd.Stdin = strings.NewReader(`{"op":"` + string(opProbe) + `"}`)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: a.env.EUID, Size: 1}},
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w %s", err, strings.TrimSpace(errOut.String()))
	}
	var resp control.Response
	if err := control.Read(&out, &resp); err != nil {
		return err
	}
	if resp.Error != "" {
		return fmt.Errorf("%s", resp.Error)
	}
	return nil
}

// probe applies the preview of every state in the namespace it is called in.
func probe() error {
	tables, err := previews()
	if err != nil {
		return err
	}
	ns, err := netns.Current()
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(func() error {
		conn, err := nft.Dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		for _, t := range tables {
			if err := conn.Apply(t); err != nil {
				return err
			}
		}
		return nil
	})
}
