package service_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	channelzv1 "google.golang.org/grpc/channelz/grpc_channelz_v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/timestamppb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/internal/canary"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/ledger/ledgertest"
)

// hear keeps what a caller is told of errors, in an error and in an answer, and what it is warned of.
func (f *facade) hear(answer proto.Message, err error) {
	told := []proto.Message{status.Convert(err).Proto()}
	if err == nil {
		_ = protorange.Range(answer.ProtoReflect(), func(at protopath.Values) error {
			last := at.Index(-1)
			if m, ok := last.Value.Interface().(protoreflect.Message); ok {
				if s, ok := m.Interface().(*spb.Status); ok {
					told = append(told, s)
					return protorange.Break
				}
			}
			if field := last.Step.FieldDescriptor; last.Step.Kind() == protopath.FieldAccessStep && field().Name() == "warnings" {
				fmt.Fprintln(f.answers, last.Value.List())
			}
			return nil
		})
	}
	for _, m := range told {
		data, err := proto.Marshal(m) // whose texts stand there as they are, the details' too
		f.must(err)
		_, _ = f.answers.Write(append(data, '\n'))
	}
}

func (f *facade) hearUnary(ctx context.Context, method string, request, answer any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, request, answer, conn, opts...)
	if m, ok := answer.(proto.Message); ok {
		f.hear(m, err)
	}
	return err
}

func (f *facade) hearStream(ctx context.Context, d *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := open(ctx, d, conn, method, opts...)
	if err != nil {
		f.hear(nil, err)
		return nil, err
	}
	return &heardStream{stream, f}, nil
}

type heardStream struct {
	grpc.ClientStream
	f *facade
}

func (s *heardStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if !errors.Is(err, io.EOF) {
		s.f.hear(m.(proto.Message), err)
	}
	return err
}

// listenIn reads what only a running server tells; nothing where the test has stopped it.
func (f *facade) listenIn() {
	f.looked = map[string][]byte{}
	for sink, url := range map[string]string{
		"metrics": f.admin + "/metrics", "goroutines": f.admin + "/debug/pprof/goroutine?debug=2", "readyz": f.admin + "/readyz", "configz": f.rest + "/configz",
	} {
		answer, err := http.Get(url)
		if err != nil {
			return
		}
		f.looked[sink], _ = io.ReadAll(answer.Body)
		answer.Body.Close()
	}
	conn, err := grpc.NewClient(strings.TrimPrefix(f.admin, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	f.must(err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if servers, err := channelzv1.NewChannelzClient(conn).GetServers(ctx, &channelzv1.GetServersRequest{}); err == nil {
		f.looked["channelz"] = []byte(protojson.Format(servers))
	}
	if channels, err := channelzv1.NewChannelzClient(conn).GetTopChannels(ctx, &channelzv1.GetTopChannelsRequest{}); err == nil {
		f.looked["channelz"] = append(f.looked["channelz"], protojson.Format(channels)...)
	}
}

// searched counts, over all tests, the bytes of each sink.
var searched = struct {
	sync.Mutex
	bytes map[string]int64
}{bytes: map[string]int64{}}

// checkCanaries searches all that the facade has left behind.
func (f *facade) checkCanaries(s setup) {
	f.Helper()
	search := canary.NewSearch(append([]string{s.secret, "Su pedido", "número", "Lucía"}, f.secrets...)...)
	found := map[string]bool{}
	note := func(findings []canary.Finding) {
		for _, one := range findings {
			if found[one.Sink] = true; !f.planted {
				f.Errorf("found %s", one)
			}
		}
	}
	sinks := maps.Clone(f.looked)
	sinks["log"], sinks["traces"] = []byte(f.logs.String()), []byte(f.spans.String())
	if s.audit.File != "" {
		var err error
		sinks["audit log"], err = os.ReadFile(s.audit.File)
		f.must(err)
	}
	for sink, data := range sinks {
		note(search.In(sink, data))
	}
	note(search.InLabelled("answers", []byte(f.answers.String())))
	f.searchDatabase(s, search, note)
	for sink := range search.Bytes() {
		if f.planted && !found[sink] && sink != "readyz" {
			f.Errorf("the canary in the %s was not found", sink)
		}
	}
	searched.Lock()
	defer searched.Unlock()
	for sink, n := range search.Bytes() {
		searched.bytes[sink] += n
	}
}

// searchDatabase searches all that the database keeps: SQLite's files as they are, PostgreSQL's rows with bytes in hexadecimal, and its
// files where the setup says so.
func (f *facade) searchDatabase(s setup, search *canary.Search, note func([]canary.Finding)) {
	f.Helper()
	files := func(sink string, patterns ...string) {
		found, err := search.InFiles(sink, patterns...)
		f.must(err)
		note(found)
	}
	if s.ledger.Path != "" {
		files("SQLite's files", s.ledger.Path+"*")
		return
	}
	ctx := context.Background()
	db, err := pgx.Connect(ctx, s.ledger.URL)
	f.must(err)
	defer db.Close(ctx)
	query := func(text string) []string {
		rows, err := db.Query(ctx, text)
		f.must(err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		f.must(err)
		return lines
	}
	for _, table := range query("SELECT table_name::text FROM information_schema.tables WHERE table_schema = current_schema()") {
		rows := query("SELECT t::text FROM " + pgx.Identifier{table}.Sanitize() + " t")
		note(search.InLabelled("PostgreSQL's rows", []byte(strings.Join(rows, "\n"))))
	}
	if s.files {
		_, err := db.Exec(ctx, "CHECKPOINT")
		f.must(err)
		folder := query("SHOW data_directory")[0]
		database := query("SELECT oid::text FROM pg_database WHERE datname = current_database()")[0]
		files("PostgreSQL's files", filepath.Join(folder, "base", database, "*"))
		files("PostgreSQL's WAL", filepath.Join(folder, "pg_wal", "*"))
		files("PostgreSQL's log", filepath.Join(folder, "..", "log"))
	}
}

// canaryWorlds are the ledgers that the tests of this file run on.
var canaryWorlds = map[string]func(*testing.T, *setup){
	"SQLite":     func(*testing.T, *setup) {},
	"PostgreSQL": func(t *testing.T, s *setup) { s.ledger.URL = ledgertest.Postgres(t) },
}

// kanary7qWaits is a goroutine whose name is a canary.
func kanary7qWaits(end chan struct{}) { <-end }

// TestCanariesAreFound: a canary in any of the sinks is found, so that TestCanaries and all other tests can fail.
func TestCanariesAreFound(t *testing.T) {
	for name, world := range canaryWorlds {
		t.Run(name, func(t *testing.T) {
			// What must be there still when the facade is searched ends after it.
			end := make(chan struct{})
			t.Cleanup(func() { close(end) })
			go kanary7qWaits(end)
			other, err := grpc.NewClient("passthrough:///"+canary.NewWord(), grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = other.Close() })
			var kept setup
			f := newFacade(t, func(s *setup) {
				defer func() { kept = *s }()
				if world(t, s); s.ledger.URL != "" {
					s.ledger.URL, s.files = ledgertest.NewCluster(t).URL, true
				}
				s.configuration = func() ([]byte, error) { return []byte(canary.NewWord()), nil }
			})
			f.planted = true
			ctx, word := context.Background(), canary.NewWord()
			f.log.Error("settle", "error", word)
			_, span := f.trace.Tracer().Start(ctx, "span")
			span.RecordError(fmt.Errorf("refused: %s", canary.NewNumber()))
			span.End()
			counter, err := f.trace.Meter().Int64Counter("jelou.test")
			f.must(err)
			counter.Add(ctx, 1, metric.WithAttributes(attribute.String("caller", word)))
			audited, err := os.OpenFile(f.auditFile, os.O_APPEND|os.O_WRONLY, 0)
			f.must(err)
			fmt.Fprintln(audited, word)
			f.must(audited.Close())
			f.hear(nil, status.Error(codes.Internal, word))
			company, err := f.ledger.Company(ctx, "sandbox")
			f.must(err)
			_, err = f.ledger.Add(ctx, []ledger.NewSend{{Company: company, Lane: ledger.Normal, Caller: word, Bot: "demo", Recipient: canary.NewNumber(), Kind: "text",
				DueAt: time.Now().Add(time.Hour).UnixMicro(), Body: []byte(word)}})
			f.must(err)
			if kept.files {
				db, err := pgx.Connect(ctx, kept.ledger.URL)
				f.must(err)
				defer db.Close(ctx)
				_, err = db.Exec(ctx, "SELECT '"+word+"' FROM nothing_of_the_kind") // which its log quotes
				if err == nil {
					t.Error("no error")
				}
			}
		})
	}
}

// echo is a Jelou that refuses everything, and quotes all that it was sent in every way that a refusal can have.
func echo(t *testing.T) string {
	var turn atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		all := fmt.Sprintf("%s %v %s", r.URL, r.Header, body)
		quoted, _ := json.Marshal(all)
		var words any
		_ = json.Unmarshal(body, &words)
		said, _ := json.Marshal(fmt.Sprint(words))
		code, answer := 400, ""
		switch turn.Add(1) % 8 {
		case 0:
			answer = fmt.Sprintf(`{"code":"message_could_not_be_send","description":%s}`, quoted)
		case 1:
			code, answer = 422, fmt.Sprintf(`{"message":[%s],"statusMessage":"failed","status":0,"error":{"code":"E0422","key":"unprocessable_entity","description":%s,"clientMessages":{"es":%s}},"validationError":{"text":[%s]}}`, said, said, quoted, said)
		case 2:
			answer = fmt.Sprintf(`{"message":%s}`, said)
		case 3:
			answer = fmt.Sprintf(`{"message":[%s],"status":"failed","_metadata":%s}`, said, body)
		case 4:
			code, answer = 200, fmt.Sprintf(`{"success":false,"message":%s,"error":%s}`, said, said)
		case 5:
			code, answer = 502, "<html>"+all
		case 6:
			code, answer = 200, all // unreadable
		default:
			code, answer = 404, fmt.Sprintf(`{"code":%s,"key":%s,"message":%s}`, said, quoted, said)
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Echo", strings.ToValidUTF8(string(said[:min(len(said), 200)]), ""))
		w.WriteHeader(code)
		fmt.Fprint(w, answer)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// An example is a request of examples/.
type example struct {
	name, method string
	request      proto.Message
}

func examples(t *testing.T) (all []example) {
	t.Helper()
	for folder, method := range map[string]string{"messages": sendMessage, "options": sendMessage, "notifications": sendNotification} {
		names, err := filepath.Glob(filepath.Join("../examples", folder, "*.json"))
		if err != nil || len(names) == 0 {
			t.Fatal(names, err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var request proto.Message = &facadev1.SendMessageRequest{}
			if method == sendNotification {
				request = &facadev1.SendNotificationRequest{}
			}
			if err := protojson.Unmarshal(text, request); err != nil {
				t.Fatal(err)
			}
			all = append(all, example{folder + "/" + filepath.Base(name), method, request})
		}
	}
	return all
}

// everyExample does something with all examples, at the same time.
func (f *facade) everyExample(do func(example)) {
	f.Helper()
	var running sync.WaitGroup
	for _, e := range examples(f.T) {
		running.Go(func() { do(e) })
	}
	running.Wait()
}

// outcomes are the ways that a send can go.
var outcomes = []struct {
	name   string
	setup  func(*testing.T, *setup)
	faults []jelousim.Fault
	want   string // the reason that an example with canaries gets, or OK; empty: any
	queued bool   // nobody waits for it
}{
	{name: "sent", want: "OK"},
	{name: "quoted by Jelou", setup: func(t *testing.T, s *setup) { s.baseURL = echo(t) }},
	{name: "lost", want: "OUTCOME_UNKNOWN", faults: []jelousim.Fault{{Kind: jelousim.FaultReset, Accepted: true, Probability: 1}}},
	{name: "unreadable", want: "OUTCOME_UNKNOWN", faults: []jelousim.Fault{{Kind: jelousim.FaultTruncate, Probability: 1}}},
	{name: "panic", want: "OUTCOME_UNKNOWN", setup: func(_ *testing.T, s *setup) {
		s.credential = func() (string, string, error) { panic("credential of " + canary.NewNumber() + canary.NewWord()) }
	}},
	{name: "no credential", setup: func(_ *testing.T, s *setup) {
		s.credential = func() (string, string, error) { return "", "", fmt.Errorf("no credential") }
	}, queued: true},
	{name: "expired", queued: true, setup: func(_ *testing.T, s *setup) { slow(s) }},
}

// TestCanaries fills every example of every kind with canaries and sends it over gRPC and REST in all outcomes, alone and in a
// batch, and breaks every field of it; then whatever is left behind is searched, as after every test.
func TestCanaries(t *testing.T) {
	t.Run("on", func(t *testing.T) { testCanaries(t) })
	searched.Lock()
	defer searched.Unlock()
	var lines []string
	for _, sink := range slices.Sorted(maps.Keys(searched.bytes)) {
		lines = append(lines, fmt.Sprintf("%s %d", sink, searched.bytes[sink]))
	}
	t.Logf("%d canaries planted; bytes searched in %d sinks: %s", canary.Planted(), len(lines), strings.Join(lines, ", "))
}

func testCanaries(t *testing.T) {
	for name, world := range canaryWorlds {
		for _, o := range outcomes {
			t.Run(name+"/"+o.name, func(t *testing.T) {
				t.Parallel()
				f := newFacade(t, func(s *setup) {
					world(t, s)
					s.pace.Requests, s.sim.Rate.Requests, s.sim.EveryoneOpen = 200, 200, true
					if o.setup != nil {
						o.setup(t, s)
					} else if s.ledger.URL != "" {
						s.ledger.URL, s.files = ledgertest.NewCluster(t).URL, true
					}
				})
				f.must(f.sim.SetFaults(o.faults...))
				f.everyExample(func(e example) {
					for _, tr := range transports {
						f.sendExample(tr, e, o.want, o.queued, o.faults == nil)
					}
				})
				f.sendBatch(o.queued)
				if name == "SQLite" && o.name == "sent" { // nothing of it comes to the ledger
					f.everyExample(f.breakFields)
					f.sendGarbage()
				}
			})
		}
	}
}

// withCredentials has a caller show credentials that are canaries, where nobody asks for any.
func withCredentials(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+canary.NewWord(), "x-api-key", canary.NewWord(), "x-customer", canary.NewNumber())
}

// sendExample sends an example with canaries for its texts and, where Jelou says something about it, once more with canaries in all
// that it leaves empty.
func (f *facade) sendExample(tr transport, e example, want string, queued, fill bool) {
	f.Helper()
	planted := proto.Clone(e.request)
	canary.Plant(planted)
	requests := []proto.Message{planted}
	if fill {
		filled := proto.Clone(e.request)
		canary.Fill(filled)
		requests = append(requests, filled)
	}
	for _, request := range requests {
		if queued {
			queue(request)
		}
		ctx, cancel := context.WithTimeout(withCredentials(f.Context()), 50*time.Second)
		_, err := tr.call(ctx, f, e.method, request, responseOf(f, e.method))
		cancel()
		// What is filled may be too much for Jelou, such as media beside a template without; for examples of options nobody may wait.
		if got := cmpOr(reasonOf(err), "OK"); want != "" && got != want && request == planted && !strings.HasPrefix(e.name, "options/") {
			f.Errorf("%s over %s: %s (%v), want %s", e.name, tr.name, got, err, want)
		}
	}
}

// queue has a send wait for no answer, and not for long.
func queue(request proto.Message) {
	soon := &facadev1.SendOptions{ExpireTime: timestamppb.New(time.Now().Add(time.Second))}
	switch r := request.(type) {
	case *facadev1.SendMessageRequest:
		r.Mode, r.Options = facadev1.SendOptions_QUEUE, soon
	case *facadev1.SendNotificationRequest:
		r.Mode, r.Options = facadev1.SendOptions_QUEUE, soon
	}
	canary.Plant(request)
}

// sendBatch sends all examples as a batch and reads its results, which are heard.
func (f *facade) sendBatch(queued bool) {
	f.Helper()
	r := &facadev1.CreateBatchRequest{Spec: &facadev1.BatchSpec{BotId: "demo", DisplayName: "x", Options: &facadev1.SendOptions{Labels: map[string]string{"a": "b"}}}}
	for _, e := range examples(f.T) {
		item := &facadev1.BatchItem{Sequence: int32(len(r.Items) + 1)}
		switch request := e.request.(type) {
		case *facadev1.SendMessageRequest:
			item.UserId, item.Content = request.UserId, &facadev1.BatchItem_Message{Message: request.Message}
		case *facadev1.SendNotificationRequest:
			item.Content = &facadev1.BatchItem_Notification{Notification: request.Notification}
		}
		r.Items = append(r.Items, item)
	}
	canary.Plant(r)
	if queued {
		r.Spec.Options.ExpireTime = timestamppb.New(time.Now().Add(time.Second))
	}
	ctx, cancel := context.WithTimeout(withCredentials(f.Context()), 60*time.Second)
	defer cancel()
	batches := facadev1.NewBatchServiceClient(f.conn)
	created, err := batches.CreateBatch(ctx, r)
	f.must(err)
	watch, err := batches.WatchBatch(ctx, &facadev1.WatchBatchRequest{BatchId: created.Batch.BatchId})
	f.must(err)
	for results := 0; ; {
		event, err := watch.Recv()
		if err != nil || event.GetEnd() != nil {
			if err != nil || results != len(r.Items) {
				f.Errorf("%d of %d results: %v", results, len(r.Items), err)
			}
			return
		}
		if event.GetResult() != nil {
			results++
		}
	}
}

// post posts a body to a route, and hears what comes.
func (f *facade) post(path string, body []byte, header http.Header) {
	f.Helper()
	r, err := http.NewRequestWithContext(f.Context(), http.MethodPost, f.rest+path, bytes.NewReader(body))
	f.must(err)
	r.Header.Set("Content-Type", "application/json")
	maps.Copy(r.Header, header)
	answer, err := http.DefaultClient.Do(r)
	f.must(err)
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	f.must(err)
	if answer.StatusCode != http.StatusOK {
		_, _ = f.answers.Write(append(data, '\n'))
		fmt.Fprintln(f.answers, answer.Header)
	}
}

// breaks are what a field is replaced by.
var breaks = map[string]func(text string) any{
	"too long":     func(text string) any { return strings.Repeat(text, 4096/len(text)+1) },
	"with U+0000":  func(text string) any { return text + "\x00" },
	"an object":    func(text string) any { return map[string]any{text: text} },
	"a number":     func(string) any { return json.Number(canary.NewNumber()) },
	"not its form": func(text string) any { return "%$ " + text },
}

// breakFields sends an example with each of its fields broken in each way.
func (f *facade) breakFields(e example) {
	f.Helper()
	request := proto.Clone(e.request)
	canary.Fill(request)
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(request)
	f.must(err)
	route := "/v1/bots/demo/messages"
	if e.method == sendNotification {
		route = "/v1/bots/demo/notifications"
	}
	for _, with := range breaks {
		for n := 0; ; n++ {
			var body map[string]any
			f.must(json.Unmarshal(text, &body))
			delete(body, "bot_id")
			left := n
			if breakLeaf(body, &left, with); left >= 0 {
				break // there is no such field
			}
			broken, err := json.Marshal(body)
			f.must(err)
			f.post(route, broken, nil)
			r := e.request.ProtoReflect().New().Interface()
			if protojson.Unmarshal(broken, r) == nil {
				r.ProtoReflect().Set(r.ProtoReflect().Descriptor().Fields().ByName("bot_id"), protoreflect.ValueOfString("demo"))
				ctx, cancel := context.WithTimeout(f.Context(), 10*time.Second)
				_ = f.conn.Invoke(ctx, "/jelou.facade.v1."+e.method, r, responseOf(f, e.method)) // it is heard
				cancel()
			}
		}
	}
}

// breakLeaf breaks the nth text of a JSON value, and counts n down; below zero it is done.
func breakLeaf(v any, n *int, with func(string) any) any {
	switch v := v.(type) {
	case string:
		if *n--; *n == -1 {
			return with(v)
		}
	case []any:
		for i := range v {
			v[i] = breakLeaf(v[i], n, with)
		}
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			v[name] = breakLeaf(v[name], n, with)
		}
	}
	return v
}

// garbage is a gRPC message that is none.
type garbage struct{ bytes []byte }

func (g garbage) Marshal(any) ([]byte, error)     { return g.bytes, nil }
func (g garbage) Unmarshal(_ []byte, _ any) error { return nil }
func (g garbage) Name() string                    { return "proto" }

// sendGarbage calls every method with canaries for ids and filters, and what is no call at all.
func (f *facade) sendGarbage() {
	f.Helper()
	call := func(name string, m protoreflect.MethodDescriptor, request proto.Message, opts ...grpc.CallOption) {
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(withCredentials(f.Context()), "traceparent", canary.NewWord(), "tracestate", canary.NewWord(), "baggage", canary.NewWord()), 2*time.Second)
		defer cancel()
		stream, err := f.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, name, opts...)
		f.must(err)
		_ = stream.SendMsg(request) // RecvMsg says why not
		_ = stream.CloseSend()
		_ = stream.RecvMsg(responseOf(f, string(m.Parent().Name())+"/"+string(m.Name()))) // it is heard
	}
	for name, m := range methodsOf(f.T) {
		request := requestOf(f, m)
		canary.Fill(request)
		call("/jelou.facade.v1."+name, m, request)
		call("/jelou.facade.v1."+name+canary.NewWord(), m, request)
		call("/jelou.facade.v1."+name, m, request, grpc.ForceCodec(garbage{[]byte("\xff\xff" + canary.NewWord())}))
		verb, path, body := restRequest(f, name, request)
		if verb == http.MethodGet {
			_, answer := f.get(f.rest + path)
			fmt.Fprintln(f.answers, answer)
			continue
		}
		f.post(path, body, nil)
		for _, broken := range [][]byte{body[:len(body)/2], append(slices.Clone(body), canary.NewWord()...), []byte(`{"` + canary.NewNumber() + `": 1}`), []byte(`{"` + canary.NewWord() + ` Paz": 1}`), []byte(canary.NewWord()), []byte("\xff" + canary.NewWord())} {
			f.post(path, broken, nil)
		}
		for header, value := range map[string]string{"Content-Type": canary.NewWord() + "/x", "Grpc-Timeout": canary.NewWord(), "Idempotency-Key": "%" + canary.NewWord(), "X-Request-Id": "%" + canary.NewWord(), "Accept": canary.NewWord(), "Traceparent": canary.NewWord()} {
			f.post(path, body, http.Header{header: {value}})
		}
		f.post(path+"?"+canary.NewNumber()+"="+canary.NewWord(), body, nil)
	}
	f.post("/"+canary.NewWord()+"/"+canary.NewWord(), nil, nil)
	// A label's key that is none.
	labelled := textTo(openUser, canary.NewWord())
	labelled.Options = &facadev1.SendOptions{Labels: map[string]string{`"] ` + canary.NewWord(): "x"}}
	for _, tr := range transports {
		_, _, _ = f.sendText(tr, labelled) // it is heard
	}
	// The same id for two contents.
	reused := withID(textTo(openUser, canary.NewWord()), canary.NewLabel())
	for _, text := range []string{canary.NewWord(), canary.NewWord()} {
		reused.Message.GetText().Text = text
		for _, tr := range transports {
			_, _, _ = f.sendText(tr, reused) // it is heard
		}
	}
}

// requestOf is an empty request of a method.
func requestOf(f *facade, m protoreflect.MethodDescriptor) proto.Message {
	f.Helper()
	kind, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
	f.must(err)
	return kind.New().Interface()
}
