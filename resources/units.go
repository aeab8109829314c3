package resources

import "embed"

//go:embed systemd/*.service systemd/*.socket
var units embed.FS

// Units are the systemd units of a user's services, for ~/.config/systemd/user
// or /usr/lib/systemd/user, by their file names.
func Units() map[string]string {
	entries, err := units.ReadDir("systemd")
	if err != nil {
		panic(err) // the directory is part of the binary
	}
	all := make(map[string]string)
	for _, e := range entries {
		text, err := units.ReadFile("systemd/" + e.Name())
		if err != nil {
			panic(err) // likewise
		}
		all[e.Name()] = string(text)
	}
	return all
}
