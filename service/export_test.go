package service

import "github.com/jelou-facade/jelou-facade/service/caller"

// Reasons are the reasons of the error table, in its order.
func Reasons() []string {
	reasons := make([]string, len(table))
	for i, row := range table {
		reasons[i] = row.reason.String()
	}
	return reasons
}

// RefusedCredentials is how many credentials were refused, by reason.
func (s *Server) RefusedCredentials() map[caller.Reason]int64 { return s.doors.refusals() }

// FarFromBound reports whether a replica that knows of so many waiting sends stores one more without counting anew.
func FarFromBound(waiting, most, replicas int64) bool {
	return waitingBound{waiting: waiting, most: most}.far(1, replicas)
}
