package applets

import (
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/verdict"
)

// setting is one line of a unit, with its section: "Service.ExecStart".
type setting struct{ key, value string }

// readUnit reads a unit strictly: no continued lines, no empty values.
func readUnit(t *testing.T, name, text string) (settings []setting) {
	t.Helper()
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		key, value, ok := strings.Cut(line, "=")
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '[' && line[len(line)-1] == ']':
			section = line[1 : len(line)-1]
		case !ok || value == "" || strings.TrimSpace(key) != key || strings.TrimSpace(value) != value || strings.HasSuffix(value, `\`) || section == "":
			t.Errorf("%s: %q", name, line)
		default:
			settings = append(settings, setting{section + "." + key, value})
		}
	}
	return settings
}

// The units start programs that there are, listen where these look, and name
// each other rightly.
func TestUnits(t *testing.T) {
	const runtimeDir = "%t"
	listen := map[string][]string{
		"terok-clearance-hub.socket":     {event.UserSocketPath(runtimeDir), clearance.UserSocketPath(runtimeDir)},
		"terok-clearance-verdict.socket": {verdict.UserSocketPath(runtimeDir)},
	}
	start := map[string]string{
		"terok-clearance-hub.service":     "clearance-hub serve",
		"terok-clearance-verdict.service": "clearance-verdict serve",
	}
	all := resources.Units()
	if d := cmp.Diff(slices.Sorted(maps.Keys(all)), slices.Sorted(slices.Values(slices.Concat(slices.Collect(maps.Keys(listen)), slices.Collect(maps.Keys(start)))))); d != "" {
		t.Errorf("units (-there +expected):\n%s", d)
	}
	for name, text := range all {
		got := make(map[string][]string)
		for _, s := range readUnit(t, name, text) {
			got[s.key] = append(got[s.key], s.value)
		}
		want := func(key string, values ...string) {
			t.Helper()
			if d := cmp.Diff(values, got[key]); d != "" {
				t.Errorf("%s: %s (-want +got):\n%s", name, key, d)
			}
		}
		base := strings.TrimSuffix(name, path.Ext(name))
		if sockets, ok := listen[name]; ok {
			want("Socket.ListenStream", sockets...)
			want("Socket.SocketMode", "0600")
			want("Socket.DirectoryMode", "0700")
			want("Socket.RemoveOnStop", "yes")
			want("Install.WantedBy", "sockets.target")
			continue
		}
		want("Service.ExecStart", start[name])
		program, _, _ := strings.Cut(start[name], " ")
		if a, ok := find(program); !ok || a.private {
			t.Errorf("%s starts %s, which is not there", name, program)
		}
		want("Unit.Requires", base+".socket")
		want("Unit.After", base+".socket")
		want("Install.Also", base+".socket")
		want("Service.NoNewPrivileges", "yes")
		want("Service.UMask", "0077")
		for _, key := range []string{"Service.RestrictAddressFamilies", "Service.MemoryMax", "Service.TasksMax", "Service.SystemCallFilter", "Service.TimeoutStopSec"} {
			if len(got[key]) == 0 {
				t.Errorf("%s: no %s", name, key)
			}
		}
		for _, other := range got["Unit.Wants"] {
			if all[other] == "" {
				t.Errorf("%s wants %s, which is not there", name, other)
			}
		}
		// The one that enters containers must be able to.
		if restricted := len(got["Service.RestrictNamespaces"]) > 0; restricted != (base == "terok-clearance-hub") {
			t.Errorf("%s: namespaces restricted: %v", name, restricted)
		}
	}
}
