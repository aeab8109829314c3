package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const (
	initialMap = "         0          0 4294967295\n"
	podmanMap  = "         0       1000          1\n         1     100000      65536\n"
)

// loner is a caller outside all user namespaces who cannot read who else has
// an account.
func loner(euid int) caller {
	return caller{euid, initialMap, func(string) (string, error) { return "", errors.New("unreadable") }}
}

// accounts is a caller with these texts.
func accounts(euid int, uidMap, gidMap, passwd, groups string) caller {
	return caller{euid, uidMap, func(path string) (string, error) {
		return map[string]string{"/proc/self/gid_map": gidMap, "/etc/passwd": passwd, "/etc/group": groups}[path], nil
	}}
}

const (
	testPasswd = `root:x:0:0:root:/root:/bin/bash
# a comment

sync:x:4:65534:sync:/bin:/bin/sync
me:x:1000:1000:Me,,,:/home/me:/bin/bash
you:x:1001:1001::/home/you:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
`
	testGroups = `root:x:0:
staff:x:50:you
me:x:1000:
sudo:x:27:me
you:x:1001:you
nogroup:x:65534:
`
)

func TestPrivateGroup(t *testing.T) {
	// with replaces lines of the accounts above.
	with := func(text, old, now string) string {
		t.Helper()
		if !strings.Contains(text, old) {
			t.Fatalf("no %q", old)
		}
		return strings.Replace(text, old, now, 1)
	}
	const myLine, myGroup = "me:x:1000:1000:Me,,,:/home/me:/bin/bash\n", "me:x:1000:\n"
	for name, tt := range map[string]struct {
		uid, gid               int
		gidMap, passwd, groups string
		want                   bool
	}{
		"no members":                  {uid: 1000, gid: 1000, want: true},
		"only the user is one":        {uid: 1001, gid: 1001, want: true},
		"root's":                      {uid: 0, gid: 0, want: true},
		"other name than the user's":  {uid: 1000, gid: 1000, groups: with(testGroups, myGroup, "us:x:1000:me\n"), want: true},
		"no password":                 {uid: 1000, gid: 1000, groups: with(testGroups, myGroup, "me::1000:\n"), want: true},
		"locked":                      {uid: 1000, gid: 1000, groups: with(testGroups, myGroup, "me:!:1000:\n"), want: true},
		"no final LF":                 {uid: 1000, gid: 1000, passwd: strings.TrimSuffix(testPasswd, "\n"), groups: strings.TrimSuffix(testGroups, "\n"), want: true},
		"rootless":                    {uid: 1000, gid: 0, gidMap: podmanMap, want: true},
		"rootless, mapped elsewhere":  {uid: 1000, gid: 7, gidMap: "0 100000 7\n7 1000 1\n", want: true},
		"rootless, all mapped":        {uid: 1000, gid: 1000, gidMap: "0 0 65534\n", want: true},
		"somebody else's":             {uid: 1000, gid: 1001},
		"somebody else's, joined":     {uid: 1000, gid: 1001, groups: with(testGroups, "you:x:1001:you\n", "you:x:1001:me\n")},
		"not the primary one":         {uid: 1000, gid: 27},
		"nobody's":                    {uid: 1000, gid: 2000, groups: testGroups + "empty:x:2000:\n"},
		"unknown group":               {uid: 1000, gid: 1000, groups: with(testGroups, myGroup, "")},
		"unknown user":                {uid: 1000, gid: 1000, passwd: with(testPasswd, myLine, "")},
		"primary group is another":    {uid: 1000, gid: 1000, passwd: with(testPasswd, "me:x:1000:1000:", "me:x:1000:100:")},
		"another member":              {uid: 1000, gid: 1000, groups: with(testGroups, myGroup, "me:x:1000:you\n")},
		"a second member":             {uid: 1000, gid: 1000, groups: with(testGroups, myGroup, "me:x:1000:me,you\n")},
		"blank member":                {uid: 1000, gid: 1000, groups: with(testGroups, myGroup, "me:x:1000: \n")},
		"carriage return":             {uid: 1000, gid: 1000, groups: with(testGroups, myGroup, "me:x:1000:\r\n")},
		"similar member":              {uid: 1000, gid: 1000, groups: with(testGroups, myGroup, "me:x:1000:mee\n")},
		"a password to join":          {uid: 1000, gid: 1000, groups: with(testGroups, myGroup, "me:$6$ab$cd:1000:\n")},
		"two names for the group":     {uid: 1000, gid: 1000, groups: testGroups + "we:x:1000:you\n"},
		"two empty names":             {uid: 1000, gid: 1000, groups: testGroups + "we:x:1000:\n"},
		"primary group of two":        {uid: 1000, gid: 1000, passwd: testPasswd + "eve:x:1002:1000::/:/bin/sh\n"},
		"two names for the user":      {uid: 1000, gid: 1000, passwd: testPasswd + "moi:x:1000:1000::/:/bin/sh\n"},
		"another primary group, too":  {uid: 1000, gid: 1000, passwd: testPasswd + "moi:x:1000:50::/:/bin/sh\n"},
		"user without a name":         {uid: 1000, gid: 1000, passwd: with(testPasswd, "me:x:1000:", ":x:1000:")},
		"users from elsewhere":        {uid: 1000, gid: 1000, passwd: testPasswd + "+::::::\n"},
		"groups from elsewhere":       {uid: 1000, gid: 1000, groups: testGroups + "+:::\n"},
		"users from elsewhere, short": {uid: 1000, gid: 1000, passwd: testPasswd + "+\n"},
		"torn users":                  {uid: 1000, gid: 1000, passwd: testPasswd + "eve:x:10"},
		"torn groups":                 {uid: 1000, gid: 1000, groups: testGroups + "eve:x:10"},
		"groups too long":             {uid: 1000, gid: 1000, groups: testGroups + "eve:x:10:a:b\n"},
		"no number in users":          {uid: 1000, gid: 1000, passwd: testPasswd + "eve:x:1003:x::/:/bin/sh\n"},
		"no number in groups":         {uid: 1000, gid: 1000, groups: testGroups + "eve:x:-1:\n"},
		"wrapping number":             {uid: 1000, gid: 1000, groups: testGroups + "eve:x:4294968296:\n"},
		"no users":                    {uid: 1000, gid: 1000, passwd: "\n"},
		"no groups":                   {uid: 1000, gid: 1000, groups: "\n"},
		"rootless, not mapped":        {uid: 1000, gid: 1000, gidMap: "0 1000 1\n"},
		"rootless, another's":         {uid: 1000, gid: 1000, gidMap: podmanMap},
		"rootless, unknown":           {uid: 1000, gid: overflowID, gidMap: "0 1 65534\n65534 1000 1\n"},
		"no map":                      {uid: 1000, gid: 1000, gidMap: "\n"},
		"broken map":                  {uid: 1000, gid: 1000, gidMap: "0 0\n0 0 4294967295\n"},
		"map without numbers":         {uid: 1000, gid: 1000, gidMap: "a b c\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.gidMap == "" {
				tt.gidMap = initialMap
			}
			if tt.passwd == "" {
				tt.passwd = testPasswd
			}
			if tt.groups == "" {
				tt.groups = testGroups
			}
			if got := privateGroup(tt.uid, tt.gid, tt.gidMap, tt.passwd, tt.groups); got != tt.want {
				t.Errorf("%t", got)
			}
		})
	}
}

func FuzzPrivateGroup(f *testing.F) {
	f.Add(1000, 1000, initialMap, testPasswd, testGroups)
	f.Add(1000, 0, podmanMap, testPasswd, testGroups)
	f.Fuzz(func(t *testing.T, uid, gid int, gidMap, passwd, groups string) {
		if !privateGroup(uid, gid, gidMap, passwd, groups) {
			return
		}
		// One more who has it makes it shared.
		host, _ := outside(gidMap, gid)
		if privateGroup(uid, gid, gidMap, passwd+fmt.Sprintf("\neve:x:77:%d::/:/bin/sh\n", host), groups) && uid != 77 {
			t.Error("another user's primary group")
		}
		if privateGroup(uid, gid, gidMap, passwd, groups+fmt.Sprintf("\nus:x:%d:eve\n", host)) {
			t.Error("another user's group")
		}
	})
}

// Directories that other programs made with umask 002.
func TestParentOfPrivateGroup(t *testing.T) {
	uid, gid := os.Geteuid(), os.Getegid()
	dir := tree(t, ".local", "state", "sd")
	state1, local := filepath.Dir(dir), filepath.Dir(filepath.Dir(dir))
	for _, d := range []string{state1, local} {
		if err := os.Chown(d, uid, gid); err != nil {
			t.Fatal(err)
		}
		chmod(t, d, 0o775)
	}
	passwd := fmt.Sprintf("me:x:%d:%d::/:/bin/sh\n", uid, gid)
	group := fmt.Sprintf("me:x:%d:\n", gid)
	mine := accounts(uid, initialMap, initialMap, passwd, group)
	// Whatever the outer ids are: here the same, there one mapped.
	inside := accounts(uid, fmt.Sprintf("%d 5000 1\n", uid), fmt.Sprintf("%d 6000 1\n", gid), "me:x:5000:6000::/:/bin/sh\n", "me:x:6000:me\n")
	for name, c := range map[string]caller{"outside": mine, "inside": inside} {
		if got, err := state(dir).stateDir(c); err != nil || got != dir {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for name, c := range map[string]caller{
		"another member": accounts(uid, initialMap, initialMap, passwd, fmt.Sprintf("me:x:%d:eve\n", gid)),
		"another user":   accounts(uid, initialMap, initialMap, passwd+fmt.Sprintf("eve:x:77777:%d::/:/bin/sh\n", gid), group),
		"user unmapped":  accounts(uid, fmt.Sprintf("%d 5000 1\n", uid+1), initialMap, passwd, group),
		"unreadable":     {uid, initialMap, func(string) (string, error) { return passwd, errors.New("unreadable") }},
	} {
		if _, err := state(dir).stateDir(c); err == nil || !strings.Contains(err.Error(), "chmod go-w") {
			t.Errorf("%s: %v", name, err)
		}
	}
	refused := func(what string) {
		t.Helper()
		if _, err := state(dir).stateDir(mine); err == nil || !strings.Contains(err.Error(), "can be written by others") {
			t.Errorf("%s: %v", what, err)
		}
	}
	chmod(t, local, 0o777)
	refused("everybody's")
	chmod(t, local, 0o772)
	refused("everybody's, not readable")
	chmod(t, local, 0o775)
	chmod(t, dir, 0o770)
	refused("the directory itself")
	chmod(t, dir, 0o700)
	// user::rwx, user:77777:rwx, group::r-x, mask::rwx, other::r-x: the mode is
	// 0775 as before (linux/posix_acl_xattr.h).
	acl := []byte{2, 0, 0, 0}
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{0x01, 7, 0xffffffff}, {0x02, 7, 77777}, {0x04, 5, 0xffffffff}, {0x10, 7, 0xffffffff}, {0x20, 5, 0xffffffff}} {
		acl = append(acl, byte(e.tag), 0, byte(e.perm), 0, byte(e.id), byte(e.id>>8), byte(e.id>>16), byte(e.id>>24))
	}
	if err := syscall.Setxattr(local, "system.posix_acl_access", acl, 0); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Lstat(local); err != nil || fi.Mode().Perm() != 0o775 {
		t.Fatalf("%v, %v", fi.Mode(), err)
	}
	refused("somebody else's by an access control list")
	if err := syscall.Removexattr(local, "system.posix_acl_access"); err != nil {
		t.Fatal(err)
	}
	chmod(t, local, 0o775)
	if _, err := state(dir).stateDir(mine); err != nil {
		t.Error(err)
	}
}

// The files are read for such a parent only, and not without end.
func TestAccountsRead(t *testing.T) {
	dir := tree(t, "a", "sd")
	euid := os.Geteuid()
	c := caller{euid, initialMap, func(path string) (string, error) {
		t.Errorf("%s was read", path)
		return "", nil
	}}
	for _, mode := range []os.FileMode{0o700, 0o755, 0o777 | os.ModeSticky, 0o777} {
		chmod(t, filepath.Dir(dir), mode)
		if _, err := state(dir).stateDir(c); (err == nil) != (mode != 0o777) {
			t.Errorf("%v: %v", mode, err)
		}
	}
	big := filepath.Join(dir, "big")
	for size, ok := range map[int]bool{maxAccounts: true, maxAccounts + 1: false} {
		if err := os.WriteFile(big, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		if text, err := readBounded(big); (err == nil) != ok || ok && len(text) != size {
			t.Errorf("%d bytes: %d, %v", size, len(text), err)
		}
	}
	if _, err := readBounded(filepath.Join(dir, "none")); err == nil {
		t.Error("a missing file was read")
	}
}

func TestFullMap(t *testing.T) {
	for m, want := range map[string]bool{
		initialMap:    true,
		podmanMap:     false,
		"0 0 65536\n": false,
		"":            false,
	} {
		if fullMap(m) != want {
			t.Errorf("fullMap(%q) is %t", m, !want)
		}
	}
}
