package cmdenv

import "runtime/debug"

// Version is the module version the linker recorded: a tag, or a
// pseudo-version of the commit.
func Version() string {
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" {
		return bi.Main.Version
	}
	return "unknown"
}
