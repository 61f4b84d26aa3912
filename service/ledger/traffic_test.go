package ledger

import (
	"errors"
	"path/filepath"
	"testing"
	"time"
)

// TestReadTraffic reads while the ledger is in use.
func TestReadTraffic(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		b := mustCreate(t, l, newBatch(company))
		mustAdd(t, l, items(company, b.ID.Queue, 0, 3)...)
		for i := range 2 {
			n := newSend(company, i)
			n.ExpireIn = 1500 * time.Millisecond
			mustAdd(t, l, n)
		}
		var batch, loose int64
		read := func(since time.Time) {
			t.Helper()
			batch, loose = 0, 0
			err := ReadTraffic(t.Context(), c, "acme", since, func(got Traffic) error {
				switch {
				case got.Batch == 1 && got.Expire == 0:
					batch += got.Count
				case got.Batch == 0 && got.Expire == 2*time.Second && got.Lane == Normal && got.Caller == "shop":
					loose += got.Count
				default:
					t.Errorf("%+v", got)
				}
				if ago := time.Since(got.At); ago < 0 || ago > time.Minute {
					t.Errorf("accepted %v ago", ago)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if read(time.Now().Add(-time.Hour)); batch != 3 || loose != 2 {
			t.Errorf("%d items and %d loose sends", batch, loose)
		}
		if read(time.Now().Add(time.Hour)); batch+loose != 0 {
			t.Errorf("%d items and %d loose sends of the future", batch, loose)
		}
		if err := ReadTraffic(t.Context(), c, "nobody", time.Now(), nil); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
	})
}

func TestReadTrafficOfNothing(t *testing.T) {
	if err := ReadTraffic(t.Context(), Config{Path: filepath.Join(t.TempDir(), "none.db")}, "acme", time.Now(), nil); err == nil {
		t.Error("a file that is not there was read")
	}
}
