package service_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// sseEvent is a server-sent event.
type sseEvent struct{ event, id, data string }

// readSSE reads the next event, strictly: of the framing that docs/streaming.md promises and nothing else.
func readSSE(f *facade, r *bufio.Reader) (e sseEvent, err error) {
	f.Helper()
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			if line != "" || e != (sseEvent{}) {
				f.Errorf("the stream ends in the middle of %+v %q", e, line)
			}
			return e, err
		}
		switch field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": "); field {
		case "event":
			e.event = value
		case "id":
			e.id = value
		case "data":
			e.data = value
		case "":
			if e.event == "" || !json.Valid([]byte(e.data)) || (e.id != "") != (e.event == "result") {
				f.Errorf("an event without its parts: %+v", e)
			}
			return e, nil
		default:
			f.Errorf("a line of no event: %q", line)
		}
	}
}

// subscribe opens a stream of events as a browser does.
func subscribe(f *facade, method, path, body, lastID string) *bufio.Reader {
	f.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	f.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, method, f.rest+path, strings.NewReader(body))
	f.must(err)
	r.Header.Set("Accept", "text/event-stream")
	if body != "" {
		r.Header.Set("Content-Type", "application/x-ndjson")
	}
	if lastID != "" {
		r.Header.Set("Last-Event-ID", lastID)
	}
	answer, err := http.DefaultClient.Do(r)
	f.must(err)
	f.Cleanup(func() { _ = answer.Body.Close() })
	if kind := answer.Header.Get("Content-Type"); answer.StatusCode != http.StatusOK || kind != "text/event-stream" {
		f.Fatalf("%s, %s", answer.Status, kind)
	}
	return bufio.NewReader(answer.Body)
}

// TestLastEventID: wherever a browser was cut it goes on behind the last event that it saw, and sees none twice.
func TestLastEventID(t *testing.T) {
	f := newFacade(t, nil)
	created := &facadev1.CreateBatchResponse{}
	_, err := overREST(context.Background(), f, "BatchService/CreateBatch", batchOf(6, "evento "), created)
	f.must(err)
	f.finished(transports[1], created.Batch.BatchId)
	path := "/v1/batches/" + created.Batch.BatchId + ":watch"
	read := func(last string) (ids []string) {
		events := subscribe(f, http.MethodGet, path, "", last)
		for {
			e, err := readSSE(f, events)
			f.must(err)
			if e.event == "end" {
				if _, err := events.ReadByte(); !errors.Is(err, io.EOF) {
					t.Errorf("after the end: %v", err)
				}
				return ids
			}
			ids = append(ids, e.id)
		}
	}
	all := read("")
	if len(all) != 6 {
		t.Fatalf("%d results", len(all))
	}
	for i, last := range all[:5] {
		if rest := read(last); strings.Join(rest, " ") != strings.Join(all[i+1:], " ") {
			t.Errorf("after %s: %v of %v", last, rest, all)
		}
	}
}

// TestErrorEvent: a server that stops says so as the last event of every stream.
func TestErrorEvent(t *testing.T) {
	f := newFacade(t, nil)
	r := batchOf(2, "al parar ")
	r.Items[1].Options = &facadev1.SendOptions{ScheduleTime: timestampIn(time.Hour)}
	created := &facadev1.CreateBatchResponse{}
	_, err := overREST(context.Background(), f, "BatchService/CreateBatch", r, created)
	f.must(err)
	events := subscribe(f, http.MethodGet, "/v1/batches/"+created.Batch.BatchId+":watch", "", "")
	first, err := readSSE(f, events)
	if err != nil || first.event != "result" {
		t.Fatalf("%+v, %v", first, err)
	}
	f.stop()
	var last sseEvent
	for err == nil {
		var e sseEvent
		if e, err = readSSE(f, events); err == nil {
			last = e
		}
	}
	if last.event != "error" || !errors.Is(err, io.EOF) {
		t.Fatalf("the last event %+v, %v", last, err)
	}
	if st := restStatus(f, []byte(`{"error":`+last.data+`}`)); reasonOf(st.Err()) != "DRAINING" || restCode([]byte(`{"error":`+last.data+`}`)) != 503 {
		t.Errorf("%v", last.data)
	}
}

// TestUploadAsEvents: an upload is answered by server-sent events where they are asked for.
func TestUploadAsEvents(t *testing.T) {
	f := newFacade(t, nil)
	events := subscribe(f, http.MethodPost, "/v1/batches:stream", `{"open": {"spec": {"bot_id": "demo"}}}
{"item": {"sequence": 1, "user_id": "593991234567", "message": {"text": {"text": "uno"}}}}
{"item": {"sequence": 2, "user_id": "593991234567", "message": {"text": {"text": "dos"}}}}
{"seal": {"item_count": 2}}
`, "")
	seen := map[string]int{}
	for {
		e, err := readSSE(f, events)
		f.must(err)
		if seen[e.event]++; len(seen) == 1 && e.event != "opened" {
			t.Errorf("the first event is %+v", e)
		}
		if e.event == "end" {
			break
		}
	}
	if seen["opened"] != 1 || seen["result"] != 2 || seen["ack"] < 1 || seen["error"] != 0 {
		t.Errorf("events %v", seen)
	}
}

// TestUploadTimeIsUp: an upload that is not sealed lasts as long as its caller waits, and says so in its last line.
func TestUploadTimeIsUp(t *testing.T) {
	f := newFacade(t, nil)
	var uploads sync.WaitGroup
	for range 16 { // where the end can get lost it does so now and then
		uploads.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, f.rest+"/v1/batches:stream", strings.NewReader(`{"open": {"spec": {"bot_id": "demo"}}}`))
			if err != nil {
				t.Error(err)
				return
			}
			r.Header.Set("Content-Type", "application/x-ndjson")
			r.Header.Set("Grpc-Timeout", "500m")
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Error(err)
				return
			}
			defer answer.Body.Close()
			if body, err := io.ReadAll(answer.Body); err != nil || !bytes.Contains(body, []byte(`"DEADLINE_EXCEEDED"`)) {
				t.Errorf("%v after %s", err, body)
			}
		})
	}
	uploads.Wait()
}

// TestCutUpload: an upload that breaks off, in a line or in a chunk, is no end: what came before is kept, and the batch stays open.
func TestCutUpload(t *testing.T) {
	f := newFacade(t, nil)
	half := `{"item": {"sequence": 2, "user_id": "5939912`
	for name, c := range map[string]struct{ end, reason string }{
		"the connection in a line":  {fmt.Sprintf("%x\r\n%s\r\n", len(half), half), "INVALID_JSON"},
		"the connection in a chunk": {fmt.Sprintf("%x\r\n%s", len(half)+100, half), "INVALID_JSON"},
		"the body in a line":        {fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(half), half), "INVALID_JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", strings.TrimPrefix(f.rest, "http://"))
			f.must(err)
			defer conn.Close()
			f.must(conn.SetDeadline(time.Now().Add(30 * time.Second)))
			lines := fmt.Sprintf(`{"open": {"spec": {"bot_id": "demo"}}}
{"item": {"sequence": 1, "user_id": "593991234567", "message": {"text": {"text": "antes de cortar %s"}}}}
`, name)
			_, err = fmt.Fprintf(conn, "POST /v1/batches:stream HTTP/1.1\r\nHost: facade\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(lines), lines)
			f.must(err)
			answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
			f.must(err)
			defer answer.Body.Close()
			body := bufio.NewReader(answer.Body)
			batchID, last := "", []byte{}
			for cut := false; ; {
				line, err := body.ReadBytes('\n')
				if err != nil {
					break
				}
				last = line
				var event struct {
					Opened struct {
						BatchID string `json:"batch_id"`
					}
					Ack *struct{}
				}
				f.must(json.Unmarshal(line, &event))
				if event.Opened.BatchID != "" {
					batchID = event.Opened.BatchID
				}
				if event.Ack != nil && !cut {
					cut = true
					_, err := io.WriteString(conn, c.end)
					f.must(err)
					if !strings.HasSuffix(c.end, "0\r\n\r\n") {
						f.must(conn.(*net.TCPConn).CloseWrite())
					}
				}
			}
			if !bytes.HasPrefix(last, []byte(`{"error":`)) {
				t.Fatalf("the last line is %s", last)
			}
			if reason := reasonOf(restStatus(f, last).Err()); reason != c.reason {
				t.Errorf("%s", last)
			}
			b := &facadev1.GetBatchResponse{}
			_, err = overREST(context.Background(), f, "BatchService/GetBatch", &facadev1.GetBatchRequest{BatchId: batchID}, b)
			f.must(err)
			if b.Batch.State != facadev1.Batch_OPEN || b.Batch.NextSequence != 2 {
				t.Errorf("the batch is %v", b.Batch)
			}
			f.eventually(func() bool { return len(f.sim.SendsWithText("antes de cortar "+name)) == 1 })
		})
	}
}
