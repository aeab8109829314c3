package confine

import (
	"errors"
	"io/fs"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	rulePath = unix.LANDLOCK_RULE_PATH_BENEATH
	rulePort = 2 // LANDLOCK_RULE_NET_PORT
)

// portAttr is struct landlock_net_port_attr.
type portAttr struct{ allowed, port uint64 }

// pathAttr is struct landlock_path_beneath_attr, which is packed: the kernel
// reads its first 12 bytes.
type pathAttr = unix.LandlockPathBeneathAttr

// onFiles are the rights that a file has which is no directory.
const onFiles = Execute | ReadFile | Write | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV

// ABI is the version of Landlock in this kernel; 0 if there is none, or it was
// turned off.
func ABI() int {
	v, err := createRuleset(nil, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if err != nil {
		return 0
	}
	return v
}

// handled is what Landlock of a version can be told to refuse, of what this
// package knows. Each version has all of the ones before.
func handled(abi int, abstract bool) (attr unix.LandlockRulesetAttr) {
	if abi < 1 {
		return attr
	}
	attr.Handled_access_fs = unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1
	if abi >= 2 {
		attr.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		attr.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 4 {
		attr.Handled_access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	if abi >= 5 {
		attr.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	if abi >= 6 {
		attr.Scoped = unix.LANDLOCK_SCOPE_SIGNAL
		if !abstract {
			attr.Scoped |= unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET
		}
	}
	return attr
}

// landlock makes a ruleset; -1 if the kernel has none.
func (r Rules) landlock() (fd int, err error) {
	attr := handled(ABI(), r.Abstract)
	if attr.Handled_access_fs == 0 {
		return -1, nil
	}
	if fd, err = createRuleset(&attr, 0); err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
			fd = -1
		}
	}()
	for _, p := range r.Paths {
		if err := p.add(fd, Access(attr.Handled_access_fs)); err != nil {
			return fd, &fs.PathError{Op: "allow", Path: p.Name, Err: err}
		}
	}
	if attr.Handled_access_net == 0 {
		return fd, nil
	}
	for access, ports := range map[uint64][]uint16{
		unix.LANDLOCK_ACCESS_NET_CONNECT_TCP: r.Connect,
		unix.LANDLOCK_ACCESS_NET_BIND_TCP:    r.Bind,
	} {
		for _, port := range ports {
			a := portAttr{access, uint64(port)}
			if err := addRule(fd, rulePort, unsafe.Pointer(&a)); err != nil {
				return fd, err
			}
		}
	}
	return fd, nil
}

// add allows what is there.
func (p Path) add(ruleset int, handled Access) error {
	fd, err := unix.Open(p.Name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EACCES) {
		return nil // what cannot be reached now cannot be later
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	allowed := p.Access & handled
	err = p.addOpen(ruleset, fd, allowed)
	if errors.Is(err, unix.EINVAL) && allowed&onFiles != allowed { // no directory
		allowed &= onFiles
		err = p.addOpen(ruleset, fd, allowed)
	}
	if errors.Is(err, unix.EBADFD) {
		return nil // of a file system without paths, which is not restricted
	}
	return err
}

func (p Path) addOpen(ruleset, fd int, allowed Access) error {
	if allowed == 0 {
		return nil
	}
	a := pathAttr{Allowed_access: uint64(allowed), Parent_fd: int32(fd)}
	return addRule(ruleset, rulePath, unsafe.Pointer(&a))
}

func createRuleset(attr *unix.LandlockRulesetAttr, flags uintptr) (int, error) {
	size := uintptr(0)
	if attr != nil {
		size = unsafe.Sizeof(*attr)
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(attr)), size, flags)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

func addRule(ruleset int, kind uintptr, attr unsafe.Pointer) error {
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), kind, uintptr(attr), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func restrict(ruleset int) error {
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(ruleset), 0, 0); errno != 0 {
		return errno
	}
	return nil
}
