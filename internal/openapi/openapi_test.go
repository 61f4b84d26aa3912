package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/go-openapi/loads"
	"github.com/go-openapi/strfmt"
	"github.com/go-openapi/validate"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	rules "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
)

const (
	generatedFile = "../../gen/openapi/api.swagger.json"
	examplesDir   = "../../examples"
	documentFile  = "../../service/openapi.json"
)

func TestDocumentIsUpToDate(t *testing.T) {
	generated := mustRead(t, generatedFile)
	want, err := build(generated, os.DirFS(examplesDir))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, mustRead(t, documentFile)) {
		t.Errorf("%s is not what the generator makes now: run make generate", documentFile)
	}
}

// TestDocumentIsSwagger2 checks the document against the schema of Swagger 2.0, and its references.
func TestDocumentIsSwagger2(t *testing.T) {
	document, err := loads.Analyzed(mustRead(t, documentFile), "2.0")
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Spec(document, strfmt.Default); err != nil {
		t.Error(err)
	}
}

// TestExamplesObeySchemas checks the examples of requests and errors against the schemas that stand beside them, and that no
// request that has members lacks one.
func TestExamplesObeySchemas(t *testing.T) {
	document, err := loads.Analyzed(mustRead(t, documentFile), "2.0")
	if err != nil {
		t.Fatal(err)
	}
	if document, err = document.Expanded(); err != nil {
		t.Fatal(err)
	}
	for path, item := range document.Spec().Paths.Paths {
		if item.Post == nil {
			continue
		}
		for _, parameter := range item.Post.Parameters {
			if parameter.In != "body" || len(parameter.Schema.Properties) == 0 {
				continue
			}
			if parameter.Schema.Example == nil {
				t.Errorf("%s has no example", path)
			} else if err := validate.AgainstSchema(parameter.Schema, parameter.Schema.Example, strfmt.Default); err != nil {
				t.Errorf("example of %s: %v", path, err)
			}
		}
	}
	for code, response := range document.Spec().Responses {
		if err := validate.AgainstSchema(response.Schema, response.Examples["application/json"], strfmt.Default); err != nil {
			t.Errorf("example of %s: %v", code, err)
		}
	}
	for _, source := range exampleFolders {
		for _, parameter := range document.Spec().Paths.Paths[source.path].Post.Parameters {
			if parameter.In != "body" {
				continue
			}
			examples := parameter.Extensions["x-examples"].(map[string]any)
			if len(examples) == 0 {
				t.Errorf("%s has no examples", source.path)
			}
			for name, example := range examples {
				if err := validate.AgainstSchema(parameter.Schema, example, strfmt.Default); err != nil {
					t.Errorf("%s/%s.json: %v", source.folder, name, err)
				}
			}
		}
	}
}

// TestDocument looks at one place for each thing that the generator leaves out.
func TestDocument(t *testing.T) {
	document, err := parse(mustRead(t, documentFile))
	if err != nil {
		t.Fatal(err)
	}
	definition := func(path ...string) *object { return document.at(append([]string{"definitions"}, path...)...) }
	send := []string{"paths", "/v1/bots/{bot_id}/messages", "post"}
	watch := []string{"paths", "/v1/batches/{batch_id}:watch", "get"}
	for _, test := range []struct {
		name string
		at   *object
		key  string
		want string
	}{
		{"longest text", definition("TextContent", "properties", "text"), "maxLength", `4096`},
		{"shortest text", definition("ListContent.Option", "properties", "id"), "minLength", `1`},
		{"pattern from a CEL rule", definition("BatchSpec", "properties", "bot_id"), "pattern", `"^\\+?[A-Za-z0-9._-]{1,128}$"`},
		{"pattern of items", definition("TemplateMessage", "properties", "destinations", "items"), "pattern", `"^(\\+?[0-9]{5,15}(@c\\.us)?|[A-Za-z0-9._:-]{0,127}[A-Za-z._:-][A-Za-z0-9._:-]*)$"`},
		{"pattern of a map's values", definition("SendOptions", "properties", "labels", "additionalProperties"), "pattern", `"^[^\\x00-\\x1f\\x7f]{0,128}$"`},
		{"most pairs", definition("SendOptions", "properties", "labels"), "maxProperties", `16`},
		{"fewest items", definition("CarouselContent", "properties", "cards"), "minItems", `2`},
		{"most items", definition("QuickRepliesContent", "properties", "replies"), "maxItems", `3`},
		{"range", definition("LocationContent", "properties", "latitude"), "minimum", `-90`},
		{"format of a URL", definition("ImageContent", "properties", "media_url"), "format", `"uri"`},
		{"format of an e-mail address", definition("ContactsContent.Contact.Email", "properties", "email"), "format", `"email"`},
		{"some values of an enum", definition("ResolveSendBody", "properties", "state"), "enum", `["SENT","FAILED"]`},
		{"required, also by a pattern", definition("SendMessageBody"), "required", `["user_id","message"]`},
		{"exactly one content", definition("Message"), "maxProperties", `1`},
		{"example of a kind", definition("TextContent", "example"), "text", `"Hola Lucía, su pedido 8841 salió de bodega. Llega hoy entre las 15:00 y las 17:00."`},
		{"example of a kind without a definition", definition("Message", "properties", "raw", "example"), "type", `"text"`},
		{"details of an error", definition("ErrorResponse.Error", "properties", "details", "items"), "$ref", `"#/definitions/ErrorDetail"`},
		{"error of a stored send", definition("Status", "properties", "details", "items"), "$ref", `"#/definitions/ErrorDetail"`},
		{"lines of a stream", document.at(append(watch, "responses", "200", "schema")...), "$ref", `"#/definitions/WatchBatchLine"`},
		{"types of a stream", document.at(watch...), "produces", `["application/x-ndjson","text/event-stream","application/json"]`},
		{"lines of an upload", document.at("paths", "/v1/batches:stream", "post"), "consumes", `["application/x-ndjson"]`},
		{"error in a stream", definition("WatchBatchLine", "properties", "error"), "$ref", `"#/definitions/ErrorResponse.Error"`},
		{"second route", document.at("paths", "/v1/batches/{batch_id}/sends", "get"), "operationId", `"ListBatchSends"`},
		{"one error", document.at(append(send, "responses", "429")...), "$ref", `"#/responses/429"`},
		{"when to come back", document.at("responses", "503", "headers", "Retry-After"), "type", `"integer"`},
		{"unknown members of a request", definition("CreateBatchRequest"), "additionalProperties", `false`},
		{"unknown members of an answer", definition("SendOptions"), "additionalProperties", `null`},
		{"values of a map in the query", document.at("paths", "/v1/sends", "get").get("parameters").([]any)[9].(*object), "pattern", `"^[^\\x00-\\x1f\\x7f]{0,128}$"`},
		{"every other error", document.at(append(send, "responses", "default", "schema")...), "$ref", `"#/definitions/ErrorResponse"`},
		{"header of a refusal", document.at(append(send, "responses", "default", "headers", "Retry-After")...), "type", `"integer"`},
		{"header of a send", document.at(append(send, "responses", "200", "headers", "RateLimit")...), "type", `"string"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.at == nil {
				t.Fatal("the place is not in the document")
			}
			var got bytes.Buffer
			encoder := json.NewEncoder(&got)
			encoder.SetEscapeHTML(false)
			if err := encoder.Encode(test.at.get(test.key)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, strings.TrimSpace(got.String())); diff != "" {
				t.Errorf("%s (-want +got):\n%s", test.key, diff)
			}
		})
	}
}

// TestUnknownRule holds that a rule which nobody translated stops the generation.
func TestUnknownRule(t *testing.T) {
	suffix := &rules.FieldRules{Type: &rules.FieldRules_String_{String_: &rules.StringRules{Suffix: proto.String(".ec")}}}
	field := (&descriptorpb.FieldDescriptorProto{}).ProtoReflect().Descriptor().Fields().ByName("name")
	err := constrain(&object{}, field, suffix)
	if err == nil || !strings.Contains(err.Error(), "buf.validate.StringRules.suffix") {
		t.Errorf("error %v, want one that names the rule", err)
	}
}

func TestObjectKeepsOrder(t *testing.T) {
	const text = "{\n  \"b\": [\n    1.50,\n    {}\n  ],\n  \"a\": \"<é>\"\n}\n"
	parsed, err := parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	printed, err := parsed.print()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(text, string(printed)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func mustRead(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
