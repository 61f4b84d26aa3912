package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// secondRoutes names and describes the routes of an RPC after its first one.
var secondRoutes = map[string]*object{
	"/v1/batches/{batch_id}/sends": newObject(
		"operationId", "ListBatchSends",
		"summary", "Lists the sends of a batch in the order of their sequence. Filters are joined by AND."),
}

// sends are the RPCs that put a request to Jelou into the queue, and so answer how much of the allowance is left.
var sends = []protoreflect.Name{"SendMessage", "SendNotification"}

// operations completes every operation, in the order of the services.
func (b *builder) operations() error {
	routes, err := bindings()
	if err != nil {
		return err
	}
	b.document.set("parameters", b.additions.at("parameters"))
	b.errorResponses()
	paths := &object{}
	for _, route := range routes {
		operation := b.document.at("paths", route.path, route.verb)
		if operation == nil {
			return fmt.Errorf("%s: %s %s is not in the generated document", route.method.FullName(), route.verb, route.path)
		}
		if err := b.operation(operation, route); err != nil {
			return err
		}
		if paths.get(route.path) == nil {
			paths.set(route.path, &object{})
		}
		paths.at(route.path).set(route.verb, operation)
	}
	if generated := b.document.at("paths"); len(generated.members) != len(paths.members) {
		return fmt.Errorf("the generated document has %d paths, the services have %d", len(generated.members), len(paths.members))
	}
	b.document.set("paths", paths)
	return nil
}

func (b *builder) operation(operation *object, route binding) error {
	if route.index > 0 {
		named := secondRoutes[route.path]
		if named == nil {
			return fmt.Errorf("%s: the route %s needs an operation id in secondRoutes", route.method.FullName(), route.path)
		}
		for _, m := range named.members {
			operation.set(m.key, m.value)
		}
	}
	if err := constrainParameters(operation, route.method.Input()); err != nil {
		return err
	}
	b.body(operation)
	b.streams(operation, route.method)
	b.requestHeaders(operation, route)
	b.responseHeaders(operation, route.method)
	responses := operation.at("responses")
	others := responses.get("default")
	responses.remove("default")
	for _, code := range errorCodes(route) {
		responses.set(code, newObject("$ref", "#/responses/"+code))
	}
	responses.set("default", others)
	return nil
}

// callsJelou are the RPCs whose answer may be a refusal by Jelou, with any status that Jelou thinks of.
var callsJelou = append(slices.Clone(sends), "GetNotification", "ListNotifications")

// errorCodes are the HTTP statuses of an operation's errors.
func errorCodes(route binding) []string {
	codes := []string{"400", "401", "403", "404", "429", "500", "503", "504"}
	if route.verb == "post" {
		codes = append(codes, "413")
	}
	if slices.Contains(callsJelou, route.method.Name()) || route.method.IsStreamingClient() {
		codes = append(codes, "409")
	}
	slices.Sort(codes)
	return codes
}

// errorResponses adds the errors that operations refer to, each with an example of its details.
func (b *builder) errorResponses() {
	responses := b.additions.at("responses")
	for _, m := range responses.members {
		names := []string{"X-Request-Id"}
		switch m.key {
		case "401":
			names = append(names, "WWW-Authenticate")
		case "429":
			names = append(names, "RateLimit-Policy", "RateLimit", "Retry-After")
		case "503":
			names = append(names, "Retry-After")
		}
		response := m.value.(*object)
		response.set("schema", newObject("$ref", definitionRef+fullName(&facadev1.ErrorResponse{})))
		response.set("headers", b.headers(names))
	}
	b.document.set("responses", responses)
}

// constrainParameters adds the rules to the parameters in path and query.
func constrainParameters(operation *object, request protoreflect.MessageDescriptor) error {
	parameters, _ := operation.get("parameters").([]any)
	for _, p := range parameters {
		parameter := p.(*object)
		if parameter.get("in") == "body" {
			continue
		}
		// A map is shown as labels[string].
		name, _, isMap := strings.Cut(parameter.get("name").(string), "[")
		field := request.Fields().ByName(protoreflect.Name(name))
		if field == nil {
			return fmt.Errorf("%s has no field for the parameter %s", request.FullName(), name)
		}
		if isMap {
			parameter.describe("One parameter for each key, such as `" + name + "[app]=shop`; at most " +
				fmt.Sprint(fieldRules(field).GetMap().GetMaxPairs()) + ".")
			if err := constrain(parameter, field.MapValue(), fieldRules(field).GetMap().GetValues()); err != nil {
				return err
			}
			continue
		}
		if err := constrain(parameter, field, fieldRules(field)); err != nil {
			return err
		}
	}
	return nil
}

// body says that a request may do without one where no member is required: an empty body is an empty message.
func (b *builder) body(operation *object) {
	parameters, _ := operation.get("parameters").([]any)
	for _, p := range parameters {
		parameter := p.(*object)
		if parameter.get("in") != "body" {
			continue
		}
		if name, ok := definitionOf(parameter.at("schema")); ok && b.document.at("definitions", name).get("required") == nil {
			parameter.set("required", false)
		}
	}
}

// streams shows what a stream is over REST: one JSON object a line, each with exactly one member.
func (b *builder) streams(operation *object, method protoreflect.MethodDescriptor) {
	if method.IsStreamingClient() {
		operation.set("consumes", []any{"application/x-ndjson"})
		body := operation.get("parameters").([]any)[0].(*object)
		body.set("required", true)
		body.set("description", "One "+string(method.Input().Name())+" a line: first `open`, then an `item` a line, last `seal`.")
		body.set("x-examples", newObject("upload", b.additions.at("uploads").get(string(method.Name()))))
	}
	if !method.IsStreamingServer() {
		return
	}
	line := string(method.Name()) + "Line"
	answer := b.document.at("definitions", string(method.Output().FullName()))
	schema := newObject("type", "object", "properties", answer.at("properties").clone())
	schema.at("properties").set("error", newObject("$ref", definitionRef+fullName(&facadev1.ErrorResponse_Error{})))
	schema.set("minProperties", json.Number("1"))
	schema.set("maxProperties", json.Number("1"))
	schema.set("description", "One line of the stream; exactly one member. After `error` comes no more.")
	b.document.at("definitions").set(line, schema)

	operation.set("produces", []any{"application/x-ndjson", "text/event-stream", "application/json"})
	ok := operation.at("responses", "200")
	ok.set("description", "A stream of lines, each one of these objects. With `Accept: text/event-stream` they are server-sent "+
		"events: `event` is the object's one member, `data` its value, `id` the cursor of a result. "+
		"A stream that ends without a last line `end` or `error` was cut. What is refused before its first line is answered as application/json.")
	ok.set("schema", newObject("$ref", definitionRef+line))
	if examples := b.additions.at("streams", string(method.Name())); examples != nil {
		ok.set("examples", examples)
	}
}

// requestHeaders adds the headers that an operation reads.
func (b *builder) requestHeaders(operation *object, route binding) {
	names := []string{"Grpc-Timeout", "X-Request-Id"}
	if slices.Contains(sends, route.method.Name()) {
		names = append(names, "Idempotency-Key")
	}
	if route.method.IsStreamingServer() && route.verb == "get" && route.method.Input().Fields().ByName("after_cursor") != nil {
		names = append(names, "Last-Event-ID")
		operation.at("responses").set("204", newObject("description", "Last-Event-ID is the end of the batch: an EventSource stops here."))
	}
	for _, name := range names {
		operation.add("parameters", newObject("$ref", "#/parameters/"+name))
	}
}

// responseHeaders adds the headers that an operation answers.
func (b *builder) responseHeaders(operation *object, method protoreflect.MethodDescriptor) {
	for _, response := range operation.at("responses").members {
		names := []string{"X-Request-Id"}
		if slices.Contains(sends, method.Name()) {
			names = append(names, "RateLimit-Policy", "RateLimit")
		}
		if response.key == "default" {
			names = append(names, "Retry-After", "WWW-Authenticate")
		}
		response.value.(*object).set("headers", b.headers(names))
	}
}

// headers describes the response headers of these names.
func (b *builder) headers(names []string) *object {
	headers := &object{}
	for _, name := range names {
		headers.set(name, b.additions.at("headers", name))
	}
	return headers
}

// errors shows the details of an error in the form that they have in JSON, in place of ErrorDetails, which is never sent.
func (b *builder) errors() {
	definitions := b.document.at("definitions")
	detail := b.additions.at("definitions", "ErrorDetail")
	var reasons []string
	values := facadev1.ErrorReason(0).Descriptor().Values()
	for i := 1; i < values.Len(); i++ {
		reasons = append(reasons, string(values.Get(i).Name()))
	}
	detail.at("properties", "reason").describe("Known today: " + strings.Join(reasons, ", ") + ".")
	definitions.set("ErrorDetail", detail)
	for _, message := range []protoreflect.ProtoMessage{&facadev1.ErrorResponse_Error{}, &status.Status{}} {
		definition := definitions.at(fullName(message))
		definition.at("properties", "details").set("items", newObject("$ref", definitionRef+"ErrorDetail"))
	}
}

func fullName(message protoreflect.ProtoMessage) string {
	return string(message.ProtoReflect().Descriptor().FullName())
}
