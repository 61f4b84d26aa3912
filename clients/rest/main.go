// Command rest carries out the calls of clients/run over REST. It knows nothing of the API but the OpenAPI document: the route
// of a call, where its fields belong, and what an answer looks like, which it checks.
package main

import (
	"fmt"
	"os"

	"github.com/jelou-facade/jelou-facade/clients/exchange"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: rest OPENAPI")
		os.Exit(2)
	}
	d, err := readDocument(os.Args[1])
	if err == nil {
		err = exchange.Serve(os.Stdin, os.Stdout, (&client{document: d}).carryOut)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "rest:", err)
		os.Exit(1)
	}
}
