// Package oci is what an OCI runtime tells a hook: the container's state on
// standard input and, in its annotations, where the container's state
// directory is. The annotations are whatever the creator of the container
// wrote, so the directory is believed only after every check has passed.
//
// It must never import anything but the standard library.
package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MaxState bounds the state a runtime may send, in bytes.
const MaxState = 1 << 20

// MaxPID is the largest process id of any Linux kernel (PID_MAX_LIMIT).
const MaxPID = 1 << 22

// Annotations written when a container is prepared.
const (
	KeyProfiles     = "terok.shield.profiles" // names joined by ":"; its presence makes the hooks run
	KeyName         = "terok.shield.name"
	KeyStateDir     = "terok.shield.state_dir"
	KeyVersion      = "terok.shield.version"
	KeyAuditEnabled = "terok.shield.audit_enabled" // "true" or "false"
	KeyUpstreamDNS  = "terok.shield.upstream_dns"
	KeyDNSTier      = "terok.shield.dns_tier"

	// DossierPrefix starts the keys of the dossier: facts an orchestrator
	// wants shown beside a question.
	DossierPrefix = "dossier."
	// DossierMetaPath is the dossier key, without prefix, that names a file
	// with further pairs. It is plumbing and never sent anywhere.
	DossierMetaPath = "meta_path"

	shieldPrefix = "terok.shield."
)

// Versions of the state directory's format that the hooks read.
const (
	MinVersion = 12
	MaxVersion = 16
)

// Bounds of a dossier. What exceeds them is left out: a dossier decorates a
// question and must not be able to suppress it.
const (
	MaxDossier      = 32   // pairs
	MaxDossierKey   = 64   // bytes
	MaxDossierValue = 1024 // bytes; MaxPath for meta_path
)

// MaxPath bounds a path in an annotation, in bytes (PATH_MAX less its NUL).
const MaxPath = 4095

// State is an OCI container state as far as the hooks use it.
type State struct {
	ID          string            // "" or 12 to 64 hexadecimal digits
	PID         int               // of the container's first process; 0 if absent, as at poststop
	Status      string            // "created", "stopped", …
	Annotations map[string]string // never nil; annotations that are not strings are left out
}

// Read decodes the state on a hook's standard input. Anything ambiguous in a
// field the hooks use is refused: invalid UTF-8, a repeated key, a value of
// another type, data after the object.
func Read(r io.Reader) (*State, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxState+1))
	if err != nil {
		return nil, fmt.Errorf("read OCI state: %w", err)
	}
	if len(data) > MaxState {
		return nil, fmt.Errorf("OCI state is larger than %d bytes; use fewer or shorter annotations", MaxState)
	}
	s, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("OCI state on standard input: %w", err)
	}
	return s, nil
}

func decode(data []byte) (*State, error) {
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return nil, errors.New("is empty; this program is started by an OCI runtime")
	case !utf8.Valid(data):
		return nil, errors.New("is not valid UTF-8")
	case !json.Valid(data):
		return nil, errors.New("is not one JSON value")
	}

	s := &State{Annotations: map[string]string{}}
	var pid json.RawMessage
	err := members(data, func(key string) bool {
		switch key {
		case "id", "pid", "status", "annotations":
			return true
		}
		return false
	}, func(key string, raw json.RawMessage) error {
		var err error
		switch key {
		case "id":
			s.ID, err = text(key, raw)
		case "status":
			s.Status, err = text(key, raw)
		case "pid":
			pid = raw
		case "annotations":
			err = s.annotations(raw)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if s.ID != "" && !hexID(s.ID) {
		return nil, fmt.Errorf("id %s is not 12 to 64 hexadecimal digits", quote(s.ID))
	}
	if pid != nil {
		n, err := strconv.Atoi(string(pid))
		// Runtimes that always send the field send 0 once the process is gone.
		gone := n == 0 && s.Status == "stopped"
		if err != nil || n < 0 || n > MaxPID || n == 0 && !gone || string(pid) != strconv.Itoa(n) {
			return nil, fmt.Errorf("pid %s is not a process id", quote(string(pid)))
		}
		s.PID = n
	}
	return s, nil
}

// annotations fills in the annotations. null is the same as none.
func (s *State) annotations(raw json.RawMessage) error {
	if string(raw) == "null" {
		return nil
	}
	err := members(raw, ours, func(key string, raw json.RawMessage) error {
		if raw[0] != '"' && !ours(key) {
			return nil
		}
		v, err := text(key, raw)
		if err != nil {
			return err
		}
		s.Annotations[key] = v
		return nil
	})
	if err != nil {
		return fmt.Errorf("annotations: %w", err)
	}
	return nil
}

// ours reports whether the annotation means something to the hooks.
func ours(key string) bool {
	return strings.HasPrefix(key, shieldPrefix) || strings.HasPrefix(key, DossierPrefix)
}

// members calls visit for each member of the JSON object in data, which is
// valid JSON, and refuses a repeated key for which once is true. Keys compare
// exactly, unlike those of encoding/json's structs.
func members(data []byte, once func(string) bool, visit func(string, json.RawMessage) error) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return errors.New("is not a JSON object")
	}
	seen := make(map[string]bool)
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		key := t.(string) // a member of an object starts with its key
		if once(key) {
			if seen[key] {
				return fmt.Errorf("%s appears twice", quote(key))
			}
			seen[key] = true
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return err
		}
		if err := visit(key, raw); err != nil {
			return err
		}
	}
	return nil
}

// text is a JSON string. Half a surrogate pair, which JSON can spell and
// UTF-8 cannot, is refused in what we interpret instead of being replaced.
func text(key string, raw json.RawMessage) (string, error) {
	var v *string
	if err := json.Unmarshal(raw, &v); err != nil || v == nil {
		return "", fmt.Errorf("%s is not a string", quote(key))
	}
	if !strings.HasPrefix(key, DossierPrefix) && ours(key) && strings.ContainsRune(*v, utf8.RuneError) {
		return "", fmt.Errorf("%s contains a character that cannot be represented", quote(key))
	}
	return *v, nil
}

func hexID(s string) bool {
	if len(s) < 12 || len(s) > 64 {
		return false
	}
	return strings.Trim(s, "0123456789abcdefABCDEF") == ""
}

// quote makes untrusted text fit for one line of a message.
func quote(s string) string {
	const most = 100
	if len(s) > most {
		return strconv.Quote(s[:most]) + "…"
	}
	return strconv.Quote(s)
}

// Short is the first 12 digits of the container's id, which name its sockets;
// "" without an id.
func (s *State) Short() string {
	return s.ID[:min(12, len(s.ID))]
}

// Dossier is what the annotations say about the container, keys without
// their prefix, including meta_path. If there is too much, the keys that sort
// first are kept.
func (s *State) Dossier() map[string]string {
	out := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(s.Annotations)) {
		key, ok := strings.CutPrefix(name, DossierPrefix)
		value := s.Annotations[name]
		most := MaxDossierValue
		if key == DossierMetaPath {
			most = MaxPath
		}
		if !ok || key == "" || len(key) > MaxDossierKey || len(value) > most {
			continue
		}
		// A place is kept for meta_path, without which other facts are lost.
		if key == DossierMetaPath || len(out) < MaxDossier {
			out[key] = value
		}
	}
	return out
}

// Version is the format of a state directory, from its annotation. Hooks read
// the formats 12 to 16; they differ in files the hooks do not use.
func Version(s string) (int, error) {
	n, err := strconv.Atoi(s)
	switch {
	case s == "":
		return 0, fmt.Errorf("annotation %s is missing; prepare the container again", KeyVersion)
	case err != nil || s != strconv.Itoa(n):
		return 0, fmt.Errorf("annotation %s is %s, not a number; prepare the container again", KeyVersion, quote(s))
	case n < MinVersion || n > MaxVersion:
		return 0, fmt.Errorf("state directory has format %d and this program reads %d to %d; prepare the container again", n, MinVersion, MaxVersion)
	}
	return n, nil
}

// HostUID is the user id outside a user namespace of uid inside, from the
// text of /proc/self/uid_map: lines of inner id, outer id and count. It looks
// one namespace up. Lines of another form are skipped; an id that is not
// mapped is returned as it is.
func HostUID(uidMap string, uid int) int {
	for line := range strings.Lines(uidMap) {
		inner, outer, count, ok := mapping(line)
		if d := int64(uid) - inner; ok && d >= 0 && d < count {
			return int(outer + d)
		}
	}
	return uid
}

func mapping(line string) (inner, outer, count int64, ok bool) {
	f := strings.Fields(line)
	if len(f) != 3 {
		return 0, 0, 0, false
	}
	var n [3]int64
	for i := range n {
		u, err := strconv.ParseUint(f[i], 10, 32)
		if err != nil {
			return 0, 0, 0, false
		}
		n[i] = int64(u)
	}
	return n[0], n[1], n[2], true
}
