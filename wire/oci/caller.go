package oci

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// overflowID stands for every user and group who has no id in the current user
// namespace (the default of /proc/sys/kernel/overflowuid and overflowgid). In
// a rootless Podman's namespace the real root, who owns / and /home, appears
// as this.
const overflowID = 65534

// maxAccounts bounds the files of users, groups and id maps, in bytes.
const maxAccounts = 1 << 20

// caller is who starts the container. Whose group a directory's is takes
// three more files, which are read only if it matters.
type caller struct {
	euid   int    // as seen in the current user namespace
	uidMap string // of that namespace, /proc/self/uid_map
	read   func(path string) (string, error)
}

func newCaller(euid int) (caller, error) {
	uidMap, err := readBounded("/proc/self/uid_map")
	if err != nil {
		return caller{}, fmt.Errorf("read the user id map: %w", err)
	}
	return caller{euid, uidMap, readBounded}, nil
}

func readBounded(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxAccounts+1))
	if err == nil && len(data) > maxAccounts {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxAccounts)
	}
	return string(data), err
}

// checkParent refuses a directory above the state directory in which somebody
// else could put another in its place.
func (c caller) checkParent(dir string) error {
	fi, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("its parent %s cannot be examined: %w", quote(dir), cause(err))
	}
	if !fi.IsDir() {
		return fmt.Errorf("its parent %s is no longer a directory", quote(dir))
	}
	uid := owner(fi)
	if !c.trusts(uid) {
		return fmt.Errorf("its parent %s belongs to uid %d, who could replace it; use a directory of your own", quote(dir), uid)
	}
	perm := fi.Mode().Perm()
	if perm&0o022 == 0 || fi.Mode()&fs.ModeSticky != 0 {
		return nil
	}
	// Where every user has a group of his own, umask 002 is usual.
	if perm&0o002 == 0 && uid == c.euid && !hasACL(dir) && c.ownsGroup(group(fi)) {
		return nil
	}
	return fmt.Errorf("its parent %s can be written by others (mode %04o), who could replace it; run chmod go-w on it", quote(dir), perm)
}

// trusts reports whether the owner of a parent may be believed: the caller or
// the real root.
func (c caller) trusts(uid int) bool {
	return uid == c.euid || uid == 0 || uid == overflowID && !fullMap(c.uidMap)
}

// ownsGroup reports whether the group, as seen in the current user namespace,
// certainly has no member but the caller.
func (c caller) ownsGroup(gid int) bool {
	var texts [3]string
	for i, path := range []string{"/proc/self/gid_map", "/etc/passwd", "/etc/group"} {
		var err error
		if texts[i], err = c.read(path); err != nil {
			return false
		}
	}
	uid, ok := outside(c.uidMap, c.euid)
	return ok && privateGroup(uid, gid, texts[0], texts[1], texts[2])
}

// privateGroup reports whether a user's primary group is his alone, going by
// the id map of groups and the texts of /etc/passwd and /etc/group. uid is
// the user's in these, gid the group's inside the map. What is not understood
// completely is not private.
func privateGroup(uid, gid int, gidMap, passwd, groups string) bool {
	if gid == overflowID && !fullMap(gidMap) {
		return false // any group
	}
	gid, ok := outside(gidMap, gid)
	if !ok {
		return false
	}
	var user string
	for line := range entries(passwd) { // name:password:uid:gid:comment:home:shell
		f := strings.Split(line, ":")
		if len(f) != 7 {
			return false
		}
		u, uOK := number(f[2])
		g, gOK := number(f[3])
		switch {
		case !uOK || !gOK || f[0] == "":
			return false
		case u != uid && g != gid:
			continue
		case u != uid || g != gid || user != "":
			return false
		}
		user = f[0]
	}
	found := false
	for line := range entries(groups) { // name:password:gid:member,member
		f := strings.Split(line, ":")
		if len(f) != 4 {
			return false
		}
		g, gOK := number(f[2])
		switch {
		case !gOK:
			return false
		case g != gid:
			continue
		case found || f[3] != "" && f[3] != user:
			return false
		case !slices.Contains([]string{"", "x", "!", "*"}, f[1]):
			return false // who knows the password can join (newgrp)
		}
		found = true
	}
	return found && user != ""
}

// entries are the lines that hold something.
func entries(text string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for line := range strings.SplitSeq(text, "\n") {
			if line != "" && line[0] != '#' && !yield(line) {
				return
			}
		}
	}
}

// fullMap reports whether a map of ids is the initial namespace's, in which
// overflowID is merely the user "nobody" or his group.
func fullMap(idMap string) bool {
	return slices.Equal(strings.Fields(idMap), []string{"0", "0", "4294967295"})
}

// outside is what an id is in the parent user namespace.
func outside(idMap string, id int) (int, bool) {
	for line := range strings.Lines(idMap) {
		inner, outer, count, ok := mapping(line)
		if !ok {
			return 0, false
		}
		if d := int64(id) - inner; d >= 0 && d < count {
			return int(outer + d), true
		}
	}
	return 0, false
}

// number reads an id: 32 bits, decimal.
func number(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return int(n), err == nil
}

// hasACL reports whether more users than the mode tells may have rights: with
// an access control list (acl(5)) the group's bits are only their upper bound.
func hasACL(dir string) bool {
	_, err := syscall.Getxattr(dir, "system.posix_acl_access", nil)
	return !errors.Is(err, syscall.ENODATA) && !errors.Is(err, syscall.EOPNOTSUPP)
}

func owner(fi fs.FileInfo) int { return int(fi.Sys().(*syscall.Stat_t).Uid) }
func group(fi fs.FileInfo) int { return int(fi.Sys().(*syscall.Stat_t).Gid) }
