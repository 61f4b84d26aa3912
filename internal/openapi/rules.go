package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// keywords are the JSON Schema keywords that say the same as a rule of protovalidate. An empty keyword is a rule that
// the generated schema shows already.
var keywords = map[protoreflect.FullName]string{
	"buf.validate.StringRules.min_len":     "minLength",
	"buf.validate.StringRules.max_len":     "maxLength",
	"buf.validate.Int32Rules.gte":          "minimum",
	"buf.validate.Int32Rules.lte":          "maximum",
	"buf.validate.DoubleRules.gte":         "minimum",
	"buf.validate.DoubleRules.lte":         "maximum",
	"buf.validate.RepeatedRules.min_items": "minItems",
	"buf.validate.RepeatedRules.max_items": "maxItems",
	"buf.validate.RepeatedRules.unique":    "uniqueItems",
	"buf.validate.MapRules.max_pairs":      "maxProperties",
	"buf.validate.EnumRules.defined_only":  "",
}

// formats are the rules that are a JSON Schema format.
var formats = map[protoreflect.FullName]string{
	"buf.validate.StringRules.email": "email",
}

// expressions are CEL expressions that JSON Schema can say.
var expressions = map[string]*object{
	"this.matches(r'^https://[^/?#@]+([/?#].*)?$') && this.isUri()":                 newObject("format", "uri", "pattern", "^https://[^/?#@]+([/?#].*)?$"),
	"this == '' || (this.matches(r'^https://[^/?#@]+([/?#].*)?$') && this.isUri())": newObject("pattern", "^(https://[^/?#@]+([/?#].*)?)?$"),
}

var (
	celMatches = regexp.MustCompile(`^this\.matches\(r'(.*)'\)$`)
	celIn      = regexp.MustCompile(`^this in (\[\d+(?:, \d+)*\])$`)

	// A message's rule has the message "field: is …".
	messageOfField = regexp.MustCompile(`^([a-z_]+): (.*)$`)
)

// constrain adds to a schema (or to a parameter, which has the same keywords) what the field's rules say. A rule that
// it cannot translate is an error, a CEL rule that it cannot translate becomes a sentence of the description.
func constrain(schema *object, field protoreflect.FieldDescriptor, rules *validate.FieldRules) error {
	if rules.GetIgnore() == validate.Ignore_IGNORE_ALWAYS {
		return nil
	}
	for _, rule := range rules.GetCel() {
		if err := constrainByExpression(schema, field, rule); err != nil {
			return err
		}
	}
	kind := rules.ProtoReflect().WhichOneof(rules.ProtoReflect().Descriptor().Oneofs().ByName("type"))
	if kind == nil {
		return nil
	}
	set := rules.ProtoReflect().Get(kind).Message()
	for i := range set.Descriptor().Fields().Len() {
		rule := set.Descriptor().Fields().Get(i)
		if !set.Has(rule) {
			continue
		}
		if err := constrainByRule(schema, field, rule, set.Get(rule)); err != nil {
			return err
		}
	}
	return nil
}

func constrainByRule(schema *object, field, rule protoreflect.FieldDescriptor, value protoreflect.Value) error {
	switch rule.FullName() {
	case "buf.validate.RepeatedRules.items":
		items := schema.at("items")
		if items == nil {
			return fmt.Errorf("%s: the schema has no items", field.FullName())
		}
		return constrain(items, field, value.Message().Interface().(*validate.FieldRules))
	case "buf.validate.MapRules.keys":
		for _, rule := range value.Message().Interface().(*validate.FieldRules).GetCel() {
			schema.describe("Keys " + rule.GetMessage() + ".")
		}
		return nil
	case "buf.validate.MapRules.values":
		values := schema.at("additionalProperties")
		if values == nil {
			return fmt.Errorf("%s: the schema has no additionalProperties", field.FullName())
		}
		return constrain(values, field.MapValue(), value.Message().Interface().(*validate.FieldRules))
	}
	if format, ok := formats[rule.FullName()]; ok {
		schema.set("format", format)
		return nil
	}
	keyword, ok := keywords[rule.FullName()]
	if !ok {
		return fmt.Errorf("%s: the rule %s has no translation in keywords", field.FullName(), rule.FullName())
	}
	if keyword == "" {
		return nil
	}
	if flag, ok := value.Interface().(bool); ok {
		schema.set(keyword, flag)
		return nil
	}
	schema.set(keyword, json.Number(fmt.Sprint(value.Interface())))
	return nil
}

func constrainByExpression(schema *object, field protoreflect.FieldDescriptor, rule *validate.Rule) error {
	said := expressions[rule.GetExpression()]
	if match := celMatches.FindStringSubmatch(rule.GetExpression()); match != nil {
		said = newObject("pattern", match[1])
	}
	if match := celIn.FindStringSubmatch(rule.GetExpression()); match != nil && field.Enum() != nil {
		names, err := enumNames(field.Enum(), match[1])
		if err != nil {
			return err
		}
		said = newObject("enum", names)
		// Beside a $ref every other keyword is ignored.
		if ref := schema.get("$ref"); ref != nil {
			schema.remove("$ref")
			schema.set("allOf", []any{newObject("$ref", ref)})
		}
	}
	if said == nil {
		schema.describe(sentence(rule.GetMessage()))
		return nil
	}
	for _, m := range said.members {
		if m.key == "pattern" && schema.get("pattern") != nil {
			return fmt.Errorf("%s: two patterns, and a schema can have one", field.FullName())
		}
		schema.set(m.key, m.value)
	}
	return nil
}

func enumNames(enum protoreflect.EnumDescriptor, list string) ([]any, error) {
	var numbers []protoreflect.EnumNumber
	if err := json.Unmarshal([]byte(list), &numbers); err != nil {
		return nil, err
	}
	var names []any
	for _, number := range numbers {
		value := enum.Values().ByNumber(number)
		if value == nil {
			return nil, fmt.Errorf("%s has no value %d", enum.FullName(), number)
		}
		names = append(names, string(value.Name()))
	}
	return names, nil
}

// sentence makes a sentence of a rule's message: "must be …" or "field: is required …".
func sentence(message string) string {
	if match := messageOfField.FindStringSubmatch(message); match != nil {
		return "`" + match[1] + "` " + match[2] + "."
	}
	return strings.ToUpper(message[:1]) + message[1:] + "."
}

// fieldRules returns the rules of a field; empty when it has none.
func fieldRules(field protoreflect.FieldDescriptor) *validate.FieldRules {
	return proto.GetExtension(field.Options(), validate.E_Field).(*validate.FieldRules)
}

// requiredFields asks protovalidate which fields of a message may not be missing: those that an empty message is
// refused for. So a pattern or a least length that the empty string breaks counts as much as `required`.
func requiredFields(message protoreflect.MessageDescriptor) (map[string]bool, error) {
	err := protovalidate.Validate(dynamicpb.NewMessage(message))
	var broken *protovalidate.ValidationError
	if err == nil {
		return nil, nil
	}
	if !errors.As(err, &broken) {
		return nil, fmt.Errorf("rules of %s: %w", message.FullName(), err)
	}
	required := map[string]bool{}
	for _, violation := range broken.Violations {
		elements := violation.Proto.GetField().GetElements()
		if len(elements) == 1 && message.Fields().ByName(protoreflect.Name(elements[0].GetFieldName())) != nil {
			required[elements[0].GetFieldName()] = true
		}
	}
	return required, nil
}

// constrainMessage adds to a message's definition the rules of its fields, of its oneofs and of the message itself.
func constrainMessage(schema *object, message protoreflect.MessageDescriptor) error {
	required, err := requiredFields(message)
	if err != nil {
		return err
	}
	for i := range message.Fields().Len() {
		field := message.Fields().Get(i)
		property := schema.at("properties", string(field.Name()))
		if property == nil {
			continue // a parameter of the path
		}
		if err := constrain(property, field, fieldRules(field)); err != nil {
			return err
		}
		if required[string(field.Name())] {
			schema.add("required", string(field.Name()))
		}
	}
	for i := range message.Oneofs().Len() {
		if oneof := message.Oneofs().Get(i); !oneof.IsSynthetic() {
			describeOneof(schema, oneof)
		}
	}
	messageRules := proto.GetExtension(message.Options(), validate.E_Message).(*validate.MessageRules)
	for _, rule := range messageRules.GetCel() {
		schema.describe(sentence(rule.GetMessage()))
	}
	return nil
}

func describeOneof(schema *object, oneof protoreflect.OneofDescriptor) {
	var names []string
	for i := range oneof.Fields().Len() {
		names = append(names, "`"+string(oneof.Fields().Get(i).Name())+"`")
	}
	rules := proto.GetExtension(oneof.Options(), validate.E_Oneof).(*validate.OneofRules)
	howMany := "At most"
	if rules.GetRequired() {
		howMany = "Exactly"
	}
	schema.describe(howMany + " one of " + strings.Join(names, ", ") + ".")
	if len(schema.at("properties").members) > len(names) {
		return
	}
	if rules.GetRequired() {
		schema.set("minProperties", json.Number("1"))
	}
	schema.set("maxProperties", json.Number("1"))
}
