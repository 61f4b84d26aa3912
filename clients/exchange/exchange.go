// Package exchange is what the orchestrator in clients/run and the runner of a language say to each other: one JSON object a line,
// commands to the runner's standard input, replies from its standard output. A runner carries commands out side by side.
package exchange

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// Command asks a runner for one call.
type Command struct {
	ID int `json:"id"`
	// Address of the server: host:port for gRPC, a base URL for REST.
	Address string `json:"address"`
	// TLS of the connection; nil: none.
	TLS *TLS `json:"tls,omitempty"`
	// RPC as jelou.facade.v1.Service/Method.
	RPC string `json:"rpc,omitempty"`
	// Requests as proto JSON: one, or for StreamBatch all in order.
	Requests []json.RawMessage `json:"requests,omitempty"`
	// KeepOpen leaves the stream's upload open after the last request.
	KeepOpen bool `json:"keep_open,omitempty"`
	// CancelAfter has the runner cancel a stream after so many messages of each kind; nil: never.
	CancelAfter map[string]int `json:"cancel_after,omitempty"`
	// TimeoutMS is the call's deadline. Zero: the client's own.
	TimeoutMS int64 `json:"timeout_ms,omitempty"`
	// Metadata to send along, as headers over REST.
	Metadata map[string]string `json:"metadata,omitempty"`
	// Bare leaves out what the client does by itself: request_id, retries, deadline.
	Bare bool `json:"bare,omitempty"`
	// Repeat is how often a unary call is made, with one of Requests after the other, and Concurrency how many at a time, to
	// measure. Zero: once.
	Repeat      int `json:"repeat,omitempty"`
	Concurrency int `json:"concurrency,omitempty"`
	// HTTP is a request beside the OpenAPI document, for the REST runner only.
	HTTP *HTTP `json:"http,omitempty"`
}

// TLS names PEM files.
type TLS struct {
	CA string `json:"ca"`
	// Cert and Key are the client's own; empty: none.
	Cert string `json:"cert,omitempty"`
	Key  string `json:"key,omitempty"`
}

// HTTP is a request as it is.
type HTTP struct {
	Method      string `json:"method"`
	Path        string `json:"path"`
	ContentType string `json:"content_type,omitempty"`
	Body        string `json:"body,omitempty"`
}

// Reply is something that a command came to: any number of messages, then a status; or seconds, when it was repeated.
type Reply struct {
	ID      int             `json:"id"`
	Message json.RawMessage `json:"message,omitempty"` // proto JSON with snake_case names
	Status  *Status         `json:"status,omitempty"`
	Seconds float64         `json:"seconds,omitempty"`
}

// Status is how a call ended, with the details that a client reads.
type Status struct {
	Code     string            `json:"code"` // the name of the gRPC code
	Message  string            `json:"message,omitempty"`
	Reason   string            `json:"reason,omitempty"`
	Domain   string            `json:"domain,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Fields   []string          `json:"fields,omitempty"` // of BadRequest
	// RetryDelayMS is RetryInfo's; nil: no RetryInfo.
	RetryDelayMS *int64 `json:"retry_delay_ms,omitempty"`
	// HTTP is the HTTP status, over REST only.
	HTTP int `json:"http,omitempty"`
}

// Serve carries out all commands of in side by side and returns when in has ended and they have. Replies go to out, one at a time.
func Serve(in io.Reader, out io.Writer, carryOut func(Command, func(Reply))) error {
	var mu sync.Mutex
	encoder := json.NewEncoder(out)
	lines := bufio.NewReader(in)
	var running sync.WaitGroup
	defer running.Wait()
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var c Command
		if err := json.Unmarshal(line, &c); err != nil {
			return fmt.Errorf("command: %w", err)
		}
		running.Go(func() {
			carryOut(c, func(r Reply) {
				r.ID = c.ID
				mu.Lock()
				defer mu.Unlock()
				_ = encoder.Encode(r) // fails only when the orchestrator has left
			})
		})
	}
}
