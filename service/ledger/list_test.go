package ledger

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// library is a ledger with sends of every kind, and what they are.
type library struct {
	l         *Ledger
	companies []int64
	batches   []QueueID
	sends     []Send // as they read, newest first
}

func labels(t check, kv ...string) string {
	m := map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func newLibrary(t *testing.T, c Config) *library {
	lib := &library{l: mustOpen(t, c)}
	marks := []string{"", labels(t, "app", "shop"), labels(t, "app", "shop", "run", `a"b<é`), labels(t, "note", `"app":"shop"`)}
	n := 0
	for _, name := range []string{"acme", "other"} {
		company := mustCompany(t, lib.l, name)
		lib.companies = append(lib.companies, company)
		var sends []NewSend
		for i := range 2 {
			b := newBatch(company)
			b.Bot, b.Labels = []string{"demo", "second"}[i], marks[i]
			lib.batches = append(lib.batches, mustCreate(t, lib.l, b).ID)
		}
		for range 60 {
			n++
			s := newSend(company, n)
			s.Caller = []string{"shop", "billing"}[n%2]
			s.Bot = []string{"demo", "second", "third"}[n%3]
			s.Labels = marks[n%len(marks)]
			if n%7 == 0 {
				s.RequestID = fmt.Sprint("order-", n)
			}
			if n%11 == 0 {
				s.DueAt = time.Now().Add(time.Hour).UnixMicro()
			}
			sends = append(sends, s)
		}
		for _, id := range lib.batches[len(lib.batches)-2:] {
			sends = append(sends, items(company, id.Queue, 0, 20)...)
		}
		for _, s := range sends {
			mustAdd(t, lib.l, s)
		}
		for i := range 50 {
			settleNext(t, lib.l, company, []State{Sent, Failed, Unknown, Sent, Sent}[i%5])
		}
	}
	if _, err := lib.l.CancelBatch(t.Context(), lib.batches[1]); err != nil {
		t.Fatal(err)
	}
	err := lib.l.query(t.Context(), `SELECT `+recordColumns+fromRecord+`WHERE s.pos > 0`, func(scan scanFunc) error {
		var r record
		err := r.scan(scan)
		lib.sends = append(lib.sends, r.Send)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(lib.sends, func(x, y Send) int { return newest(Cursor{x.AcceptedAt, x.ID}, Cursor{y.AcceptedAt, y.ID}) })
	return lib
}

// fitting is what a list has to give, found the simple way.
func (lib *library) fitting(f SendFilter) []string {
	var out []Send
	for _, s := range lib.sends {
		var have map[string]string
		_ = json.Unmarshal([]byte(s.Labels), &have) // none, where there are none
		fits := slices.Contains(f.Companies, s.ID.Company)
		if (f.Queue != QueueID{}) {
			fits = f.Queue == QueueID{s.ID.Company, s.ID.Queue}
		}
		fits = fits && (f.Caller == "" || f.Caller == s.Caller) && (f.Bot == "" || f.Bot == s.Bot) &&
			(len(f.States) == 0 || slices.Contains(f.States, s.State)) && (len(f.Reasons) == 0 || slices.Contains(f.Reasons, s.Reason)) &&
			(f.RequestID == "" || f.RequestID == s.RequestID) && s.AcceptedAt >= f.From && (f.To == 0 || s.AcceptedAt < f.To)
		for k, v := range f.Labels {
			got, ok := have[k]
			fits = fits && ok && got == v
		}
		if fits {
			out = append(out, s)
		}
	}
	if (f.Queue != QueueID{}) {
		slices.SortFunc(out, func(x, y Send) int { return int(x.ID.Pos - y.ID.Pos) })
	}
	return names(out)
}

func names(sends []Send) []string {
	out := []string{}
	for _, s := range sends {
		out = append(out, fmt.Sprint(s.ID, " ", s.State))
	}
	return out
}

// pages reads a list page by page.
func pages[T any](t *testing.T, limit int, list func(after Cursor, limit int) ([]T, Cursor, error)) []T {
	t.Helper()
	var all []T
	for after := (Cursor{}); ; {
		page, next, err := list(after, limit)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) > limit {
			t.Fatalf("a page of %d rows, at most %d were asked for", len(page), limit)
		}
		all = append(all, page...)
		if next.IsZero() {
			return all
		}
		after = next
	}
}

func TestListSends(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		lib := newLibrary(t, c)
		middle := lib.sends[len(lib.sends)/2].AcceptedAt
		all := lib.companies
		tests := map[string]SendFilter{
			"everything":                  {Companies: all},
			"one company":                 {Companies: all[:1]},
			"no company":                  {},
			"one caller":                  {Companies: all, Caller: "billing"},
			"nobody's":                    {Companies: all, Caller: "nobody"},
			"one bot":                     {Companies: all, Caller: "shop", Bot: "third"},
			"sent":                        {Companies: all, States: []State{Sent}},
			"waiting":                     {Companies: all, States: []State{Scheduled, Pending, Sending}},
			"cancelled, not yet written":  {Companies: all, States: []State{Cancelled}},
			"amiss":                       {Companies: all, Caller: "shop", States: []State{Failed, Unknown}},
			"amiss of all callers":        {Companies: all, States: []State{Failed, Unknown, Expired}},
			"with a reason":               {Companies: all, Reasons: []string{"REASON", "OTHER"}},
			"with another reason":         {Companies: all, States: []State{Failed}, Reasons: []string{"OTHER"}},
			"with a label":                {Companies: all, Labels: map[string]string{"app": "shop"}},
			"with two labels":             {Companies: all, Labels: map[string]string{"app": "shop", "run": `a"b<é`}},
			"with a label of other value": {Companies: all, Labels: map[string]string{"app": "sho"}},
			"a label inside of another":   {Companies: all, Labels: map[string]string{"note": `"app":"shop"`}},
			"by request":                  {Companies: all, Caller: "billing", RequestID: "order-7"},
			"by request of any caller":    {Companies: all, RequestID: "order-14"},
			"by a request of another":     {Companies: all, Caller: "shop", RequestID: "order-7"},
			"by request, in another bot":  {Companies: all, RequestID: "order-14", Bot: "demo"},
			"a batch":                     {Queue: lib.batches[0]},
			"sent of a batch":             {Queue: lib.batches[0], States: []State{Sent}},
			"amiss in a batch":            {Queue: lib.batches[2], States: []State{Failed, Unknown}},
			"a cancelled batch":           {Queue: lib.batches[1], States: []State{Cancelled}},
			"of a batch by request":       {Queue: lib.batches[1], RequestID: "order-7"},
			"a batch of another caller":   {Queue: lib.batches[0], Caller: "billing"},
			"from":                        {Companies: all, From: middle},
			"to":                          {Companies: all, To: middle},
			"in a batch to":               {Queue: lib.batches[1], To: middle},
			"from, to, one caller, sent":  {Companies: all, From: lib.sends[180].AcceptedAt, To: lib.sends[10].AcceptedAt, Caller: "shop", States: []State{Sent}},
		}
		for name, f := range tests {
			want := lib.fitting(f)
			for _, limit := range []int{7, 1000} {
				got := pages(t, limit, func(after Cursor, limit int) ([]Send, Cursor, error) {
					return lib.l.Sends(t.Context(), f, after, limit)
				})
				if diff := cmp.Diff(want, names(got)); diff != "" {
					t.Errorf("%s, by %d: (-want +got)\n%s", name, limit, diff)
				}
			}
		}
	})
}

// Sends that were accepted in one transaction have one time.
func TestListSendsOfOneMoment(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		var companies []int64
		for _, name := range []string{"acme", "other", "third"} {
			company := mustCompany(t, l, name)
			companies = append(companies, company)
			mustFill(t, l, company, 20)
		}
		mustExec(t, l, `UPDATE send SET accepted_at = 7`)
		got := pages(t, 7, func(after Cursor, limit int) ([]Send, Cursor, error) {
			return l.Sends(t.Context(), SendFilter{Companies: companies, Caller: "shop"}, after, limit)
		})
		if len(got) != 60 || !slices.IsSortedFunc(got, func(x, y Send) int { return newest(Cursor{ID: x.ID}, Cursor{ID: y.ID}) }) {
			t.Errorf("%d sends: %v", len(got), names(got))
		}
	})
}

// Whoever looks for little in much gets short pages, and all of it in the end.
func TestListPassesOverABoundedNumber(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		const n = 2*listScan + 2000
		b := mustFill(t, l, company, n)
		mustExec(t, l, `UPDATE send SET bot = 'rare' WHERE pos IN (1, 5000, 5001, 11999)`)
		for name, f := range map[string]SendFilter{
			"in time":    {Companies: []int64{company}, Caller: "shop", Bot: "rare"},
			"in a batch": {Queue: b.ID, Bot: "rare"},
		} {
			calls := 0
			got := pages(t, 100, func(after Cursor, limit int) ([]Send, Cursor, error) {
				calls++
				return l.Sends(t.Context(), f, after, limit)
			})
			if len(got) != 4 || calls != 3 {
				t.Errorf("%s: %d sends in %d pages", name, len(got), calls)
			}
		}
	})
}

func TestListBatches(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		acme, other := mustCompany(t, l, "acme"), mustCompany(t, l, "other")
		ids := map[QueueID]string{}
		create := func(name string, company int64, change func(n *NewBatch)) QueueID {
			n := newBatch(company)
			change(&n)
			b := mustCreate(t, l, n)
			ids[b.ID] = name
			return b.ID
		}
		create("open", acme, func(n *NewBatch) { n.RequestID = "campaign"; n.Labels = labels(t, "app", "shop") })
		mustSeal := func(id QueueID, n int64) {
			if _, err := l.Seal(t.Context(), id, n, 0); err != nil {
				t.Fatal(err)
			}
		}
		running := create("running", acme, func(n *NewBatch) { n.Bot = "second"; n.Paused = true })
		mustAdd(t, l, items(acme, running.Queue, 0, 1)...)
		mustSeal(running, 1)
		mustSeal(create("completed", other, func(n *NewBatch) { n.Labels = labels(t, "app", "shop", "run", "2") }), 0)
		cancelled := create("cancelled", other, func(*NewBatch) {})
		if _, err := l.CancelBatch(t.Context(), cancelled); err != nil {
			t.Fatal(err)
		}
		billing := create("billing", acme, func(n *NewBatch) { n.Caller = "billing" })
		both := []int64{acme, other}
		tests := []struct {
			filter BatchFilter
			want   string
		}{
			{BatchFilter{Companies: both}, "billing cancelled completed running open"},
			{BatchFilter{Companies: both, Caller: "shop"}, "cancelled completed running open"},
			{BatchFilter{Companies: []int64{acme}, Caller: "shop"}, "running open"},
			{BatchFilter{Companies: both, Bot: "second"}, "running"},
			{BatchFilter{Companies: both, States: []BatchState{BatchOpen}}, "billing open"},
			{BatchFilter{Companies: both, States: []BatchState{BatchRunning, BatchCompleted}}, "completed running"},
			{BatchFilter{Companies: both, States: []BatchState{BatchCancelled}}, "cancelled"},
			{BatchFilter{Companies: both, RequestID: "campaign"}, "open"},
			{BatchFilter{Companies: both, Labels: map[string]string{"app": "shop"}}, "completed open"},
			{BatchFilter{Companies: both, Labels: map[string]string{"app": "shop", "run": "2"}}, "completed"},
			{BatchFilter{Companies: both, From: mustRead(t, l, billing).CreatedAt}, "billing"},
			{BatchFilter{Companies: both, To: mustRead(t, l, running).CreatedAt}, "open"},
		}
		for _, test := range tests {
			for _, limit := range []int{1, 2, 100} {
				var got []string
				for _, b := range pages(t, limit, func(after Cursor, limit int) ([]Batch, Cursor, error) {
					return l.Batches(t.Context(), test.filter, after, limit)
				}) {
					got = append(got, ids[b.ID])
				}
				if diff := cmp.Diff(test.want, strings.Join(got, " ")); diff != "" {
					t.Errorf("%+v by %d: (-want +got)\n%s", test.filter, limit, diff)
				}
			}
		}
	})
}
