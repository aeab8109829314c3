package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/resources"
)

const maxProfiles = 10_000 // files of the operator's directory that are looked at

// Profiles is the names of all profiles, the operator's and the bundled
// ones, sorted. They need not be without mistakes.
func Profiles(c Config) ([]string, error) {
	names := resources.Profiles()
	own, err := ownProfiles(c.ProfilesDir)
	if err != nil {
		return nil, err
	}
	names = append(names, own...)
	slices.Sort(names)
	return slices.Compact(names), nil
}

// ownProfiles is the names of the operator's profiles. A directory that does
// not exist has none.
func ownProfiles(dir string) ([]string, error) {
	if dir == "" {
		return nil, nil
	}
	d, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list profiles: %w", err)
	}
	defer d.Close()
	files, err := d.Readdirnames(maxProfiles + 1)
	if err != nil && !errors.Is(err, io.EOF) { // io.EOF: it is empty
		return nil, fmt.Errorf("cannot list profiles: %w", err)
	}
	if len(files) > maxProfiles {
		return nil, fmt.Errorf("cannot list profiles: %s holds more than %d files", dir, maxProfiles)
	}
	var names []string
	for _, f := range files {
		if name, ok := strings.CutSuffix(f, ".txt"); ok && policy.ProfileName(name) == nil {
			names = append(names, name)
		}
	}
	return names, nil
}

// LoadProfile reads a profile: the operator's if there is one of that name,
// else the bundled one. One of the operator's that cannot be read is an
// error: the bundled one might allow more.
func LoadProfile(c Config, name string) (policy.Profile, error) {
	if err := policy.ProfileName(name); err != nil {
		return policy.Profile{}, err
	}
	path := filepath.Join(c.ProfilesDir, name+".txt")
	var text []byte
	err := fs.ErrNotExist
	if c.ProfilesDir != "" {
		text, err = readFile(path, policy.MaxProfileSize)
	}
	if errors.Is(err, fs.ErrNotExist) {
		var ok bool
		if text, ok = resources.Profile(name); !ok {
			return policy.Profile{}, fmt.Errorf("Profile not found: '%s'", name) //nolint:staticcheck // text known from the existing systems
		}
	} else if err != nil {
		return policy.Profile{}, fmt.Errorf("profile %s: cannot read %s: %w", name, path, err)
	}
	return policy.ParseProfile(name, text)
}
