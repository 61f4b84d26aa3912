package ledger

import (
	"context"
	"errors"
	"fmt"
)

// added sums the stripes of a queue's tally.
const added = `(SELECT COALESCE(sum(t.added), 0) FROM tally t WHERE t.company = q.company AND t.queue = q.id)`
const addedScheduled = `(SELECT COALESCE(sum(t.scheduled), 0) FROM tally t WHERE t.company = q.company AND t.queue = q.id)`

// Count says what waits in a company, per lane and caller, for the estimate of when a new send would start. It reads a
// few numbers per queue that is not ended, whatever the number of sends.
func (l *Ledger) Count(ctx context.Context, company int64) ([]Backlog, error) {
	var out []Backlog
	err := l.query(ctx, `SELECT lane, caller,
			CAST(sum(CASE WHEN state = 'open' THEN added - done - sending - scheduled ELSE 0 END) AS BIGINT),
			CAST(sum(CASE WHEN state = 'paused' THEN added - done - sending - scheduled ELSE 0 END) AS BIGINT),
			CAST(sum(scheduled) AS BIGINT), CAST(sum(sending) AS BIGINT)
		FROM (SELECT q.lane, q.caller, q.state, q.sending, q.sent + q.failed + q.unknown + q.cancelled + q.expired AS done,
				`+added+` AS added, `+addedScheduled+` - q.left_scheduled AS scheduled
			FROM queue q WHERE q.company = $1 AND q.state IN ('open', 'paused')) live
		GROUP BY lane, caller ORDER BY lane, caller`, func(scan scanFunc) error {
		var b Backlog
		err := scan(&b.Lane, &b.Caller, &b.Waiting, &b.Paused, &b.Scheduled, &b.Sending)
		out = append(out, b)
		return err
	}, company)
	return out, err
}

// Totals counts all sends, by how they read.
func (l *Ledger) Totals(ctx context.Context) (Totals, error) {
	var t Totals
	err := l.query(ctx, `SELECT
			CAST(COALESCE(sum(added), 0) AS BIGINT), CAST(COALESCE(sum(sent), 0) AS BIGINT), CAST(COALESCE(sum(failed), 0) AS BIGINT),
			CAST(COALESCE(sum(unknown), 0) AS BIGINT), CAST(COALESCE(sum(expired), 0) AS BIGINT),
			CAST(COALESCE(sum(cancelled + CASE WHEN state = 'cancelled' THEN added - sending - sent - failed - unknown - expired - cancelled ELSE 0 END), 0) AS BIGINT)
		FROM (SELECT q.state, q.sending, q.sent, q.failed, q.unknown, q.expired, q.cancelled, `+added+` AS added FROM queue q) counts`,
		func(scan scanFunc) error {
			return scan(&t.Accepted, &t.Sent, &t.Failed, &t.Unknown, &t.Expired, &t.Cancelled)
		})
	t.Waiting = t.Accepted - t.Sent - t.Failed - t.Unknown - t.Expired - t.Cancelled
	return t, err
}

// invariants give a row for everything that must not be. They look at every send.
var invariants = []struct{ broken, query string }{
	{"a queue's counts are not those of its sends", `SELECT q.company, q.id FROM queue q WHERE EXISTS (
		SELECT 1 FROM (SELECT count(*) AS added,
				COALESCE(sum(CASE WHEN s.state = 'sending' THEN 1 ELSE 0 END), 0) AS sending,
				COALESCE(sum(CASE WHEN s.state = 'sent' THEN 1 ELSE 0 END), 0) AS sent,
				COALESCE(sum(CASE WHEN s.state = 'failed' THEN 1 ELSE 0 END), 0) AS failed,
				COALESCE(sum(CASE WHEN s.state = 'unknown' THEN 1 ELSE 0 END), 0) AS unknown,
				COALESCE(sum(CASE WHEN s.state = 'cancelled' THEN 1 ELSE 0 END), 0) AS cancelled,
				COALESCE(sum(CASE WHEN s.state = 'expired' THEN 1 ELSE 0 END), 0) AS expired,
				COALESCE(sum(CASE WHEN s.state = 'scheduled' THEN 1 ELSE 0 END), 0) AS scheduled
			FROM send s WHERE s.company = q.company AND s.queue = q.id) c
		WHERE c.added <> ` + added + ` OR c.scheduled <> ` + addedScheduled + ` - q.left_scheduled
			OR c.sending <> q.sending OR c.sent <> q.sent OR c.failed <> q.failed OR c.unknown <> q.unknown
			OR c.cancelled <> q.cancelled OR c.expired <> q.expired)`},
	{"a send has no queue", `SELECT s.company, s.queue FROM send s WHERE NOT EXISTS (SELECT 1 FROM queue q WHERE q.company = s.company AND q.id = s.queue)`},
	{"a send can be claimed and its queue is off", `SELECT q.company, q.id FROM queue q WHERE q.ready = 0 AND q.state <> 'cancelled'
		AND EXISTS (SELECT 1 FROM send s WHERE s.company = q.company AND s.queue = q.id AND s.state = 'pending' AND s.parked = 0)`},
	{"a queue is on and its share is off", `SELECT q.company, q.id FROM queue q WHERE q.ready = 1 AND q.state = 'open'
		AND NOT EXISTS (SELECT 1 FROM share x WHERE x.company = q.company AND x.lane = q.lane AND x.caller = q.caller AND x.ready = 1)`},
	{"a send is parked and nothing will unpark it", `SELECT s.company, s.queue FROM send s WHERE s.parked = 1 AND NOT EXISTS (
		SELECT 1 FROM send b WHERE b.company = s.company AND b.bot = s.bot AND b.recipient = s.recipient AND (b.lane = 1) = (s.lane = 1)
			AND (b.state = 'sending' OR b.parked = 2 OR (b.state = 'pending' AND b.parked = 0 AND b.queue = s.queue AND b.pos < s.pos)))`},
	{"a result number is not below the queue's next one", `SELECT s.company, s.queue FROM send s JOIN queue q ON q.company = s.company AND q.id = s.queue
		WHERE s.result_no >= q.next_result`},
	{"two sends to one recipient are on their way", `SELECT company, min(queue) FROM send WHERE state = 'sending' AND recipient <> ''
		GROUP BY company, bot, recipient, CASE WHEN lane = 1 THEN 1 ELSE 2 END HAVING count(*) > 1`},
}

// CheckInvariant looks whether the ledger is consistent: accepted = sent + failed + unknown + cancelled + expired +
// waiting, in the counts and in the rows, and nothing that waits is out of reach. It reads every row; for tests and
// for people.
func (l *Ledger) CheckInvariant(ctx context.Context) error {
	var errs []error
	for _, inv := range invariants {
		first := true
		err := l.query(ctx, inv.query, func(scan scanFunc) error {
			var company, queue int64
			if err := scan(&company, &queue); err != nil {
				return err
			}
			if first {
				errs = append(errs, fmt.Errorf("ledger: %s (company %d, queue %s)", inv.broken, company, QueueID{company, queue}))
			}
			first = false
			return nil
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
