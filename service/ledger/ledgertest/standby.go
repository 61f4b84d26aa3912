package ledgertest

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// NewStandby starts a copy of the cluster that follows it asynchronously and ends with the test.
func (c *Cluster) NewStandby(t testing.TB) *Cluster {
	t.Helper()
	s := &Cluster{bin: c.bin}
	t.Cleanup(func() { s.remove() })
	if err := s.makeFolder(); err != nil {
		t.Fatal(err)
	}
	if out, err := s.command("pg_basebackup", "-d", c.URL, "-D", s.data(), "-R", "-X", "stream", "-c", "fast", "--no-sync").CombinedOutput(); err != nil {
		t.Fatalf("pg_basebackup: %v: %s", err, out)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	return s
}

// CutOff has a standby follow no longer, once it has all that its primary has.
func (c *Cluster) CutOff(t testing.TB, primary *Cluster) {
	t.Helper()
	var end string
	mustQuery(t, primary.URL, "SELECT pg_current_wal_flush_lsn()::text", &end)
	for caughtUp := false; !caughtUp; {
		mustQuery(t, c.URL, "SELECT pg_last_wal_replay_lsn() >= '"+end+"'", &caughtUp)
	}
	mustExec(t, c.URL, "ALTER SYSTEM SET primary_conninfo = ''")
	mustExec(t, c.URL, "SELECT pg_reload_conf()")
	for receiving := true; receiving; {
		mustQuery(t, c.URL, "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver)", &receiving)
	}
}

// TakeOver makes a standby the primary.
func (c *Cluster) TakeOver(t testing.TB) {
	t.Helper()
	promoted := false
	if mustQuery(t, c.URL, "SELECT pg_promote()", &promoted); !promoted {
		t.Fatal("the standby does not take over")
	}
}

func mustQuery(t testing.TB, dsn, query string, into any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if err := conn.QueryRow(ctx, query).Scan(into); err != nil {
		t.Fatal(err)
	}
}
