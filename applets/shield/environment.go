package shield

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/config"
	"github.com/terok-ai/terok-box/applets/internal/dnsmasq"
	"github.com/terok-ai/terok-box/applets/internal/podman"
	"github.com/terok-ai/terok-box/applets/internal/shielded"
	"github.com/terok-ai/terok-box/nl/confine"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/control"
)

type environmentCmd struct {
	JSON     bool `name:"json" help:"Print a JSON object."`
	Fix      bool `help:"Mend what can be mended without harm: hooks, modes of our directories, sockets that nobody serves any more."`
	AppArmor bool `name:"apparmor" help:"Print what AppArmor's profile of dnsmasq needs in addition for dns.tier: dnsmasq, and how to install it."`
	UserNS   bool `name:"apparmor-userns" help:"Print an AppArmor profile that lets this program make user namespaces, and how to install it."`
	SELinux  bool `name:"selinux" help:"Print what to look at where SELinux enforces."`
}

// environment is what this host offers; its JSON is that of check-environment.
type environment struct {
	podman.Environment
	DNSTier    string   `json:"dns_tier"`
	Good       bool     `json:"ok"`
	NeedsSetup bool     `json:"needs_setup"`
	SetupHint  string   `json:"setup_hint,omitempty"`
	Fixed      []string `json:"fixed,omitempty"` // with --fix: what was wrong
}

func (c environmentCmd) Run(a *app) error {
	switch {
	case c.AppArmor:
		a.printf("%s", resources.AppArmorDnsmasq())
		return nil
	case c.UserNS:
		a.printf("%s", resources.AppArmorUserNS())
		return nil
	case c.SELinux:
		a.printf("%s", resources.SELinuxNotes())
		return nil
	}
	cfg, err := a.config()
	if err != nil {
		return err
	}
	e := a.environment(cfg)
	var failed error
	if c.Fix {
		var fixed []string
		fixed, failed = a.mend(e, a.neglected(cfg))
		e = a.environment(cfg)
		e.Fixed = fixed
	}
	if c.JSON {
		return errors.Join(a.printJSON(e), failed)
	}
	for _, text := range e.Fixed {
		a.printf("fixed: %s\n", text)
	}
	a.printf("podman_version=%s\nhooks=%s\nhealth=%s\ndns_tier=%s\n", e.PodmanVersion, e.Hooks, e.Health, e.DNSTier)
	e.print(a)
	return failed
}

func (a *app) environment(cfg config.Config) environment {
	e := environment{DNSTier: string(cfg.Tier)}
	p, err := a.podman()
	if err != nil {
		p = nil // Check says so
	}
	e.Environment = podman.Check(a.ctx, a.env, p, podman.Firewall, podman.Reader)
	modules := podman.FindModules(a.env)
	err = a.kernel()
	switch {
	case err != nil && modules.UserNS:
		e.Notes = append(e.Notes, fmt.Sprintf("whether the kernel takes our rulesets could not be tried: AppArmor keeps this program from user namespaces (%v); "+
			"containers work all the same if Podman has a profile; terok-shield check-environment --apparmor-userns prints one for this program", err))
	case err != nil:
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
	if modules.SELinux {
		e.Notes = append(e.Notes, "SELinux enforces; terok-shield check-environment --selinux says what to look at should something be denied")
	}
	if modules.Dnsmasq {
		e.Notes = append(e.Notes, "AppArmor has a profile of dnsmasq without our addendum, which dns.tier: dnsmasq needs; terok-shield check-environment --apparmor prints it")
	}
	if confine.ABI() == 0 {
		e.Notes = append(e.Notes, "this kernel has no Landlock, so that our own processes may read and write all of your files; use one with CONFIG_SECURITY_LANDLOCK, and landlock in lsm= on its command line")
	}
	for _, n := range a.neglected(cfg) {
		e.Issues = append(e.Issues, podman.Issue{Text: n.text, Fix: "run terok-shield check-environment --fix"})
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
	if len(e.Notes) > 0 {
		a.printf("\n")
		for _, n := range e.Notes {
			a.printf("  note: %s\n", n)
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
