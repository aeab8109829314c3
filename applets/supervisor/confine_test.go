package supervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/nl/confine/confinetest"
	"github.com/terok-ai/terok-box/wire/clearance"
)

// Both processes are confined, on every thread, also those that were started
// in the place of others; and what they are for goes on.
func TestConfined(t *testing.T) {
	abi := confinetest.Need(t)
	h := newHost(t)
	c := h.container("demo", nil)
	c.start()
	for round := range 3 {
		server, keeper := c.pair()
		c.send(fmt.Sprintf("198.51.100.%d:9", round+1))
		if err := c.answer(c.subscribe().asked(fmt.Sprintf("198.51.100.%d", round+1)), clearance.Allow); err != nil {
			t.Errorf("answer: %v", err)
		}
		for _, pid := range []int{server, keeper} {
			confinetest.Confined(t, pid, unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN)
		}
		killed := server
		if round == 1 {
			killed = keeper
		}
		kill(killed)
		c.within(20*time.Second, "another one", func() bool { s, k := c.pair(); return s != killed && k != killed })
	}
	want := fmt.Sprintf("confined=\"landlock %d, seccomp, no new privileges\"", abi)
	var log []byte
	c.within(20*time.Second, "three processes that say that they are ready", func() bool {
		var err error
		if log, err = os.ReadFile(filepath.Join(c.dir, logName)); err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(log), "msg=ready") >= 3
	})
	if n, ready := strings.Count(string(log), want), strings.Count(string(log), "msg=ready"); n != ready {
		t.Errorf("%d of %d processes say %s:\n%s", n, ready, want, log)
	}
	c.end()
}
