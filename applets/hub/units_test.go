package hub

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/resources"
)

func TestUnits(t *testing.T) {
	home := t.TempDir()
	dir := filepath.Join(home, ".config", "systemd", "user")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	units := func(args ...string) (int, string, string) {
		var out, errs bytes.Buffer
		code := Run(&cmdenv.Env{Stdout: &out, Stderr: &errs, Vars: map[string]string{"HOME": home}}, append([]string{"units"}, args...))
		return code, out.String(), errs.String()
	}
	for range 2 { // once more changes nothing
		code, out, said := units()
		if code != 0 || !strings.Contains(said, "systemctl --user enable --now terok-clearance-hub.socket terok-clearance-verdict.socket") {
			t.Fatalf("exit code %d: %s", code, said)
		}
		files, err := os.ReadDir(dir)
		if err != nil || len(files) != len(resources.Units()) || strings.Count(out, "\n") != len(files) {
			t.Errorf("%v, %v; printed %s", files, err, out)
		}
	}
	for name, text := range resources.Units() {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if want := strings.Replace(text, "ExecStart=clearance-", "ExecStart=@"+self+" clearance-", 1); string(got) != want || (want == text) != strings.HasSuffix(name, ".socket") {
			t.Errorf("%s:\n%s", name, got)
		}
	}
	masked := filepath.Join(dir, "terok-clearance-hub.socket")
	if err := os.Remove(masked); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", masked); err != nil {
		t.Fatal(err)
	}
	if code, _, said := units(); code != 1 || !strings.Contains(said, "write terok-clearance-hub.socket: there is something that is not a regular file; move it away first") {
		t.Errorf("exit code %d: %s", code, said)
	}
	if target, err := os.Readlink(masked); err != nil || target != "/dev/null" {
		t.Errorf("%s, %v", target, err)
	}
	elsewhere := filepath.Join(home, "a", "b")
	if code, out, _ := units(elsewhere); code != 0 || !strings.HasPrefix(out, elsewhere+"/") {
		t.Errorf("exit code %d: %s", code, out)
	}
	if left, _ := filepath.Glob(dir + "/.*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	for _, file := range []string{"relative", "/with space", "/100%", "/a$b", `/a"b`, `/a\b`, "/a\nExecStartPre=/bin/sh"} {
		if _, err := startingFile("\nExecStart=x\n", file); err == nil {
			t.Errorf("%q was taken", file)
		}
	}
}
