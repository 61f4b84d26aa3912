package ledger

import (
	"regexp"
	"strings"
	"testing"
)

// As TestPlansOfAnEmptyDatabase: what reads a page or a chunk must not read a queue of a million for it.
func TestPlansOfBatchesAndLists(t *testing.T) {
	sends := listing[Send]{columns: recordColumns, joined: " CROSS JOIN queue q WHERE " + ownQueue + " AND", fits: sendFits, args: (&SendFilter{}).args()}
	batches := listing[Batch]{columns: batchColumns, joined: " WHERE", fits: batchFits, args: (&BatchFilter{}).args()}
	all, byRequest := &SendFilter{}, &SendFilter{RequestID: "order-1"}
	failed := &SendFilter{States: []State{Failed}}
	newestBatches := (&BatchFilter{}).inTime(stream{})
	n := func(s source) int { return len(s.args(Cursor{})) }
	list := func(s source) string { return sends.query(s, n(s)) }
	end := func(s source) string { return s.endQuery(n(s)) }

	const byKey, byKeyPostgres = "s USING PRIMARY KEY (company=? AND queue=? AND pos", "send_pkey on send s"
	ownQueuePostgres := "((company = (s.company + 0)) AND (id = s.queue))"
	tests := []struct {
		name     string
		query    string
		sqlite   []string
		postgres []string
	}{
		{"sends in time", list(all.inTime(stream{})), []string{"s USING INDEX send_listed"}, []string{"Backward using send_listed on send s", ownQueuePostgres}},
		{"their bound", end(all.inTime(stream{})), []string{"s USING COVERING INDEX send_listed"}, []string{"Index Only Scan Backward using send_listed"}},
		{"failed sends in time", list(failed.inTime(stream{})), []string{"s USING INDEX send_amiss_listed"}, []string{"Backward using send_amiss_listed on send s", ownQueuePostgres}},
		{"sends of a batch", list(all.inQueue(Cursor{})), []string{byKey}, []string{byKeyPostgres}},
		{"their bound", end(all.inQueue(Cursor{})), []string{byKey}, []string{"Index Only Scan using send_pkey"}},
		{"failed sends of a batch", list(failed.inQueue(Cursor{})), []string{"s USING INDEX send_amiss (company=? AND queue=? AND pos>? AND pos<?)"}, []string{"send_amiss on send s"}},
		{"sends by request", list(byRequest.inTime(stream{})), []string{"s USING INDEX send_request"}, []string{"send_request on send s", ownQueuePostgres}},
		{"batches", batches.query(newestBatches, n(newestBatches)), []string{"q USING INDEX queue_listed"}, []string{"Backward using queue_listed on queue q"}},
		{"batch", batchQuery, []string{"q USING INDEX sqlite_autoindex_queue_1 (company=? AND id=?)"}, []string{"queue_id on queue q"}},
		{"batch by request", batchByRequestQuery, []string{"q USING INDEX queue_request"}, []string{"queue_request on queue q"}},
		{"results", resultsQuery, []string{"y USING COVERING INDEX send_result (company=? AND queue=? AND result_no>?)", byKey},
			[]string{"send_result on send y", "((company = y.company) AND (queue = y.queue) AND (pos = y.pos))"}},
		{"chunk", chunkQuery, []string{"send USING PRIMARY KEY (company=? AND queue=? AND pos>?)"}, []string{"send_pkey on send"}},
		{"rewrite", rewriteStatement, []string{"send USING PRIMARY KEY (company=? AND queue=? AND pos=?)"},
			[]string{"((company = w.of_company) AND (queue = w.of_queue) AND (pos = w.place))"}},
		{"replay's bound", replayEndQuery, []string{"s USING INDEX send_amiss"}, []string{"send_amiss on send s"}},
		{"replay", copyStatement, []string{"s USING INDEX send_amiss", "r USING COVERING INDEX send_replay (company=? AND replay_queue=? AND replay_pos=?)"},
			[]string{"send_amiss on send s", "((company = s.company) AND (replay_queue = s.queue) AND (replay_pos = s.pos))"}},
		{"replay of a request", findReplayQuery, []string{"o USING COVERING INDEX send_request", "s USING INDEX send_replay (company=? AND replay_queue=? AND replay_pos=?)"},
			[]string{"send_request on send o", "(replay_queue = o.queue) AND (replay_pos = o.pos))"}},
		{"settled", settledQuery, []string{"s USING INDEX send_settled"}, []string{"((settled_at >= $1) AND (settled_at <= ("}},
	}
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		for _, test := range tests {
			want := test.sqlite
			if l.postgres {
				want = test.postgres
			}
			plan := explain(t, l, test.query, make([]any, parameters(test.query)))
			for _, part := range want {
				if !strings.Contains(plan, part) {
					t.Errorf("%s: the plan has no %q:\n%s", test.name, part, plan)
				}
			}
			for _, bad := range []string{"Seq Scan on send", "SCAN s\n", "SCAN send", "Join Filter: ((s.queue", "Join Filter: (send.pos"} {
				if strings.Contains(plan, bad) {
					t.Errorf("%s: the plan has %q:\n%s", test.name, bad, plan)
				}
			}
		}
	})
}

// parameters is how many a statement has.
func parameters(query string) int {
	seen := map[string]bool{}
	for _, p := range regexp.MustCompile(`\$\d+`).FindAllString(query, -1) {
		seen[p] = true
	}
	return len(seen)
}
