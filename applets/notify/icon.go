package notify

import (
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

// file is the URI of our logo, which is written where it is gone with the
// session.
func (i *icons) file() string {
	if i.logo != "" {
		if _, err := os.Stat(i.logo); err == nil {
			return uri(i.logo)
		}
	}
	dir, err := hook.RuntimeDir(i.env)
	if err != nil {
		return ""
	}
	dir = filepath.Join(dir, "terok")
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
	path := filepath.Join(dir, "terok.svg")
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

func uri(path string) string { return (&url.URL{Scheme: "file", Path: path}).String() }
