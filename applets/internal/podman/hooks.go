package podman

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/terok-ai/terok-box/wire/bundle"
)

// Role is a hook program of ours. Its value is the stem of its file names.
type Role string

// The two of them.
const (
	Firewall Role = "terok-shield"        // puts the ruleset in place
	Reader   Role = "terok-shield-bridge" // starts what asks people about blocked packets
)

const (
	programName = "terok-box"
	stateModule = "_oci_state.py"

	createRuntime = "createRuntime"
	poststop      = "poststop"

	maxDescriptor = 64 << 10 // bytes
)

// Entry is the name under which a role's program is run, which is also its
// argv[0].
func (r Role) Entry() string { return string(r) + "-hook" }

func (r Role) descriptorName(stage string) string { return string(r) + "-" + stage + ".json" }

// stages have a descriptor each: Podman passes the same arguments to every
// stage that a descriptor lists.
func stages() []string { return []string{createRuntime, poststop} }

// descriptor is an OCI hook configuration, see oci-hooks(5).
type descriptor struct {
	Version string `json:"version"`
	Hook    struct {
		Path string   `json:"path"`
		Args []string `json:"args"`
	} `json:"hook"`
	When struct {
		Annotations map[string]string `json:"annotations"`
	} `json:"when"`
	Stages []string `json:"stages"`
}

// descriptorText is the descriptor of a role's program in dir at a stage.
// The hook runs for containers that have an annotation with profiles.
func descriptorText(dir string, r Role, stage string) ([]byte, error) {
	var d descriptor
	d.Version = "1.0.0"
	d.Hook.Path = filepath.Join(dir, r.Entry())
	d.Hook.Args = []string{r.Entry(), stage}
	d.When.Annotations = map[string]string{"terok.shield.profiles": ".*"}
	d.Stages = []string{stage}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(d)
	return b.Bytes(), err
}

// stateModuleText is the file in which the Python installer looks for the
// version of installed hooks. It has nothing else to offer.
func stateModuleText() []byte {
	return fmt.Appendf(nil, "# Installed by terok-box. Its hooks are native programs; other installers read\n# the version below.\nBUNDLE_VERSION = %d\n", bundle.Version)
}

// moduleVersion is the bundle version of the hooks beside which that file
// is, 0 if unknown.
func moduleVersion(text []byte) int {
	m := regexp.MustCompile(`(?m)^BUNDLE_VERSION\s*=\s*(\d+)`).FindSubmatch(text)
	if m == nil {
		return 0
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		return 0
	}
	return n
}

// hooksDir is where our hooks belong: shield/hooks below TEROK_ROOT, or
// paths.root of the ecosystem's configuration, or /var/lib/terok for real
// root, or the user's data directory.
func hooksDir(s system) (string, error) {
	root, err := terokRoot(s)
	if err != nil {
		return "", fmt.Errorf("where hooks belong: %w", err)
	}
	return filepath.Join(root, "shield", "hooks"), nil
}

func terokRoot(s system) (string, error) {
	from, root := "TEROK_ROOT", s.env.Get("TEROK_ROOT")
	if root == "" {
		var err error
		if root, from, err = configuredRoot(s); err != nil {
			return "", err
		}
	}
	if rest, ok := strings.CutPrefix(root, "~/"); ok {
		home, err := s.env.Home()
		if err != nil {
			return "", err
		}
		root = filepath.Join(home, rest)
	}
	switch {
	case root != "" && !filepath.IsAbs(root):
		return "", fmt.Errorf("%s is %q, not an absolute path", from, root)
	case root != "":
		return filepath.Clean(root), nil
	case s.real:
		return s.path("var/lib/terok"), nil
	}
	data, err := s.env.XDG("DATA", ".local/share")
	if err != nil {
		return "", err
	}
	return filepath.Join(data, "terok"), nil
}

// configuredRoot is paths.root of the ecosystem's configuration, and the file
// that has it. TEROK_CONFIG_FILE replaces the other files; the user's
// overlays the administrator's, and does not exist for real root.
func configuredRoot(s system) (root, from string, err error) {
	files := []string{s.path("etc/terok/config.yml")}
	if f := s.env.Get("TEROK_CONFIG_FILE"); f != "" {
		files = []string{f}
	} else if home, err := s.env.Home(); err == nil && !s.real {
		files = append(files, filepath.Join(home, ".config/terok/config.yml"))
	}
	for _, f := range files {
		text, err := readFile(f, maxConf)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", "", err
		}
		var conf struct {
			Paths struct {
				Root string `yaml:"root"`
			} `yaml:"paths"`
		}
		if err := yaml.Unmarshal(text, &conf); err != nil {
			return "", "", fmt.Errorf("%s: %w", f, err)
		}
		if conf.Paths.Root != "" {
			root, from = conf.Paths.Root, "paths.root of "+f
		}
	}
	return root, from, nil
}
