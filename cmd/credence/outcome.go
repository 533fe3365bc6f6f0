package main

import (
	"fmt"
	"strings"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/cli"
)

// writeOutcome tells people what became of each resource, or would.
func (p *program) writeOutcome(r *api.ApplyResponse, dry bool) error {
	var b strings.Builder
	for _, a := range r.GetApplied() {
		fmt.Fprintf(&b, "%s %s %s%s\n", a.GetKind(), a.GetName(), planned(a.GetAction(), dry), takenFrom(a))
		if n := a.GetOutstanding(); n > 0 {
			fmt.Fprintf(&b, "  %d of its SVIDs have not ended\n", n)
		}
		if dry && a.GetAction() == "changed" {
			p.difference(&b, a.GetBefore(), a.GetAfter())
		}
	}
	b.WriteString(summary(r, dry))
	_, err := fmt.Fprint(p.Out, b.String())
	return err
}

func takenFrom(a *api.ApplyResponse_Applied) string {
	if a.GetTakenFrom() == "" {
		return ""
	}
	return fmt.Sprintf(", from owner %s to %s", a.GetTakenFrom(), a.GetOwner())
}

func planned(action string, dry bool) string {
	if !dry {
		return action
	}
	return map[string]string{"created": "would be created", "changed": "would change", "unchanged": "stays", "deleted": "would be deleted"}[action]
}

// summary counts what became of them.
func summary(r *api.ApplyResponse, dry bool) string {
	counts := map[string]int{}
	for _, a := range r.GetApplied() {
		counts[a.GetAction()]++
	}
	var parts []string
	for _, action := range []string{"created", "changed", "deleted", "unchanged"} {
		if n := counts[action]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, action))
		}
	}
	if len(parts) == 0 {
		parts = []string{"nothing differs"}
	}
	text := fmt.Sprintf("revision %d: %s\n", r.GetRevision(), strings.Join(parts, ", "))
	if dry {
		text = fmt.Sprintf("plan on revision %d: %s\n", r.GetRevision(), strings.Join(parts, ", "))
	}
	if dry && r.GetNeedsYes() {
		text += fmt.Sprintf("%d of %d would be deleted, which is more than a tenth: that wants --yes\n", counts["deleted"], r.GetOwned())
	}
	return text
}

// differs is the answer no where a plan has something to do.
func differs(r *api.ApplyResponse, dry bool) error {
	for _, a := range r.GetApplied() {
		if dry && a.GetAction() != "unchanged" {
			return cli.WithCode(cli.ExitNo, nil)
		}
	}
	return nil
}

// difference writes two texts of a resource as people would see them differ.
func (p *program) difference(b *strings.Builder, before, after []byte) {
	colours := p.Colours(p.Out)
	for _, e := range unified(inLines(before), inLines(after)) {
		line := string(e.op) + e.line
		if colours {
			line = cli.Paint(map[byte]string{'+': "ADDED", '-': "REMOVED", '@': "HUNK"}[e.op], line)
		}
		fmt.Fprintf(b, "  %s\n", line)
	}
}
