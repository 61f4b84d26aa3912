package service_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/jelou-facade/jelou-facade/service"
)

// Replicas that each know only what they stored themselves since a common count stay within a bound together.
func TestReplicasFarFromABoundStayWithinIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.Int64Range(1, 10_000).Draw(t, "most")
		replicas := rapid.Int64Range(1, 20).Draw(t, "replicas")
		counted := rapid.Int64Range(0, most).Draw(t, "counted")
		all := counted
		for range replicas {
			own := int64(0)
			for service.FarFromBound(counted+own, most, replicas) {
				own++
			}
			all += own
		}
		if all > most {
			t.Fatalf("%d wait, and %d may", all, most)
		}
	})
}
