package ledger

import "context"

// Weigh gives the shares of callers, in all lanes of all companies, their weights; those of callers that it does not name
// keep theirs. Each counts from its next claim on. A crash in the middle leaves some as they were: Weigh is called again at the
// next start.
func (l *Ledger) Weigh(ctx context.Context, weights map[string]int) error {
	type share struct {
		company int64
		lane    Lane
		caller  string
	}
	var other []share
	err := l.query(ctx, `SELECT company, lane, caller, weight FROM share`, func(scan scanFunc) error {
		var s share
		var weight int
		if err := scan(&s.company, &s.lane, &s.caller, &weight); err != nil {
			return err
		}
		if want, named := weights[s.caller]; named && want != weight {
			other = append(other, s)
		}
		return nil
	})
	for _, s := range other {
		if err != nil {
			return err
		}
		// One row in a transaction holds nobody up, and cannot be a part of a deadlock.
		err = l.transactAgain(ctx, func(t *tx) error {
			t.write(`UPDATE share SET weight = $4 WHERE company = $1 AND lane = $2 AND caller = $3`, s.company, s.lane, s.caller, weights[s.caller])
			return t.flush()
		})
	}
	return err
}
