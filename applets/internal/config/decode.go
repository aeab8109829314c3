package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/terok-ai/terok-box/applets/internal/policy"
	"github.com/terok-ai/terok-box/wire/bundle"
)

const maxPorts = 256 // in loopback_ports; every one is a firewall rule

// decode reads the text of config.yml into c, which holds the defaults. It
// returns a warning, with %s for the path, if the text is no YAML mapping at
// all, or the mistakes in it; c is good only if it returns neither.
//
// It walks the tree of nodes itself: every mistake gets its line and words
// that are ours, and an alias stands for the one value it names, never for a
// copy that grows.
func decode(text []byte, c *Config) (warning string, problems []Problem) {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(text))
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return "", nil
	case err != nil:
		return "failed to parse %s: " + syntax(err, text), nil
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		if err != nil {
			return "failed to parse %s: " + syntax(err, text), nil
		}
		return "failed to parse %s: it holds more than one document", nil
	}
	if len(doc.Content) != 1 {
		return "", nil
	}
	top := deref(doc.Content[0])
	if top.ShortTag() == "!!null" {
		return "", nil
	}
	if top.Kind != yaml.MappingNode {
		return "%s: expected mapping, got " + kind(top), nil
	}
	d := decoder{config: c}
	d.mapping(top, "", map[string]func(string, *yaml.Node){
		"mode":             d.mode,
		"default_profiles": d.profiles,
		"audit": d.section(map[string]func(string, *yaml.Node){
			"enabled": d.boolean(&c.Audit),
		}),
		"loopback_ports": d.ports,
		"clearance": d.section(map[string]func(string, *yaml.Node){
			"ask":       d.boolean(&c.Ask),
			"questions": d.questions,
		}),
		"dns": d.section(map[string]func(string, *yaml.Node){
			"tier":     d.tier,
			"unlisted": d.unlisted,
		}),
	})
	slices.SortStableFunc(d.problems, func(a, b Problem) int { return a.Line - b.Line })
	return "", d.problems
}

// syntax says in our words where a text is no YAML.
func syntax(err error, text []byte) string {
	m := regexp.MustCompile(`^yaml: line (\d+): `).FindStringSubmatch(err.Error())
	if m == nil {
		return "not valid YAML"
	}
	n, _ := strconv.Atoi(m[1])
	lines := bytes.Split(text, []byte("\n"))
	if n >= 1 && n <= len(lines) && bytes.HasPrefix(bytes.TrimLeft(lines[n-1], " "), []byte("\t")) {
		return fmt.Sprintf("line %d: not valid YAML: indent with spaces, not with tabs", n)
	}
	return fmt.Sprintf("line %d: not valid YAML", n)
}

type decoder struct {
	config   *Config
	problems []Problem
}

// maxProblems are reported of one file.
const maxProblems = 20

func (d *decoder) problem(n *yaml.Node, format string, a ...any) {
	if len(d.problems) < maxProblems {
		d.problems = append(d.problems, Problem{Line: n.Line, Text: fmt.Sprintf(format, a...)})
	}
}

// mapping calls for every key of a mapping what is to read its value, with
// the key as people write it: parent.key.
func (d *decoder) mapping(n *yaml.Node, parent string, keys map[string]func(string, *yaml.Node)) {
	seen := make(map[string]bool)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := deref(n.Content[i])
		full := parent + key.Value
		read, ok := keys[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode:
			d.problem(key, "a key is a %s; it must be a word", kind(key))
		case !ok:
			hint := ""
			if near := nearest(key.Value, keys); near != "" {
				hint = fmt.Sprintf("; did you mean %q?", parent+near)
			}
			d.problem(key, "unknown key %q%s", shorten(full), hint)
		case seen[key.Value]:
			d.problem(key, "key %q a second time", full)
		default:
			seen[key.Value] = true
			d.config.note(full, d.config.place(key.Line))
			read(full, deref(n.Content[i+1]))
		}
	}
}

// section reads a mapping inside the mapping.
func (d *decoder) section(keys map[string]func(string, *yaml.Node)) func(string, *yaml.Node) {
	return func(key string, n *yaml.Node) {
		if n.Kind != yaml.MappingNode {
			d.problem(n, "%s must be a mapping, not %s", key, value(n))
			return
		}
		d.mapping(n, key+".", keys)
	}
}

func (d *decoder) boolean(to *bool) func(string, *yaml.Node) {
	return func(key string, n *yaml.Node) {
		v, ok := truth(n)
		if !ok {
			d.problem(n, "%s must be true or false, not %s", key, value(n))
			return
		}
		*to = v
	}
}

// truth is the value of a boolean, in YAML 1.1's words, too.
func truth(n *yaml.Node) (v, ok bool) {
	if n.Kind != yaml.ScalarNode || n.Style != 0 { // quoted or tagged
		return false, false
	}
	switch strings.ToLower(n.Value) {
	case "true", "yes", "on":
		return true, true
	case "false", "no", "off":
		return false, true
	}
	return false, false
}

func (d *decoder) mode(key string, n *yaml.Node) {
	if !isText(n) || n.Value != ModeAuto && n.Value != ModeHook {
		d.problem(n, "%s must be %s or %s, not %s", key, ModeAuto, ModeHook, value(n))
		return
	}
	d.config.Mode = n.Value
}

func (d *decoder) tier(key string, n *yaml.Node) {
	t := bundle.Tier(n.Value)
	if !isText(n) || t != bundle.Proxy && t != bundle.Dnsmasq && t != bundle.Static {
		d.problem(n, "%s must be %s, %s or %s, not %s", key, bundle.Proxy, bundle.Dnsmasq, bundle.Static, value(n))
		return
	}
	d.config.Tier = t
}

func (d *decoder) unlisted(key string, n *yaml.Node) {
	if !isText(n) || n.Value != "refuse" && n.Value != "resolve" {
		d.problem(n, "%s must be refuse or resolve, not %s", key, value(n))
		return
	}
	d.config.ResolveUnlisted = n.Value == "resolve"
}

func (d *decoder) questions(key string, n *yaml.Node) {
	v, ok := number(n)
	if !ok || v > bundle.MaxQuestions {
		d.problem(n, "%s must be a number from 1 to %d, not %s; for none, clearance.ask: false", key, bundle.MaxQuestions, value(n))
		return
	}
	d.config.Questions = int(v)
}

func (d *decoder) profiles(key string, n *yaml.Node) {
	if n.Kind != yaml.SequenceNode || len(n.Content) == 0 {
		d.problem(n, "%s must be a list of at least one profile name", key)
		return
	}
	var names []string
	for _, e := range n.Content {
		switch e = deref(e); {
		case !isText(e):
			d.problem(e, "%s: a profile's name must be a text, not %s", key, value(e))
		case policy.ProfileName(e.Value) != nil:
			d.problem(e, "%s: %v", key, policy.ProfileName(e.Value))
		default:
			names = append(names, e.Value)
		}
	}
	d.config.DefaultProfiles = names
}

func (d *decoder) ports(key string, n *yaml.Node) {
	list := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		list = n.Content
	}
	var ports []uint16
	for _, e := range list {
		e = deref(e)
		p, ok := number(e)
		switch {
		case !ok:
			d.problem(e, "%s: a port must be a number from 1 to 65535, not %s", key, value(e))
		case slices.Contains(ports, p):
		case len(ports) == maxPorts:
			d.problem(e, "%s: more than %d ports", key, maxPorts)
			return
		default:
			ports = append(ports, p)
		}
	}
	d.config.LoopbackPorts = ports
}

// number reads plain decimal numbers from 1 to 65535 only: what begins with 0
// is octal to some readers of YAML.
func number(n *yaml.Node) (uint16, bool) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" || n.Value == "" || n.Value[0] < '1' || n.Value[0] > '9' {
		return 0, false
	}
	p, err := strconv.ParseUint(n.Value, 10, 16)
	return uint16(p), err == nil
}

// deref is the node that an alias stands for.
func deref(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias // never an alias itself
	}
	return n
}

func isText(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str"
}

// kind is a node's type for people.
func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "mapping"
	case yaml.SequenceNode:
		return "list"
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return "number"
	case "!!bool":
		return "boolean"
	case "!!null":
		return "nothing"
	}
	return "text"
}

// value is a node for people: what is written there, or its type.
func value(n *yaml.Node) string {
	switch {
	case n.Kind != yaml.ScalarNode:
		return "a " + kind(n)
	case n.ShortTag() == "!!null":
		return "nothing"
	}
	return strconv.Quote(shorten(n.Value))
}

func shorten(s string) string {
	const most = 60
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// nearest is the key that somebody probably meant; "" if none is near.
func nearest(word string, keys map[string]func(string, *yaml.Node)) string {
	best, least := "", 4 // edits
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if n := edits(word, k); n < least && n <= max(2, len(k)/4) {
			best, least = k, n
		}
	}
	return best
}

// edits is the Levenshtein distance; large for words that are much longer
// than keys are.
func edits(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost = min(diag, row[j], row[j+1]) + 1
			}
			diag, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
