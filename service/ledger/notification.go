package ledger

import (
	"context"
	"encoding/json"
	"time"
)

// Notifications of Jelou's that one pass of retention forgets.
const notificationChunk = 500

// keepNotifications notes, in the transaction that calls the send Sent, whose the notifications are that it made.
func (g *ground) keepNotifications(r *record, ids []string) {
	if len(ids) > 0 {
		g.t.write(`INSERT INTO notification (company, bot, id, caller, sent_at) SELECT $1, $2, value, $4, $5 FROM {each}($3){value} WHERE value <> '' ON CONFLICT DO NOTHING`,
			r.ID.Company, r.Bot, textList(ids), r.Caller, g.now)
	}
}

// OwnNotifications are those of the ids, Jelou's, of notifications that a caller's sends made.
func (l *Ledger) OwnNotifications(ctx context.Context, company int64, bot, caller string, ids []string) (map[string]bool, error) {
	own := map[string]bool{}
	err := l.query(ctx, `SELECT n.id FROM {each}($4){value} CROSS JOIN notification n WHERE n.company = $1 AND n.bot = $2 AND n.caller = $3 AND n.id = value`,
		func(scan scanFunc) error {
			var id string
			err := scan(&id)
			own[id] = true
			return err
		}, company, bot, caller, textList(ids))
	return own, err
}

// textList is texts as {each} takes them.
func textList(texts []string) string {
	list, _ := json.Marshal(texts) // strings are always JSON
	return string(list)
}

// retainNotifications forgets whose notifications are that are as old as deleted sends, a chunk of them, and says whether there may
// be more.
func (l *Ledger) retainNotifications(ctx context.Context, keep time.Duration) (more bool, err error) {
	deleted := 0
	err = l.transactAgain(ctx, func(t *tx) error {
		deleted = 0
		t.read(`DELETE FROM notification WHERE (company, bot, id) IN (SELECT company, bot, id FROM notification WHERE sent_at <= (SELECT {now}) - $1 LIMIT $2) RETURNING 1`,
			func(scanFunc) error { deleted++; return nil }, micros(keep), notificationChunk)
		return t.flush()
	})
	return deleted == notificationChunk, err
}
