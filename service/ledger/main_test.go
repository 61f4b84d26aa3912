package ledger

import (
	goflag "flag"
	"os"
	"testing"
)

// modelChecks is how many random histories a property test tries. One is hundreds of transactions, so rapid's own
// 100 take many minutes on two cores; `go test ./service/ledger -rapid.checks 1000` looks further.
const modelChecks = "25"

func TestMain(m *testing.M) {
	goflag.Parse()
	given := false
	goflag.Visit(func(f *goflag.Flag) { given = given || f.Name == "rapid.checks" })
	if !given {
		if err := goflag.Set("rapid.checks", modelChecks); err != nil {
			panic(err) // rapid defines the flag
		}
	}
	os.Exit(m.Run())
}
