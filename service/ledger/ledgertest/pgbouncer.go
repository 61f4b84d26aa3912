package ledgertest

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// pgbouncerConfig gives every transaction to any session of the cluster, so that sessions keep nothing for anybody.
const pgbouncerConfig = `[databases]
* = host=127.0.0.1 port=%d
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = trust
auth_file = %s
pool_mode = transaction
default_pool_size = 20
max_client_conn = 500
`

// PgBouncer starts a pooler in front of the cluster, in transaction mode, and gives the URL of the cluster's first database
// through it. It ends with the test. Its users have no passwords: they are those that are named.
func (c *Cluster) PgBouncer(t testing.TB, users ...string) string {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		// Where Debian puts it, root's PATH aside.
		if program, err = exec.LookPath("/usr/sbin/pgbouncer"); err != nil {
			t.Fatalf("no PgBouncer for the test: %v\ninstall Debian's package pgbouncer", err)
		}
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).Port
	free.Close()
	known := ""
	for _, user := range append(users, "postgres") {
		known += fmt.Sprintf("%q \"\"\n", user)
	}
	list, config := filepath.Join(c.dir, "pgbouncer-users"), filepath.Join(c.dir, "pgbouncer.ini")
	for file, text := range map[string]string{list: known, config: fmt.Sprintf(pgbouncerConfig, c.port, port, list)} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	pooler := exec.Command(program, config)
	pooler.SysProcAttr = &syscall.SysProcAttr{Credential: c.cred}
	log, err := os.Create(filepath.Join(c.dir, "pgbouncer.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close() // the pooler has its own
	pooler.Stdout, pooler.Stderr = log, log
	if err := pooler.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = pooler.Process.Kill() // fails only when it has ended
		_ = pooler.Wait()         // whose error says that it was killed
	})
	u, err := url.Parse(c.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = fmt.Sprintf("127.0.0.1:%d", port)
	if err := awaitServer(u.String()); err != nil {
		text, _ := os.ReadFile(log.Name())
		t.Fatalf("PgBouncer does not answer: %v: %s", err, text)
	}
	return u.String()
}

// awaitServer asks until a server answers, at most a minute.
func awaitServer(dsn string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, dsn)
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}
