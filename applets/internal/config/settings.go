package config

import (
	"fmt"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
)

// Keys that are no keys of config.yml.
const (
	KeyProfilesDir = "profiles_dir"
	KeyStateDir    = "state_dir"
)

// Default is where a setting comes from that nobody has chosen.
const Default = "default"

// Setting is one effective value and where it comes from: Default, a place
// in a file (PATH:3), a variable ($NAME) or a flag (--name).
type Setting struct {
	Key   string `json:"key"` // of config.yml, or one of the Key constants
	Value any    `json:"value"`
	From  string `json:"from"`
}

// note remembers what a setting comes from; "" is Default.
func (c *Config) note(key, from string) {
	if from == "" {
		return
	}
	if c.From == nil {
		c.From = make(map[string]string)
	}
	c.From[key] = from
}

// SetStateRoot replaces the place of the state of containers as StateRoot
// would choose it.
func (c *Config) SetStateRoot(env *cmdenv.Env, flag string) error {
	dir, from, err := stateRoot(env, flag)
	if err != nil {
		return err
	}
	c.StateRoot = dir
	c.note(KeyStateDir, from)
	return nil
}

// Settings is all of c, every key of config.yml and the places.
func (c *Config) Settings() []Setting {
	unlisted := "refuse"
	if c.ResolveUnlisted {
		unlisted = "resolve"
	}
	ports := c.LoopbackPorts
	if ports == nil {
		ports = []uint16{} // not null in JSON
	}
	all := []Setting{
		{Key: "mode", Value: c.Mode},
		{Key: "default_profiles", Value: c.DefaultProfiles},
		{Key: "audit.enabled", Value: c.Audit},
		{Key: "loopback_ports", Value: ports},
		{Key: "dns.tier", Value: string(c.Tier)},
		{Key: "dns.unlisted", Value: unlisted},
		{Key: "clearance.ask", Value: c.Ask},
		{Key: "clearance.questions", Value: c.Questions},
		{Key: KeyProfilesDir, Value: c.ProfilesDir},
		{Key: KeyStateDir, Value: c.StateRoot},
	}
	for i := range all {
		if all[i].From = c.From[all[i].Key]; all[i].From == "" {
			all[i].From = Default
		}
	}
	return all
}

// place is where in config.yml something stands.
func (c *Config) place(line int) string { return fmt.Sprintf("%s:%d", c.Path, line) }
