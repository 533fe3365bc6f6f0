package main

import (
	"fmt"
	"slices"
	"strings"
)

// contextLines stand around each difference.
const contextLines = 3

// maxDiffCells bounds what comparing two texts takes: beyond it what differs is
// shown as one block.
const maxDiffCells = 4 << 20

// An edit is a line that stays (' '), goes ('-') or comes ('+').
type edit struct {
	op   byte
	line string
}

// unified is the difference of two texts in hunks, as diff -u has them below its
// head; there is none of equal texts.
func unified(before, after string) []edit {
	edits := edits(linesOf(before), linesOf(after))
	var out []edit
	old, next, shown := 1, 1, 0 // line numbers of edits[shown]
	for i := 0; i < len(edits); i++ {
		if edits[i].op == ' ' {
			continue
		}
		first, last := max(shown, i-contextLines), lastOf(edits, i)
		for ; shown < first; shown++ {
			old, next = old+1, next+1
		}
		hunk := edits[first:last]
		wasOld, isNew := count(hunk, '+'), count(hunk, '-')
		out = append(out, edit{'@', fmt.Sprintf("@ -%s +%s @@", span(old, wasOld), span(next, isNew))})
		out = append(out, hunk...)
		old, next, shown, i = old+wasOld, next+isNew, last, last-1
	}
	return out
}

// lastOf is the end of the hunk in which an edit stands: hunks that would touch
// are one.
func lastOf(edits []edit, i int) int {
	last := i
	for ; i < len(edits) && i-last <= 2*contextLines; i++ {
		if edits[i].op != ' ' {
			last = i
		}
	}
	return min(len(edits), last+1+contextLines)
}

// count is how many lines are not of an op: the lines of the text that has none
// of it.
func count(hunk []edit, op byte) (n int) {
	for _, e := range hunk {
		if e.op != op {
			n++
		}
	}
	return n
}

func span(first, n int) string {
	switch n {
	case 0:
		return fmt.Sprintf("%d,0", first-1)
	case 1:
		return fmt.Sprint(first)
	}
	return fmt.Sprintf("%d,%d", first, n)
}

func linesOf(text string) []string {
	if text = strings.TrimSuffix(text, "\n"); text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

// edits leads from one list of lines to another by the fewest edits.
func edits(before, after []string) (all []edit) {
	add := func(op byte, lines []string) {
		for _, l := range lines {
			all = append(all, edit{op, l})
		}
	}
	head := 0
	for head < len(before) && head < len(after) && before[head] == after[head] {
		head++
	}
	tail := 0
	for tail < len(before)-head && tail < len(after)-head && before[len(before)-1-tail] == after[len(after)-1-tail] {
		tail++
	}
	add(' ', before[:head])
	common := longest(before[head:len(before)-tail], after[head:len(after)-tail])
	old, next := before[head:len(before)-tail], after[head:len(after)-tail]
	for _, line := range common {
		i, j := slices.Index(old, line), slices.Index(next, line)
		add('-', old[:i])
		add('+', next[:j])
		add(' ', old[i:i+1])
		old, next = old[i+1:], next[j+1:]
	}
	add('-', old)
	add('+', next)
	add(' ', before[len(before)-tail:])
	return all
}

// longest is the longest common subsequence; of long texts, none.
func longest(a, b []string) (common []string) {
	width := len(b) + 1
	if len(a) == 0 || len(b) == 0 || len(a) > maxDiffCells/width {
		return nil
	}
	length := make([]int32, (len(a)+1)*width) // of what is common from i and j on
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				length[i*width+j] = length[(i+1)*width+j+1] + 1
			} else {
				length[i*width+j] = max(length[(i+1)*width+j], length[i*width+j+1])
			}
		}
	}
	for i, j := 0, 0; i < len(a) && j < len(b); {
		switch {
		case a[i] == b[j]:
			common = append(common, a[i])
			i, j = i+1, j+1
		case length[(i+1)*width+j] >= length[i*width+j+1]:
			i++
		default:
			j++
		}
	}
	return common
}
