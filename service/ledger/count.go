package ledger

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// added sums the stripes of a queue's tally.
const added = `(SELECT CAST(COALESCE(sum(t.added), 0) AS BIGINT) FROM tally t WHERE t.company = q.company AND t.queue = q.id)`
const addedScheduled = `(SELECT CAST(COALESCE(sum(t.scheduled), 0) AS BIGINT) FROM tally t WHERE t.company = q.company AND t.queue = q.id)`

// Line is what waits in a company, as it stands in line. It is as old as the moment it was read.
type Line struct {
	ClaimNo int64           // of the latest claim
	Pace    []byte          // as stored
	Virtual [Bulk + 1]int64 // of the callers' shares, by lane
	Shares  []ShareLine
}

// ShareLine is one caller's share of a lane.
type ShareLine struct {
	Lane   Lane
	Caller string
	Tag    Tag // without Virtual, which is the lane's
	// Virtual is that of the share's queues.
	Virtual int64
	Served  int64 // claims, ever
	Queues  []QueueLine
}

// QueueLine is a queue in which something waits or is on its way.
type QueueLine struct {
	Queue     int64
	Start     int64
	Batch     bool
	Added     int64 // sends, ever: the number of the last one, in a batch
	Waiting   int64 // pending, and not paused
	Paused    int64
	Scheduled int64
	Sending   int64
}

// Count says what waits in a company, for the estimate of when a send will start. It reads a few numbers per queue that
// is not ended, whatever the number of sends.
func (l *Ledger) Count(ctx context.Context, company int64) (Line, error) {
	var line Line
	var virtual [Bulk + 1]int64
	var claimNo int64
	var stored []byte
	err := l.query(ctx, `SELECT c.claim_no, c.pace, c.urgent_virtual, c.normal_virtual, c.bulk_virtual, x.lane, x.caller, x.start_tag, x.weight, x.queue_virtual, x.served,
			COALESCE(w.id, 0), COALESCE(w.start_tag, 0), COALESCE(w.batch, 0), COALESCE(w.added, 0),
			CASE WHEN w.state = 'open' THEN w.added - w.done - w.sending - w.scheduled ELSE 0 END,
			CASE WHEN w.state = 'paused' THEN w.added - w.done - w.sending - w.scheduled ELSE 0 END,
			COALESCE(w.scheduled, 0), COALESCE(w.sending, 0)
		FROM company c JOIN share x ON x.company = c.id
		LEFT JOIN (SELECT q.company, q.lane, q.caller, q.id, q.start_tag, q.batch, q.state, q.sending, q.sent + q.failed + q.unknown + q.cancelled + q.expired AS done,
				`+added+` AS added, `+addedScheduled+` - q.left_scheduled AS scheduled
			FROM queue q WHERE q.company = $1 AND q.state IN ('open', 'paused')) w
			ON w.company = x.company AND w.lane = x.lane AND w.caller = x.caller AND w.added > w.done
		WHERE c.id = $1 ORDER BY x.lane, x.caller, w.id`, func(scan scanFunc) error {
		var s ShareLine
		var q QueueLine
		err := scan(&claimNo, &stored, &virtual[Urgent], &virtual[Normal], &virtual[Bulk], &s.Lane, &s.Caller, &s.Tag.Start, &s.Tag.Weight, &s.Virtual, &s.Served,
			&q.Queue, &q.Start, flag{&q.Batch}, &q.Added, &q.Waiting, &q.Paused, &q.Scheduled, &q.Sending)
		line.add(s, q)
		return err
	}, company)
	line.ClaimNo, line.Pace, line.Virtual = claimNo, stored, virtual
	return line, err
}

// add puts a queue to its share; rows come share by share.
func (l *Line) add(s ShareLine, q QueueLine) {
	if n := len(l.Shares); n == 0 || l.Shares[n-1].Lane != s.Lane || l.Shares[n-1].Caller != s.Caller {
		l.Shares = append(l.Shares, s)
	}
	if q.Queue != 0 {
		last := &l.Shares[len(l.Shares)-1]
		last.Queues = append(last.Queues, q)
	}
}

// Backlog is what waits of a caller in a lane of a company.
type Backlog struct {
	Company int64
	Lane    Lane
	Caller  string

	Waiting   int64 // pending, and not paused
	Paused    int64
	Scheduled int64
	// Oldest is for how long the first send of a queue waits that could be claimed now, the longest over the queues.
	Oldest time.Duration
}

// backlogQuery reads a few numbers and one send of every queue that is not ended.
const backlogQuery = `SELECT w.company, w.lane, w.caller,
		CAST(sum(CASE WHEN w.state = 'open' THEN w.added - w.done - w.sending - w.scheduled ELSE 0 END) AS BIGINT),
		CAST(sum(CASE WHEN w.state = 'paused' THEN w.added - w.done - w.sending - w.scheduled ELSE 0 END) AS BIGINT),
		CAST(sum(w.scheduled) AS BIGINT), CAST(COALESCE(max(w.age), 0) AS BIGINT)
	FROM (SELECT q.company, q.lane, q.caller, q.state, q.sending, q.sent + q.failed + q.unknown + q.cancelled + q.expired AS done,
			` + added + ` AS added, ` + addedScheduled + ` - q.left_scheduled AS scheduled,
			CASE WHEN q.state = 'open' THEN {now} - (SELECT CASE WHEN s.due_at > s.accepted_at THEN s.due_at ELSE s.accepted_at END FROM send s
				WHERE s.company = q.company AND s.queue = q.id AND s.pos = (SELECT y.pos FROM send y
					WHERE y.company = q.company AND y.queue = q.id AND y.state = 'pending' AND y.parked = 0 ORDER BY y.pos LIMIT 1)) END AS age
		FROM queue q WHERE q.state IN ('open', 'paused')) w
	GROUP BY w.company, w.lane, w.caller`

// Backlogs says what waits in all companies.
func (l *Ledger) Backlogs(ctx context.Context) ([]Backlog, error) {
	var all []Backlog
	err := l.query(ctx, backlogQuery, func(scan scanFunc) error {
		var b Backlog
		var oldest int64
		err := scan(&b.Company, &b.Lane, &b.Caller, &b.Waiting, &b.Paused, &b.Scheduled, &oldest)
		b.Oldest = time.Duration(max(0, oldest)) * time.Microsecond
		all = append(all, b)
		return err
	})
	return all, err
}

// maxCounted bounds the sends that Before counts one by one.
const maxCounted = 10_000

// Before is how many sends of its queue go before a send that waits, as far as it can be said without reading them all.
func (l *Ledger) Before(ctx context.Context, s Send) (int64, error) {
	if s.Batch {
		// Items leave in the order of their numbers, so those after it all wait.
		var waiting, behind int64
		err := l.query(ctx, `SELECT w.added - w.done - w.sending - w.scheduled, w.added - $3 FROM (
				SELECT q.sending, q.sent + q.failed + q.unknown + q.cancelled + q.expired AS done, `+added+` AS added, `+addedScheduled+` - q.left_scheduled AS scheduled
				FROM queue q WHERE q.company = $1 AND q.id = $2) w`,
			func(scan scanFunc) error { return scan(&waiting, &behind) }, s.ID.Company, s.ID.Queue, s.ID.Pos)
		return max(0, min(waiting-behind-1, s.ID.Pos-1)), err
	}
	var n int64
	err := l.query(ctx, `SELECT count(*) FROM (SELECT pos FROM send WHERE company = $1 AND queue = $2 AND state = 'pending' AND parked = 0 AND pos < $3 LIMIT $4) b`,
		func(scan scanFunc) error { return scan(&n) }, s.ID.Company, s.ID.Queue, s.ID.Pos, maxCounted)
	return n, err
}

// UnknownByAge counts the unknown sends that nobody has settled, by how long ago they became that: one number per age,
// of those at least so old and younger than the next.
func (l *Ledger) UnknownByAge(ctx context.Context, ages []time.Duration) ([]int64, error) {
	counts := make([]int64, len(ages))
	for i, age := range ages {
		oldest := int64(math.MaxInt64)
		if i+1 < len(ages) {
			oldest = micros(ages[i+1])
		}
		err := l.query(ctx, `SELECT count(*) FROM send WHERE state = 'unknown' AND settled_at <= {now} - $1 AND settled_at > {now} - $2`,
			func(scan scanFunc) error { return scan(&counts[i]) }, micros(age), oldest)
		if err != nil {
			return nil, err
		}
	}
	return counts, nil
}

// Served counts the claims ever made, by company and caller.
func (l *Ledger) Served(ctx context.Context) (map[int64]map[string]int64, error) {
	out := map[int64]map[string]int64{}
	err := l.query(ctx, `SELECT company, caller, CAST(sum(served) AS BIGINT) FROM share GROUP BY company, caller`, func(scan scanFunc) error {
		var company, served int64
		var caller string
		err := scan(&company, &caller, &served)
		if out[company] == nil {
			out[company] = map[string]int64{}
		}
		out[company][caller] = served
		return err
	})
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
	{"a company is there twice", `SELECT min(id), 0 FROM company GROUP BY id HAVING count(*) > 1
		UNION ALL SELECT min(id), 0 FROM company GROUP BY name HAVING count(*) > 1`},
	{"a share is there twice", `SELECT company, 0 FROM share GROUP BY company, lane, caller HAVING count(*) > 1`},
	{"a queue is there twice", `SELECT company, min(id) FROM queue GROUP BY company, id HAVING count(*) > 1
		UNION ALL SELECT company, min(id) FROM queue WHERE batch = 0 GROUP BY company, lane, caller HAVING count(*) > 1
		UNION ALL SELECT company, min(id) FROM queue WHERE request_id IS NOT NULL GROUP BY company, caller, request_id HAVING count(*) > 1`},
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
	{"a batch has ended too early, or not at all", `SELECT q.company, q.id FROM queue q WHERE q.batch = 1 AND q.dropped_result = 0 AND q.item_count >= 0
		AND (q.sent + q.failed + q.unknown + q.cancelled + q.expired = q.item_count) <> (q.ended_at IS NOT NULL)`},
	{"a batch has a gap", `SELECT q.company, q.id FROM queue q WHERE q.batch = 1 AND q.dropped_result = 0
		AND (SELECT COALESCE(max(s.pos), 0) - count(*) FROM send s WHERE s.company = q.company AND s.queue = q.id) <> 0`},
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
