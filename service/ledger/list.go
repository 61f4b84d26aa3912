package ledger

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Rows that a list passes over per page and caller, while it looks for those that fit its filter. A page may so be
// short, or empty, and yet not be the last.
const listScan = 5000

// Cursor is where a page ends. The zero value is the beginning, and after the last page.
type Cursor struct {
	At int64 // when it was accepted or created; of no account in a list by Pos
	ID ID    // of a batch without Pos
}

// IsZero reports whether the cursor is the beginning or the end.
func (c Cursor) IsZero() bool { return c == Cursor{} }

func compareCursors(x, y Cursor) int {
	return cmp.Or(cmp.Compare(x.At, y.At), cmp.Compare(x.ID.Company, y.ID.Company),
		cmp.Compare(x.ID.Queue, y.ID.Queue), cmp.Compare(x.ID.Pos, y.ID.Pos))
}

// newest compares for lists whose first is the newest.
func newest(x, y Cursor) int { return compareCursors(y, x) }

// byPos compares in a list of one queue.
func byPos(x, y Cursor) int { return cmp.Compare(x.ID.Pos, y.ID.Pos) }

// SendFilter says which sends a list has: those that all of its fields allow.
type SendFilter struct {
	Companies []int64
	Queue     QueueID           // only of this batch, in the order of Pos; zero: of all, newest first
	Caller    string            // empty: of all callers
	Bot       string            // empty: of all bots
	States    []State           // as they read; empty: in any
	Reasons   []string          // empty: with any, or none
	RequestID string            // empty: with any, or none
	From, To  int64             // accepted at or after From and before To; zero is no bound
	Labels    map[string]string // with all of these
}

// BatchFilter says which batches a list has: those that all of its fields allow.
type BatchFilter struct {
	Companies []int64
	Caller    string            // empty: of all callers
	Bot       string            // empty: of all bots
	States    []BatchState      // empty: in any
	RequestID string            // empty: with any, or none
	From, To  int64             // created at or after From and before To; zero is no bound
	Labels    map[string]string // with all of these
}

// Sends lists sends without their bodies: newest first, or those of one batch in the order of Pos. next is for the
// next page, zero after the last one. A page may be short, or empty, before the last.
func (l *Ledger) Sends(ctx context.Context, f SendFilter, after Cursor, limit int) (sends []Send, next Cursor, err error) {
	p := listing[Send]{
		l: l, limit: limit, compare: newest, sparse: f.sparse(), fits: sendFits, args: f.args(),
		columns: recordColumns, joined: " CROSS JOIN queue q WHERE " + ownQueue + " AND",
		scan: func(scan scanFunc) (Send, Cursor, error) {
			var r record
			err := r.scan(scan)
			return r.Send, Cursor{r.AcceptedAt, r.ID}, err
		},
	}
	inQueue := f.Queue != QueueID{}
	if inQueue && f.RequestID == "" {
		p.compare = byPos
		err := p.read(ctx, f.inQueue(after))
		sends, next = p.page()
		return sends, next, err
	}
	if inQueue {
		f.Companies = []int64{f.Queue.Company}
	}
	streams, err := l.streams(ctx, f.Companies, f.Caller, after, f.To)
	if err != nil {
		return nil, Cursor{}, err
	}
	for _, s := range streams {
		if err := p.read(ctx, f.inTime(s)); err != nil {
			return nil, Cursor{}, err
		}
	}
	sends, next = p.page()
	return sends, next, nil
}

// Batches lists batches, newest first. next is for the next page, zero after the last one. A page may be short, or
// empty, before the last.
func (l *Ledger) Batches(ctx context.Context, f BatchFilter, after Cursor, limit int) (batches []Batch, next Cursor, err error) {
	p := listing[Batch]{
		l: l, limit: limit, compare: newest, fits: batchFits, args: f.args(), columns: batchColumns, joined: " WHERE",
		sparse: f.Bot != "" || len(f.States)+len(f.Labels) > 0,
		scan: func(scan scanFunc) (Batch, Cursor, error) {
			var b batchRow
			err := b.scan(scan)
			return b.Batch, Cursor{b.CreatedAt, ID{Company: b.ID.Company, Queue: b.ID.Queue}}, err
		},
	}
	streams, err := l.streams(ctx, f.Companies, f.Caller, after, f.To)
	if err != nil {
		return nil, Cursor{}, err
	}
	for _, s := range streams {
		if err := p.read(ctx, f.inTime(s)); err != nil {
			return nil, Cursor{}, err
		}
	}
	batches, next = p.page()
	return batches, next, nil
}

// sendFits and batchFits are the filters; their parameters come after those of a source.
const (
	sendFits = ` AND s.accepted_at >= $f1 AND s.accepted_at < $f2 AND ($f3 = '' OR s.bot = $f3) AND ($f4 = '' OR s.caller = $f4)
	AND (CAST($f5 AS BIGINT) = 0 OR s.queue = $f5)
	AND ($f6 = 0 OR ` + stateRead + ` IN (SELECT value FROM {each}($f7){value}))
	AND ($f8 = 0 OR ` + reasonRead + ` IN (SELECT value FROM {each}($f9){value}))
	AND NOT EXISTS (SELECT 1 FROM {each}($f10){value} WHERE {find}(s.labels, value) = 0)`
	batchFits = ` AND q.created_at >= $f1 AND q.created_at < $f2 AND ($f3 = '' OR q.bot = $f3) AND ($f4 = '' OR q.caller = $f4)
	AND ($f5 = 0 OR CASE q.state WHEN 'cancelled' THEN 'cancelled' WHEN 'closed' THEN 'completed'
		ELSE CASE WHEN q.item_count IS NULL THEN 'open' ELSE 'running' END END IN (SELECT value FROM {each}($f6){value}))
	AND NOT EXISTS (SELECT 1 FROM {each}($f7){value} WHERE {find}(q.labels, value) = 0)`
)

func (f *SendFilter) args() []any {
	return []any{
		f.From, cmp.Or(f.To, math.MaxInt64), f.Bot, f.Caller, f.Queue.Queue,
		len(f.States), jsonList(f.States), len(f.Reasons), jsonList(f.Reasons), labelList(f.Labels),
	}
}

func (f *BatchFilter) args() []any {
	return []any{f.From, cmp.Or(f.To, math.MaxInt64), f.Bot, f.Caller, len(f.States), jsonList(f.States), labelList(f.Labels)}
}

func jsonList[T ~string](list []T) string {
	if list == nil {
		return "[]"
	}
	text, _ := json.Marshal(list) // of strings: no error is possible
	return string(text)
}

// labelList gives each label as it stands in a stored object. A quote inside of a key or value is written with a
// backslash, so that no label is found inside of another.
func labelList(labels map[string]string) string {
	list := make([]string, 0, len(labels))
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		text, _ := json.Marshal(map[string]string{key: labels[key]})
		list = append(list, string(text[1:len(text)-1]))
	}
	return jsonList(list)
}

// sparse reports whether rows may have to be passed over.
func (f *SendFilter) sparse() bool {
	return f.Bot != "" || len(f.States)+len(f.Reasons)+len(f.Labels) > 0
}

// amiss are the sends that have indexes of their own: whoever lists nothing else does not pass over the others. The text
// is that of the indexes.
const amiss = ` AND s.state IN ('failed', 'unknown', 'expired')`

func (f *SendFilter) amiss() string {
	if len(f.States) == 0 || slices.ContainsFunc(f.States, func(s State) bool { return s != Failed && s != Unknown && s != Expired }) {
		return ""
	}
	return amiss
}

// A stream is what one caller has in one company, from a cursor on.
type stream struct {
	company int64
	caller  string
	after   Cursor
}

// streams gives one for each company and caller: there is an index in the order of the list for each.
func (l *Ledger) streams(ctx context.Context, companies []int64, caller string, after Cursor, to int64) ([]stream, error) {
	if after.IsZero() {
		after = Cursor{At: math.MaxInt64}
	}
	if to != 0 && to <= after.At {
		after = Cursor{At: to}
	}
	var out []stream
	add := func(company int64, caller string) {
		s := stream{company, caller, after}
		switch { // of what was accepted at the same time the higher ids came before
		case company < after.ID.Company:
			s.after.ID = ID{company, math.MaxInt64, math.MaxInt64}
		case company > after.ID.Company:
			s.after.ID = ID{company, 0, 0}
		}
		out = append(out, s)
	}
	if caller != "" {
		for _, company := range companies {
			add(company, caller)
		}
		return out, nil
	}
	err := l.query(ctx, `SELECT DISTINCT company, caller FROM share WHERE company {in 1} ORDER BY company, caller`, func(scan scanFunc) error {
		var company int64
		var caller string
		err := scan(&company, &caller)
		add(company, caller)
		return err
	}, l.dialect.list(companies))
	return out, err
}

// A source is the part of an index that a list goes through.
type source struct {
	company int64
	table   string
	where   string
	key     string // a Cursor's columns; empty for the one row of a request id
	order   string
	args    func(end Cursor) []any // of where; end is the last row that is looked at, zero for no such bound
	after   Cursor
}

func (f *SendFilter) inQueue(after Cursor) source {
	table := "send s"
	if f.amiss() != "" {
		table += "{amiss}"
	}
	return source{
		company: f.Queue.Company, table: table, where: ` s.company = $1 AND s.queue = $2 AND s.pos > $3 AND s.pos <= $4` + f.amiss(),
		key: `0, s.queue, s.pos`, order: ` ORDER BY s.pos`,
		args: func(end Cursor) []any {
			return []any{f.Queue.Company, f.Queue.Queue, after.ID.Pos, cmp.Or(end.ID.Pos, math.MaxInt64)}
		},
	}
}

func (f *SendFilter) inTime(s stream) source {
	if f.RequestID != "" {
		return source{
			company: s.company, table: "send s", where: ` s.company = $1 AND s.caller = $2 AND s.request_id = $3`,
			args: func(Cursor) []any { return []any{s.company, s.caller, f.RequestID} }, after: s.after,
		}
	}
	return source{
		company: s.company, table: "send s",
		where: ` s.company = $1 AND s.caller = $2 AND (s.accepted_at, s.queue, s.pos) < ($3, $4, $5) AND (s.accepted_at, s.queue, s.pos) >= ($6, $7, $8)` + f.amiss(),
		key:   `s.accepted_at, s.queue, s.pos`, order: ` ORDER BY s.accepted_at DESC, s.queue DESC, s.pos DESC`,
		args: func(end Cursor) []any {
			return []any{
				s.company, s.caller, s.after.At, s.after.ID.Queue, s.after.ID.Pos,
				max(f.From, end.At), end.ID.Queue, end.ID.Pos,
			}
		},
	}
}

func (f *BatchFilter) inTime(s stream) source {
	const kept = ` AND q.batch = 1 AND q.dropped_result = 0`
	if f.RequestID != "" {
		return source{
			company: s.company, table: "queue q", where: ` q.company = $1 AND q.caller = $2 AND q.request_id = $3` + kept,
			args: func(Cursor) []any { return []any{s.company, s.caller, f.RequestID} }, after: s.after,
		}
	}
	return source{
		company: s.company, table: "queue q",
		where: ` q.company = $1 AND q.caller = $2 AND (q.created_at, q.id) < ($3, $4) AND (q.created_at, q.id) >= ($5, $6)` + kept,
		key:   `q.created_at, q.id, 0`, order: ` ORDER BY q.created_at DESC, q.id DESC`,
		args: func(end Cursor) []any {
			return []any{s.company, s.caller, s.after.At, s.after.ID.Queue, max(f.From, end.At), end.ID.Queue}
		},
	}
}

func (s source) endQuery(n int) string {
	return `SELECT ` + s.key + ` FROM ` + s.table + ` WHERE` + s.where + s.order + ` LIMIT 1 OFFSET $` + strconv.Itoa(n+1)
}

// A listing makes a page of what several sources have.
type listing[T any] struct {
	l       *Ledger
	limit   int
	compare func(x, y Cursor) int
	sparse  bool   // rows may have to be passed over
	columns string // of a row
	joined  string // what the columns need besides the source's table, and the beginning of the conditions
	fits    string
	args    []any // of fits
	scan    func(scanFunc) (T, Cursor, error)

	rows []listed[T]
	end  Cursor // every source was looked through up to here; zero: to its end
}

type listed[T any] struct {
	row T
	at  Cursor
}

// read takes a source's first rows, one more than fit on the page.
func (p *listing[T]) read(ctx context.Context, s source) error {
	var end Cursor
	if p.sparse && s.key != "" {
		var err error
		if end, err = p.lookEnd(ctx, s); err != nil {
			return err
		}
		if !end.IsZero() && (p.end.IsZero() || p.compare(end, p.end) < 0) {
			p.end = end
		}
	}
	args := s.args(end)
	return p.l.query(ctx, p.query(s, len(args)), func(scan scanFunc) error {
		row, at, err := p.scan(scan)
		if err == nil && (s.key != "" || p.compare(at, s.after) > 0) {
			p.rows = append(p.rows, listed[T]{row, at})
		}
		return err
	}, append(append(args, p.args...), p.limit+1)...)
}

// query is the text for a source with n parameters.
func (p *listing[T]) query(s source, n int) string {
	return `SELECT ` + p.columns + ` FROM ` + s.table + p.joined + s.where + numbered(p.fits, n) + s.order + ` LIMIT $` + strconv.Itoa(n+len(p.args)+1)
}

// lookEnd finds the last of the rows that are looked at for this page; zero when there are fewer.
func (p *listing[T]) lookEnd(ctx context.Context, s source) (end Cursor, err error) {
	args := s.args(Cursor{})
	err = p.l.query(ctx, s.endQuery(len(args)), func(scan scanFunc) error {
		end.ID.Company = s.company
		return scan(&end.At, &end.ID.Queue, &end.ID.Pos)
	}, append(args, listScan-1)...)
	return end, err
}

// numbered makes the parameters $f1, $f2, … those that come after n others.
func numbered(text string, n int) string {
	parts := strings.Split(text, "$f")
	var b strings.Builder
	b.WriteString(parts[0])
	for _, part := range parts[1:] {
		digits := len(part) - len(strings.TrimLeft(part, "0123456789"))
		i, _ := strconv.Atoi(part[:digits])
		b.WriteString("$" + strconv.Itoa(n+i) + part[digits:])
	}
	return b.String()
}

// page gives the rows that come before everything that was not looked at.
func (p *listing[T]) page() (rows []T, next Cursor) {
	slices.SortFunc(p.rows, func(x, y listed[T]) int { return p.compare(x.at, y.at) })
	if !p.end.IsZero() {
		p.rows = slices.DeleteFunc(p.rows, func(r listed[T]) bool { return p.compare(r.at, p.end) > 0 })
		next = p.end
	}
	if len(p.rows) > p.limit {
		p.rows = p.rows[:p.limit]
		next = p.rows[p.limit-1].at
	}
	for _, r := range p.rows {
		rows = append(rows, r.row)
	}
	return rows, next
}
