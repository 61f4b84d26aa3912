package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// mapping makes an item of a CSV's row: a BatchItem in JSON's shape whose texts are templates over the row's columns.
type mapping struct {
	tree    map[string]any    // maps, lists, scalars, and *template.Template where a text stands
	columns map[string]string // the column that fills a field alone, by the field's path
}

// mappingFlags are what a mapping is made from on the command line.
type mappingFlags struct {
	file                     string
	fields                   map[string]string // path to column
	text, template, language string
	params                   []string
}

func (f *mappingFlags) given() bool {
	return f.file != "" || len(f.fields) > 0 || f.text != "" || f.template != "" || f.language != "" || len(f.params) > 0
}

// newMapping makes a mapping for a CSV with these columns.
func (f *mappingFlags) newMapping(header []string) (*mapping, error) {
	tree := map[string]any{}
	if f.file != "" {
		data, err := os.ReadFile(f.file)
		if err != nil {
			return nil, invalid("--mapping: %v", err)
		}
		if err := yaml.Unmarshal(data, &tree); err != nil {
			return nil, invalid("--mapping %s: %v", f.file, err)
		}
	}
	if err := f.into(tree, header); err != nil {
		return nil, err
	}
	if len(tree) == 0 {
		return nil, usage("a CSV needs a mapping, such as --map user_id=COLUMN --text 'Hola {{.COLUMN}}', or a file by --mapping; its columns are %s", strings.Join(header, ", "))
	}
	if err := checkFields(tree, (&facadev1.BatchItem{}).ProtoReflect().Descriptor(), ""); err != nil {
		return nil, err
	}
	m := &mapping{columns: map[string]string{}}
	compiled, err := m.compile(tree, "", header)
	if err != nil {
		return nil, err
	}
	m.tree = compiled.(map[string]any)
	return m, nil
}

// into writes what the flags say into the tree.
func (f *mappingFlags) into(tree map[string]any, header []string) error {
	set := func(path string, value any) error {
		at := tree
		names := strings.Split(path, ".")
		for _, name := range names[:len(names)-1] {
			next, ok := at[name].(map[string]any)
			if !ok {
				if at[name] != nil {
					return usage("--map %s: %s is a value already", path, name)
				}
				next = map[string]any{}
				at[name] = next
			}
			at = next
		}
		at[names[len(names)-1]] = value
		return nil
	}
	var first error
	add := func(path string, value any) {
		if err := set(path, value); first == nil {
			first = err
		}
	}
	for _, path := range slices.Sorted(maps.Keys(f.fields)) {
		column := f.fields[path]
		if !slices.Contains(header, column) {
			return invalid("--map %s=%s: the file has no column %q; it has %s", path, column, column, strings.Join(header, ", "))
		}
		add(path, columnTemplate(column))
	}
	if f.text != "" {
		add("message.text.text", f.text)
	}
	if f.template == "" {
		if f.language != "" || len(f.params) > 0 {
			return usage("--language and --param belong to --template")
		}
		return first
	}
	add("notification.element_name", f.template)
	if f.language != "" {
		add("notification.language", f.language)
	}
	if len(f.params) > 0 {
		params := make([]any, len(f.params))
		for i, p := range f.params {
			params[i] = p
		}
		add("notification.parameters", params)
	}
	if to, ok := tree["user_id"]; ok { // a template's recipient is its destination
		delete(tree, "user_id")
		add("notification.destinations", []any{to})
	}
	return first
}

// columnTemplate is the template of one column, whatever its name.
func columnTemplate(column string) string { return fmt.Sprintf("{{index . %q}}", column) }

var wholeColumn = regexp.MustCompile(`^\{\{\s*(?:\.(\w+)|index \. "([^"]+)")\s*\}\}$`)

// compile makes templates of all texts, and notes which field is filled by which column alone.
func (m *mapping) compile(node any, path string, header []string) (any, error) {
	switch node := node.(type) {
	case map[string]any:
		compiled := make(map[string]any, len(node))
		for name, child := range node {
			c, err := m.compile(child, strings.TrimPrefix(path+"."+name, "."), header)
			if err != nil {
				return nil, err
			}
			compiled[name] = c
		}
		return compiled, nil
	case []any:
		compiled := make([]any, len(node))
		for i, child := range node {
			c, err := m.compile(child, fmt.Sprintf("%s[%d]", path, i), header)
			if err != nil {
				return nil, err
			}
			compiled[i] = c
		}
		return compiled, nil
	case string:
		if found := wholeColumn.FindStringSubmatch(node); found != nil {
			m.columns[path] = found[1] + found[2]
		}
		return compileText(node, path, header)
	}
	return node, nil
}

// compileText makes a template of a text, or leaves it as it is where it has none.
func compileText(text, path string, header []string) (any, error) {
	if !strings.Contains(text, "{{") {
		return text, nil
	}
	t, err := template.New(path).Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, invalid("the template of %s: %v", path, err)
	}
	// Once with columns that are there and empty: a name that no row has is said before any line is read.
	empty := make(map[string]string, len(header))
	for _, name := range header {
		empty[name] = ""
	}
	if err := t.Execute(new(strings.Builder), empty); err != nil {
		return nil, invalid("the template of %s: %v; the file's columns are %s", path, err, strings.Join(header, ", "))
	}
	return t, nil
}

// json fills the templates with a row.
func (m *mapping) json(row map[string]string) ([]byte, error) {
	filled, err := fill(m.tree, row)
	if err != nil {
		return nil, err
	}
	return json.Marshal(filled)
}

func fill(node any, row map[string]string) (any, error) {
	switch node := node.(type) {
	case map[string]any:
		filled := make(map[string]any, len(node))
		for name, child := range node {
			f, err := fill(child, row)
			if err != nil {
				return nil, err
			}
			filled[name] = f
		}
		return filled, nil
	case []any:
		filled := make([]any, len(node))
		for i, child := range node {
			f, err := fill(child, row)
			if err != nil {
				return nil, err
			}
			filled[i] = f
		}
		return filled, nil
	case *template.Template:
		var text strings.Builder
		if err := node.Execute(&text, row); err != nil {
			return nil, err
		}
		return text.String(), nil
	}
	return node, nil
}

// checkFields finds names that an item does not have, once and not in every line.
func checkFields(node any, m protoreflect.MessageDescriptor, path string) error {
	fields, ok := node.(map[string]any)
	if !ok || m == nil || strings.HasPrefix(string(m.FullName()), "google.protobuf.") {
		return nil
	}
	for name, child := range fields {
		at := strings.TrimPrefix(path+"."+name, ".")
		field := m.Fields().ByTextName(name)
		if field == nil {
			field = m.Fields().ByJSONName(name)
		}
		if field == nil {
			var known []string
			for i := range m.Fields().Len() {
				known = append(known, string(m.Fields().Get(i).Name()))
			}
			return invalid("mapping: %s is no field of an item; there are %s", at, strings.Join(known, ", "))
		}
		if field.IsMap() {
			continue
		}
		children := []any{child}
		if list, ok := child.([]any); ok {
			children = list
		}
		for _, c := range children {
			if err := checkFields(c, field.Message(), at); err != nil {
				return err
			}
		}
	}
	return nil
}
