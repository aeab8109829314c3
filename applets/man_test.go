package applets

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/terok-ai/terok-box/applets/internal/examples"
	"github.com/terok-ai/terok-box/applets/internal/grammar"
)

// page is the source of a man page.
type page struct {
	file string
	text string
}

// section is what stands under a heading.
func (p page) section(name string) string {
	_, rest, _ := strings.Cut(p.text, "\n# "+name+"\n")
	rest, _, _ = strings.Cut(rest, "\n# ")
	return rest
}

func matches(pattern, text string) []string {
	var out []string
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		out = append(out, m[1])
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func pages(t *testing.T) map[string]page {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(examples.Root(t), "resources/man/*.scd"))
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]page)
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		name, section, _ := strings.Cut(strings.TrimSuffix(filepath.Base(f), ".scd"), ".")
		if want := name + "(" + section + ")\n"; !strings.HasPrefix(string(text), want) {
			t.Errorf("%s does not begin with %s", f, want)
		}
		all[name] = page{file: f, text: string(text)}
	}
	return all
}

// Every program has a page, which has all of its verbs, flags and exit codes,
// and no others.
func TestManPages(t *testing.T) {
	all := pages(t)
	for _, a := range table() {
		if a.private {
			continue
		}
		t.Run(a.name, func(t *testing.T) {
			p, ok := all[a.name]
			if !ok {
				t.Fatal("it has no page")
			}
			delete(all, a.name)
			g, err := a.describe()
			if err != nil {
				t.Fatal(err)
			}
			var verbs, flags, codes []string
			for _, v := range g.Verbs {
				if v.Name != "" {
					verbs = append(verbs, v.Name)
				} else if len(v.Args) > 0 {
					verbs = append(verbs, v.Args[0].Choices...)
				}
				flags = append(flags, named(v.Flags)...)
			}
			flags = append(flags, named(g.Flags)...)
			slices.Sort(verbs)
			slices.Sort(flags)
			if d := cmp.Diff(verbs, matches(`(?m)^\*([A-Za-z-]+)\*`, p.section("VERBS")), cmpopts.EquateEmpty()); d != "" {
				t.Errorf("verbs (-program +page):\n%s", d)
			}
			if d := cmp.Diff(slices.Compact(flags), matches(`\*(--?[A-Za-z][A-Za-z-]*)\*`, p.text)); d != "" {
				t.Errorf("flags (-program +page):\n%s", d)
			}
			help, err := exec.Command(a.name, "--help").Output()
			if err != nil {
				t.Fatal(err)
			}
			if _, text, ok := strings.Cut(string(help), "Exit codes: "); !ok {
				t.Errorf("its help has no exit codes")
			} else {
				text, _, _ = strings.Cut(text, ".\n")
				codes = matches(`(?:^|, |,\n)(\d+)\b`, text)
			}
			if d := cmp.Diff(codes, matches(`(?m)^\*(\d+)\*`, p.section("EXIT STATUS"))); d != "" {
				t.Errorf("exit codes (-program +page):\n%s", d)
			}
			if len(g.Verbs) > 1 {
				optionsOf(t, g, p.section("OPTIONS"))
			}
		})
	}
	for name := range all {
		t.Errorf("%s has a page and is no program", name)
	}
}

func named(flags []grammar.Flag) []string {
	var out []string
	for _, f := range flags {
		out = append(out, f.Names...)
	}
	return out
}

// optionsOf fails unless what a page says of a flag names the verbs that have
// it, and no others.
func optionsOf(t *testing.T, g grammar.Program, options string) {
	t.Helper()
	said := make(map[string]string) // of flags
	for part := range strings.SplitSeq(options, "\n\n*-") {
		head, text, _ := strings.Cut("*-"+strings.TrimPrefix(strings.TrimLeft(part, "\n"), "*-"), "\n")
		for _, f := range matches(`\*(--[a-z-]+)\*`, head) {
			said[f] = text
		}
	}
	for _, v := range g.Verbs {
		for f, text := range said {
			has := slices.Contains(named(v.Flags), f)
			if strings.Contains(text, "JSON anyway") { // so it says which verbs do without
				text, _, _ = strings.Cut(text, "What")
			}
			if tells := strings.Contains(text, "*"+v.Name+"*"); has != tells {
				t.Errorf("%s of %s: the program has it: %t, the page says so: %t", f, v.Name, has, tells)
			}
		}
	}
}

// scdoc makes a page of every source, and man finds nothing wrong with it.
func TestManSources(t *testing.T) {
	for _, p := range pages(t) {
		cmd := exec.Command("scdoc")
		cmd.Stdin = strings.NewReader(p.text)
		var errOut bytes.Buffer
		cmd.Stderr = &errOut
		out, err := cmd.Output()
		if err != nil || errOut.Len() > 0 || !bytes.Contains(out, []byte(".SH NAME")) {
			t.Errorf("%s: %v %s", p.file, err, errOut.String())
		}
	}
}
