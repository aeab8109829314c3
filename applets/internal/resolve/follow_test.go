package resolve

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseConfig(t *testing.T) {
	for text, want := range map[string]Config{
		"options rotate use-vc timeout:3 attempts:4 edns0 ndots:1":                {Timeout: 3 * time.Second, Attempts: 4, Rotate: true, TCP: true},
		"options timeout:0 attempts:0":                                            {Timeout: time.Second, Attempts: 1},
		"options timeout:1000 attempts:60000":                                     {Timeout: 30 * time.Second, Attempts: 5},
		"options timeout:3\noptions timeout:4 rotate":                             {Timeout: 4 * time.Second, Rotate: true},
		"options timeout:-1 attempts: timeout attempts:99999999 rotated use-vc:1": {TCP: true},
		"option rotate\n# options rotate\nrotate":                                 {},
	} {
		got, err := ParseConfig([]byte(text))
		got.Servers = nil
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%q: %v\n(-want +got):\n%s", text, err, diff)
		}
	}
}

// The file may be replaced in every way, and what makes no sense changes
// nothing.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "resolv.conf")
		other := filepath.Join(dir, "other")
		var log bytes.Buffer
		f := Follow(path, 0, slog.New(slog.NewTextHandler(&log, nil)))
		fail := func(errs ...error) {
			t.Helper()
			for _, err := range errs {
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		write := func(path, text string) {
			t.Helper()
			fail(os.WriteFile(path, []byte(text), 0o600))
		}
		// expect looks at once and a second later.
		expect := func(what, before, after string) {
			t.Helper()
			for _, want := range []string{before, after} {
				c, err := f.Config()
				var got []string
				for _, s := range c.Servers {
					got = append(got, strings.TrimSuffix(s.String(), ":53"))
				}
				if s := strings.Join(got, " "); s != want || (err != nil) != (want == "") {
					t.Errorf("%s: %s, %v; want %q", what, s, err, want)
				}
				time.Sleep(pollInterval)
			}
		}
		_, err := f.Config()
		if err == nil || !strings.Contains(err.Error(), "no such file") || !strings.Contains(err.Error(), `write "nameserver ADDRESS" into `+path+" on this host") {
			t.Errorf("%v", err)
		}
		expect("no file", "", "")
		write(path, "nameserver 192.0.2.1\n")
		expect("it appears", "192.0.2.1", "192.0.2.1")
		write(path, "nameserver 192.0.2.2\n")
		expect("changed", "192.0.2.2", "192.0.2.2") // more than a second after the last look
		_, _ = f.Config()
		write(path, "nameserver 192.0.2.3\n")
		expect("changed right after a look", "192.0.2.2", "192.0.2.3")
		write(other, "nameserver 192.0.2.4\n")
		fail(os.Rename(other, path))
		expect("replaced", "192.0.2.4", "192.0.2.4")
		write(other+"1", "nameserver 192.0.2.5\nnameserver 192.0.2.6\n")
		fail(os.Symlink("other1", other), os.Rename(other, path))
		expect("a symbolic link now", "192.0.2.5 192.0.2.6", "192.0.2.5 192.0.2.6")
		write(other+"2", "nameserver 192.0.2.7\n")
		fail(os.Symlink("other2", other), os.Rename(other, path))
		expect("another link", "192.0.2.7", "192.0.2.7")
		log.Reset()
		for what, change := range map[string]func(){
			"emptied":                   func() { write(other+"2", "") },
			"no servers":                func() { write(other+"2", "# nameserver 192.0.2.9\nsearch example.com\n") },
			"no address":                func() { write(other+"2", "nameserver x\n") },
			"too large":                 func() { write(other+"2", "nameserver 192.0.2.9\n"+strings.Repeat("#", maxResolvConf)) },
			"a link into nowhere":       func() { fail(os.RemoveAll(other + "2")) },
			"a directory in that place": func() { fail(os.RemoveAll(other+"2"), os.Mkdir(other+"2", 0o700)) },
		} {
			log.Reset()
			change()
			expect(what, "192.0.2.7", "192.0.2.7")
			expect(what, "192.0.2.7", "192.0.2.7")
			if n := strings.Count(log.String(), "level=WARN"); n != 1 {
				t.Errorf("%s: %d warnings:\n%s", what, n, &log)
			}
			fail(os.Remove(path))
			write(path, "nameserver 192.0.2.7\n")
			expect("after "+what, "192.0.2.7", "192.0.2.7")
			fail(os.RemoveAll(other+"2"), os.Remove(path), os.Symlink("other2", path))
		}
		fail(os.Remove(path))
		write(path, "nameserver 2001:db8::1\n")
		expect("recovered", "[2001:db8::1]", "[2001:db8::1]")
		if !strings.Contains(log.String(), "other name servers from now on") {
			t.Errorf("log:\n%s", &log)
		}
	})
}
