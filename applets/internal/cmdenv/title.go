package cmdenv

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Entitle makes the process's own name tell what it is (comm of proc(5)),
// which is "exe" otherwise. The name is the main thread's, which the caller
// must be on; it is cut after 15 bytes.
func Entitle(name string) {
	var text [16]byte // with a NUL at its end
	copy(text[:len(text)-1], name)
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&text[0])), 0, 0, 0)
}
