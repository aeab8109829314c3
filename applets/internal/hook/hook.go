// Package hook is what the OCI hooks have in common: what they can know of
// the container's operator.
//
// It must never import what is not needed on every container start.
package hook

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/wire/oci"
)

// Name is what an operator knows the container by.
func Name(st *oci.State) string {
	if n := st.Annotations[oci.KeyName]; n != "" {
		return n
	}
	return st.Short()
}

// RuntimeDir is the directory of the user's sockets: XDG_RUNTIME_DIR, or what
// it is by custom, since a runtime calls hooks with the environment of whoever
// called it or with none. An error says why there is none to be used.
func RuntimeDir(env *cmdenv.Env) (string, error) {
	dir := env.Get("XDG_RUNTIME_DIR")
	if !filepath.IsAbs(dir) {
		const maxMap = 1 << 20 // bytes
		f, err := os.Open("/proc/self/uid_map")
		if err != nil {
			return "", err
		}
		defer f.Close()
		uidMap, err := io.ReadAll(io.LimitReader(f, maxMap))
		if err != nil {
			return "", err
		}
		dir = fmt.Sprintf("/run/user/%d", oci.HostUID(string(uidMap), env.EUID))
	}
	dir = filepath.Clean(dir)
	var st unix.Stat_t
	switch err := unix.Lstat(dir, &st); {
	case err != nil:
		return "", &fs.PathError{Op: "stat", Path: dir, Err: err}
	case st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != env.EUID || st.Mode&0o022 != 0:
		return "", fmt.Errorf("%s is not a directory that only uid %d can write", dir, env.EUID)
	}
	return dir, nil
}
