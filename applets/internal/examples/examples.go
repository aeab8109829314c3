// Package examples reads the commands that the documentation shows, for tests
// that run them, or read them as the programs would.
//
// It must never be imported but by tests.
package examples

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Example is a command line that people are shown, and what is shown to come
// of it.
type Example struct {
	File   string // from the root of the project
	Line   int    // from 1
	Text   string // as for a shell
	Output string // lines, or "" if none is shown
}

// Root is the root of the project.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("no go.mod above this directory")
		}
		dir = up
	}
}

// All are the examples of README.md and the man pages: what follows "$ " in
// a block between lines of ```.
func All(t testing.TB) []Example {
	t.Helper()
	root := Root(t)
	files, err := filepath.Glob(filepath.Join(root, "resources/man/*.scd"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no man pages: %v", err)
	}
	var all []Example
	for _, f := range append(files, filepath.Join(root, "README.md")) {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		name, err := filepath.Rel(root, f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, of(name, string(text))...)
	}
	return all
}

func of(file, text string) (all []Example) {
	inside, command := false, false
	n := 0
	for line := range strings.Lines(text) {
		n++
		switch rest, prompt := strings.CutPrefix(line, "$ "); {
		case strings.HasPrefix(line, "```"):
			inside, command = !inside, false
		case !inside:
		case prompt:
			command = true
			all = append(all, Example{File: file, Line: n, Text: strings.TrimSuffix(rest, "\n")})
		case command:
			all[len(all)-1].Output += line
		}
	}
	return all
}

// foreign are programs of others that examples show.
var foreign = []string{"make", "sudo", "ssh", "systemctl", "podman", "dpkg", "apt", "rpm", "dnf", "apk", "tar", "sha256sum", "curl", "install", "nft"}

// Commands are what a shell runs of ours, which are named, on an example's
// line: name and arguments each. Nothing of it is run. A command that is neither
// ours nor foreign fails the test.
func (e Example) Commands(t testing.TB, ours ...string) [][]string {
	t.Helper()
	bin, home := t.TempDir(), t.TempDir()
	record := filepath.Join(home, "record")
	// Each argument in a line of its own, and the program's name after a tab.
	stub := "#!/bin/bash\n{ printf '\\t%s\\n' \"${0##*/}\"; for a; do printf '%s\\n' \"$a\"; done; } >>" + record + "\n"
	for _, name := range slices.Concat(ours, foreign) {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(stub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	mkdir, err := exec.LookPath("mkdir")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(mkdir, filepath.Join(bin, "mkdir")); err != nil {
		t.Fatal(err)
	}
	// Redirections go to directories that the reader has made before.
	if err := os.MkdirAll(filepath.Join(home, ".config/terok/shield/profiles"), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/bash", "-c", e.Text)
	cmd.Dir, cmd.Env = home, []string{"PATH=" + bin, "HOME=" + home, "XDG_RUNTIME_DIR=" + home}
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%s:%d: %s: %v\n%s", e.File, e.Line, e.Text, err, out)
		return nil
	}
	text, err := os.ReadFile(record)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var all [][]string
	for line := range bytes.Lines(text) {
		word := strings.TrimSuffix(string(line), "\n")
		if name, ok := strings.CutPrefix(word, "\t"); ok {
			all = append(all, []string{name})
		} else {
			all[len(all)-1] = append(all[len(all)-1], word)
		}
	}
	var found [][]string
	for _, words := range all {
		if words[0] == "sudo" || words[0] == "ssh" { // what another one runs for them
			i := slices.IndexFunc(words, func(w string) bool { return slices.Contains(ours, w) })
			if i < 0 {
				continue
			}
			words = words[i:]
		}
		if slices.Contains(ours, words[0]) {
			found = append(found, words)
		}
	}
	return found
}
