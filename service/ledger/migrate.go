package ledger

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations
var migrations embed.FS

// migrator prepares the migrations of a database.
func migrator(db *sql.DB, postgres bool, options ...goose.ProviderOption) (*goose.Provider, error) {
	folder, dialect := "migrations/sqlite", goose.DialectSQLite3
	if postgres {
		folder, dialect = "migrations/postgres", goose.DialectPostgres
	}
	files, err := fs.Sub(migrations, folder)
	if err != nil {
		return nil, err
	}
	return goose.NewProvider(dialect, db, files, append(options, goose.WithDisableGlobalRegistry(true))...)
}

// oneAtATime keeps replicas that start together from migrating at once; on SQLite the file's lock does. An advisory lock
// of the session is gone with its holder. Behind a pooler a session is anybody's, and a lock there would be kept by nobody who
// knows of it, so a row is: one that its holder leaves behind holds the others up for half a minute.
func oneAtATime(pooled bool) (goose.ProviderOption, error) {
	if pooled {
		locker, err := lock.NewPostgresTableLocker()
		return goose.WithLocker(locker), err
	}
	locker, err := lock.NewPostgresSessionLocker()
	return goose.WithSessionLocker(locker), err
}

// migrate brings the schema up to this program, and refuses one that is ahead of it: its rows may mean
// what this program does not know.
func migrate(ctx context.Context, db *sql.DB, postgres bool, options ...goose.ProviderOption) error {
	m, err := migrator(db, postgres, options...)
	if err != nil {
		return err
	}
	have, want, err := m.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	if have > want {
		return fmt.Errorf("%w: its schema has version %d, this program knows %d; start the newer program", ErrNewerSchema, have, want)
	}
	if _, err := m.Up(ctx); err != nil {
		return fmt.Errorf("migrate the schema: %w", err)
	}
	return nil
}
