package confine

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Status says for people what is in force on the calling thread, and so for a
// whole program that was confined when it was started: such as "landlock 7,
// seccomp, no new privileges".
func Status() string {
	var in []string
	// No rules let anything list the root directory.
	if f, err := os.Open("/"); errors.Is(err, unix.EACCES) {
		in = append(in, fmt.Sprintf("landlock %d", ABI()))
	} else if err == nil {
		f.Close()
	}
	if mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0); err == nil && mode == 2 {
		in = append(in, "seccomp")
	}
	if on, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err == nil && on == 1 {
		in = append(in, "no new privileges")
	}
	if len(in) == 0 {
		return "not at all"
	}
	return strings.Join(in, ", ")
}
