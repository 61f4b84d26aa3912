package main

import (
	"cmp"
	"container/heap"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

type rehearseFlags struct {
	traffic, config, company string
	trip                     time.Duration
	json                     bool
}

func newRehearseCommand() *cobra.Command {
	var flags rehearseFlags
	command := &cobra.Command{
		Use:   "rehearse",
		Short: "Say how long traffic would wait, on a virtual clock and without sending anything",
		Long: `Rehearse runs the server's own pacing and order over a traffic file, on a virtual clock: a day takes seconds. It says how long
every caller would wait in every lane, what would be refused, and when each batch would be done. It knows neither
recipients nor failures of Jelou, and begins with the silent window of a server that was just started.

A traffic file has one JSON object a line:

  {"at": "0s", "caller": "shop", "lane": "URGENT", "count": 600, "every": "6s", "deadline": "2s"}
  {"at": "30m", "caller": "marketing", "queue": "campaign", "count": 10000}

  at        when they come: a span since the beginning of the file, or an RFC 3339 time
  caller    whose they are
  lane      URGENT, NORMAL or BULK; NORMAL when absent, BULK with a queue
  queue     the batch they belong to; absent for single sends
  count     how many; 1 when absent
  every     time between two of them; all together when absent
  deadline  how long their callers wait: what could not leave in time is refused; for ever when absent
  weight    of the caller; 1 when absent

Without --config the allowance is Jelou's usual one, 5 requests a second.`,
		Example: `  jelou-facade rehearse --traffic examples/traffic/day.ndjson
  jelou-facade rehearse export --config facade.yaml --since 24h | jelou-facade rehearse --traffic - --config facade.yaml --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return rehearse(flags, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	command.Flags().StringVar(&flags.traffic, "traffic", "", "traffic `file`; - for standard input")
	command.Flags().StringVar(&flags.config, "config", "", "configuration `file` whose company is rehearsed")
	command.Flags().StringVar(&flags.company, "company", "", "`id` of the company, where the file has several")
	command.Flags().DurationVar(&flags.trip, "trip", 60*time.Millisecond, "`time` from a request to Jelou's answer")
	command.Flags().BoolVar(&flags.json, "json", false, "print one JSON object instead of tables")
	mustRequire(command, "traffic")
	command.AddCommand(newExportCommand())
	return command
}

func newExportCommand() *cobra.Command {
	var file, name string
	var since time.Duration
	command := &cobra.Command{
		Use:   "export",
		Short: "Write what a company accepted lately as a traffic file",
		Long: `Export reads from the ledger when sends were accepted, in which lane, of which caller and for how long they could wait, and
writes it as a traffic file. Contents, recipients and ids are not in it. The server may run meanwhile.`,
		Example: "  jelou-facade rehearse export --config facade.yaml --since 24h > yesterday.ndjson",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := loadConfig(file)
			if err != nil {
				return err
			}
			company, err := companyNamed(config, name)
			if err != nil {
				return err
			}
			return exportTraffic(cmd.Context(), config, company, time.Now().Add(-since), cmd.OutOrStdout())
		},
	}
	command.Flags().StringVar(&file, "config", "", "configuration `file` that names the ledger")
	command.Flags().StringVar(&name, "company", "", "`id` of the company, where the file has several")
	command.Flags().DurationVar(&since, "since", 24*time.Hour, "how far to look back")
	mustRequire(command, "config")
	return command
}

// mustRequire makes a flag required that is defined.
func mustRequire(command *cobra.Command, flag string) {
	if err := command.MarkFlagRequired(flag); err != nil {
		panic(err)
	}
}

// rehearse is the command.
func rehearse(flags rehearseFlags, out, progress io.Writer) error {
	if flags.trip <= 0 || flags.trip > time.Minute {
		return fmt.Errorf("--trip: %v is not from 0 to 1m", flags.trip)
	}
	t, err := openTraffic(flags.traffic)
	if err != nil {
		return err
	}
	rule, bounds := pace.Config{}, (*configv1.Bounds)(nil)
	if flags.config != "" {
		config, err := loadConfig(flags.config)
		if err != nil {
			return err
		}
		company, err := companyNamed(config, flags.company)
		if err != nil {
			return err
		}
		if rule, err = paceOf(company); err != nil {
			return err
		}
		bounds = config.Bounds
	}
	r := newRehearsal(t, rule, bounds, flags.trip)
	r.run(newProgressBar(progress, t.end))
	report := r.report()
	if flags.json {
		return json.NewEncoder(out).Encode(report)
	}
	return report.print(out)
}

// rehearsal is a company's line on a virtual clock.
type rehearsal struct {
	traffic *traffic
	rule    pace.Config
	bounds  *configv1.Bounds
	line    *pace.Line
	coming  byArrival
	added   []time.Duration // when each send came, by its id
	waiting map[group]int64
	groups  map[group]*outcomes
	queues  map[queueKey]*queueTimes
	sent    int
	last    time.Duration // the last request's start
}

// group is a caller in a lane.
type group struct {
	caller string
	lane   pace.Lane
}

type queueKey struct {
	group
	queue string
}

// outcomes are what became of a group's sends.
type outcomes struct {
	waits   []time.Duration
	refused map[string]int
	expired int
}

type queueTimes struct {
	items, expired  int
	began, finished time.Duration
}

// rehearsalStart is the virtual clock's first moment: any above zero.
const rehearsalStart pace.Time = 1

func newRehearsal(t *traffic, rule pace.Config, bounds *configv1.Bounds, trip time.Duration) *rehearsal {
	r := &rehearsal{
		traffic: t, rule: rule, bounds: bounds, coming: slices.Clone(t.arrivals),
		line:    pace.NewLine(pace.LineConfig{Pace: rule, Weights: t.weights, Start: rehearsalStart, Trip: func() time.Duration { return trip }}),
		waiting: map[group]int64{}, groups: map[group]*outcomes{}, queues: map[queueKey]*queueTimes{},
	}
	heap.Init(&r.coming)
	return r
}

// run lets everything come and waits until nothing waits any more.
func (r *rehearsal) run(bar *progressBar) {
	for len(r.coming) > 0 {
		a := r.coming[0]
		now := rehearsalStart.Add(a.at)
		r.line.Advance(now, r.happened)
		bar.show(a.at)
		for together := a.left; together > 0; together-- {
			r.arrive(a, now)
			a.left--
			if a.every > 0 {
				break
			}
		}
		a.at += a.every
		if a.left == 0 {
			heap.Pop(&r.coming)
		} else {
			heap.Fix(&r.coming, 0)
		}
	}
	r.line.Advance(pace.Never, r.happened)
	bar.end()
}

// admitSlack is the server's: a send is admitted where its wait, and this part of it, fits into the caller's time.
const admitSlack = 16

// arrive admits or refuses one send, as the server does.
func (r *rehearsal) arrive(a *arrivals, now pace.Time) {
	to := group{a.send.Caller, a.send.Lane}
	o := r.groups[to]
	if o == nil {
		o = &outcomes{refused: map[string]int{}}
		r.groups[to] = o
	}
	if r.full(to) {
		o.refused["QUEUE_FULL"]++
		return
	}
	s := a.send
	if a.deadline > 0 {
		wait := r.line.Estimate(s, 1).Sub(now)
		if wait+wait/admitSlack > a.deadline {
			o.refused["WOULD_MISS_DEADLINE"]++
			return
		}
		s.Expire = now.Add(a.deadline)
	}
	s.ID = int64(len(r.added))
	r.added = append(r.added, a.at)
	r.waiting[to]++
	if s.Queue != "" {
		key := queueKey{to, s.Queue}
		q := r.queues[key]
		if q == nil {
			q = &queueTimes{began: a.at}
			r.queues[key] = q
		}
		q.items++
	}
	r.line.Add(s)
}

// full reports whether one more would be over a bound.
func (r *rehearsal) full(to group) bool {
	inLane, all := int64(r.line.Waiting(to.lane)), int64(0)
	for lane := pace.Urgent; lane <= pace.Bulk; lane++ {
		all += int64(r.line.Waiting(lane))
	}
	for _, b := range []struct{ waiting, bound int64 }{
		{r.waiting[to], int64(r.bounds.GetCallerWaiting())}, {inLane, int64(r.bounds.GetLaneWaiting())}, {all, int64(r.bounds.GetCompanyWaiting())},
	} {
		if b.bound > 0 && b.waiting >= b.bound {
			return true
		}
	}
	return false
}

// happened notes what became of a send.
func (r *rehearsal) happened(e pace.Event) {
	to := group{e.Send.Caller, e.Send.Lane}
	r.waiting[to]--
	at := e.Start.Sub(rehearsalStart)
	q := r.queues[queueKey{to, e.Send.Queue}]
	if q != nil {
		q.finished = max(q.finished, e.Finish.Sub(rehearsalStart))
	}
	if e.Expired {
		r.groups[to].expired++
		if q != nil {
			q.expired++
		}
		return
	}
	r.groups[to].waits = append(r.groups[to].waits, at-r.added[e.Send.ID])
	r.sent++
	r.last = at
}

// rehearsalReport is what a rehearsal has to say. Times are milliseconds, of finishing since the beginning.
type rehearsalReport struct {
	Sends    int             `json:"sends"`
	Sent     int             `json:"sent"`
	SpanMS   int64           `json:"span_ms"`   // of the traffic
	FinishMS int64           `json:"finish_ms"` // when the last request left
	Used     float64         `json:"used"`      // of the allowance, from the beginning to then
	Callers  []callerReport  `json:"callers"`
	Batches  []batchesReport `json:"batches"`
}

type callerReport struct {
	Caller  string         `json:"caller"`
	Lane    string         `json:"lane"`
	Sent    int            `json:"sent"`
	P50MS   int64          `json:"wait_p50_ms"`
	P95MS   int64          `json:"wait_p95_ms"`
	MaxMS   int64          `json:"wait_max_ms"`
	Refused map[string]int `json:"refused"`
	Expired int            `json:"expired"`
}

type batchesReport struct {
	Caller   string `json:"caller"`
	Lane     string `json:"lane"`
	Batch    string `json:"batch"`
	Items    int    `json:"items"`
	Expired  int    `json:"expired"`
	BeganMS  int64  `json:"began_ms"`
	FinishMS int64  `json:"finish_ms"`
}

func (r *rehearsal) report() *rehearsalReport {
	out := &rehearsalReport{
		Sends: r.traffic.sends, Sent: r.sent, SpanMS: r.traffic.end.Milliseconds(), FinishMS: r.last.Milliseconds(),
		Callers: []callerReport{}, Batches: []batchesReport{},
	}
	if allowed := float64(r.last) / float64(r.rule.EachWindow()) * float64(r.rule.InWindow()); allowed > 0 {
		out.Used = min(1, float64(r.sent)/allowed)
	}
	for to, o := range r.groups {
		slices.Sort(o.waits)
		out.Callers = append(out.Callers, callerReport{
			Caller: to.caller, Lane: laneName(to.lane), Sent: len(o.waits), Refused: o.refused, Expired: o.expired,
			P50MS: quantile(o.waits, 0.50).Milliseconds(), P95MS: quantile(o.waits, 0.95).Milliseconds(), MaxMS: quantile(o.waits, 1).Milliseconds(),
		})
	}
	slices.SortFunc(out.Callers, func(a, b callerReport) int {
		return cmp.Or(cmp.Compare(laneNames[a.Lane], laneNames[b.Lane]), strings.Compare(a.Caller, b.Caller))
	})
	for key, q := range r.queues {
		out.Batches = append(out.Batches, batchesReport{
			Caller: key.caller, Lane: laneName(key.lane), Batch: key.queue, Items: q.items, Expired: q.expired,
			BeganMS: q.began.Milliseconds(), FinishMS: q.finished.Milliseconds(),
		})
	}
	slices.SortFunc(out.Batches, func(a, b batchesReport) int {
		return cmp.Or(cmp.Compare(a.BeganMS, b.BeganMS), strings.Compare(a.Caller, b.Caller), strings.Compare(a.Batch, b.Batch))
	})
	return out
}

// quantile of sorted spans; zero of none.
func quantile(sorted []time.Duration, part float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(part*float64(len(sorted))), len(sorted)-1)]
}

func (r *rehearsalReport) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "lane\tcaller\tsent\twait p50\tp95\tlongest\trefused\texpired")
	for _, c := range r.Callers {
		refused := 0
		for _, n := range c.Refused {
			refused += n
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%d\t%d\n", c.Lane, c.Caller, c.Sent, short(c.P50MS), short(c.P95MS), short(c.MaxMS), refused, c.Expired)
	}
	if len(r.Batches) > 0 {
		fmt.Fprintln(w, "\nbatch\tcaller\titems\tcame\tdone\ttook\texpired")
		for _, b := range r.Batches {
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%d\n", b.Batch, b.Caller, b.Items, short(b.BeganMS), short(b.FinishMS), short(b.FinishMS-b.BeganMS), b.Expired)
		}
	}
	fmt.Fprintf(w, "\n%d of %d sends left, the last one after %s: %.1f%% of the allowance\n", r.Sent, r.Sends, short(r.FinishMS), 100*r.Used)
	return w.Flush()
}

// short is a span as people read it.
func short(ms int64) string {
	d := time.Duration(ms) * time.Millisecond
	switch {
	case d >= time.Minute:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.String()
}

// byArrival is a heap.
type byArrival []*arrivals

func (h byArrival) Len() int           { return len(h) }
func (h byArrival) Less(i, j int) bool { return h[i].at < h[j].at }
func (h byArrival) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *byArrival) Push(a any)        { *h = append(*h, a.(*arrivals)) }
func (h *byArrival) Pop() any {
	last := len(*h) - 1
	a := (*h)[last]
	*h = (*h)[:last]
	return a
}

// progressBar shows on a terminal how far the virtual clock is; nil shows nothing.
type progressBar struct {
	out   io.Writer
	of    time.Duration
	shown time.Time
}

const (
	barWidth = 40
	barEvery = 100 * time.Millisecond
)

func newProgressBar(out io.Writer, end time.Duration) *progressBar {
	file, ok := out.(*os.File)
	if !ok {
		return nil
	}
	if info, err := file.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return nil
	}
	return &progressBar{out: out, of: max(end, 1)}
}

func (b *progressBar) show(at time.Duration) {
	if b == nil || time.Since(b.shown) < barEvery {
		return
	}
	b.shown = time.Now()
	done := int(barWidth * at / b.of)
	fmt.Fprintf(b.out, "\r[%s%s] %s of %s", strings.Repeat("#", done), strings.Repeat(" ", barWidth-done), at.Round(time.Second), b.of.Round(time.Second))
}

func (b *progressBar) end() {
	if b != nil && !b.shown.IsZero() {
		fmt.Fprint(b.out, "\r\x1b[K")
	}
}
