package confine_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/nl/confine"
	"github.com/terok-ai/terok-box/nl/confine/confinetest"
	"github.com/terok-ai/terok-box/nl/kerneltest"
)

// The main thread cannot be confined in a test: it never ends.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	confinetest.Main()
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "without":
			without(os.Args[2:])
			return
		case "sockets":
			sockets(os.Args[2:])
			return
		}
	}
	kerneltest.Main(m)
}

// self is what a test's binary needs to be started.
func self() []confine.Path {
	paths := []confine.Path{
		{Name: "/proc/self/exe", Access: confine.Execute | confine.ReadFile},
		{Name: "/proc", Access: confine.Read},
		{Name: "/dev/null", Access: confine.Read | confine.Write},
		{Name: "/nonexistent", Access: confine.Own},
	}
	for _, dir := range []string{"/lib", "/lib64", "/usr/lib"} { // where it is linked to libraries
		paths = append(paths, confine.Path{Name: dir, Access: confine.Execute | confine.Read})
	}
	return paths
}

func TestPossible(t *testing.T) { confinetest.Possible(t) }

func TestRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		rules confine.Rules
		may   []string
	}{
		"nothing":        {confine.Rules{}, nil},
		"a directory":    {confine.Rules{Paths: []confine.Path{{dir, confine.Own}}}, []string{filepath.Join(dir, "x")}},
		"a file":         {confine.Rules{Paths: []confine.Path{{file, confine.Own}}}, []string{"<" + file}},
		"capabilities":   {confine.Rules{Caps: []int{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN, unix.CAP_WAKE_ALARM}}, nil},
		"sockets":        {confine.Rules{Families: []int{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}, Connect: []uint16{53}, Bind: []uint16{53}}, nil},
		"abstract names": {confine.Rules{Families: []int{unix.AF_UNIX}, Abstract: true}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			tt.rules.Paths = append(tt.rules.Paths, self()...)
			confinetest.Refused(t, tt.rules, tt.may...)
		})
	}
}

// A thread's rules end with it, and are no other's.
func TestOwnThread(t *testing.T) {
	if err := (confine.Rules{}).Do(func() error {
		if _, err := os.ReadDir("/"); confine.ABI() > 0 && !errors.Is(err, unix.EACCES) {
			t.Errorf("list the root directory: %v", err)
		}
		if s := confine.Status(); !strings.HasSuffix(s, "no new privileges") {
			t.Errorf("status %q", s)
		}
		return os.ErrClosed
	}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the error of the function: %v", err)
	}
	if _, err := os.ReadDir("/"); err != nil {
		t.Error(err)
	}
	if s := confine.Status(); s != "not at all" {
		t.Errorf("status %q", s)
	}
}

// The rules for sockets hold for all threads of a process.
func TestSockets(t *testing.T) {
	for name, families := range map[string][]int{
		"none": nil,
		"one":  {unix.AF_INET},
		"some": {unix.AF_UNIX, unix.AF_INET6, unix.AF_NETLINK},
	} {
		t.Run(name, func(t *testing.T) {
			args := []string{"sockets"}
			for _, f := range families {
				args = append(args, strconv.Itoa(f))
			}
			out, err := exec.Command("/proc/self/exe", args...).Output()
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(out)) {
				var family int
				var outcome string
				if _, err := fmt.Sscan(line, &family, &outcome); err != nil {
					t.Fatal(err)
				}
				want := "EAFNOSUPPORT"
				if slices.Contains(families, family) {
					want = "done"
				}
				if outcome != want {
					t.Errorf("a socket of family %d: %s, want %s", family, outcome, want)
				}
			}
			if n := strings.Count(string(out), "\n"); n != 40 {
				t.Errorf("%d lines", n)
			}
		})
	}
}

// sockets makes sockets on threads that were there before.
func sockets(families []string) {
	var r confine.Rules
	for _, f := range families {
		n, _ := strconv.Atoi(f)
		r.Families = append(r.Families, n)
	}
	const threads = 10
	filtered, done := make(chan struct{}), make(chan bool)
	for range threads {
		ready := make(chan bool)
		go func() {
			runtime.LockOSThread()
			ready <- true
			<-filtered
			for _, f := range []int{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK} {
				if _, err := unix.Socket(f, unix.SOCK_DGRAM, 0); err != nil {
					fmt.Println(f, unix.ErrnoName(err.(unix.Errno)))
				} else {
					fmt.Println(f, "done")
				}
			}
			done <- true
		}()
		<-ready
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err == nil {
		err = r.Filter()
		if err != nil {
			fmt.Println(err)
		}
	}
	close(filtered)
	for range threads {
		<-done
	}
}

// Where the kernel has no Landlock, or no seccomp, the rest is in force.
func TestWithout(t *testing.T) {
	confinetest.Need(t)
	for name, tt := range map[string]struct {
		call  int
		errno unix.Errno
		want  string
	}{
		"landlock":                  {unix.SYS_LANDLOCK_CREATE_RULESET, unix.ENOSYS, "seccomp, no new privileges"},
		"landlock, which is off":    {unix.SYS_LANDLOCK_CREATE_RULESET, unix.EOPNOTSUPP, "seccomp, no new privileges"},
		"seccomp":                   {unix.SYS_SECCOMP, unix.ENOSYS, "landlock %d, seccomp, no new privileges"}, // that of this test
		"filters":                   {unix.SYS_SECCOMP, unix.EINVAL, "landlock %d, seccomp, no new privileges"},
		"nothing that matters here": {unix.SYS_ACCT, unix.EINVAL, "landlock %d, seccomp, no new privileges"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := exec.Command("/proc/self/exe", "without", fmt.Sprint(tt.call), fmt.Sprint(int(tt.errno))).CombinedOutput()
			want := tt.want
			if strings.Contains(want, "%d") {
				want = fmt.Sprintf(want, confine.ABI())
			}
			if got := strings.TrimSpace(string(out)); err != nil || got != want {
				t.Errorf("%q, %v; want %q", got, err, want)
			}
		})
	}
}

// without puts rules in force where a system call is not there.
func without(args []string) {
	var call, errno int
	fmt.Sscan(args[0], &call)
	fmt.Sscan(args[1], &errno)
	err := confinetest.Under(func() error {
		r := confine.Rules{Paths: self()}
		err := errors.Join(r.Here(), r.Filter())
		fmt.Println(confine.Status())
		return err
	}, unix.Errno(errno), call)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// The kernel is asked for nothing that its version does not have.
func TestVersions(t *testing.T) {
	var before uint64
	for abi := range 12 {
		attr := confine.Handled(abi, false)
		all := attr.Handled_access_fs | attr.Handled_access_net<<32 | attr.Scoped<<48
		if before&^all != 0 {
			t.Errorf("version %d does not have what version %d has: %#x, %#x", abi, abi-1, all, before)
		}
		before = all
		for _, tt := range []struct {
			since int
			has   bool
		}{
			{1, attr.Handled_access_fs&unix.LANDLOCK_ACCESS_FS_MAKE_SYM != 0},
			{2, attr.Handled_access_fs&unix.LANDLOCK_ACCESS_FS_REFER != 0},
			{3, attr.Handled_access_fs&unix.LANDLOCK_ACCESS_FS_TRUNCATE != 0},
			{4, attr.Handled_access_net == unix.LANDLOCK_ACCESS_NET_BIND_TCP|unix.LANDLOCK_ACCESS_NET_CONNECT_TCP},
			{5, attr.Handled_access_fs&unix.LANDLOCK_ACCESS_FS_IOCTL_DEV != 0},
			{6, attr.Scoped == unix.LANDLOCK_SCOPE_SIGNAL|unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET},
		} {
			if tt.has != (abi >= tt.since) {
				t.Errorf("version %d: what version %d brought: %t", abi, tt.since, tt.has)
			}
		}
		if attr.Quiet_access_fs != 0 || attr.Handled_access_fs>>16 != 0 {
			t.Errorf("version %d: %+v", abi, attr)
		}
		if open := confine.Handled(abi, true); open.Scoped&unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET != 0 {
			t.Errorf("version %d: abstract sockets are not left alone", abi)
		}
	}
}

// BenchmarkDo is what it costs to confine a program, without the program.
func BenchmarkDo(b *testing.B) {
	dir := b.TempDir()
	r := confine.Rules{
		Paths: append(self(), confine.Path{Name: dir, Access: confine.Own}), Caps: []int{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN},
		Families: []int{unix.AF_UNIX, unix.AF_NETLINK, unix.AF_INET}, Connect: []uint16{53},
	}
	for b.Loop() {
		if err := r.Do(func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
