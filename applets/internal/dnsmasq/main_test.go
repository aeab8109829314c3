package dnsmasq

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/nl/netns"
)

// Variables that tell this test binary what it is.
const (
	insideVar = "TEROK_TEST_DNSMASQ_INSIDE"  // in the namespaces already
	singleVar = "TEROK_TEST_DNSMASQ_ONE_UID" // a state directory; see TestSingleUID
)

// The tests run like a rootless container engine's hook: as uid 0 in a user
// namespace that has more users, so that dnsmasq can become nobody. nl's
// kerneltest maps one only.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "dnsmasq" {
		os.Exit(standIn())
	}
	if os.Getenv(insideVar) == "" {
		os.Exit(again())
	}
	if err := netns.LoopbackUp(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func again() int {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = os.Args
	cmd.SysProcAttr = new(syscall.SysProcAttr)
	if os.Geteuid() == 0 {
		all := []syscall.SysProcIDMap{{Size: 65536}}
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWUSER | unix.CLONE_NEWNET
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = all, all
		cmd.SysProcAttr.GidMappingsEnableSetgroups = true
	} else {
		exe, err := os.Executable()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		cmd = exec.Command("unshare", append([]string{"--map-root-user", "--map-auto", "--net", "--", exe}, os.Args[1:]...)...)
	}
	cmd.Env = append(os.Environ(), insideVar+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		if x, ok := errors.AsType[*exec.ExitError](err); ok {
			return max(x.ExitCode(), 1)
		}
		fmt.Fprintf(os.Stderr, "make a user namespace with many users (unshare of util-linux 2.38, newuidmap and subordinate ids are needed): %v\n", err)
		return 1
	}
	return 0
}

// standIn is this binary under dnsmasq's name, doing what the file beside its
// configuration says.
func standIn() int {
	var dir string
	for _, a := range os.Args {
		if conf, ok := strings.CutPrefix(a, "--conf-file="); ok {
			dir = filepath.Dir(conf)
		}
	}
	mode, err := os.ReadFile(filepath.Join(dir, "stand-in"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	daemon := func() *exec.Cmd {
		child := exec.Command("/proc/self/exe", "daemon")
		child.Args = append(os.Args, "daemon")
		child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if string(mode) == "keeps the output open" {
			child.Stderr = os.Stderr
		}
		out, err := child.StdoutPipe()
		if err == nil {
			err = child.Start()
		}
		if err == nil {
			_, err = io.ReadFull(out, make([]byte, 1))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return child
	}
	pidFile := func(pid int) {
		if err := os.WriteFile(filepath.Join(dir, "dnsmasq.pid"), fmt.Appendln(nil, pid), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if os.Args[len(os.Args)-1] == "daemon" {
		signal.Ignore(syscall.SIGTERM)
		os.Stdout.Write([]byte("."))
		time.Sleep(time.Minute)
		return 0
	}
	switch string(mode) {
	case "fails, leaves a child":
		pidFile(daemon().Process.Pid)
		fmt.Fprintln(os.Stderr, "dnsmasq: cannot do it:", "Permission denied")
		return 2
	case "no pid file, leaves a child", "keeps the output open":
		daemon()
		return 0
	case "pid file names another":
		daemon()
		pidFile(os.Getppid())
		return 0
	case "hangs, leaves a child":
		daemon()
		time.Sleep(time.Minute)
		return 0
	case "talks":
		for range 1000 {
			fmt.Println(strings.Repeat("x", 100))
		}
		return 2
	default:
		fmt.Fprintf(os.Stderr, "mode %q\n", mode)
		return 1
	}
}
