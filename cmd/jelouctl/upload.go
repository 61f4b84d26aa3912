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
command again goes on where it was. Nothing is sent twice: a file is known by its items, here for 30 days and, from wherever it is sent, at
the server for as long as that keeps the batch. One that has changed since it was sent in part is refused. A new batch of the same
items needs --again, which goes on as well until that one has ended, or another --request-id. What is not uploaded within a day of a cut
is left out: the server then ends the batch with what it has.`,
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
	flags.StringVar(&f.requestID, "request-id", "", "your own `id` of the batch: with another one the same file is another batch")
	flags.StringVar(&f.results, "results", "", "`file` (.csv, .ndjson) that gets one line for each item, with its line in FILE, once the batch has ended")
	flags.BoolVar(&f.all, "all", false, fmt.Sprintf("list all wrong lines, not only the first %d", shownLines))
	flags.BoolVar(&f.checkOnly, "check", false, "only check the file, without asking any server")
	flags.BoolVar(&f.again, "again", false, "send as a new batch what was sent before")
	flags.BoolVar(&f.paused, "paused", false, "only upload: \"jelouctl batch resume\" sends")
	flags.BoolVar(&f.detach, "detach", false, "leave once everything is stored; running the command again shows how far it is")
	f.options.add(c, "bulk")
	return c
}

// sendFile checks a file, then sends it.
func (a *app) sendFile(ctx context.Context, path string, f *batchSendFlags) error {
	if ext := filepath.Ext(f.results); f.results != "" && ext != ".csv" && ext != ".ndjson" {
		return usage("--results %s: must end in .csv or .ndjson", f.results)
	}
	spec := &facadev1.BatchSpec{DisplayName: first(f.name, filepath.Base(path)), Paused: f.paused}
	var err error
	if spec.Options, err = f.options.options(time.Now()); err != nil {
		return err
	}
	if !f.checkOnly {
		if spec.BotId, err = a.bot(f.bot); err != nil {
			return err
		}
	}
	src, err := openSource(path, f.separator, &f.mapping)
	if err != nil {
		return err
	}
	limit := shownLines
	if f.all || a.output != formatTable {
		limit = -1
	}
	checking := newChecking(a.err)
	found, err := src.check(ctx, limit, f.results != "", checking.show)
	checking.stop()
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
	u, err := a.newUpload(ctx, src, found, f, spec)
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
	moved bool            // something came since the last cut
	batch *facadev1.Batch // as it was last seen
}

func (a *app) newUpload(ctx context.Context, src *source, found *checked, f *batchSendFlags, spec *facadev1.BatchSpec) (*upload, error) {
	client, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	whole, err := filepath.Abs(src.path)
	if err != nil {
		return nil, err
	}
	j, known, err := openJournal(journal{File: whole, Hash: found.hash, Server: client.address, Bot: spec.BotId, RequestID: f.requestID, Items: len(found.lines)}, f.again)
	if err != nil {
		client.close()
		return nil, err
	}
	spec.RequestId = j.RequestID
	u := &upload{app: a, client: client, source: src, found: found, flags: f, spec: spec, journal: j, saved: time.Now()}
	if known && j.BatchID != "" {
		u.greet()
	}
	return u, nil
}

// greet says what the journal knows, so that nobody believes that the file goes a second time.
func (u *upload) greet() {
	j := u.journal
	if !j.Ended.IsZero() {
		u.note("sent before: batch %s ended on %s. Nothing is sent again; --again would send all of it once more", j.BatchID, j.Ended.Local().Format("2006-01-02 15:04"))
		return
	}
	u.note("going on with batch %s: %d of %d items uploaded, %d results seen", j.BatchID, j.Uploaded, j.Items, j.Results)
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
	if reasonOf(err) == facadev1.ErrorReason_RESOURCE_NOT_FOUND {
		u.journal.Ended = time.Now().UTC() // for --again
	}
	if saving := u.journal.write(); err == nil {
		err = saving
	}
	switch {
	case ctx.Err() != nil:
		return u.interrupted()
	case errors.Is(err, errStored):
		u.note("batch %s: all %d items are stored. It goes on at the server: run the same command again, or `jelouctl batch watch %s`", u.journal.BatchID, u.journal.Items, u.journal.BatchID)
		if u.output == formatTable {
			return nil
		}
		return printOne(u.app, batchColumns, u.batch)
	case err != nil:
		return u.cut(ctx, err)
	}
	if u.flags.results != "" {
		if err := u.writeResults(ctx); err != nil {
			return err
		}
	}
	err = u.summary(u.batch, u.journal.Tally)
	if has := int(u.batch.GetCounts().GetAccepted()); has < u.journal.Items {
		return &failure{exit: exitIncomplete, text: fmt.Sprintf("batch %s: has only the first %d of %d items", u.journal.BatchID, has, u.journal.Items), next: u.rest(has)}
	}
	return err
}

// rest says how to send what a batch that was ended has not.
func (u *upload) rest(has int) string {
	return fmt.Sprintf("to send the rest, put the lines from %d on into a file of their own, a CSV's below the names of its columns; --again would send all of it once more", u.found.lines[has])
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
	if u.journal.BatchID == "" && o.NextSequence > 1 {
		// A request_id of the user's own says nothing of the items: only a run of this file that began at the same time does.
		other, err := readJournal(u.journal.path)
		if u.flags.requestID != "" && (err != nil || other.BatchID != o.BatchId) {
			f := invalid("--request-id %s: is that of batch %s, which was not begun here with this file; nothing was sent", u.flags.requestID, o.BatchId)
			f.next = "look at it by `jelouctl batch get " + o.BatchId + "`, or give another one"
			return f
		}
		u.view.say("the server knows these items already: going on with batch %s", o.BatchId)
	}
	u.journal.BatchID, u.journal.Ended = o.BatchId, time.Time{}
	u.acknowledged(int(o.NextSequence) - 1)
	return u.journal.write()
}

func (u *upload) acknowledged(through int) {
	u.journal.Uploaded = max(u.journal.Uploaded, through)
	u.view.uploaded = u.journal.Uploaded
}

// upload sends the items from a sequence on, then the seal. It ends without an error where the stream did: Recv says why.
func (u *upload) upload(ctx context.Context, stream grpc.BidiStreamingClient[facadev1.StreamBatchRequest, facadev1.StreamBatchResponse], next int) error {
	if next <= u.journal.Items { // what is uploaded needs the file no more
		sequence := 0
		err := u.source.rows(func(r row) error {
			if sequence++; sequence < next {
				return nil
			}
			item, _, bad := u.source.item(r)
			if bad != nil {
				return errChanged
			}
			item.Sequence = int32(sequence)
			return stream.Send(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Item{Item: item}})
		})
		switch {
		case errors.Is(err, io.EOF) || ctx.Err() != nil:
			return nil
		case errors.Is(err, errChanged) || err == nil && sequence != u.journal.Items:
			return u.changedMeanwhile()
		case err != nil:
			return err
		}
	}
	seal := &facadev1.StreamBatchRequest_Seal{ItemCount: int32(u.journal.Items)}
	_ = stream.Send(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Seal_{Seal: seal}})
	return nil
}

func (u *upload) changedMeanwhile() error {
	f := invalid("%s: has changed while it was uploaded; nothing that was not checked was sent, and the batch is not sealed", u.source.path)
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
		u.batch = e.Progress.Batch
		u.view.batch(u.batch)
		if (u.flags.detach || u.flags.paused) && e.Progress.Batch.State != facadev1.Batch_OPEN {
			return true, errStored
		}
	case *facadev1.StreamBatchResponse_End:
		u.batch = e.End.Batch
		u.journal.Ended = u.batch.EndTime.AsTime()
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
	if j.Uploaded < j.Items {
		f.next += ", within a day: then the server ends the batch with what it has"
	}
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
	case reasonOf(err) == facadev1.ErrorReason_BATCH_SEALED && u.journal.Uploaded < u.journal.Items:
		f.text = fmt.Sprintf("batch %s: was ended with the first %d of %d items", u.journal.BatchID, u.journal.Uploaded, u.journal.Items)
		f.next = u.rest(u.journal.Uploaded)
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
	missing := b.GetCounts().GetAccepted() - b.GetCounts().GetSent()
	if missing == 0 {
		return nil
	}
	var states, replayed []string
	for _, s := range []struct {
		name  string
		count int32
		again bool
	}{
		{"failed", b.Counts.Failed, true}, {"expired", b.Counts.Expired, true}, {"unknown", b.Counts.Unknown, false}, {"cancelled", b.Counts.Cancelled, false},
	} {
		if s.count > 0 {
			states = append(states, s.name)
		}
		if s.count > 0 && s.again {
			replayed = append(replayed, s.name)
		}
	}
	f := &failure{exit: exitIncomplete, text: fmt.Sprintf("batch %s: %d items are not SENT", b.BatchId, missing)}
	f.next = fmt.Sprintf("`jelouctl batch results %s --state %s` lists them", b.BatchId, strings.Join(states, ","))
	if replayed != nil {
		f.next += fmt.Sprintf(", `jelouctl batch replay %s --state %s` sends them again as a new batch", b.BatchId, strings.Join(replayed, ","))
	}
	return f
}
