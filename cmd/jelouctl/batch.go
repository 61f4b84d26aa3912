package main

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

func (a *app) batchCommand() *cobra.Command {
	return group("batch", "Send files, and look after batches",
		a.batchSendCommand(), a.batchWatchCommand(), a.batchListCommand(), a.batchReplayCommand(), a.batchResultsCommand(),
		a.oneBatchCommand("get BATCH_ID", "Show one batch", func(ctx context.Context, c *client, id string) (*facadev1.Batch, error) {
			answer, err := call(ctx, c, c.GetBatch, &facadev1.GetBatchRequest{BatchId: id})
			return answer.GetBatch(), err
		}),
		a.oneBatchCommand("cancel BATCH_ID", "Cancel what has not left; items under way finish", func(ctx context.Context, c *client, id string) (*facadev1.Batch, error) {
			answer, err := call(ctx, c, c.CancelBatch, &facadev1.CancelBatchRequest{BatchId: id})
			return answer.GetBatch(), err
		}),
		a.oneBatchCommand("pause BATCH_ID", "Stop sending; items under way finish", func(ctx context.Context, c *client, id string) (*facadev1.Batch, error) {
			answer, err := call(ctx, c, c.PauseBatch, &facadev1.PauseBatchRequest{BatchId: id})
			return answer.GetBatch(), err
		}),
		a.oneBatchCommand("resume BATCH_ID", "Send again after a pause", func(ctx context.Context, c *client, id string) (*facadev1.Batch, error) {
			answer, err := call(ctx, c, c.ResumeBatch, &facadev1.ResumeBatchRequest{BatchId: id})
			return answer.GetBatch(), err
		}),
	)
}

// oneBatchCommand is a command that does one thing to one batch and shows it.
func (a *app) oneBatchCommand(use, text string, ask func(context.Context, *client, string) (*facadev1.Batch, error)) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: text, Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeBatches,
		RunE: func(c *cobra.Command, args []string) error {
			return one(a, c, batchColumns, func(ctx context.Context, client *client) (*facadev1.Batch, error) { return ask(ctx, client, args[0]) })
		},
	}
}

func (a *app) batchListCommand() *cobra.Command {
	var flags listFlags
	c := &cobra.Command{
		Use: "list", Short: "List batches, newest first", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			states, err := stateValues[facadev1.Batch_State](flags.states, facadev1.Batch_State_value)
			if err != nil {
				return err
			}
			from, to, err := flags.times()
			if err != nil {
				return err
			}
			return a.listBatches(c.Context(), flags.limit, &facadev1.ListBatchesRequest{
				BotId: flags.bot, States: states, RequestId: flags.requestID, CreateTimeFrom: from, CreateTimeTo: to, Labels: flags.labels,
			})
		},
	}
	flags.add(c.Flags(), facadev1.Batch_State_value)
	return c
}

// listBatches prints what a list has, page by page.
func (a *app) listBatches(ctx context.Context, limit int, request *facadev1.ListBatchesRequest) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer client.close()
	p := newPrinter(a.output, "batches", batchColumns, a.out)
	for request.PageSize = 100; ; {
		page, err := call(ctx, client, client.ListBatches, request)
		if err != nil {
			return err
		}
		for _, b := range page.Batches {
			if limit > 0 && p.rows == limit {
				a.note("there are more than %d: --limit lists more", limit)
				return p.end()
			}
			if err := p.add(b); err != nil {
				return err
			}
		}
		if request.PageToken = page.NextPageToken; request.PageToken == "" {
			return p.end()
		}
	}
}

// replayable are the states that a replay may choose.
var replayable = map[string]int32{"FAILED": int32(facadev1.Send_FAILED), "UNKNOWN": int32(facadev1.Send_UNKNOWN), "EXPIRED": int32(facadev1.Send_EXPIRED)}

func (a *app) batchReplayCommand() *cobra.Command {
	var states, reasons []string
	var requestID string
	var expireIn time.Duration
	var paused bool
	c := &cobra.Command{
		Use:   "replay BATCH_ID",
		Short: "Make a new batch of the items that did not go",
		Long: `Makes a new batch of the items that are failed, unknown or expired, as chosen; an item is replayed at most once. An UNKNOWN item
may have been sent: its user may get it twice.

The replay has a request_id, which is printed: where the answer is lost, running the same command with that --request-id is safe.`,
		Example: "  jelouctl batch replay b06jvqpp3tewx781msr7w8 --state failed --reason SESSION_WINDOW_CLOSED",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeBatches,
		RunE: func(c *cobra.Command, args []string) error {
			chosen, err := stateValues[facadev1.Send_State](states, replayable)
			if err != nil {
				return err
			}
			request := &facadev1.ReplayBatchRequest{BatchId: args[0], States: chosen, ErrorReasons: upper(reasons), RequestId: first(requestID, uuid.NewString()), Paused: paused}
			if expireIn != 0 {
				request.ExpireTime = timestamppb.New(time.Now().Add(expireIn))
			}
			client, err := a.connect(c.Context())
			if err != nil {
				return err
			}
			defer client.close()
			answer, err := call(c.Context(), client, client.ReplayBatch, request)
			if err != nil {
				return lost(c.Context(), client, request.RequestId, err)
			}
			return printOne(a, batchColumns, answer.Batch)
		},
	}
	c.Flags().StringSliceVar(&states, "state", nil, "the `states` of the items: "+enumNames(replayable))
	c.Flags().StringSliceVar(&reasons, "reason", nil, "only items with one of these error `reasons`")
	c.Flags().StringVar(&requestID, "request-id", "", "your own `id` of the new batch; one is made when not given")
	c.Flags().DurationVar(&expireIn, "expire-in", 0, "`duration` after which what has not left is not sent any more")
	c.Flags().BoolVar(&paused, "paused", false, "begin paused: \"jelouctl batch resume\" sends")
	must(c.MarkFlagRequired("state"))
	must(c.RegisterFlagCompletionFunc("state", fixed("failed", "unknown", "expired")))
	return c
}

// finalStates are those of results.
var finalStates = []facadev1.Send_State{facadev1.Send_SENT, facadev1.Send_FAILED, facadev1.Send_UNKNOWN, facadev1.Send_CANCELLED, facadev1.Send_EXPIRED}

func (a *app) batchResultsCommand() *cobra.Command {
	var states, reasons []string
	c := &cobra.Command{
		Use:     "results BATCH_ID",
		Short:   "List the results that a batch has by now, in the order of its items",
		Example: "  jelouctl batch results b06jvqpp3tewx781msr7w8 --state failed --output csv > failed.csv",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeBatches,
		RunE: func(c *cobra.Command, args []string) error {
			chosen, err := stateValues[facadev1.Send_State](states, facadev1.Send_State_value)
			if err != nil {
				return err
			}
			if len(chosen) == 0 {
				chosen = finalStates
			}
			return a.listSends(c.Context(), "results", 0, &facadev1.ListSendsRequest{BatchId: args[0], States: chosen, ErrorReasons: upper(reasons)})
		},
	}
	c.Flags().StringSliceVar(&states, "state", nil, "only in these `states`; all that are final when not given")
	c.Flags().StringSliceVar(&reasons, "reason", nil, "only with one of these error `reasons`")
	must(c.RegisterFlagCompletionFunc("state", fixed("sent", "failed", "unknown", "cancelled", "expired")))
	return c
}

func (a *app) batchWatchCommand() *cobra.Command {
	var after string
	c := &cobra.Command{
		Use:   "watch BATCH_ID",
		Short: "Show how far a batch is until it has ended; with --output ndjson or csv every result as it comes",
		Long: `Watches a batch until it has ended, whoever sends it, and goes on by itself after a cut. Ctrl-C leaves it and does nothing to the batch.

With --output ndjson every line is a result with its cursor; --after CURSOR begins behind it.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeBatches,
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.connect(c.Context())
			if err != nil {
				return err
			}
			defer client.close()
			return (&watching{app: a, client: client, id: args[0], cursor: after, tally: map[string]int{}}).run(c.Context())
		},
	}
	c.Flags().StringVar(&after, "after", "", "`cursor` of a result: only those after it")
	return c
}

// watching is the look at a batch, over as many streams as it takes.
type watching struct {
	*app
	client  *client
	id      string
	cursor  string
	tally   map[string]int
	view    *progress
	results *printer[*facadev1.BatchResult] // nil: only progress
	ended   *facadev1.Batch
}

var resultColumns = func() []column[*facadev1.BatchResult] {
	columns := []column[*facadev1.BatchResult]{{"cursor", short, (*facadev1.BatchResult).GetCursor}}
	for _, c := range sendColumns {
		columns = append(columns, column[*facadev1.BatchResult]{c.name, c.shown, func(r *facadev1.BatchResult) string { return c.value(r.Send) }})
	}
	return columns
}()

func (w *watching) run(ctx context.Context) error {
	batch, err := call(ctx, w.client, w.client.GetBatch, &facadev1.GetBatchRequest{BatchId: w.id})
	if err != nil {
		return err
	}
	if w.output == formatNDJSON || w.output == formatCSV {
		w.results = newPrinter(w.output, "results", resultColumns, w.out)
	} else {
		w.view = newProgress(w.err, int(batch.Batch.GetCounts().GetAccepted()), 0, 0)
		w.view.batch(batch.Batch)
	}
	for attempt := 1; ; attempt++ {
		before := w.cursor
		err := w.converse(ctx)
		if w.cursor != before {
			attempt = 1
		}
		wait, again := retryAfter(err, attempt)
		if err == nil || ctx.Err() != nil || !again || attempt > 100 {
			return w.end(ctx, err)
		}
		say := w.note
		if w.view != nil {
			say = w.view.say
		}
		say("the connection was cut (%s); trying again in %.1f s", toFailure(ctx, err).text, wait.Seconds())
		if err := sleep(ctx, wait); err != nil {
			return w.end(ctx, err)
		}
	}
}

// converse is one stream.
func (w *watching) converse(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := w.client.WatchBatch(ctx, &facadev1.WatchBatchRequest{BatchId: w.id, AfterCursor: w.cursor})
	if err != nil {
		return err
	}
	watchdog := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer watchdog.Stop()
	for {
		m, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return status.Error(codes.Unavailable, "the stream ended before the batch")
		case err != nil && errors.Is(context.Cause(ctx), errSilent):
			return errSilent
		case err != nil:
			return err
		}
		watchdog.Reset(silence)
		if w.ended = m.GetEnd().GetBatch(); w.ended != nil {
			return nil
		}
		if err := w.event(m); err != nil {
			return err
		}
	}
}

func (w *watching) event(m *facadev1.WatchBatchResponse) error {
	if r := m.GetResult(); r != nil {
		w.cursor = r.Cursor
		w.tally[tallyKey(r.Send)]++
		if w.results != nil {
			return w.results.add(r)
		}
		w.view.result(r.Send.State)
	}
	if b := m.GetProgress().GetBatch(); b != nil && w.view != nil {
		w.view.accepted(int(b.GetCounts().GetAccepted()))
		w.view.batch(b)
	}
	return nil
}

func (w *watching) end(ctx context.Context, err error) error {
	if w.results != nil {
		err = errors.Join(err, w.results.end())
	} else {
		w.view.stop()
	}
	switch {
	case ctx.Err() != nil:
		again := "jelouctl batch watch " + w.id
		if w.cursor != "" {
			again += " --after " + w.cursor
		}
		return &failure{exit: exitInterrupted, text: "interrupted; the batch goes on", facts: []fact{{"go on", again}}}
	case err != nil:
		return err
	case w.results != nil:
		w.out = io.Discard
	}
	return w.summary(w.ended, w.tally)
}
