package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/applets/internal/child"
)

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func self(arg string, more ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{child.Name, arg}, more...)
	return cmd
}

// zombies are processes that have ended and whose parent, a server or keeper,
// did not wait for them.
func (h *host) zombies() (found []string) {
	h.Helper()
	for _, pid := range h.pids(all) {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			continue
		}
		for c := range strings.FieldsSeq(string(children)) {
			if stat, err := os.ReadFile("/proc/" + c + "/stat"); err == nil && strings.Contains(string(stat), ") Z ") {
				found = append(found, string(stat))
			}
		}
	}
	return found
}

func TestBackoff(t *testing.T) {
	b := backoff{pace: pace{first: 100 * time.Millisecond, longest: 5 * time.Second, healthy: 30 * time.Second}}
	for i, tt := range []struct{ lived, want time.Duration }{
		{0, 0}, {0, 100 * time.Millisecond}, {time.Second, 200 * time.Millisecond}, {0, 400 * time.Millisecond},
		{0, 800 * time.Millisecond}, {0, 1600 * time.Millisecond}, {0, 3200 * time.Millisecond}, {29 * time.Second, 5 * time.Second},
		{0, 5 * time.Second}, {30 * time.Second, 0}, {0, 100 * time.Millisecond}, {time.Hour, 0},
	} {
		if got := b.after(tt.lived); got != tt.want {
			t.Errorf("pause %d is %v, want %v", i, got, tt.want)
		}
	}
}

// What a process says about the end, and its own end, are told apart.
func TestPeer(t *testing.T) {
	for name, tt := range map[string]struct {
		do   func(other *peer, cancel context.CancelCauseFunc)
		want error
	}{
		"said":      {func(o *peer, _ context.CancelCauseFunc) { o.end() }, errEnd},
		"died":      {func(o *peer, _ context.CancelCauseFunc) { o.close() }, nil},
		"nonsense":  {func(o *peer, _ context.CancelCauseFunc) { o.f.Write([]byte("x")) }, nil},
		"cancelled": {func(_ *peer, cancel context.CancelCauseFunc) { cancel(errLeave) }, errLeave},
	} {
		t.Run(name, func(t *testing.T) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			ours, other := &peer{f: os.NewFile(uintptr(fds[0]), "")}, &peer{f: os.NewFile(uintptr(fds[1]), "")}
			defer ours.close()
			defer other.close()
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			got := make(chan error)
			go func() { got <- ours.wait(ctx) }()
			tt.do(other, cancel)
			if err := <-got; !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
}
