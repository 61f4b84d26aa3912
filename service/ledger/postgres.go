package ledger

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"golang.org/x/sys/unix"
)

// postgresSession bounds how long a replica that freezes keeps a company locked, and how long a statement may wait.
// Statements here are look-ups by key in small transactions, and their plans are cached, maybe from when the tables were
// empty; so joins are made in the order in which they are written and through indexes. They are set by SET and not as
// startup parameters, which poolers refuse.
const postgresSession = `
SET idle_in_transaction_session_timeout = '2s';
SET statement_timeout = '5s';
SET lock_timeout = '4s';
SET synchronous_commit = on;
SET jit = off;
SET plan_cache_mode = force_generic_plan;
SET join_collapse_limit = 1;
SET from_collapse_limit = 1;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SET enable_seqscan = off;
SET enable_bitmapscan = off`

// postgresConfig reads a connection string and adds the settings that every connection here has.
func postgresConfig(dsn, name string) (*pgx.ConnConfig, error) {
	c, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("the ledger's URL: %w", err) // pgx leaves the password out
	}
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = name
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = 5 * time.Second
	}
	dialer := &net.Dialer{
		Timeout:         c.ConnectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3},
		Control: func(network, _ string, raw syscall.RawConn) error {
			if network == "unix" {
				return nil
			}
			var failed error
			err := raw.Control(func(fd uintptr) { failed = setUserTimeout(int(fd), 5*time.Second) })
			if err == nil {
				err = failed
			}
			return err
		},
	}
	c.DialFunc = dialer.DialContext
	return c, nil
}

// setUserTimeout ends a connection whose other side acknowledges nothing for so long (a host that is gone).
func setUserTimeout(fd int, d time.Duration) error {
	return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
}

func (l *Ledger) openPostgres(ctx context.Context, c Config) error {
	config, err := postgresConfig(c.URL, "jelou-facade "+c.Replica)
	if err != nil {
		return err
	}
	if l.notify, err = newNotifier(l, cmp.Or(c.ListenURL, c.URL)); err != nil {
		return err
	}
	// Migrations may take longer than any statement of the running service.
	migrating := stdlib.OpenDB(*config)
	defer migrating.Close()
	if err := migrate(ctx, migrating, true); err != nil {
		return err
	}
	l.db = stdlib.OpenDB(*config, stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.PgConn().Exec(ctx, postgresSession).ReadAll()
		return err
	}))
	connections := c.Connections
	if connections == 0 {
		connections = 16
	}
	l.db.SetMaxOpenConns(connections)
	l.db.SetMaxIdleConns(connections)
	l.db.SetConnMaxIdleTime(5 * time.Minute)
	if _, err := l.db.ExecContext(ctx, "SELECT "+walTimeline); answered(err) {
		// Not allowed here, or not PostgreSQL's own: only the claim numbers tell then that it lost something.
		l.dialect = newPostgresDialect(homeTimeline)
	} else if err != nil {
		return err
	}
	return nil
}
