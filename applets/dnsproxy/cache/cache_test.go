package cache

import (
	"runtime"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New[string, int](10, 100)
		c.Put("a", 1, 10, time.Now().Add(time.Second))
		c.Put("b", 2, 20, time.Now().Add(2*time.Second))
		c.Put("c", 3, 30, time.Now()) // expired already
		if v, ok := c.Get("a"); !ok || v != 1 {
			t.Errorf("a: %v, %v", v, ok)
		}
		if _, ok := c.Get("c"); ok {
			t.Error("what has expired was stored")
		}
		time.Sleep(time.Second)
		if _, ok := c.Get("a"); ok {
			t.Error("a is there though it has expired")
		}
		if v, ok := c.Get("b"); !ok || v != 2 {
			t.Errorf("b: %v, %v", v, ok)
		}
		if n, bytes := c.Size(); n != 1 || bytes != 20 {
			t.Errorf("%d entries of %d bytes", n, bytes)
		}
		c.Put("b", 4, 5, time.Now().Add(time.Second))
		if v, _ := c.Get("b"); v != 4 {
			t.Errorf("b: %v", v)
		}
		c.Put("b", 5, 101, time.Now().Add(time.Second)) // too large
		if v, ok := c.Get("b"); ok {
			t.Errorf("an old value of b: %v", v)
		}
	})
}

func TestTheOldestGoes(t *testing.T) {
	later := time.Now().Add(time.Hour)
	c := New[int, string](3, 1000)
	for i := range 3 {
		c.Put(i, "", 1, later)
	}
	c.Get(0)
	c.Put(3, "", 1, later) // 1 goes
	for i, want := range []bool{true, false, true, true} {
		if _, ok := c.Get(i); ok != want {
			t.Errorf("%d is there: %v", i, ok)
		}
	}
	c.Put(4, "", 999, later) // only one of 1 byte can stay: the one used last
	for i, want := range []bool{false, false, false, true, true} {
		if _, ok := c.Get(i); ok != want {
			t.Errorf("after a large one, %d is there: %v", i, ok)
		}
	}
	c.Purge()
	if n, bytes := c.Size(); n != 0 || bytes != 0 {
		t.Errorf("%d entries of %d bytes after Purge", n, bytes)
	}
	c.Put(1, "", 1, later)
	if _, ok := c.Get(1); !ok {
		t.Error("nothing can be stored after Purge")
	}
}

// A million distinct keys take no more memory than the bound.
func TestMillionKeys(t *testing.T) {
	c := New[string, []byte](10_000, 8<<20)
	later := time.Now().Add(time.Hour)
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var before uint64
	for i := range 1_000_000 {
		c.Put("name"+strconv.Itoa(i), make([]byte, 100), 100, later)
		if i == 50_000 {
			before = heap()
		}
	}
	if after := heap(); after > before+before/2+1<<20 {
		t.Errorf("%d bytes of heap after 50,000 keys, %d after a million", before, after)
	}
	if n, bytes := c.Size(); n != 10_000 || bytes != 1_000_000 {
		t.Errorf("%d entries of %d bytes", n, bytes)
	}
}

func TestConcurrentUse(t *testing.T) {
	c := New[int, int](8, 100)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				c.Put(i%16, g, int64(i%30), time.Now().Add(time.Hour))
				c.Get(i % 13)
				if i%500 == 0 {
					c.Purge()
				}
				if n, bytes := c.Size(); n > 8 || bytes > 100 {
					t.Errorf("%d entries of %d bytes", n, bytes)
				}
			}
		})
	}
	wg.Wait()
}
