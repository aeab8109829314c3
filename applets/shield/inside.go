package shield

import (
	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/shielded"
	"github.com/terok-ai/terok-box/wire/control"
)

// RunInside is the private program that does one operation inside a
// container's user namespace.
func RunInside(env *cmdenv.Env, _ []string) int {
	return shielded.RunInside(env, map[control.Op]func() error{opProbe: probe})
}
