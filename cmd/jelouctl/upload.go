package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// batchSendFlags are those of `batch send`.
type batchSendFlags struct {
	mapping                         mappingFlags
	options                         optionFlags
	bot, name, requestID, separator string
	results                         string
	all, again, paused, detach      bool
	checkOnly                       bool
}

func (a *app) batchSendCommand() *cobra.Command {
	var f batchSendFlags
	c := &cobra.Command{
		Use:   "send FILE",
		Short: "Check a whole file, send it as one batch, and show how far it is",
		Long: `Sends every line of a CSV (.csv, .tsv, .txt) or of NDJSON (.ndjson, .jsonl) as one item of a batch.

Everything is checked first: where one line is wrong, all wrong lines are listed with their numbers and nothing is sent.

A CSV begins with a line of column names. --map FIELD=COLUMN fills a field of the item from a column; --text, --param and the
texts of a --mapping file are templates over the columns: {{.name}}, or {{index . "full name"}} where a name is no word. Spaces around a
cell are cut off. Commas, semicolons, tabs and bars are recognised as separators. A --mapping file is a BatchItem as YAML:

  user_id: "{{.phone}}"
  request_id: "{{.order}}"
  message: {image: {media_url: "{{.receipt}}", caption: "Hola {{.name}}"}}

A line of NDJSON is a whole BatchItem: {"user_id": "593991234567", "message": {"text": {"text": "Hola"}}}.

The command may be cut at any time, by Ctrl-C, a crash or the network: the batch goes on at the server with what it has, and running the same
command again goes on where it was. Nothing is sent twice: a file that was sent is known by its content for 30 days, and one that has
changed since is refused. A new batch of the same file needs --again.`,
		Example: `  jelouctl batch send clients.csv --bot demo --map user_id=phone --text 'Hola {{.name}}, su pedido {{.order}} salió.'
  jelouctl batch send clients.csv --map user_id=phone --template order_ready --language es --param '{{.name}}' --param '{{.order}}'
  jelouctl batch send items.ndjson --bot demo --results results.csv`,
		Args: cobra.ExactArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return []cobra.Completion{"csv", "tsv", "txt", "ndjson", "jsonl"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(c *cobra.Command, args []string) error { return a.sendFile(c.Context(), args[0], &f) },
	}
	flags := c.Flags()
	flags.StringToStringVar(&f.mapping.fields, "map", nil, "`field=column` of a CSV; may be repeated. user_id of a --template is its destination")
	flags.StringVar(&f.mapping.text, "text", "", "`template` of the text that each line sends")
	flags.StringVar(&f.mapping.template, "template", "", "technical `name` of the WhatsApp template that each line sends")
	flags.StringVar(&f.mapping.language, "language", "", "the WhatsApp template's language `code`")
	flags.StringArrayVar(&f.mapping.params, "param", nil, "`template` of the WhatsApp template's next placeholder; may be repeated")
	flags.StringVar(&f.mapping.file, "mapping", "", "`file` with the item of each line as YAML; the other flags add to it")
	flags.StringVar(&f.separator, "separator", "", "`character` between a CSV's columns, or tab; found in the first line when not given")
	flags.StringVar(&f.bot, "bot", "", "`id` of the bot that sends; the context's when not given")
	flags.StringVar(&f.name, "name", "", "a `name` of the batch for people; the file's when not given")
	flags.StringVar(&f.requestID, "request-id", "", "your own `id` of the batch, which makes sending the file safe from several machines, too")
	flags.StringVar(&f.results, "results", "", "`file` (.csv, .ndjson) that gets one line for each item, with its line in FILE, once the batch has ended")
	flags.BoolVar(&f.all, "all", false, fmt.Sprintf("list all wrong lines, not only the first %d", shownLines))
	flags.BoolVar(&f.checkOnly, "check", false, "only check the file, without asking any server")
	flags.BoolVar(&f.again, "again", false, "send as a new batch what was sent before")
	flags.BoolVar(&f.paused, "paused", false, "only upload; `jelouctl batch resume` sends")
	flags.BoolVar(&f.detach, "detach", false, "leave once everything is stored; running the command again shows how far it is")
	f.options.add(c, "bulk")
	return c
}

// sendFile checks a file, then sends it.
func (a *app) sendFile(ctx context.Context, path string, f *batchSendFlags) error {
	if ext := filepath.Ext(f.results); f.results != "" && ext != ".csv" && ext != ".ndjson" {
		return usage("--results %s: must end in .csv or .ndjson", f.results)
	}
	src, err := openSource(path, f.separator, &f.mapping)
	if err != nil {
		return err
	}
	limit := shownLines
	if f.all || a.output != formatTable {
		limit = -1
	}
	found, err := src.check(limit, f.results != "")
	if err != nil {
		return err
	}
	if found.wrong > 0 {
		return a.refuse(src, found)
	}
	if f.checkOnly {
		a.note("%s: %d items, all valid; nothing was sent", path, len(found.lines))
		return nil
	}
	u, err := a.newUpload(ctx, src, found, f)
	if err != nil {
		return err
	}
	defer u.client.close()
	return u.run(ctx)
}

// refuse lists what is wrong with a file.
func (a *app) refuse(src *source, found *checked) error {
	f := invalid("%s: %d of %d lines are wrong; nothing was sent", src.path, found.wrong, len(found.lines))
	f.next = "correct them and run the same command again"
	if a.output != formatTable {
		p := newPrinter(a.output, "errors", rowErrorColumns, a.out)
		for _, e := range found.errors {
			if err := p.add(e); err != nil {
				return err
			}
		}
		return errors.Join(p.end(), f)
	}
	last, shown := 0, 0
	for _, e := range found.errors {
		if e.Line != last {
			shown++
		}
		last = e.Line
		what := e.Field
		if e.Column != "" {
			what = strings.TrimSpace(what + " (column " + e.Column + ")")
		}
		if what != "" {
			what += ": "
		}
		a.note("line %5d: %s%s", e.Line, what, e.Message)
	}
	if more := found.wrong - shown; more > 0 {
		a.note("and %d more lines: --all lists them", more)
	}
	return f
}

var rowErrorColumns = []column[rowError]{
	{"line", short, func(e rowError) string { return fmt.Sprint(e.Line) }},
	{"field", short, func(e rowError) string { return e.Field }},
	{"column", short, func(e rowError) string { return e.Column }},
	{"message", short, func(e rowError) string { return e.Message }},
}

// upload is the sending of one file, over as many streams as it takes.
type upload struct {
	*app
	client  *client
	source  *source
	found   *checked
	flags   *batchSendFlags
	spec    *facadev1.BatchSpec
	journal *journal
	view    *progress

	saved time.Time
	moved bool // something came since the last cut
	ended *facadev1.Batch
}

func (a *app) newUpload(ctx context.Context, src *source, found *checked, f *batchSendFlags) (*upload, error) {
	bot, err := a.bot(f.bot)
	if err != nil {
		return nil, err
	}
	options, err := f.options.options(time.Now())
	if err != nil {
		return nil, err
	}
	client, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	whole, err := filepath.Abs(src.path)
	if err != nil {
		return nil, err
	}
	hash := found.hash
	if src.mapping != nil {
		hash += " " + hashOf(src.mapping.source)
	}
	j, known, err := openJournal(journal{File: whole, Hash: hash, Server: client.address, Bot: bot, RequestID: f.requestID, Items: len(found.lines)}, f.again)
	if err != nil {
		client.close()
		return nil, err
	}
	u := &upload{app: a, client: client, source: src, found: found, flags: f, journal: j, saved: time.Now()}
	u.spec = &facadev1.BatchSpec{BotId: bot, RequestId: j.RequestID, DisplayName: first(f.name, filepath.Base(src.path)), Options: options, Paused: f.paused}
	if known {
		u.greet()
	}
	return u, nil
}

// greet says what the journal knows, so that nobody believes that the file goes a second time.
func (u *upload) greet() {
	j := u.journal
	if !j.Ended.IsZero() {
		u.note("sent before: batch %s ended on %s. Nothing is sent again; --again would", j.BatchID, j.Ended.Local().Format("2006-01-02 15:04"))
		return
	}
	u.note("going on with batch %s: %d of %d items uploaded, %d results seen", first(j.BatchID, "without id"), j.Uploaded, j.Items, j.Results)
}

// giveUpAfter is how long a server may be away before the command ends; the batch does not.
const giveUpAfter = 15 * time.Minute

// run opens streams until the batch has ended.
func (u *upload) run(ctx context.Context) error {
	notSent := u.journal.Results
	for key, count := range u.journal.Tally {
		if key == facadev1.Send_SENT.String() {
			notSent -= count
		}
	}
	u.view = newProgress(u.err, u.journal.Items, u.journal.Results, notSent)
	u.view.uploaded = u.journal.Uploaded
	err := u.reopen(ctx)
	u.view.stop()
	if saving := u.journal.write(); err == nil {
		err = saving
	}
	switch {
	case ctx.Err() != nil:
		return u.interrupted()
	case errors.Is(err, errStored):
		u.note("batch %s: all %d items are stored. It goes on at the server: run the same command again, or `jelouctl batch watch %s`", u.journal.BatchID, u.journal.Items, u.journal.BatchID)
		return nil
	case err != nil:
		return u.cut(ctx, err)
	}
	if u.flags.results != "" {
		if err := u.writeResults(ctx); err != nil {
			return err
		}
	}
	return u.summary(u.ended, u.journal.Tally)
}

// errStored ends a stream whose upload is complete, where no results are wanted.
var errStored = errors.New("everything is stored")

// reopen repeats the conversation until it comes to its end, or cannot.
func (u *upload) reopen(ctx context.Context) error {
	lastMoved := time.Now()
	for attempt := 1; ; attempt++ {
		u.moved = false
		err := u.converse(ctx)
		if u.moved {
			attempt, lastMoved = 1, time.Now()
		}
		if reasonOf(err) == facadev1.ErrorReason_CURSOR_EXPIRED && u.journal.Cursor != "" {
			u.journal.Cursor, u.journal.Results, u.journal.Tally = "", 0, map[string]int{}
			continue
		}
		wait, again := retryAfter(err, attempt)
		switch {
		case err == nil || ctx.Err() != nil || !again:
			return err
		case u.journal.BatchID == "" && attempt == maxAttempts, time.Since(lastMoved) > giveUpAfter:
			return err
		}
		u.view.say("the connection was cut (%s); trying again in %.1f s", toFailure(ctx, err).text, wait.Seconds())
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// silence is how long a stream may say nothing: the server promises a word every 15 s.
const silence = 45 * time.Second

// errSilent stands for a connection that is dead without having ended.
var errSilent = status.Error(codes.Unavailable, "nothing came for "+silence.String()) // as every cut is

// converse is one stream: it uploads what the server has not, and takes what it says, until the batch has ended.
func (u *upload) converse(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := u.client.StreamBatch(ctx)
	if err != nil {
		return err
	}
	open := &facadev1.StreamBatchRequest_Open{AfterCursor: u.journal.Cursor, Batch: &facadev1.StreamBatchRequest_Open_Spec{Spec: u.spec}}
	if u.journal.BatchID != "" {
		open.Batch = &facadev1.StreamBatchRequest_Open_BatchId{BatchId: u.journal.BatchID}
	}
	// An error of Send says only that the stream has ended; Recv says why.
	_ = stream.Send(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Open_{Open: open}})
	uploaded := make(chan struct{})
	started := false
	defer func() {
		cancel(nil)
		if started {
			<-uploaded
		}
	}()
	watchdog := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer watchdog.Stop()
	for {
		m, err := stream.Recv()
		if err != nil {
			if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
				return cause // ours: the file cannot be read, or nothing came
			}
			if errors.Is(err, io.EOF) {
				return status.Error(codes.Unavailable, "the stream ended before the batch")
			}
			return err
		}
		watchdog.Reset(silence)
		u.moved = true
		if opened := m.GetOpened(); opened != nil {
			if err := u.opened(opened); err != nil {
				return err
			}
			started = true
			go func() {
				defer close(uploaded)
				if err := u.upload(ctx, stream, int(opened.NextSequence)); err != nil {
					cancel(err)
				}
			}()
			continue
		}
		if done, err := u.event(m); done || err != nil {
			return err
		}
	}
}

// opened notes the batch before anything of it is sent: from here on it is found again.
func (u *upload) opened(o *facadev1.BatchOpened) error {
	if int(o.NextSequence)-1 > u.journal.Items {
		return invalid("batch %s has %d items, the file %d: it is another file's", o.BatchId, o.NextSequence-1, u.journal.Items)
	}
	u.journal.BatchID = o.BatchId
	u.acknowledged(int(o.NextSequence) - 1)
	return u.journal.write()
}

func (u *upload) acknowledged(through int) {
	u.journal.Uploaded = max(u.journal.Uploaded, through)
	u.view.uploaded = u.journal.Uploaded
}

// upload sends the items from a sequence on, then the seal. It ends without an error where the stream did: Recv says why.
func (u *upload) upload(ctx context.Context, stream grpc.BidiStreamingClient[facadev1.StreamBatchRequest, facadev1.StreamBatchResponse], next int) error {
	sequence := 0
	hash, err := u.source.rows(func(r row) error {
		if sequence++; sequence < next {
			return nil
		}
		item, bad := u.source.item(r)
		if bad != nil {
			return u.changedMeanwhile()
		}
		item.Sequence = int32(sequence)
		return stream.Send(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Item{Item: item}})
	})
	switch {
	case errors.Is(err, io.EOF) || ctx.Err() != nil:
		return nil
	case err != nil:
		return err
	case hash != u.found.hash:
		return u.changedMeanwhile()
	}
	seal := &facadev1.StreamBatchRequest_Seal{ItemCount: int32(sequence)}
	_ = stream.Send(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Seal_{Seal: seal}})
	return nil
}

func (u *upload) changedMeanwhile() error {
	f := invalid("%s: has changed while it was uploaded; the batch is not sealed", u.source.path)
	f.next = "put the old file back and run the command again, or `jelouctl batch cancel " + u.journal.BatchID + "`"
	return f
}

// event takes one event of the stream, and says whether it was the last one.
func (u *upload) event(m *facadev1.StreamBatchResponse) (done bool, err error) {
	switch e := m.Event.(type) {
	case *facadev1.StreamBatchResponse_Ack:
		u.acknowledged(int(e.Ack.ThroughSequence))
		u.view.show(false)
	case *facadev1.StreamBatchResponse_Result:
		u.journal.Cursor = e.Result.Cursor
		u.journal.Results++
		u.journal.Tally[tallyKey(e.Result.Send)]++
		u.view.result(e.Result.Send.State)
	case *facadev1.StreamBatchResponse_Progress:
		u.view.batch(e.Progress.Batch)
		if (u.flags.detach || u.flags.paused) && e.Progress.Batch.State != facadev1.Batch_OPEN {
			return true, errStored
		}
	case *facadev1.StreamBatchResponse_End:
		u.ended = e.End.Batch
		if u.journal.Ended.IsZero() {
			u.journal.Ended = time.Now().UTC()
		}
		return true, nil
	}
	if time.Since(u.saved) < time.Second {
		return false, nil
	}
	u.saved = time.Now()
	return false, u.journal.write()
}

func (u *upload) interrupted() error {
	j := u.journal
	f := &failure{exit: exitInterrupted, text: fmt.Sprintf("interrupted: %d of %d items uploaded, %d results seen", j.Uploaded, j.Items, j.Results)}
	if j.BatchID != "" {
		f.text += "; what is uploaded goes on being sent"
		f.facts = []fact{{"batch_id", j.BatchID}, {"stop it", "jelouctl batch pause " + j.BatchID + ", or cancel"}}
	}
	f.next = "run the same command again to go on"
	return f
}

// cut adds to an error how to go on.
func (u *upload) cut(ctx context.Context, err error) error {
	f := *toFailure(ctx, err)
	if u.journal.BatchID == "" {
		return &f
	}
	f.facts = append([]fact{{"batch_id", u.journal.BatchID}}, f.facts...)
	switch {
	case f.exit == exitUnavailable:
		f.next = "the batch goes on at the server; run the same command again to go on here"
	case reasonOf(err) == facadev1.ErrorReason_RESOURCE_NOT_FOUND:
		f.next = "this server does not know the batch: it is another ledger, or has forgotten it. To send the whole file as a new batch: --again"
	}
	return &f
}

// reasonOf is the reason of a server's error, or none.
func reasonOf(err error) facadev1.ErrorReason {
	st, ok := status.FromError(err)
	if err == nil || !ok {
		return 0
	}
	return facadev1.ErrorReason(facadev1.ErrorReason_value[detail[*errdetails.ErrorInfo](st).GetReason()])
}

// summary prints how a batch ended, and tells scripts whether everything went.
func (a *app) summary(b *facadev1.Batch, tally map[string]int) error {
	if a.output == formatTable {
		color := colorOf(a.out)
		fmt.Fprintf(a.out, "batch %s %s: %d items in %s\n", b.BatchId, color.state(b.State.String()), b.GetCounts().GetAccepted(),
			b.EndTime.AsTime().Sub(b.CreateTime.AsTime()).Round(100*time.Millisecond))
		for _, line := range tallyLines(tally) {
			fmt.Fprintln(a.out, line)
		}
	} else if err := printOne(a, batchColumns, b); err != nil {
		return err
	}
	if missing := b.GetCounts().GetAccepted() - b.GetCounts().GetSent(); missing > 0 {
		return &failure{exit: exitIncomplete, text: fmt.Sprintf("batch %s: %d items are not SENT", b.BatchId, missing),
			next: fmt.Sprintf("`jelouctl batch results %s --state failed` lists them, `jelouctl batch replay %s --state failed` sends them again as a new batch", b.BatchId, b.BatchId)}
	}
	return nil
}
