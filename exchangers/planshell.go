package exchangers

import (
	"fmt"
	"strings"
)

// A Word is one that the shell reads as it stands, such as "$name".
type Word string

// FileWord names a file that ShellFile wrote, after a prefix such as file://.
func FileWord(prefix, name string) Word { return Word(`"` + prefix + `$dir/` + name + `"`) }

// Shell writes a command of a POSIX shell. Each word is a string, which is
// quoted, a Ref, which is its value or the variable that holds it, or a Word.
func Shell(words ...any) string {
	var b strings.Builder
	for i, w := range words {
		if i > 0 {
			b.WriteByte(' ')
		}
		switch w := w.(type) {
		case Word:
			b.WriteString(string(w))
		case Ref:
			if w.Known != "" {
				b.WriteString(shellQuote(w.Known))
			} else {
				b.WriteString(`"$` + w.Var + `"`)
			}
		default:
			b.WriteString(shellQuote(fmt.Sprint(w)))
		}
	}
	return b.String()
}

func shellQuote(text string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-:,@%+="
	if text != "" && strings.Trim(text, plain) == "" {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// ShellFile writes a value as JSON, or a Text as it is, to a file of that name
// in $dir.
func ShellFile(name string, v any) string {
	return ShellInput(`cat > "$dir/`+name+`"`, v)
}

// ShellInput writes a command that reads a value as JSON, or a Text as it is.
// In the document nothing is expanded but the variables of Refs.
func ShellInput(command string, v any) string {
	text, expand := "", false
	if t, ok := v.(Text); ok {
		text = strings.TrimSuffix(string(t), "\n")
	} else {
		var refs []string
		mark := func(r Ref) string {
			if r.Known != "" {
				return quote(r.Known)
			}
			refs = append(refs, `"$`+r.Var+`"`)
			return "\x00" // in no JSON
		}
		var err error
		if text, err = JSON(v, mark); err != nil {
			panic(err) // of our own making
		}
		if expand = len(refs) > 0; expand {
			parts := strings.Split(strings.NewReplacer(`\`, `\\`, `$`, `\$`, "`", "\\`").Replace(text), "\x00")
			text = parts[0]
			for i, part := range parts[1:] {
				text += refs[i] + part
			}
		}
	}
	end := "EOF"
	for strings.Contains("\n"+text+"\n", "\n"+end+"\n") {
		end += "_"
	}
	if expand {
		return command + " <<" + end + "\n" + text + "\n" + end
	}
	return command + " <<'" + end + "'\n" + text + "\n" + end
}
