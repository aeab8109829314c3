package podman

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestInstallDesktop(t *testing.T) {
	s := host(t, 1000, nil)
	before := snapshot(t, s.root)
	mustInstall(t, s)
	hooksOnly := snapshot(t, s.root)
	dir := filepath.Join(s.root, userHooks)
	r, err := installDesktop(s)
	files := in(filepath.Join(s.root, "home"), ".config/systemd/user/terok-clearance-notify.service",
		".config/systemd/user/graphical-session.target.d/50-terok-clearance-notify.conf", ".config/autostart/terok-clearance-notify.desktop",
		".local/share/icons/hicolor/scalable/apps/terok.svg", ".local/share/icons/hicolor/symbolic/apps/terok-symbolic.svg")
	if d := cmp.Diff(Report{Dir: dir, Written: files}, r); err != nil || d != "" {
		t.Error(err, d)
	}
	for i, want := range []string{"ExecStart=", "Wants=terok-clearance-notify.service\n", "Exec="} {
		text, err := os.ReadFile(files[i])
		if i != 1 {
			want += `"` + dir + `/terok-box" terok-clearance-notify --watch` + "\n"
		}
		if err != nil || !strings.Contains(string(text), want) || strings.Contains(string(text), "@") {
			t.Errorf("%s: %v\n%s", files[i], err, text)
		}
	}

	// Again: nothing to do, not for the hooks either. What is gone comes back.
	if r, err := installDesktop(s); err != nil || len(r.Written) != 0 {
		t.Errorf("%+v %v", r, err)
	}
	if err := os.Remove(files[2]); err != nil {
		t.Fatal(err)
	}
	if r := mustInstall(t, s); len(r.Removed) != 0 || len(r.Written) != 1 || r.Written[0] != files[2] {
		t.Errorf("%+v", r)
	}
	// What somebody has changed is not removed.
	write(t, files[0], "mine", 0o644)
	r, err = uninstall(s)
	if err != nil || len(r.Kept) != 1 || r.Kept[0] != files[0] {
		t.Errorf("%+v %v", r, err)
	}
	if err := os.RemoveAll(filepath.Join(s.root, "home/.config/systemd")); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"home/.config", "home"} { // that could not be removed
		os.Remove(filepath.Join(s.root, dir))
	}
	left := snapshot(t, s.root)
	for path := range left {
		if strings.HasPrefix(path, "/usr") {
			delete(left, path)
		}
	}
	if d := cmp.Diff(before, left); d != "" {
		t.Error(d)
	}
	if len(hooksOnly) <= len(before) {
		t.Error("nothing was installed")
	}
}

func TestInstallDesktopRefuses(t *testing.T) {
	if _, err := installDesktop(host(t, 0, nil)); err == nil || !strings.Contains(err.Error(), "as that user") {
		t.Error(err)
	}
	s := host(t, 1000, nil)
	s.env.Vars["TEROK_ROOT"] = filepath.Join(s.root, "a\nb")
	if _, err := installDesktop(s); err == nil || !strings.Contains(err.Error(), "TEROK_ROOT") {
		t.Error(err)
	}
}

func TestWords(t *testing.T) {
	const path = "/a b/%h/$x/\"q\"/\\/`c`/terok"
	if got, want := unitWord(path), `"/a b/%%h/$$x/\"q\"/\\/`+"`c`"+`/terok"`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	// The string's escapes are undone first, then the argument's.
	if got, want := entryWord(path), `"/a b/%%h/\\$x/\\"q\\"/\\\\/`+"\\\\`c\\\\`"+`/terok"`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// systemd itself takes the unit, with a path that needs quotation marks.
func TestUnitIsValid(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("no systemd here to ask")
		return
	}
	dir := filepath.Join(t.TempDir(), "a b%h")
	program := filepath.Join(dir, "terok-box")
	write(t, program, "#!/bin/sh\n", 0o755)
	unit := filepath.Join(t.TempDir(), "terok-clearance-notify.service")
	write(t, unit, string(desktopFiles(program)[0].text), 0o644)
	cmd := exec.Command(analyze, "--user", "--man=no", "verify", unit)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), filepath.Base(unit)) {
		t.Errorf("%v\n%s", err, out)
	}
}
