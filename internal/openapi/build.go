package main

import (
	_ "embed"
	"fmt"
	"io/fs"
	"strings"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

const apiPackage = "jelou.facade.v1."

// additions are the parts of the document that are the same for many operations: parameters, headers, the form of an
// error's details, and examples of streams.
//
//go:embed additions.json
var additions []byte

// services are in the order of the document.
var services = []protoreflect.ServiceDescriptor{
	facadev1.File_jelou_facade_v1_message_service_proto.Services().Get(0),
	facadev1.File_jelou_facade_v1_notification_service_proto.Services().Get(0),
	facadev1.File_jelou_facade_v1_send_service_proto.Services().Get(0),
	facadev1.File_jelou_facade_v1_batch_service_proto.Services().Get(0),
	facadev1.File_jelou_facade_v1_capacity_service_proto.Services().Get(0),
}

// builder holds the document while it is changed. Definitions have the full names of their messages until rename.
type builder struct {
	document  *object
	additions *object
}

func build(generated []byte, examples fs.FS) ([]byte, error) {
	document, err := parse(generated)
	if err != nil {
		return nil, fmt.Errorf("generated document: %w", err)
	}
	added, err := parse(additions)
	if err != nil {
		return nil, fmt.Errorf("additions.json: %w", err)
	}
	b := &builder{document, added}
	if err := b.definitions(); err != nil {
		return nil, err
	}
	b.errors()
	if err := b.operations(); err != nil {
		return nil, err
	}
	if err := b.closeRequests(); err != nil {
		return nil, err
	}
	if err := b.rename(); err != nil {
		return nil, err
	}
	if err := b.examples(examples); err != nil {
		return nil, err
	}
	return document.print()
}

// definitions adds the rules of every message to its definition.
func (b *builder) definitions() error {
	for _, m := range b.document.at("definitions").members {
		message, err := messageOf(m.key)
		if err != nil {
			return err
		}
		if message == nil {
			continue
		}
		if err := constrainMessage(m.value.(*object), message); err != nil {
			return err
		}
	}
	return nil
}

// messageOf finds the message that a definition shows; none for an enum and for messages of other packages, which
// have no rules. The generator's SomeService.SomeRPCBody is the request without the parameters of the path.
func messageOf(definition string) (protoreflect.MessageDescriptor, error) {
	name, ours := strings.CutPrefix(definition, apiPackage)
	if !ours {
		return nil, nil
	}
	for _, service := range services {
		rpc, ok := strings.CutPrefix(name, string(service.Name())+".")
		if !ok {
			continue
		}
		method := service.Methods().ByName(protoreflect.Name(strings.TrimSuffix(rpc, "Body")))
		if method == nil {
			return nil, fmt.Errorf("definition %s belongs to no RPC", definition)
		}
		return method.Input(), nil
	}
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(definition))
	if err != nil {
		return nil, fmt.Errorf("definition %s: %w", definition, err)
	}
	message, _ := found.(protoreflect.MessageDescriptor)
	return message, nil
}

// binding is one HTTP route of an RPC.
type binding struct {
	method protoreflect.MethodDescriptor
	verb   string
	path   string
	index  int // 0 for the first route of the RPC
}

// bindings lists the routes of all RPCs in the order of the document.
func bindings() ([]binding, error) {
	var all []binding
	for _, service := range services {
		for i := range service.Methods().Len() {
			method := service.Methods().Get(i)
			rule := proto.GetExtension(method.Options(), annotations.E_Http).(*annotations.HttpRule)
			for index, rule := range append([]*annotations.HttpRule{rule}, rule.GetAdditionalBindings()...) {
				route := binding{method: method, index: index}
				switch pattern := rule.GetPattern().(type) {
				case *annotations.HttpRule_Get:
					route.verb, route.path = "get", pattern.Get
				case *annotations.HttpRule_Post:
					route.verb, route.path = "post", pattern.Post
				default:
					return nil, fmt.Errorf("%s: a route that is neither get nor post", method.FullName())
				}
				all = append(all, route)
			}
		}
	}
	return all, nil
}

// rename gives definitions the short names that people use, and drops those that nothing refers to any more.
func (b *builder) rename() error {
	definitions := b.document.at("definitions")
	kept := &object{}
	used, err := b.reachable(b.document.at("paths"))
	if err != nil {
		return err
	}
	for _, m := range definitions.members {
		if !used[m.key] {
			continue
		}
		name := shortName(m.key)
		if kept.get(name) != nil {
			return fmt.Errorf("two definitions are called %s", name)
		}
		kept.set(name, m.value)
	}
	b.document.set("definitions", kept)
	walk(b.document, func(o *object) {
		if name, ok := definitionOf(o); ok {
			o.set("$ref", definitionRef+shortName(name))
		}
	})
	return nil
}

const definitionRef = "#/definitions/"

// definitionOf returns the definition that a schema refers to.
func definitionOf(schema *object) (string, bool) {
	ref, _ := schema.get("$ref").(string)
	return strings.CutPrefix(ref, definitionRef)
}

func shortName(definition string) string {
	name := strings.TrimPrefix(strings.TrimPrefix(definition, apiPackage), "google.rpc.")
	for _, service := range services {
		name = strings.TrimPrefix(name, string(service.Name())+".")
	}
	return name
}

// closeRequests says of the messages that stand in requests only that members which they do not name are refused. Answers may
// grow, and so what stands in both stays open.
func (b *builder) closeRequests() error {
	var requests, answers []any
	for _, path := range b.document.at("paths").members {
		for _, operation := range path.value.(*object).members {
			requests = append(requests, operation.value.(*object).get("parameters"))
			answers = append(answers, operation.value.(*object).get("responses"))
		}
	}
	asked, err := b.reachable(requests)
	if err != nil {
		return err
	}
	answered, err := b.reachable(answers)
	if err != nil {
		return err
	}
	for _, m := range b.document.at("definitions").members {
		if definition := m.value.(*object); asked[m.key] && !answered[m.key] && definition.get("type") == "object" {
			definition.set("additionalProperties", false)
		}
	}
	return nil
}

// reachable returns the definitions that a part of the document refers to, directly or through others.
func (b *builder) reachable(part any) (map[string]bool, error) {
	used := map[string]bool{}
	var missing error
	var follow func(any)
	follow = func(from any) {
		walk(from, func(o *object) {
			name, ok := definitionOf(o)
			if !ok || used[name] {
				return
			}
			used[name] = true
			if definition := b.document.at("definitions", name); definition != nil {
				follow(definition)
			} else {
				missing = fmt.Errorf("no definition is called %s", name)
			}
		})
	}
	follow(part)
	return used, missing
}
