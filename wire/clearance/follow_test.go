package clearance

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The waits between attempts, what ends them, and what makes them short again.
func TestWaits(t *testing.T) {
	refused := errors.New("refused")
	after := func(d time.Duration, f func()) { time.AfterFunc(d, f) }
	for _, c := range []struct {
		name    string
		prepare func(f *follower, poke, moved chan struct{}, gone func())
		attempt func(ctx context.Context, n int) (bool, error)
		times   []time.Duration // of the attempts, until ten minutes are over or there are ten
	}{
		{
			name: "nobody answers",
			attempt: func(context.Context, int) (bool, error) {
				return false, refused
			},
			times: []time.Duration{0, 1, 3, 7, 15, 25, 35, 45, 55, 65},
		},
		{
			name: "success makes waits short",
			attempt: func(_ context.Context, n int) (bool, error) {
				return n == 4, refused
			},
			times: []time.Duration{0, 1, 3, 7, 15, 16, 18, 22, 30, 40},
		},
		{
			name: "poke",
			prepare: func(_ *follower, poke, _ chan struct{}, _ func()) {
				after(20*time.Second, func() { poke <- struct{}{} })
			},
			attempt: func(context.Context, int) (bool, error) {
				return false, refused
			},
			times: []time.Duration{0, 1, 3, 7, 15, 20, 21, 23, 27, 35},
		},
		{
			name: "closed poke",
			prepare: func(_ *follower, poke, _ chan struct{}, _ func()) {
				after(20*time.Second, func() { close(poke) })
			},
			attempt: func(context.Context, int) (bool, error) {
				return false, refused
			},
			times: []time.Duration{0, 1, 3, 7, 15, 20, 21, 23, 27, 35},
		},
		{
			name: "another socket while waiting",
			prepare: func(_ *follower, _, moved chan struct{}, _ func()) {
				after(20*time.Second, func() { moved <- struct{}{} })
			},
			attempt: func(context.Context, int) (bool, error) {
				return false, refused
			},
			times: []time.Duration{0, 1, 3, 7, 15, 20, 21, 23, 27, 35},
		},
		{
			name: "another socket, and the hub at the first one ends",
			prepare: func(_ *follower, _, moved chan struct{}, _ func()) {
				after(20*time.Second, func() { moved <- struct{}{} })
			},
			attempt: func(ctx context.Context, n int) (bool, error) {
				if n > 0 {
					<-ctx.Done()
				}
				time.Sleep(21 * time.Second)
				return true, refused
			},
			times: []time.Duration{0, 21},
		},
		{
			name: "another socket, and the hub at the first one stays",
			prepare: func(_ *follower, _, moved chan struct{}, _ func()) {
				after(20*time.Second, func() { moved <- struct{}{} })
			},
			attempt: func(ctx context.Context, _ int) (bool, error) {
				<-ctx.Done()
				return true, context.Cause(ctx)
			},
			times: []time.Duration{0, 22},
		},
		{
			name: "gone while waiting",
			prepare: func(_ *follower, _, _ chan struct{}, gone func()) {
				after(4*time.Second, gone)
			},
			attempt: func(context.Context, int) (bool, error) {
				return false, refused
			},
			times: []time.Duration{0, 1, 3},
		},
		{
			name: "gone, and the hub stays",
			prepare: func(_ *follower, _, _ chan struct{}, gone func()) {
				after(4*time.Second, gone)
			},
			attempt: func(ctx context.Context, _ int) (bool, error) {
				<-ctx.Done()
				return true, context.Cause(ctx)
			},
			times: []time.Duration{0},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
				defer cancel()
				poke, moved, gone := make(chan struct{}), make(chan struct{}), make(chan struct{})
				var lost []error
				f := &follower{moved: moved, gone: gone, Handler: Handler{Poke: poke, Lost: func(err error) { lost = append(lost, err) }}}
				if c.prepare != nil {
					c.prepare(f, poke, moved, func() { close(gone) })
				}
				begin := time.Now()
				var times []time.Duration
				f.run(ctx, func(ctx context.Context) (bool, error) {
					times = append(times, time.Since(begin)/time.Second)
					n := len(times) - 1
					if n == 9 {
						cancel()
					}
					return c.attempt(ctx, n)
				})
				if diff := cmp.Diff(c.times, times); diff != "" {
					t.Errorf("attempts (-want +got):\n%s", diff)
				}
				// Each is told of, but the one that ends with the context.
				ended := isClosed(gone)
				if want := len(times); !ended && len(lost) != want-1 || ended && !errors.Is(lost[len(lost)-1], ErrGone) {
					t.Errorf("%d attempts: lost %v", want, lost)
				}
			})
		})
	}
}

var lastLost atomic.Value

// told is what Handlers are told, by path.
type told struct {
	t      *testing.T
	events chan string
}

func (h *told) handler(path string) Handler {
	name := filepath.Base(path)
	return Handler{
		Connected: func() { h.events <- name + " connected" },
		Event:     func(e Event) { h.events <- name + " " + e.RequestID },
		Lost: func(err error) {
			what := " lost"
			lastLost.Store(err.Error())
			if errors.Is(err, ErrGone) {
				what = " gone"
			}
			h.events <- name + what
		},
	}
}

func (h *told) wants(want string) {
	h.t.Helper()
	if got := get(h.t, h.events); got != want {
		h.t.Fatalf("%s, want %s: %v", got, want, lastLost.Load())
	}
}

// A hub that is there, ends, and comes back.
func TestFollow(t *testing.T) {
	path := SocketPath(t.TempDir(), "a")
	ctx, cancel := context.WithCancel(context.Background())
	h := &told{t, make(chan string, 1000)}
	handler := h.handler(path)
	poke := make(chan struct{}, 1)
	handler.Poke = poke
	var wg sync.WaitGroup
	wg.Go(func() { Follow(ctx, path, handler) })
	defer func() { cancel(); wg.Wait() }()
	h.wants("a.sock lost")
	for i := range 3 {
		f := newFake()
		f.events <- Event{RequestID: "1"}
		stop := serve(t, path, f)
		poke <- struct{}{}
		begin := time.Now()
		h.wants("a.sock connected")
		h.wants("a.sock 1")
		if took := time.Since(begin); i > 0 && took > minWait/2 {
			t.Errorf("connected after %v", took)
		}
		stop()
		h.wants("a.sock lost")
	}
	cancel()
	wg.Wait()
	if len(h.events) > 0 {
		t.Errorf("then %s", <-h.events)
	}
}

// A Handler without functions is good for nothing, but does no harm.
func TestFollowSilently(t *testing.T) {
	path := SocketPath(t.TempDir(), "a")
	f := newFake()
	f.events <- Event{}
	serve(t, path, f)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { Follow(ctx, path, Handler{}) })
	get(t, f.subscribed)
	cancel()
	wg.Wait()
}

// All hubs are followed, each from when it is there until it is gone.
func TestFollowAll(t *testing.T) {
	dir := private(t)
	ctx, cancel := context.WithCancel(context.Background())
	h := &told{t, make(chan string, 1000)}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := FollowAll(ctx, dir, h.handler); err != nil {
			t.Error(err)
		}
	})
	defer func() { cancel(); wg.Wait() }()

	a, b := newFake(), newFake()
	stopA := serve(t, SocketPath(dir, "a"), a)
	h.wants("a.sock connected")
	serve(t, filepath.Join(dir, "terok", "clearance", "b", "hub.sock"), b)
	h.wants("hub.sock connected")
	user := newFake()
	serve(t, UserSocketPath(dir), user)
	h.wants("terok-clearance.sock connected")
	for i, f := range []*fake{a, b, user} {
		f.events <- Event{RequestID: "1"}
		get(t, f.passed)
		h.wants([]string{"a.sock 1", "hub.sock 1", "terok-clearance.sock 1"}[i])
	}

	// A hub's last words are heard, though its socket is gone at once.
	for i := range 100 {
		if i > 0 {
			a = newFake()
			stopA = serve(t, SocketPath(dir, "a"), a)
			h.wants("a.sock connected")
		}
		get(t, a.subscribed)
		for _, id := range []string{"last", "words"} {
			a.events <- Event{RequestID: id}
			get(t, a.passed)
		}
		stopA()
		h.wants("a.sock last")
		h.wants("a.sock words")
		// That the connection has ended may be known before that the socket
		// is gone.
		if got := get(t, h.events); got == "a.sock lost" {
			h.wants("a.sock gone")
		} else if got != "a.sock gone" {
			t.Fatal(got)
		}
	}
}

// A hub that was killed and started again is found at once, and so is one that
// took the place of another that goes on.
func TestFollowReplaced(t *testing.T) {
	dir := t.TempDir()
	path := SocketPath(dir, "a")
	h := &told{t, make(chan string, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()
	stop := serve(t, path, newFake())
	wg.Go(func() {
		if err := FollowAll(ctx, dir, h.handler); err != nil {
			t.Error(err)
		}
	})
	h.wants("a.sock connected")

	// Another one takes the path, as if in one step: first over a hub that
	// goes on, then over one that ended.
	for range 2 {
		other := filepath.Join(dir, "elsewhere", "s")
		second := newFake()
		second.events <- Event{RequestID: "2"}
		stopSecond := serve(t, other, second)
		if err := os.Rename(other, path); err != nil {
			t.Fatal(err)
		}
		h.wants("a.sock lost")
		h.wants("a.sock connected")
		h.wants("a.sock 2")
		stop()
		stop = stopSecond
	}
}
