package proxy

import (
	"container/list"
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
	then []func(*result) // of those who wait for it
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

// get is the answer from the cache. If there is none it is nil, and then is
// called with the one that ask finds: before get returns, or in another
// goroutine, for which others wait meanwhile. ask is called once for all who
// want the same at the same time; what it is given it must call in any case,
// sooner or later.
func (c *cache) get(k key, ask func(found func(*result)), then func(*result)) *result {
	c.mu.Lock()
	if place, ok := c.entries[k]; ok {
		e := place.Value.(*cached)
		if time.Now().Before(e.res.until) {
			c.order.MoveToFront(place)
			c.mu.Unlock()
			return e.res
		}
		c.remove(place)
	}
	f, ok := c.flights[k]
	if !ok {
		f = &flight{}
		c.flights[k] = f
	}
	f.then = append(f.then, then)
	c.mu.Unlock()
	if ok {
		return nil
	}
	ask(func(res *result) {
		c.mu.Lock()
		if c.flights[k] == f { // else it is forgotten
			delete(c.flights, k)
			c.put(k, res)
		}
		c.mu.Unlock()
		for _, then := range f.then {
			then(res)
		}
	})
	return nil
}

// forget empties the cache. What is being asked is for those alone who wait
// for it already.
func (c *cache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.entries)
	clear(c.flights)
	c.order.Init()
	c.bytes = 0
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
