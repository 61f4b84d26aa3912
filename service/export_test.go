package service

// Reasons are the reasons of the error table, in its order.
func Reasons() []string {
	reasons := make([]string, len(table))
	for i, row := range table {
		reasons[i] = row.reason.String()
	}
	return reasons
}
