package confine

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data; of arguments the lower half, which is all
// that the ones looked at have.
const (
	dataNumber = 0
	dataArch   = 4
	dataArgs   = 16
)

// newNamespaces are the flags of clone(2) that make namespaces.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// refused are the system calls by which other processes, the kernel or the
// file systems are looked into and changed. None of ours makes them.
func refused() []uint32 {
	return []uint32{
		unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PROCESS_MADVISE, unix.SYS_PIDFD_GETFD, unix.SYS_KCMP,
		unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_MOUNT_SETATTR,
		unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT,
		unix.SYS_UNSHARE, unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
		unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
		unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
		unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_REBOOT,
		unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_QUOTACTL, unix.SYS_SYSLOG, unix.SYS_VHANGUP,
		unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_ADJTIMEX, unix.SYS_CLOCK_ADJTIME,
		unix.SYS_FANOTIFY_INIT, unix.SYS_PERSONALITY, unix.SYS_MEMFD_SECRET,
	}
}

// program is the filter; nil where system calls have numbers that it does not
// know.
func (r Rules) program() []unix.SockFilter {
	arch := uint32(0)
	switch runtime.GOARCH {
	case "amd64":
		arch = unix.AUDIT_ARCH_X86_64
	case "arm64":
		arch = unix.AUDIT_ARCH_AARCH64
	default:
		return nil
	}
	const x32 = 0x40000000 // another set of numbers on amd64, and none elsewhere
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	jump := func(test uint16, value uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | test | unix.BPF_K, K: value, Jt: yes, Jf: no}
	}
	answer := func(code uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: code} }
	fail := func(errno unix.Errno) unix.SockFilter { return answer(unix.SECCOMP_RET_ERRNO | uint32(errno)) }
	allow := answer(unix.SECCOMP_RET_ALLOW)

	p := []unix.SockFilter{
		load(dataArch), jump(unix.BPF_JEQ, arch, 1, 0), fail(unix.ENOSYS),
		load(dataNumber), jump(unix.BPF_JGE, x32, 0, 1), fail(unix.ENOSYS),
		// Its flags are in memory, where a filter cannot look. Who gets this
		// answer calls clone instead.
		jump(unix.BPF_JEQ, unix.SYS_CLONE3, 0, 1), fail(unix.ENOSYS),
		jump(unix.BPF_JEQ, unix.SYS_CLONE, 0, 4), load(dataArgs), jump(unix.BPF_JSET, newNamespaces, 0, 1), fail(unix.EPERM), allow,
		jump(unix.BPF_JEQ, unix.SYS_SETNS, 0, 4), load(dataArgs + 8), jump(unix.BPF_JEQ, unix.CLONE_NEWNET, 1, 0), fail(unix.EPERM), allow,
		jump(unix.BPF_JEQ, unix.SYS_SOCKET, 0, uint8(len(r.Families)+7)), load(dataArgs),
	}
	for i, family := range r.Families {
		p = append(p, jump(unix.BPF_JEQ, uint32(family), uint8(len(r.Families)-i), 0))
	}
	p = append(p, fail(unix.EAFNOSUPPORT),
		// Landlock's rules for ports are for TCP, and not for what is like it.
		load(dataArgs+16), jump(unix.BPF_JEQ, unix.IPPROTO_MPTCP, 1, 0), jump(unix.BPF_JEQ, unix.IPPROTO_SCTP, 0, 1), fail(unix.EPROTONOSUPPORT), allow)
	for _, number := range refused() {
		p = append(p, jump(unix.BPF_JEQ, number, 0, 1), fail(unix.EPERM))
	}
	return append(p, allow)
}

// Filter has the kernel refuse system calls from now on, to all threads of the
// process and to what it starts: sockets of other families, and what none of
// our programs calls. The process must have been confined before. It is set
// apart because it costs more than all the rest, and nobody needs to wait for it.
func (r Rules) Filter() error {
	p := r.program()
	if p == nil {
		return nil
	}
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(p)
	switch {
	case errno == unix.ENOSYS || errno == unix.EINVAL: // built without
		return nil
	case errno != 0:
		return fmt.Errorf("confine: refuse system calls: %w", errno)
	case thread != 0:
		return fmt.Errorf("confine: refuse system calls: thread %d has another filter", thread)
	}
	return nil
}
