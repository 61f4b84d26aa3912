package ledger

import (
	"database/sql"
	"errors"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/stdlib"
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

func TestMigrationsGoBothWays(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		db, tables := openEmpty(t, c)
		m, err := migrator(db, c.URL != "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Up(t.Context()); err != nil {
			t.Fatal(err)
		}
		up := column(t, db, tables)
		if len(up) < 8 {
			t.Errorf("tables %v", up)
		}
		if _, err := m.DownTo(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if got := column(t, db, tables); !cmp.Equal(got, []string{"goose_db_version"}) {
			t.Errorf("after going down there are %v", got)
		}
		if _, err := m.Up(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := column(t, db, tables); !cmp.Equal(got, up) {
			t.Errorf("up again: %s", cmp.Diff(up, got))
		}
	})
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
		if file.Name() == "00004_newest.sql" {
			continue // is about what PostgreSQL alone has: old versions of rows
		}
		lite, err := migrations.ReadFile("migrations/sqlite/" + file.Name())
		if err != nil {
			t.Fatal(err)
		}
		postgres, err := migrations.ReadFile("migrations/postgres/" + file.Name())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(statements(string(lite)), statements(string(postgres))); diff != "" {
			t.Errorf("%s: the schemas differ (-sqlite +postgres):\n%s", file.Name(), diff)
		}
	}
}

var mayDiffer = regexp.MustCompile(`--.*|BYTEA|BLOB| WITHOUT ROWID| WITH \(fillfactor = \d+\)`)

// statements leaves out what may differ.
func statements(text string) []string {
	var out []string
	for s := range strings.SplitSeq(mayDiffer.ReplaceAllString(text, ""), ";") {
		if s = strings.Join(strings.Fields(s), " "); !strings.Contains(s, "counter") && !strings.Contains(s, "SEQUENCE") {
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
