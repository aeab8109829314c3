package grammar

import (
	"fmt"
	"slices"
	"strings"
)

// Shells are those that completions can be written for.
func Shells() []string { return []string{"bash", "zsh", "fish"} }

// Completion is what has a shell complete the program's command line, and the
// name of the file that the shell looks for; ok is false for other shells than
// Shells.
func (p Program) Completion(shell string) (text, file string, ok bool) {
	switch shell {
	case "bash":
		return p.bash(), p.Name, true
	case "zsh":
		return p.zsh(), "_" + p.Name, true
	case "fish":
		return p.fish(), p.Name + ".fish", true
	}
	return "", "", false
}

// function is the name of a shell function of the program's.
func (p Program) function() string { return "_" + strings.ReplaceAll(p.Name, "-", "_") }

// plain says that there are no verbs.
func (p Program) plain() bool { return len(p.Verbs) == 1 && p.Verbs[0].Name == "" }

// quote quotes for all three shells: what stands in it is one line of text.
func quote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'"'"'`) + "'"
}

func names(flags []Flag) []string {
	var out []string
	for _, f := range flags {
		out = append(out, f.Names...)
	}
	return out
}

// bashValue is a command that fills COMPREPLY for a value.
func bashValue(v Value, list bool) string {
	words := ""
	switch v.Kind {
	case Files:
		return "mapfile -t COMPREPLY < <(compgen -f -- \"$cur\"); compopt -o filenames 2>/dev/null"
	case Dirs:
		return "mapfile -t COMPREPLY < <(compgen -d -- \"$cur\"); compopt -o filenames 2>/dev/null"
	case Choices:
		words = quote(strings.Join(v.Choices, " "))
	case Containers, Profiles:
		words = `"$(terok-shield names ` + string(v.Kind) + ` 2>/dev/null)"`
	default:
		return ":"
	}
	if list {
		return "[[ $cur == *,* ]] && head=${cur%,*},; mapfile -t COMPREPLY < <(compgen -P \"$head\" -W " + words + " -- \"${cur##*,}\")"
	}
	return "mapfile -t COMPREPLY < <(compgen -W " + words + " -- \"$cur\")"
}

func (p Program) bash() string {
	var b strings.Builder
	fn := p.function()
	fmt.Fprintf(&b, `# bash completion of %s, made from its grammar

%s() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} verb='' head='' word i n=0
  COMPREPLY=()
  if [[ $cur == = ]]; then # "--flag=" is two words here, "--flag=x" three
    cur=
  elif [[ $prev == = ]]; then
    prev=${COMP_WORDS[COMP_CWORD - 2]}
  fi
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    case $word in
`, p.Name, fn)
	var valued []string
	for _, f := range p.allFlags() {
		if f.Value.Kind != Nothing {
			valued = append(valued, f.Names...)
		}
	}
	slices.Sort(valued)
	if valued = slices.Compact(valued); len(valued) > 0 {
		fmt.Fprintf(&b, "      %s) ((i += 1)) && [[ ${COMP_WORDS[i]} == = ]] && ((i += 1)) ;;\n", strings.Join(valued, " | "))
	}
	b.WriteString("      --)\n        mapfile -t COMPREPLY < <(compgen -f -- \"$cur\")\n        return\n        ;;\n      -*) ;;\n")
	if p.plain() {
		b.WriteString("      *) ((n += 1)) ;;\n")
	} else {
		b.WriteString("      *) if [[ -z $verb ]]; then verb=$word; else ((n += 1)); fi ;;\n")
	}
	b.WriteString("    esac\n  done\n\n  case $verb:$prev in\n")
	value := func(verb string, f Flag) {
		if f.Value.Kind == Nothing {
			return
		}
		patterns := make([]string, len(f.Names))
		for i, n := range f.Names {
			patterns[i] = verb + ":" + n
		}
		fmt.Fprintf(&b, "    %s)\n      %s\n      return\n      ;;\n", strings.Join(patterns, " | "), bashValue(f.Value, f.List))
	}
	for _, f := range p.Flags {
		value("*", f)
	}
	for _, v := range p.Verbs {
		for _, f := range v.Flags {
			value(v.Name, f)
		}
	}
	b.WriteString("  esac\n\n  if [[ $cur == -* ]]; then\n    case $verb in\n")
	if !p.plain() {
		fmt.Fprintf(&b, "      '') word=%s ;;\n", quote(strings.Join(names(p.Flags), " ")))
	}
	for _, v := range p.Verbs {
		fmt.Fprintf(&b, "      %s) word=%s ;;\n", quote(v.Name), quote(strings.Join(names(slices.Concat(v.Flags, p.Flags)), " ")))
	}
	b.WriteString("      *) return ;;\n    esac\n    mapfile -t COMPREPLY < <(compgen -W \"$word\" -- \"$cur\")\n    return\n  fi\n\n  case $verb:$n in\n")
	if !p.plain() {
		verbs := make([]string, len(p.Verbs))
		for i, v := range p.Verbs {
			verbs[i] = v.Name
		}
		fmt.Fprintf(&b, "    :*) %s ;;\n", bashValue(Value{Kind: Choices, Choices: verbs}, false))
	}
	for _, v := range p.Verbs {
		for i, a := range v.Args {
			fmt.Fprintf(&b, "    %s:%d) %s ;;\n", v.Name, i, bashValue(a, false))
		}
	}
	fmt.Fprintf(&b, "  esac\n}\n\ncomplete -F %s %s\n", fn, p.Name)
	return b.String()
}

func (p Program) allFlags() []Flag {
	out := slices.Clone(p.Flags)
	for _, v := range p.Verbs {
		out = append(out, v.Flags...)
	}
	return out
}

// zshText is a description between brackets or colons of _arguments.
func zshText(s string) string {
	return strings.NewReplacer(`\`, `\\`, `[`, `\[`, `]`, `\]`, `:`, `\:`).Replace(s)
}

// zshAction is the action of _arguments for a value.
func (p Program) zshAction(v Value, list bool) string {
	switch v.Kind {
	case Files:
		return "_files"
	case Dirs:
		return "_files -/"
	case Choices:
		return "(" + strings.Join(v.Choices, " ") + ")"
	case Containers, Profiles:
		if list {
			return "_sequence " + p.function() + "_" + string(v.Kind)
		}
		return p.function() + "_" + string(v.Kind)
	}
	return " "
}

// zshArguments are the arguments of _arguments for a verb.
func (p Program) zshArguments(flags []Flag, args []Value) string {
	var b strings.Builder
	for _, f := range flags {
		value := ""
		if f.Value.Kind != Nothing {
			value = ":" + zshText(f.Value.Name) + ":" + p.zshAction(f.Value, f.List)
		}
		except := "(" + strings.Join(f.Names, " ") + ")"
		for _, n := range f.Names {
			eq := ""
			switch {
			case value == "":
			case strings.HasPrefix(n, "--"):
				eq = "="
			default:
				eq = "+"
			}
			fmt.Fprintf(&b, " \\\n        %s", quote(except+n+eq+"["+zshText(f.Help)+"]"+value))
		}
	}
	for i, a := range args {
		fmt.Fprintf(&b, " \\\n        %s", quote(fmt.Sprintf("%d:%s:%s", i+1, zshText(a.Name), p.zshAction(a, false))))
	}
	return b.String()
}

func (p Program) zsh() string {
	var b strings.Builder
	fn := p.function()
	fmt.Fprintf(&b, "#compdef %s\n# zsh completion of %s, made from its grammar\n\n", p.Name, p.Name)
	for _, k := range []Kind{Containers, Profiles} {
		fmt.Fprintf(&b, "%s_%s() { compadd \"$@\" -- ${(f)\"$(terok-shield names %s 2>/dev/null)\"} }\n", fn, k, k)
	}
	fmt.Fprintf(&b, "\n%s() {\n", fn)
	if p.plain() {
		fmt.Fprintf(&b, "  _arguments -s%s\n}\n", p.zshArguments(p.Verbs[0].Flags, p.Verbs[0].Args))
	} else {
		fmt.Fprintf(&b, "  local curcontext=$curcontext state line\n  typeset -A opt_args\n")
		fmt.Fprintf(&b, "  _arguments -C%s \\\n        '1: :->verb' '*:: :->rest'\n", p.zshArguments(p.Flags, nil))
		b.WriteString("  case $state in\n    verb)\n      local -a verbs=(\n")
		for _, v := range p.Verbs {
			fmt.Fprintf(&b, "        %s\n", quote(v.Name+":"+strings.ReplaceAll(v.Help, ":", `\:`)))
		}
		b.WriteString("      )\n      _describe -t verbs verb verbs\n      ;;\n    rest)\n      case $words[1] in\n")
		for _, v := range p.Verbs {
			tail := ""
			if v.Tail {
				tail = ` \` + "\n        '*:: :_files'"
			}
			fmt.Fprintf(&b, "      %s)\n      _arguments -s%s%s\n      ;;\n", v.Name, p.zshArguments(slices.Concat(v.Flags, p.Flags), v.Args), tail)
		}
		b.WriteString("      esac\n      ;;\n  esac\n}\n")
	}
	fmt.Fprintf(&b, "\nif [[ $funcstack[1] == %s ]]; then\n  %s \"$@\"\nelse\n  compdef %s %s\nfi\n", "_"+p.Name, fn, fn, p.Name)
	return b.String()
}

// fishValue is what complete's -a gets for a value, with the flags that say
// whether files are completed.
func fishValue(v Value, list bool) string {
	switch v.Kind {
	case Nothing:
		return ""
	case Files:
		return " -r -F"
	case Dirs:
		return " -r -f -a '(__fish_complete_directories)'"
	case Choices:
		return " -r -f -a " + quote(strings.Join(v.Choices, " "))
	case Containers, Profiles:
		words := "terok-shield names " + string(v.Kind) + " 2>/dev/null"
		if list {
			words = "__fish_append , (" + words + ")"
		}
		return " -r -f -a " + quote("("+words+")")
	}
	return " -r -f"
}

func (p Program) fish() string {
	var b strings.Builder
	fn := p.function()
	fmt.Fprintf(&b, "# fish completion of %s, made from its grammar\n\n", p.Name)
	// The words before the cursor without flags and their values.
	var valued []string
	for _, f := range p.allFlags() {
		if f.Value.Kind != Nothing {
			valued = append(valued, f.Names...)
		}
	}
	slices.Sort(valued)
	valued = slices.Compact(valued)
	skip := make([]string, len(valued))
	for i, f := range valued {
		skip[i] = quote(f)
	}
	fmt.Fprintf(&b, `function %[1]s_words
  set -l skip 0
  for w in (commandline -opc)[2..-1]
    if test $skip = 1
      set skip 0
    else if contains -- $w %[2]s
      set skip 1
    else if not string match -q -- '-*' $w
      echo $w
    end
  end
end

# VERB [N]: that is the verb, and N words come after it already
function %[1]s_at
  set -l words (%[1]s_words)
  test "$words[1]" = "$argv[1]"; and begin
    test (count $argv) = 1; or test (count $words) = (math $argv[2] + 1)
  end
end

complete -c %[3]s -f
`, fn, strings.Join(skip, " "), p.Name)
	flag := func(condition string, f Flag) {
		fmt.Fprintf(&b, "complete -c %s%s", p.Name, condition)
		for _, n := range f.Names {
			if long, ok := strings.CutPrefix(n, "--"); ok {
				b.WriteString(" -l " + long)
			} else {
				b.WriteString(" -s " + n[1:])
			}
		}
		fmt.Fprintf(&b, " -d %s%s\n", quote(f.Help), fishValue(f.Value, f.List))
	}
	for _, f := range p.Flags {
		flag("", f)
	}
	for _, v := range p.Verbs {
		at := func(n int) string { return " -n " + quote(fmt.Sprintf("%s_at %s %d", fn, v.Name, n)) }
		here := " -n " + quote(fn+"_at "+v.Name)
		if p.plain() {
			here = ""
			at = func(n int) string { return " -n " + quote(fmt.Sprintf("test (count (%s_words)) = %d", fn, n)) }
		} else {
			fmt.Fprintf(&b, "complete -c %s -n %s -a %s -d %s\n", p.Name, quote("test (count ("+fn+"_words)) = 0"), v.Name, quote(v.Help))
		}
		for _, f := range v.Flags {
			flag(here, f)
		}
		for i, a := range v.Args {
			if v := fishValue(a, false); a.Kind != Text {
				fmt.Fprintf(&b, "complete -c %s%s%s\n", p.Name, at(i), strings.Replace(v, " -r", "", 1))
			}
		}
	}
	return b.String()
}
