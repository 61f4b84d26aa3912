package ledger

import "context"

// The queue is found first, once. The sub-select reads one index, and what is joined to it is joined by its columns alone: with
// parameters in their place the planner, whose cached plan may be from when the tables were empty, would take all sends of the
// queue for few.
const resultsQuery = `SELECT ` + recordColumns + `, q.dropped_result, q.ended_at IS NOT NULL
	FROM (SELECT CAST($1 AS BIGINT) AS company, CAST($2 AS BIGINT) AS id) f {queue of f}
	CROSS JOIN (SELECT y.company, y.queue, y.pos FROM send y WHERE y.company = $1 AND y.queue = $2 AND y.result_no > $3 AND y.result_no IS NOT NULL
		ORDER BY y.result_no LIMIT $4) n
	CROSS JOIN send s
	WHERE s.company = n.company AND s.queue = n.queue AND s.pos = n.pos AND q.batch = 1
	ORDER BY s.result_no`

// Results reads a batch's results in the order in which they were committed: those whose ResultNo is higher than after, up to
// limit. Nothing with a lower number appears once a higher one was seen, and there may be numbers that nothing has.
// ended is set when the batch had ended by then: fewer than limit are the last ones. ErrCursorExpired: results
// after this number were deleted.
func (l *Ledger) Results(ctx context.Context, id QueueID, after int64, limit int) (out []Send, ended bool, err error) {
	dropped, found := int64(0), false
	read := func() error {
		return l.query(ctx, resultsQuery, func(scan scanFunc) error {
			var r record
			err := r.scan(scan, &dropped, &ended)
			found, out = true, append(out, r.Send)
			return err
		}, id.Company, id.Queue, after, limit)
	}
	if err = read(); err == nil && !found {
		// Read after the results: what is kept now was kept then.
		err = l.query(ctx, `SELECT dropped_result, ended_at IS NOT NULL FROM queue
			WHERE company{newest} = $1 AND id{newest} = $2 AND batch = 1 ORDER BY start_tag DESC LIMIT 1`, func(scan scanFunc) error {
			found = true
			return scan(&dropped, &ended)
		}, id.Company, id.Queue)
		if err == nil && ended {
			err = read() // it may have ended in between, with results that are read now
		}
	}
	switch {
	case err != nil:
		return nil, false, err
	case !found:
		return nil, false, ErrNotFound
	case after < dropped:
		return nil, false, ErrCursorExpired
	}
	return out, ended, nil
}
