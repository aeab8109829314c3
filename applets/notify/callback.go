package notify

import (
	"context"
	"sync"
)

// Callback is a notifier that shows popups to a function of the program, which
// answers with Invoke and Dismiss.
type Callback struct {
	show func(id uint32, p Popup)

	mu     sync.Mutex
	ended  bool
	last   uint32
	popups map[uint32]Popup
}

// NewCallback is a notifier that calls show with each popup and its id, which
// is that of the popup it replaces, or a new one: 1, 2, 3 …
func NewCallback(show func(id uint32, p Popup)) *Callback {
	return &Callback{show: show, popups: make(map[uint32]Popup)}
}

// Notify calls the function.
func (c *Callback) Notify(_ context.Context, p Popup) (uint32, error) {
	p = p.bounded()
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return 0, nil
	}
	id := p.Replaces
	if id == 0 {
		c.last++
		id = c.last
	}
	c.popups[id] = p
	c.mu.Unlock()
	c.show(id, p)
	return id, nil
}

// Invoke chooses an action of a popup, as if somebody had clicked on it. It
// says whether the popup has it.
func (c *Callback) Invoke(id uint32, key string) bool {
	c.mu.Lock()
	p := c.popups[id]
	c.mu.Unlock()
	for _, a := range p.Actions {
		if a.Key == key {
			if p.Chosen != nil {
				p.Chosen(key)
			}
			return true
		}
	}
	return false
}

// Dismiss takes a popup away, as somebody who does not want to see it. It says
// whether it was there.
func (c *Callback) Dismiss(id uint32) bool {
	c.mu.Lock()
	p, ok := c.popups[id]
	delete(c.popups, id)
	c.mu.Unlock()
	if ok && p.Closed != nil {
		p.Closed(Dismissed)
	}
	return ok
}

// Close forgets a popup.
func (c *Callback) Close(_ context.Context, id uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.popups, id)
	return nil
}

// Disconnect forgets all.
func (c *Callback) Disconnect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	clear(c.popups)
}
