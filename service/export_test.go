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
