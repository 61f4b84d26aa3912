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

// migrator prepares the migrations of a database. On PostgreSQL they run under a session advisory lock, so that
// replicas that start together do not meet; on SQLite the file's lock is held already.
func migrator(db *sql.DB, postgres bool) (*goose.Provider, error) {
	folder, dialect := "migrations/sqlite", goose.DialectSQLite3
	options := []goose.ProviderOption{goose.WithDisableGlobalRegistry(true)}
	if postgres {
		folder, dialect = "migrations/postgres", goose.DialectPostgres
		locker, err := lock.NewPostgresSessionLocker()
		if err != nil {
			return nil, err
		}
		options = append(options, goose.WithSessionLocker(locker))
	}
	files, err := fs.Sub(migrations, folder)
	if err != nil {
		return nil, err
	}
	return goose.NewProvider(dialect, db, files, options...)
}

// migrate brings the schema up to this program, and refuses one that is ahead of it: its rows may mean
// what this program does not know.
func migrate(ctx context.Context, db *sql.DB, postgres bool) error {
	m, err := migrator(db, postgres)
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
