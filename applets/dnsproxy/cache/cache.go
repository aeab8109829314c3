// Package cache is a map whose entries expire, bounded in number and bytes:
// what was not used for longest is forgotten first.
//
// It must never know what it holds, nor import anything but the standard
// library.
package cache

import (
	"sync"
	"time"
)

// Cache is such a map. It is safe for concurrent use.
type Cache[K comparable, V any] struct {
	maxEntries int
	maxBytes   int64

	mu      sync.Mutex
	entries map[K]*entry[K, V]
	root    entry[K, V] // of a ring: next is the one used last, prev the one not used for longest
	bytes   int64
}

type entry[K comparable, V any] struct {
	prev, next *entry[K, V]
	key        K
	value      V
	bytes      int64
	expires    time.Time
}

// New makes a Cache of at most so many entries and bytes.
func New[K comparable, V any](entries int, bytes int64) *Cache[K, V] {
	c := &Cache[K, V]{maxEntries: entries, maxBytes: bytes, entries: make(map[K]*entry[K, V])}
	c.root.prev, c.root.next = &c.root, &c.root
	return c
}

// Get is what is stored for a key and has not expired.
func (c *Cache[K, V]) Get(key K) (value V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[key]
	if e == nil {
		return value, false
	}
	if !time.Now().Before(e.expires) {
		c.remove(e)
		return value, false
	}
	e.unlink()
	c.front(e)
	return e.value, true
}

// Put stores a value, which counts as so many bytes, until it expires. One
// that is larger than the cache, or expired already, is not stored; what was
// stored for the key is gone in any case.
func (c *Cache[K, V]) Put(key K, value V, bytes int64, expires time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[key]; e != nil {
		c.remove(e)
	}
	if bytes > c.maxBytes || !time.Now().Before(expires) {
		return
	}
	e := &entry[K, V]{key: key, value: value, bytes: bytes, expires: expires}
	c.entries[key] = e
	c.bytes += bytes
	c.front(e)
	for len(c.entries) > c.maxEntries || c.bytes > c.maxBytes {
		c.remove(c.root.prev)
	}
}

// Purge forgets everything.
func (c *Cache[K, V]) Purge() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries = make(map[K]*entry[K, V]) // a map that is cleared keeps its size
	c.root.prev, c.root.next = &c.root, &c.root
	c.bytes = 0
}

// Size is how many entries there are, expired ones among them, and their
// bytes.
func (c *Cache[K, V]) Size() (entries int, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries), c.bytes
}

func (c *Cache[K, V]) remove(e *entry[K, V]) {
	e.unlink()
	delete(c.entries, e.key)
	c.bytes -= e.bytes
}

func (c *Cache[K, V]) front(e *entry[K, V]) {
	e.prev, e.next = &c.root, c.root.next
	e.prev.next, e.next.prev = e, e
}

func (e *entry[K, V]) unlink() { e.prev.next, e.next.prev = e.next, e.prev }
