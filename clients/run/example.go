package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
)

// exampleOutput is what every language's example prints.
const exampleOutput = "clients/example.txt"

// runExample runs a language's example against a sandbox of its own and compares what it prints.
func runExample(ctx context.Context, l language, b *binaries) error {
	want, err := os.ReadFile(exampleOutput)
	if err != nil {
		return err
	}
	folder, err := os.MkdirTemp("", "jelou-example-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	address, err := freeAddress()
	if err != nil {
		return err
	}
	sandbox, err := startChild(filepath.Join(folder, "sandbox.log"), b.facade, "serve", "--sandbox", "--grpc-addr", address, "--http-addr", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer sandbox.stop()
	example := exec.CommandContext(ctx, l.example[0], append(l.example[1:], address)...)
	var stderr bytes.Buffer
	example.Stderr = &stderr
	got, err := example.Output()
	if err != nil {
		return fmt.Errorf("%w: %s", err, &stderr)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("printed\n%swant, as in %s,\n%s", got, exampleOutput, want)
	}
	return nil
}

// freeAddress is one that nothing listens on at the moment.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
