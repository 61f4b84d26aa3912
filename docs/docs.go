// Package docs carries the pages that programs of this module show.
package docs

import _ "embed" // for the pages

// Errors is the table of every error, as Markdown. It is made from the server's own table.
//
//go:embed errors.md
var Errors string
