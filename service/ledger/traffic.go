package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
)

// Traffic is how many alike sends were accepted in one second. It has nothing of what was sent, or to whom.
type Traffic struct {
	At     time.Time // the second in which they could leave at the earliest
	Lane   Lane
	Caller string
	Batch  int64         // numbers the batches in the order of their making; zero for loose sends
	Expire time.Duration // after which they would not have been sent; zero is never
	Count  int64
}

// ReadTraffic reads what a company accepted since then, in order, from a ledger that may be in use: it changes nothing and
// takes no lock.
func ReadTraffic(ctx context.Context, c Config, company string, since time.Time, yield func(Traffic) error) (err error) {
	l := &Ledger{postgres: c.URL != "", dialect: newSQLiteDialect()}
	if l.postgres {
		l.dialect = newPostgresDialect(walTimeline)
		config, err := postgresConfig(c.URL, "jelou-facade traffic")
		if err != nil {
			return err
		}
		l.db = stdlib.OpenDB(*config)
	} else {
		if _, err := os.Stat(c.Path); err != nil {
			return err
		}
		reading, err := newSQLiteConnector(c.Path, "busy_timeout(5000)", "query_only(1)")
		if err != nil {
			return err
		}
		l.db = sql.OpenDB(reading)
	}
	defer func() { err = errors.Join(err, l.db.Close()) }()
	var id int64
	if err := l.query(ctx, `SELECT id FROM company WHERE name = $1`, func(scan scanFunc) error { return scan(&id) }, company); err != nil {
		return err
	}
	if id == 0 {
		return fmt.Errorf("%w: the ledger has no company %q", ErrNotFound, company)
	}
	return l.query(ctx, trafficQuery, func(scan scanFunc) error {
		var t Traffic
		var second, expire int64
		if err := scan(&second, &t.Lane, &t.Caller, &t.Batch, &expire, &t.Count); err != nil {
			return err
		}
		t.At, t.Expire = time.Unix(second, 0).UTC(), time.Duration(expire)*time.Second
		return yield(t)
	}, id, since.UnixMicro())
}

// trafficQuery rounds the time that a send may wait up to seconds, so that those of one second are alike.
const trafficQuery = `SELECT a.at, a.lane, a.caller, a.batch, a.expire, count(*) FROM (
	SELECT CASE WHEN s.due_at > s.accepted_at AND s.attempt = 0 THEN s.due_at ELSE s.accepted_at END / 1000000 AS at, s.lane, s.caller,
		COALESCE(b.number, 0) AS batch, COALESCE((s.expire_at - s.accepted_at + 999999) / 1000000, 0) AS expire
	FROM send s LEFT JOIN (
		SELECT q.id, row_number() OVER (ORDER BY q.created_at, q.id) AS number FROM queue q WHERE q.company = $1 AND q.batch = 1) b ON b.id = s.queue
	WHERE s.company = $1 AND s.accepted_at >= $2) a
	GROUP BY a.at, a.lane, a.caller, a.batch, a.expire ORDER BY a.at, a.lane, a.caller, a.batch, a.expire`
