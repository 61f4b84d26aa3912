package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/jelou-facade/jelou-facade/clients/exchange"
)

// scenarioFile is relative to the root of the repository, where this command runs.
const scenarioFile = "clients/scenarios.json"

// file is scenarios.json.
type file struct {
	World     worldSpec  `json:"world"`
	Scenarios []scenario `json:"scenarios"`
}

// worldSpec is what the scenarios are played in.
type worldSpec struct {
	// Simulator is a configuration of jelousim.
	Simulator json.RawMessage `json:"simulator"`
	// Companies and Bounds are the server's; see the configuration's schema.
	Companies []companySpec   `json:"companies"`
	Bounds    json.RawMessage `json:"bounds"`
	// Keys are the callers that get an API key, made by `jelou-facade caller new`: ${NAME.key} and ${NAME.sha256}.
	Keys []string `json:"keys"`
	// Servers are what else each server's configuration has, by the server's name. Files are those of identities.
	Servers map[string]json.RawMessage `json:"servers"`
}

// companySpec is a company of the server. Its credential at Jelou is its id, twice.
type companySpec struct {
	ID        string          `json:"id"`
	Bots      []string        `json:"bots"`
	Allowance json.RawMessage `json:"allowance,omitempty"`
	// BaseURL in place of the simulator's.
	BaseURL string `json:"base_url,omitempty"`
	// Answer is what its Jelou answers to everything; nil: it is the simulator.
	Answer *struct {
		Status int             `json:"status"`
		Body   json.RawMessage `json:"body"`
	} `json:"answer,omitempty"`
}

// scenario is a series of steps and how many messages reach users by it.
type scenario struct {
	Name string `json:"name"`
	// Sent is the number of sends that Jelou accepted in the scenario.
	Sent int `json:"sent"`
	// Only this client plays it; empty: all.
	Only  string `json:"only"`
	Steps []step `json:"steps"`
}

func (s scenario) runsOn(l language) bool { return s.Only == "" || s.Only == l.name }

// step is one thing that is done. Exactly one of the first group is set.
type step struct {
	Call    string          `json:"call"`    // Service/Method of jelou.facade.v1
	Wait    string          `json:"wait"`    // for the end of a background call
	Await   string          `json:"await"`   // a background call's Message
	HTTP    *exchange.HTTP  `json:"http"`    // a request beside the OpenAPI document
	Faults  json.RawMessage `json:"faults"`  // for the simulator to play
	Inbound json.RawMessage `json:"inbound"` // a message from a user to the simulator
	Arrived int             `json:"arrived"` // requests at Jelou: waits for as many
	Cut     bool            `json:"cut"`     // cuts all connections to the server
	Stop    string          `json:"stop"`    // this server
	Backup  string          `json:"backup"`  // this server's ledger
	Restore string          `json:"restore"` // this server's ledger from its backup

	Message string `json:"message"` // of Await: opened, ack, result, progress or end

	Request     json.RawMessage   `json:"request"`
	Requests    []json.RawMessage `json:"requests"`
	Example     string            `json:"example"`      // the request is this file of examples/
	Server      string            `json:"server"`       // main when empty
	Answer      json.RawMessage   `json:"answer"`       // of the server stand-in
	Timeout     string            `json:"timeout"`      // as 500ms; the client's own when empty
	Metadata    map[string]string `json:"metadata"`     // sent along
	TLS         *exchange.TLS     `json:"tls"`          // of the connection, by files of identities
	Bare        bool              `json:"bare"`         // without what the client does by itself
	KeepOpen    bool              `json:"keep_open"`    // a stream's upload
	CancelAfter map[string]int    `json:"cancel_after"` // messages of a stream
	Background  string            `json:"background"`   // does not wait for the end, but calls it so
	Until       map[string]string `json:"until"`        // the call is repeated until these paths of the answer have these values
	Expect      expectation       `json:"expect"`
	Save        map[string]string `json:"save"` // variables from paths of the answer; of a stream: opened.0.batch_id
}

// expectation is what has to come; what is not set is not looked at.
type expectation struct {
	Code     string            `json:"code"` // OK when empty
	Reason   string            `json:"reason"`
	Domain   string            `json:"domain"`
	Metadata map[string]string `json:"metadata"` // "*" is any value
	Fields   []string          `json:"fields"`
	Retry    *bool             `json:"retry"` // whether there is a RetryInfo
	HTTP     int               `json:"http"`
	// Answer is a part of the one message that comes, Messages of a stream's, by their kind: all results in the order of their
	// sequence. "*" is any value that is not empty; a zero may be missing.
	Answer   json.RawMessage            `json:"answer"`
	Messages map[string]json.RawMessage `json:"messages"`
}

// readFile reads the scenarios and refuses names that it does not know.
func readFile(name string) (*file, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var f file
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&f); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	seen := map[string]bool{}
	for _, s := range f.Scenarios {
		if seen[s.Name] {
			return nil, fmt.Errorf("%s: two scenarios are called %q", name, s.Name)
		}
		seen[s.Name] = true
	}
	return &f, nil
}

// command is the runner's part of a step.
func (s step) command(vars variables) (exchange.Command, error) {
	c := exchange.Command{
		Bare: s.Bare, KeepOpen: s.KeepOpen, CancelAfter: s.CancelAfter, HTTP: s.HTTP, TLS: s.TLS, Metadata: map[string]string{},
	}
	for name, value := range s.Metadata {
		c.Metadata[name] = string(vars.fill(json.RawMessage(value)))
	}
	if s.Timeout != "" {
		timeout, err := time.ParseDuration(s.Timeout)
		if err != nil {
			return c, err
		}
		c.TimeoutMS = timeout.Milliseconds()
	}
	if s.HTTP != nil {
		return c, nil
	}
	c.RPC = "jelou.facade.v1." + s.Call
	requests := s.Requests
	switch {
	case s.Example != "":
		text, err := os.ReadFile(filepath.Join("examples", s.Example))
		if err != nil {
			return c, err
		}
		requests = []json.RawMessage{text}
	case s.Request != nil:
		requests = []json.RawMessage{s.Request}
	}
	if len(requests) == 0 {
		return c, errors.New("a call needs request, requests or example")
	}
	for _, request := range requests {
		c.Requests = append(c.Requests, vars.fill(request))
	}
	return c, nil
}
