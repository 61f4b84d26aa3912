package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// The other caller of the hostile benchmark is a process of its own: in the attackers' process its calls would wait for their
// work as well, which in life is another machine's.

// otherCaller is who it is, and whom it calls.
type otherCaller struct {
	GRPC, REST string // addresses
	Key, Bot   string
	Seen       string // file that gets a sighting a line
}

// sighting is one call and what it took.
type sighting struct {
	Over  string // grpc or rest
	Began int64  // Unix time in microseconds
	MS    float64
	Error string
}

// otherEvery is how often it sends.
const otherEvery = 50 * time.Millisecond

// otherCommand is what the benchmark starts it by.
func otherCommand() *cobra.Command {
	return &cobra.Command{
		Use: "other-caller CONFIG", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			var o otherCaller
			if err := json.Unmarshal(text, &o); err != nil {
				return err
			}
			return o.run(cmd.Context())
		},
	}
}

// run sends texts, over gRPC and REST in turn, until ctx ends.
func (o *otherCaller) run(ctx context.Context) (err error) {
	conn, err := grpc.NewClient(o.GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	file, err := os.Create(o.Seen)
	if err != nil {
		return err
	}
	out := json.NewEncoder(file)
	to := &tenant{name: o.Bot, bots: []string{o.Bot}}
	ways := map[string]func(context.Context, *facadev1.SendMessageRequest) error{
		"grpc": func(ctx context.Context, r *facadev1.SendMessageRequest) error {
			_, err := facadev1.NewMessageServiceClient(conn).SendMessage(metadata.AppendToOutgoingContext(ctx, "x-api-key", o.Key), r)
			return err
		},
		"rest": o.sendREST,
	}
	var calls sync.WaitGroup
	var mu sync.Mutex
	tick := time.NewTicker(otherEvery)
	defer tick.Stop()
	for over := "grpc"; ; over = map[string]string{"grpc": "rest", "rest": "grpc"}[over] {
		select {
		case <-ctx.Done():
			calls.Wait()
			return file.Close()
		case <-tick.C:
		}
		calls.Go(func() {
			call, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			s := sighting{Over: over, Began: time.Now().UnixMicro()}
			if err := ways[over](call, to.message(o.Bot, facadev1.SendOptions_NORMAL)); err != nil {
				s.Error = err.Error()
			}
			s.MS = ms(time.Since(time.UnixMicro(s.Began)))
			mu.Lock()
			defer mu.Unlock()
			_ = out.Encode(s) // the benchmark misses what could not be written
		})
	}
}

func (o *otherCaller) sendREST(ctx context.Context, request *facadev1.SendMessageRequest) error {
	request.BotId = ""
	body, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(request)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, o.REST+"/v1/bots/"+o.Bot+"/messages", bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Api-Key", o.Key)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, text)
	}
	return err
}

// startOther starts the other caller.
func (b *bench) startOther(o otherCaller) (*child, error) {
	if err := b.build(b.ctx, "jelou-bench"); err != nil {
		return nil, err
	}
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	config, err := b.write("other-caller.json", text)
	if err != nil {
		return nil, err
	}
	return b.spawn("jelou-bench", "other-caller", config)
}

// sightings reads what the other caller saw.
func (o *otherCaller) sightings() (all []sighting, err error) {
	file, err := os.Open(o.Seen)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var s sighting
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}
