// Package podman is what we know of Podman: its command line as a client,
// its configuration files, the hooks we have it run, and which flags of a
// `podman run` would lead a container around its firewall.
//
// It never enters a namespace, touches nftables or decides policy, and it
// must never import nl or another package of applets but cmdenv.
package podman

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
)

const (
	timeout    = 10 * time.Second // for one podman command
	maxOutput  = 8 << 20          // bytes of stdout; an inspect of a real container is 10 to 50 KiB
	maxStderr  = 64 << 10         // bytes kept of stderr
	maxMessage = 512              // bytes of stderr in an error

	maxAnnotations     = 1024 // of one container
	maxAnnotationKey   = 256  // bytes
	maxAnnotationValue = 64 << 10

	fallbackPath = "/usr/bin/podman"
)

// ErrNotFound says that Podman knows no container of that name or id.
var ErrNotFound = errors.New("no such container")

// Output is what a finished process left behind.
type Output struct {
	Stdout, Stderr []byte
	Exit           int // exit code
}

// Runner runs one command to its end. An error means that it could not run
// or did not end by itself; a non-zero exit code is not an error.
type Runner func(ctx context.Context, path string, args []string) (Output, error)

// Client runs one podman program.
type Client struct {
	Path string // absolute
	Run  Runner
}

// Find is the podman in the user's PATH, or the usual one.
func Find(env *cmdenv.Env) (*Client, error) {
	path := LookPath(env, "podman")
	if path == "" && executable(fallbackPath) {
		path = fallbackPath
	}
	if path == "" {
		return nil, fmt.Errorf("podman is neither in PATH nor %s: install podman", fallbackPath)
	}
	return &Client{Path: path, Run: runner(env.Environ())}, nil
}

// LookPath is the first executable of that name in the absolute directories
// of PATH, "" if there is none.
func LookPath(env *cmdenv.Env, name string) string {
	for _, dir := range filepath.SplitList(env.Get("PATH")) {
		if p := filepath.Join(dir, name); filepath.IsAbs(dir) && executable(p) {
			return p
		}
	}
	return ""
}

func executable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// runner runs real processes with that environment and nothing on stdin.
func runner(environ []string) Runner {
	return func(ctx context.Context, path string, args []string) (Output, error) {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		var stdout, stderr limited
		stdout.max, stderr.max = maxOutput, maxStderr
		cmd := exec.CommandContext(ctx, path, args...)
		cmd.Env = environ
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		cmd.WaitDelay = time.Second // something it started may hold the pipes open
		err := cmd.Run()
		out := Output{Stdout: stdout.buf.Bytes(), Stderr: stderr.buf.Bytes()}
		switch exit, ok := errors.AsType[*exec.ExitError](err); {
		case errors.Is(context.Cause(ctx), context.DeadlineExceeded):
			return out, fmt.Errorf("no answer within %v", timeout)
		case ctx.Err() != nil:
			return out, ctx.Err()
		case ok && exit.Exited():
			out.Exit = exit.ExitCode()
		case err != nil && !errors.Is(err, exec.ErrWaitDelay):
			return out, err
		}
		if stdout.dropped {
			return out, fmt.Errorf("more than %d MiB of output", maxOutput>>20)
		}
		return out, nil
	}
}

// limited keeps the first max bytes written to it and swallows the rest, so
// that the writer never blocks or fails.
type limited struct {
	buf     bytes.Buffer
	max     int
	dropped bool
}

func (l *limited) Write(p []byte) (int, error) {
	keep := p[:min(len(p), l.max-l.buf.Len())]
	l.buf.Write(keep)
	l.dropped = l.dropped || len(keep) < len(p)
	return len(p), nil
}

// Output is the stdout of one podman command. The error names the command
// up to its first operand and has Podman's own reason in one line.
func (c *Client) Output(ctx context.Context, args ...string) ([]byte, error) {
	out, err := c.Run(ctx, c.Path, args)
	if err == nil && out.Exit != 0 {
		reason := lastLine(out.Stderr)
		err = fmt.Errorf("exit %d: %s", out.Exit, reason)
		if out.Exit == 125 && noSuchContainer(reason) {
			err = fmt.Errorf("exit %d: %w: %s", out.Exit, ErrNotFound, reason)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", title(args), err)
	}
	return out.Stdout, nil
}

// title is a command without its flags: "podman inspect demo".
func title(args []string) string {
	words := []string{"podman"}
	for i, a := range args {
		if !strings.HasPrefix(a, "-") && (i == 0 || !strings.HasPrefix(args[i-1], "--") || args[i-1] == "--" || strings.Contains(args[i-1], "=")) {
			words = append(words, a)
		}
	}
	return cmdenv.Printable(strings.Join(words, " "))
}

// noSuchContainer knows the two texts of podman 4 and 5.
func noSuchContainer(reason string) bool {
	return strings.Contains(reason, "no such container") || strings.Contains(reason, "no such object")
}

// lastLine is the last line of a stderr that is not a log line of a lower
// level, without podman's "Error: ", made printable.
func lastLine(stderr []byte) string {
	line := ""
	for l := range strings.Lines(string(stderr)) {
		l = strings.TrimSpace(l)
		if l == "" || strings.HasPrefix(l, "time=") && line != "" {
			continue
		}
		line = l
	}
	line = cmdenv.Printable(strings.TrimPrefix(line, "Error: "))
	if len(line) > maxMessage {
		line = strings.ToValidUTF8(line[:maxMessage], "") + "…"
	}
	if line == "" {
		return "no message"
	}
	return line
}

// Version is the client's version.
func (c *Client) Version(ctx context.Context) (Version, error) {
	out, err := c.Output(ctx, "version", "--format={{.Client.Version}}")
	if err != nil {
		return Version{}, err
	}
	return ParseVersion(strings.TrimSpace(string(out))), nil
}

// Version is a Podman version. The zero value is one we could not read.
type Version struct{ Major, Minor, Patch int }

// ParseVersion takes the leading digits of each dotted part and stops at the
// first part without: "5.6.0-rc1" is 5.6.0.
func ParseVersion(s string) Version {
	var v Version
	for i, part := range strings.SplitN(s, ".", 4) {
		digits := len(part) - len(strings.TrimLeft(part, "0123456789"))
		n, err := strconv.ParseUint(part[:digits], 10, 31)
		if err != nil || i == 3 {
			break
		}
		*[]*int{&v.Major, &v.Minor, &v.Patch}[i] = int(n)
	}
	return v
}

func (v Version) String() string {
	if v == (Version{}) {
		return "unknown"
	}
	return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
}

// Info is what `podman info` says about a host.
type Info struct {
	Version     Version
	Rootless    bool
	NetworkMode string // how a rootless container gets its network: pasta or slirp4netns
	Runtime     string // name of the OCI runtime
	RuntimePath string
	Remote      bool // podman talks to a service elsewhere

	// OneID says that a rootless user has no subordinate user ids.
	OneID bool

	networkCmd       string // as reported; "" where podman does not report it
	pasta, slirpPath string // executables; "" if missing
}

// Network modes.
const (
	Pasta  = "pasta"
	Slirp  = "slirp4netns"
	Bridge = "bridge"
)

// Info asks Podman about the host.
func (c *Client) Info(ctx context.Context) (Info, error) {
	out, err := c.Output(ctx, "info", "--format=json")
	if err != nil {
		return Info{}, err
	}
	info, err := parseInfo(out)
	if err != nil {
		return Info{}, fmt.Errorf("podman info: %w", err)
	}
	return info, nil
}

func parseInfo(text []byte) (Info, error) {
	var raw struct {
		Host *struct {
			IDMappings struct {
				UIDMap []struct {
					Size int64 `json:"size"`
				} `json:"uidmap"`
			} `json:"idMappings"`
			OCIRuntime struct {
				Name string `json:"name"`
				Path string `json:"path"`
			} `json:"ociRuntime"`
			Security struct {
				Rootless bool `json:"rootless"`
			} `json:"security"`
			ServiceIsRemote    bool   `json:"serviceIsRemote"`
			RootlessNetworkCmd string `json:"rootlessNetworkCmd"`
			Slirp4netns        struct {
				Executable string `json:"executable"`
			} `json:"slirp4netns"`
			Pasta struct {
				Executable string `json:"executable"`
			} `json:"pasta"`
		} `json:"host"`
		Version struct {
			Version string `json:"Version"`
		} `json:"version"`
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		return Info{}, fmt.Errorf("its JSON cannot be read: %w", err)
	}
	if raw.Host == nil {
		return Info{}, errors.New("its JSON has no host part")
	}
	h := raw.Host
	ids := int64(0)
	for _, m := range h.IDMappings.UIDMap {
		if m.Size > 1 {
			ids = m.Size
		}
	}
	info := Info{
		Version:  ParseVersion(raw.Version.Version),
		Rootless: h.Security.Rootless,
		Runtime:  h.OCIRuntime.Name, RuntimePath: h.OCIRuntime.Path,
		Remote:     h.ServiceIsRemote,
		OneID:      h.Security.Rootless && len(h.IDMappings.UIDMap) > 0 && ids == 0,
		networkCmd: h.RootlessNetworkCmd,
		pasta:      h.Pasta.Executable, slirpPath: h.Slirp4netns.Executable,
	}
	switch {
	case info.networkCmd == Pasta || info.networkCmd == Slirp:
		info.NetworkMode = info.networkCmd
	case info.slirpPath != "":
		info.NetworkMode = Slirp // podman 4 does not report its choice
	default:
		info.NetworkMode = Pasta
	}
	return info, nil
}

// Container is what `podman inspect` says about a container.
type Container struct {
	ID          string
	Name        string
	PID         int    // in the host's pid namespace; 0 if not running
	Status      string // created, initialized, running, paused, exited, …
	Running     bool
	NetworkMode string
	// SharedNetNS says that the container's network namespace is not its
	// own: the host's, another container's, or one given by a path.
	SharedNetNS bool
	// Annotations without those that are too large to mean anything to us.
	Annotations map[string]string
}

// shortID is how much of an id names a container to us. Podman takes any
// beginning of one: "b" would be some container whose id begins so, as long as
// there is none of that name.
const shortID = 12

// Inspect asks Podman about one container, by name or by at least 12 digits of
// its id. The error is ErrNotFound if there is none.
func (c *Client) Inspect(ctx context.Context, name string) (Container, error) {
	out, err := c.Output(ctx, "inspect", "--type=container", "--format=json", "--", name)
	if err != nil {
		return Container{}, err
	}
	got, err := parseInspect(out)
	if err != nil {
		return Container{}, fmt.Errorf("%s: %w", title([]string{"inspect", name}), err)
	}
	if got.Name != name && (len(name) < shortID || !strings.HasPrefix(got.ID, name)) {
		return Container{}, fmt.Errorf("%s: it is the beginning of the id of %s: %w", name, got.Name, ErrNotFound)
	}
	return got, nil
}

// maxContainers bounds the containers that Shielded looks at.
const maxContainers = 4096

// Shielded are the names of the containers that are started under a firewall,
// whether they run or not.
func (c *Client) Shielded(ctx context.Context) (names []string, err error) {
	out, err := c.Output(ctx, "ps", "--all", "--no-trunc", "--format={{.ID}}")
	if err != nil {
		return nil, err
	}
	ids := strings.Fields(string(out))
	if len(ids) > maxContainers {
		return nil, fmt.Errorf("podman ps: %d containers; up to %d can be looked at", len(ids), maxContainers)
	}
	const atOnce = 64 // arguments of a command
	for some := range slices.Chunk(ids, atOnce) {
		out, err := c.Output(ctx, append([]string{"inspect", "--type=container", "--format=json", "--"}, some...)...)
		if err != nil {
			return nil, err
		}
		got, err := parseContainers(out)
		if err != nil {
			return nil, fmt.Errorf("podman inspect: %w", err)
		}
		for _, container := range got {
			if container.Annotations[annotationStateDir] != "" {
				names = append(names, container.Name)
			}
		}
	}
	return names, nil
}

func parseInspect(text []byte) (Container, error) {
	all, err := parseContainers(text)
	if err == nil && len(all) != 1 {
		err = fmt.Errorf("its JSON describes %d containers, not one", len(all))
	}
	if err != nil {
		return Container{}, err
	}
	return all[0], nil
}

func parseContainers(text []byte) ([]Container, error) {
	var raw []struct {
		ID    string `json:"Id"`
		Name  string
		State struct {
			Pid     int
			Status  string
			Running bool
		}
		Config     struct{ Annotations map[string]string }
		HostConfig struct{ NetworkMode string }
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		return nil, fmt.Errorf("its JSON cannot be read: %w", err)
	}
	all := make([]Container, 0, len(raw))
	for _, r := range raw {
		if r.ID == "" {
			return nil, errors.New("its JSON describes a container without an id")
		}
		mode, _, _ := strings.Cut(r.HostConfig.NetworkMode, ":")
		c := Container{
			ID: r.ID, Name: r.Name, PID: max(r.State.Pid, 0), Status: r.State.Status, Running: r.State.Running,
			NetworkMode: r.HostConfig.NetworkMode,
			SharedNetNS: mode == "container" || mode == "ns" || mode == "host",
			Annotations: make(map[string]string),
		}
		for _, k := range slices.Sorted(maps.Keys(r.Config.Annotations)) {
			v := r.Config.Annotations[k]
			if len(k) <= maxAnnotationKey && len(v) <= maxAnnotationValue && len(c.Annotations) < maxAnnotations {
				c.Annotations[k] = v
			}
		}
		// The one we look for must not fall victim to the bound.
		if dir := r.Config.Annotations[annotationStateDir]; dir != "" && len(dir) <= maxPath {
			c.Annotations[annotationStateDir] = dir
		}
		all = append(all, c)
	}
	return all, nil
}

const (
	annotationStateDir = "terok.shield.state_dir"
	maxPath            = 4096 // PATH_MAX
)

// StateDir is the container's state directory as its annotation has it, with
// symbolic links resolved.
func (c Container) StateDir() (string, error) {
	dir := c.Annotations[annotationStateDir]
	switch {
	case dir == "":
		return "", fmt.Errorf("container %s has no annotation %s", cmdenv.Printable(c.Name), annotationStateDir)
	case !filepath.IsAbs(dir) || len(dir) > maxPath || strings.ContainsRune(dir, 0):
		return "", fmt.Errorf("annotation %s of container %s is not an absolute path", annotationStateDir, cmdenv.Printable(c.Name))
	}
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", fmt.Errorf("state directory of container %s: %w", cmdenv.Printable(c.Name), err)
	}
	return resolved, nil
}

// readFile reads a regular file of at most max bytes.
func readFile(path string, max int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|nonblock, 0) // a pipe in its place must not stop us
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(text)) > max {
		err = fmt.Errorf("%s is larger than %d bytes", path, max)
	}
	return text, err
}
