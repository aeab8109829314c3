package podman

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
)

// realPodman is the podman of this machine. Its command line is what the
// package is about: a test without it would prove nothing.
func realPodman(t *testing.T) string { return realClient(t).Path }

func realClient(t *testing.T) *Client {
	t.Helper()
	c, err := Find(cmdenv.OS())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func removeContainer(t *testing.T, c *Client, id string) {
	if _, err := c.Output(context.WithoutCancel(t.Context()), "rm", "--force", "--time=0", id); err != nil {
		t.Error(err)
	}
}

// answers is a podman with one answer.
func answers(out Output, err error) *Client {
	return &Client{Path: "/bin/podman", Run: func(context.Context, string, []string) (Output, error) { return out, err }}
}

func TestParseVersion(t *testing.T) {
	for in, want := range map[string]Version{
		"4.3.1": {4, 3, 1}, "5.6.0-rc1": {5, 6, 0}, "5.6-dev": {5, 6, 0}, "5": {5, 0, 0}, "5.rc.3": {5, 0, 0},
		"1.2.3.4": {1, 2, 3}, "": {}, "x.1": {}, "99999999999999999999.1": {}, "4.x": {4, 0, 0},
	} {
		if got := ParseVersion(in); got != want {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
	if got := (Version{}).String() + " " + (Version{5, 6, 0}).String(); got != "unknown 5.6.0" {
		t.Error(got)
	}
}

func TestOutputErrors(t *testing.T) {
	for _, tt := range []struct {
		out  Output
		err  error
		want string
		is   error
	}{
		{Output{Exit: 125, Stderr: []byte("Error: inspecting object: no such container demo\n")}, nil,
			"podman inspect demo: exit 125: no such container: inspecting object: no such container demo", ErrNotFound},
		{Output{Exit: 125, Stderr: []byte("Error: no such object: \"demo\"\n")}, nil,
			`podman inspect demo: exit 125: no such container: no such object: "demo"`, ErrNotFound},
		{Output{Exit: 125, Stderr: []byte("time=\"x\" level=warning msg=\"w\"\nError: broken\ntime=\"y\" level=info msg=z\n")}, nil, "podman inspect demo: exit 125: broken", nil},
		{Output{Exit: 126, Stderr: []byte("Error: a\x1b[31mb\n")}, nil, "podman inspect demo: exit 126: a?[31mb", nil},
		{Output{Exit: 1}, nil, "podman inspect demo: exit 1: no message", nil},
		{Output{}, context.Canceled, "podman inspect demo: context canceled", context.Canceled},
	} {
		_, err := answers(tt.out, tt.err).Inspect(t.Context(), "demo")
		if err == nil || err.Error() != tt.want || tt.is != nil && !errors.Is(err, tt.is) || tt.is == nil && errors.Is(err, ErrNotFound) {
			t.Errorf("%v\nwant %s", err, tt.want)
		}
	}
	long := Output{Exit: 1, Stderr: bytes.Repeat([]byte("é"), maxStderr)}
	if _, err := answers(long, nil).Info(t.Context()); err == nil || len(err.Error()) > 2*maxMessage {
		t.Errorf("%d bytes of error", len(err.Error()))
	}
}

func TestRunner(t *testing.T) {
	run := runner([]string{"A=b"})
	out, err := run(t.Context(), "/bin/sh", []string{"-c", "echo $A; echo oops >&2; exit 3"})
	if d := cmp.Diff(Output{Stdout: []byte("b\n"), Stderr: []byte("oops\n"), Exit: 3}, out); d != "" || err != nil {
		t.Error(d, err)
	}
	if _, err := run(t.Context(), "/bin/sh", []string{"-c", "head -c 9000000 /dev/zero; exit 0"}); err == nil || !strings.Contains(err.Error(), "8 MiB") {
		t.Errorf("endless output: %v", err)
	}
	if _, err := run(t.Context(), "/nonexistent/podman", nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing program: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := run(ctx, "/bin/sh", []string{"-c", "sleep 60"}); err == nil || time.Since(start) > 5*time.Second {
		t.Errorf("hanging program: %v after %v", err, time.Since(start))
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a/podman"), "not executable", 0o644)
	write(t, filepath.Join(dir, "b/podman"), "#!/bin/sh\n", 0o755)
	env := &cmdenv.Env{Vars: map[string]string{"PATH": "relative::" + dir + "/a:" + dir + "/b:/bin"}}
	c, err := Find(env)
	if err != nil || c.Path != filepath.Join(dir, "b/podman") {
		t.Fatalf("%+v, %v", c, err)
	}
	if p := LookPath(env, "no-such-program"); p != "" {
		t.Error(p)
	}
}

func TestParseInfo(t *testing.T) {
	host := func(s string) string { return `{"host":{` + s + `},"version":{"Version":"5.4.2"}}` }
	opts := cmp.Options{cmp.AllowUnexported(Info{}), cmpopts.IgnoreFields(Info{}, "Version")}
	for _, tt := range []struct {
		name, text string
		want       Info
	}{
		{"pasta reported", host(`"security":{"rootless":true},"rootlessNetworkCmd":"pasta","slirp4netns":{"executable":"/s"},"pasta":{"executable":"/p"}`),
			Info{Rootless: true, NetworkMode: Pasta, networkCmd: Pasta, slirpPath: "/s", pasta: "/p"}},
		{"slirp4netns reported", host(`"rootlessNetworkCmd":"slirp4netns"`), Info{NetworkMode: Slirp, networkCmd: Slirp}},
		{"podman 4, not reported", host(`"slirp4netns":{"executable":"/s"}`), Info{NetworkMode: Slirp, slirpPath: "/s"}},
		{"podman 4, no slirp4netns", host(`"slirp4netns":{"executable":""}`), Info{NetworkMode: Pasta}},
		{"another word", host(`"rootlessNetworkCmd":"x","slirp4netns":{"executable":"/s"}`), Info{NetworkMode: Slirp, networkCmd: "x", slirpPath: "/s"}},
		{"runtime, remote", host(`"ociRuntime":{"name":"crun","path":"/usr/bin/crun"},"serviceIsRemote":true`),
			Info{NetworkMode: Pasta, Runtime: "crun", RuntimePath: "/usr/bin/crun", Remote: true}},
		{"no subordinate ids", host(`"security":{"rootless":true},"idMappings":{"uidmap":[{"size":1}]}`), Info{Rootless: true, NetworkMode: Pasta, OneID: true}},
		{"subordinate ids", host(`"security":{"rootless":true},"idMappings":{"uidmap":[{"size":1},{"size":65536}]}`), Info{Rootless: true, NetworkMode: Pasta}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseInfo([]byte(tt.text))
			if err != nil || got.Version != (Version{5, 4, 2}) {
				t.Fatal(got.Version, err)
			}
			if d := cmp.Diff(tt.want, got, opts); d != "" {
				t.Error(d)
			}
		})
	}
	// The systems before took what they could not read for pasta.
	for _, text := range []string{"", "[]", "{}", `{"host":7}`, "pasta"} {
		if _, err := parseInfo([]byte(text)); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}

func TestParseInspect(t *testing.T) {
	text := func(id, mode, annotations string) string {
		return `[{"Id":"` + id + `","Name":"demo","State":{"Pid":42,"Status":"running","Running":true},"Config":{"Annotations":` + annotations + `},"HostConfig":{"NetworkMode":"` + mode + `"}}]`
	}
	for mode, shared := range map[string]bool{
		"slirp4netns": false, "pasta": false, "bridge": false, "none": false, "private": false,
		"host": true, "container:abc": true, "ns:/run/netns/x": true,
	} {
		want := Container{ID: "abc", Name: "demo", PID: 42, Status: "running", Running: true, NetworkMode: mode, SharedNetNS: shared, Annotations: map[string]string{"a": "b"}}
		got, err := parseInspect([]byte(text("abc", mode, `{"a":"b"}`)))
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Error(d, err)
		}
	}
	for _, bad := range []string{"", "[]", "[{}]", "{}", text("", "none", "null"), text("a", "none", `{"a":1}`)} {
		if _, err := parseInspect([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	// However many and large annotations are, memory stays bounded and ours is found.
	var many strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&many, `"k%d":"v",`, i)
	}
	got, err := parseInspect([]byte(text("a", "none", "{"+many.String()+`"big":"`+strings.Repeat("x", maxAnnotationValue+1)+`","terok.shield.state_dir":"/sd"}`)))
	if err != nil || len(got.Annotations) != maxAnnotations+1 || got.Annotations["big"] != "" || got.Annotations["terok.shield.state_dir"] != "/sd" {
		t.Errorf("%d annotations, %v", len(got.Annotations), err)
	}
}

func TestStateDir(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "sd/x"), "", 0o644)
	if err := os.Symlink("sd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		dir + "/sd": dir + "/sd", dir + "/link": dir + "/sd", dir + "/link/../sd/": dir + "/sd",
		"": "", "relative": "", dir + "/missing": "", "/" + strings.Repeat("x", maxPath): "", "/a\x00b": "",
	} {
		got, err := Container{Name: "demo", Annotations: map[string]string{annotationStateDir: in}}.StateDir()
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%.40q: %q, %v", in, got, err)
		}
	}
}

func TestRealPodman(t *testing.T) {
	c := realClient(t)
	info, err := c.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v, err := c.Version(t.Context())
	if err != nil || v != info.Version || v.Major < 4 {
		t.Errorf("client %v, info %v, %v", v, info.Version, err)
	}
	if info.Runtime == "" || !executable(info.RuntimePath) || info.Rootless != (os.Geteuid() != 0) {
		t.Errorf("%+v", info)
	}
	_, err = c.Inspect(t.Context(), "no-such-container-here")
	if !errors.Is(err, ErrNotFound) || !strings.HasPrefix(err.Error(), "podman inspect no-such-container-here: exit 125: ") {
		t.Errorf("%v", err)
	}
}

func FuzzParseInspect(f *testing.F) {
	f.Add([]byte(`[{"Id":"a","Config":{"Annotations":{"terok.shield.state_dir":"/x"}},"State":{"Pid":-1}}]`))
	f.Add([]byte(`[{"Id":"a"},{"Id":"b"}]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseInspect(text)
		if err != nil {
			return
		}
		if c.ID == "" || c.PID < 0 || len(c.Annotations) > maxAnnotations+1 {
			t.Fatalf("%+v", c)
		}
		if dir, err := c.StateDir(); err == nil && !filepath.IsAbs(dir) {
			t.Fatalf("state directory %q", dir)
		}
	})
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// Containers that are started under a firewall are told from others, however
// many there are, and doubt is an error.
func TestShielded(t *testing.T) {
	const others = 100
	var asked [][]string
	c := &Client{Path: "podman", Run: func(_ context.Context, _ string, args []string) (Output, error) {
		asked = append(asked, args)
		var out strings.Builder
		switch args[0] {
		case "ps":
			for i := range others + 2 {
				fmt.Fprintf(&out, "id%d\n", i)
			}
		case "inspect":
			var all []string
			for _, id := range args[slices.Index(args, "--")+1:] {
				dir := ""
				if id == "id3" || id == "id101" {
					dir = `"terok.shield.state_dir":"/sd"`
				}
				all = append(all, fmt.Sprintf(`{"Id":%q,"Name":"name-of-%s","Config":{"Annotations":{%s}}}`, id, id, dir))
			}
			out.WriteString("[" + strings.Join(all, ",") + "]")
		}
		return Output{Stdout: []byte(out.String())}, nil
	}}
	got, err := c.Shielded(t.Context())
	if d := cmp.Diff([]string{"name-of-id3", "name-of-id101"}, got); d != "" || err != nil {
		t.Errorf("%s%v", d, err)
	}
	if len(asked) != 3 {
		t.Errorf("asked %q", asked)
	}
	for name, out := range map[string]Output{
		"fails":    {Exit: 125, Stderr: []byte("Error: broken")},
		"nonsense": {Stdout: []byte("id\n")},
		"too many": {Stdout: []byte(strings.Repeat("id\n", maxContainers+1))},
	} {
		if names, err := answers(out, nil).Shielded(t.Context()); err == nil {
			t.Errorf("%s: %q", name, names)
		}
	}
	if names, err := answers(Output{}, nil).Shielded(t.Context()); err != nil || len(names) > 0 {
		t.Errorf("%q, %v", names, err)
	}
}

// Podman takes "b" for the container whose id begins so if there is none of
// that name: a decision about one container would meet another.
func TestInspectIsExact(t *testing.T) {
	const id = "b0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde"
	c := answers(Output{Stdout: []byte(`[{"Id":"` + id + `","Name":"demo","State":{"Pid":1,"Status":"running","Running":true},"HostConfig":{"NetworkMode":"pasta"}}]`)}, nil)
	for name, found := range map[string]bool{"demo": true, id: true, id[:12]: true, "b": false, id[:11]: false, "c0123456789a": false} {
		got, err := c.Inspect(t.Context(), name)
		if (err == nil) != found || !found && !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
