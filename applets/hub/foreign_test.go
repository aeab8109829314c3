package hub

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
	"testing"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/nl/confine/confinetest"
)

// The main thread stays main's, as in main.go.
func init() { runtime.LockOSThread() }

// foreignEnv makes the test binary a client of the sockets in that directory
// and nothing else.
const foreignEnv = "TEST_HUB_FOREIGN"

func TestMain(m *testing.M) {
	confinetest.Main()
	if filepath.Base(os.Args[0]) == Name { // the program itself
		os.Exit(Run(cmdenv.OS(), os.Args[1:]))
	}
	if dir := os.Getenv(foreignEnv); dir != "" {
		os.Exit(foreign(dir))
	}
	os.Exit(m.Run())
}

// foreign says what others may and reports whether it was heard.
func foreign(dir string) int {
	for name, say := range map[string]string{
		"events.sock":    strings.Replace(marker, "marker", "foreign", 1),
		"clearance.sock": `{"method":"org.varlink.service.GetInfo"}` + "\x00",
	} {
		c, err := net.Dial("unix", filepath.Join(dir, name))
		if err != nil {
			fmt.Println(err)
			return 1
		}
		io.WriteString(c, say)
		c.(*net.UnixConn).CloseWrite()
		if answer, _ := io.ReadAll(c); len(answer) > 0 {
			fmt.Printf("%s answered: %q\n", name, answer)
			return 1
		}
	}
	return 0
}

// A process of another user is not heard, even where it can connect. Where
// this user may not start one, there is none to be afraid of in a test.
func TestForeignProcess(t *testing.T) {
	const nobody = 65534
	f := start(t, nil)
	sub := f.subscribe()
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 && mapped(string(ids), nobody) {
		dir := filepath.Dir(f.ingest)
		if err := errors.Join(os.Chmod(dir, 0o711), os.Chmod(f.ingest, 0o666), os.Chmod(f.clients, 0o666)); err != nil {
			t.Fatal(err)
		}
		opened, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer opened.Close()
		exe, err := os.Open("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		defer exe.Close()
		cmd := exec.Command("/proc/self/fd/4")
		cmd.ExtraFiles = []*os.File{opened, exe} // 3 and 4
		cmd.Env = []string{foreignEnv + "=/proc/self/fd/3"}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		if n := strings.Count(f.log.String(), "belongs to another user"); n != 2 {
			t.Errorf("%d refusals in the log:\n%s", n, f.log)
		}
	}
	dial(t, f.ingest).say(marker)
	diff(t, markerReply, sub.hear()) // and nothing before it
}

// mapped reports whether a user id exists in a user namespace.
func mapped(uidMap string, uid int) bool {
	for line := range strings.Lines(uidMap) {
		var inside, outside, n int
		if _, err := fmt.Sscan(line, &inside, &outside, &n); err == nil && inside <= uid && uid-inside < n {
			return true
		}
	}
	return false
}
