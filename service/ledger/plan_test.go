package ledger

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// The plans of an empty database are kept for as long as a connection lives, and by then it may have a million sends. So
// they have to be right from the beginning: every table by the index meant for it, nothing sorted but a handful of rows.
func TestPlansOfAnEmptyDatabase(t *testing.T) {
	tests := []struct {
		name     string
		query    string
		args     []any
		sqlite   []string
		postgres []string
	}{
		{"look", lookQuery, []any{[]int64{1, 2}, 0},
			[]string{"x USING COVERING INDEX share_ready (company=? AND lane=? AND start_tag>?)", "u USING COVERING INDEX queue_ready (company=? AND lane=? AND caller=? AND start_tag>?)",
				"y USING COVERING INDEX send_ready (company=? AND queue=? AND pos>?)", "s USING PRIMARY KEY (company=? AND queue=? AND pos=?)",
				"b USING COVERING INDEX send_sending (company=? AND bot=? AND recipient=?)", "b USING COVERING INDEX send_backoff (company=? AND bot=? AND recipient=?)"},
			[]string{"share_ready on share x", "((company - 0) = w.id)", "queue_ready on queue u", "((company - 0) = f.company)", "send_ready on send y", "send_pkey on send s", "Scan Backward using queue_newest", "Scan Backward using share_newest",
				"send_sending on send b", "send_backoff on send b"}},
		{"waiting", waitingQuery, []any{[]int64{1, 2}}, []string{"x USING COVERING INDEX share_ready (company=? AND lane=? AND start_tag>?)"},
			[]string{"share_ready on share x", "((company - 0) = w.id)", "Scan Backward using company_newest"}},
		{"locked", lockCompanies, []any{[]int64{1, 2}}, []string{"company USING INDEX sqlite_autoindex_company_1 (id=?)"}, []string{"LockRows", "Scan Backward using company_newest"}},
		{"share on", readyShare, []any{1, 2, "shop"}, []string{"share USING INDEX sqlite_autoindex_share_1 (company=? AND lane=? AND caller=?)"},
			[]string{"share_newest on share", "Scan Backward using share_newest", "Scan Backward using company_newest"}},
		{"queue on", readyQueue, []any{1, 2, 3, "shop", 4}, []string{"queue USING INDEX sqlite_autoindex_queue_1 (company=? AND id=?)"},
			[]string{"queue_newest on queue", "Scan Backward using queue_newest", "Scan Backward using share_newest"}},
		{"last", lastQuery, []any{1, 2}, []string{"s USING PRIMARY KEY (company=? AND queue=?)"}, []string{"Limit", "Scan Backward using send_pkey on send s"}},
		{"next", nextQuery, []any{1, 2, 3, 4, 5},
			[]string{"y USING COVERING INDEX send_ready (company=? AND queue=? AND pos>? AND pos<?)", "s USING PRIMARY KEY (company=? AND queue=? AND pos=?)"},
			[]string{"send_ready on send y", "send_pkey on send s"}},
		{"lapsed", lapsedQuery, []any{[]int64{1, 2}, 0, 10}, []string{"s USING COVERING INDEX send_lease (company=? AND lease_until>? AND lease_until<?)"}, []string{"send_lease on send s"}},
		{"queue emptied", claimQueue + queueOff + thatQueue, []any{1, 2, 3, 4, 5, 6, 7},
			[]string{"queue USING INDEX sqlite_autoindex_queue_1 (company=? AND id=?)", "s USING COVERING INDEX send_ready (company=? AND queue=?)"}, []string{"queue_newest on queue", "send_ready on send s"}},
		{"share emptied", claimShare + shareOff + thatShare, []any{1, 2, "shop", 4, 5, 6},
			[]string{"share USING INDEX sqlite_autoindex_share_1 (company=? AND lane=? AND caller=?)", "q USING COVERING INDEX queue_ready (company=? AND lane=? AND caller=?"}, []string{"share_newest on share", "queue_ready on queue q"}},
		{"parked", parkedQuery, []any{1, "bot", "to", 2, 3, 3},
			[]string{"send USING COVERING INDEX send_parked (company=? AND bot=? AND recipient=? AND (lane,queue)>(?,?) AND lane<?)"}, []string{"send_parked on send"}},
		{"get", getQuery, []any{1, 2, 3}, []string{"s USING PRIMARY KEY (company=? AND queue=? AND pos=?)"}, []string{"send_pkey on send s", "Scan Backward using queue_newest"}},
		{"change", changeQuery, []any{1, 2, 3}, []string{"s USING PRIMARY KEY (company=? AND queue=? AND pos=?)", "p USING COVERING INDEX send_parked (company=? AND bot=? AND recipient=?)"},
			[]string{"send_pkey on send s", "Scan Backward using queue_newest", "send_parked on send p"}},
		{"find", findQuery, []any{1, "shop", "order-1"}, []string{"s USING INDEX send_request (company=? AND caller=? AND request_id=?)"}, []string{"send_request on send s"}},
		{"due", sweeps[0].query, []any{10}, []string{"send USING INDEX send_due (due_at<?)"}, []string{"send_due on send"}},
		{"expired", sweeps[1].query, []any{10}, []string{"send USING INDEX send_expire"}, []string{"send_expire on send"}},
		{"orphaned", sweeps[2].query, []any{10}, []string{"s USING INDEX send_owner (owner=?)"}, []string{"send_owner on send s"}},
		{"backlogs", backlogQuery, nil, []string{"y USING COVERING INDEX send_ready (company=? AND queue=?)", "s USING PRIMARY KEY (company=? AND queue=? AND pos=?)"}, []string{"send_ready on send y", "send_pkey on send s"}},
		{"lapsed anywhere", sweeps[3].query, []any{10}, []string{"send_lease"}, []string{"send"}},
	}
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		for _, test := range tests {
			want := test.sqlite
			if l.postgres {
				want = test.postgres
			}
			plan := explain(t, l, test.query, test.args)
			for _, part := range want {
				if !strings.Contains(plan, part) {
					t.Errorf("%s: the plan has no %q:\n%s", test.name, part, plan)
				}
			}
			if strings.Contains(plan, "Seq Scan on send") || strings.Contains(plan, "hashed SubPlan") {
				t.Errorf("%s: the plan reads a whole table:\n%s", test.name, plan)
			}
		}
	})
}

// explain gives the plan that is cached for a statement.
func explain(t *testing.T, l *Ledger, query string, args []any) string {
	t.Helper()
	conn, err := l.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	text := l.dialect.text(query)
	args = slices.Clone(args) // the same case is explained on both databases at once
	for i, arg := range args {
		if ids, ok := arg.([]int64); ok {
			args[i] = l.dialect.list(ids)
		}
	}
	statement := "EXPLAIN QUERY PLAN " + text
	if l.postgres {
		if _, err := conn.ExecContext(t.Context(), "PREPARE planned AS "+text); err != nil {
			t.Fatal(err)
		}
		defer conn.ExecContext(t.Context(), "DEALLOCATE planned")
		nulls := ""
		if len(args) > 0 {
			nulls = "(" + strings.TrimSuffix(strings.Repeat("NULL, ", len(args)), ", ") + ")"
		}
		statement, args = "EXPLAIN (COSTS OFF) EXECUTE planned"+nulls, nil
	}
	rows, err := conn.QueryContext(t.Context(), statement, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var plan strings.Builder
	for rows.Next() {
		var line string
		var ignored any
		if l.postgres {
			err = rows.Scan(&line)
		} else {
			err = rows.Scan(&ignored, &ignored, &ignored, &line)
		}
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&plan, line)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return plan.String()
}
