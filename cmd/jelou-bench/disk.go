package main

import (
	"os"
	"time"
)

// fsync measures so many writes of 4 KiB with fsync, in milliseconds: what a durable commit costs here at least.
func (b *bench) fsync(times int) ([]float64, error) {
	f, err := os.Create(b.path("fsync"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	page := make([]byte, 4096)
	var took []float64
	for range times {
		start := time.Now()
		if _, err := f.Write(page); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
		took = append(took, ms(time.Since(start)))
	}
	return took, nil
}
