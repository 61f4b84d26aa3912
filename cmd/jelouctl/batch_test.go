package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

// TestServerCrash: the server dies in mid-batch by kill -9 and comes back; jelouctl goes on by itself. What was under way may
// be unknown, never sent twice, and every line has its result.
func TestServerCrash(t *testing.T) {
	t.Parallel()
	const items = 300
	w := newWorld(t, 100, time.Second, func(c *jelousim.Config) { c.EveryoneOpen = true })
	w.campaign(t, "clients.csv", items, 0)
	args := []string{"batch", "send", "clients.csv", "--map", "user_id=phone", "--text", "Hola {{.name}}", "--results", "results.ndjson"}
	sending := w.onTerminal(t, args...)
	if !sending.until(shows(barResults, items/4)) {
		t.Fatal(sending.written.String())
	}
	_ = w.server.Process.Signal(syscall.SIGKILL)
	_ = w.server.Wait()
	if !sending.until(func(written string) bool { return strings.Contains(written, "the connection was cut") }) {
		t.Fatal(sending.written.String())
	}
	w.serve(t)
	code := sending.end(t)
	if code != 0 && code != exitIncomplete {
		t.Fatalf("exit code %d\n%s", code, text(sending.written.String()))
	}
	data, err := os.ReadFile(w.path("results.ndjson"))
	if err != nil {
		t.Fatal(err)
	}
	states := map[string]int{}
	for i, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		r := fields(t, line)
		if r["line"] != float64(i+2) {
			t.Fatalf("result %d is of line %v", i+1, r["line"])
		}
		states[r["send"].(map[string]any)["state"].(string)]++
	}
	r := w.report(t)
	if states["SENT"]+states["UNKNOWN"] != items || r.Duplicates != 0 || (code == 0) != (states["UNKNOWN"] == 0) {
		t.Errorf("exit code %d, results %v, %d twice", code, states, r.Duplicates)
	}
}

var batchID = regexp.MustCompile(`batch (b\w+)`)

// TestBatchCommands walks a file of mixed luck through all commands that look after batches.
func TestBatchCommands(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 100, time.Second, nil)
	w.write(t, "items.ndjson", `{"user_id": "593991234567", "message": {"text": {"text": "Hola, Lucía."}}}

{"user_id": "593987000000", "message": {"text": {"text": "Su ventana está cerrada."}}}
{"notification": {"element_name": "order_ready", "language": "es", "destinations": ["593991234567"], "parameters": ["Lucía", "991"]}, "request_id": "order-991"}
`)
	paused := w.ctl(t, 0, "batch", "send", "items.ndjson", "--paused", "--name", "Prueba", "--label", "team=ventas")
	id := batchID.FindStringSubmatch(paused.err)[1]
	contains(t, w.ctl(t, 0, "batch", "list", "--label", "team=ventas").out, id, "PAUSED", "Prueba")
	contains(t, w.ctl(t, 0, "__complete", "batch", "get", "b").out, id+"\tPAUSED Prueba")
	contains(t, w.ctl(t, 0, "batch", "pause", id).out, "PAUSED")
	contains(t, w.ctl(t, 0, "batch", "resume", id).out, id)

	watched := w.ctl(t, exitIncomplete, "batch", "watch", id, "--output", "ndjson")
	if lines := strings.Split(strings.TrimSpace(watched.out), "\n"); len(lines) != 3 || fields(t, lines[0])["cursor"] == nil {
		t.Errorf("%s", watched.out)
	}
	ended := w.ctl(t, exitIncomplete, "batch", "send", "items.ndjson", "--results", filepath.Join("out", "results.csv"))
	contains(t, ended.out, "COMPLETED: 3 items", "1 SESSION_WINDOW_CLOSED")
	contains(t, ended.err, "going on with batch "+id, "1 items are not SENT")
	contains(t, w.ctl(t, 0, "batch", "get", id, "--output", "json").out, `"failed": 1`)
	contains(t, w.ctl(t, 0, "batch", "results", id, "--state", "failed", "--output", "csv").out, "SESSION_WINDOW_CLOSED")
	contains(t, w.ctl(t, exitRefused, "batch", "cancel", id).err, "BATCH_ENDED")

	replayed := fields(t, w.ctl(t, 0, "batch", "replay", id, "--state", "failed", "--request-id", "again-1", "--output", "json").out)
	if replayed["source_batch_id"] != id {
		t.Errorf("%v", replayed)
	}
	contains(t, w.ctl(t, exitRefused, "batch", "replay", id, "--state", "failed").err, "NOTHING_TO_REPLAY")
	contains(t, w.ctl(t, exitIncomplete, "batch", "watch", replayed["batch_id"].(string)).out, "COMPLETED: 1 items")
	contains(t, w.ctl(t, exitUsage, "batch", "replay", id, "--state", "sent").err, "failed, unknown, expired")

	again := w.ctl(t, 0, "batch", "send", "items.ndjson", "--again", "--paused")
	second := batchID.FindStringSubmatch(again.err)[1]
	if second == id {
		t.Error("--again went on with the old batch")
	}
	contains(t, w.ctl(t, 0, "batch", "cancel", second).out, "CANCELLED")
}

// TestChangedFile: a file that was sent in part and has changed is refused, with what to do; so is one of which another
// server knows nothing.
func TestChangedFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 100, time.Second, func(c *jelousim.Config) { c.EveryoneOpen = true })
	args := []string{"batch", "send", "clients.csv", "--map", "user_id=phone", "--text", "Hola {{.name}}"}
	w.campaign(t, "clients.csv", 5, 0)
	id := batchID.FindStringSubmatch(w.ctl(t, 0, append(args, "--paused")...).err)[1]
	w.campaign(t, "clients.csv", 6, 0)
	contains(t, w.ctl(t, exitInvalid, args...).err, "has changed", id, "--again")
	w.campaign(t, "clients.csv", 5, 0)
	contains(t, w.ctl(t, exitInvalid, append(args[:len(args)-1:len(args)-1], "Adiós {{.name}}")...).err, "has changed")
	if err := os.Rename(w.path("clients.csv"), w.path("moved.csv")); err != nil {
		t.Fatal(err)
	}
	args[2] = "moved.csv"
	contains(t, w.ctl(t, 0, append(args, "--detach")...).err, "going on with batch "+id)
	contains(t, w.ctl(t, 0, "batch", "resume", id).out, id)
	contains(t, w.ctl(t, 0, args...).out, "COMPLETED: 5 items")

	entries, err := os.ReadDir(filepath.Join(w.path("state"), "jelouctl", "batches"))
	if err != nil || len(entries) != 1 || !regexp.MustCompile(`^[0-9a-f]{32}\.json$`).MatchString(entries[0].Name()) {
		t.Errorf("%v %v", entries, err)
	}

	if err := os.Remove(w.path("ledger.db")); err != nil { // the same address, and another ledger
		t.Fatal(err)
	}
	_ = w.server.Process.Signal(syscall.SIGTERM)
	_ = w.server.Wait()
	w.serve(t)
	contains(t, w.ctl(t, exitRefused, args...).err, "RESOURCE_NOT_FOUND", "--again")
	contains(t, w.ctl(t, 0, append(args, "--again")...).out, "COMPLETED: 5 items")
}

// TestSecondRun: two runs at once of one file are one batch, and the newer one goes on.
func TestSecondRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 20, time.Second, func(c *jelousim.Config) { c.EveryoneOpen = true })
	w.campaign(t, "clients.csv", 100, 0)
	args := []string{"batch", "send", "clients.csv", "--map", "user_id=phone", "--text", "Hola {{.name}}"}
	first := w.onTerminal(t, args...)
	if !first.until(shows(barResults, 5)) {
		t.Fatal(first.written.String())
	}
	second := w.onTerminal(t, args...)
	if code := first.end(t); code != exitRefused {
		t.Errorf("the older run: exit code %d\n%s", code, text(first.written.String()))
	}
	contains(t, first.written.String(), "STREAM_REPLACED")
	if code := second.end(t); code != 0 {
		t.Errorf("the newer run: exit code %d\n%s", code, text(second.written.String()))
	}
	if r := w.report(t); r.Arrived != 100 || r.Duplicates != 0 {
		t.Errorf("%d arrived, %d twice", r.Arrived, r.Duplicates)
	}
	contains(t, w.ctl(t, 0, "batch", "list", "--output", "csv").out, "COMPLETED,100")
}

// TestSentOnce: a file that is sent again by mistake goes to nobody twice, however it is written and from wherever it is sent.
func TestSentOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 100, time.Second, func(c *jelousim.Config) { c.EveryoneOpen = true })
	w.write(t, "clients.csv", "phone,name,note\n593991000001,Lucía,\n593991000002,\"Ana\"\"\",\n")
	text := []string{"--map", "user_id=phone", "--text", "Hola {{.name}}"}
	send := func(file string, more ...string) []string {
		return append(append([]string{"batch", "send", file}, text...), more...)
	}
	arrived := func(want int) {
		t.Helper()
		if r := w.report(t); r.Arrived != want {
			t.Errorf("%d requests arrived instead of %d", r.Arrived, want)
		}
	}
	elsewhere := func(code int, args ...string) answer {
		command := w.command(args...)
		command.Env = append(command.Env, "XDG_STATE_HOME="+t.TempDir())
		return w.run(t, code, command)
	}
	w.ctl(t, 0, send("clients.csv")...)
	w.write(t, "excel.csv", "\ufeffphone;name;note\r\n593991000001; Lucía ;ya\r\n593991000002;\"Ana\"\"\";\r\n")
	contains(t, w.ctl(t, 0, send("excel.csv")...).err, "sent before", "--again")
	contains(t, w.ctl(t, 0, send("clients.csv", "--address", strings.Replace(w.address, "127.0.0.1", "localhost", 1))...).err, "knows these items already")
	contains(t, elsewhere(0, send("clients.csv")...).err, "knows these items already")
	arrived(2)

	// What --again began is gone on with by the same command, until it has ended.
	id := func(a answer) string { return batchID.FindStringSubmatch(a.err)[1] }
	again := id(w.ctl(t, 0, send("clients.csv", "--again", "--paused")...))
	if second := id(w.ctl(t, 0, send("clients.csv", "--again", "--paused")...)); second != again {
		t.Errorf("--again made batch %s, then %s", again, second)
	}
	w.ctl(t, 0, "batch", "resume", again)
	contains(t, w.ctl(t, 0, send("clients.csv", "--again")...).err, "going on with batch "+again)
	arrived(4)

	// An id of the user's own makes another batch of the same file, and never another file's.
	w.ctl(t, 0, send("clients.csv", "--request-id", "monday")...)
	contains(t, w.ctl(t, 0, send("clients.csv", "--request-id", "monday")...).err, "sent before")
	contains(t, w.ctl(t, exitUsage, send("clients.csv", "--request-id", "monday", "--again")...).err, "a new --request-id")
	arrived(6)
	w.write(t, "other.csv", "phone,name\n593991000003,Eva\n593991000004,Sol\n")
	for range 2 {
		contains(t, w.ctl(t, exitInvalid, send("other.csv", "--request-id", "monday")...).err, "was not begun here with this file")
	}
	arrived(6)
}

// TestRest: a batch that was ended before all of its file was uploaded is never taken for the whole, and it is said what is missing.
func TestRest(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 100, time.Second, func(c *jelousim.Config) { c.EveryoneOpen = true })
	w.campaign(t, "clients.csv", 5, 0)
	args := []string{"batch", "send", "clients.csv", "--map", "user_id=phone", "--text", "Hola {{.name}}", "--results", "results.csv"}
	src, err := openSource(w.path("clients.csv"), "", &mappingFlags{fields: map[string]string{"user_id": "phone"}, text: "Hola {{.name}}"})
	if err != nil {
		t.Fatal(err)
	}
	found, err := src.check(t.Context(), -1, false, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	a := &app{flags: target{Address: w.address}}
	client, err := a.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer client.close()
	stream, err := client.StreamBatch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	say := func(r *facadev1.StreamBatchRequest) {
		t.Helper()
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	say(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Open_{Open: &facadev1.StreamBatchRequest_Open{
		Batch: &facadev1.StreamBatchRequest_Open_Spec{Spec: &facadev1.BatchSpec{BotId: "demo", RequestId: requestID("demo", found.hash), Paused: true}},
	}}})
	const uploaded = 3
	sequence := int32(0)
	if err := src.rows(func(r row) error {
		item, _, _ := src.item(r)
		if sequence++; sequence <= uploaded {
			item.Sequence = sequence
			say(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Item{Item: item}})
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	say(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Seal_{Seal: &facadev1.StreamBatchRequest_Seal{ItemCount: uploaded}}})
	var batch *facadev1.Batch
	for batch.GetState() != facadev1.Batch_RUNNING {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		batch = m.GetProgress().GetBatch()
	}
	contains(t, w.ctl(t, exitRefused, args...).err, "knows these items already", "was ended with the first 3 of 5 items", "the lines from 5 on")
	w.ctl(t, 0, "batch", "resume", batch.BatchId)
	w.ctl(t, 0, "batch", "watch", batch.BatchId)
	ended := w.ctl(t, exitIncomplete, args...)
	contains(t, ended.err, "3 results written", "has only the first 3 of 5 items", "the lines from 5 on")
	w.checkResults(t, uploaded)
}

// TestFileEdited: a file that is edited while it is uploaded is let go of before anything that was not checked goes out.
func TestFileEdited(t *testing.T) {
	t.Parallel()
	const items = 50_000
	w := newWorld(t, 1000, 100*time.Millisecond, func(c *jelousim.Config) { c.EveryoneOpen = true })
	w.campaign(t, "clients.csv", items, 0)
	args := []string{"batch", "send", "clients.csv", "--map", "user_id=phone", "--text", "Hola {{.name}}", "--paused"}
	sending := w.onTerminal(t, args...)
	if !sending.until(shows(barUploaded, 1)) {
		t.Fatal(sending.written.String())
	}
	w.write(t, "clients.csv", "phone,name,order\n593991234567,Nobody checked this,1\n")
	if code := sending.end(t); code != exitInvalid {
		t.Errorf("exit code %d", code)
	}
	contains(t, text(sending.written.String()), "has changed while it was uploaded")
	batches := fields(t, w.ctl(t, 0, "batch", "list", "--output", "json").out)["batches"].([]any)
	if batch := batches[0].(map[string]any); batch["state"] != "OPEN" || batch["counts"].(map[string]any)["accepted"].(float64) >= items {
		t.Errorf("%v", batch)
	}
}

// TestCheckInterrupted: Ctrl-C ends the check of a long file, too.
func TestCheckInterrupted(t *testing.T) {
	t.Parallel()
	w := &world{folder: t.TempDir(), address: "127.0.0.1:1"}
	w.campaign(t, "clients.csv", 1_000_000, 0)
	checking := w.onTerminal(t, "batch", "send", "clients.csv", "--map", "user_id=phone", "--text", "Hola {{.name}}")
	if !checking.until(func(written string) bool { return strings.Contains(written, "lines checked") }) {
		t.Fatal(checking.written.String())
	}
	_ = checking.command.Process.Signal(syscall.SIGINT)
	if code := checking.end(t); code != exitInterrupted {
		t.Errorf("exit code %d", code)
	}
	contains(t, checking.written.String(), "interrupted; nothing was sent")
}
