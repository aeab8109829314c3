package proxy

import (
	"container/list"
	"context"
	"sync"
	"time"
)

const (
	maxEntries = 10_000
	maxBytes   = 4 << 20
	// entryOverhead is about what an entry takes besides its records, in
	// bytes.
	entryOverhead = 400
)

// key is what answers are the same for.
type key struct {
	name   string
	qtype  uint16
	do, cd bool
}

// cache keeps answers for as long as they are good, and has one question at a
// time asked for each of them.
type cache struct {
	mu      sync.Mutex
	entries map[key]*list.Element
	order   *list.List // of *cached, the latest first
	bytes   int64
	flights map[key]*flight
}

type cached struct {
	key key
	res *result
}

// flight is a question that is being asked.
type flight struct {
	done chan struct{}
	res  *result
}

func newCache() *cache {
	return &cache{entries: map[key]*list.Element{}, order: list.New(), flights: map[key]*flight{}}
}

func (c *cache) size() (entries int, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.order.Len(), c.bytes
}

// has reports whether get would not have to ask.
func (c *cache) has(k key) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	place, ok := c.entries[k]
	return ok && time.Now().Before(place.Value.(*cached).res.until)
}

// peek is the answer from the cache, or nil.
func (c *cache) peek(k key) *result {
	c.mu.Lock()
	defer c.mu.Unlock()
	place, ok := c.entries[k]
	if !ok {
		return nil
	}
	res := place.Value.(*cached).res
	if !time.Now().Before(res.until) {
		return nil
	}
	c.order.MoveToFront(place)
	return res
}

// get is the answer from the cache, or else what ask finds, which is called
// once for all who want the same at the same time. ask must come to an end by
// itself.
func (c *cache) get(ctx context.Context, k key, ask func() *result) (res *result, hit bool, err error) {
	c.mu.Lock()
	if place, ok := c.entries[k]; ok {
		e := place.Value.(*cached)
		if time.Now().Before(e.res.until) {
			c.order.MoveToFront(place)
			c.mu.Unlock()
			return e.res, true, nil
		}
		c.remove(place)
	}
	f, ok := c.flights[k]
	if !ok {
		f = &flight{done: make(chan struct{})}
		c.flights[k] = f
		go func() {
			res := ask()
			c.mu.Lock()
			f.res = res
			delete(c.flights, k)
			c.put(k, res)
			c.mu.Unlock()
			close(f.done)
		}()
	}
	c.mu.Unlock()
	select {
	case <-f.done:
		return f.res, false, nil
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
}

// put adds an answer. The lock is held.
func (c *cache) put(k key, res *result) {
	if !time.Now().Before(res.until) {
		return
	}
	if place, ok := c.entries[k]; ok {
		c.remove(place)
	}
	c.entries[k] = c.order.PushFront(&cached{k, res})
	c.bytes += cost(k, res)
	for c.order.Len() > maxEntries || c.bytes > maxBytes {
		c.remove(c.order.Back())
	}
}

func (c *cache) remove(place *list.Element) {
	e := place.Value.(*cached)
	c.order.Remove(place)
	delete(c.entries, e.key)
	c.bytes -= cost(e.key, e.res)
}

func cost(k key, res *result) int64 { return int64(entryOverhead + 2*len(k.name) + res.size) }
