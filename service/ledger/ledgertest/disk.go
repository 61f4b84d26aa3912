package ledgertest

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
)

// FillDisk makes a ledger's database answer to every new send what PostgreSQL answers when its disk is full.
func FillDisk(t testing.TB, conn *pgx.Conn) {
	t.Helper()
	run(t, conn, `CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN RAISE EXCEPTION 'could not extend file "base/1/2": No space left on device' USING ERRCODE = 'disk_full'; END $$;
		CREATE TRIGGER full_disk BEFORE INSERT ON send FOR EACH ROW EXECUTE FUNCTION full_disk()`)
}

// FreeDisk takes FillDisk back.
func FreeDisk(t testing.TB, conn *pgx.Conn) {
	t.Helper()
	run(t, conn, `DROP FUNCTION full_disk CASCADE`)
}

func run(t testing.TB, conn *pgx.Conn, statement string) {
	t.Helper()
	if _, err := conn.Exec(context.Background(), statement); err != nil {
		t.Fatal(err)
	}
}
