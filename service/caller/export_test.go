package caller

// Remembered is how many addresses are remembered.
func (a *Attempts) Remembered() int { return len(a.failures.new) + len(a.failures.old) }
