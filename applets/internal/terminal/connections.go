package terminal

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/wire/clearance"
)

const (
	// outage is how long a connection is lost before it is worth a word: that
	// of a container that ends is, for a moment, and of a hub that is started
	// again.
	outage = 2 * time.Second
	// maxConnections bounds the hubs of which is remembered what was said.
	maxConnections = 4096
)

// Connections tells people what becomes of the connections to hubs: that one
// is lost, and that it is back. A hub that goes with its container is not
// worth a word, nor is a socket at which nobody has answered yet, unless All.
type Connections struct {
	Out io.Writer // where questions are not
	All bool      // the hubs were named: say so in any case

	mu   sync.Mutex
	hubs map[string]*connection
}

// connection is that to one hub.
type connection struct {
	was   bool        // connected, at some time
	lost  *time.Timer // until that is said; nil if it is not lost
	why   error
	later bool // it was said: so is that it is back
}

// Changed is for subscriber.Hubs.
func (c *Connections) Changed(path string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.hubs[path]
	if h == nil {
		if c.hubs == nil || len(c.hubs) >= maxConnections {
			c.hubs = make(map[string]*connection)
		}
		h = &connection{}
		c.hubs[path] = h
	}
	gone := errors.Is(err, clearance.ErrGone)
	if (err == nil || gone) && h.lost != nil {
		h.lost.Stop()
		h.lost = nil
	}
	switch {
	case gone:
		h.was = false
		if !h.later {
			delete(c.hubs, path)
		}
	case err == nil:
		h.was = true
		if h.later {
			h.later = false
			c.say("%s: connected again", path)
		}
	case h.lost == nil && !h.later && (h.was || c.All):
		h.why = err
		var t *time.Timer
		t = time.AfterFunc(outage, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if h.lost == t {
				h.lost, h.later = nil, true
				c.say("%s: no connection to the hub, trying again: %v", path, h.why)
			}
		})
		h.lost = t
	default:
		h.why = err
	}
}

func (c *Connections) say(format string, args ...any) {
	fmt.Fprintln(c.Out, cmdenv.Printable(fmt.Sprintf(format, args...)))
}
