package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
)

// lockFile keeps a second process from the ledger beside it. SQLite's own locks would let two processes take turns,
// and each would believe that the claims in its memory are all there are.
func lockFile(path string) (*os.File, error) {
	name := path + ".lock"
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(f, 200))
		f.Close()
		return nil, fmt.Errorf("%w: %s is held by %s; stop it, or give this process another path", ErrLocked, path, strings.TrimSpace(string(holder)))
	}
	text := fmt.Sprintf("%s (pid %d)\n", filepath.Base(os.Args[0]), os.Getpid())
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(text), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("write %s: %w", name, err)
	}
	return f, nil
}

// sqliteConnector opens connections with the clock that statements call, without the driver's global registry.
type sqliteConnector struct {
	driver *sqlite.Driver
	dsn    string
}

func (c sqliteConnector) Connect(context.Context) (driver.Conn, error) { return c.driver.Open(c.dsn) }
func (c sqliteConnector) Driver() driver.Driver                        { return c.driver }

func newSQLiteConnector(path string, pragmas ...string) (sqliteConnector, error) {
	d := &sqlite.Driver{}
	err := d.RegisterScalarFunction("clock_us", 0, func(*sqlite.FunctionContext, []driver.Value) (driver.Value, error) {
		return time.Now().UnixMicro(), nil
	})
	query := url.Values{"_pragma": pragmas}
	return sqliteConnector{d, "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + query.Encode()}, err
}

// openSQLite opens the file for one writing and several reading connections.
func (l *Ledger) openSQLite(ctx context.Context, c Config) error {
	path, err := filepath.Abs(c.Path)
	if err != nil {
		return err
	}
	l.path = path
	if l.lock, err = lockFile(path); err != nil {
		return err
	}
	if l.witness, err = openWitness(path+".claims", func(company, number int64) { l.seeClaim(ctx, company, number) }); err != nil {
		return err
	}
	// A commit is answered only when it is on the disk (FULL): a power cut loses nothing that was answered. What is deleted is
	// overwritten, on pages that become free too (ON and not FAST), so that the file does not keep what retention took out.
	writing, err := newSQLiteConnector(path, "busy_timeout(5000)", "journal_mode(WAL)", "synchronous(FULL)",
		"journal_size_limit(67108864)", "cache_size(-32768)", "temp_store(MEMORY)", "secure_delete(ON)")
	if err != nil {
		return err
	}
	l.writeDB = sql.OpenDB(writing)
	if err := migrate(ctx, l.writeDB, false); err != nil {
		return err
	}
	conn, err := l.writeDB.Conn(ctx)
	if err != nil {
		return err
	}
	l.write = make(chan *sqliteWriter, 1)
	l.write <- &sqliteWriter{conn, map[string]*sql.Stmt{}}

	reading, err := newSQLiteConnector(path, "busy_timeout(5000)", "query_only(1)", "cache_size(-4096)", "temp_store(MEMORY)")
	if err != nil {
		return err
	}
	l.db = sql.OpenDB(reading)
	connections := cmp.Or(c.Connections, 4)
	l.db.SetMaxOpenConns(connections)
	l.db.SetMaxIdleConns(connections)
	return l.db.PingContext(ctx)
}

// emptyLog writes SQLite's log back into the file and empties it: it has what was deleted as it was before. Where somebody reads for
// longer the log stays until the next time, so that sends do not wait for it.
func (l *Ledger) emptyLog(ctx context.Context) error {
	if l.postgres {
		return nil
	}
	conn, _, release, err := l.writer(ctx)
	if err != nil {
		return l.classify(ctx, err)
	}
	defer release()
	for _, pragma := range []string{"busy_timeout = 100", "wal_checkpoint(TRUNCATE)", "busy_timeout = 5000"} {
		if _, e := conn.ExecContext(context.WithoutCancel(ctx), "PRAGMA "+pragma); err == nil {
			err = e
		}
	}
	return l.classify(ctx, err)
}
