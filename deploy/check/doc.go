// Package check holds what is deployed to what Kubernetes, Compose, BuildKit and systemd themselves say about it, as far as
// that can be without them: `make deploy-check` runs it. It is a module of its own, so that their libraries are none of
// the server's.
package check
