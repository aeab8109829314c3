package applets

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/terok-ai/terok-box/applets/internal/grammar"
)

// askBash, askFish and askZsh print what the shell offers for each line of the
// file lines: "LINE<tab>WORD". The completions are in the file named first.
const (
	askBash = `source "$1"
while IFS= read -r line; do
  read -ra COMP_WORDS <<<"${line//=/ = }"
  [[ $line == *[\ =] && $line != *= ]] && COMP_WORDS+=('')
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  function=$(complete -p "${COMP_WORDS[0]}") || exit 1
  function=${function#complete -F }
  "${function% *}" "${COMP_WORDS[0]}" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}" || exit 1
  for word in "${COMPREPLY[@]}"; do printf '%s\t%s\n' "$line" "$word"; done
done <lines
`
	askFish = `source $argv[1]
while read -l line
  for word in (complete -C "$line")
    printf '%s\t%s\n' $line (string split \t -- $word)[1]
  end
end <lines
`
	// A terminal is needed for what completes in zsh.
	askZsh = `zmodload zsh/zpty zsh/zselect
cat >inner <<'INNER'
PROMPT= RPROMPT=
unsetopt zle_bracketed_paste beep 2>/dev/null
autoload -Uz compinit
compinit -D -u
zstyle ':completion:*' verbose yes
source $COMPLETION
compadd() {
  local -a hits
  builtin compadd -O hits "$@"
  local hit
  for hit in $hits; do print -r -- "$LINE"$'\t'"$hit" >>out; done
  builtin compadd "$@"
}
finished() { print -r -- "done $LINE" >>out }
TRAPUSR1() { :; }
print -r -- ready >>out
INNER
export COMPLETION=$1
: >out
await() {
  local i
  for i in {1..1200}; do
    grep -qxF -- "$1" out && return
    zselect -t 5
  done
  print -u2 -r -- "zsh says nothing for: $1"
  exit 1
}
zpty shell zsh -f -i
zpty -w shell ' source ./inner'
await ready
while IFS= read -r line; do
  zpty -w shell " LINE=${(q)line} comppostfuncs=(finished)"
  zpty -w -n shell " $line"$'\t'
  await "done $line"
  zpty -w -n shell $'\C-u'
done <lines
zpty -d shell
grep $'\t' out
exit 0
`
)

// completes asks a shell what it offers for lines. A shell that is not there
// fails the test: scripts/deps installs it.
func completes(t *testing.T, shell string, lines []string) map[string][]string {
	t.Helper()
	dir := t.TempDir()
	all := ""
	for _, a := range table() {
		if a.private {
			continue
		}
		p, err := a.describe()
		if err != nil {
			t.Fatal(err)
		}
		text, _, ok := p.Completion(shell)
		if !ok {
			t.Fatalf("none for %s", shell)
		}
		all += text + "\n"
	}
	for name, text := range map[string]string{
		"completions": all, "lines": strings.Join(lines, "\n") + "\n",
		"ask": map[string]string{"bash": askBash, "fish": askFish, "zsh": askZsh}[shell],

		"config/profiles/mine.txt": "", "state/containers/demo/x": "", "state/containers/other/x": "", "state/containers/_default/x": "",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, shell, "ask", filepath.Join(dir, "completions"))
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+dir, "TEROK_SHIELD_CONFIG_DIR="+dir+"/config", "TEROK_SHIELD_STATE_DIR="+dir+"/state", "LC_ALL=C", "TERM=dumb")
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil || errOut.Len() > 0 {
		t.Fatalf("%s: %v\n%s%s", shell, err, errOut.String(), out)
	}
	found := make(map[string][]string)
	for line := range strings.Lines(string(out)) {
		asked, word, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if !ok {
			t.Fatalf("%s: %q", shell, line)
		}
		found[asked] = append(found[asked], strings.TrimRight(word, " ="))
	}
	return found
}

// What a shell offers: verbs, flags and names, where each of them can stand.
func TestCompletions(t *testing.T) {
	profiles := "base dev-node dev-python dev-standard mine nvidia-hpc"
	cases := []struct{ line, want string }{
		{"terok-shield qu", "quarantine"},
		{"terok-shield res", "reset resolve"},
		{"terok-shield reset o", "other"},
		{"terok-shield st", "status"},
		{"terok-shield --state-dir /x al", "allow"},
		{"terok-shield status ", "demo other"},
		{"terok-shield status demo ", ""},
		{"terok-shield allow d", "demo"},
		{"terok-shield deny --json o", "other"},
		{"terok-shield harvest demo --pr", "--profile"},
		{"terok-shield harvest --since 1h ot", "other"},
		{"terok-shield run demo --profiles ", profiles},
		{"terok-shield prepare demo --profiles mi", "mine"},
		{"terok-shield logs --container de", "demo"},
		{"terok-shield completion ", "bash fish zsh"},
		{"terok-shield down demo --a", "--all"},
		{"terok-shield --ver", "--version"},
		{"clearance-hub cl", "clearance"},
		{"clearance-hub clearance --js", "--json"},
		{"clearance-hub notify --wa", "--wait"},
		{"clearance-verdict ", "serve"},
		{"nft-hook ", "createRuntime poststop"},
		{"terok-clearance-notify --watch --h", "--help --hub"},
	}
	var lines []string
	for _, c := range cases {
		lines = append(lines, c.line)
	}
	for _, shell := range grammar.Shells() {
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			found := completes(t, shell, lines)
			for _, c := range cases {
				got := found[c.line]
				if strings.HasSuffix(c.line, " ") { // zsh offers flags, too, where there is no word
					got = slices.DeleteFunc(got, func(w string) bool { return strings.HasPrefix(w, "-") })
				}
				slices.Sort(got)
				if d := cmp.Diff(strings.Fields(c.want), slices.Compact(got), cmpopts.EquateEmpty()); d != "" {
					t.Errorf("%q (-want +got):\n%s", c.line, d)
				}
			}
		})
	}
}

// terok-shield says the same of itself as terok-box of it.
func TestCompletionVerb(t *testing.T) {
	for _, shell := range grammar.Shells() {
		own, err := exec.Command("terok-shield", "completion", shell).Output()
		if err != nil {
			t.Fatal(err)
		}
		ours, err := exec.Command("terok-box", "--completion", shell, "terok-shield").Output()
		if err != nil {
			t.Fatal(err)
		}
		if len(own) == 0 || !bytes.Equal(own, ours) {
			t.Errorf("%s: %d and %d bytes", shell, len(own), len(ours))
		}
	}
	for _, args := range [][]string{{"sh", "terok-shield"}, {"bash", "supervisor"}, {"bash", "x"}, {"bash"}, {}} {
		if code := exec.Command("terok-box", append([]string{"--completion"}, args...)...).Run(); code == nil || code.Error() != "exit status 2" {
			t.Errorf("%q: %v", args, code)
		}
	}
}
