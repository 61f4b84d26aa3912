package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/jelou-facade/jelou-facade/service/ledger/ledgertest"
)

// openEmpty opens a database without a schema, and gives the query that lists its tables.
func openEmpty(t *testing.T, c Config) (db *sql.DB, tables string) {
	t.Helper()
	if c.URL != "" {
		config, err := postgresConfig(c.URL, "test")
		if err != nil {
			t.Fatal(err)
		}
		db, tables = stdlib.OpenDB(*config), `SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1`
	} else {
		connector, err := newSQLiteConnector(c.Path)
		if err != nil {
			t.Fatal(err)
		}
		db, tables = sql.OpenDB(connector), `SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY 1`
	}
	t.Cleanup(func() { db.Close() })
	return db, tables
}

func column(t *testing.T, db *sql.DB, query string) []string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// schema is everything that a database says of its tables: columns, indexes, constraints.
func schema(t *testing.T, db *sql.DB, postgres bool) []string {
	t.Helper()
	query := `SELECT type || ' ' || name || ' ' || COALESCE(sql, '') FROM sqlite_master WHERE tbl_name NOT LIKE '%goose%' AND name NOT LIKE 'sqlite_stat%' ORDER BY 1`
	if postgres {
		query = `SELECT format('column %s.%s %s %s %s', table_name, column_name, data_type, is_nullable, column_default)
				FROM information_schema.columns WHERE table_schema = 'public' AND table_name NOT LIKE '%goose%'
			UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename NOT LIKE '%goose%'
			UNION ALL SELECT format('constraint %s %s', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint
				WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text NOT LIKE '%goose%' AND contype <> 'n'
			UNION ALL SELECT format('%s %s %s %s', relkind, relname, relreplident, reloptions) FROM pg_class
				WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE '%goose%' ORDER BY 1`
	}
	return column(t, db, query)
}

// Every migration goes down and up again where every table has rows, and leaves the schema as it was; what was stored is
// there afterwards, and goes on.
func TestMigrationsGoBothWays(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := open(t, c)
		company := mustCompany(t, l, "acme")
		fillTables(t, l, company)
		mustClose(t, l)
		postgres := c.URL != ""
		db, tables := openEmpty(t, c)
		for _, table := range column(t, db, tables) {
			if rows := column(t, db, `SELECT CAST(count(*) AS TEXT) FROM `+table); rows[0] == "0" {
				t.Errorf("the test has no row in %s", table)
			}
		}
		m, err := migrator(db, postgres)
		if err != nil {
			t.Fatal(err)
		}
		newest := schema(t, db, postgres)
		step := func(what string, move func(context.Context) (*goose.MigrationResult, error)) {
			t.Helper()
			if _, err := move(t.Context()); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		sources := m.ListSources()
		for i := len(sources) - 1; i > 0; i-- {
			name := filepath.Base(sources[i].Path)
			before := schema(t, db, postgres)
			step(name+" down", m.Down)
			below := schema(t, db, postgres)
			step(name+" up", m.UpByOne)
			if diff := cmp.Diff(before, schema(t, db, postgres)); diff != "" || cmp.Equal(before, below) {
				t.Errorf("%s down and up (-before +after):\n%s", name, diff)
			}
			step(name+" down", m.Down)
			if diff := cmp.Diff(below, schema(t, db, postgres)); diff != "" {
				t.Errorf("%s up and down (-before +after):\n%s", name, diff)
			}
		}
		if _, err := m.Up(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(newest, schema(t, db, postgres)); diff != "" {
			t.Errorf("down to the first and up again (-before +after):\n%s", diff)
		}
		l = open(t, c)
		if err := l.CheckInvariant(t.Context()); err != nil {
			t.Error(err)
		}
		if got := len(serveAll(t, l, company, 10)); got != 2 {
			t.Errorf("%d were sent afterwards, want 2", got)
		}
		if err := l.CheckInvariant(t.Context()); err != nil {
			t.Error(err)
		}
		mustClose(t, l)
		if _, err := m.DownTo(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if got := column(t, db, tables); !cmp.Equal(got, []string{"goose_db_version"}) {
			t.Errorf("after going down there are %v", got)
		}
		if _, err := m.Up(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(newest, schema(t, db, postgres)); diff != "" {
			t.Errorf("up again from nothing (-before +after):\n%s", diff)
		}
	})
}

// fillTables puts rows into every table, in every state of a send; two of them can be claimed.
func fillTables(t *testing.T, l *Ledger, company int64) {
	t.Helper()
	for i, state := range []State{Scheduled, Sent, Failed, Unknown, Cancelled, Expired} {
		reach(t, l, company, state, i)
	}
	batch := mustFill(t, l, company, 1)
	settleNext(t, l, company, Failed)
	mustReplay(t, l, newReplay(batch, Failed))
	limited := newSend(company, 10)
	limited.DailyLimit, limited.RequestID = 5, "order"
	mustAdd(t, l, limited)
	again := reach(t, l, mustCompany(t, l, "other"), Sending, 11)
	mustSettle(t, l, Settlement{ID: again.ID, Claim: again.Claim, State: Sent, Notifications: []string{"n-1"}})
	mustExec(t, l, `INSERT INTO gap (company, bot, recipient, until) VALUES (1, 'demo', 'someone', 1)`)
}

// Replicas that start together on an empty database migrate it once.
func TestReplicasMigrateOnce(t *testing.T) {
	dsn := ledgertest.Postgres(t)
	ledgers := make([]*Ledger, 4)
	errs := make([]error, len(ledgers))
	var opening sync.WaitGroup
	began := time.Now()
	for i := range ledgers {
		opening.Go(func() {
			ledgers[i], errs[i] = Open(t.Context(), Config{URL: dsn, Replica: fmt.Sprint("replica-", i), Connections: 4})
		})
	}
	opening.Wait()
	t.Logf("%d replicas opened the database in %v", len(ledgers), time.Since(began))
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	db, _ := openEmpty(t, Config{URL: dsn})
	if twice := column(t, db, `SELECT version_id::text FROM goose_db_version GROUP BY version_id HAVING count(*) > 1`); len(twice) > 0 {
		t.Errorf("migrated twice: %v", twice)
	}
	company := mustCompany(t, ledgers[0], "acme")
	for i, l := range ledgers {
		mustAdd(t, l, newSend(company, i))
	}
	if got := len(serveAll(t, ledgers[3], company, 10)); got != len(ledgers) {
		t.Errorf("%d were sent", got)
	}
	for _, l := range ledgers {
		mustClose(t, l)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l, err := Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		mustExec(t, l, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, `+map[bool]string{true: "true", false: "1"}[c.URL != ""]+`)`)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		_, err = Open(t.Context(), c)
		if !errors.Is(err, ErrNewerSchema) || !strings.Contains(err.Error(), "99999") {
			t.Errorf("opened a newer database: %v", err)
		}
	})
}

// Both databases have the same tables, columns, defaults and indexes, but for what the first lines of the migration say.
func TestSchemasAreTheSame(t *testing.T) {
	files, err := migrations.ReadDir("migrations/sqlite")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		lite, err := migrations.ReadFile("migrations/sqlite/" + file.Name())
		if err != nil {
			t.Fatal(err)
		}
		postgres, err := migrations.ReadFile("migrations/postgres/" + file.Name())
		if err != nil {
			t.Fatal(err)
		}
		own := neither
		if file.Name() == "00004_newest.sql" {
			own = keys // is about what PostgreSQL alone has: old versions of rows
		}
		if diff := cmp.Diff(statements(string(lite), own), statements(string(postgres), own)); diff != "" {
			t.Errorf("%s: the schemas differ (-sqlite +postgres):\n%s", file.Name(), diff)
		}
	}
}

var mayDiffer = regexp.MustCompile(`--.*|BYTEA|BLOB| WITHOUT ROWID| WITH \(fillfactor = \d+\)`)

// Statements that one of the databases may have for itself: in most files none.
var (
	neither = regexp.MustCompile(`^\b$`)
	keys    = regexp.MustCompile(`^(CREATE|DROP) (UNIQUE )?INDEX |(DROP CONSTRAINT \w+|ADD PRIMARY KEY \([\w, ]+\)(, ADD UNIQUE \(name\))?|REPLICA IDENTITY (FULL|DEFAULT))$`)
)

// statements leaves out what may differ.
func statements(text string, own *regexp.Regexp) []string {
	var out []string
	for s := range strings.SplitSeq(mayDiffer.ReplaceAllString(text, ""), ";") {
		if s = strings.Join(strings.Fields(s), " "); !strings.Contains(s, "counter") && !strings.Contains(s, "SEQUENCE") && !own.MatchString(s) {
			out = append(out, s)
		}
	}
	return out
}

func TestSecondProcessIsRefused(t *testing.T) {
	c := Config{Path: filepath.Join(t.TempDir(), "ledger.db"), Replica: "one"}
	mustOpen(t, c)
	c.Replica = "two"
	_, err := Open(t.Context(), c)
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "ledger.test (pid ") {
		t.Errorf("a second ledger on one file: %v", err)
	}
}

func TestOpenSaysWhatIsMissing(t *testing.T) {
	tests := []Config{
		{},
		{Replica: "one"},
		{Path: filepath.Join(t.TempDir(), "ledger.db")},
		{Path: "a", URL: "postgres://b", Replica: "one"},
		{Path: filepath.Join(t.TempDir(), "missing", "ledger.db"), Replica: "one"},
		{URL: "postgres://nobody:secret@127.0.0.1:1/none", Replica: "one"},
		{URL: "postgres://nobody:secret@127.0.0.1:port/none", Replica: "one"},
	}
	for _, c := range tests {
		l, err := Open(t.Context(), c)
		if err == nil {
			l.Close()
			t.Errorf("opened %+v", c)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("the password is in the error: %v", err)
		}
	}
}
