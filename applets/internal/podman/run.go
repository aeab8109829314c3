package podman

import (
	"encoding/csv"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Run is a `podman run` command line, taken apart so that the container can
// be created, looked at, and only then started.
type Run struct {
	Create  []string // flags for podman create, one argument each
	Start   []string // flags for podman start, besides --attach
	Image   string
	Command []string

	Detach      bool // start without attaching
	Interactive bool
	TTY         bool
	Rm          bool
	// Replace asks to remove a container of the same name before this one
	// is prepared. It is not in Create: the state directory is the old
	// container's until that has ended.
	Replace bool
	// Runtime is the OCI runtime asked for; "" if none is.
	Runtime string
}

// Krun reports whether an OCI runtime, by name or path, makes a virtual
// machine of the container: its guest has a loopback device of its own, so
// what listens on the namespace's is not heard there.
func Krun(runtime string) bool { return strings.Contains(path.Base(runtime), "krun") }

// ParseRun takes apart what follows `terok-shield run C --`: flags of podman
// run, an image, its command. It refuses flags that terok-shield sets itself,
// and those that would lead the container around its firewall.
//
// Podman has to read the flags as we did. So only flags we know are taken
// (an unknown one might or might not have a value), and each is handed on in
// the one form that cannot be read in two ways, --flag=value.
func ParseRun(args []string) (Run, error) {
	var p runParser
	rest, err := p.flags(args)
	if err != nil {
		return Run{}, err
	}
	if len(p.managed) > 0 {
		slices.Sort(p.managed)
		return Run{}, fmt.Errorf("Flag(s) managed by terok-shield, cannot override: %s", strings.Join(slices.Compact(p.managed), ", "))
	}
	if len(p.refused) > 0 {
		return Run{}, errors.New(strings.Join(slices.Compact(p.refused), "; "))
	}
	if len(rest) == 0 || rest[0] == "" {
		return Run{}, errors.New("No image specified. Usage: terok-shield run <container> -- <image> [cmd...]") //nolint:staticcheck // scripts know this text
	}
	if strings.HasPrefix(rest[0], "-") {
		return Run{}, fmt.Errorf("image name %q starts with a dash", rest[0])
	}
	p.run.Image, p.run.Command = rest[0], rest[1:]
	return p.run, p.finish()
}

type runParser struct {
	run              Run
	detachKeys       string
	sigProxy         string
	attach           []string
	managed, refused []string
}

// flags reads flags as pflag does for a command whose flags end at the first
// operand, and returns what follows.
func (p *runParser) flags(args []string) (rest []string, err error) {
	for len(args) > 0 {
		arg := args[0]
		switch {
		case arg == "--":
			return args[1:], nil
		case len(arg) < 2 || arg[0] != '-':
			return args, nil
		}
		args = args[1:]
		if arg[1] == '-' {
			args, err = p.long(arg[2:], args)
		} else {
			args, err = p.short(arg[1:], args)
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func (p *runParser) long(arg string, args []string) ([]string, error) {
	given, value, has := strings.Cut(arg, "=")
	name := canonical(given)
	switch kindOf(name) {
	case unknown:
		return nil, fmt.Errorf("terok-shield does not know the flag --%s of podman run and cannot tell what it does to the network: leave it out, or set it in containers.conf", given)
	case boolean:
		if !has {
			value = "true"
		}
	case valued:
		if !has {
			if len(args) == 0 {
				return nil, fmt.Errorf("flag --%s needs a value", given)
			}
			value, args = args[0], args[1:]
		}
	}
	return args, p.flag("--"+given, name, value)
}

// short reads a cluster: flags without a value up to one that takes the rest
// of the cluster, or the next argument, as its value.
func (p *runParser) short(cluster string, args []string) ([]string, error) {
	for cluster != "" {
		short := cluster[:1]
		name := longOf(short[0])
		if name == "" {
			return nil, fmt.Errorf("podman run has no flag -%s", strconv.QuoteToASCII(short))
		}
		rest := cluster[1:]
		var value string
		switch {
		case len(rest) > 1 && rest[0] == '=':
			value, cluster = rest[1:], ""
		case kindOf(name) == boolean:
			value, cluster = "true", rest
		case rest != "":
			value, cluster = rest, ""
		case len(args) == 0:
			return nil, fmt.Errorf("flag -%s needs a value", short)
		default:
			value, args, cluster = args[0], args[1:], ""
		}
		if err := p.flag("-"+short, name, value); err != nil {
			return nil, err
		}
	}
	return args, nil
}

// flag takes one flag in, under the name it was given by and its long name:
// refused, for create, or for start.
func (p *runParser) flag(given, name, value string) error {
	on := false
	if kindOf(name) == boolean {
		var err error
		if on, err = strconv.ParseBool(value); err != nil {
			return fmt.Errorf("flag %s: %q is neither true nor false", given, value)
		}
		value = strconv.FormatBool(on)
	}
	if managed(name, value) {
		p.managed = append(p.managed, given)
		return nil
	}
	if why := refusal(name, value, on); why != "" {
		p.refused = append(p.refused, given+" "+why)
		return nil
	}
	switch name {
	case "detach":
		p.run.Detach = on
		return nil
	case "detach-keys":
		p.detachKeys = "--detach-keys=" + value
		return nil
	case "sig-proxy":
		p.sigProxy = "--sig-proxy=" + value
		return nil
	case "attach":
		for _, stream := range pieces(value) {
			p.attach = append(p.attach, strings.ToLower(stream))
		}
		return nil
	case "replace":
		p.run.Replace = on
		return nil
	case "passwd", "rmi":
		return nil // as podman does without them; other values were refused
	case "interactive":
		p.run.Interactive = on
	case "tty":
		p.run.TTY = on
	case "rm":
		p.run.Rm = on
	case "runtime":
		p.run.Runtime = value
	}
	p.run.Create = append(p.run.Create, "--"+name+"="+value)
	return nil
}

// finish fills in the flags of podman start, which attaches to all output or
// to none.
func (p *runParser) finish() error {
	if len(p.attach) > 0 {
		switch {
		case p.run.Detach:
			return errors.New("--attach and --detach contradict each other")
		case !slices.Contains(p.attach, "stdout") || !slices.Contains(p.attach, "stderr"):
			return errors.New("--attach: terok-shield starts containers with podman start, which attaches to stdout and stderr together: name both or neither")
		case slices.Contains(p.attach, "stdin") && !p.run.Interactive:
			return errors.New("--attach stdin needs --interactive")
		}
	}
	if p.run.Detach {
		return nil
	}
	if p.run.Interactive {
		p.run.Start = append(p.run.Start, "--interactive=true")
	}
	for _, f := range []string{p.detachKeys, p.sigProxy} {
		if f != "" {
			p.run.Start = append(p.run.Start, f)
		}
	}
	return nil
}

// managed says whether only terok-shield may give that flag. Annotations of
// others, dossier.* among them, may be passed: the hooks read none of them
// that could open anything.
func managed(name, value string) bool {
	switch name {
	case "name", "network", "hooks-dir", "cap-add", "cap-drop":
		return true
	case "annotation":
		return slices.ContainsFunc(pieces(value), func(s string) bool { return strings.HasPrefix(s, "terok.") })
	}
	return false
}

// refusal is why a flag cannot be given, "" if it can. Refused is what lets
// a workload out of its firewall, or keeps the firewall's resolver from it,
// or what create and start cannot do as run does.
//
// Not refused, although they share something with the host: --ipc, --uts and
// --cgroupns have no sockets in them, a device (/dev/net/tun too) is of no
// use without NET_ADMIN, published ports only let in. A volume can hold any
// socket of the host's; which one to give away is the operator's decision.
func refusal(name, value string, on bool) string {
	const (
		escape   = "would let the container change or leave its firewall"
		userns   = "would put the container into a user namespace other than the one its firewall is managed from"
		resolver = "would hide the resolver that terok-shield sets"
	)
	switch name {
	case "privileged":
		if on {
			return escape
		}
	case "pod", "pod-id-file":
		return "would put the container into the network namespace of a pod, whose firewall is not ours"
	case "pid":
		// A process that has no more capabilities than the container's can
		// be traced from it, and so be made to use the network it has.
		if value != "" && value != "private" {
			return "would let the container take over processes that have another network"
		}
	case "sysctl":
		if slices.ContainsFunc(pieces(value), func(s string) bool { return strings.HasPrefix(strings.ReplaceAll(s, "/", "."), "net.") }) {
			return "net.* would change how the container's network works beneath its firewall"
		}
	case "security-opt":
		if !harmlessSecurity(value) {
			return strconv.QuoteToGraphic(value) + " would weaken the confinement that keeps the firewall in place; allowed are no-new-privileges, label and mask"
		}
	case "seccomp-policy":
		if value != "default" {
			return "would let the image choose the system calls it may use"
		}
	case "runtime":
		if !Krun(value) {
			return "would run the container under a runtime that was not checked to run hooks"
		}
	case "userns", "uidmap", "gidmap", "subuidname", "subgidname":
		return userns
	case "volume":
		if slices.ContainsFunc(volumeTargets(value), hidesResolver) {
			return resolver
		}
	case "tmpfs":
		if target, _, _ := strings.Cut(value, ":"); hidesResolver(target) {
			return resolver
		}
	case "mount":
		if slices.ContainsFunc(optionTargets(value), hidesResolver) {
			return resolver
		}
	case "secret":
		for _, t := range optionTargets(value) {
			if !path.IsAbs(t) {
				t = path.Join("/run/secrets", t)
			}
			if hidesResolver(t) {
				return resolver
			}
		}
	case "annotation":
		// Podman and the runtimes act on annotations of their own.
		for _, prefix := range []string{"run.oci.", "krun.", "io.podman.", "org.systemd."} {
			if slices.ContainsFunc(pieces(value), func(s string) bool { return strings.HasPrefix(s, prefix) }) {
				return prefix + "* would change how the container is run"
			}
		}
	case "rmi":
		if on {
			return "is not supported: remove the image afterwards with podman rmi"
		}
	case "passwd":
		if !on {
			return "cannot be switched off: podman create has no such flag"
		}
	case "log-driver":
		if strings.HasPrefix(value, "passthrough") {
			return "passthrough is not supported: podman create prints no id with it"
		}
	case "preserve-fds", "preserve-fd":
		return "is not supported: podman start cannot pass file descriptors on"
	case "help":
		return "belongs to podman run: see podman run --help"
	}
	if strings.HasPrefix(name, "dns") {
		return "would name a resolver other than the firewall's"
	}
	return ""
}

// harmlessSecurity knows the security options that take nothing away.
func harmlessSecurity(value string) bool {
	key, arg, _ := strings.Cut(value, "=")
	if colon, colonArg, ok := strings.Cut(value, ":"); ok && len(colon) < len(key) {
		key, arg = colon, colonArg
	}
	switch key {
	case "no-new-privileges":
		_, err := strconv.ParseBool(arg)
		return arg == "" || err == nil
	case "label", "mask":
		return true
	}
	return false
}

// pieces are the values that a flag's value may stand for: itself, or what
// is between its commas. Podman's versions differ in that.
func pieces(value string) []string {
	out := []string{value}
	if fields, err := csv.NewReader(strings.NewReader(value)).Read(); err == nil {
		out = append(out, fields...)
	}
	for f := range strings.SplitSeq(value, ",") {
		out = append(out, strings.Trim(f, " \t\""))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// volumeTargets are the paths in the container that a --volume may mean: the
// second part, or the only one. Newer versions let \: stand for a colon.
func volumeTargets(value string) []string {
	second := func(parts []string) string { return parts[min(1, len(parts)-1)] }
	const colon = "\x00"
	return []string{
		second(strings.Split(value, ":")),
		strings.ReplaceAll(second(strings.Split(strings.ReplaceAll(value, `\:`, colon), ":")), colon, ":"),
	}
}

// optionTargets are the targets in a list of options like that of --mount.
func optionTargets(value string) []string {
	var out []string
	for _, f := range pieces(value) {
		key, target, _ := strings.Cut(f, "=")
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "dst", "destination", "target":
			out = append(out, target)
		}
	}
	return out
}

func hidesResolver(target string) bool {
	switch path.Clean(target) {
	case "/", "/etc", "/etc/resolv.conf":
		return true
	}
	return false
}

type flagKind int

const (
	unknown flagKind = iota
	boolean          // --flag, --flag=false
	valued           // --flag value, --flag=value
)

// kindOf knows the flags of podman run from 4.3 to 6.0, and those of podman
// itself that we have something to say about.
func kindOf(name string) flagKind {
	switch name {
	case "detach", "disable-content-trust", "env-host", "help", "http-proxy", "init", "interactive",
		"no-healthcheck", "no-hostname", "no-hosts", "oom-kill-disable", "passwd", "privileged", "publish-all",
		"quiet", "read-only", "read-only-tmpfs", "replace", "rm", "rmi", "rootfs", "sig-proxy", "tls-verify",
		"tty", "unsetenv-all":
		return boolean
	case "add-host", "annotation", "arch", "attach", "authfile", "blkio-weight", "blkio-weight-device",
		"cap-add", "cap-drop", "cert-dir", "cgroup-conf", "cgroup-parent", "cgroupns", "cgroups", "chrootdirs",
		"cidfile", "conmon-pidfile", "cpu-period", "cpu-quota", "cpu-rt-period", "cpu-rt-runtime", "cpu-shares",
		"cpus", "cpuset-cpus", "cpuset-mems", "creds", "decryption-key", "detach-keys", "device",
		"device-cgroup-rule", "device-read-bps", "device-read-iops", "device-write-bps", "device-write-iops",
		"dns", "dns-opt", "dns-option", "dns-search", "entrypoint", "env", "env-file", "env-merge", "expose",
		"gidmap", "gpus", "group-add", "group-entry", "health-cmd", "health-interval",
		"health-log-destination", "health-max-log-count", "health-max-log-size", "health-on-failure",
		"health-retries", "health-start-period", "health-startup-cmd", "health-startup-interval",
		"health-startup-retries", "health-startup-success", "health-startup-timeout", "health-timeout",
		"hostname", "hosts-file", "hostuser", "image-volume", "init-path", "ip", "ip6", "ipc", "kernel-memory",
		"label", "label-file", "log-driver", "log-opt", "mac-address", "memory", "memory-reservation",
		"memory-swap", "memory-swappiness", "mount", "name", "network", "network-alias", "oom-score-adj", "os",
		"passwd-entry", "personality", "pid", "pidfile", "pids-limit", "platform", "pod", "pod-id-file",
		"preserve-fd", "preserve-fds", "publish", "pull", "rdt-class", "requires", "restart", "retry",
		"retry-delay", "sdnotify", "seccomp-policy", "secret", "security-opt", "shm-size", "shm-size-systemd",
		"signature-policy", "stop-signal", "stop-timeout", "subgidname", "subuidname", "sysctl", "systemd",
		"timeout", "tmpfs", "tz", "uidmap", "ulimit", "umask", "unsetenv", "user", "userns", "uts", "variant",
		"volume", "volumes-from", "workdir",
		"hooks-dir", "runtime": // before the verb, but accepted after it
		return valued
	}
	return unknown
}

// canonical resolves the names that Podman accepts for older scripts.
func canonical(name string) string {
	switch name {
	case "net":
		return "network"
	case "purge":
		return "rm"
	case "override-arch", "override-os", "override-variant":
		return strings.TrimPrefix(name, "override-")
	case "healthcheck-command":
		return "health-cmd"
	case "healthcheck-interval", "healthcheck-retries", "healthcheck-start-period", "healthcheck-timeout":
		return strings.Replace(name, "healthcheck", "health", 1)
	}
	return name
}

// longOf is the long name of a one-letter flag.
func longOf(short byte) string {
	switch short {
	case 'a':
		return "attach"
	case 'c':
		return "cpu-shares"
	case 'd':
		return "detach"
	case 'e':
		return "env"
	case 'h':
		return "hostname"
	case 'i':
		return "interactive"
	case 'l':
		return "label"
	case 'm':
		return "memory"
	case 'p':
		return "publish"
	case 'P':
		return "publish-all"
	case 'q':
		return "quiet"
	case 't':
		return "tty"
	case 'u':
		return "user"
	case 'v':
		return "volume"
	case 'w':
		return "workdir"
	}
	return ""
}
