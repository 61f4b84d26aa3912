package service

import (
	"bytes"
	"encoding/json"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/grpc-ecosystem/grpc-gateway/v2/utilities"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

var (
	jsonPlace   = regexp.MustCompile(`\(line (\d+):(\d+)\)`)
	jsonUnknown = regexp.MustCompile(`unknown field "([A-Za-z_][A-Za-z0-9_]{0,63})"`)
)

// jsonComplaints are what protojson finds wrong, by a piece of its text. Its own texts quote values, which may be phone
// numbers or messages: they are never passed on.
var jsonComplaints = []struct{ piece, say string }{
	{"unknown field", "is no field here"},
	{"is already set", "only one of the oneof's fields may be set"},
	{"duplicate field", "stands here twice"},
	{"invalid value for", "has a value of the wrong type"},
	{"unexpected token", "has a value of the wrong type, or something stands after the end"},
}

// jsonFault says where a body does not fit its message: the field's path, the place, and what is wrong, never the value.
func jsonFault(body []byte, err error) *fault {
	text := err.Error()
	place := jsonPlace.FindStringSubmatch(text)
	if !json.Valid(body) || place == nil {
		f := newFault(facadev1.ErrorReason_INVALID_JSON, "the body is not one JSON value")
		if place != nil {
			f.message += " (line " + place[1] + ", column " + place[2] + ")"
		}
		return f
	}
	line, _ := strconv.Atoi(place[1])
	column, _ := strconv.Atoi(place[2])
	path := pathAt(body, offsetOf(body, line, column))
	say := "does not fit the request"
	for _, c := range jsonComplaints {
		if strings.Contains(text, c.piece) {
			say = c.say
			break
		}
	}
	if name := jsonUnknown.FindStringSubmatch(text); name != nil && !strings.HasSuffix(path, name[1]) {
		path = strings.TrimPrefix(path+"."+name[1], ".")
	}
	if path == "message" || strings.HasSuffix(path, ".message") {
		say += `; a message is an object with one kind of content, for example {"text": {"text": "…"}}`
	}
	if path == "message.text" || strings.HasSuffix(path, ".message.text") {
		say += `; write {"text": {"text": "…"}}`
	}
	if path == "" {
		path = "body"
	}
	f := invalidField(path, "%s", say)
	f.message += " (line " + place[1] + ", column " + place[2] + ")"
	return f
}

// offsetOf is the byte at which protojson's line and column (from 1, in bytes after the last newline) stand.
func offsetOf(body []byte, line, column int) int {
	offset := 0
	for ; line > 1; line-- {
		i := bytes.IndexByte(body[offset:], '\n')
		if i < 0 {
			break
		}
		offset += i + 1
	}
	return offset + column - 1
}

// pathAt is the path of the field at or around an offset of a JSON text, for example items[2].message.text. Names
// that cannot be fields of ours are left out: they may be anything.
func pathAt(body []byte, offset int) string {
	type level struct {
		key   string
		array bool
		index int
		isKey bool // the next string is a key
	}
	var stack []level
	path := func() string {
		var b strings.Builder
		for _, l := range stack {
			switch {
			case l.array:
				b.WriteString("[" + strconv.Itoa(l.index) + "]")
			case jsonName.MatchString(l.key):
				if b.Len() > 0 {
					b.WriteByte('.')
				}
				b.WriteString(l.key)
			}
		}
		return b.String()
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	for {
		token, err := decoder.Token()
		if err != nil {
			return path()
		}
		top := len(stack) - 1
		isKey := top >= 0 && stack[top].isKey
		if key, ok := token.(string); ok && isKey {
			stack[top].key, stack[top].isKey = key, false
			if int(decoder.InputOffset()) > offset {
				return path()
			}
			continue
		}
		if int(decoder.InputOffset()) > offset {
			return path()
		}
		switch token {
		case json.Delim('{'):
			stack = append(stack, level{isKey: true})
			continue
		case json.Delim('['):
			stack = append(stack, level{array: true})
			continue
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:top]
			top--
		}
		if top >= 0 { // a value ended
			if stack[top].array {
				stack[top].index++
			} else {
				stack[top].isKey = true
			}
		}
	}
}

var jsonName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)

// strictQuery is the gateway's query parser that refuses what it would ignore: a filter with a typing error
// would list everything.
type strictQuery struct{ runtime.DefaultQueryParser }

// Parse fills msg from the query.
func (p *strictQuery) Parse(msg proto.Message, values url.Values, filter *utilities.DoubleArray) error {
	for name := range values {
		if !isField(msg.ProtoReflect().Descriptor(), name) {
			if !jsonName.MatchString(name) {
				return carried{newFault(facadev1.ErrorReason_INVALID_FIELD, "the query has a parameter that this route does not have; /openapi.json lists them")}
			}
			return carried{invalidField(name, "is no parameter of this route; /openapi.json lists them")}
		}
	}
	if err := p.DefaultQueryParser.Parse(msg, values, filter); err != nil {
		for name := range values {
			one := url.Values{name: values[name]}
			if p.DefaultQueryParser.Parse(proto.Clone(msg), one, filter) != nil {
				return carried{invalidField(mapKey.ReplaceAllString(name, ""), "has a value of the wrong type")}
			}
		}
		return carried{newFault(facadev1.ErrorReason_INVALID_FIELD, "the query does not fit this route")}
	}
	return nil
}

var mapKey = regexp.MustCompile(`\[.*\]$`)

// isField reports whether a query parameter names a field of the message, in either spelling: page_size, pageSize, labels[app].
func isField(d protoreflect.MessageDescriptor, name string) bool {
	base := mapKey.ReplaceAllString(name, "")
	head, rest, nested := strings.Cut(base, ".")
	f := d.Fields().ByName(protoreflect.Name(head))
	if f == nil {
		f = d.Fields().ByJSONName(head)
	}
	switch {
	case f == nil:
		return false
	case base != name:
		return f.IsMap()
	case nested:
		return f.Message() != nil && isField(f.Message(), rest)
	}
	return true
}
