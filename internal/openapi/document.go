package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

// object is a JSON object that keeps the order of its members, so that the document reads in the order of the protos
// and a change of one field is a change of one line.
type object struct {
	members []member
}

type member struct {
	key   string
	value any // *object, []any, string, json.Number, bool or nil
}

// parse reads one JSON object.
func parse(data []byte) (*object, error) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	value, err := parseValue(decoder)
	if err != nil {
		return nil, err
	}
	root, ok := value.(*object)
	if !ok {
		return nil, fmt.Errorf("want a JSON object, have %T", value)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, fmt.Errorf("more than one JSON value")
	}
	return root, nil
}

func parseValue(decoder *json.Decoder) (any, error) {
	token, err := decoder.Token()
	if err != nil {
		return nil, err
	}
	switch token {
	case json.Delim('{'):
		parsed := &object{}
		for decoder.More() {
			key, err := decoder.Token()
			if err != nil {
				return nil, err
			}
			value, err := parseValue(decoder)
			if err != nil {
				return nil, err
			}
			parsed.set(key.(string), value)
		}
		_, err := decoder.Token()
		return parsed, err
	case json.Delim('['):
		list := []any{}
		for decoder.More() {
			value, err := parseValue(decoder)
			if err != nil {
				return nil, err
			}
			list = append(list, value)
		}
		_, err := decoder.Token()
		return list, err
	}
	return token, nil
}

// print writes the object with an indent, and a line break at its end.
func (o *object) print() ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(o); err != nil {
		return nil, err
	}
	return text.Bytes(), nil
}

// MarshalJSON writes the members in their order.
func (o *object) MarshalJSON() ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	text.WriteByte('{')
	for i, m := range o.members {
		if i > 0 {
			text.WriteByte(',')
		}
		if err := encoder.Encode(m.key); err != nil {
			return nil, err
		}
		text.WriteByte(':')
		if err := encoder.Encode(m.value); err != nil {
			return nil, err
		}
	}
	text.WriteByte('}')
	return text.Bytes(), nil
}

// get returns the value of a member, nil when there is none.
func (o *object) get(key string) any {
	for _, m := range o.members {
		if m.key == key {
			return m.value
		}
	}
	return nil
}

// at follows members that are objects; nil when one is missing.
func (o *object) at(path ...string) *object {
	for _, key := range path {
		if o == nil {
			return nil
		}
		o, _ = o.get(key).(*object)
	}
	return o
}

// set replaces a member's value, or adds the member at the end.
func (o *object) set(key string, value any) {
	for i := range o.members {
		if o.members[i].key == key {
			o.members[i].value = value
			return
		}
	}
	o.members = append(o.members, member{key, value})
}

// remove takes a member away.
func (o *object) remove(key string) {
	o.members = slices.DeleteFunc(o.members, func(m member) bool { return m.key == key })
}

// add puts a value at the end of the list in a member, which it makes if it is missing.
func (o *object) add(key string, value any) {
	list, _ := o.get(key).([]any)
	o.set(key, append(list, value))
}

// describe adds a paragraph to the description.
func (o *object) describe(paragraph string) {
	if before, ok := o.get("description").(string); ok && before != "" {
		paragraph = before + "\n\n" + paragraph
	}
	o.set("description", paragraph)
}

// clone copies an object with all that is in it.
func (o *object) clone() *object {
	copied := &object{members: slices.Clone(o.members)}
	for i := range copied.members {
		copied.members[i].value = cloneValue(copied.members[i].value)
	}
	return copied
}

func cloneValue(value any) any {
	switch value := value.(type) {
	case *object:
		return value.clone()
	case []any:
		list := slices.Clone(value)
		for i := range list {
			list[i] = cloneValue(list[i])
		}
		return list
	}
	return value
}

// walk calls visit for every object in value, outer ones first.
func walk(value any, visit func(*object)) {
	switch value := value.(type) {
	case *object:
		visit(value)
		for _, m := range value.members {
			walk(m.value, visit)
		}
	case []any:
		for _, element := range value {
			walk(element, visit)
		}
	}
}

// newObject makes an object of keys and values in turn.
func newObject(keysAndValues ...any) *object {
	made := &object{}
	for i := 0; i < len(keysAndValues); i += 2 {
		made.set(keysAndValues[i].(string), keysAndValues[i+1])
	}
	return made
}
