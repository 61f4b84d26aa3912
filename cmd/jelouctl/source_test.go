package main

import (
	"encoding/csv"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// write puts a file into a new folder.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// said checks a file and returns what is said about its lines, or about the whole.
func said(t *testing.T, name, text string, flags mappingFlags) []string {
	t.Helper()
	src, err := openSource(write(t, name, text), "", &flags)
	if err != nil {
		return []string{err.Error()}
	}
	found, err := src.check(t.Context(), -1, false, func(int) {})
	if err != nil {
		return []string{err.Error()}
	}
	var all []string
	for _, e := range found.errors {
		all = append(all, strings.TrimSpace(strings.Join([]string{numberOrNothing(int32(e.Line)), e.Field, e.Column, e.Message}, "|")))
	}
	return all
}

// TestCheck: what is wrong with a line is said with its number and field, and never with its content.
func TestCheck(t *testing.T) {
	hola := mappingFlags{fields: map[string]string{"user_id": "phone"}, text: "Hola {{.name}}"}
	notify := mappingFlags{fields: map[string]string{"user_id": "phone"}, template: "order_ready", language: "es", params: []string{"{{.name}}"}}
	const phone = "must be a phone number with country code such as 593991234567, or a business-scoped id such as EC.8h3Kq0Zt"
	for _, c := range []struct {
		name, file, text string
		flags            mappingFlags
		want             []string
	}{
		{"good", "a.csv", "phone,name\n593991234567,Lucía\n", hola, nil},
		{"a mark of the byte order, semicolons, spaces, quotes, no last newline", "a.csv", "\xef\xbb\xbfphone;name\n 593991234567 ;\"Lucía; Ana\"", hola, nil},
		{"tabs", "a.tsv", "phone\tname\n593991234567\tLucía\n", hola, nil},
		{"a name of several lines counts as its first", "a.csv", "phone,name\n593991234567,\"Lucía\nAna\"\nx y,Eva\n", hola, []string{"4|user_id|phone|" + phone}},
		{"a column too few", "a.csv", "phone,name\n593991234567\n", hola, []string{"2|||has 1 columns instead of 2"}},
		{"a stray quote", "a.csv", "phone,name\n593991234567,\"Lucía\" y\n", hola, []string{"2|||is no CSV: extraneous or missing \" in quoted-field"}},
		{"Latin-1", "a.csv", "phone,name\n593991234567,Luc\xeda\n", hola, []string{"2||name|is not UTF-8: save the file as CSV UTF-8"}},
		{"a spreadsheet's number", "a.csv", "phone,name\n\"5,93991E+11\",Lucía\n", hola, []string{"2|user_id|phone|" + phone}},
		{"no recipient", "a.csv", "phone,name\n,Lucía\n", hola, []string{"2|user_id|phone|is required for a message and must be empty for a notification"}},
		{"a template's recipient", "a.csv", "phone,name\nx y,Lucía\n", notify, []string{"2|notification.destinations[0]|phone|" + phone}},
		{"nothing but names", "a.csv", "phone,name\n", hola, []string{"has no items"}},
		{"nothing", "a.csv", "", hola, []string{"has no line with the columns' names"}},
		{"two columns without a name", "a.csv", "phone;name;;\r\n593991234567;Lucía;;\r\n", hola, nil},
		{"blank lines, and a name of a column in two lines", "a.csv", "\n\nphone,\"full\nname\",name\n593991234567,x,Lucía\n", hola, nil},
		{"Latin-1 in a column's name", "a.csv", "tel\xe9fono,name\n593991234567,Luc\xeda\n", mappingFlags{fields: map[string]string{"user_id": "teléfono"}, text: "Hola"}, []string{"line 1: is not UTF-8: save the file as CSV UTF-8"}},
		{"UTF-16", "a.csv", "\xff\xfep\x00h\x00o\x00n\x00e\x00\n\x00", hola, []string{"line 1: is not UTF-8"}},
		{"names of columns that are no CSV", "a.csv", "phone,\"na\"me\n1,2\n", hola, []string{"the line with the columns' names: "}},
		{"a column twice", "a.csv", "phone,phone\n1,2\n", hola, []string{`two columns are called "phone"`}},
		{"an unknown column", "a.csv", "tel,name\n1,2\n", hola, []string{`the file has no column "phone"; it has tel, name`}},
		{"an unknown name in a text", "a.csv", "phone,nombre\n1,2\n", hola, []string{`no entry for key "name"; the file's columns are phone, nombre`}},
		{"an unknown field", "a.csv", "phone,name\n1,2\n", mappingFlags{fields: map[string]string{"user": "phone"}}, []string{"user is no field of an item; there are sequence, user_id"}},
		{"no mapping", "a.csv", "phone,name\n1,2\n", mappingFlags{}, []string{"a CSV needs a mapping"}},
		{"an id twice", "a.csv", "phone,name,id\n593991234567,a,1\n593991234567,b,1\n", mappingFlags{fields: map[string]string{"user_id": "phone", "request_id": "id"}, text: "{{.name}}"}, []string{"3|request_id|id|is that of line 2, too"}},
		{"a coordinate", "a.csv", "phone,lat,long\n593991234567,-0.18,-78.47\n593991234567,norte,0\n", mappingFlags{fields: map[string]string{"user_id": "phone", "message.location.latitude": "lat", "message.location.longitude": "long"}}, []string{"3|||invalid value for double field latitude"}},
		{"lines of JSON", "a.ndjson", `{"user_id":"593991234567","message":{"text":{"text":"a"}}}` + "\n\n" + `{"user_id":593991234567}` + "\n{\n" + `{"sequence":4,"user_id":"593991234567","message":{"text":{"text":"a\u0000"}},"options":{"lane":"BULK"}}`, mappingFlags{}, []string{
			"3|||is no item: (line 1:12): invalid value for string field userId", "4|||is no item: unexpected EOF",
			"5|sequence||must not be given: the file's order is the items' order", "5|options.lane||is the batch's: give it by --lane", "5|||has the character U+0000 in a text",
		}},
		{"a mapping for JSON", "a.ndjson", "{}", hola, []string{"lines of JSON are whole items"}},
		{"another kind of file", "a.xlsx", "x", hola, []string{"must end in .csv"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := said(t, c.file, c.text, c.flags)
			if len(got) != len(c.want) {
				t.Fatalf("%q instead of %q", got, c.want)
			}
			for i := range got {
				if !strings.Contains(got[i], c.want[i]) {
					t.Errorf("%q instead of %q", got[i], c.want[i])
				}
			}
		})
	}
}

// TestMappingFile: a file of YAML maps everything that an item has.
func TestMappingFile(t *testing.T) {
	mapping := write(t, "mapping.yaml", `
user_id: "{{.phone}}"
request_id: "order-{{.order}}"
message: {image: {media_url: "https://example.com/{{.order}}.png", caption: "{{if .name}}Hola {{.name}}{{else}}Hola{{end}}"}}
options: {labels: {campaign: noviembre}}
`)
	src, err := openSource(write(t, "a.csv", "phone,order,name\n593991234567,7,\n"), "", &mappingFlags{file: mapping})
	if err != nil {
		t.Fatal(err)
	}
	var items []*facadev1.BatchItem
	if err := src.rows(func(r row) error {
		item, _, bad := src.item(r)
		if bad != nil {
			t.Error(bad.Message)
		}
		items = append(items, item)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(items) != 1 || items[0].RequestId != "order-7" || items[0].GetMessage().GetImage().GetCaption() != "Hola" || items[0].GetOptions().GetLabels()["campaign"] != "noviembre" {
		t.Errorf("%v", items)
	}
}

// TestRows: whatever the cells are, what a CSV's writer wrote comes out again, whole and in order.
func TestRows(t *testing.T) {
	folder := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOf(rapid.StringMatching(`[^\x00\r\s\pZ\pC]([^\x00\r\pC]*[^\x00\r\s\pZ\pC])?`)).Draw(t, "names")
		separator := rapid.SampledFrom(separators).Draw(t, "separator")
		path := filepath.Join(folder, "a.csv")
		var text strings.Builder
		w := csv.NewWriter(&text)
		w.Comma = separator
		_ = w.Write([]string{"phone", "name"})
		for _, name := range names {
			_ = w.Write([]string{"593991234567", name})
		}
		w.Flush()
		if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		src, err := openSource(path, "", &mappingFlags{fields: map[string]string{"user_id": "phone", "message.text.text": "name"}})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for range 2 { // it is read again after a cut
			got = nil
			if err := src.rows(func(r row) error {
				item, _, bad := src.item(r)
				if bad != nil {
					t.Fatal(bad.Message)
				}
				got = append(got, item.GetMessage().GetText().GetText())
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(names, got); diff != "" && len(names)+len(got) > 0 {
			t.Error(diff)
		}
	})
}
