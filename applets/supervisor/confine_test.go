package supervisor

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/nl/confine/confinetest"
	"github.com/terok-ai/terok-box/wire/clearance"
)

// Both processes are confined, on every thread, also those that were started
// in the place of others; and what they are for goes on.
func TestConfined(t *testing.T) {
	confinetest.Need(t)
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
	confinetest.Ready(t, filepath.Join(c.dir, logName), 3)
	c.end()
}
