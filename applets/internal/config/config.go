// Package config is what an operator has set down in files: config.yml and
// the profiles beside it, and where the state of containers is kept.
//
// It reads the environment through cmdenv only. It must never import an
// applet, nor anything that changes the system.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/wire/bundle"
)

const maxConfig = 256 << 10 // bytes of config.yml

// Modes that config.yml may name. Both choose OCI hooks, the one mode there
// is.
const (
	ModeAuto = "auto"
	ModeHook = "hook"
)

// Config is config.yml and where things are.
type Config struct {
	Path            string   // of config.yml, whether it exists or not
	Mode            string   // ModeAuto or ModeHook
	DefaultProfiles []string // for containers whose profiles are not named; proper names, may not exist
	Audit           bool     // whether commands write the audit log
	LoopbackPorts   []uint16 // TCP ports of the host that containers may reach, each once
	Tier            bundle.Tier
	ResolveUnlisted bool   // names on no list are resolved, their connections asked about; else refused
	Ask             bool   // people are asked about what is blocked
	Questions       int    // how many are asked at once
	StateRoot       string // holds containers/<name>
	ProfilesDir     string // the operator's profiles, which may not exist; "" if there are none

	// From says where a setting comes from that is not a default: a place in
	// a file, like PATH:3, or a variable, like $NAME.
	From map[string]string
}

// Invalid is a config.yml that can be read but means nothing.
type Invalid struct {
	Path     string
	Problems []Problem // in the order of lines
}

// Problem is one mistake in config.yml.
type Problem struct {
	Line int // from 1
	Text string
}

// Error is all of it on one line.
func (e *Invalid) Error() string {
	var s strings.Builder
	s.WriteString("invalid " + e.Path + ":")
	for i, p := range e.Problems {
		if i > 0 {
			s.WriteByte(';')
		}
		fmt.Fprintf(&s, " line %d: %s", p.Line, p.Text)
	}
	return s.String()
}

// Load reads config.yml. A file that is missing or empty means the defaults;
// so does one that cannot be read or is not YAML, with a warning for people.
// What is written in it and not understood is an *Invalid error.
func Load(env *cmdenv.Env) (Config, []string, error) {
	dir, dirFrom, err := configDir(env)
	if err != nil {
		return Config{}, nil, err
	}
	c := defaults()
	c.note(KeyProfilesDir, dirFrom)
	c.Path = filepath.Join(dir, "config.yml")
	c.ProfilesDir = filepath.Join(dir, "profiles")
	var stateFrom string
	if c.StateRoot, stateFrom, err = stateRoot(env, ""); err != nil {
		return Config{}, nil, err
	}
	c.note(KeyStateDir, stateFrom)

	text, err := readFile(c.Path, maxConfig)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return c, nil, nil
	case err != nil:
		return c, []string{"failed to read " + c.Path + ": " + err.Error() + "; the defaults hold"}, nil
	}
	warning, problems := decode(text, &c)
	if warning != "" {
		return c, []string{fmt.Sprintf(warning, c.Path) + "; the defaults hold"}, nil
	}
	if len(problems) > 0 {
		return Config{}, nil, &Invalid{Path: c.Path, Problems: problems}
	}
	return c, nil, nil
}

func defaults() Config {
	return Config{Mode: ModeAuto, DefaultProfiles: []string{"dev-standard"}, Audit: true, Tier: bundle.Proxy, Ask: true, Questions: bundle.DefaultQuestions}
}

// configDir is where config.yml and the profiles are, and what says so.
func configDir(env *cmdenv.Env) (dir, from string, err error) {
	const name = "TEROK_SHIELD_CONFIG_DIR"
	if d := env.Get(name); d != "" {
		dir, err = filepath.Abs(d)
		return dir, "$" + name, err
	}
	return below(env, "CONFIG", ".config")
}

// StateRoot is where the state of containers is kept: flag, the value of
// --state-dir; else $TEROK_SHIELD_STATE_DIR; else the user's state directory,
// or for root, in whose home the hooks accept no state, the system's.
func StateRoot(env *cmdenv.Env, flag string) (string, error) {
	dir, _, err := stateRoot(env, flag)
	return dir, err
}

func stateRoot(env *cmdenv.Env, flag string) (dir, from string, err error) {
	const name = "TEROK_SHIELD_STATE_DIR"
	for _, d := range [][2]string{{flag, "--state-dir"}, {env.Get(name), "$" + name}} {
		if d[0] != "" {
			dir, err = filepath.Abs(d[0])
			return dir, d[1], err
		}
	}
	dir, from, err = below(env, "STATE", filepath.Join(".local", "state"))
	if err == nil && env.EUID == 0 && strings.HasPrefix(dir, "/root/") {
		dir, from = systemState, ""
	}
	return dir, from, err
}

// systemState is beside the hooks of root's containers.
const systemState = "/var/lib/terok/shield"

// below is our directory in one of the user's, and the variable that says
// where that is, if it does.
func below(env *cmdenv.Env, kind, fallback string) (dir, from string, err error) {
	d, err := env.XDG(kind, fallback)
	if err != nil {
		return "", "", err
	}
	if name := "XDG_" + kind + "_HOME"; d == env.Get(name) {
		from = "$" + name
	}
	return filepath.Join(d, "terok", "shield"), from, nil
}

// readFile reads a file of at most limit bytes. Its errors do not repeat the
// path.
func readFile(path string, limit int64) ([]byte, error) {
	// A pipe in that place must not stop us.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	if int64(len(text)) > limit {
		return nil, fmt.Errorf("larger than %d KiB", limit>>10)
	}
	return text, nil
}
