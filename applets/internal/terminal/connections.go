package terminal

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/wire/clearance"
)

// Connections tells people what becomes of the connections to hubs: of one
// that is lost, and that it is back. A hub that goes with its container is not
// worth a word, nor is a socket that nobody has answered at, unless All.
type Connections struct {
	Out io.Writer // where questions are not
	All bool      // the hubs were named: say in any case when there is no connection

	mu   sync.Mutex
	lost map[string]string // why, as it was said; "" of one that is connected
}

// Changed is for subscriber.Hubs.
func (c *Connections) Changed(path string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was, known := c.lost[path]
	if c.lost == nil {
		c.lost = make(map[string]string)
	}
	switch {
	case err == nil:
		c.lost[path] = ""
		if was != "" {
			c.say("%s: connected again", path)
		}
	case errors.Is(err, clearance.ErrGone):
		delete(c.lost, path)
	case was == "" && (known || c.All):
		c.lost[path] = err.Error()
		c.say("%s: no connection to the hub, trying again: %v", path, err)
	}
}

func (c *Connections) say(format string, args ...any) {
	fmt.Fprintln(c.Out, cmdenv.Printable(fmt.Sprintf(format, args...)))
}
