package main

import (
	"math"
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[99-i] = float64(i + 1) // 100 … 1
	}
	for _, c := range []struct {
		values []float64
		p      float64
		want   float64
	}{
		{hundred, 50, 50}, {hundred, 99, 99}, {hundred, 100, 100}, {hundred, 0, 1},
		{[]float64{7}, 50, 7}, {[]float64{1, 2, 3}, 50, 2}, {[]float64{1, 2, 3}, 99, 3},
	} {
		if got := percentile(c.values, c.p); got != c.want {
			t.Errorf("percentile %v of %d values is %v, not %v", c.p, len(c.values), got, c.want)
		}
	}
	if got := percentile(nil, 50); !math.IsNaN(got) {
		t.Errorf("percentile of none is %v", got)
	}
}

func TestJain(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{5, 5, 5}, 1}, {[]float64{9, 0, 0}, 1.0 / 3}, {[]float64{1, 3}, 0.8}, {nil, 0}, {[]float64{0, 0}, 0},
	} {
		if got := jain(c.values); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("jain of %v is %v, not %v", c.values, got, c.want)
		}
	}
}

// at makes times of milliseconds.
func at(milliseconds ...int) []time.Time {
	var times []time.Time
	for _, m := range milliseconds {
		times = append(times, time.Unix(1000, 0).Add(time.Duration(m)*time.Millisecond))
	}
	return times
}

func TestViolations(t *testing.T) {
	for _, c := range []struct {
		name         string
		times        []time.Time
		count, worst int
	}{
		{"none", nil, 0, 0},
		{"exactly one window later does not meet it", at(0, 0, 1000, 1000), 0, 2},
		{"a moment before it does", at(0, 0, 999), 1, 3},
		{"each that is too many counts", at(0, 1, 2, 3), 2, 4},
		{"not in order", at(999, 0, 0), 1, 3},
	} {
		if count, worst := violations(c.times, 2, time.Second); count != c.count || worst != c.worst {
			t.Errorf("%s: %d violations, worst window %d; not %d and %d", c.name, count, worst, c.count, c.worst)
		}
	}
}

func TestShare(t *testing.T) {
	two := &tenant{requests: 2}
	for _, c := range []struct {
		name  string
		times []time.Time
		want  float64
	}{
		{"nothing", nil, 0},
		{"all of it, wherever the time begins", at(100, 600, 1100, 1600, 2100, 2600, 3100, 3600), 1},
		{"half of it", at(100, 1100, 2100, 3100), 0.5},
		{"a time without any at the end is part of it", at(0, 500), 0.25},
	} {
		if got := share(c.times, two, at(0)[0], at(4000)[0]); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%s: %v, not %v", c.name, got, c.want)
		}
	}
}

func TestRecovered(t *testing.T) {
	event := at(0)[0]
	steady := at(-500, 1500, 2500, 3500, 4500, 5500, 6500)
	if got := recovered(steady, event, 1, time.Second); got != 1500*time.Millisecond {
		t.Errorf("one a second from 1.5 s on: recovered after %v", got)
	}
	if got := recovered(at(100, 2100, 4100, 6100, 8100, 10100), event, 1, time.Second); got != never {
		t.Errorf("half the rate: recovered after %v", got)
	}
}
