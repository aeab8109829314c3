package dnsproxy

import (
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/nl/confine/confinetest"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// Both processes are confined, on every thread, also those that were started
// in the place of others; and names are answered.
func TestConfined(t *testing.T) {
	confinetest.Need(t)
	h := newHost(t)
	c := h.container("demo", bundle.Proxy, nil)
	c.start()
	for round := range 3 {
		server, keeper := c.pair()
		c.answers()
		for _, pid := range []int{server, keeper} {
			confinetest.Confined(t, pid, unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN, unix.CAP_NET_BIND_SERVICE)
		}
		killed := server
		if round == 1 {
			killed = keeper
		}
		kill(killed)
		h.within(20*time.Second, "another one", func() bool { s, k := c.pair(); return s != killed && k != killed })
	}
	confinetest.Ready(t, filepath.Join(c.dir, logName), 3)
	c.end()
}
