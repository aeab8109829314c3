package podman

import (
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseRun(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		want Run
	}{
		{"image only", []string{"img"}, Run{Image: "img", Command: []string{}}},
		{"command keeps its flags, whatever they are called (R1 scanned the whole line)",
			[]string{"img", "sh", "--name", "x", "--privileged", "--network=host", "--", "-it"},
			Run{Image: "img", Command: []string{"sh", "--name", "x", "--privileged", "--network=host", "--", "-it"}}},
		{"cluster", []string{"-dit", "img"},
			Run{Create: []string{"--interactive=true", "--tty=true"}, Image: "img", Command: []string{}, Detach: true, Interactive: true, TTY: true}},
		{"cluster with value", []string{"-itv", "/a:/b", "img"},
			Run{Create: []string{"--interactive=true", "--tty=true", "--volume=/a:/b"}, Start: []string{"--interactive=true"}, Image: "img", Command: []string{}, Interactive: true, TTY: true}},
		{"value in cluster", []string{"-eA=b", "-e=C=d", "-p8080:80", "-P", "img", "true"},
			Run{Create: []string{"--env=A=b", "--env=C=d", "--publish=8080:80", "--publish-all=true"}, Image: "img", Command: []string{"true"}}},
		{"boolean with =", []string{"-i=false", "--rm=1", "--tty=F", "--privileged=false", "img"},
			Run{Create: []string{"--interactive=false", "--rm=true", "--tty=false", "--privileged=false"}, Image: "img", Command: []string{}, Rm: true}},
		{"values that look like flags", []string{"--env", "--name", "-l", "--", "-w", "-d", "img"},
			Run{Create: []string{"--env=--name", "--label=--", "--workdir=-d"}, Image: "img", Command: []string{}}},
		{"other letters", []string{"-u", "1000", "-h", "box", "-m", "1g", "-c", "512", "-q", "img"},
			Run{Create: []string{"--user=1000", "--hostname=box", "--memory=1g", "--cpu-shares=512", "--quiet=true"}, Image: "img", Command: []string{}}},
		{"end of flags", []string{"--rm", "--", "img", "-x"},
			Run{Create: []string{"--rm=true"}, Image: "img", Command: []string{"-x"}, Rm: true}},
		{"rootfs", []string{"--rootfs", "/srv/root", "sh"},
			Run{Create: []string{"--rootfs=true"}, Image: "/srv/root", Command: []string{"sh"}}},
		{"start flags", []string{"-i", "--detach-keys", "ctrl-x", "--sig-proxy=false", "-a", "stdin", "-a", "STDOUT,stderr", "img"},
			Run{Create: []string{"--interactive=true"}, Start: []string{"--interactive=true", "--detach-keys=ctrl-x", "--sig-proxy=false"}, Image: "img", Command: []string{}, Interactive: true}},
		{"nothing to attach when detached", []string{"-d", "-i", "--detach-keys=ctrl-x", "--sig-proxy", "img"},
			Run{Create: []string{"--interactive=true"}, Image: "img", Command: []string{}, Detach: true, Interactive: true}},
		{"replace is the caller's", []string{"--replace", "--passwd", "--rmi=false", "img"}, Run{Image: "img", Command: []string{}, Replace: true}},
		{"a runtime that makes a virtual machine", []string{"--runtime", "/usr/bin/krun", "img"},
			Run{Create: []string{"--runtime=/usr/bin/krun"}, Image: "img", Command: []string{}, Runtime: "/usr/bin/krun"}},
		{"older names", []string{"--override-arch=arm64", "--purge", "--healthcheck-command", "true", "--healthcheck-retries=3", "img"},
			Run{Create: []string{"--arch=arm64", "--rm=true", "--health-cmd=true", "--health-retries=3"}, Image: "img", Command: []string{}, Rm: true}},
		{"harmless neighbours of refused ones", []string{
			"--annotation", "dossier.project=p1", "--security-opt=no-new-privileges", "--security-opt", "no-new-privileges:true",
			"--security-opt", "label=type:t", "--security-opt=mask=/proc/x", "--sysctl", "kernel.msgmax=1", "--pid=private",
			"-v", "/etc:/host-etc:ro", "-v", "/etc/resolv.conf:/r", "--mount", "type=bind,src=/etc,dst=/e", "--tmpfs", "/etc/x:rw",
			"--secret=s,target=resolv.conf", "--add-host", "a:10.0.0.1", "--ipc=host", "--device=/dev/net/tun", "--seccomp-policy=default", "img"},
			Run{Create: []string{
				"--annotation=dossier.project=p1", "--security-opt=no-new-privileges", "--security-opt=no-new-privileges:true",
				"--security-opt=label=type:t", "--security-opt=mask=/proc/x", "--sysctl=kernel.msgmax=1", "--pid=private",
				"--volume=/etc:/host-etc:ro", "--volume=/etc/resolv.conf:/r", "--mount=type=bind,src=/etc,dst=/e", "--tmpfs=/etc/x:rw",
				"--secret=s,target=resolv.conf", "--add-host=a:10.0.0.1", "--ipc=host", "--device=/dev/net/tun", "--seccomp-policy=default"},
				Image: "img", Command: []string{}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseRun(tt.args)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestParseRunRefuses(t *testing.T) {
	const (
		managedText = "Flag(s) managed by terok-shield, cannot override: "
		noImage     = "No image specified. Usage: terok-shield run <container> -- <image> [cmd...]"
	)
	for _, tt := range []struct {
		args string // separated by blanks; the image is added
		want string // part of the error
	}{
		{"--name x", managedText + "--name"},
		{"--network=host --cap-add=NET_ADMIN --net none --cap-drop ALL --cap-add=X", managedText + "--cap-add, --cap-drop, --net, --network"},
		{"--hooks-dir=/x", managedText + "--hooks-dir"},
		{"--annotation terok.shield.state_dir=/x", managedText + "--annotation"},
		{"--annotation terok.sandbox.sidecar=x", managedText + "--annotation"},
		// Podman up to 4.9 splits the value at commas.
		{"--annotation=a=b,terok.shield.version=13", managedText + "--annotation"},
		{`--annotation=a=b,"terok.shield.version=13"`, managedText + "--annotation"},
		{"--annotation run.oci.handler=krun", "run.oci.* would change"},
		{"--annotation io.podman.annotations.autoremove=TRUE", "io.podman.*"},
		// The bypasses that R1 let through.
		{"--privileged", "--privileged would let the container"},
		{"--privileged=true --privileged=false", "--privileged would let"},
		{"--pod p", "--pod would put"},
		{"--pod=new:p", "--pod would put"},
		{"--pod-id-file /x", "--pod-id-file would put"},
		{"--dns 1.1.1.1", "--dns would name"},
		{"--dns-search=x", "--dns-search would name"},
		{"--dns-option=x", "--dns-option would name"},
		{"--dns-opt=x", "--dns-opt would name"},
		{"--sysctl net.ipv6.conf.all.disable_ipv6=0", "--sysctl net.*"},
		{"--sysctl kernel.x=1,net.ipv4.ip_forward=1", "--sysctl net.*"},
		{"--sysctl net/ipv4/ip_forward=1", "--sysctl net.*"},
		{"--security-opt seccomp=unconfined", "seccomp=unconfined"},
		{"--security-opt=unmask=ALL", "unmask=ALL"},
		{"--security-opt=apparmor=unconfined", "apparmor"},
		{"--security-opt=systempaths=unconfined", "systempaths"},
		{"--security-opt=no-new-privileges:x", "no-new-privileges"},
		{"--seccomp-policy=image", "--seccomp-policy"},
		{"--runtime=/tmp/x", "--runtime would run"},
		{"--runtime=/tmp/krun/x", "--runtime would run"},
		{"--userns=keep-id", "--userns would put"},
		{"--uidmap=0:1:1", "--uidmap would put"},
		{"--gidmap=0:1:1", "--gidmap would put"},
		{"--subuidname=x", "--subuidname would put"},
		{"--subgidname=x", "--subgidname would put"},
		{"--pid=host", "--pid would let"},
		{"--pid container:x", "--pid would let"},
		{"--pid=ns:/proc/1/ns/pid", "--pid would let"},
		{"-v /x:/etc/resolv.conf", "-v would hide the resolver"},
		{"-v=/x:/etc/../etc//resolv.conf:ro", "-v would hide"},
		{"-itv/x:/etc", "-v would hide"},
		{"--volume /etc/", "--volume would hide"},
		{`--volume a\:b:/etc`, "--volume would hide"},
		{`--volume a\:/etc`, "--volume would hide"},
		{"--mount type=bind,src=/x,dst=/etc/resolv.conf", "--mount would hide"},
		{`--mount type=bind,src=/x,"target=/etc"`, "--mount would hide"},
		{"--mount type=tmpfs,Destination=/etc", "--mount would hide"},
		{"--tmpfs /etc:rw", "--tmpfs would hide"},
		{"--secret s,target=/etc/resolv.conf", "--secret would hide"},
		{"--secret s,target=../../etc/resolv.conf", "--secret would hide"},
		{"--rmi", "--rmi is not supported"},
		{"--passwd=false", "--passwd cannot"},
		{"--preserve-fds=1", "--preserve-fds is not supported"},
		{"--preserve-fd 3", "--preserve-fd is not supported"},
		{"--log-driver=passthrough-tty", "--log-driver passthrough"},
		{"--help", "podman run --help"},
		{"--attach stdout", "--attach"},
		{"-a stdin -a stdout -a stderr", "--interactive"},
		{"-d -a stdout,stderr", "contradict"},
		// What we do not know we cannot judge.
		{"--gateway host", "does not know the flag --gateway"},
		{"--gateway=host", "does not know the flag --gateway"},
		{"--init-ctr=always", "does not know"},
		{"--module=x", "does not know"},
		{"--network-cmd-path=x", "does not know"},
		{"--=x", "does not know"},
		{"---name=x", "does not know"},
		{"-x", "no flag -"},
		{"-i=", "no flag -"},
		{"-dz", "no flag -"},
		{"--rm=maybe", "neither true nor false"},
		{"--interactive=", "neither true nor false"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			got, err := ParseRun(append(strings.Fields(tt.args), "img", "cmd"))
			if err == nil {
				t.Fatalf("taken: %+v", got)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%q lacks %q", err, tt.want)
			}
			if d := cmp.Diff(Run{}, got); d != "" && !strings.HasPrefix(tt.args, "-a") && !strings.HasPrefix(tt.args, "--attach") && !strings.HasPrefix(tt.args, "-d -a") {
				t.Error(d)
			}
		})
	}
	for _, args := range [][]string{nil, {"--rm"}, {"--"}, {"-it", "--"}, {""}, {"--rm", ""}} {
		if _, err := ParseRun(args); err == nil || err.Error() != noImage {
			t.Errorf("%q: %v", args, err)
		}
	}
	for _, args := range [][]string{{"-"}, {"--", "-x"}, {"--env"}, {"-e"}, {"-te"}} {
		if got, err := ParseRun(args); err == nil {
			t.Errorf("%q: taken as %+v", args, got)
		}
	}
}

// helpFlag is a line of podman's help: "  -e, --env stringArray   Set …". A flag
// without a value has blanks after its name.
var helpFlag = regexp.MustCompile(`(?m)^ +(?:-(\w), )?--([\w-]+)( \S|  |$)`)

func TestFlagTableAgainstPodman(t *testing.T) {
	for _, verb := range []string{"run", "create"} {
		out, err := exec.CommandContext(t.Context(), realPodman(t), verb, "--help").Output()
		if err != nil {
			t.Fatal(err)
		}
		found := helpFlag.FindAllStringSubmatch(string(out), -1)
		if len(found) < 100 {
			t.Fatalf("podman %s --help: only %d flags recognised", verb, len(found))
		}
		for _, m := range found {
			letter, name, after := m[1], m[2], m[3]
			want := boolean
			if strings.TrimSpace(after) != "" {
				want = valued
			}
			if verb == "create" && name == "init-ctr" {
				want = unknown // of no use without a pod
			}
			if got := kindOf(name); got != want {
				t.Errorf("podman %s --%s: kind %d, want %d", verb, name, got, want)
			}
			if letter != "" && longOf(letter[0]) != name {
				t.Errorf("podman %s: -%s is --%s, not --%s", verb, letter, name, longOf(letter[0]))
			}
		}
	}
}

// TestCreateTakesTheFlags hands every kind of flag to the real podman in the
// form we give it.
func TestCreateTakesTheFlags(t *testing.T) {
	run, err := ParseRun([]string{
		"-it", "--rm", "-e", "A=b c", "-eD", "-l", "k=v", "-w/", "-m", "64m", "-u0", "-h", "box", "-v", "/tmp:/t:ro", "--purge=false",
		"--annotation", "dossier.project=p1", "--security-opt", "no-new-privileges", "--add-host=a:10.0.0.1", "--privileged=false",
		"--rootfs", t.TempDir(), "true", "--name", "x"})
	if err != nil {
		t.Fatal(err)
	}
	args := append([]string{"create", "--network=none"}, run.Create...)
	args = append(append(args, run.Image), run.Command...)
	c := realClient(t)
	out, err := c.Output(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSpace(string(out))
	defer removeContainer(t, c, id)
	got, err := c.Inspect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != id || got.Status != "created" || got.Running || got.PID != 0 || got.SharedNetNS ||
		got.NetworkMode != "none" || got.Annotations["dossier.project"] != "p1" {
		t.Errorf("%+v", got)
	}
	if _, err := got.StateDir(); err == nil {
		t.Error("a state directory out of nowhere")
	}
}

func FuzzParseRun(f *testing.F) {
	for _, s := range []string{
		"img", "-it img sh", "--name x img", "-itv /a:/etc img", "--annotation=a,terok.shield.x=1 img", "-e --privileged img",
		"--env=--network=host img --cap-add=ALL", "-a stdout -a stderr img", "--net host -- img", "--tmpfs /etc img", "-i=false -e= -p=1 img",
	} {
		f.Add(strings.ReplaceAll(s, " ", "\n"))
	}
	f.Fuzz(func(t *testing.T, s string) {
		args := strings.Split(s, "\n")
		run, err := ParseRun(args)
		if err != nil {
			return
		}
		// Whatever was given, podman gets one argument for each flag, of a
		// flag we let pass, in a form with a single reading.
		for _, a := range slices.Concat(run.Create, run.Start) {
			rest, ok := strings.CutPrefix(a, "--")
			name, value, has := strings.Cut(rest, "=")
			if !ok || !has || kindOf(name) == unknown || canonical(name) != name {
				t.Fatalf("%q handed on", a)
			}
			for _, bad := range []string{"name", "network", "net", "hooks-dir", "cap-add", "cap-drop", "pod", "pod-id-file", "runtime", "userns", "dns", "dns-opt", "dns-search", "dns-option"} {
				if name == bad {
					t.Fatalf("%q handed on", a)
				}
			}
			if name == "annotation" && slices.ContainsFunc(strings.Split(value, ","), func(s string) bool { return strings.HasPrefix(s, "terok.") }) ||
				name == "privileged" && value != "false" {
				t.Fatalf("%q handed on", a)
			}
		}
		if run.Image == "" || strings.HasPrefix(run.Image, "-") {
			t.Fatalf("image %q", run.Image)
		}
		// The operands are the tail of what was given.
		if tail := append([]string{run.Image}, run.Command...); len(tail) > len(args) || !slices.Equal(tail, args[len(args)-len(tail):]) {
			t.Fatalf("operands %q of %q", tail, args)
		}
		// Reading our own form again changes nothing.
		again, err := ParseRun(slices.Concat(run.Create, []string{run.Image}, run.Command))
		if err != nil || !slices.Equal(again.Create, run.Create) || again.Image != run.Image {
			t.Fatalf("read again: %+v, %v", again, err)
		}
	})
}
