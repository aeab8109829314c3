package terminal

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/wire/clearance"
)

func TestConnections(t *testing.T) {
	refused, gone := errors.New("refused\x1b[2J"), fmt.Errorf("x: %w", clearance.ErrGone)
	for name, tt := range map[string]struct {
		all    bool
		events []error // of one hub
		want   string
	}{
		"nobody ever answered":        {false, []error{refused, refused, gone}, ""},
		"nobody has answered yet":     {true, []error{refused, refused, nil, nil}, "p: no connection to the hub, trying again: refused?[2J\np: connected again\n"},
		"lost":                        {false, []error{nil, refused, refused, nil, refused}, "p: no connection to the hub, trying again: refused?[2J\np: connected again\np: no connection to the hub, trying again: refused?[2J\n"},
		"goes with its container":     {false, []error{nil, gone, nil}, ""},
		"lost before it goes for now": {false, []error{nil, refused, gone, nil}, "p: no connection to the hub, trying again: refused?[2J\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var out output
			c := Connections{Out: &out, All: tt.all}
			for _, err := range tt.events {
				c.Changed("p", err)
			}
			if d := cmp.Diff(tt.want, out.String()); d != "" {
				t.Error(d)
			}
		})
	}
}
