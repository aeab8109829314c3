package dnsproxy

import (
	"fmt"
	"os"
	"strings"
)

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
