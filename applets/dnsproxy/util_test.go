package dnsproxy

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"github.com/terok-ai/terok-box/applets/internal/child"
)

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func self(arg string, more ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{child.Name, arg}, more...)
	return cmd
}

// zombies are processes that have ended and whose parent, a server or keeper,
// did not wait for them.
func (h *host) zombies() (found []string) {
	h.Helper()
	for _, pid := range h.pids(all) {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			continue
		}
		for c := range strings.FieldsSeq(string(children)) {
			if stat, err := os.ReadFile("/proc/" + c + "/stat"); err == nil && strings.Contains(string(stat), ") Z ") {
				found = append(found, string(stat))
			}
		}
	}
	return found
}
