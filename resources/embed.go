// Package resources holds the files that the binary carries with it. It only
// hands them out: it must never import another package of this project.
package resources

import (
	"embed"
	"strings"
)

//go:embed profiles/*.txt
var profiles embed.FS

// Profiles is the names of the bundled profiles, sorted.
func Profiles() []string {
	entries, err := profiles.ReadDir("profiles")
	if err != nil {
		panic(err) // the directory is part of the binary
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".txt"))
	}
	return names
}

// Profile is the text of a bundled profile.
func Profile(name string) ([]byte, bool) {
	text, err := profiles.ReadFile("profiles/" + name + ".txt")
	return text, err == nil
}
