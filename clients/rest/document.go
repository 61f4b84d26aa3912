package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/go-openapi/loads"
	"github.com/go-openapi/spec"
	"github.com/go-openapi/strfmt"
	"github.com/go-openapi/validate"
)

// document is the OpenAPI document with its references resolved.
type document struct{ *loads.Document }

func readDocument(name string) (document, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return document{}, err
	}
	d, err := loads.Analyzed(data, "2.0")
	if err != nil {
		return document{}, err
	}
	d, err = d.Expanded()
	return document{d}, err
}

// operation is a route with what the document says about it.
type operation struct {
	*spec.Operation
	method, path string
}

// find returns the operation that is called like the RPC.
func (d document) find(rpc string) (operation, error) {
	_, name, _ := strings.Cut(rpc, "/")
	for path, item := range d.Spec().Paths.Paths {
		for method, o := range map[string]*spec.Operation{http.MethodGet: item.Get, http.MethodPost: item.Post} {
			if o != nil && o.ID == name {
				return operation{o, method, path}, nil
			}
		}
	}
	return operation{}, fmt.Errorf("the document has no operation %s", name)
}

// place puts the fields of a request where the document says: into the path and the query; what is left is the body.
func (o operation) place(fields map[string]any) (target string, body map[string]any) {
	places := map[string]spec.Parameter{}
	for _, p := range o.Parameters {
		name, _, _ := strings.Cut(p.Name, "[") // a map is labels[string]
		places[name] = p
	}
	path, query, body := o.path, url.Values{}, map[string]any{}
	for name, value := range fields {
		switch places[name].In {
		case "path":
			path = strings.ReplaceAll(path, "{"+name+"}", url.PathEscape(fmt.Sprint(value)))
		case "query":
			addQuery(query, name, value)
		default:
			body[name] = value
		}
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return path, body
}

func addQuery(query url.Values, name string, value any) {
	switch value := value.(type) {
	case []any:
		for _, element := range value {
			query.Add(name, fmt.Sprint(element))
		}
	case map[string]any:
		for key, element := range value {
			query.Add(name+"["+key+"]", fmt.Sprint(element))
		}
	default:
		query.Add(name, fmt.Sprint(value))
	}
}

// accepts is the Content-Type that an operation reads, streams whether it answers lines.
func (o operation) accepts() string {
	if len(o.Consumes) > 0 {
		return o.Consumes[0]
	}
	return "application/json"
}

func (o operation) streams() bool {
	return len(o.Produces) > 0 && o.Produces[0] == "application/x-ndjson"
}

// hasHeader reports whether an operation reads a header.
func (o operation) hasHeader(name string) bool {
	for _, p := range o.Parameters {
		if p.In == "header" && p.Name == name {
			return true
		}
	}
	return false
}

// check compares an answer, or a line of one, with its schema.
func (o operation) check(status int, text []byte) error {
	response := o.Responses.Default
	if r, ok := o.Responses.StatusCodeResponses[status]; ok {
		response = &r
	}
	if response == nil || response.Schema == nil {
		return fmt.Errorf("the document does not have the answer %d of %s", status, o.ID)
	}
	var value any
	if err := json.Unmarshal(text, &value); err != nil {
		return fmt.Errorf("answer %d of %s: %w", status, o.ID, err)
	}
	if err := validate.AgainstSchema(response.Schema, value, strfmt.Default); err != nil {
		return fmt.Errorf("answer %d of %s breaks its schema: %w", status, o.ID, err)
	}
	return nil
}
