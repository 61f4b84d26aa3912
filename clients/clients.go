// Package clients holds what the clients of all languages share.
package clients

import _ "embed"

// ServiceConfig is the gRPC service config of every client: deadlines, and retries of what is safe to repeat. Its retries of sends
// hold only for clients that give every send a request_id, as facade.Dial does: a service config cannot look at a field.
//
//go:embed service_config.json
var ServiceConfig string
