package podman

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
)

const (
	manifestName = "terok-box.manifest" // not .json: Podman takes every such file for a descriptor
	maxManifest  = 1 << 20
	maxProgram   = 256 << 20 // bytes
)

// Report is what Install or Uninstall did, paths in full.
type Report struct {
	Dir      string   `json:"dir"`                // the hook directory
	Written  []string `json:"written,omitempty"`  // new or changed
	Replaced []string `json:"replaced,omitempty"` // of those, files that somebody else had made
	Removed  []string `json:"removed,omitempty"`
	Kept     []string `json:"kept,omitempty"` // somebody else's, left as they are
	Todo     []string `json:"todo,omitempty"` // what the operator has to do, in sentences
}

// manifest records what Install made, so that Uninstall removes that and
// nothing else.
type manifest struct {
	Files map[string]string `json:"files"` // full path → SHA-256
	Dirs  []string          `json:"dirs"`  // created, outermost first
}

// Install puts the program self into the hook directory with a descriptor
// for every stage of the given roles (the firewall alone if there are none),
// and has Podman read that directory, by a file of ours beside its
// configuration. It is idempotent and also an upgrade; each file is replaced
// as a whole, in an order in which Podman never finds a descriptor whose
// program is missing, since it would start the container without it.
//
// Nothing of Podman's own configuration is edited, and hook directories in
// force before stay in force.
func Install(env *cmdenv.Env, self string, roles ...Role) (Report, error) {
	return install(systemOf(env), self, roles)
}

func install(s system, self string, roles []Role) (r Report, err error) {
	if len(roles) == 0 {
		roles = []Role{Firewall}
	}
	if r.Dir, err = hooksDir(s); err != nil {
		return r, err
	}
	dropIn, err := dropInPath(s)
	if err != nil {
		return r, err
	}
	// A configuration that cannot be read is found before anything is done.
	before, err := readConf(s, reading{without: dropIn, filesOnly: true, old: true})
	if err != nil {
		return r, err
	}
	conf, err := dropInText(before.HooksDirs, r.Dir)
	if err != nil {
		return r, err
	}
	program, err := readFile(self, maxProgram)
	if err != nil {
		return r, fmt.Errorf("own program: %w", err)
	}

	in := installer{report: &r}
	if err := in.open(); err != nil {
		return r, err
	}
	defer func() {
		if saveErr := in.save(); saveErr != nil {
			err = errors.Join(err, saveErr)
		}
	}()
	if noexec(r.Dir) {
		return r, errors.New(noexecIssue(r.Dir).String())
	}
	base := filepath.Join(r.Dir, programName)
	if err := in.write(base, program, 0o755); err != nil {
		return r, err
	}
	for i, role := range roles {
		// The first entry shares its inode with the program. Others do not:
		// an installer that overwrites entries in place would put one
		// role's program under another role's name.
		if i == 0 {
			err = in.link(base, filepath.Join(r.Dir, role.Entry()), program)
		} else {
			err = in.write(filepath.Join(r.Dir, role.Entry()), program, 0o755)
		}
		if err != nil {
			return r, err
		}
	}
	if err := in.writeModule(filepath.Join(r.Dir, stateModule)); err != nil {
		return r, err
	}
	for _, role := range roles {
		for _, stage := range stages() {
			text, err := descriptorText(r.Dir, role, stage)
			if err != nil {
				return r, err
			}
			if err := in.write(filepath.Join(r.Dir, role.descriptorName(stage)), text, 0o644); err != nil {
				return r, err
			}
		}
	}
	if err := in.mkdir(filepath.Dir(dropIn)); err != nil {
		return r, err
	}
	if err := in.write(dropIn, conf, 0o644); err != nil {
		return r, err
	}
	if in.hasDesktop() {
		if err := in.writeDesktop(s); err != nil {
			return r, err
		}
	}
	err = in.sweep()
	missing, confErr := notInForce(s, r.Dir)
	for _, i := range missing {
		r.Todo = append(r.Todo, i.String())
	}
	return r, errors.Join(err, confErr)
}

// dropInPath is the file that makes Podman read our hook directory: the
// administrator's for root, the user's for others.
func dropInPath(s system) (string, error) {
	dir := s.path("etc/containers")
	if s.env.EUID != 0 {
		var err error
		if dir, err = userConfDir(s); err != nil {
			return "", err
		}
	}
	return filepath.Join(dir, "containers.conf.d", dropInName), nil
}

func dropInText(before []string, dir string) ([]byte, error) {
	var conf struct {
		Engine struct {
			HooksDir []string `toml:"hooks_dir"`
		} `toml:"engine"`
	}
	for _, d := range before {
		if d != dir && !slices.Contains(conf.Engine.HooksDir, d) {
			conf.Engine.HooksDir = append(conf.Engine.HooksDir, d)
		}
	}
	conf.Engine.HooksDir = append(conf.Engine.HooksDir, dir)
	b := bytes.NewBufferString("# Written by terok-shield setup, which also rewrites and removes it.\n" +
		"# A list here replaces the list before it, so this repeats the directories that\n" +
		"# were in force. After changing hooks_dir elsewhere run terok-shield setup again.\n")
	e := toml.NewEncoder(b)
	e.Indent = ""
	err := e.Encode(conf)
	return b.Bytes(), err
}

// notInForce is why Podman would not read hooks from dir; nothing if it
// would.
func notInForce(s system, dir string) ([]Issue, error) {
	dropIn, err := dropInPath(s)
	if err != nil {
		return nil, err
	}
	var why []Issue
	for _, old := range []bool{false, true} {
		c, err := readConf(s, reading{old: old})
		if err != nil {
			return nil, err
		}
		if slices.Contains(c.HooksDirs, dir) {
			continue
		}
		var i Issue
		switch env := s.env.Get("CONTAINERS_CONF"); {
		case env != "":
			i = Issue{"CONTAINERS_CONF is set, so podman reads only " + env, fmt.Sprintf("unset it, or add %q to hooks_dir under [engine] there", dir)}
		case !slices.Contains(c.Files, dropIn):
			i = Issue{"podman does not read hooks from " + dir, SetupFix}
		case c.HooksFile == dropIn:
			i = Issue{dropIn + " does not list " + dir, SetupFix}
		default:
			i = Issue{c.HooksFile + " sets hooks_dir after " + dropIn, fmt.Sprintf("add %q to the list there", dir)}
		}
		if !slices.Contains(why, i) {
			why = append(why, i)
		}
	}
	return why, nil
}

// noexec says whether programs in dir cannot be run.
func noexec(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Flags&unix.ST_NOEXEC != 0
}

func noexecIssue(dir string) Issue {
	return Issue{"hook directory " + dir + " is on a file system mounted noexec", "set TEROK_ROOT to a directory on another one and run terok-shield setup"}
}

// installer writes files and remembers them.
type installer struct {
	report   *Report
	old, now manifest
	loaded   bool
}

func (in *installer) open() error {
	var err error
	if in.old, err = readManifest(in.report.Dir); err != nil {
		return err
	}
	in.now = manifest{Files: make(map[string]string), Dirs: in.old.Dirs}
	if err := in.mkdir(in.report.Dir); err != nil {
		return err
	}
	in.loaded = true
	// Others must not be able to add hooks.
	if err := os.Chmod(in.report.Dir, 0o755); err != nil {
		return fmt.Errorf("hook directory: %w", err)
	}
	return nil
}

func readManifest(dir string) (manifest, error) {
	var m manifest
	path := filepath.Join(dir, manifestName)
	text, err := readFile(path, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err != nil {
		return m, fmt.Errorf("list of installed files: %w: remove %s and run terok-shield setup again", err, path)
	}
	return m, nil
}

// save writes the manifest; files of the old one that are still there stay
// in it until sweep removed them.
func (in *installer) save() error {
	if !in.loaded {
		return nil
	}
	for path, sum := range in.old.Files {
		if _, ok := in.now.Files[path]; !ok && !slices.Contains(in.report.Removed, path) {
			in.now.Files[path] = sum
		}
	}
	text, err := json.MarshalIndent(in.now, "", "  ")
	if err != nil {
		return err
	}
	return replace(filepath.Join(in.report.Dir, manifestName), append(text, '\n'), 0o644)
}

// mkdir makes a directory and its parents, 0755, and remembers the new ones.
func (in *installer) mkdir(dir string) error {
	var missing []string
	for d := dir; ; d = filepath.Dir(d) {
		_, err := os.Stat(d)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || d == filepath.Dir(d) {
			return fmt.Errorf("create directory %s: %w", dir, err)
		}
		missing = append(missing, d)
	}
	for _, d := range slices.Backward(missing) {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("create directory: %w", err)
		}
		if err := os.Chmod(d, 0o755); err != nil { // whatever the umask
			return fmt.Errorf("create directory: %w", err)
		}
		if !slices.Contains(in.now.Dirs, d) {
			in.now.Dirs = append(in.now.Dirs, d)
		}
	}
	return nil
}

// mine says whether the file there is as an earlier Install left it.
func (in *installer) mine(path string, sum string) bool {
	return sum == in.old.Files[path]
}

func (in *installer) write(path string, text []byte, mode fs.FileMode) error {
	want := sumOf(text)
	have, err := sumFile(path)
	if err != nil {
		return err
	}
	in.now.Files[path] = want
	if st, err := os.Lstat(path); err == nil && have == want && st.Mode() == mode {
		return nil
	}
	if err := replace(path, text, mode); err != nil {
		return err
	}
	in.wrote(path, have, want)
	return nil
}

func (in *installer) wrote(path, had, want string) {
	in.report.Written = append(in.report.Written, path)
	if had != "" && had != want && !in.mine(path, had) {
		in.report.Replaced = append(in.report.Replaced, path)
	}
}

// link makes path another name of base, whose content is text.
func (in *installer) link(base, path string, text []byte) error {
	a, err := os.Stat(base)
	if err != nil {
		return err
	}
	in.now.Files[path] = sumOf(text)
	if b, err := os.Lstat(path); err == nil && os.SameFile(a, b) {
		return nil
	}
	had, err := sumFile(path)
	if err != nil {
		return err
	}
	tmp := temp(path)
	if err := os.Link(base, tmp); err != nil {
		return in.write(path, text, 0o755) // a file system without hard links
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	in.wrote(path, had, sumOf(text))
	return nil
}

// writeModule leaves somebody else's module alone: their hook programs
// import it, and a hook that fails keeps every container from starting.
func (in *installer) writeModule(path string) error {
	have, err := sumFile(path)
	if err != nil {
		return err
	}
	if have != "" && have != sumOf(stateModuleText()) && !in.mine(path, have) {
		in.report.Kept = append(in.report.Kept, path)
		return nil
	}
	return in.write(path, stateModuleText(), 0o644)
}

// sweep removes what an earlier Install made and this one did not.
func (in *installer) sweep() error {
	var errs []error
	for _, path := range slices.Sorted(maps.Keys(in.old.Files)) {
		if _, ok := in.now.Files[path]; ok || !ownPath(in.report.Dir, path) {
			continue
		}
		errs = append(errs, in.remove(path, in.old.Files[path]))
	}
	return errors.Join(errs...)
}

// ownPath bounds what a manifest can make us remove.
func ownPath(dir, path string) bool {
	name := filepath.Base(path)
	return filepath.IsAbs(path) && filepath.Clean(path) == path &&
		(filepath.Dir(path) == dir || name == dropInName || slices.Contains(desktopNames(), name))
}

func (in *installer) remove(path, sum string) error {
	have, err := sumFile(path)
	switch {
	case err != nil:
		return err
	case have == "":
		in.report.Removed = append(in.report.Removed, path) // by somebody else
		return nil
	case have != sum:
		in.report.Kept = append(in.report.Kept, path)
		return nil
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	in.report.Removed = append(in.report.Removed, path)
	return nil
}

// Uninstall removes the files and the directories that Install made, the
// descriptors before their programs. Files that somebody changed since, and
// all others, stay and are reported. It goes on after an error.
func Uninstall(env *cmdenv.Env) (Report, error) { return uninstall(systemOf(env)) }

func uninstall(s system) (r Report, err error) {
	if r.Dir, err = hooksDir(s); err != nil {
		return r, err
	}
	in := installer{report: &r}
	if in.old, err = readManifest(r.Dir); err != nil {
		return r, err
	}
	rank := func(path string) int {
		switch {
		case filepath.Base(path) == dropInName:
			return 0
		case strings.HasSuffix(path, ".json"):
			return 1
		}
		return 2
	}
	paths := slices.Sorted(maps.Keys(in.old.Files))
	slices.SortStableFunc(paths, func(a, b string) int { return rank(a) - rank(b) })
	var errs []error
	for _, path := range paths {
		if ownPath(r.Dir, path) {
			errs = append(errs, in.remove(path, in.old.Files[path]))
		}
	}
	err = errors.Join(errs...)
	if err == nil && len(in.old.Files) > 0 {
		err = os.Remove(filepath.Join(r.Dir, manifestName))
	}
	for _, d := range slices.Backward(in.old.Dirs) {
		if os.Remove(d) == nil { // fails if not empty
			r.Removed = append(r.Removed, d)
		}
	}
	entries, readErr := os.ReadDir(r.Dir)
	if readErr != nil && !errors.Is(readErr, fs.ErrNotExist) {
		err = errors.Join(err, readErr)
	}
	for _, e := range entries {
		if p := filepath.Join(r.Dir, e.Name()); e.Name() != manifestName && !slices.Contains(r.Kept, p) {
			r.Kept = append(r.Kept, p)
		}
	}
	conf, confErr := readConf(s, reading{})
	if confErr == nil && slices.Contains(conf.HooksDirs, r.Dir) {
		r.Todo = append(r.Todo, fmt.Sprintf("%s still lists %s in hooks_dir, which terok-shield did not write: remove it there if nothing else needs it", conf.HooksFile, r.Dir))
	}
	return r, errors.Join(err, confErr)
}

func sumOf(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// sumFile is the SHA-256 of a regular file, "" if nothing is there. What is
// neither has a sum of its own that no file has.
func sumFile(path string) (string, error) {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if st.IsDir() {
		return "", fmt.Errorf("%s is a directory: remove it", path)
	}
	if !st.Mode().IsRegular() {
		return "not a file", nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// temp is an unused name beside path that Podman does not take for a
// descriptor or a configuration file.
func temp(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+rand.Text()+".tmp")
}

// replace writes a file as a whole or not at all.
func replace(path string, text []byte, mode fs.FileMode) (err error) {
	tmp := temp(path)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(tmp)))
	}
	return nil
}
