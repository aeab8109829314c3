package clearance

import (
	"context"
	"errors"
	"maps"
	"sync"
	"syscall"
	"time"
)

// Times of a Follow.
const (
	minWait       = time.Second          // before the first attempt to connect again
	maxWait       = 10 * time.Second     // before any: each waits twice as long as the one before
	answerTimeout = 5 * time.Second      // for the first answer of a hub
	listenTimeout = time.Second          // from when a socket is there until somebody listens
	listenPause   = 5 * time.Millisecond // between looks whether somebody does
	moveTimeout   = 2 * time.Second      // for the end of a connection to a socket that is gone
)

// ErrGone says that a hub's socket is not there any more.
var ErrGone = errors.New("the hub is gone")

var errMoved = errors.New("another hub has taken its place")

// Handler is told what becomes of a subscription. Its functions, which may be
// nil, are called one after the other; as long as one runs, events wait in the
// hub, which keeps a limited number of them.
type Handler struct {
	Connected func()      // the hub answers; the questions that are open come first
	Event     func(Event) // something has happened
	Lost      func(error) // the subscription has ended or could not be made; it is tried again

	// Poke, if there is one, ends the wait for the next attempt, and the ones
	// after that begin with short waits again.
	Poke <-chan struct{}
}

// Follow keeps a subscription to the hub at a path alive until ctx ends. When
// it is lost, events are until it is there again.
func Follow(ctx context.Context, path string, h Handler) {
	f := follower{path: path, Handler: h}
	f.run(ctx, f.subscribe)
}

// FollowAll follows all hubs of a user until ctx ends: those that Hubs finds.
// handler makes the Handler for a path. The last that it is told is that it lost
// its hub because of ErrGone; when the socket is back after that, handler is
// called again. When the socket is replaced by another one, the Handler stays.
// Handlers of several paths are called at the same time.
func FollowAll(ctx context.Context, runtimeDir string, handler func(path string) Handler) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type followed struct {
		hub         Hub
		moved, gone chan struct{}
		done        chan struct{}
	}
	now := make(map[string]*followed)
	before := make(map[string]*followed) // that are gone and have not ended
	return Hubs(ctx, runtimeDir, func(hubs []Hub) {
		maps.DeleteFunc(before, func(_ string, f *followed) bool { return isClosed(f.done) })
		there := make(map[string]bool)
		for _, h := range hubs {
			there[h.Path] = true
			f, ok := now[h.Path]
			if ok {
				if f.hub != h {
					f.hub = h
					select {
					case f.moved <- struct{}{}:
					default:
					}
				}
				continue
			}
			f = &followed{hub: h, moved: make(chan struct{}, 1), gone: make(chan struct{}), done: make(chan struct{})}
			now[h.Path] = f
			earlier := before[h.Path]
			wg.Go(func() {
				defer close(f.done)
				if earlier != nil {
					<-earlier.done
				}
				f := follower{path: h.Path, Handler: handler(h.Path), moved: f.moved, gone: f.gone}
				f.run(ctx, f.subscribe)
			})
		}
		for path, f := range now {
			if !there[path] {
				close(f.gone)
				delete(now, path)
				before[path] = f
			}
		}
	})
}

// follower is one Follow.
//
//	          subscribe                lost
//	waiting ─────────────► subscribed ──────► waiting
//	   ▲                                         │
//	   └── minWait, doubled up to maxWait; Poke ─┘
type follower struct {
	Handler
	path  string
	moved <-chan struct{} // tells that another socket is at the path; nil: never
	gone  <-chan struct{} // is closed when none is there any more; nil: never
}

// run makes attempts, which say whether they succeeded at first, until ctx
// ends or there is nothing more to attempt.
func (f *follower) run(ctx context.Context, attempt func(context.Context) (bool, error)) {
	poke := f.Poke
	wait := minWait
	for {
		connected, moved, err := f.watched(ctx, attempt)
		if ctx.Err() != nil {
			return
		}
		gone := isClosed(f.gone)
		if gone {
			err = ErrGone
		}
		if f.Lost != nil {
			f.Lost(err)
		}
		if gone {
			return
		}
		if connected {
			wait = minWait
		}
		if moved {
			wait = minWait
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
			wait = min(2*wait, maxWait)
		case <-f.moved:
			wait = minWait
		case <-f.gone:
			if f.Lost != nil {
				f.Lost(ErrGone)
			}
			return
		case _, ok := <-poke:
			wait = minWait
			if !ok {
				poke = nil
			}
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// watched is one attempt. When the socket is replaced or gone meanwhile, the
// hub behind it has a little time to say its last words. moved says that it
// was replaced.
func (f *follower) watched(ctx context.Context, attempt func(context.Context) (bool, error)) (connected, moved bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-f.moved:
			moved = true
		case <-f.gone:
		}
		select {
		case <-ctx.Done():
		case <-time.After(moveTimeout):
			cancel(errMoved)
		}
	})
	connected, err = attempt(ctx)
	cancel(nil)
	wg.Wait()
	return connected, moved, err
}

// subscribe connects to the hub and passes its events on. connected says that
// the hub answered.
func (f *follower) subscribe(ctx context.Context) (connected bool, err error) {
	c, err := answering(ctx, f.path)
	if err != nil {
		return false, err
	}
	defer c.Close()
	if f.Connected != nil {
		f.Connected()
	}
	return true, c.Subscribe(ctx, func(e Event) error {
		if f.Event != nil {
			f.Event(e)
		}
		return nil
	})
}

// answering is a connection to a hub that answers.
func answering(ctx context.Context, path string) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	begin := time.Now()
	c, err := Dial(ctx, path)
	for errors.Is(err, syscall.ECONNREFUSED) && time.Since(begin) < listenTimeout && ctx.Err() == nil {
		// A new socket exists a moment before its server listens.
		time.Sleep(listenPause)
		c, err = Dial(ctx, path)
	}
	if err != nil {
		return nil, err
	}
	if _, _, err := c.conn.Info(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}
