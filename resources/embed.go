// Package resources holds the files that the binary carries with it. It only
// hands them out: it must never import another package of this project.
package resources

import (
	"embed"
	"strings"
)

//go:embed profiles/*.txt
var profiles embed.FS

//go:embed *.varlink
var interfaces embed.FS

// Varlink is the description of a varlink interface, "org.example.Name", in
// varlink's interface definition language; "" if there is none of that name.
func Varlink(name string) string {
	text, err := interfaces.ReadFile(name + ".varlink")
	if err != nil {
		return ""
	}
	return string(text)
}

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
