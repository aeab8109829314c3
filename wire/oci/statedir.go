package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// System directories: no state directory is one of them or lies below.
var systemDirs = [...]string{
	"etc", "proc", "sys", "dev", "usr", "bin", "sbin", "lib", "lib64", "boot", "root",
}

// StateDir is the container's state directory, symbolic links resolved, if
// everything about it is as the program that prepared the container leaves
// it. euid is the caller's effective user id: the owner of the directory as
// seen in the current user namespace, thus 0 in a rootless Podman's.
func (s *State) StateDir(euid int) (string, error) {
	c, err := newCaller(euid)
	if err != nil {
		return "", err
	}
	return s.stateDir(c)
}

// stateDir checks in a fixed order, so that the same mistake always gets the
// same message.
func (s *State) stateDir(c caller) (string, error) {
	raw := s.Annotations[KeyStateDir]
	fail := func(format string, a ...any) (string, error) {
		return "", fmt.Errorf("state directory %s: %w", quote(raw), fmt.Errorf(format, a...))
	}
	switch {
	case raw == "":
		return "", fmt.Errorf("annotation %s is missing; prepare the container again", KeyStateDir)
	case len(raw) > MaxPath:
		return fail("is longer than %d bytes", MaxPath)
	case strings.ContainsRune(raw, 0):
		return fail("contains a NUL character")
	case !filepath.IsAbs(raw):
		return fail("is not an absolute path")
	}

	// Written without "//", "/./" and a final "/", which would make lstat
	// follow a link; ".." stays, its meaning depends on links.
	path := "/" + strings.Join(elements(raw), "/")
	if dir := systemDir(path); dir != "" {
		return fail("lies in %s, which belongs to the system", dir)
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fail("cannot be resolved: %w; prepare the container again", cause(err))
	}
	if dir := systemDir(resolved); dir != "" {
		return fail("leads to %s in %s, which belongs to the system", quote(resolved), dir)
	}
	fi, err := os.Lstat(path)
	switch {
	case err != nil:
		return fail("cannot be examined: %w", cause(err))
	case fi.Mode()&fs.ModeSymlink != 0:
		return fail("is a symbolic link; name the directory itself")
	case !fi.IsDir():
		return fail("is not a directory")
	}
	if uid := owner(fi); uid != c.euid {
		return fail("belongs to uid %d, not to uid %d who starts the container", uid, c.euid)
	}
	if perm := fi.Mode().Perm(); perm&0o022 != 0 {
		return fail("can be written by others (mode %04o); run chmod 0700 on it", perm)
	}
	// Who may rename a parent decides what the path means.
	for dir := filepath.Dir(resolved); ; dir = filepath.Dir(dir) {
		if err := c.checkParent(dir); err != nil {
			return fail("%w", err)
		}
		if dir == "/" {
			return resolved, nil
		}
	}
}

// elements of an absolute path, without empty ones and ".".
func elements(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(e string) bool { return e == "" || e == "." })
}

// systemDir is the system directory that holds the path; "" if none does.
func systemDir(path string) string {
	e := elements(path)
	switch {
	case len(e) == 0:
		return "/"
	case slices.Contains(systemDirs[:], e[0]):
		return "/" + e[0]
	}
	return ""
}

// cause is the bare reason of a path error: the message names the path
// already.
func cause(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
