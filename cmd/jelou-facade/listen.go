package main

import (
	"fmt"
	"net"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
)

// checkListen refuses what would let anybody on the network send in the companies' name, or read what is sent. Lines are those
// of the document; nil for addresses that do not come from one.
func checkListen(c *configv1.Config, d *document) error {
	for _, l := range []struct{ field, address string }{{"listen.grpc", c.Listen.GetGrpc()}, {"listen.http", c.Listen.GetHttp()}} {
		if l.address == "" {
			continue // the default, a loopback address
		}
		err := checkAddress(c, l.address)
		switch {
		case err != nil && d != nil:
			return d.at(l.field, err)
		case err != nil:
			return fmt.Errorf("%s: %w", l.field, err)
		}
	}
	return nil
}

func checkAddress(c *configv1.Config, address string) error {
	host, _, err := net.SplitHostPort(address)
	switch {
	case err != nil:
		return err
	case isLoopback(host):
		return nil
	case !authenticates(c):
		return fmt.Errorf("%s is not a loopback address, and nobody who reaches it has to say who he is: set callers, or listen on 127.0.0.1", address)
	case c.Listen.Tls == nil && !c.Listen.PlaintextBehindProxy:
		return fmt.Errorf("%s is not a loopback address, and without TLS anybody on the way reads keys and messages: set listen.tls.cert_file and listen.tls.key_file; or, where a proxy or a mesh in front ends TLS, listen.plaintext_behind_proxy: true", address)
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// authenticates reports whether callers have to say who they are.
func authenticates(c *configv1.Config) bool { return len(c.Callers) > 0 }
