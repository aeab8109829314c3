package cmdenv

import (
	"os"

	"golang.org/x/sys/unix"
)

// isatty asks the driver: /dev/null is a character device and no terminal.
func isatty(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
