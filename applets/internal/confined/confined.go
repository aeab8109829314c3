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

// Again says whether the program is in its second life, which Program has not
// begun yet. In its first one what it starts must not see the mark of another.
func Again(env *cmdenv.Env) bool {
	if env.Get(mark) == strconv.Itoa(os.Getpid()) {
		return true
	}
	delete(env.Vars, mark)
	return false
}

// Program confines the program of that name, whose rules these are, and returns
// in its second life. Before it the program has opened nothing that is not
// inherited, and does not listen for signals: of one that came between, nobody
// would hear. What a kernel lacks is left out, and said in the log.
func Program(env *cmdenv.Env, name string, rules confine.Rules, log *slog.Logger) error {
	if env.Again == nil {
		return nil
	}
	if !Again(env) {
		runtime.LockOSThread() // the thread that executes is the one that stays
		if err := rules.Here(); err != nil {
			return err
		}
		env.Vars[mark] = strconv.Itoa(os.Getpid())
		return fmt.Errorf("confine this program: %w", env.Again())
	}
	delete(env.Vars, mark)
	cmdenv.Entitle(name)
	if err := rules.Filter(); err != nil { // as under a manager that filters itself
		log.Warn("this program may do more than it should", "err", err)
	}
	log.Debug("confined", "by", confine.Status())
	return nil
}
