package service

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelou"
)

// hashVersion names the form below. A changed form needs a new number: hashes of different forms are never compared.
const hashVersion = 1

// contentHash identifies what a send says and to whom: bot, recipients and content, not its options. It is not a hash of
// proto.Marshal, whose output may differ from call to call. The form: the bot's id, then the item's
// user_id, message and notification as writeMessage writes them.
func contentHash(botID string, item *facadev1.BatchItem) []byte {
	content := &facadev1.BatchItem{UserId: item.UserId, Content: item.Content}
	b := writeBytes(nil, []byte(botID))
	sum := sha256.Sum256(writeMessage(b, content.ProtoReflect()))
	return sum[:]
}

// messageHash identifies a message of any kind.
func messageHash(m protoreflect.Message) []byte {
	sum := sha256.Sum256(writeMessage(nil, m))
	return sum[:]
}

// writeMessage appends the populated fields in the order of their numbers, each as number and value, and a zero.
func writeMessage(b []byte, m protoreflect.Message) []byte {
	type field struct {
		desc  protoreflect.FieldDescriptor
		value protoreflect.Value
	}
	var fields []field
	m.Range(func(d protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		fields = append(fields, field{d, v})
		return true
	})
	slices.SortFunc(fields, func(a, b field) int { return cmp.Compare(a.desc.Number(), b.desc.Number()) })
	for _, f := range fields {
		b = binary.AppendUvarint(b, uint64(f.desc.Number()))
		switch {
		case f.desc.IsList():
			list := f.value.List()
			b = binary.AppendUvarint(b, uint64(list.Len()))
			for i := range list.Len() {
				b = writeValue(b, f.desc, list.Get(i))
			}
		case f.desc.IsMap():
			b = writeMap(b, f.desc.MapValue(), f.value.Map())
		default:
			b = writeValue(b, f.desc, f.value)
		}
	}
	return append(b, 0)
}

// writeMap appends a map with string keys (the API has no others) sorted by key.
func writeMap(b []byte, value protoreflect.FieldDescriptor, m protoreflect.Map) []byte {
	var keys []string
	m.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
		keys = append(keys, k.String())
		return true
	})
	slices.Sort(keys)
	b = binary.AppendUvarint(b, uint64(len(keys)))
	for _, k := range keys {
		b = writeBytes(b, []byte(k))
		b = writeValue(b, value, m.Get(protoreflect.ValueOfString(k).MapKey()))
	}
	return b
}

func writeValue(b []byte, d protoreflect.FieldDescriptor, v protoreflect.Value) []byte {
	switch d.Kind() {
	case protoreflect.MessageKind:
		return writeMessage(b, v.Message())
	case protoreflect.StringKind:
		return writeBytes(b, []byte(v.String()))
	case protoreflect.DoubleKind:
		return binary.BigEndian.AppendUint64(b, math.Float64bits(v.Float()))
	case protoreflect.BoolKind:
		if v.Bool() {
			return append(b, 1)
		}
		return append(b, 0)
	case protoreflect.EnumKind:
		return binary.AppendVarint(b, int64(v.Enum()))
	case protoreflect.Int32Kind, protoreflect.Int64Kind:
		return binary.AppendVarint(b, v.Int())
	default:
		// A kind that the API did not have when this was written; a test walks all fields, so it is seen there.
		panic("content hash: no form for " + d.Kind().String())
	}
}

func writeBytes(b, s []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// normalize gives an item with its recipients as they are compared, hashed, ordered and stored.
func normalize(item *facadev1.BatchItem) (*facadev1.BatchItem, *fault) {
	n := proto.CloneOf(item)
	n.UserId = jelou.Normalize(item.UserId)
	if t := n.GetNotification(); t != nil {
		seen := make(map[string]bool, len(t.Destinations))
		for i, d := range t.Destinations {
			d = jelou.Normalize(d)
			if seen[d] {
				return nil, invalidField("notification.destinations", "must be different once normalised; number %d repeats an earlier one", i+1)
			}
			seen[d] = true
			t.Destinations[i] = d
		}
	}
	return n, nil
}

// recipientOf is whom a send is ordered by: empty for a notification to several destinations.
func recipientOf(item *facadev1.BatchItem) string {
	if t := item.GetNotification(); t != nil {
		if len(t.Destinations) == 1 {
			return t.Destinations[0]
		}
		return ""
	}
	return item.UserId
}

// kindOf is the name of the content's field: text, list, …, or notification.
func kindOf(item *facadev1.BatchItem) string {
	if item.GetNotification() != nil {
		return "notification"
	}
	m := item.GetMessage().ProtoReflect()
	if f := m.WhichOneof(m.Descriptor().Oneofs().ByName("content")); f != nil {
		return string(f.Name())
	}
	return ""
}
