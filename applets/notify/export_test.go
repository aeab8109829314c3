package notify

import (
	"fmt"
	"slices"
	"testing"
)

// stage is what an example has for a test.
type stage struct {
	testing.TB
	after []func()
}

func (*stage) Helper()            {}
func (s *stage) Cleanup(f func()) { s.after = append(s.after, f) }
func (*stage) Fatal(a ...any)     { panic(fmt.Sprint(a...)) }

// Session is a session of somebody who clicks on the same action of every popup:
// its environment variables, and what ends it.
func Session(key string) (vars map[string]string, end func()) {
	s := &stage{}
	b := startBus(s)
	d := b.show(notificationsName, usual...)
	d.does("Notify", func(c call) []any {
		d.last++
		d.replies(c, d.last)
		if slices.Contains(c.Body[5].([]string), key) {
			d.choose(d.last, key)
		}
		return nil
	})
	return b.vars(), func() {
		for _, f := range slices.Backward(s.after) {
			f()
		}
	}
}
