package podman

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/resources"
)

// desktopFile is one of those that show questions on the desktop.
type desktopFile struct {
	xdg, fallback string // the base directory, as cmdenv.Env.XDG has it
	path          string // below that
	text          []byte
}

// desktopNames are the names of these files.
func desktopNames() []string {
	var names []string
	for _, f := range desktopFiles("") {
		names = append(names, filepath.Base(f.path))
	}
	return names
}

func desktopFiles(program string) []desktopFile {
	replaced := func(text, program string) []byte { return []byte(strings.ReplaceAll(text, resources.Program, program)) }
	return []desktopFile{
		{"CONFIG", ".config", "systemd/user/terok-clearance-notify.service", replaced(resources.Unit(), unitWord(program))},
		{"CONFIG", ".config", "systemd/user/graphical-session.target.d/50-terok-clearance-notify.conf", []byte(resources.UnitWanted())},
		{"CONFIG", ".config", "autostart/terok-clearance-notify.desktop", replaced(resources.Autostart(), entryWord(program))},
		{"DATA", ".local/share", "icons/hicolor/scalable/apps/terok.svg", resources.Logo()},
		{"DATA", ".local/share", "icons/hicolor/symbolic/apps/terok-symbolic.svg", resources.SymbolicIcon()},
	}
}

// unitWord is a word of a command line as systemd.service(5) has it.
func unitWord(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$").Replace(s) + `"`
}

// entryWord is that as the Desktop Entry Specification has it: quoted, and that
// as a string of the file.
func entryWord(s string) string {
	quoted := `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "`", "\\`", "$", `\$`).Replace(s) + `"`
	return strings.NewReplacer(`\`, `\\`, "%", "%%").Replace(quoted)
}

// InstallDesktop has the questions of this user's containers shown on the
// desktop, from the next login on. Install comes before it, and afterwards keeps
// its files as they should be.
func InstallDesktop(env *cmdenv.Env) (Report, error) { return installDesktop(systemOf(env)) }

func installDesktop(s system) (r Report, err error) {
	if s.env.EUID == 0 {
		return r, errors.New("--desktop is for the user whose desktop it is: run terok-shield setup --desktop as that user")
	}
	if r.Dir, err = hooksDir(s); err != nil {
		return r, err
	}
	in := installer{report: &r}
	if err := in.open(); err != nil {
		return r, err
	}
	return r, errors.Join(in.writeDesktop(s), in.save())
}

// writeDesktop writes the files of the desktop.
func (in *installer) writeDesktop(s system) error {
	program := filepath.Join(in.report.Dir, programName)
	if strings.ContainsFunc(program, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Errorf("%q cannot be written into a unit: set TEROK_ROOT to another directory", program)
	}
	for _, f := range desktopFiles(program) {
		dir, err := s.env.XDG(f.xdg, f.fallback)
		if err != nil {
			return err
		}
		path := filepath.Join(dir, f.path)
		if err := in.mkdir(filepath.Dir(path)); err != nil {
			return err
		}
		if err := in.write(path, f.text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// hasDesktop says whether an earlier InstallDesktop was not undone.
func (in *installer) hasDesktop() bool {
	for path := range in.old.Files {
		if slices.Contains(desktopNames(), filepath.Base(path)) {
			return true
		}
	}
	return false
}
