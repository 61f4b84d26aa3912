package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/jelou-facade/jelou-facade/clients/exchange"
)

// client makes the calls of commands.
type client struct {
	document document
	mu       sync.Mutex
	secured  map[exchange.TLS]*http.Client
}

// The retries of clients/service_config.json, for a call that is safe to repeat.
const (
	attempts     = 4
	firstBackoff = 300 * time.Millisecond
	backoffTimes = 3
)

// plain is the HTTP client without TLS. It keeps the connections of calls side by side: Go's own keeps two.
var plain = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}

func (c *client) carryOut(command exchange.Command, reply func(exchange.Reply)) {
	if command.Repeat > 0 {
		seconds, err := c.measure(command)
		if err == nil {
			reply(exchange.Reply{Seconds: seconds})
			return
		}
		reply(exchange.Reply{Status: &exchange.Status{Code: "UNKNOWN", Message: err.Error()}})
		return
	}
	reply(exchange.Reply{Status: c.call(command, func(message []byte) { reply(exchange.Reply{Message: message}) })})
}

// call makes one call and returns how it ended. A connection that breaks is UNAVAILABLE, as over gRPC.
func (c *client) call(command exchange.Command, received func([]byte)) *exchange.Status {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	answers := &answers{command: command, cancel: cancel, received: received, seen: map[string]int{}}
	request, err := c.request(command)
	for attempt, backoff := 1, firstBackoff; err == nil; attempt, backoff = attempt+1, backoff*backoffTimes {
		status, broken := c.attempt(ctx, command, request, answers)
		switch {
		case broken == nil && (status.Code != "UNAVAILABLE" || !request.repeatable || attempt == attempts):
			return status
		case broken != nil && ctx.Err() != nil:
			return &exchange.Status{Code: "CANCELLED"}
		case broken != nil && (!request.repeatable || attempt == attempts):
			return &exchange.Status{Code: "UNAVAILABLE", Message: broken.Error()}
		}
		time.Sleep(backoff)
	}
	return &exchange.Status{Code: "UNKNOWN", Message: err.Error()}
}

// request is a call in the form of HTTP.
type request struct {
	operation   operation
	method, url string
	header      http.Header
	body        []byte
	keepOpen    bool
	repeatable  bool
}

// request makes a call's request by the document, or the one beside it that the command has.
func (c *client) request(command exchange.Command) (*request, error) {
	r := &request{header: http.Header{}, keepOpen: command.KeepOpen}
	for name, value := range command.Metadata {
		r.header.Set(name, value)
	}
	if h := command.HTTP; h != nil {
		r.method, r.url, r.body = h.Method, command.Address+h.Path, []byte(h.Body)
		r.header.Set("Content-Type", h.ContentType)
		return r, nil
	}
	var err error
	if r.operation, err = c.document.find(command.RPC); err != nil {
		return nil, err
	}
	r.method = r.operation.method
	if command.TimeoutMS > 0 && r.operation.hasHeader("Grpc-Timeout") {
		r.header.Set("Grpc-Timeout", fmt.Sprintf("%dm", command.TimeoutMS))
	}
	r.repeatable = !command.Bare && !r.operation.streams()
	for _, text := range command.Requests {
		var fields map[string]any
		if err := json.Unmarshal(text, &fields); err != nil {
			return nil, err
		}
		if !command.Bare {
			r.setRequestID(fields)
		}
		path, body := r.operation.place(fields)
		r.url = command.Address + path
		if r.method == http.MethodGet {
			continue
		}
		line, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r.header.Set("Content-Type", r.operation.accepts())
		r.body = append(append(r.body, line...), '\n')
	}
	return r, nil
}

// setRequestID gives a send an id of its own, so that it may be repeated: as a header where the document has it, or in a batch's spec.
func (r *request) setRequestID(fields map[string]any) {
	if fields["validate_only"] == true {
		return
	}
	if fields["request_id"] == nil && r.operation.hasHeader("Idempotency-Key") {
		r.header.Set("Idempotency-Key", uuid.NewString())
	}
	if open, ok := fields["open"].(map[string]any); ok {
		fields = open
	}
	if spec, ok := fields["spec"].(map[string]any); ok && spec["request_id"] == nil {
		spec["request_id"] = uuid.NewString()
	}
}

// attempt makes one request. The error is that of a connection that broke before the answer was complete.
func (c *client) attempt(ctx context.Context, command exchange.Command, r *request, a *answers) (*exchange.Status, error) {
	transport, err := c.transport(command.TLS)
	if err != nil {
		return nil, err
	}
	body := io.Reader(bytes.NewReader(r.body))
	if r.keepOpen {
		reader, writer := io.Pipe()
		defer writer.Close()
		body = io.MultiReader(body, reader)
	}
	httpRequest, err := http.NewRequestWithContext(ctx, r.method, r.url, body)
	if err != nil {
		return nil, err
	}
	httpRequest.Header = r.header.Clone()
	response, err := transport.Do(httpRequest)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusOK && r.operation.Operation != nil && r.operation.streams() {
		return a.lines(r.operation, response)
	}
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	return a.whole(r, response, text), nil
}

// transport is the HTTP client for a security.
func (c *client) transport(t *exchange.TLS) (*http.Client, error) {
	if t == nil {
		return plain, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if made := c.secured[*t]; made != nil {
		return made, nil
	}
	pem, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AppendCertsFromPEM(pem)
	if t.Cert != "" {
		own, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{own}
	}
	if c.secured == nil {
		c.secured = map[exchange.TLS]*http.Client{}
	}
	c.secured[*t] = &http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}
	return c.secured[*t], nil
}

// answers hands over what came, once it was compared with the document.
type answers struct {
	command  exchange.Command
	cancel   func()
	received func([]byte)
	seen     map[string]int
}

// whole is an answer that is not a stream.
func (a *answers) whole(r *request, response *http.Response, text []byte) *exchange.Status {
	if r.operation.Operation != nil && a.command.Repeat == 0 { // a measurement is of the calls, not of this check
		if err := r.operation.check(response.StatusCode, text); err != nil {
			return &exchange.Status{Code: "INTERNAL", Message: err.Error(), HTTP: response.StatusCode}
		}
	}
	if response.StatusCode == http.StatusOK {
		a.received(text)
		return &exchange.Status{Code: "OK", HTTP: response.StatusCode}
	}
	status := readError(text)
	status.HTTP = response.StatusCode
	if response.Header.Get("X-Request-Id") != "" && (response.Header.Get("Retry-After") != "") != (status.RetryDelayMS != nil) {
		return &exchange.Status{Code: "INTERNAL", Message: "Retry-After and RetryInfo contradict each other"}
	}
	return status
}

// lines reads a stream: it is complete only when its last line is end or error.
func (a *answers) lines(o operation, response *http.Response) (*exchange.Status, error) {
	lines := bufio.NewReader(response.Body)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return nil, errors.Join(errors.New("the stream was cut"), err)
		}
		if err := o.check(response.StatusCode, line); err != nil {
			return &exchange.Status{Code: "INTERNAL", Message: err.Error()}, nil
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal(line, &members); err != nil {
			return nil, err
		}
		if members["error"] != nil {
			return readError(line), nil
		}
		a.received(bytes.TrimSpace(line))
		for kind := range members {
			a.seen[kind]++
		}
		if enough(a.command.CancelAfter, a.seen) {
			a.cancel()
			return &exchange.Status{Code: "CANCELLED"}, nil
		}
		if members["end"] != nil {
			return &exchange.Status{Code: "OK"}, nil
		}
	}
}

func enough(wanted, seen map[string]int) bool {
	for kind, n := range wanted {
		if seen[kind] < n {
			return false
		}
	}
	return len(wanted) > 0
}

// readError reads an error in the one form that all have.
func readError(text []byte) *exchange.Status {
	var body struct {
		Error struct {
			Status, Message string
			Details         []struct {
				Type            string `json:"@type"`
				Reason, Domain  string
				Metadata        map[string]string
				RetryDelay      string                   `json:"retry_delay"`
				FieldViolations []struct{ Field string } `json:"field_violations"`
			}
		}
	}
	if err := json.Unmarshal(text, &body); err != nil || body.Error.Status == "" {
		return &exchange.Status{Code: "INTERNAL", Message: "the answer is no error of the API"}
	}
	s := &exchange.Status{Code: body.Error.Status, Message: body.Error.Message}
	for _, d := range body.Error.Details {
		switch d.Type[strings.LastIndex(d.Type, "/")+1:] {
		case "google.rpc.ErrorInfo":
			s.Reason, s.Domain, s.Metadata = d.Reason, d.Domain, d.Metadata
		case "google.rpc.RetryInfo":
			if delay, err := time.ParseDuration(d.RetryDelay); err == nil {
				ms := delay.Milliseconds()
				s.RetryDelayMS = &ms
			}
		case "google.rpc.BadRequest":
			for _, v := range d.FieldViolations {
				s.Fields = append(s.Fields, v.Field)
			}
		}
	}
	return s
}

// measure repeats a call and returns how long all took.
func (c *client) measure(command exchange.Command) (float64, error) {
	var running sync.WaitGroup
	failed := make(chan error, command.Concurrency)
	start := time.Now()
	for range command.Concurrency {
		running.Go(func() {
			one := command
			for i := range command.Repeat / command.Concurrency {
				one.Requests = command.Requests[i%len(command.Requests):][:1]
				if st := c.call(one, func([]byte) {}); st.Code != "OK" {
					failed <- fmt.Errorf("%s: %s", st.Code, st.Message)
					return
				}
			}
		})
	}
	running.Wait()
	select {
	case err := <-failed:
		return 0, err
	default:
		return time.Since(start).Seconds(), nil
	}
}
