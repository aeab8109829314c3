package notify

import (
	"testing"

	"github.com/terok-ai/terok-box/applets/internal/examples"
)

// What README and the man pages show can be typed.
func TestExamples(t *testing.T) {
	shown := 0
	for _, e := range examples.All(t) {
		for _, words := range e.Commands(t, "terok-shield", "clearance-hub", "clearance-verdict", Name, "terok-box") {
			args, watches := words[1:], true
			switch {
			case words[0] == "clearance-hub" && args[0] == "notify":
				args, watches = args[1:], false
			case words[0] != Name:
				continue
			}
			shown++
			if _, err := parse(args, watches); err != nil {
				t.Errorf("%s:%d: %q: %v", e.File, e.Line, words, err)
			}
		}
	}
	if shown < 3 {
		t.Errorf("%d examples only", shown)
	}
}
