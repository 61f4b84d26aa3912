package ledger

import "context"

// Results reads a batch's results in the order in which they were committed: those whose ResultNo is higher than after, up to
// limit. Nothing with a lower number appears once a higher one was seen, and there may be numbers that nothing has.
// The batch has given all its results when EndedAt is set, read before, and none are left. ErrCursorExpired: results
// after this number were deleted.
func (l *Ledger) Results(ctx context.Context, id QueueID, after int64, limit int) ([]Send, error) {
	var out []Send
	err := l.query(ctx, `SELECT `+recordColumns+`
		FROM (SELECT y.pos FROM send y WHERE y.company = $1 AND y.queue = $2 AND y.result_no > $3 AND y.result_no IS NOT NULL
			ORDER BY y.result_no LIMIT $4) n
		JOIN send s ON s.company = $1 AND s.queue = $2 AND s.pos = n.pos
		JOIN queue q ON q.company = $1 AND q.id = $2
		ORDER BY s.result_no`, func(scan scanFunc) error {
		var r record
		err := r.scan(scan)
		out = append(out, r.Send)
		return err
	}, id.Company, id.Queue, after, limit)
	if err != nil {
		return nil, err
	}
	// Read after the results: what is kept now was kept then.
	dropped, found := int64(0), false
	err = l.query(ctx, `SELECT dropped_result FROM queue WHERE company = $1 AND id = $2 AND batch = 1`, func(scan scanFunc) error {
		found = true
		return scan(&dropped)
	}, id.Company, id.Queue)
	switch {
	case err != nil:
		return nil, err
	case !found:
		return nil, ErrNotFound
	case after < dropped:
		return nil, ErrCursorExpired
	}
	return out, nil
}
