package confine

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// drop gives up all capabilities but those to keep, of this thread and of what
// it starts: root does not get them back, as there are no new privileges.
func (r Rules) drop() error {
	// Those that no program may ever have again. Who may not drop these has no
	// use for them: without new privileges nobody gets any.
	for c := range 64 {
		if slices.Contains(r.Caps, c) {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
			break // there are no more
		}
		if err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return err
	}
	var keep [2]uint32
	for _, c := range r.Caps {
		keep[c/32] |= 1 << (c % 32)
	}
	had := data
	for i := range data {
		data[i].Permitted &= keep[i]
		data[i].Effective = data[i].Permitted
		data[i].Inheritable = 0
	}
	if data == had { // as of a user's service, whose manager may refuse the call
		return nil
	}
	return unix.Capset(&head, &data[0])
}
