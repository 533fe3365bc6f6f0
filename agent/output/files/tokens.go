package files

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/output"
)

// retryToken is when to ask again for a token that could not be got.
const retryToken = 10 * time.Second

// refresh gets the tokens that are due, and says when the next is. One that
// could not be got stays until it ends, one that is refused goes at once.
func (w *Writer) refresh(ctx context.Context, from output.Source, v *agent.SVID) (again time.Time, err error) {
	var errs []error
	for _, j := range w.cfg.JWTs {
		errs = append(errs, w.get(j.File, func() (agent.JWTSVID, error) {
			svid, err := from.JWT(ctx, j.Audiences, v.ID)
			if err != nil {
				err = fmt.Errorf("the JWT-SVID for %q: %w", j.Audiences, err)
			}
			return svid, err
		}))
	}
	for _, target := range w.cfg.Targets {
		errs = append(errs, w.get(target+tokenSuffix, func() (agent.JWTSVID, error) {
			svid, _, err := from.TargetToken(ctx, target, true)
			if err != nil {
				err = fmt.Errorf("the token for target %s: %w", target, err)
			}
			return svid, err
		}))
	}
	for _, t := range w.tokens {
		if again.IsZero() || t.again.Before(again) {
			again = t.again
		}
	}
	return again, errors.Join(errs...)
}

func (w *Writer) get(file string, fetch func() (agent.JWTSVID, error)) error {
	now := w.cfg.Now()
	held, ok := w.tokens[file]
	if ok && now.Before(held.again) {
		return nil
	}
	svid, err := fetch()
	switch {
	case err == nil:
		w.tokens[file] = token{svid.Token, output.HalfLife(now, svid.Expires), svid.Expires}
		return nil
	case !ok || errors.Is(err, agent.ErrDenied) || !now.Before(held.ends):
		delete(w.tokens, file)
	default:
		again := now.Add(retryToken)
		if held.ends.Before(again) {
			again = held.ends
		}
		w.tokens[file] = token{held.text, again, held.ends}
	}
	return err
}

// recheck has all tokens asked for anew where the identity may ask for others
// than before, and drops those of another identity.
func (w *Writer) recheck(v *agent.SVID) {
	may := fmt.Sprintf("%s %q %q", v.ID, v.JWTAudiences, v.JWTUses)
	for _, t := range v.Targets {
		may += fmt.Sprintf(" %s %d", t.Name, t.Revision)
	}
	if may == w.may {
		return
	}
	if id, _, _ := strings.Cut(w.may, " "); id != v.ID.String() {
		clear(w.tokens)
	}
	w.may = may
	for file, t := range w.tokens {
		t.again = time.Time{}
		w.tokens[file] = t
	}
}

// tokenFiles hold a token each, without a newline: SDKs send the bytes as they
// are.
func (w *Writer) tokenFiles() (all []output.File) {
	for _, file := range slices.SortedFunc(maps.Keys(w.tokens), cmp.Compare[string]) {
		all = append(all, output.File{Name: file, Data: []byte(w.tokens[file].text), Mode: w.cfg.Mode})
	}
	return all
}
