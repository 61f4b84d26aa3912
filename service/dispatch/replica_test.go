package dispatch

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Every company has each replica at one place, whoever computes it; and when one leaves only its companies move.
func TestRank(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		replicas := rapid.SliceOfNDistinct(rapid.StringN(1, 36, -1), 1, 8, rapid.ID).Draw(t, "replicas")
		company := rapid.Int64().Draw(t, "company")
		order := make([]string, len(replicas))
		for _, id := range replicas {
			order[rank(company, id, replicas)] = id
		}
		if slices.Contains(order, "") {
			t.Fatalf("no order: %v", order)
		}
		gone := rapid.SampledFrom(replicas).Draw(t, "gone")
		rest := slices.DeleteFunc(slices.Clone(replicas), func(id string) bool { return id == gone })
		order = slices.DeleteFunc(order, func(id string) bool { return id == gone })
		for i, id := range order {
			if rank(company, id, rest) != i {
				t.Fatalf("%q moved when %q left", id, gone)
			}
		}
	})
}

func TestRankIsEven(t *testing.T) {
	replicas := []string{"4b1c0a52-0000-4000-8000-000000000001", "4b1c0a52-0000-4000-8000-000000000002", "4b1c0a52-0000-4000-8000-000000000003"}
	first := map[string]int{}
	for company := range int64(3000) {
		for _, id := range replicas {
			if rank(company, id, replicas) == 0 {
				first[id]++
			}
		}
	}
	for _, id := range replicas {
		if n := first[id]; n < 900 || n > 1100 {
			t.Errorf("%s is first of %d of 3,000 companies", id, n)
		}
	}
}
