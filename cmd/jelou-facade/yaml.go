package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// document is a YAML file as JSON in which every name and value stands on the line that it has in the file, so that what is
// said about the JSON is true of the file.
type document struct {
	json  bytes.Buffer
	line  int            // that is being written
	lines map[string]int // of fields, by path: companies[0].bots[1]
}

// maxDocumentBytes bounds what aliases make of a file.
const maxDocumentBytes = 16 << 20

// readYAML reads one YAML document of plain mappings, lists and values.
func readYAML(data []byte) (*document, error) {
	d := &document{line: 1, lines: map[string]int{}}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var root yaml.Node
	switch err := decoder.Decode(&root); {
	case errors.Is(err, io.EOF):
		d.json.WriteString("{}")
		return d, nil
	case err != nil:
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("must be one YAML document")
	}
	return d, d.write("", root.Content[0])
}

// write writes a node that stands at a path.
func (d *document) write(path string, n *yaml.Node) error {
	if n.Line > d.line { // an alias stands for what is further up
		d.json.WriteString(strings.Repeat("\n", n.Line-d.line))
		d.line = n.Line
	}
	if _, known := d.lines[path]; !known {
		d.lines[path] = d.line
	}
	switch {
	case d.json.Len() > maxDocumentBytes:
		return atLine(d.line, path, errors.New("the file is too large"))
	case n.Kind == yaml.MappingNode:
		return d.writeMapping(path, n)
	case n.Kind == yaml.SequenceNode:
		return d.writeList(path, n)
	case n.Kind == yaml.AliasNode:
		return d.write(path, n.Alias)
	}
	return d.writeValue(path, n)
}

func (d *document) writeMapping(path string, n *yaml.Node) error {
	d.json.WriteByte('{')
	seen := map[string]bool{}
	for i := 0; i < len(n.Content); i += 2 {
		name := n.Content[i]
		if name.Kind != yaml.ScalarNode {
			return atLine(name.Line, path, errors.New("a name must be plain text"))
		}
		if seen[name.Value] {
			return atLine(name.Line, path, fmt.Errorf("%q stands here twice", name.Value))
		}
		seen[name.Value] = true
		if i > 0 {
			d.json.WriteByte(',')
		}
		field := strings.TrimPrefix(path+"."+snakeCase(name.Value), ".")
		if err := d.write(field, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: name.Value, Line: name.Line}); err != nil {
			return err
		}
		d.json.WriteByte(':')
		if err := d.write(field, n.Content[i+1]); err != nil {
			return err
		}
	}
	d.json.WriteByte('}')
	return nil
}

func (d *document) writeList(path string, n *yaml.Node) error {
	d.json.WriteByte('[')
	for i, item := range n.Content {
		if i > 0 {
			d.json.WriteByte(',')
		}
		if err := d.write(path+"["+strconv.Itoa(i)+"]", item); err != nil {
			return err
		}
	}
	d.json.WriteByte(']')
	return nil
}

func (d *document) writeValue(path string, n *yaml.Node) error {
	var value any
	switch n.ShortTag() {
	case "!!null":
	case "!!bool", "!!int", "!!float":
		if err := n.Decode(&value); err != nil {
			return atLine(n.Line, path, errors.New("is no value that YAML knows"))
		}
	default:
		value = n.Value // times too: what reads the field knows better
	}
	text, err := json.Marshal(value)
	if err != nil {
		return atLine(n.Line, path, errors.New("is no number")) // not a number, or endless
	}
	d.json.Write(text)
	return nil
}

// lineOf is the line of a field, or of the nearest one around it that the file has.
func (d *document) lineOf(path string) int {
	for {
		if line, ok := d.lines[path]; ok {
			return line
		}
		cut := max(strings.LastIndexByte(path, '.'), strings.LastIndexByte(path, '['), 0)
		path = path[:cut]
	}
}

// at says where a field stands.
func (d *document) at(path string, err error) error { return atLine(d.lineOf(path), path, err) }

func atLine(line int, path string, err error) error {
	if path == "" {
		return fmt.Errorf("line %d: %w", line, err)
	}
	return fmt.Errorf("line %d: %s: %w", line, path, err)
}

var upperCase = regexp.MustCompile(`[A-Z]`)

// snakeCase is how the protos spell a name that may be spelled in lowerCamelCase, too.
func snakeCase(name string) string {
	return upperCase.ReplaceAllStringFunc(name, func(letter string) string { return "_" + strings.ToLower(letter) })
}
