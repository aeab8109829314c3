package dossier

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/oci"
	"github.com/terok-ai/terok-box/wire/sanitize"
)

func write(t *testing.T, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "meta.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What a container is shown as: its task, its name, what people call it.
func TestCalled(t *testing.T) {
	type pairs = map[string]string
	for name, tt := range map[string]struct {
		fixed pairs
		text  string
		want  pairs
	}{
		"nothing else":   {nil, `{}`, pairs{"container_name": "demo", "name": "demo"}},
		"a name":         {pairs{"name": "n"}, `{}`, pairs{"container_name": "demo", "name": "n"}},
		"another name":   {pairs{"container_name": "x"}, `{}`, pairs{"container_name": "x", "name": "x"}},
		"half a task":    {pairs{"project": "p"}, `{}`, pairs{"container_name": "demo", "name": "demo", "project": "p"}},
		"a task":         {pairs{"project": "p"}, `{"task":"t"}`, pairs{"container_name": "demo", "project": "p", "task": "t"}},
		"a name of late": {nil, `{"name":"n"}`, pairs{"container_name": "demo", "name": "n"}},
		"no file":        {nil, ``, pairs{"container_name": "demo", "name": "demo"}},
	} {
		fixed := Called(tt.fixed, "demo")
		fixed["meta_path"] = write(t, tt.text)
		got, _ := New(fixed).Now()
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s (-want +got)\n%s", name, d)
		}
	}
}

func TestNow(t *testing.T) {
	type pairs = map[string]string
	fixed := pairs{"project": "p", "task": "t"}
	for name, tt := range map[string]struct {
		text string
		want pairs
		bad  bool
	}{
		"overlaid":       {`{"task":"u","name":"n"}`, pairs{"project": "p", "task": "u", "name": "n"}, false},
		"empty ones":     {`{"task":"","name":null,"a":0,"b":0.0,"c":false,"d":[],"e":{}}`, fixed, false},
		"numbers":        {`{"task":7,"a":-0.5}`, pairs{"project": "p", "task": "7", "a": "-0.5"}, false},
		"others":         {`{"a":true,"b":["x"],"c":{"x":"y"},"name":"n"}`, pairs{"project": "p", "task": "t", "name": "n"}, false},
		"the last one":   {`{"name":"m","name":"n"}`, pairs{"project": "p", "task": "t", "name": "n"}, false},
		"not to be sent": {`{"meta_path":"/etc/passwd"}`, fixed, false},
		"controls":       {`{"name":"a\u001b[31m\n\u202e","b\n":"x","":"y"}`, pairs{"project": "p", "task": "t", "name": "a [31m  "}, false},
		"white space":    {" {\"name\":\"n\"}\n", pairs{"project": "p", "task": "t", "name": "n"}, false},
		"empty object":   {`{}`, fixed, false},
		"empty file":     {``, fixed, true},
		"null":           {`null`, fixed, true},
		"list":           {`[]`, fixed, true},
		"text":           {`"x"`, fixed, true},
		"torn":           {`{"name":"n"`, fixed, true},
		"two":            {`{"name":"n"}{}`, fixed, true},
		"not JSON":       {`name: n`, fixed, true},
		"nested":         {strings.Repeat("[", 60000), fixed, true},
		"too large":      {`{"name":"` + strings.Repeat("n", maxFile) + `"}`, fixed, true},
	} {
		path := write(t, tt.text)
		got, err := New(pairs{"project": "p", "task": "t", "meta_path": path}).Now()
		if d := cmp.Diff(tt.want, got); d != "" || (err != nil) != tt.bad {
			t.Errorf("%s: %v (-want +got)\n%s", name, err, d)
		}
		if err != nil && (len(err.Error()) > 1000 || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s: message %q", name, err)
		}
	}
	if got, err := New(fixed).Now(); err != nil || !cmp.Equal(got, fixed) {
		t.Errorf("without a file: %v, %v", got, err)
	}
	if got, err := (Dossier{}).Now(); err != nil || len(got) != 0 || got == nil {
		t.Errorf("of nothing: %v, %v", got, err)
	}
}

// The fixed pairs are there whatever stands in the place of the file, and
// nobody waits for it.
func TestNoFile(t *testing.T) {
	dir := t.TempDir()
	fixed := map[string]string{"project": "p"}
	good := write(t, `{"project":"q"}`)
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Symlink(good, at("link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(at("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{at("missing"), at("link"), at("fifo"), dir, "/dev/zero", "meta.json", "a\x00b", "/proc/1/root/x\ny"} {
		got, err := New(map[string]string{"project": "p", oci.DossierMetaPath: path}).Now()
		if err == nil || !cmp.Equal(got, fixed) {
			t.Errorf("%q: %v, %v", path, got, err)
		}
	}
	if os.Geteuid() == 0 { // else it is not possible to have one
		foreign := write(t, `{"project":"q"}`)
		if err := os.Chown(foreign, 4711, 4711); err != nil {
			t.Fatal(err)
		}
		got, err := New(map[string]string{"project": "p", oci.DossierMetaPath: foreign}).Now()
		if err == nil || !cmp.Equal(got, fixed) {
			t.Errorf("another user's: %v, %v", got, err)
		}
	}
}

// It is read anew every time.
func TestChange(t *testing.T) {
	path := write(t, `{"task":"1"}`)
	d := New(map[string]string{"task": "0", oci.DossierMetaPath: path})
	for _, want := range []string{"1", "2", "0", "3"} {
		switch want {
		case "0":
			os.Remove(path)
		case "2", "3":
			os.WriteFile(path, []byte(fmt.Sprintf(`{"task":%q}`, want)), 0o600)
		}
		got, _ := d.Now()
		if got["task"] != want {
			t.Errorf("%v, want %s", got, want)
		}
		got["task"] = "changed" // by whoever asked
	}
}

func TestOf(t *testing.T) {
	b, err := bundle.Create(filepath.Join(t.TempDir(), "sd"))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	now := func() (map[string]string, error) {
		d, err := Of(b)
		if err != nil {
			return nil, err
		}
		return d.Now()
	}
	if got, err := now(); err != nil || len(got) > 0 {
		t.Errorf("without meta_path: %v, %v", got, err)
	}
	if err := b.SetMetaPath(write(t, `{"task":"t"}`)); err != nil {
		t.Fatal(err)
	}
	if got, err := now(); err != nil || !cmp.Equal(got, map[string]string{"task": "t"}) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestBounds(t *testing.T) {
	var text strings.Builder
	fixed := map[string]string{}
	for i := range 100 {
		fmt.Fprintf(&text, `"f%03d":%q,`, i, strings.Repeat("v", 300))
		fixed[fmt.Sprintf("a%03d", i)] = strings.Repeat("w", 300)
	}
	path := write(t, "{"+text.String()+`"`+strings.Repeat("k", oci.MaxDossierKey+1)+`":"v"}`)
	fixed[oci.DossierMetaPath] = path
	got, err := New(fixed).Now()
	if err != nil || len(got) != oci.MaxDossier {
		t.Errorf("%d pairs, %v", len(got), err)
	}
	for k, v := range got {
		if len(v) > sanitize.Max || k[0] != 'a' {
			t.Errorf("%q: %d bytes", k, len(v))
		}
	}
}

// Whatever stands in a file, what comes out of it can be shown and is bounded.
func FuzzParse(f *testing.F) {
	f.Add(`{"task":"t","n":1,"x":null}`)
	f.Add(`{"a\u0000":"b","c":"\ud800"}`)
	f.Add("{\"\xff\":\"\xfe\"}")
	f.Fuzz(func(t *testing.T, text string) {
		raw, err := Parse(text)
		if err != nil {
			return
		}
		delete(raw, oci.DossierMetaPath)
		pairs, err := New(raw).Now()
		if err != nil {
			t.Fatal(err)
		}
		if len(pairs) > oci.MaxDossier {
			t.Errorf("%d pairs", len(pairs))
		}
		for k, v := range pairs {
			if k == "" || len(k) > oci.MaxDossierKey || sanitize.String(k, oci.MaxDossierKey) != k || k == oci.DossierMetaPath {
				t.Errorf("key %q", k)
			}
			if v == "" || sanitize.String(v, sanitize.Max) != v {
				t.Errorf("value %q", v)
			}
		}
	})
}
