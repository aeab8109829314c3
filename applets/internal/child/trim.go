package child

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Trim lets go of the pages of this program's file that only its start has
// needed, which are most of what an idle process has. The kernel brings back
// what is needed again, from its cache as a rule.
func Trim() {
	program, err := os.Readlink(self)
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return
	}
	for _, m := range clean(string(maps), program) {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED)
	}
}

type mapping struct{ start, end uintptr }

// clean are the mappings of a file that cannot be written to, and of which
// none of the pages was (Anonymous of proc(5)): what was would be lost.
func clean(smaps, file string) (found []mapping) {
	var current mapping
	for line := range strings.Lines(smaps) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == "Anonymous:" {
			if f[1] == "0" && current.end > current.start {
				found = append(found, current)
			}
			current = mapping{}
			continue
		}
		// address perms offset dev inode pathname
		if len(f) < 6 || strings.HasSuffix(f[0], ":") {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		current = mapping{}
		if err1 == nil && err2 == nil && strings.HasSuffix(line, " "+file+"\n") && !strings.Contains(f[1], "w") {
			current = mapping{uintptr(start), uintptr(end)}
		}
	}
	return found
}
