// Package canary plants values in requests that stand nowhere else, and searches for them where nothing personal may be: in
// logs, traces, metrics, errors, databases. It is for tests. Every canary of a sort begins alike, so that a search finds those that
// another test or another process planted, too.
package canary

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
)

// How canaries begin. They are lower-case letters and digits, which no encoding of JSON, URLs or YAML changes, and short: the
// least field that holds text has 20 characters.
const (
	Word   = "kanary7q"   // of what nobody may see
	Number = "9994376531" // of phone numbers: no country has the code 999

	// Of what is no secret to the database, in which it is looked up, but to everything else:
	Label = "labell7q"   // labels and request ids
	Bot   = "9994376532" // bots that are phone numbers
)

var planted atomic.Int64

// Planted is how many canaries this process has made.
func Planted() int64 { return planted.Load() }

// NewWord is a text that nothing else has; it is a word in every alphabet of names, ids and templates.
func NewWord() string { return fmt.Sprintf("%s%05d", Word, planted.Add(1)) }

// NewNumber is a phone number that nobody has.
func NewNumber() string { return fmt.Sprintf("%s%05d", Number, planted.Add(1)%100_000) }

// NewLabel is a label or a request id.
func NewLabel() string { return fmt.Sprintf("%s%05d", Label, planted.Add(1)) }

// shapes are what fields have instead of a word, by the id of their rule or by their name.
var shapes = map[string]func() string{
	"media_url":   newURL,
	"url":         newURL,
	"recipient":   NewNumber,
	"phone.e164":  func() string { return "+" + NewNumber() },
	"request_id":  NewLabel,
	"label.key":   NewLabel,
	"label.value": NewLabel,
	// A name for people, which says in the API that it is not for personal data.
	"jelou.facade.v1.BatchSpec.display_name": NewLabel,
}

func newURL() string {
	return "https://" + NewWord() + ".example.ec/" + NewWord() + "?token=" + NewWord()
}

// Allowed are the fields without a canary, by the id of their rule, and why they may show up.
var Allowed = map[string]string{
	"bot_id":       "it names a bot of the configuration; one that is a phone number begins with Bot",
	"element_name": "it names a template that the company registered with WhatsApp",
	"language":     "it has no room: a code of two letters",
	"country_code": "it has no room: a code of two letters",
	"reason":       "it is a name of an enum",
}

// Plant replaces every text of a message by a canary and leaves its shape as it is. It returns the paths of the fields.
func Plant(m proto.Message) []string { return visit(m.ProtoReflect(), "", false) }

// Fill is Plant, and gives what is absent a canary, too: fields, list items and map entries. The message stays valid.
func Fill(m proto.Message) []string { return visit(m.ProtoReflect(), "", true) }

func visit(m protoreflect.Message, path string, fill bool) (paths []string) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !m.Has(f) && (!fill || !fits(m, f)) {
			continue
		}
		at := strings.TrimPrefix(path+"."+f.TextName(), ".")
		rules, _ := proto.GetExtension(f.Options(), validate.E_Field).(*validate.FieldRules)
		switch {
		case f.IsMap():
			key, value := NewLabel(), NewLabel()
			m.Clear(f)
			m.Mutable(f).Map().Set(protoreflect.ValueOfString(key).MapKey(), protoreflect.ValueOfString(value))
			paths = append(paths, at)
		case f.IsList():
			paths = append(paths, visitList(m.Mutable(f).List(), f, rules, at, fill)...)
		case f.Message() != nil:
			had := m.Has(f)
			inside := visitMessage(m.Mutable(f).Message(), at, fill)
			if !had && len(inside) == 0 { // it has no text
				m.Clear(f)
			}
			paths = append(paths, inside...)
		default:
			if v, ok := value(f, rules); ok {
				m.Set(f, v)
				paths = append(paths, at)
			}
		}
	}
	return paths
}

// fits reports whether an absent field may be set.
func fits(m protoreflect.Message, f protoreflect.FieldDescriptor) bool {
	if f.Message() != nil && !f.IsMap() && strings.HasPrefix(string(f.Message().FullName()), "google.protobuf.") {
		return f.Message().FullName() == "google.protobuf.Struct" && f.ContainingOneof() == nil
	}
	if one := f.ContainingOneof(); one != nil && !one.IsSynthetic() {
		return m.WhichOneof(one) == nil && one.Fields().Get(0) == f
	}
	if f.FullName() == "jelou.facade.v1.BatchItem.user_id" { // notifications have destinations
		return !m.Has(m.Descriptor().Fields().ByName("notification"))
	}
	return true
}

func visitList(list protoreflect.List, f protoreflect.FieldDescriptor, rules *validate.FieldRules, path string, fill bool) (paths []string) {
	had := list.Len()
	if fill {
		for n := max(1, int(rules.GetRepeated().GetMinItems())); list.Len() < n; {
			list.Append(list.NewElement())
		}
	}
	for i := range list.Len() {
		at := fmt.Sprintf("%s[%d]", path, i)
		if f.Message() != nil {
			paths = append(paths, visitMessage(list.Get(i).Message(), at, fill)...)
		} else if v, ok := value(f, rules.GetRepeated().GetItems()); ok {
			list.Set(i, v)
			paths = append(paths, at)
		}
	}
	if len(paths) == 0 { // of numbers, or of names that stay
		list.Truncate(had)
	}
	return paths
}

func visitMessage(m protoreflect.Message, path string, fill bool) []string {
	switch own := m.Interface().(type) {
	case *structpb.Struct:
		return visitStruct(own, path, fill)
	default:
		if strings.HasPrefix(string(m.Descriptor().FullName()), "google.protobuf.") {
			return nil // times
		}
		return visit(m, path, fill)
	}
}

// visitStruct leaves the member `type` at the top, which names a kind.
func visitStruct(s *structpb.Struct, path string, fill bool) (paths []string) {
	if fill {
		if s.Fields == nil {
			s.Fields = map[string]*structpb.Value{}
		}
		s.Fields[NewWord()] = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{structpb.NewStringValue("")}})
	}
	for _, name := range slices.Sorted(maps.Keys(s.Fields)) {
		if name != "type" {
			paths = append(paths, visitValue(s.Fields[name], path+"."+name)...)
		}
	}
	return paths
}

func visitValue(v *structpb.Value, path string) (paths []string) {
	switch kind := v.Kind.(type) {
	case *structpb.Value_StringValue:
		kind.StringValue = NewWord()
		return []string{path}
	case *structpb.Value_ListValue:
		for i, item := range kind.ListValue.Values {
			paths = append(paths, visitValue(item, fmt.Sprintf("%s[%d]", path, i))...)
		}
	case *structpb.Value_StructValue:
		for name, item := range kind.StructValue.Fields {
			paths = append(paths, visitValue(item, path+"."+name)...)
		}
	}
	return paths
}

// value is a canary for a field; false for one that has none.
func value(f protoreflect.FieldDescriptor, rules *validate.FieldRules) (protoreflect.Value, bool) {
	switch f.Kind() {
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(NewWord())), true
	case protoreflect.StringKind:
	default:
		return protoreflect.Value{}, false
	}
	if shape := shapes[string(f.FullName())]; shape != nil {
		return protoreflect.ValueOfString(shape()), true
	}
	for _, rule := range rules.GetCel() {
		if Allowed[rule.GetId()] != "" {
			return protoreflect.Value{}, false
		}
		if shape := shapes[rule.GetId()]; shape != nil {
			return protoreflect.ValueOfString(shape()), true
		}
	}
	if rules.GetString().GetEmail() {
		return protoreflect.ValueOfString(NewWord() + "@" + NewWord() + ".example.ec"), true
	}
	return protoreflect.ValueOfString(NewWord()), true
}
