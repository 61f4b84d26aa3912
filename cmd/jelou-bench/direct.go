package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// direct is a client that calls Jelou by itself, as every service did before there was a facade.
type direct struct {
	t    *tenant
	http *http.Client
}

func newDirect(t *tenant) *direct {
	return &direct{t: t, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
}

// send sends one text to somebody new and gives the status. It does not care what becomes of a 429.
func (d *direct) send(ctx context.Context) (int, error) {
	user := d.t.user()
	body, err := json.Marshal(map[string]string{"type": "text", "userId": user, "text": "Su pedido " + user + " salió de bodega."})
	if err != nil {
		return 0, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, d.t.sim.api+"/v1/bots/"+d.t.bot()+"/messages", bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	r.SetBasicAuth(d.t.name, "secret-of-"+d.t.name)
	r.Header.Set("Content-Type", "application/json")
	response, err := d.http.Do(r)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, err
}

// mustSend is send where only a 200 will do.
func (d *direct) mustSend(ctx context.Context) error {
	code, err := d.send(ctx)
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("the simulator answered %d", code)
	}
	return err
}

// limiter is a client-side limit as it is usually written: wait returns when the next request may leave.
type limiter interface {
	Wait(context.Context) error
}

// fixedWindow lets so many through in each second of the clock.
type fixedWindow struct {
	requests int
	window   time.Duration
	began    time.Time
	used     int
}

// Wait returns when the window has room. It is for one goroutine.
func (f *fixedWindow) Wait(ctx context.Context) error {
	for {
		if began := time.Now().Truncate(f.window); !began.Equal(f.began) {
			f.began, f.used = began, 0
		}
		if f.used < f.requests {
			f.used++
			return nil
		}
		if err := sleep(ctx, time.Until(f.began.Add(f.window))); err != nil {
			return err
		}
	}
}

// flood sends as fast as the limiter lets it, without waiting for answers, until ctx ends.
func (d *direct) flood(ctx context.Context, l limiter) {
	for l.Wait(ctx) == nil {
		go func() { _, _ = d.send(context.WithoutCancel(ctx)) }() // the simulator knows what became of it
	}
}
