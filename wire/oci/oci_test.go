package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

const id64 = "4f1c2a9be07d4c55a1f09f3c6d2e8b7a0d9c8b7a6f5e4d3c2b1a09f8e7d6c5b4"

// As crun 1.8.1 under a rootless Podman 4.3.1 sends it.
const created = `{
    "ociVersion": "1.0",
    "id": "` + id64 + `",
    "pid": 4242,
    "root": "/home/op/.local/share/containers/storage/vfs/dir/x",
    "bundle": "/home/op/.local/share/containers/storage/vfs-containers/x/userdata",
    "status": "created",
    "annotations": {
        "dossier.meta_path": "/home/op/meta.json",
        "dossier.project": "p1",
        "io.podman.annotations.init": "FALSE",
        "terok.shield.name": "demo",
        "terok.shield.profiles": "base:dev-standard",
        "terok.shield.state_dir": "/home/op/sd",
        "terok.shield.version": "14"
    }
}`

func TestReadRuntimes(t *testing.T) {
	want := &State{
		ID: id64, PID: 4242, Status: "created",
		Annotations: map[string]string{
			"dossier.meta_path":          "/home/op/meta.json",
			"dossier.project":            "p1",
			"io.podman.annotations.init": "FALSE",
			KeyName:                      "demo",
			KeyProfiles:                  "base:dev-standard",
			KeyStateDir:                  "/home/op/sd",
			KeyVersion:                   "14",
		},
	}
	got, err := Read(iotest.OneByteReader(strings.NewReader(created)))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("created (-want +got)\n%s", d)
	}
	if got.Short() != id64[:12] {
		t.Errorf("Short is %q", got.Short())
	}

	// At poststop crun leaves the pid out; other runtimes send 0.
	for _, pid := range []string{"", `"pid":0,`} {
		got, err := Read(strings.NewReader(`{"ociVersion":"1.0.2-dev","id":"` + id64 + `",` + pid + `"status":"stopped","annotations":null}` + "\n"))
		want := &State{ID: id64, Status: "stopped", Annotations: map[string]string{}}
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Errorf("stopped: %v (-want +got)\n%s", err, d)
		}
	}
}

// States observed from real runtimes, where they are at hand.
func TestReadObserved(t *testing.T) {
	files, err := filepath.Glob("../../../shared/vectors/oci/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		s, err := Read(f)
		f.Close()
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		stopped := strings.HasPrefix(filepath.Base(file), "poststop")
		if len(s.ID) != 64 || (s.PID == 0) != stopped || s.Annotations[KeyVersion] != "14" || s.Dossier()["project"] != "p1" {
			t.Errorf("%s: %+v", file, s)
		}
	}
}

func TestRead(t *testing.T) {
	with := func(annotations string) string { return `{"annotations":{` + annotations + `}}` }
	none := map[string]string{}
	for _, tt := range []struct {
		name, in string
		want     *State // nil: refused
	}{
		{"empty object", `{}`, &State{Annotations: none}},
		{"empty id", `{"id":""}`, &State{Annotations: none}},
		{"shortest id", `{"id":"0123456789aB"}`, &State{ID: "0123456789aB", Annotations: none}},
		{"keys are case sensitive", `{"ID":5,"Pid":"x","STATUS":[],"Annotations":7}`, &State{Annotations: none}},
		{"escaped key", with(`"terok.shield.\u006eame":"x"`), &State{Annotations: map[string]string{KeyName: "x"}}},
		{"foreign annotations may be anything", with(`"a":1,"b":null,"c":{"d":[]},"e":"x","e":"y"`), &State{Annotations: map[string]string{"e": "y"}}},
		{"foreign members may be repeated", `{"root":1,"root":2}`, &State{Annotations: none}},
		{"half a surrogate in a dossier", with(`"dossier.name":"a\ud800"`), &State{Annotations: map[string]string{"dossier.name": "a\ufffd"}}},
		{"largest pid", `{"pid":4194304}`, &State{PID: MaxPID, Annotations: none}},

		{"nothing", ``, nil},
		{"blank", " \n", nil},
		{"not JSON", `{`, nil},
		{"array", `[]`, nil},
		{"null", `null`, nil},
		{"string", `"x"`, nil},
		{"trailing value", `{} {}`, nil},
		{"trailing text", `{}x`, nil},
		{"trailing NUL", "{}\x00", nil},
		{"invalid UTF-8", "{\"root\":\"\xff\"}", nil},
		{"byte order mark", "\ufeff{}", nil},
		{"id twice", `{"id":"` + id64 + `","id":"` + id64 + `"}`, nil},
		{"id twice, once escaped", `{"id":"` + id64 + `","\u0069d":"` + id64 + `"}`, nil},
		{"pid twice", `{"pid":1,"pid":1}`, nil},
		{"status twice", `{"status":"","status":""}`, nil},
		{"annotations twice", `{"annotations":null,"annotations":{}}`, nil},
		{"id too short", `{"id":"0123456789a"}`, nil},
		{"id too long", `{"id":"0` + id64 + `"}`, nil},
		{"id not hexadecimal", `{"id":"0123456789ag"}`, nil},
		{"id with line end", `{"id":"0123456789ab\n"}`, nil},
		{"id with path", `{"id":"../../../../etc"}`, nil},
		{"id number", `{"id":123456789012}`, nil},
		{"id null", `{"id":null}`, nil},
		{"status number", `{"status":1}`, nil},
		{"annotations array", `{"annotations":[]}`, nil},
		{"annotations string", `{"annotations":"terok.shield.state_dir"}`, nil},
		{"annotations false", `{"annotations":false}`, nil},
		{"state_dir twice", with(`"terok.shield.state_dir":"/a","terok.shield.state_dir":"/a"`), nil},
		{"dossier key twice", with(`"dossier.a":"","dossier.a":""`), nil},
		{"state_dir null", with(`"terok.shield.state_dir":null`), nil},
		{"version number", with(`"terok.shield.version":14`), nil},
		{"dossier number", with(`"dossier.task":1`), nil},
		{"half a surrogate in state_dir", with(`"terok.shield.state_dir":"/a\ud800"`), nil},

		// A pid that is no number reached the namespace lookup of other
		// programs unchecked.
		{"pid 0 of a container that is not stopped", `{"pid":0,"status":"created"}`, nil},
		{"pid negative", `{"pid":-1}`, nil},
		{"pid minus zero", `{"pid":-0,"status":"stopped"}`, nil},
		{"pid string", `{"pid":"1"}`, nil},
		{"pid path", `{"pid":"self"}`, nil},
		{"pid fraction", `{"pid":1.0}`, nil},
		{"pid exponent", `{"pid":1e3}`, nil},
		{"pid null", `{"pid":null}`, nil},
		{"pid true", `{"pid":true}`, nil},
		{"pid beyond the kernel's", `{"pid":4194305}`, nil},
		{"pid beyond 64 bits", `{"pid":18446744073709551617}`, nil},
		{"too large", `{"root":"` + strings.Repeat("x", MaxState) + `"}`, nil},
		{"deep", strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Read(strings.NewReader(tt.in))
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("%v (-want +got)\n%s", err, d)
			}
			if (err == nil) != (tt.want != nil) {
				t.Errorf("error %v", err)
			}
			if err != nil && (len(err.Error()) > 300 || strings.ContainsAny(err.Error(), "\n\x00")) {
				t.Errorf("message is not fit for one line: %.400q", err)
			}
		})
	}
	broken := errors.New("broken")
	if _, err := Read(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("a read error became %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(created))
	f.Add([]byte(`{"id":"","pid":1,"annotations":{"dossier.":"","dossier.x":"\ud800"}}`))
	f.Add([]byte(`{"pid":0,"status":"stopped","annotations":null}`))
	f.Add([]byte(`{"annotations":{"terok.shield.state_dir":"/tmp/../etc"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Read(bytes.NewReader(data))
		if err != nil {
			if s != nil {
				t.Fatal("an error and a state")
			}
			return
		}
		if s.PID < 0 || s.PID > MaxPID || s.ID != "" && !hexID(s.ID) || len(s.Short()) > 12 || s.Annotations == nil {
			t.Fatalf("%+v", s)
		}
		for k, v := range s.Annotations {
			if !utf8.ValidString(k) || !utf8.ValidString(v) {
				t.Fatalf("annotation %q: %q", k, v)
			}
		}
		for k, v := range s.Dossier() {
			if s.Annotations[DossierPrefix+k] != v {
				t.Fatalf("dossier %q: %q", k, v)
			}
		}
		// What was understood is what the object says to anybody else.
		var doc struct {
			ID          string
			Annotations map[string]any
		}
		if err := json.Unmarshal(data, &doc); err == nil && !strings.Contains(strings.ToLower(string(data)), "\\u") {
			if v, ok := doc.Annotations[KeyStateDir]; ok && s.Annotations != nil && len(s.Annotations) > 0 && v != s.Annotations[KeyStateDir] &&
				bytes.Count(bytes.ToLower(data), []byte("annotations")) == 1 {
				t.Fatalf("state_dir %q, not %q", s.Annotations[KeyStateDir], v)
			}
		}
		if dir, err := s.stateDir(caller{euid: 1, uidMap: podmanMap}); err == nil && (!filepath.IsAbs(dir) || systemDir(dir) != "") {
			t.Fatalf("state directory %q", dir)
		}
	})
}

func TestDossier(t *testing.T) {
	s := &State{Annotations: map[string]string{
		"dossier.project":                    "p",
		"dossier.task":                       "",
		"dossier.meta_path":                  "/" + strings.Repeat("m", MaxPath-1),
		"dossier.":                           "no key",
		"dossier":                            "no prefix",
		"xdossier.a":                         "other prefix",
		"dossier.dossier.a":                  "only one prefix is stripped",
		"dossier." + strings.Repeat("k", 64): strings.Repeat("v", MaxDossierValue),
		"dossier." + strings.Repeat("k", 65): "key too long",
		"dossier.long":                       strings.Repeat("v", MaxDossierValue+1),
		"terok.shield.name":                  "n",
		"dossier.meta_path_":                 strings.Repeat("m", MaxDossierValue+1),
	}}
	want := map[string]string{
		"project": "p", "task": "", "meta_path": "/" + strings.Repeat("m", MaxPath-1),
		"dossier.a":             "only one prefix is stripped",
		strings.Repeat("k", 64): strings.Repeat("v", MaxDossierValue),
	}
	if d := cmp.Diff(want, s.Dossier()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}

	// A dossier of any number of keys pushed other programs' messages over
	// their limit.
	s = &State{Annotations: map[string]string{"dossier.meta_path": "/m"}}
	for i := range 1000 {
		s.Annotations[fmt.Sprintf("dossier.%04d", i)] = "v"
	}
	got := s.Dossier()
	if len(got) != MaxDossier+1 || got["meta_path"] != "/m" || got["0000"] != "v" || got["0031"] != "v" {
		t.Errorf("%d pairs: %v", len(got), got)
	}
}

func TestVersion(t *testing.T) {
	for s, want := range map[string]int{
		"12": 12, "13": 13, "14": 14, "15": 15, "16": 16,
		"": 0, "11": 0, "17": 0, "014": 0, "+14": 0, " 14": 0, "14 ": 0, "14\n": 0, "14.0": 0, "0xe": 0, "1_4": 0,
		"-14": 0, "١٤": 0, "99999999999999999999": 0, strings.Repeat("1", 1<<20): 0,
	} {
		got, err := Version(s)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("Version(%.40q) = %d, %v", s, got, err)
		}
		if err != nil && (len(err.Error()) > 300 || strings.Contains(err.Error(), "\n")) {
			t.Errorf("message is not fit for one line: %.400q", err)
		}
	}
}

func TestHostUID(t *testing.T) {
	const podman = "         0       1000          1\n         1     100000      65536\n"
	for _, tt := range []struct {
		m         string
		uid, want int
	}{
		{"         0          0 4294967295\n", 0, 0},
		{"         0          0 4294967295\n", 1000, 1000},
		{podman, 0, 1000},
		{podman, 1, 100000},
		{podman, 65536, 165535},
		{podman, 65537, 65537}, // not mapped
		{"", 7, 7},
		{"0 5 0\n", 0, 0}, // an empty range
		{"x y z\n0 1\n0 1 2 3\n0 -1 5\n0 1e3 5\n\n0 42 1", 0, 42},
		{"0 10 5\n0 20 5\n", 0, 10}, // the first match counts
		{"0 99999999999999999999 5\n0 1 1\n", 0, 1},
		{podman, -1, -1},
	} {
		if got := HostUID(tt.m, tt.uid); got != tt.want {
			t.Errorf("HostUID(%q, %d) = %d, want %d", tt.m, tt.uid, got, tt.want)
		}
	}
}
