// Package dossier is what an orchestrator wants shown beside a question about
// its container, or beside what was done to it: pairs of text, of which some
// are fixed when the container is created and others stand in a file that the
// orchestrator keeps up to date. They decorate, so nothing depends on them:
// what cannot be read is left out.
//
// It must never import a package of ours but those of wire.
package dossier

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/oci"
	"github.com/terok-ai/terok-box/wire/sanitize"
)

// maxFile bounds the file, in bytes.
const maxFile = 64 << 10

// Dossier is the pairs of one container. The zero value has none.
type Dossier struct {
	fixed map[string]string
	path  string // of the file; "" if there is none
}

// New is a dossier of fixed pairs, of which the one named meta_path is the
// absolute path of the file and no pair.
func New(pairs map[string]string) Dossier {
	return Dossier{fixed: clean(pairs), path: pairs[oci.DossierMetaPath]}
}

// Of is the dossier of a container of which only its state directory is
// known: all of it stands in the file.
func Of(b *bundle.Bundle) (Dossier, error) {
	path, err := b.MetaPath()
	return Dossier{path: path}, err
}

// Keys by which a container is shown.
const (
	keyContainer = "container_name"
	keyName      = "name"
	keyProject   = "project"
	keyTask      = "task"
)

// Called is fixed pairs with what people call the container, unless they say
// that themselves.
func Called(pairs map[string]string, container string) map[string]string {
	out := map[string]string{keyContainer: container}
	maps.Copy(out, pairs)
	return out
}

// label has the container shown by its name, where it would be by its id.
func label(pairs map[string]string) {
	if pairs[keyName] == "" && pairs[keyContainer] != "" && (pairs[keyProject] == "" || pairs[keyTask] == "") {
		pairs[keyName] = pairs[keyContainer]
	}
}

// Now is the pairs as they are now: those of the file in the place of fixed
// ones of the same name. The error says why the file's are missing, and the
// fixed ones are there all the same. The map is the caller's.
func (d Dossier) Now() (map[string]string, error) {
	out := map[string]string{}
	maps.Copy(out, d.fixed)
	var err error
	if d.path != "" {
		var pairs map[string]string
		if pairs, err = read(d.path); err != nil {
			err = fmt.Errorf("dossier: %w", err)
		}
		maps.Copy(out, pairs)
	}
	label(out)
	bound(out)
	return out, err
}

// read is the pairs in a file. Whoever is asked about a container must not
// wait for a FIFO, nor be shown another user's file through a link.
func read(path string) (map[string]string, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%.200q is not an absolute path", path)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	uid := int(fi.Sys().(*syscall.Stat_t).Uid)
	switch {
	case !fi.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case uid != os.Geteuid():
		return nil, fmt.Errorf("%s belongs to uid %d, not to uid %d", path, uid, os.Geteuid())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	pairs, err := Parse(string(data))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return clean(pairs), nil
}

// Parse is the pairs in a JSON object, as they stand there, for New: those
// whose value is text that is not empty, or a number other than 0. Others are
// left out.
func Parse(text string) (map[string]string, error) {
	var raw map[string]any
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	if err := dec.Decode(&raw); err != nil {
		return nil, fmt.Errorf("no JSON object: %w", err)
	}
	if _, err := dec.Token(); raw == nil || !errors.Is(err, io.EOF) {
		return nil, errors.New("no JSON object, or more than one")
	}
	pairs := make(map[string]string)
	for k, v := range raw {
		switch v := v.(type) {
		case string:
			if v != "" {
				pairs[k] = v
			}
		case json.Number:
			if f, err := strconv.ParseFloat(v.String(), 64); err != nil || f != 0 {
				pairs[k] = v.String()
			}
		}
	}
	return pairs, nil
}

// clean is the pairs that can be shown, within bounds, without meta_path.
func clean(pairs map[string]string) map[string]string {
	out := make(map[string]string)
	for k, v := range pairs {
		if v != "" && k != oci.DossierMetaPath && isKey(k) {
			out[k] = sanitize.String(v, sanitize.Max)
		}
	}
	bound(out)
	return out
}

// bound leaves the keys that sort first.
func bound(pairs map[string]string) {
	if len(pairs) <= oci.MaxDossier {
		return
	}
	for _, k := range slices.Sorted(maps.Keys(pairs))[oci.MaxDossier:] {
		delete(pairs, k)
	}
}

// isKey reports whether a key is short and shows as it is.
func isKey(k string) bool {
	return k != "" && len(k) <= oci.MaxDossierKey && utf8.ValidString(k) &&
		!strings.ContainsFunc(k, func(r rune) bool { return r < ' ' || r > '~' })
}
