package ledger

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// A dialect is all that differs between the databases. Statements are written once, with $1 parameters and
// these words in braces:
//
//	{now}        the database's clock in microseconds, read where the statement reaches it; to be compared with an index
//	             it stands in a sub-select, which is read once
//	{lock}       take the row for writing, wait for it
//	{lock skip}  the same, leave out rows that somebody else has
//	{share}      keep the row from being taken by {all skip}, wait for whoever has it so
//	{all}        take the row also from those who hold {share}, wait for it
//	{all skip}   the same, leave out rows that somebody else has
//	{in N}       is one of the numbers of list parameter $N, made by list
//	{each}($N){value}  the texts of the JSON array $N, as rows with a column value
//	{find}(a, b)       where the text a has b in it; zero: nowhere
//	{timeline}   of the database; where it has none, what the table home says
//	{alone}      SELECT {alone} of company $1: nobody else makes rows of company, share or queue in it until the commit. It comes
//	             before all other locks
//	{greatest}(a, b)   the greater one
//	{newest}     behind each column of the key of a company, a share or a queue, with ORDER BY era DESC LIMIT 1 or start_tag DESC, or
//	             era or start_tag known: go from the row's newest version, not past all that an old snapshot keeps; {newest caller}
//	             is the same behind a share's caller
//	{ready}      behind the company of shares and queues that are on: go through the index of these in its order
//	{companies}, {companies lock}, {companies skip}  the companies c in list parameter $1, their newest versions, locked
//	{companies mine}   of the companies in list parameter $1 those that this transaction has locked by lockCompanies or lockCompaniesSkip
//	{note locked}      in these, what {companies mine} goes by
//	{note mine}  with a query mine that locks by {all skip}: whether it got its row, for {mine} of the statements right behind it
//	{share of f}, {queue of f}, {queue of s}  joins the newest version of f's share x, of f's queue q, of a send's queue q
//	{amiss}      behind the table send: go through the index of sends that are amiss, which SQLite takes for no better
//	             than the table
type dialect struct {
	begin     string
	words     *strings.Replacer
	positions string // gives the first of $1 positions, or each of them

	liftPositions string // above all that can have been given
	list          func([]int64) any
	stripes       uint32 // of tally

	unnumbered bool // ? is better than $1
	texts      sync.Map
}

// text is the statement in this dialect.
func (d *dialect) text(query string) string {
	if t, ok := d.texts.Load(query); ok {
		return t.(string)
	}
	t := d.words.Replace(query)
	if d.unnumbered {
		t = unnumber(t)
	}
	d.texts.Store(query, t)
	return t
}

var parameter = regexp.MustCompile(`\$\d+`)

// unnumber writes ? for $1, $2, … where they come in this order, once each. SQLite takes $1 for a name, and looks
// through all names for every value: an insert of many rows took three times as long.
func unnumber(query string) string {
	for i, p := range parameter.FindAllString(query, -1) {
		if p != "$"+strconv.Itoa(i+1) {
			return query
		}
	}
	return parameter.ReplaceAllString(query, "?")
}

// newSQLiteDialect needs no row locks: there is one writer, and it begins IMMEDIATE.
func newSQLiteDialect() *dialect {
	return &dialect{
		begin: "BEGIN IMMEDIATE",
		words: strings.NewReplacer(
			"{now}", "clock_us()",
			"{lock}", "", "{lock skip}", "", "{share}", "", "{all}", "", "{all skip}", "",
			"{in 1}", "IN (SELECT value FROM json_each($1))",
			"{alone}", "$1", "{greatest}", "max", "{newest}", "", "{newest caller}", "", "{ready}", "",
			"{companies}", sqliteCompanies, "{companies lock}", sqliteCompanies, "{companies skip}", sqliteCompanies, "{companies mine}", sqliteCompanies, "{note locked}", "''",
			"{note mine}", "count(*)", "{mine}", "1 = 1",
			"{share of f}", "JOIN share x ON x.company = f.company AND x.lane = f.lane AND x.caller = f.caller",
			"{queue of f}", "JOIN queue q ON q.company = f.company AND q.id = f.id",
			"{queue of s}", "JOIN queue q ON "+ownQueue,
			"{each}", "json_each", "{value}", "", "{find}", "instr", "{timeline}", homeTimeline, "{amiss}", " INDEXED BY send_amiss",
		),
		positions: "UPDATE counter SET next = next + $1 WHERE name = 'send_pos' RETURNING next - $1",

		liftPositions: "UPDATE counter SET next = " + lifted("next") + " WHERE name = 'send_pos' RETURNING next",
		list: func(ids []int64) any {
			text, _ := json.Marshal(ids)
			return string(text)
		},
		stripes:    1,
		unnumbered: true,
	}
}

const sqliteCompanies = "(SELECT * FROM company WHERE id IN (SELECT value FROM json_each($1)) ORDER BY id) c"

// The companies that a transaction has locked are known to its later statements by a setting that lasts as long as it: what is
// looked up after the lock goes with it to the database, and would be looked up for nothing where somebody else has the company.
const (
	noteLocked = `set_config('jelou.locked', (SELECT string_agg(l.id::text, ',') FROM locked l), true)`
	isLocked   = `(SELECT l.id FROM unnest($1::bigint[]) l(id) WHERE l.id = ANY(string_to_array(NULLIF(current_setting('jelou.locked', true), ''), ',')::bigint[]))`
)

// postgresCompanies finds companies, and locks them, in the order of the list.
func postgresCompanies(list, lock string) string {
	return list + ` listed(id) CROSS JOIN LATERAL (SELECT * FROM company w WHERE w.id + 0 = listed.id ORDER BY w.era DESC LIMIT 1 ` + lock + `) c`
}

func postgresQueue(company, id string) string {
	return `CROSS JOIN LATERAL (SELECT * FROM queue w WHERE w.company + 0 = ` + company + ` AND w.id + 0 = ` + id + ` ORDER BY w.start_tag DESC LIMIT 1) q`
}

// The timeline of a database that has none is the one that was stored.
const homeTimeline = "timeline"

// walTimeline is read off the name of the WAL file being written: pg_control_checkpoint() follows a promotion only with
// the next checkpoint.
const walTimeline = "('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint"

func newPostgresDialect(timeline string) *dialect {
	return &dialect{
		// Said here and not left to the server's default: every statement has to see what was committed while
		// it waited for a lock.
		begin: "BEGIN ISOLATION LEVEL READ COMMITTED",
		words: strings.NewReplacer(
			"{now}", "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
			"{lock}", "FOR NO KEY UPDATE", "{lock skip}", "FOR NO KEY UPDATE SKIP LOCKED",
			"{share}", "FOR KEY SHARE", "{all}", "FOR UPDATE", "{all skip}", "FOR UPDATE SKIP LOCKED",
			"{in 1}", "= ANY($1::bigint[])",
			"{alone}", "pg_advisory_xact_lock(1784, $1::int)", "{greatest}", "GREATEST", "{newest}", " + 0", "{newest caller}", " || ''", "{ready}", " - 0",
			"{companies}", postgresCompanies("unnest($1::bigint[])", ""), "{companies lock}", postgresCompanies("unnest($1::bigint[])", "FOR NO KEY UPDATE"),
			"{companies skip}", postgresCompanies("unnest($1::bigint[])", "FOR NO KEY UPDATE SKIP LOCKED"), "{companies mine}", postgresCompanies(isLocked, ""), "{note locked}", noteLocked,
			"{note mine}", "set_config('jelou.mine', count(*)::text, true)", "{mine}", "current_setting('jelou.mine', true) = '1'",
			"{share of f}", `CROSS JOIN LATERAL (SELECT * FROM share w WHERE w.company + 0 = f.company AND w.lane + 0 = f.lane AND w.caller || '' = f.caller
				ORDER BY w.start_tag DESC LIMIT 1) x`,
			"{queue of f}", postgresQueue("f.company", "f.id"),
			"{queue of s}", postgresQueue("s.company", "s.queue"),
			"{each}", "jsonb_array_elements_text", "{value}", " AS each(value)", "{find}", "strpos", "{timeline}", timeline, "{amiss}", "",
		),
		positions: "SELECT nextval('send_pos') FROM generate_series(1, $1::bigint)",

		liftPositions: "SELECT setval('send_pos', " + lifted("nextval('send_pos')") + ")",

		list:    func(ids []int64) any { return ids },
		stripes: 16,
	}
}
