// Package confined lets a program that people or a service manager start
// confine itself: it executes itself again, in the same process, with nothing
// within its reach but what its rules name.
//
// It must never import a package of an applet, nor one that faces people.
package confined

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/nl/confine"
)

// mark is the variable by which the program knows that it was executed again:
// it holds the number of the process.
const mark = "TEROK_CONFINED"

// Program confines the program, whose rules these are, and returns in its
// second life. Before it the program has opened nothing that is not inherited.
// What a kernel lacks is left out, and said in the log.
func Program(env *cmdenv.Env, rules confine.Rules, log *slog.Logger) error {
	if env.Again == nil {
		return nil
	}
	pid := strconv.Itoa(os.Getpid())
	if env.Get(mark) != pid {
		runtime.LockOSThread() // the thread that executes is the one that stays
		if err := rules.Here(); err != nil {
			return err
		}
		env.Vars[mark] = pid
		return fmt.Errorf("confine this program: %w", env.Again())
	}
	delete(env.Vars, mark)
	if err := rules.Filter(); err != nil { // as under a manager that filters itself
		log.Warn("this program may do more than it should", "err", err)
	}
	log.Debug("confined", "by", confine.Status())
	return nil
}
