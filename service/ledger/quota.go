package ledger

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"
)

// QuotaError says that a caller's day in a company is used up. Nothing was stored.
type QuotaError struct {
	Caller string
	Limit  int64
	Resets time.Duration // from now on, on the database's clock
}

func (e *QuotaError) Error() string { return "ledger: the caller's sends of the day are used up" }

// quotaKey names a caller's day in a company.
type quotaKey struct {
	company int64
	caller  string
}

func compareQuotas(x, y quotaKey) int {
	return cmp.Or(cmp.Compare(x.company, y.company), cmp.Compare(x.caller, y.caller))
}

// dailyQuota is how much of a day is used. Its row is locked until the commit, so that the count is exact however many replicas
// add; callers without a limit have none.
type dailyQuota struct {
	day      int64 // since 1970, in UTC
	used     int64 // by what is committed
	reserved int64 // by what may be stored in this transaction
	spent    int64 // by what was
}

const dayMicros = int64(24 * time.Hour / time.Microsecond)

// lockQuotas locks the days of the callers that have a limit, in one order. It comes after the queues and before the first
// send: whoever waits here holds nothing that somebody with the lock could need.
func (a *adding) lockQuotas() error {
	a.quotas = map[quotaKey]*dailyQuota{}
	for _, w := range a.work {
		if w.new.DailyLimit > 0 {
			a.quotas[w.new.quotaKey()] = &dailyQuota{}
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(a.quotas), compareQuotas) {
		q := a.quotas[key]
		a.t.read(`INSERT INTO quota (company, caller, day, used) VALUES ($1, $2, $3, 0)
			ON CONFLICT (company, caller) DO UPDATE SET
				used = CASE WHEN quota.day >= excluded.day THEN quota.used ELSE 0 END, day = CASE WHEN quota.day >= excluded.day THEN quota.day ELSE excluded.day END
			RETURNING day, used`, func(scan scanFunc) error { return scan(&q.day, &q.used) }, key.company, key.caller, a.now/dayMicros)
	}
	return a.t.flush()
}

func (n *NewSend) quotaKey() quotaKey { return quotaKey{n.Company, n.Caller} }

// reserve keeps a part of the day for a send that may be new; the error says that none is left. What is a repetition shows only
// when it is stored, so a transaction that has both may refuse a new one that had just fitted: its caller tries again.
func (a *adding) reserve(w *addition, q *addingQueue) *QuotaError {
	d := a.quotas[w.new.quotaKey()]
	switch {
	case d == nil || w.new.DailyLimit == 0 || w.sealed:
		return nil
	case w.new.Queue != 0 && w.id.Pos <= q.last:
		return nil // an item that is there
	case d.used+d.reserved >= w.new.DailyLimit:
		return &QuotaError{Caller: w.new.Caller, Limit: w.new.DailyLimit, Resets: untilNextDay(d.day, a.now)}
	}
	d.reserved++
	return nil
}

func untilNextDay(day, now int64) time.Duration {
	return time.Duration((day+1)*dayMicros-now) * time.Microsecond
}

// spend counts a send that was stored to be sent.
func (a *adding) spend(w *addition) {
	if d := a.quotas[w.new.quotaKey()]; d != nil && w.new.DailyLimit > 0 && !w.standsIn {
		d.spent++
	}
}

// writeQuotas counts in the transaction that stores: a crash loses or keeps both.
func (a *adding) writeQuotas() {
	for _, key := range slices.SortedFunc(maps.Keys(a.quotas), compareQuotas) {
		if d := a.quotas[key]; d.spent > 0 {
			a.t.write(`UPDATE quota SET used = used + $3 WHERE company = $1 AND caller = $2`, key.company, key.caller, d.spent)
		}
	}
}

// CheckQuota reports whether so many more sends of a caller fit into its day now: a QuotaError where they do not. Only Add counts.
func (l *Ledger) CheckQuota(ctx context.Context, company int64, caller string, limit, more int64) error {
	var now, day, used int64
	err := l.query(ctx, `SELECT {now}, COALESCE((SELECT day FROM quota WHERE company = $1 AND caller = $2), 0), COALESCE((SELECT used FROM quota WHERE company = $1 AND caller = $2), 0)`,
		func(scan scanFunc) error { return scan(&now, &day, &used) }, company, caller)
	if err != nil {
		return err
	}
	if today := now / dayMicros; day < today {
		day, used = today, 0
	}
	if used+more > limit {
		return &QuotaError{Caller: caller, Limit: limit, Resets: untilNextDay(day, now)}
	}
	return nil
}
