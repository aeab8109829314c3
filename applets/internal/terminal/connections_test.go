package terminal

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/wire/clearance"
)

func TestConnections(t *testing.T) {
	lost, refused, gone := errors.New("hung up"), errors.New("refused\x1b[2J"), fmt.Errorf("x: %w", clearance.ErrGone)
	said := "p: no connection to the hub, trying again: refused?[2J\n"
	for name, tt := range map[string]struct {
		all    bool
		events []any // of one hub: what Changed is told, and how long it takes until the next; nil is connected
		want   string
	}{
		"nobody ever answered":     {false, []any{refused, 10 * outage, refused, 10 * outage, gone}, ""},
		"nobody has answered yet":  {true, []any{refused, outage, refused, 10 * outage, nil, nil}, said + "p: connected again\n"},
		"lost":                     {false, []any{nil, lost, outage / 2, refused, outage, refused, outage, nil, refused, outage}, said + "p: connected again\n" + said},
		"lost for a moment":        {false, []any{nil, lost, outage - 1, nil, 10 * outage, lost, gone, 10 * outage, nil}, ""},
		"ends with its container":  {true, []any{nil, lost, outage / 2, gone, 10 * outage}, ""},
		"gone and back":            {false, []any{nil, gone, nil, 10 * outage}, ""},
		"lost, then gone and back": {false, []any{nil, refused, outage, gone, outage, refused, 10 * outage, nil}, said + "p: connected again\n"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out output
				c := Connections{Out: &out, All: tt.all}
				for _, e := range tt.events {
					switch e := e.(type) {
					case time.Duration:
						time.Sleep(e)
						synctest.Wait()
					case error:
						c.Changed("p", e)
					default:
						c.Changed("p", nil)
					}
				}
				if d := cmp.Diff(tt.want, out.String()); d != "" {
					t.Error(d)
				}
			})
		})
	}
	var c Connections
	for i := range 2 * maxConnections {
		c.Changed(fmt.Sprint(i), nil)
	}
	if len(c.hubs) > maxConnections {
		t.Errorf("%d are remembered", len(c.hubs))
	}
}
