package main

import (
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// exampleFolders are the folders of examples and the operations whose requests they hold.
var exampleFolders = []struct{ folder, path, body string }{
	{"messages", "/v1/bots/{bot_id}/messages", "SendMessageBody"},
	{"notifications", "/v1/bots/{bot_id}/notifications", "SendNotificationBody"},
}

// examples puts the files of examples/ into the document: all of them at the operation, by name, for the programs that
// show x-examples; one at the request's definition; and the content of each at the definition of its kind. Examples of
// other requests stand in additions.json.
func (b *builder) examples(files fs.FS) error {
	for _, source := range exampleFolders {
		names, err := fs.Glob(files, source.folder+"/*.json")
		if err != nil {
			return err
		}
		if len(names) == 0 {
			return fmt.Errorf("no examples in %s", source.folder)
		}
		all := &object{}
		for _, name := range names {
			text, err := fs.ReadFile(files, name)
			if err != nil {
				return err
			}
			request, err := parse(text)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			request.remove("bot_id") // it stands in the path
			all.set(strings.TrimSuffix(path.Base(name), ".json"), request)
			b.exampleOfKind(request)
		}
		definition := b.document.at("definitions", source.body)
		definition.set("example", all.members[0].value)
		body := b.document.at("paths", source.path, "post").get("parameters").([]any)
		for _, p := range body {
			if parameter := p.(*object); parameter.get("in") == "body" {
				parameter.set("x-examples", all)
			}
		}
	}
	for _, m := range b.additions.at("requests").members {
		definition := b.document.at("definitions", m.key)
		if definition == nil {
			return fmt.Errorf("additions.json has an example of %s, which is no definition", m.key)
		}
		definition.set("example", m.value)
	}
	return nil
}

// exampleOfKind puts the one content of a message at the definition of its kind, or at the field of a kind that
// has no definition.
func (b *builder) exampleOfKind(request *object) {
	message := request.at("message")
	if message == nil {
		return
	}
	kind := message.members[0]
	property := b.document.at("definitions", "Message", "properties", kind.key)
	target := property
	if of, ok := property.get("allOf").([]any); ok {
		name, _ := definitionOf(of[0].(*object))
		target = b.document.at("definitions", name)
	}
	if target.get("example") == nil {
		target.set("example", kind.value)
	}
}
