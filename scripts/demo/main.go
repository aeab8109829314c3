// Command demo shows the main job: a workload that reaches only what it may,
// and one more address while it runs. With a Podman that can start rootless
// containers it uses one, else a network namespace stands for the container.
// It touches nothing outside this machine.
//
// It must be started by make demo, which builds what it shows.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func init() { runtime.LockOSThread() } // see main.go of the project

const dialTimeout = 3 * time.Second

// The words after which this program is something else than the demo.
const (
	wordConnect = "connect" // in the container: connect ADDRESS:PORT
	wordHold    = "hold"    // the workload: waits
	wordInside  = "inside"  // the demo in a user namespace of its own
	wordHook    = "hook"    // likewise, only the hook and how long it takes
)

func main() {
	var err error
	switch arg := append(os.Args[1:], ""); {
	case arg[0] == wordConnect:
		err = connect(arg[1])
	case arg[0] == wordHold:
		hold()
	case arg[0] == wordInside:
		err = namespaceDemo()
	case arg[0] == wordHook:
		err = hookDemo()
	default:
		err = demo()
	}
	if x, ok := errors.AsType[*exec.ExitError](err); ok && len(os.Args) == 1 {
		os.Exit(x.ExitCode()) // it has said why
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func demo() error {
	fmt.Println("terok-box: nothing goes out by default.")
	why := podmanDemo()
	if why == nil {
		return inNamespaces(wordHook)
	}
	if _, ok := errors.AsType[*unsuited](why); !ok {
		return why
	}
	fmt.Printf("\nNo container here (%v): a network namespace stands for one.\n", why)
	return inNamespaces(wordInside)
}

// inNamespaces runs this program again as root of new user and network
// namespaces.
func inNamespaces(word string) error {
	cmd := exec.Command("/proc/self/exe", word)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	return cmd.Run()
}

// connect is what the workload tries: exit code 0 if it got through.
func connect(to string) error {
	c, err := net.DialTimeout("tcp", to, dialTimeout)
	if err != nil {
		return err
	}
	return c.Close()
}

func hold() {
	if fi, err := os.Stdin.Stat(); err == nil && fi.Mode()&os.ModeNamedPipe != 0 {
		io.Copy(io.Discard, os.Stdin) // ends with the demo
		return
	}
	time.Sleep(5 * time.Minute)
}

// serve accepts connections until the program ends.
func serve(at string) (net.Listener, error) {
	l, err := net.Listen("tcp", at)
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	return l, nil
}

// stage shows commands and checks what the workload reaches.
type stage struct {
	container string
	args      []string // for terok-shield, before the verb
	reach     func(to string) error
	failed    bool
}

func program(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}

// shield runs one command of the product and shows it.
func (s *stage) shield(verb string, args ...string) error {
	all := append(append([]string{}, s.args...), append([]string{verb, s.container}, args...)...)
	fmt.Printf("\n$ terok-shield %s %s\n", verb, strings.Join(append([]string{s.container}, args...), " "))
	cmd := exec.Command(program("terok-shield"), all...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	start := time.Now()
	err := cmd.Run()
	fmt.Printf("  (%.1f ms)\n", float64(time.Since(start).Microseconds())/1000)
	return err
}

// expect tries a connection from inside and says how it went.
func (s *stage) expect(open bool, to string) {
	start := time.Now()
	err := s.reach(to)
	word := "blocked"
	if err == nil {
		word = "reached"
	}
	mark := "✓"
	if open != (err == nil) {
		mark, s.failed = "✗ UNEXPECTED", true
	}
	fmt.Printf("  %s %s %s after %d ms\n", mark, to, word, time.Since(start).Milliseconds())
}

func (s *stage) result() error {
	if s.failed {
		return errors.New("something above is not as it must be")
	}
	fmt.Println("\nAll as it must be.")
	return nil
}
