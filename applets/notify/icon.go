package notify

import (
	"bytes"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/hook"
	"github.com/terok-ai/terok-box/resources"
)

// symbolicIcon is the name of our icon where it is installed.
const symbolicIcon = "terok-symbolic"

// icons finds the icon of popups that have none of their own.
type icons struct {
	env *cmdenv.Env

	mu     sync.Mutex
	themed bool // the desktop has ours
	logo   string
}

// of is a popup's icon as desktops take it: a name, or the URI of a file; ""
// if there is none.
func (i *icons) of(p Popup) string {
	if p.Icon != "" {
		return p.Icon
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.themed || i.installed() {
		i.themed = true
		return symbolicIcon
	}
	return i.file()
}

// installed looks for the icon where desktops look for it.
func (i *icons) installed() bool {
	var dirs []string
	if dir, err := i.env.XDG("DATA", ".local/share"); err == nil {
		dirs = append(dirs, dir)
	}
	system := i.env.Get("XDG_DATA_DIRS")
	if system == "" {
		system = "/usr/local/share:/usr/share"
	}
	for _, dir := range append(dirs, strings.Split(system, ":")...) {
		if !filepath.IsAbs(dir) {
			continue
		}
		st, err := os.Stat(filepath.Join(dir, "icons/hicolor/symbolic/apps", symbolicIcon+".svg"))
		if err == nil && st.Mode().IsRegular() {
			return true
		}
	}
	return false
}

// logoFile is where our logo is gone with the session; "" if there is no place
// for it.
func logoFile(env *cmdenv.Env) string {
	dir, err := hook.RuntimeDir(env)
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "terok", "terok.svg")
}

// file is the URI of our logo, which is written if it is not there.
func (i *icons) file() string {
	if i.logo != "" {
		if _, err := os.Stat(i.logo); err == nil {
			return uri(i.logo)
		}
	}
	path := logoFile(i.env)
	if path == "" {
		return ""
	}
	if isLogo(path) {
		i.logo = path
		return uri(path)
	}
	dir := filepath.Dir(path)
	if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
		return ""
	}
	f, err := os.CreateTemp(dir, ".logo-*")
	if err != nil {
		return ""
	}
	_, err = f.Write(resources.Logo())
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return ""
	}
	i.logo = path
	return uri(path)
}

// isLogo says whether a file is our logo, as an earlier program has left it.
func isLogo(path string) bool {
	st, err := os.Lstat(path)
	if err != nil || !st.Mode().IsRegular() || st.Size() != int64(len(resources.Logo())) {
		return false
	}
	data, err := os.ReadFile(path)
	return err == nil && bytes.Equal(data, resources.Logo())
}

func uri(path string) string { return (&url.URL{Scheme: "file", Path: path}).String() }
