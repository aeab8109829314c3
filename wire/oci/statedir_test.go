package oci

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// tree makes directories of mode 0700 below a fresh one whose own path has no
// symbolic link, and returns the last.
func tree(t *testing.T, elem ...string) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	chmod(t, dir, 0o700)
	for _, e := range elem {
		dir = filepath.Join(dir, e)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, target, link string) string {
	t.Helper()
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	return link
}

func state(dir string) *State {
	return &State{Annotations: map[string]string{KeyStateDir: dir}}
}

func TestStateDirAccepted(t *testing.T) {
	euid := os.Geteuid()
	dir := tree(t, "a", "sd")
	parent := filepath.Dir(dir)
	other := tree(t)
	percent := tree(t, "100%d %s")
	wide := tree(t, "a", "sd")
	chmod(t, wide, 0o755)
	sticky := tree(t, "tmp", "sd")
	chmod(t, filepath.Dir(sticky), 0o777|os.ModeSticky)
	for name, tt := range map[string]struct{ in, want string }{
		"plain":                      {dir, dir},
		"final slashes":              {dir + "//", dir},
		"final dot":                  {dir + "/.", dir},
		"slashes and dots":           {"/" + strings.ReplaceAll(dir, "/", "/./"), dir},
		"up and down":                {dir + "/../sd", dir},
		"link in the path":           {symlink(t, parent, filepath.Join(other, "l")) + "/sd", dir},
		"relative link in the path":  {symlink(t, ".", filepath.Join(parent, "here")) + "/sd", dir},
		"readable by others":         {wide, wide},
		"below a sticky directory":   {sticky, sticky},
		"percent signs in the name":  {percent, percent},
		"name like a system's":       {tree(t, "etc"), ""},
		"begins like a system's":     {tree(t, "usr2"), ""},
		"as long as a component may": {tree(t, strings.Repeat("x", 255)), ""},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.want == "" {
				tt.want = tt.in
			}
			got, err := state(tt.in).StateDir(euid)
			if err != nil || got != tt.want {
				t.Errorf("%q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

// Each check, in the order in which they are made.
func TestStateDirRefused(t *testing.T) {
	euid := os.Geteuid()
	dir := tree(t, "a", "sd")
	parent := filepath.Dir(dir)
	file := filepath.Join(parent, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	loop := symlink(t, filepath.Join(parent, "loop"), filepath.Join(parent, "loop"))
	link := symlink(t, dir, filepath.Join(parent, "link"))
	toEtc := symlink(t, "/etc", filepath.Join(parent, "etc"))
	group, world := tree(t, "sd"), tree(t, "sd")
	chmod(t, group, 0o770)
	chmod(t, world, 0o707|os.ModeSticky) // a sticky bit does not excuse the directory itself

	type refusal struct {
		name, in, want string
	}
	tests := []refusal{
		{"missing", "", "is missing"},
		{"NUL", dir + "\x00", "NUL"},
		{"too long", "/" + strings.Repeat("x/", 4096), "is longer than 4095 bytes"},
		{"relative", "sd", "is not an absolute path"},
		{"relative, home", "~/sd", "is not an absolute path"},
		{"blank", " " + dir, "is not an absolute path"},
		{"root", "/", "lies in /,"},
		{"root, disguised", "//./", "lies in /,"},
		{"raw path below a system directory", "/etc/../" + dir, "lies in /etc,"},
		{"raw path does not exist", "/usr/no/such", "lies in /usr,"},
		{"extra slashes", "//etc//x", "lies in /etc,"},
		{"extra dots", "/./proc/self", "lies in /proc,"},
		{"does not exist", filepath.Join(parent, "none"), "cannot be resolved: no such file"},
		{"newline in the name", parent + "/a\nb", `a\nb": cannot be resolved`},
		{"links in a circle", loop, "cannot be resolved"},
		{"below a file", file + "/sd", "cannot be resolved: not a directory"},
		{"leads to a system directory", toEtc + "/ssl", `leads to "/etc`},
		{"climbs to a system directory", dir + strings.Repeat("/..", 40) + "/etc", `leads to "/etc" in /etc`},
		{"itself a link to a system directory", toEtc, `leads to "/etc" in /etc`},
		{"symbolic link", link, "is a symbolic link"},
		{"symbolic link with a final slash", link + "/", "is a symbolic link"},
		{"symbolic link with a final dot", link + "/.", "is a symbolic link"},
		{"file", file, "is not a directory"},
		{"group can write", group, "can be written by others (mode 0770); run chmod"},
		{"others can write", world, "can be written by others (mode 0707); run chmod"},
	}
	for _, sys := range []string{"/etc", "/proc", "/sys", "/dev", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/boot", "/root"} {
		tests = append(tests,
			refusal{sys, sys, "lies in " + sys + ","},
			refusal{"below " + sys, sys + "/x/y", "lies in " + sys + ","})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := state(tt.in).StateDir(euid)
			if err == nil || got != "" {
				t.Fatalf("accepted as %q", got)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("message %q does not say %q", err, tt.want)
			}
			if len(err.Error()) > 400 || strings.ContainsAny(err.Error(), "\n\x00") {
				t.Errorf("message is not fit for one line: %.500q", err)
			}
		})
	}
	t.Run("other owner", func(t *testing.T) {
		if _, err := state(dir).StateDir(euid + 1); err == nil || !strings.Contains(err.Error(), "belongs to uid") {
			t.Errorf("%v", err)
		}
	})
	t.Run("overflow uid is not the caller", func(t *testing.T) {
		if _, err := state(dir).stateDir(caller{euid: overflowID, uidMap: podmanMap}); err == nil || !strings.Contains(err.Error(), "belongs to uid") {
			t.Errorf("%v", err)
		}
	})
}

// Other programs look at the directory only, although whoever can write one
// of its parents can put another in its place.
func TestStateDirParents(t *testing.T) {
	euid := os.Geteuid()
	dir := tree(t, "a", "b", "sd")
	a := filepath.Dir(filepath.Dir(dir))
	for _, tt := range []struct {
		mode os.FileMode
		ok   bool
	}{
		{0o700, true}, {0o755, true}, {0o777 | os.ModeSticky, true}, {0o770 | os.ModeSticky, true},
		{0o770, false}, {0o720, false}, {0o702, false}, {0o777, false}, {0o777 | os.ModeSetgid, false},
	} {
		chmod(t, a, tt.mode)
		_, err := state(dir).stateDir(loner(euid))
		if (err == nil) != tt.ok {
			t.Errorf("grandparent of mode %v: %v", tt.mode, err)
		}
		if err != nil && (!strings.Contains(err.Error(), a) || !strings.Contains(err.Error(), "chmod go-w")) {
			t.Errorf("message %q does not help", err)
		}
	}
	chmod(t, a, 0o700)

	// The parents of where a link leads count, too.
	links := tree(t)
	chmod(t, a, 0o777)
	if _, err := state(symlink(t, a, filepath.Join(links, "l")) + "/b/sd").StateDir(euid); err == nil {
		t.Error("a writable parent was hidden by a link")
	}
}

// The owner of a parent must be the caller or the real root, who has no id in
// a rootless container engine's user namespace.
func TestCheckParentOwner(t *testing.T) {
	euid := os.Geteuid()
	mine := tree(t)
	if err := loner(euid).checkParent(mine); err != nil {
		t.Errorf("own directory: %v", err)
	}
	if err := (caller{euid: euid, uidMap: podmanMap}).checkParent("/"); err != nil {
		t.Errorf("/: %v", err)
	}
	if err := loner(euid).checkParent(filepath.Join(mine, "none")); err == nil {
		t.Error("a missing directory was accepted")
	}
	if err := loner(euid + 1).checkParent(mine); (err == nil) != (euid == 0) {
		t.Errorf("directory of uid %d for somebody else: %v", euid, err)
	}
	for _, tt := range []struct {
		uid, euid int
		uidMap    string
		ok        bool
	}{
		{1234, 1234, initialMap, true}, {0, 1234, initialMap, true}, {0, 0, podmanMap, true},
		{1235, 1234, initialMap, false}, {1235, 1234, podmanMap, false}, {1234, 0, initialMap, false},
		{overflowID, 0, podmanMap, true}, {overflowID, 1234, podmanMap, true},
		{overflowID, 0, initialMap, false}, // here it is the user "nobody"
	} {
		if got := (caller{euid: tt.euid, uidMap: tt.uidMap}).trusts(tt.uid); got != tt.ok {
			t.Errorf("uid %d for %+v: %t", tt.uid, tt, got)
		}
	}
}

// In a user namespace of its own, as in a rootless Podman's hooks, the
// operator is uid 0 and / belongs to nobody known.
func TestStateDirInUserNamespace(t *testing.T) {
	const name = "TEROK_TEST_STATE_DIR"
	if dir := os.Getenv(name); dir != "" {
		if os.Geteuid() != 0 {
			t.Fatalf("euid %d", os.Geteuid())
		}
		if _, err := state(dir).StateDir(0); err != nil {
			t.Fatal(err)
		}
		if _, err := state(dir).stateDir(loner(0)); os.Getenv("TEROK_TEST_ROOT_HIDDEN") == "1" && err == nil {
			t.Fatal("an unknown owner of / was accepted outside a user namespace")
		}
		return
	}
	dir := tree(t, "sd")
	hostIDs := []int{os.Getuid()}
	if m, err := os.ReadFile("/proc/self/uid_map"); err != nil {
		t.Fatal(err)
	} else if os.Getuid() == 0 && fullMap(string(m)) {
		hostIDs = append(hostIDs, 4321) // the real root may map another user
	}
	for _, hostID := range hostIDs {
		gid := os.Getgid()
		hidden := "0" // whether / belongs to nobody known there
		if hostID != 0 {
			hidden = "1"
		}
		if hostID != os.Getuid() {
			gid = hostID
			// The operator owns everything up to the temporary directory.
			for d := dir; d != filepath.Clean(os.TempDir()) && d != "/"; d = filepath.Dir(d) {
				if err := os.Chown(d, hostID, hostID); err != nil {
					t.Fatal(err)
				}
			}
		}
		self, err := os.ReadFile("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		exe := filepath.Join(filepath.Dir(dir), "test") // where the operator can run it
		if err := os.WriteFile(exe, self, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(exe, "-test.run=^TestStateDirInUserNamespace$", "-test.count=1")
		cmd.Env = append(os.Environ(), name+"="+dir, "TEROK_TEST_ROOT_HIDDEN="+hidden)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: hostID, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}},
			Credential:  &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true},
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("as uid %d: %v\n%s", hostID, err, out)
		}
	}
}
