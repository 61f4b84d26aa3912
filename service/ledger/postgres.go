package ledger

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"golang.org/x/sys/unix"
)

// postgresSession bounds how long a replica that freezes keeps a company locked, and how long a statement may wait.
// Statements here are look-ups by key in small transactions, and their plans are cached, maybe from when the tables were
// empty; so joins are made in the order in which they are written and through indexes, in their order where they have it: few rows
// of many versions look cheap to sort, and all versions would be read for it. They are set by SET and not as
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
SET enable_bitmapscan = off;
SET enable_sort = off`

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

// bypassPooler reports whether a pooler takes the connections, which may run each transaction in another session, and then keeps
// statements from being prepared in one that the next transaction does not have. Who sets default_query_exec_mode in the URL
// knows better: PgBouncer can follow prepared statements from 1.21 on.
func bypassPooler(ctx context.Context, c *pgx.ConnConfig) (pooled bool, err error) {
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return false, err
	}
	defer closeConn(conn)
	var process uint32
	if err := conn.QueryRow(ctx, "SELECT pg_backend_pid()", pgx.QueryExecModeSimpleProtocol).Scan(&process); err != nil {
		return false, err
	}
	// Poolers make up the process id that a connection begins with: it is what a request to cancel names.
	pooled = process != conn.PgConn().PID()
	if pooled && !strings.Contains(c.ConnString(), "default_query_exec_mode") {
		c.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
	return pooled, nil
}

// migratePostgres migrates on connections of its own: it may take longer than any statement of the running service.
func migratePostgres(ctx context.Context, c *pgx.ConnConfig, pooled bool) error {
	alone, err := oneAtATime(pooled)
	if err != nil {
		return err
	}
	db := stdlib.OpenDB(*c)
	defer db.Close()
	return migrate(ctx, db, true, alone)
}

func (l *Ledger) openPostgres(ctx context.Context, c Config) error {
	config, err := postgresConfig(c.URL, "jelou-facade "+c.Replica)
	if err != nil {
		return err
	}
	// For what needs a session of its own: LISTEN, and the lock of a migration.
	direct, err := postgresConfig(cmp.Or(c.ListenURL, c.URL), "jelou-facade "+c.Replica+" notify")
	if err != nil {
		return err
	}
	pooled, err := bypassPooler(ctx, config)
	if err != nil {
		return err
	}
	notDirect, err := bypassPooler(ctx, direct)
	if err != nil {
		return err
	}
	if pooled {
		l.log.Info("the ledger's database is behind a pooler, so statements are not prepared", "listens_past_it", !notDirect)
	}
	l.notify = newNotifier(l, direct)
	if err := migratePostgres(ctx, direct, notDirect); err != nil {
		return err
	}
	l.db = stdlib.OpenDB(*config, stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.PgConn().Exec(ctx, postgresSession).ReadAll()
		return err
	}))
	// Each connection plans its statements anew, and a replica that starts opens all of them at once. Adds and settles go in groups and
	// claims two at a time, so more of them carry no more.
	connections := cmp.Or(c.Connections, 8)
	l.db.SetMaxOpenConns(connections)
	l.db.SetMaxIdleConns(connections)
	l.sending = make(chan struct{}, max(1, connections/2))
	l.db.SetConnMaxIdleTime(5 * time.Minute)
	if _, err := l.db.ExecContext(ctx, "SELECT "+walTimeline); answered(err) {
		// Not allowed here, or not PostgreSQL's own: only the claim numbers tell then that it lost something.
		l.dialect = newPostgresDialect(homeTimeline)
	} else if err != nil {
		return err
	}
	return nil
}
